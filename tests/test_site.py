"""What a site has beside its pages: cards for shared links, a sitemap, a page for lost readers.

Checked on a site of two pages, made here in a second, and on the book itself if it has been built.
"""
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent
Image = pytest.importorskip("PIL.Image")
BeautifulSoup = pytest.importorskip("bs4").BeautifulSoup
pytest.importorskip("sphinx_sitemap")
BASE = "https://minigpt-book.github.io/minigpt/"
CONF = f"""
import sys
sys.path.insert(0, {str(ROOT / "book" / "_ext")!r})
extensions = ["myst_parser", "sphinx_external_toc", "sphinxext.opengraph", "sphinx_sitemap",
              "cards", "not_found"]
project, html_theme, html_use_index = "MiniGPT", "basic", False
html_baseurl = ogp_site_url = {BASE!r}
ogp_social_cards = {{"enable": False}}
ogp_custom_meta_tags = ['<meta name="twitter:card" content="summary_large_image" />']
sitemap_url_scheme, sitemap_excludes = "{{link}}", ["404.html", "search.html"]
templates_path = [{str(ROOT / "book" / "_templates")!r}]
"""
TOC = """
format: jb-book
root: index
parts:
  - caption: The only part
    chapters: [{file: nbs/32_quotes}]
"""
SAYS = 'Marks like <, & and `"` stay what they are.'


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    (folder / "nbs").mkdir()
    (folder / "conf.py").write_text(CONF)
    (folder / "_toc.yml").write_text(TOC)
    (folder / "index.md").write_text("# MiniGPT\n\nA book of *one* chapter.\n")
    (folder / "nbs" / "32_quotes.md").write_text(f"# 32 · Quotes\n\n> {SAYS}\n\nText.\n")
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-W", folder, folder / "out" / "html"],
                   check=True)
    return folder / "out" / "html"


@pytest.fixture(params=["small", "built"])
def site(request):
    if request.param == "small":
        return request.getfixturevalue("small")
    built = ROOT / "book" / "_build" / "html"
    if not (built / "404.html").exists():
        pytest.skip("the book is not built: run `make book`")
    return built


def read(path: Path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def pages(site: Path) -> list[str]:
    found = (p.relative_to(site).as_posix() for p in site.rglob("*.html")
             if "_static" not in p.parts)
    return sorted(set(found) - {"404.html", "search.html"})


def meta(page) -> dict[str, str]:
    tags = page.find_all("meta", content=True)
    return {tag.get("property") or tag.get("name"): tag["content"] for tag in tags}


def test_each_page_has_a_card_of_the_right_size(site):
    cards = set()
    for name in pages(site):
        tags = meta(read(site / name))
        assert tags["og:image"].startswith(BASE) and tags["og:url"] == BASE + name
        card = site / tags["og:image"].removeprefix(BASE)
        assert card.stat().st_size < 100_000
        size = tuple(int(tags[f"og:image:{side}"]) for side in ("width", "height"))
        assert Image.open(card).size == size == (1200, 630)
        assert tags["twitter:card"] == "summary_large_image" and tags["og:site_name"] == "MiniGPT"
        assert tags["og:description"] == tags["description"] in tags["og:image:alt"]
        cards.add(card)
    assert len(cards) == len(pages(site)) > 1
    assert cards == set((site / "_images" / "cards").iterdir())


def test_a_card_and_the_tags_say_what_the_chapter_says(small):
    tags = meta(read(small / "nbs" / "32_quotes.html"))
    assert tags["og:title"] == "32 · Quotes" and tags["og:description"] == SAYS.replace("`", "")
    assert meta(read(small / "index.html"))["description"] == "A book of one chapter."


def test_a_title_too_long_for_a_card_is_named():
    sys.path.insert(0, str(ROOT / "book" / "_ext"))
    import cards
    with pytest.raises(ValueError, match="endless endless"):
        cards.draw("MiniGPT", "Chapter 1", "endless " * 20, SAYS, "example.org")


def test_the_sitemap_lists_the_pages_and_nothing_else(site):
    tree = ElementTree.parse(site / "sitemap.xml")
    listed = [node.text for node in tree.iter("{http://www.sitemaps.org/schemas/sitemap/0.9}loc")]
    assert sorted(listed) == [BASE + name for name in pages(site)]
    for name in pages(site):
        assert read(site / name).find("link", rel="canonical")["href"] == BASE + name


def test_the_page_for_lost_readers_works_at_any_address(site):
    page = read(site / "404.html")
    links = [node["href"] for node in page.find_all("a")] + [page.find("form")["action"]]
    assert all(link.startswith(BASE) for link in links)
    assert all((site / (link.removeprefix(BASE) or "index.html")).exists() for link in links)
    chapters = {name for name in pages(site) if name.startswith("nbs/")}
    assert chapters <= {link.removeprefix(BASE) for link in links}
    assert not page.find_all(["script", "img"]) and not page.find_all("link", rel="stylesheet")
    assert page.find("link", rel="icon")["href"].startswith("data:")
    assert page.find("input")["aria-label"] and "dark" in page.find("style").get_text()
