"""Every chapter asks before it tells, and each question can be answered."""
import re
from pathlib import Path

import nbformat
import pytest

CHAPTERS = sorted((Path(__file__).parent.parent / "nbs").glob("[0-9]*.ipynb"))
BOX = re.compile(r"^:::\{predict\} ([^\n]+)\n((?::[^\n]+\n)+)\n(.+?)\n:::$", re.M | re.S)


def boxes(path: Path) -> list[tuple[str, dict, str]]:
    "The predictions of a chapter: question, options, the words of the answer."
    found = []
    for cell in nbformat.read(path, as_version=4).cells:
        assert ("{predict}" not in cell.source) or cell.cell_type == "markdown"
        inside = BOX.findall(cell.source)
        assert len(inside) == cell.source.count("{predict}"), f"{path.name}, cell {cell.id}"
        for question, options, body in inside:
            pairs = re.findall(r"^:(\w+): (.+)$", options, re.M)
            found.append((question, dict(pairs), body))
    return found


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_every_chapter_asks_twice_and_every_question_has_its_answer(path):
    found = boxes(path)
    assert len(found) >= 2
    assert len({question for question, _, _ in found}) == len(found)
    for question, options, body in found:
        assert options.keys() <= {"answer", "choices", "within", "unit"}, question
        assert options["answer"] and body.strip(), question
        if "choices" in options:
            choices = [c.strip() for c in options["choices"].split("|")]
            assert options["answer"] in choices and len(set(choices)) == len(choices) > 1, question
        if "within" in options:
            assert re.fullmatch(r"[\d.]+%?", options["within"]), question
            assert re.fullmatch(r"[-+]?[\d,.]+", options["answer"]), question


def test_the_right_choice_is_not_always_the_same_one():
    places = [[c.strip() for c in options["choices"].split("|")].index(options["answer"])
              for path in CHAPTERS for _, options, _ in boxes(path) if "choices" in options]
    assert all(places.count(n) > len(places) // 6 for n in range(3))
