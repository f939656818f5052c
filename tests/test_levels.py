"""Laws of the levels: who is on the tour, and that the tour passes the others by.

The pages are those of a site of seven small chapters, made here, and of the book if it is built.
"""
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
BeautifulSoup = pytest.importorskip("bs4").BeautifulSoup
pytest.importorskip("sphinx_book_theme")
import levels  # noqa: E402
import run  # noqa: E402

TOUR, DEEPER, ENGINE_ROOM = levels.TOUR, levels.DEEPER, levels.ENGINE_ROOM
CONF = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(ROOT / "book")!r}, {str(ROOT / "book" / "_ext")!r}]
import run
run.NOTEBOOKS = Path(__file__).parent / "nbs"
extensions = ["myst_nb", "sphinx_external_toc", "levels"]
project, html_theme, nb_execution_mode = "Levels", "sphinx_book_theme", "off"
html_static_path = [{str(ROOT / "book" / "_static")!r}]
"""
SMALL = {"10_one": "", "11_rooms": "Engine room. ", "12_more": "Deeper. ", "13_two": "",
         "14_three": "", "15_extra": "Deeper. ", "16_last": "Engine room. "}
TOC = {"format": "jb-book", "root": "index", "parts": [
    {"caption": "Chapters", "chapters": [{"file": f"nbs/{name}"} for name in SMALL]},
    {"caption": "Appendix", "chapters": [{"file": "words"}]}]}


def write_chapter(folder: Path, name: str, word: str) -> None:
    source = f"# {name[:2]} · Chapter\n\n> It says.\n\n*{word}Reading: 40 minutes. Running: none.*"
    cell = {"cell_type": "markdown", "id": "top", "metadata": {}, "source": source}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / f"{name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")


def build(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", folder, folder / "html"]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("levels")
    (folder / "nbs").mkdir()
    (folder / "conf.py").write_text(CONF, encoding="utf-8")
    (folder / "_toc.yml").write_text(yaml.safe_dump(TOC), encoding="utf-8")
    (folder / "index.md").write_text("# Levels\n\nThe tour: {reading}`tour`. "
                                     "With more: {reading}`tour and deeper`.\n")
    (folder / "words.md").write_text("# Words\n")
    for name, word in SMALL.items():
        write_chapter(folder / "nbs", name, word)
    return folder


@pytest.fixture(scope="module")
def small(source):
    done = build(source)
    assert done.returncode == 0, done.stderr
    return source / "html"


def read(path: Path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def foot(page) -> tuple[str | None, str | None]:
    "Where *previous* and *next* lead."
    links = (page.select_one(f".prev-next-area a.{name}") for name in ("left-prev", "right-next"))
    return tuple(link and link["href"] for link in links)


# ---- what chapters say --------------------------------------------------------------------------
def test_the_line_of_minutes_says_the_level():
    top = "# 45 · Many\n\n> It says.\n\n*{}Reading: 15 minutes. Running: 60 seconds.*"
    for word, level in (("", TOUR), ("Deeper. ", DEEPER), ("Engine room. ", ENGINE_ROOM)):
        assert levels.parse(top.format(word), "45_many") == levels.Chapter(level, 15)
    assert levels.parse("# A draft", "99_draft") == levels.Chapter(TOUR, 0)


@pytest.mark.parametrize("word", ["Deepr. ", "deeper. ", "Deeper, ", "Deeper.", "Tour. "])
def test_an_unknown_word_is_refused_by_name(word):
    with pytest.raises(ValueError) as error:
        levels.parse(f"*{word}Reading: 15 minutes.*", "45_many")
    says = str(error.value)
    assert "nbs/45_many.ipynb" in says and f"`*{word}Reading" in says
    assert all(f"`*{known}Reading" in says for known in ("", "Deeper. ", "Engine room. "))


def test_an_unknown_word_ends_the_build(source, tmp_path):
    for name in ("conf.py", "_toc.yml", "index.md", "words.md"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    (tmp_path / "nbs").mkdir()
    write_chapter(tmp_path / "nbs", "10_one", "Engine rom. ")
    done = build(tmp_path)
    assert done.returncode and "nbs/10_one.ipynb: `*Engine rom. Reading" in done.stderr


def test_the_contents_list_every_chapter_in_the_order_of_the_numbers():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [c["file"] for part in contents["parts"] for c in part["chapters"]]
    assert [f for f in files if f.startswith("nbs/")] == [f"nbs/{p.stem}" for p in run.chapters()]


def test_the_book_begins_and_ends_on_its_tour():
    stated = levels.chapters()
    assert stated["nbs/00_what_is_a_gpt"].level is TOUR
    assert {chapter.level for chapter in stated.values()} == {TOUR, DEEPER, ENGINE_ROOM}


def test_how_long_a_way_is_follows_from_its_chapters():
    stated = levels.chapters().values()
    for names, level_set in (("tour", {TOUR}), ("engine room", {ENGINE_ROOM}),
                             ("tour and deeper", {TOUR, DEEPER})):
        minutes = [c.minutes for c in stated if c.level in level_set]
        said = re.match(r"(\d+) chapters, about ([\d.]+) hours? of", levels.reading(names))
        assert int(said[1]) == len(minutes) and abs(float(said[2]) - sum(minutes) / 60) <= 0.25


# ---- what pages show ----------------------------------------------------------------------------
def test_the_tour_passes_the_others_by(small):
    tour = ["../index.html", "10_one.html", "13_two.html", "14_three.html", "../words.html"]
    for before, name, after in zip(tour, tour[1:], tour[2:]):
        assert foot(read(small / "nbs" / name)) == (before, after)
    assert foot(read(small / "words.html")) == ("nbs/14_three.html", None)


def test_off_the_tour_the_next_page_is_the_next_of_the_contents(small):
    names = [f"{name}.html" for name in SMALL]
    for before, name, after in zip(names, names[1:], [*names[2:], "../words.html"]):
        if SMALL[name.removesuffix(".html")]:
            assert foot(read(small / "nbs" / name)) == (before, after)


def test_a_page_off_the_tour_says_so_and_leads_back(small):
    leads = {"11_rooms": "13_two.html", "12_more": "13_two.html", "15_extra": "14_three.html",
             "16_last": "14_three.html"}
    for name, word in SMALL.items():
        says, line = (read(small / "nbs" / f"{name}.html").select_one(css)
                      for css in ("article p.level", "article em"))
        assert line.get_text().startswith("Reading: 40 minutes")
        assert bool(says) == bool(word)
        if word:
            assert says.strong.get_text() == word.rstrip(". ")
            assert says.a["href"] == leads[name]
            assert ("goes on with" if name < "13" else "has ended with") in says.get_text()


def test_the_contents_mark_what_is_off_the_tour_on_every_page(small):
    for path in [small / "index.html", small / "words.html", *sorted(small.glob("nbs/*.html"))]:
        page = read(path)
        shown = {link.get_text().strip() for link in page.select(".bd-links li a")
                 if "Chapter" in link.get_text()}
        marks = {name: f" ({word.rstrip('. ').lower()})" if word else ""
                 for name, word in SMALL.items()}
        assert shown == {f"{name[:2]} · Chapter{mark}" for name, mark in marks.items()}
        assert page.select_one(".bd-links .level-legend").get_text().split() == \
            ["deeper", "engine", "room"]


def test_a_changed_level_is_shown_on_every_page():
    env = SimpleNamespace(found_docs={"index", "nbs/00_what_is_a_gpt"})
    assert levels.outdated(None, env) == levels.outdated(None, env) == []
    env.levels = dict.fromkeys(env.levels, levels.Chapter(DEEPER, 12))
    assert set(levels.outdated(None, env)) == env.found_docs


def test_the_first_page_counts(small):
    text = read(small / "index.html").select_one("article").get_text()
    assert "The tour: 3 chapters, about 2 hours of reading." in text
    assert "With more: 5 chapters, about 3.5 hours of reading." in text


def test_the_built_book_keeps_to_its_tour():
    site = ROOT / "book" / "_build" / "html"
    if not (site / "index.html").exists():
        pytest.skip("the book is not built: run `make book`")
    on_tour = [page for page, chapter in levels.chapters().items() if chapter.level is TOUR]
    for page, after in zip(on_tour, on_tour[1:]):
        assert foot(read(site / f"{page}.html"))[1] == f"{after.removeprefix('nbs/')}.html"
    rows = read(site / "book" / "progress.html").select("tr[data-page]:not([data-level])")
    assert [row["data-page"] for row in rows] == on_tour
    text = read(site / "index.html").select_one("article").get_text()
    assert levels.reading("tour") in text and levels.reading("tour and deeper") in text
