"""Write each chapter as a notebook that runs anywhere: on Colab, or in an empty folder.

The copy begins with a cell that installs what it needs. Build directives are gone, what only MyST
understands is plain Markdown, every link is absolute, and drawings are files beside the notebook,
since neither Jupyter nor Colab shows SVG that stands in the text.
"""
import functools
import html
import os
import posixpath
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import run
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from pybtex.database import parse_file

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
from chapters import HEAD, directives  # noqa: E402

CONFIG = yaml.safe_load((run.ROOT / "book" / "_config.yml").read_text(encoding="utf-8"))
SITE = CONFIG["html"]["baseurl"]
REPOSITORY, BRANCH = CONFIG["repository"]["url"], CONFIG["repository"]["branch"]
REF = os.environ.get("NOTEBOOK_REF") or BRANCH   # a commit, where the site is published
INSTALL = f'%pip install -q "minigpt[notebooks] @ git+{REPOSITORY}@{REF}"'
COLAB = (REPOSITORY.replace("https://github.com", "https://colab.research.google.com/github")
         + "/blob/notebooks/{}.ipynb")
PAGES = {".ipynb", ".md", ".html", ""}
PICTURES = {".svg", ".png", ".jpg", ".jpeg", ".gif", ".webp"}
BOXES = {"admonition", "attention", "caution", "danger", "error", "hint", "important", "note",
         "seealso", "tip", "warning"}
FOLDS = {"dropdown", "solution", "toggle"}
BARE = {"card-carousel", "container", "div", "grid", "grid-item", "tab-set"}   # no title follows
UNSEEN = {"bibliography", "contents", "tableofcontents", "toctree"}   # only the site can fill them

OPEN = re.compile(r" {0,3}(:{3,}|`{3,}|~{3,})[ \t]*(?:\{([\w:.-]+)\}[ \t]*(.*?)|([^`]*?))[ \t]*$")
FIGURE = re.compile(r"<figure[^>]*>\s*(<svg.*?</svg>)\s*(?:<figcaption>(.*?)</figcaption>)?\s*"
                    r"</figure>|(<svg.*?</svg>)", re.S)
SCRIPT = re.compile(r"<(script|style)\b.*?</\1>[ \t]*\n?", re.S)
LINE = re.compile(r"^(?:\([\w:.-]+\)=|%(?: .*)?|\+\+\+.*|\{[.#][^}\n]*\})[ \t]*(?:\n|\Z)", re.M)
PART = re.compile(
    r"\{(?P<role>[\w:+.-]+)\}(?P<tick>`+)(?P<said>.+?)(?P=tick)(?!`)"
    r"|(?P<code>(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`))"
    r"|(?P<math>\$\$.+?\$\$|(?<![\\$])\$[^$\n]+\$)"
    r"|(?<=[\])`])(?P<style>\{[.#][^}\n]*\})"
    r"|\[(?P<words>[^\[\]]*)\](?=\{[.#])"
    r"|\]\((?P<url><[^>\n]*>|[^)\s]+)(?P<title>[ \t]+\"[^\"\n]*\")?\)"
    r"|(?P<attribute>\b(?:href|src)=)(?P<quote>[\"'])(?P<target>.*?)(?P=quote)", re.S)


# ---- where things are ---------------------------------------------------------------------------
@functools.cache
def labels() -> dict[str, str]:
    "The page on which each label stands."
    found = {}
    for path in run.chapters():
        text = "\n".join(cell.source for cell in run.load(path).cells)
        names = re.findall(r"^#\| *label: *(\S+)|^\(([\w:.-]+)\)=", text, re.M)
        found |= {a or b: f"nbs/{path.stem}" for a, b in names}
    return found


@functools.cache
def pages() -> set[str]:
    "Every page of the site, without its ending."
    toc = (run.ROOT / "_toc.yml").read_text(encoding="utf-8")
    return set(re.findall(r"^\s*(?:- )?(?:file|root): *(\S+?)(?:\.\w+)?\s*$", toc, re.M))


def page_url(page: str, fragment: str = "") -> str:
    name = "" if page == "index" else f"{page}.html"
    return SITE + name + (f"#{fragment}" if fragment else "")


def absolute(url: str, page: str) -> str:
    "Where `url`, written on `page`, leads for somebody who is not there."
    parts = urlsplit(url)
    if parts.scheme or url.startswith("//"):
        return url
    if not parts.path:
        return page_url(labels().get(parts.fragment, page), parts.fragment)
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), parts.path))
    stem, ending = posixpath.splitext(path)
    if ending in PAGES and stem in pages():
        return page_url(stem, parts.fragment)
    if ending in PICTURES:
        owner = REPOSITORY.replace("https://github.com", "https://raw.githubusercontent.com")
        return f"{owner}/{BRANCH}/{path}"
    if (run.ROOT / path).exists():
        return f"{REPOSITORY}/blob/{BRANCH}/{path}"
    return SITE + path + (f"#{parts.fragment}" if parts.fragment else "")


@functools.cache
def page_title(page: str) -> str:
    path = run.ROOT / f"{page}.ipynb"
    if path.exists():
        return run.load(path).cells[0].source.splitlines()[0].lstrip("# ").strip()
    path = path.with_suffix(".md")
    found = re.search(r"^# +(.+)", path.read_text(encoding="utf-8"), re.M) if path.exists() else 0
    return found[1] if found else page.rsplit("/", 1)[-1].replace("_", " ")


# ---- what stands in a line ----------------------------------------------------------------------
@functools.cache
def works() -> dict:
    return parse_file(str(run.ROOT / "book" / "references.bib"), "bibtex").entries


def authors(entry) -> str:
    names = [" ".join(person.last_names) for person in entry.persons.get("author", [])]
    if len(names) > 2 or names[1:] == ["others"]:
        names = [f"{names[0]} et al."]
    return re.sub(r"[{}\\]", "", " and ".join(names)) or entry.key


def cite(keys: str) -> str:
    "Author and year of each work, linked to the list of references."
    said = []
    for name in (key.strip() for key in keys.split(",")):
        entry = works().get(name)      # Sphinx reports one that is not there
        who = authors(entry) if entry else name
        year = f", {entry.fields['year']}" if entry and "year" in entry.fields else ""
        said.append(f"[{who}{year}]({page_url('book/references')})")
    return f"({'; '.join(said)})"


def role(name: str, said: str, page: str) -> str:
    "Plain Markdown for a role of MyST, such as {term}`token`."
    shown, target = said, said
    if match := re.fullmatch(r"(.*?)\s*<([^<>]+)>", said, re.S):
        shown, target = match.groups()
    if name == "cite" or name.startswith("cite:"):
        return cite(target)
    if name == "doc":
        doc = target if target.endswith((".ipynb", ".md")) else f"{target}.ipynb"
        url = absolute(doc.lstrip("/"), page if not doc.startswith("/") else "index")
        stem = url.removeprefix(SITE).removesuffix(".html")
        return f"[{shown if shown != target else page_title(stem)}]({url})"
    if name in {"ref", "numref", "any", "eq", "prf:ref"}:
        text = shown if shown != target else target.split(":")[-1].replace("-", " ")
        return f"[{text}]({absolute(f'#{target}', page)})"
    if name == "download":
        return f"[{shown}]({absolute(target, page)})"
    if name == "math":
        return f"${said}$"
    if name in {"code", "literal", "py", "func", "class", "meth", "mod"} or name.startswith("py:"):
        return f"`{said}`"
    if name in {"sub", "sup", "kbd"}:
        return f"<{name}>{said}</{name}>"
    return shown


def inline(text: str, page: str) -> str:
    def plain(m: re.Match) -> str:
        if m["role"]:
            return role(m["role"], m["said"], page)
        if m["style"]:
            return ""
        if m["words"] is not None:
            return m["words"]
        if m["url"]:
            return f"]({absolute(m['url'].strip('<>'), page)}{m['title'] or ''})"
        if m["attribute"]:
            return f"{m['attribute']}{m['quote']}{absolute(m['target'], page)}{m['quote']}"
        return m[0]

    text = re.sub(r"\[\]\(([^)\s#]+)\)", lambda m: f"[{named(m[1], page)}]({m[1]})", text)
    return PART.sub(plain, LINE.sub("", SCRIPT.sub("", text)))


def named(url: str, page: str) -> str:
    "The words of a link that has none: the title of its page."
    return page_title(absolute(url, page).removeprefix(SITE).removesuffix(".html") or "index")


# ---- what stands on lines of its own ------------------------------------------------------------
class Pictures(dict):
    "Drawings that were taken out of the text, by file name."

    def __init__(self, prefix: str):
        self.prefix = prefix

    def take(self, m: re.Match) -> str:
        svg = m[1] or m[3]
        name = f"{self.prefix}-{len(self) + 1}.svg"
        alt = re.search(r'aria-label="([^"]*)"', svg)
        alt = re.sub(r"[\[\]]", "", html.unescape(alt[1])) if alt else "Drawing"
        # mid-grey, to be seen on light and dark alike: nobody tells a file which one it stands on
        svg = svg.replace('font-family="inherit"', 'font-family="sans-serif"')
        self[name] = re.sub(r"^<svg", '<svg xmlns="http://www.w3.org/2000/svg" color="#7d838c"',
                            re.sub(r'\sxmlns="[^"]*"', "", svg)) + "\n"
        caption = f"\n\n*{m[2].strip()}*" if m[2] else ""
        return f"![{alt}]({SITE}notebooks/{name}){caption}"


def quote(title: str, body: str) -> str:
    lines = [f"**{title}**", "", *body.splitlines()] if title else body.splitlines()
    return "\n".join(f"> {line}".rstrip() for line in lines)


def fold(title: str, body: str) -> str:
    return f"<details>\n<summary>{title}</summary>\n\n{body}\n\n</details>"


def directive(name: str, said: str, lines: list[str], page: str, pictures: Pictures) -> str:
    "Plain Markdown for a directive of MyST."
    options = {}
    if lines and lines[0].strip() == "---" and "---" in lines[1:]:
        end = lines.index("---", 1)
        options, lines = yaml.safe_load("\n".join(lines[1:end])) or {}, lines[end + 1:]
    while lines and (m := re.match(r"\s*:([\w-]+):\s*(.*)$", lines[0])):
        options[m[1]], lines = m[2], lines[1:]
    raw = "\n".join(lines).strip("\n")
    if name in UNSEEN:
        return ""
    if name == "math":
        return f"$$\n{raw}\n$$"
    if name in {"code-block", "code", "sourcecode", "code-cell"}:
        return f"```{said}\n{raw}\n```"
    here = f"Here [the page on the website]({page_url(page)}) has a part that you can try."
    if name in {"raw", "iframe"}:
        return f"*{here}*"
    body, said = blocks(raw, page, pictures), inline(said, page)
    if name in {"figure", "image"}:
        return f"![{options.get('alt', '')}]({absolute(said, page)})" + (
            f"\n\n*{body}*" if body else "")
    if name in BARE:
        return body
    if name == "widget":
        return quote("", f"{here} {body}")
    if name == "predict":
        choices = "".join(f"\n- {c.strip()}" for c in options.get("choices", "").split("|") if c)
        answer = f"{options.get('answer', '')} {options.get('unit', '')}".strip()
        return (quote("Predict.", said) + ("\n" if choices else "") + choices + "\n\n"
                + fold("Answer", f"**{answer}.** {body}"))
    title = said or name.split(":")[-1].replace("-", " ").capitalize()
    if name in FOLDS or "dropdown" in str(options.get("class", "")).split():
        return fold(title, body)
    if name in BOXES:
        return quote(title, body)
    return f"**{said}**\n\n{body}" if said else body


def blocks(text: str, page: str, pictures: Pictures) -> str:
    "A text in plain Markdown: code stays as it is, directives and roles are put in other words."
    out, prose, lines = [], [], FIGURE.sub(pictures.take, text).split("\n")

    def flush():
        if prose:
            out.append(inline("\n".join(prose), page))
            prose.clear()

    while lines:
        line = lines.pop(0)
        fence = OPEN.match(line)
        if not fence:
            prose.append(line)
            continue
        end = re.compile(rf" {{0,3}}{fence[1][0]}{{{len(fence[1])},}}[ \t]*$")
        close = next((i for i, other in enumerate(lines) if end.match(other)), len(lines))
        inside, lines = lines[:close], lines[close + 1:]
        flush()
        if fence[2]:
            out.append(directive(fence[2], fence[3], inside, page, pictures))
        elif fence[1][0] == ":":
            out.append(blocks("\n".join(inside), page, pictures))
        else:
            out.append("\n".join([line, *inside, fence[1]]))
    flush()
    return "\n".join(out)


# ---- a whole notebook ---------------------------------------------------------------------------
def look() -> str:
    "The settings of nbs/matplotlibrc, as code: the copy stands in another folder."
    lines = (run.NOTEBOOKS / "matplotlibrc").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(": ", 1) for line in lines if line and not line.startswith("#")]
    rows = "".join(f"    {name!r}: {value.strip()!r},\n" for name, value in pairs)
    return ("#@title How the figures look\nimport matplotlib\n"
            f"matplotlib.rcParams.update({{\n{rows}}})")


def code_cells(cell) -> list:
    "A code cell without directives; what they say becomes cells and settings that Jupyter knows."
    d, source = directives(cell.source), HEAD.sub("", cell.source).strip("\n")
    if not source:
        return []
    if d.get("eval", "").lower() == "false":
        return [new_markdown_cell(f"```python\n{source}\n```", id=cell.id)]
    metadata = {}
    if "hide" in d or d.get("echo") == "false" or d.get("code-fold") == "true":
        title = d.get("code-summary", "The code")
        metadata = {"cellView": "form", "jupyter": {"source_hidden": True}}
        source = source if source.startswith("%%") else f"#@title {title}\n{source}"
    cells = [new_code_cell(source, id=cell.id, metadata=metadata)]
    if "fig-cap" in d:
        cells.append(new_markdown_cell(f"*{d['fig-cap']}*", id=f"{cell.id[:56]}-caption"))
    return cells


def beginning(page: str, code: str) -> list:
    "What stands between the title and the chapter."
    where = (f"*This is chapter [{page_title(page)}]({page_url(page)}) of "
             f"[{CONFIG['title']}]({SITE}), to run and to change. Its page on the website shows "
             "every result. The next cell installs what the others need.*")
    cells = [new_markdown_cell(where, id="elsewhere-page"),
             new_code_cell(INSTALL, id="elsewhere-install")]
    if "matplotlib" in code:
        hidden = {"cellView": "form", "jupyter": {"source_hidden": True}}
        cells.append(new_code_cell(look(), id="elsewhere-look", metadata=hidden))
    return cells


def convert(nb, name: str) -> tuple:
    "The notebook `name` for other places, and its drawings by file name."
    page, pictures, cells = f"nbs/{name}", Pictures(name), []
    for cell in nb.cells:
        if cell.cell_type == "code":
            cells += code_cells(cell)
        else:
            text = blocks(cell.source, page, pictures).strip("\n")
            cells += [new_markdown_cell(text, id=cell.id)] if text else []
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    cells[1:1] = beginning(page, code)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    copy = new_notebook(cells=cells, metadata=metadata)
    nbformat.validate(copy)
    return copy, pictures


def write(folder: Path) -> list[Path]:
    "Every chapter, ready to run elsewhere, in `folder`; those that are newer than it already."
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for path in run.chapters():
        target = folder / path.name
        if target.exists() and target.stat().st_mtime > path.stat().st_mtime:
            continue
        copy, pictures = convert(run.load(path), path.stem)
        nbformat.write(copy, target)
        for name, svg in pictures.items():
            (folder / name).write_text(svg, encoding="utf-8")
        written.append(target)
    return written


if __name__ == "__main__":
    where = Path(sys.argv[1] if len(sys.argv) > 1 else run.ROOT / "book" / "_build" / "notebooks")
    print(f"{len(write(where))} notebooks in {where}")
