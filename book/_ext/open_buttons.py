"""Put each chapter's notebook beside its page, with two links to it in the page's header.

The links are plain: no script, no picture of another host. `elsewhere.py` writes the notebooks.
The link that reports a mistake opens a form which knows the page already.
"""
import sys
from pathlib import Path
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import elsewhere  # noqa: E402
from sphinx.util import logging  # noqa: E402

FORM = "1-mistake.yml"   # of .github/ISSUE_TEMPLATE
logger = logging.getLogger(__name__)

def offer(app, pagename, templatename, context, doctree) -> None:
    "Tell the template open-notebook.html where this chapter's notebook is."
    name = pagename.removeprefix("nbs/")
    if name != pagename and (elsewhere.run.NOTEBOOKS / f"{name}.ipynb").exists():
        context["notebook_file"] = context["pathto"](f"notebooks/{name}.ipynb", 1)
        context["notebook_colab"] = elsewhere.COLAB.format(name)


def report(app, pagename, templatename, context, doctree) -> None:
    "Let the theme's link to a new issue open our form."
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []):
            if button.get("label") == "source-issues-button":
                page = quote(elsewhere.page_url(pagename), safe="")
                button["url"] = f"{elsewhere.REPOSITORY}/issues/new?template={FORM}&page={page}"


def write(app, exception) -> None:
    "Write the notebooks; a page that does not link its own is a warning, which fails the build."
    if exception or app.builder.format != "html":
        return
    for path in elsewhere.write(Path(app.outdir) / "notebooks"):
        page = Path(app.outdir) / "nbs" / f"{path.stem}.html"
        if page.exists() and f'"../notebooks/{path.name}"' not in page.read_text("utf-8"):
            logger.warning("nbs/%s has no link to its notebook", page.name)


def setup(app):
    app.add_css_file("open.css")
    app.connect("html-page-context", offer)                  # before the theme drops empty parts
    app.connect("html-page-context", report, priority=900)   # after the theme made its buttons
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
