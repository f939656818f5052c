"The checker of the built site sees each kind of problem, in the page that has it and nowhere else."
import os
import re
from pathlib import Path

import check_site
import psutil
import pytest

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>A page</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<style>body { font: 16px sans-serif; }</style>
%s</head>
<body><main><h1 id="top">A page</h1>
%s
</main></body></html>
"""
WAIT = "<script>for (const end = performance.now() + 1300; performance.now() < end;);</script>"
DARK = "body { background: black; color: #333 }"
DIM = f"<style>@media (prefers-color-scheme: dark) {{ {DARK} }}</style>"
# name of a page: what stands in its head, in its body, and what must be said about it
BROKEN = {
    "foreign": ("", "<script>new Image().src = 'https://other.example/a.png';</script>",
                r"asks another host for https://other\.example/a\.png; put a copy"),
    "preconnect": ('<link rel="preconnect" href="https://other.example">', "",
                   r"asks another host for https://other\.example"),
    "gone": ("", "<script>fetch('gone.json');</script>", r"404 for /minigpt/gone\.json; mend"),
    "picture": ("", '<p><img src="gone.png" alt="A picture"></p>', r"missing file gone\.png"),
    "fragment": ("", '<p><a href="clean.html#nowhere">there</a></p>',
                 r"no such place on the page: clean\.html#nowhere"),
    "link": ("", '<p><a href="nowhere.html">there</a></p>', r"broken link nowhere\.html"),
    "moved": ('<meta http-equiv="refresh" content="0; url=nowhere.html">', "",
              r"broken link nowhere\.html"),
    "console": ("", "<script>console.warn('it smokes');</script>", r"console warning: it smokes"),
    "throws": ("", "<script>throw new Error('it burns');</script>",
               r"script error: Error: it burns"),
    "drawing": ("", '<svg role="img" viewBox="0 0 9 9" width="90"><path d="M0 0h9v9z"/></svg>',
                r"axe svg-img-alt \(serious\): svg: .*; see https://"),
    "dim": (DIM, "<p>Hard to see</p>",
            r"axe color-contrast \(serious.*contrast of .* \(dark only\)"),
    "invalid": ("", '<p id="top">Once more</p>',
                r"invalid HTML, line \d+: Duplicate ID \"top\" \(no-dup-id\); see https://"),
    "wide": ("", '<div class="slab" style="width: 600px">A slab</div>',
             r"6\d\d px wide on a screen of 360, because of <div\.slab>; let it"),
    "small": ("", '<p style="font-size: 6px">Fine print</p>',
              r'text of 6\.0 px on a screen of 360: "Fine print" in <p>; make it 9 px'),
    "heavy": ("", "<script>fetch('heavy.bin').then(r => r.arrayBuffer());</script>",
              r"fetches 1,1\d\d,\d{3} bytes, the limit is 1,000,000; .* /minigpt/heavy\.bin"),
    "slow": (WAIT, "", r"first paint after 1\d\d\d ms, the limit is 1000"),
}
CLEAN = {
    "clean": ("", '<p><a href="#top">Up</a>, <a href="folder/">on</a></p>'),
    "old": ('<script>location.replace("clean.html" + location.hash);</script>'
            '<noscript><meta http-equiv="refresh" content="0; url=clean.html"></noscript>',
            '<p><a href="clean.html">Moved</a></p>'),
    "folder/index": ("", '<p><a href="../clean.html#top">Back</a></p>'),
    "model": ("", "<script>fetch('model.safetensors').then(r => r.arrayBuffer());</script>"),
    "scrolls": ("", '<div tabindex="0" style="overflow-x: auto">'
                    '<div style="width: 900px">A long line of code</div></div>'),
}


def write(site: Path, pages: dict) -> Path:
    for name, (head, body, *_) in pages.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / f"{name}.html").write_text(PAGE % (head, body), encoding="utf-8")
    (site / "heavy.bin").write_bytes(os.urandom(1_100_000))
    (site / "model.safetensors").write_bytes(os.urandom(1_100_000))
    return site


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    "The problems of a site with one page for each kind of problem, and some good pages."
    lack = check_site.missing() or check_site.install()
    if lack:
        pytest.skip(lack)
    site = write(tmp_path_factory.mktemp("site"), BROKEN | CLEAN)
    temporary = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))  # the browser's profile goes there
        lines = check_site.problems(site)
    commands = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    assert not [c for c in commands if str(temporary) in c], "the browser still runs"
    return lines


@pytest.mark.parametrize("name", BROKEN)
def test_each_kind_of_problem_is_seen(found, name):
    mine = [line for line in found if line.startswith(f"{name}.html: ")]
    assert mine, f"nothing was said about {name}.html"
    wanted = re.compile(BROKEN[name][-1])
    assert any(wanted.search(line) for line in mine), mine
    assert name == "picture" or len(mine) == 1, mine  # the browser sees a missing picture too


def test_good_pages_pass(found):
    names = tuple(f"{name}.html: " for name in CLEAN)
    assert [line for line in found if line.startswith(names)] == []


def test_a_page_is_opened_again_only_if_it_has_changed(monkeypatch, tmp_path, capfd):
    if check_site.missing() or check_site.install():
        pytest.skip(check_site.missing() or "npm could not install the tools")
    site = write(tmp_path / "site", {"one": CLEAN["folder/index"], "two": CLEAN["folder/index"]})
    monkeypatch.delenv("CI", raising=False)
    opened = []
    for change in ("", "", "<p>new</p>"):
        (site / "one.html").write_text(PAGE % ("", change), encoding="utf-8")
        (site / "two.html").write_text(PAGE % ("", ""), encoding="utf-8")
        assert check_site.in_browser(site) == []
        seen = capfd.readouterr().err
        opened.append(re.search(r"(\d+) pages? in a browser|No page has changed", seen)[1])
    assert opened == ["2", None, "1"]
    monkeypatch.setenv("CI", "true")                 # there everything is looked at
    assert check_site.in_browser(site) == []
    assert "2 pages in a browser" in capfd.readouterr().err


def test_what_is_not_there_is_named(monkeypatch, tmp_path, capsys):
    site = write(tmp_path / "site", {"clean": CLEAN["folder/index"]})
    (site / "clean.html").write_text(PAGE % ("", ""), encoding="utf-8")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    assert check_site.problems(site) == []
    assert "not opened in a browser: Node.js or npm is missing" in capsys.readouterr().out
    monkeypatch.setenv("CI", "true")
    [line] = check_site.problems(site)
    assert "apt install nodejs npm" in line


def test_a_browser_that_is_not_there_is_named(monkeypatch, tmp_path):
    if not check_site.shutil.which("npm"):
        pytest.skip(check_site.missing())
    monkeypatch.setenv("CHROMIUM", str(tmp_path / "chrome"))
    assert "chrome is no program" in check_site.missing()


def test_an_empty_folder_is_no_site(tmp_path):
    lack = check_site.missing() or check_site.install()
    if lack:
        pytest.skip(lack)
    [line] = check_site.problems(tmp_path)
    assert "did not finish" in line
