"""Print the whole book into one file, book/_build/minigpt.pdf.

The articles of the built site are put into one document, in the order of _toc.yml, and Chromium
prints it: so links, bookmarks and page numbers are its own. The contents need page numbers that
are known only afterwards; they are read from the file, and it is printed again until they hold.
Scripts that the book's own fonts lack (Hindi, Japanese, emoji) take the fonts of the machine.
"""
import configparser
import html
import json
import os
import posixpath
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import check_site
import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "book" / "_build" / "html"
WORK = ROOT / "book" / "_build" / "pdf"
TARGET = ROOT / "book" / "_build" / "minigpt.pdf"
OLDEST = 131  # the first Chromium that prints what `@page` says about headers and footers
SHORT = 16    # a listing of so many lines is not divided between two pages
FONTS = {"STIX": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
         "Mono": ("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique",
                  "DejaVuSansMono-BoldOblique")}


class PdfError(Exception):
    "The book cannot be printed; the message says why, and what to do."


# ---- the pages of the site, as one document -----------------------------------------------------
def read_toc() -> list[tuple[str, list[str]]]:
    "Each part's caption, and the names of its pages."
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    parts = [(part["caption"], [c["file"] for c in part["chapters"]]) for part in toc["parts"]]
    return [("", [toc["root"]]), *parts]


def place(name: str, fragment: str = "") -> str:
    "The id, in the whole book, of a page or of a place on it."
    return f"c-{name.split('/')[-1]}" + (f"--{fragment}" if fragment else "")


def target(url: str, name: str, names: set[str], base: str) -> str:
    "Where a link of page `name` leads from within the book."
    parts = urlsplit(url)
    if parts.scheme or parts.netloc:
        return url
    path = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path)))
    page = name if not parts.path else path.removesuffix(".html")
    return "#" + place(page, unquote(parts.fragment)) if page in names else urljoin(base, path)


def article(name: str, names: set[str], base: str, folder: str):
    "The article of one page: every id and link made unique, every fold of code open."
    text = (SITE / f"{name}.html").read_text(encoding="utf-8")
    body = BeautifulSoup(text, "html.parser").find("article")
    for node in body.select("script, .headerlink, style:not(svg style)"):
        node.decompose()
    for node in body.find_all("noscript"):
        node.unwrap()
    for node in body.find_all(True):
        for key in ("id", "for"):
            if key in node.attrs:
                node[key] = place(name, node[key])
        for key in ("aria-labelledby", "aria-describedby"):
            if key in node.attrs:
                node[key] = " ".join(place(name, one) for one in node[key].split())
        for key in ("href", "xlink:href"):
            if key in node.attrs:
                node[key] = target(node[key], name, names, base)
        if "src" in node.attrs and not urlsplit(node["src"]).scheme:
            node["src"] = folder + posixpath.join(posixpath.dirname(name), node["src"])
        for key, value in node.attrs.items():
            if isinstance(value, str) and "url(#" in value:
                node[key] = value.replace("url(#", f"url(#{place(name)}--")
    for fold in body.find_all("details"):
        fold["open"] = ""
    for code in body.select("div.highlight"):
        if code.get_text().count("\n") <= SHORT:
            code["class"].append("short")
    for level in range(5, 0, -1):  # the part is above the chapter
        for heading in body.find_all(f"h{level}"):
            heading.name = f"h{level + 1}"
    return body


def page_of(id: str) -> str:
    return f'<span data-page="{html.escape(id)}">000</span>'


def move_solutions(body, name: str) -> str:
    "Take the solutions out of a chapter, leave the number of their page, and return them."
    moved, folds = [], body.select("details.hide, .admonition.dropdown, details.sd-dropdown")
    for fold in folds:
        title = fold.select_one("summary, .admonition-title")
        if title is None or not title.get_text().strip().startswith("Solution"):
            continue
        before = fold.find_all_previous("strong")
        question = next((s for s in before if re.match(r"\d+\.", s.get_text())), None)
        label = question.get_text().rstrip(".") if question else "Solution"
        here, there = (f"{place(name)}-{what}-{len(moved) + 1}" for what in ("asked", "solved"))
        title.extract()
        answer = "".join(map(str, fold.contents))
        moved.append(f'<p class="to-exercise" id="{there}"><strong>{label}</strong>, asked on '
                     f'<a href="#{here}">page {page_of(here)}</a></p>'
                     f'<div class="cell">{answer}</div>')
        link = f'<p class="to-solution" id="{here}"><a href="#{there}">Solution on page ' \
               f'{page_of(there)}</a></p>'
        fold.replace_with(BeautifulSoup(link, "html.parser"))
    return "".join(moved)


def fonts() -> str:
    import matplotlib
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    faces = []
    for family, files in FONTS.items():
        for i, file in enumerate(files):
            faces.append(f'@font-face {{ font-family: {family}; src: url("'
                         f'{(folder / file).as_uri()}.ttf"); '
                         f"font-weight: {700 if i % 2 else 400}; "
                         f"font-style: {'italic' if i > 1 else 'normal'} }}")
    return "\n".join(faces)


def title_page(title: str, author: str, address: str) -> str:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    version = settings["DEFAULT"]["version"]
    return f"""<section class="title-page">
<p class="title">{title}</p><p class="subtitle">A book that is also a library</p>
<p class="author">{author}</p>
<p class="imprint">Version {version}. Licensed under Apache-2.0.<br>
The pages that this file was printed from: <a href="{address}">{address}</a></p></section>"""


def contents(parts: list[tuple[str, list[tuple[str, str]]]]) -> str:
    "The table of contents; a chapter is its id and its title."
    rows = []
    for caption, chapters in parts:
        rows.append(f'<p class="part">{html.escape(caption)}</p><ol>' if caption else "<ol>")
        rows += [f'<li><a href="#{id}"><span>{html.escape(title)}</span>'
                 f'<span class="leader"></span>{page_of(id)}</a></li>' for id, title in chapters]
        rows.append("</ol>")
    return f'<nav class="book-contents"><h1>Contents</h1>{"".join(rows)}</nav>'


def chapter(id: str, title: str, part: str, inside: str) -> str:
    head = f'<h1 class="part">{html.escape(part)}</h1>' if part else ""
    running = json.dumps(title, ensure_ascii=False)
    return (f"<style>@page {id} {{ @top-right {{ content: {running}; font: 9pt STIX; "
            f'color: #444 }} }} #{id} {{ page: {id} }}</style><div class="chapter" id="{id}">'
            f"{head}{inside}</div>")


def whole_book(parts: list[tuple[str, list[str]]], config: dict, folder: str) -> str:
    "One HTML document; `folder` leads from it to the site."
    names = {name for _, pages in parts for name in pages}
    base = config["html"]["baseurl"]
    listed, chapters, solved = [], [], []
    for caption, pages in parts:
        listed.append((caption, []))
        for name in pages:
            body = article(name, names, base, folder)
            heading = body.find("h2")
            title = heading.get_text().strip()
            if not caption:  # the first page of the site; the title page has said its title
                heading.name, heading.string = "h1", "About this book"
                title = heading.string
            answers = move_solutions(body, name)
            if answers:
                solved.append(f'<h3>{html.escape(title)}</h3>{answers}')
            part = caption if name == pages[0] else ""
            chapters.append(chapter(place(name), title, part, str(body)))
            listed[-1][1].append((place(name), title))
    if solved:
        listed[-1][1].append(("c-solutions", "Solutions"))
        inside = f'<article class="bd-article"><h2>Solutions</h2>{"".join(solved)}</article>'
        chapters.append(chapter("c-solutions", "Solutions", "", inside))
    first = BeautifulSoup((SITE / "index.html").read_text(encoding="utf-8"), "html.parser")
    sheets = "".join(f'<link rel="stylesheet" href="{folder}{sheet["href"]}">'
                     for sheet in first.head.find_all("link", rel="stylesheet"))
    style = (ROOT / "book" / "pdf.css").read_text(encoding="utf-8")
    return (f'<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8">'
            f'<title>{config["title"]}</title>{sheets}<style>{fonts()}\n{style}</style></head>'
            f'<body>{title_page(config["title"], config["author"], base)}'
            f'{contents(listed)}<main>{"".join(chapters)}</main></body></html>')


# ---- printing -----------------------------------------------------------------------------------
def browser() -> str:
    "A Chromium that is new enough."
    wanted, found = os.environ.get("CHROMIUM"), check_site.browser()
    if not found:
        raise PdfError(f"no Chromium or Chrome found{f' at {wanted}' if wanted else ''}: install "
                       "one, or set the variable CHROMIUM to its path")
    says = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    version = re.search(r"(\d+)\.\d+\.\d+", says)
    if version and int(version[1]) < OLDEST:
        raise PdfError(f"{found} is version {version[1]}, which prints no page numbers: version "
                       f"{OLDEST} or newer is needed")
    return found


def print_page(source: Path, into: Path) -> None:
    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [browser(), "--headless", *root, "--disable-gpu", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             f"--user-data-dir={profile}", "--no-pdf-header-footer",
             "--generate-pdf-document-outline", f"--print-to-pdf={into}", source.as_uri()],
            capture_output=True, text=True, errors="replace", timeout=900)
    if done.returncode or not into.exists():
        raise PdfError(f"Chromium printed nothing (exit code {done.returncode}):\n"
                       + "\n".join(done.stderr.splitlines()[-5:]))


def page_numbers(pdf) -> dict[str, int]:
    "The page of every id that some link leads to."
    numbers = {page.objgen: number for number, page in enumerate(pdf.pages, 1)}
    places = pdf.Root.get("/Dests", {})
    return {name[1:]: numbers[where[0].objgen] for name, where in places.items()}


def numbered(text: str, pages: dict[str, int]) -> str:
    def number(match):
        return f"{match[1]}{pages.get(html.unescape(match[2]), '?')}<"
    return re.sub(r'(<span data-page="([^"]*)">)[^<]*<', number, text)


def print_numbered(text: str, source: Path, into: Path) -> None:
    "Print until the numbers that stand in the text are the pages' numbers."
    import pikepdf
    for _ in range(3):
        source.write_text(text, encoding="utf-8")
        print_page(source, into)
        with pikepdf.open(into) as pdf:
            new = numbered(text, page_numbers(pdf))
        if new == text:
            return
        text = new
    raise PdfError("the page numbers of the contents do not settle: see book/pdf.py")


def mend(bookmarks) -> None:
    "Chromium writes the title of a bookmark twice where its heading stands on top of a page."
    for mark in bookmarks:
        half = mark.title[:len(mark.title) // 2]
        mark.title = half if half * 2 == mark.title else mark.title
        mend(mark.children)


def finish(printed: Path, into: Path, title: str, author: str, says: str) -> int:
    "Say who wrote it, pack it, and return the number of pages."
    import pikepdf
    with pikepdf.open(printed) as pdf:
        with pdf.open_metadata(set_pikepdf_as_editor=False) as meta:
            meta["dc:title"], meta["dc:creator"] = title, [author]
            meta["dc:description"], meta["dc:language"] = says, ["en"]
        with pdf.open_outline() as outline:
            mend(outline.root)
        pdf.docinfo["/Title"], pdf.docinfo["/Author"] = title, author
        pdf.docinfo["/Subject"], pdf.docinfo["/Creator"] = says, title
        pdf.Root.Lang = "en"
        pdf.Root.PageMode = pikepdf.Name.UseOutlines
        pdf.save(into, object_stream_mode=pikepdf.ObjectStreamMode.generate, linearize=True)
        return len(pdf.pages)


def main() -> int:
    start = time.monotonic()
    try:
        import pikepdf  # noqa: F401
    except ImportError:
        sys.exit("pikepdf is missing: pip install -r book/requirements-pdf.txt")
    parts = read_toc()
    missing = [n for _, names in parts for n in names if not (SITE / f"{n}.html").exists()]
    if missing:
        sys.exit(f"{missing[0]}.html is not in the site: run `make book` first")
    config = yaml.safe_load((ROOT / "book" / "_config.yml").read_text(encoding="utf-8"))
    WORK.mkdir(parents=True, exist_ok=True)
    try:
        text = whole_book(parts, config, "../html/")
        print_numbered(text, WORK / "book.html", WORK / "book.pdf")
    except PdfError as error:
        sys.exit(str(error))
    pages = finish(WORK / "book.pdf", TARGET, config["title"], config["author"],
                   "A book that is also a library")
    print(f"{TARGET.relative_to(ROOT).as_posix()}: {pages} pages, "
          f"{TARGET.stat().st_size / 1e6:.1f} MB, in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
