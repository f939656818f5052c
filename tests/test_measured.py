"Records of measurements: read while their code stands, measured again when anything of it changes."
import json
import sys
from collections import deque
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import pytest
import run

from minigpt.measured import Record, code_fingerprint, sources

ROOT = Path(__file__).resolve().parents[1]
CHAPTER = """
    import math
    from dataclasses import dataclass
    import torch
    RATE, WAYS, SIZES = 0.1, {"a": {"steps": 3}}, [1, 2]
    twice = lambda x: 2 * x
    RULES = {"square": lambda x: x * x}

    @dataclass(slots=True)
    class Config:
        depth: int = 7

    CFG, DATA, MANY = Config(), torch.arange(5), list(range(1000))

    def helper(x, power=RATE):
        return math.sqrt(twice(x)) + RATE + power

    def made(n):
        def inside():
            return n
        return inside

    five = made(5)

    class Base:
        def twist(self):
            return 11

    class Model(Base):
        width = 4

        def forward(self, x):
            return x + self.width + self.twist() + self.more + self.extra()

        @property
        def more(self):
            return 13

        @staticmethod
        def extra():
            return 17

    def measure():
        calls.append(1)
        inner = lambda: helper(SIZES[0])
        return [inner(), Model().forward(1), RULES["square"](3), WAYS["a"]["steps"], CFG.depth,
                five(), len(DATA), len(MANY)]

    def other():
        return unrelated()

    def unrelated():
        return RATE * 7
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    "Write a chapter as a module, run it, and count how often it measures."
    calls, n = deque(), [0]                  # no list: a record would take it for a setting

    def chapter(text=CHAPTER):
        n[0] += 1                            # a file of its own: `inspect` remembers lines by file
        path = tmp_path / f"chapter{n[0]}.py"
        path.write_text(dedent(text), encoding="utf-8")
        module = ModuleType("chapter")
        module.__file__, module.calls = str(path), calls
        monkeypatch.setitem(sys.modules, "chapter", module)
        exec(compile(path.read_text("utf-8"), str(path), "exec"), module.__dict__)
        return module
    chapter.calls = calls
    return chapter


def test_a_result_is_measured_once(write, tmp_path, capsys):
    record = Record(tmp_path / "r" / "one.json")
    first = record(write().measure)
    assert "measuring now" in capsys.readouterr().out
    assert record(write().measure) == first and len(write.calls) == 1
    assert "measured for the book in 0 s of processor time (one.json)" in capsys.readouterr().out
    kept = json.loads(record.path.read_text("utf-8"))
    assert list(kept) == ["measure"] and kept["measure"]["result"] == first
    assert [p.name for p in record.path.parent.iterdir()] == ["one.json"]


@pytest.mark.parametrize("before, after", [
    ("RATE, WAYS, SIZES = 0.1", "RATE, WAYS, SIZES = 0.2"),             # a number it never names
    ('{"steps": 3}', '{"steps": 4}'), ("[1, 2]", "[3, 2]"),             # inside containers
    ("2 * x", "3 * x"), ("x * x", "x * x * x"),                         # lambdas, in a dict too
    ("+ RATE", "- RATE"),                                               # what a function calls
    ("width = 4", "width = 5"), ("x + self.width", "x - self.width"),   # a class's own
    ("SIZES[0]", "SIZES[1]"),                                           # inside a nested function
    ('["steps"], CFG', '["steps"] + 1, CFG'),                           # the function itself
    ("depth: int = 7", "depth: int = 8"), ("Config(), t", "Config(9), t"),   # a dataclass
    ("arange(5)", "arange(6)"), ("range(1000)", "range(1001)"),         # how much data
    ("power=RATE", "power=2 * RATE"), ("made(5)", "made(6)"),           # a default, what is around
    ("return 11", "return 12"), ("return 13", "return 14"), ("return 17", "return 18"),
])
def test_whatever_it_is_made_of_may_change(write, tmp_path, before, after):
    record, changed = Record(tmp_path / "one.json"), CHAPTER.replace(before, after)
    assert changed != CHAPTER
    first = record(write().measure)
    second = record(write(changed).measure)
    assert len(write.calls) == 2 and second != first
    assert record(write(changed).measure) == second and len(write.calls) == 2


def test_what_it_is_not_made_of_may_not(write, tmp_path):
    record = Record(tmp_path / "one.json")
    record(write().measure)
    record(write(CHAPTER.replace("RATE * 7", "RATE * 8")).measure)
    assert len(write.calls) == 1
    assert "unrelated" not in sources(write().measure)
    assert {"measure", "helper", "twice", "RATE", "Model.forward"} <= set(sources(write().measure))
    assert sources(write().measure)["DATA"] == "torch.int64, (5,)"    # drawn data differ
    assert sources(write().measure)["MANY"] == "1000 items"                # by processor
    assert not any("sqrt" in name for name in sources(write().measure))          # a library's


def test_several_results_share_a_file(write, tmp_path):
    record = Record(tmp_path / "one.json")
    first, second = record(write().measure), record(write().other)
    assert set(record.read()) == {"measure", "other"}
    assert (record(write().other), record(write().measure)) == (second, first)
    assert len(write.calls) == 1


def test_everything_is_measured_again_on_demand(write, tmp_path, monkeypatch):
    record = Record(tmp_path / "one.json")
    record(write().measure)
    monkeypatch.setenv("MINIGPT_AGAIN", "1")
    record(write().measure)
    assert len(write.calls) == 2


def test_a_fresh_result_is_what_a_kept_one_would_be(tmp_path):
    def pairs():
        return {1: (2, 3)}
    record = Record(tmp_path / "one.json")
    assert record(pairs) == record(pairs) == {"1": [2, 3]}


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": 1}', '{"a": {"code": "x"}}'])
def test_a_damaged_record_is_named(write, tmp_path, text):
    path = tmp_path / "one.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"one\.json is no record of measurements; delete it"):
        Record(path)(write().measure)
    assert path.read_text("utf-8") == text and not write.calls


def test_a_failed_measurement_leaves_the_record_as_it_was(write, tmp_path):
    record = Record(tmp_path / "one.json")
    record(write().measure)
    before = record.path.read_bytes()
    with pytest.raises(ZeroDivisionError):
        record(write(CHAPTER.replace("calls.append(1)", "1 / 0")).measure)
    with pytest.raises(TypeError):                                 # nothing that JSON can hold
        record(write(CHAPTER.replace("return [inner()", "return [object()")).measure)
    assert record.path.read_bytes() == before


def test_code_without_a_source_is_refused():
    space = {}
    exec("def made(): return 1", space)
    with pytest.raises(ValueError, match="made has no source that can be read"):
        code_fingerprint(space["made"])


def notebook_code(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def test_every_record_of_the_book_belongs_to_its_chapter():
    files = sorted((ROOT / "nbs" / "measured").glob("*.json"))
    kept = {path.stem: found for path in run.chapters()
            if (found := run.records(notebook_code(path)))}
    assert kept == {path.stem: [path] for path in files} and files
    for path in files:
        code = notebook_code(ROOT / "nbs" / f"{path.stem}.ipynb")
        for name, entry in Record(path).read().items():
            assert f"def {name}(" in code, f"{path.name} keeps {name}, which is gone"
            assert entry["seconds"] >= 10, f"{name} is quick: let the chapter measure it"
