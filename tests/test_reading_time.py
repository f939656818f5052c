"""The minutes of reading that a chapter states agree with what an average reader needs.

220 words of prose a minute, and 25 lines of the code that the page shows unfolded. People differ
by more than the band allows, so it only finds a chapter that grew and forgot to say so.
"""
import re
from pathlib import Path

import nbformat
import pytest
import run
from chapters import HEAD, LONG, directives

ROOT = Path(__file__).resolve().parent.parent

WORDS, LINES = 220, 25        # a minute
BAND, SLACK = 1.5, 3          # times or a part of the estimate; or minutes, for short chapters
CHAPTERS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))


def words(markdown: str) -> int:
    text = re.sub(r"<svg.*?</svg>|<[^>]+>", "", markdown, flags=re.S)
    return len(re.findall(r"[\w'’.-]*\w", text))


def lines(code: str) -> int:
    "Lines of code that the page shows at once."
    d, code = directives(code), HEAD.sub("", code)
    folded = "hide" in d or d.get("code-fold") == "true" or d.get("echo") == "false"
    if folded or ("export" in d and len(code.splitlines()) > LONG):
        return 0
    return sum(bool(line.strip()) for line in code.splitlines())


def minutes(nb) -> float:
    by_kind = {kind: [c.source for c in nb.cells if c.cell_type == kind]
               for kind in ("markdown", "code")}
    return sum(map(words, by_kind["markdown"])) / WORDS + sum(map(lines, by_kind["code"])) / LINES


def test_the_estimate_counts_what_is_read():
    assert words("Two *words* <svg>and <text>none</text></svg>") == 2
    assert lines("#| export\na = 1\n\nb = 2") == 2
    assert lines("#| code-fold: true\na = 1") == lines("#| export\n" + "x\n" * (LONG + 1)) == 0


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_stated_minutes_agree(path):
    nb = nbformat.read(path, as_version=4)
    stated = re.search(r"\bReading: (\d+) minutes\b", nb.cells[0].source)
    about = minutes(nb)
    assert stated, f"nbs/{path.name} states no time: begin with `*Reading: {about:.0f} minutes.`"
    said = int(stated[1])
    assert 1 / BAND <= said / about <= BAND or abs(said - about) <= SLACK, (
        f"nbs/{path.name} states {said} minutes of reading, its words and code make about "
        f"{about:.0f}: change the first cell, or shorten the chapter")


def test_every_chapter_says_how_long_it_runs():
    "The longest start first, so that none runs alone at the end."
    assert {path.stem: run.stated(path) for path in CHAPTERS if run.stated(path) > 600} == {}
    assert max(map(run.stated, CHAPTERS)) > 60 > min(map(run.stated, CHAPTERS)) > 0
