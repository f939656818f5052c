"""Put each chapter's notebook beside its page, with two links to it in the page's header.

The links are plain: no script, no picture of another host. `elsewhere.py` writes the notebooks.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import elsewhere  # noqa: E402


def offer(app, pagename, templatename, context, doctree) -> None:
    "Tell the template open-notebook.html where this chapter's notebook is."
    name = pagename.removeprefix("nbs/")
    if name != pagename and (elsewhere.run.NOTEBOOKS / f"{name}.ipynb").exists():
        context["notebook_file"] = context["pathto"](f"notebooks/{name}.ipynb", 1)
        context["notebook_colab"] = elsewhere.COLAB.format(name)


def write(app, exception) -> None:
    if not exception and app.builder.format == "html":
        elsewhere.write(Path(app.outdir) / "notebooks")


def setup(app):
    app.add_css_file("open.css")
    app.connect("html-page-context", offer)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
