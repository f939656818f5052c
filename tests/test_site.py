"""What a site has beside its pages: cards, a sitemap, old addresses, a page for lost readers.

Checked on a site of two pages, made here in a second, and on the book itself if it has been built.
"""
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
Image = pytest.importorskip("PIL.Image")
BeautifulSoup = pytest.importorskip("bs4").BeautifulSoup
pytest.importorskip("sphinx_sitemap")
pytest.importorskip("sphinx_reredirects")
BASE = "https://minigpt-book.github.io/minigpt/"
CONF = f"""
import sys
sys.path.insert(0, {str(ROOT / "book" / "_ext")!r})
extensions = ["myst_parser", "sphinx_external_toc", "sphinxext.opengraph", "sphinx_sitemap",
              "sphinx_reredirects", "cards", "not_found"]
project, html_theme, html_use_index = "MiniGPT", "basic", False
html_baseurl = ogp_site_url = {BASE!r}
ogp_social_cards = {{"enable": False}}
ogp_custom_meta_tags = ['<meta name="twitter:card" content="summary_large_image" />']
sitemap_url_scheme, sitemap_excludes = "{{link}}", ["404.html", "search.html"]
templates_path = [{str(ROOT / "book" / "_templates")!r}]
redirects = {{"nbs/31_quotes": "32_quotes.html"}}
redirect_html_template_file = {str(ROOT / "book" / "_templates" / "redirect.html")!r}
"""
TOC = """
format: jb-book
root: index
parts:
  - caption: The only part
    chapters: [{file: nbs/32_quotes}]
"""
CONFIG = yaml.safe_load((ROOT / "book" / "_config.yml").read_text(encoding="utf-8"))
# Every address that a chapter has ever had, and has no more: others may still link to it.
LEFT = """23_data 31_position 32_attention 33_efficient_attention 35_mlp 36_block 37_model
    38_mixture_of_experts 39_encoder_decoder 43_checkpoints 46_distributed 47_grading
    47_recipe 48_doctor 52_inference 53_beam_search 54_speculative 55_constrained
    71_real_weights 75_cli 76_page""".split()
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


def moved(site: Path) -> dict[str, str]:
    "The old addresses, and where they lead."
    book = CONFIG["sphinx"]["config"]["redirects"]
    known = {"nbs/31_quotes": "32_quotes.html"} if site.parent.name == "out" else book
    return {f"{old}.html": f"nbs/{new}" for old, new in known.items()}


def pages(site: Path) -> list[str]:
    found = (p.relative_to(site).as_posix() for p in site.rglob("*.html")
             if "_static" not in p.parts)
    return sorted(set(found) - {"404.html", "search.html"} - moved(site).keys())


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


def test_no_old_address_is_forgotten_and_each_leads_to_the_chapter_of_its_name():
    redirects = CONFIG["sphinx"]["config"]["redirects"]
    assert sorted(redirects) == [f"nbs/{name}" for name in sorted(LEFT)]
    for old, new in redirects.items():
        assert (ROOT / "nbs" / new).with_suffix(".ipynb").exists(), new
        assert not (ROOT / f"{old}.ipynb").exists(), f"{old} is a chapter: it cannot lead away"
        assert old.split("_", 1)[1] == new.removesuffix(".html").split("_", 1)[1]


def test_an_old_address_leads_to_the_new_page_and_is_listed_nowhere(site):
    found, index = moved(site), (site / "searchindex.js").read_text(encoding="utf-8")
    for old, new in found.items():
        page, here = read(site / old), new.removeprefix("nbs/")
        assert (site / new).exists()
        assert page.find("link", rel="canonical")["href"] == BASE + new
        refresh = page.select_one("noscript > meta[http-equiv=refresh]")["content"]
        assert refresh == f"0; url={here}" and page.find("a")["href"] == here
        assert old.removesuffix(".html") not in index


def test_an_old_address_keeps_the_place_on_the_page(small):
    script = re.search("<script>(.*?)</script>", (small / "nbs" / "31_quotes.html").read_text())[1]
    browser = pytest.importorskip("py_mini_racer").MiniRacer()
    browser.eval('let to; const location = { search: "", hash: "#text", replace: u => to = u }')
    browser.eval(script)
    assert browser.eval("to") == "32_quotes.html#text"
