"""Mend what the theme and other extensions write that is not valid HTML, or hard to hear.

No setting of theirs changes these. Each rule leaves a page alone that is already right.
"""
import re
from pathlib import Path

VIEWPORT = re.compile(r'<meta name="viewport"[^>]*>\n?')
SEARCH_FORM = re.compile(r'(<form class="bd-search.*?)(</form>)', re.S)
SEARCH_SCRIPT = re.compile(
    r'\s*<script src="[^"]*(?:searchtools|language_data|searchindex)\.js[^"]*"></script>')
SUBMIT = '<button type="submit" class="visually-hidden-focusable">Search</button>\n'
PRINTED = re.compile(r'<div id="jb-print-docs-body".*?</h2>|<div id="jb-print-docs-body".*?</h1>',
                     re.S)
RULES = [(re.compile(pattern, re.S), new) for pattern, new in (
    # a button without a type would send a form
    (r"<button(?![^>]*\stype=)", '<button type="button"'),
    # a tooltip is no name for a button that shows an icon alone
    (r'<button(?![^>]*\saria-label=)([^>]*\stitle="([^"]+)")', r'<button aria-label="\2"\1'),
    # and a button with words is called by these words
    (r'(<button[^>]*search-button-field[^>]*?) aria-label="[^"]*"', r"\1"),
    (r'<summary aria-label="Toggle hidden content">', "<summary>"),
    (r'<p (class="(?:collapsed|expanded) admonition-title")>(.*?)</p>', r"<span \1>\2</span>"),
    (r'(<main[^>]*) role="main"', r"\1"),
    # a list of references whose entries hold links is no list of that role
    (r'<div role="list" (class="citation-list")>', r"<div \1>"),
    (r'(<div class="citation"[^>]*) role="doc-biblioentry"', r"\1"),
)]


def print_title(match: re.Match) -> str:
    "The title that is printed is no second heading of the page."
    block = re.sub(r"<h1>\s*</h1>", "", match[0])
    return re.sub(r"<h([12])>(.*?)</h\1>", r'<p class="h\1">\2</p>', block, flags=re.S)


def mend(page: str) -> str:
    for pattern, new in RULES:
        page = pattern.sub(new, page)
    page = PRINTED.sub(print_title, page)
    page = SEARCH_FORM.sub(lambda m: m[0] if SUBMIT in m[0] else m[1] + SUBMIT + m[2], page)
    first = VIEWPORT.search(page)
    if first:  # three extensions write one each
        page = page[:first.end()] + VIEWPORT.sub("", page[first.end():])
    if 'id="search-results"' not in page and "search_as_you_type = false" in page:
        page = SEARCH_SCRIPT.sub("", page)  # the index of the whole book is needed there alone
    return page


def mend_all(app, exception) -> None:
    if exception or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        if "_static" in path.parts:
            continue
        page = path.read_text(encoding="utf-8")
        mended = mend(page)
        if mended != page:
            path.write_text(mended, encoding="utf-8")


def setup(app):
    app.connect("build-finished", mend_all)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
