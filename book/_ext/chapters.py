"""Read a notebook as a page: no build directive is shown, and every output is a computed one.

A line like `#| export` speaks to nbdev, not to the reader. It is taken out of the code, and what
it says is turned into a tag or a figure. Outputs come from the stored runs of `book/run.py`.
"""
import re
import sys
from pathlib import Path

import codelinks
import nbformat
import reference
import signatures
from docutils import nodes

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import run  # noqa: E402

LONG = 60      # an exported cell of more lines is a list of words or patterns: folded on the page
HEAD = re.compile(r"\A(?:[ \t]*#[ \t]*\|.*(?:\n|\Z)|[ \t]*\n)+")
FLAGS = {"export", "exporti", "exports", "hide"}
VALUES = {"default_exp", "eval", "echo", "output", "code-fold", "code-summary", "label",
          "fig-cap", "fig-alt"}


def directives(source: str) -> dict[str, str]:
    "The `#|` lines at the head of a cell, by name."
    head = HEAD.match(source)
    found = {}
    for line in run.DIRECTIVE.findall(head[0] if head else ""):
        name, _, value = (s.strip() for s in re.split(r"(:\s|:$|\s|$)", line, maxsplit=1))
        if name not in FLAGS | VALUES:
            raise ValueError(f"unknown directive `#| {line}`; known: {sorted(FLAGS | VALUES)}")
        found[name] = value.strip("\"'")
    return found


def page(text: str):
    "A notebook as MyST-NB should see it."
    nb = run.with_outputs(nbformat.reads(text, as_version=4))
    module, scope = None, {}
    for number, cell in enumerate(nb.cells, 1):
        if cell.cell_type != "code":
            continue
        try:
            d = directives(cell.source)
        except ValueError as error:
            same = (p.name for p in run.chapters() if p.read_text(encoding="utf-8") == text)
            raise ValueError(f"nbs/{next(same, '?')}, cell {number}: {error}") from None
        module = d.get("default_exp") or module
        cell.source = HEAD.sub("", cell.source)
        exports_to = module if d.keys() & {"export", "exports"} else ""
        cell.metadata |= {"cell": cell.get("id", str(number)),
                          "links": codelinks.find(cell.source, scope, exports_to)}
        off = {name for name, value in d.items() if value.lower() == "false"}
        tags = list(cell.metadata.get("tags", []))
        if "hide" in d or not cell.source.strip():
            tags.append("remove-cell")
        if "echo" in off:
            tags.append("remove-input")
        if "output" in off:
            tags.append("remove-output")
        if d.get("code-fold", "").lower() == "true":
            answer = d.get("code-summary", "").startswith("Solution")
            tags.append("hide-cell" if answer else "hide-input")  # an output can tell the answer
        mystnb = {}
        if exports_to:
            tags += ["exported", f"module-{module}"]
            n_lines = len(cell.source.splitlines())
            if n_lines > LONG:
                tags.append("hide-input")
                mystnb["code_prompt_show"] = mystnb["code_prompt_hide"] = f"{n_lines} lines of code"
        if "code-summary" in d:
            mystnb |= {"code_prompt_show": d["code-summary"], "code_prompt_hide": d["code-summary"]}
        if "fig-cap" in d:
            mystnb["figure"] = {"caption": d["fig-cap"]}
            if "label" in d:
                mystnb["figure"]["name"] = d["label"]
        if "fig-alt" in d or "fig-cap" in d:
            mystnb["image"] = {"alt": d.get("fig-alt") or d["fig-cap"]}
        if mystnb:
            cell.metadata["mystnb"] = mystnb
        if tags:
            cell.metadata["tags"] = tags
    return nb


def mark_exported(app, doctree) -> None:
    "Under an exported cell, say which module it goes to."
    for cell in list(doctree.findall(nodes.container)):
        module = next((c[len("tag_module-"):] for c in cell.get("classes", [])
                       if c.startswith("tag_module-")), None)
        inputs = [n for n in cell.children if "cell_input" in n.get("classes", [])]
        if module and inputs:
            known = signatures.modules().get(module)
            names = [e.name for e in known.entries.values()
                     if e.cell == cell["cell_metadata"]["cell"]] if known else []
            name = nodes.Text(f"minigpt.{module}")
            if known:
                name = reference.link(f"minigpt/{module}", names[0] if names else "", name)
            inputs[0].append(reference.paragraph(name, classes=["exported-to"]))


def outdated(app, env, added, changed, removed) -> list[str]:
    "Pages whose notebook must be read again because its run has changed."
    run.package.cache_clear()
    run.surroundings.cache_clear()
    keys, old = {}, getattr(env, "chapter_keys", {})
    for name in env.found_docs:
        path = Path(env.doc2path(name))
        if path.suffix == ".ipynb":
            keys[name] = run.key(nbformat.read(path, as_version=4))
    env.chapter_keys = keys
    return [name for name in keys if name in old and old[name] != keys[name]]


def setup(app):
    app.connect("env-get-outdated", outdated)
    app.connect("doctree-read", mark_exported)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
