"The book as one file, on a sample of three pages: bookmarks, page numbers, links, solutions."
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("bs4")
pdf = pytest.importorskip("pdf")
FOLD = """<p><strong>1. Recall.</strong> Why?</p><div class="cell tag_hide-cell">
<details class="admonition hide"><summary><p>Solution</p></summary><pre>because = 1</pre></details>
</div>"""
PAGES = {
    "index": '<h1 id="minigpt">MiniGPT</h1><p><a href="nbs/32_b.html#why">to B</a></p>',
    "nbs/31_a": '<h1>31 · A</h1><h2 id="why">Why A</h2><a href="../search.html">search</a>' + FOLD,
    "nbs/32_b": '<h1>32 · B</h1><h2 id="why">Why B</h2><a href="31_a.html">to A</a>'
                '<a href="#why">here</a><a href="https://example.org/">away</a>',
}
PARTS = [("", ["index"]), ("Part one", ["nbs/31_a", "nbs/32_b"])]
CONFIG = {"title": "MiniGPT", "author": "The MiniGPT authors",
          "html": {"baseurl": "https://example.org/book/"}}


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setattr(pdf, "SITE", tmp_path)
    (tmp_path / "nbs").mkdir()
    for name, body in PAGES.items():
        (tmp_path / f"{name}.html").write_text(
            f"<html><head></head><body><article>{body}</article></body></html>", encoding="utf-8")
    return pdf.whole_book(PARTS, CONFIG, "")


def test_links_lead_to_places_in_the_book_or_to_the_site(text):
    links = re.findall(r'href="([^"]*)"', text)
    assert {"#c-32_b--why", "#c-31_a", "https://example.org/", "#c-solutions",
            "https://example.org/book/search.html"} <= set(links)
    ids = re.findall(r'id="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)


def test_solutions_stand_behind_everything_else(text):
    asked, solved = text.index('id="c-31_a-asked-1"'), text.index("because = 1")
    assert asked < text.index("Why B") < text.index(">Solutions</h2>") < solved
    assert "1. Recall</strong>, asked on" in text


def test_printing_gives_bookmarks_page_numbers_and_links(text, tmp_path):
    pikepdf = pytest.importorskip("pikepdf", reason="pip install -r book/requirements-pdf.txt")
    try:
        pdf.browser()
    except pdf.PdfError as error:
        pytest.skip(str(error))
    source, printed, done = (tmp_path / name for name in ("book.html", "book.pdf", "done.pdf"))
    pdf.print_numbered(text, source, printed)
    assert pdf.finish(printed, done, "MiniGPT", "The MiniGPT authors", "A sample") == 6
    with pikepdf.open(done) as book:
        where = pdf.page_numbers(book)
        assert (where["c-index"], where["c-31_a"], where["c-32_b"], where["c-solutions"]) \
            == (3, 4, 5, 6)
        shown = dict(re.findall(r'data-page="([^"]*)">(\d+)<', source.read_text(encoding="utf-8")))
        assert shown and all(int(number) == where[id] for id, number in shown.items())
        with book.open_outline() as outline:
            marks = {mark.title: [c.title for c in mark.children] for mark in outline.root}
        assert marks == {"Contents": [], "About this book": [],
                         "Part one": ["31 · A", "32 · B", "Solutions"]}
        notes = [note for page in book.pages for note in page.get("/Annots", [])]
        inside = {str(note.Dest)[1:] for note in notes if "/Dest" in note}
        assert inside <= where.keys() and {"c-32_b--why", "c-31_a-asked-1"} <= inside
        assert str(book.docinfo["/Author"]) == "The MiniGPT authors" and book.Root.Lang == "en"
