"""Laws of the dojo: each broken script fails, right repairs pass, tempting wrong ones fail.

The scripts run in this process, 24 steps each, watched as `minigpt dojo check` watches them.
"""
import contextlib
import io
import json
import math
import re
import runpy
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from conftest import refused

from benchmarks.dojo_repairs import RIGHT, WRONG
from minigpt.checkpoint import shipped_model
from minigpt.config import ModelConfig
from minigpt.dojo import (
    EXERCISES,
    HEALTHY,
    edited,
    read_log,
    read_record,
    rows_of,
    run_script,
    script_print,
)
from minigpt.grading import (
    CHECKS,
    check,
    examine,
    findings,
    grade,
    hint,
    leak,
    read_progress,
    start,
    started,
    turned,
    watching,
    without_padding,
)
from minigpt.model import GPT

SHORT, LONGER = 20, {"rate too high": 60}      # steps; few of them bear a high rate well
NAMES = [e.name for e in EXERCISES]
BY_NAME = {e.name: e for e in EXERCISES}
each = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "Run a script once for each text, and give its findings."
    done: dict[tuple[str, int], dict] = {}

    def run(text: str, steps: int) -> dict:
        if (text, steps) not in done:
            folder, error = tmp_path_factory.mktemp("run"), ""
            (folder / "train.py").write_text(text, encoding="utf-8")
            with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                patch.chdir(folder)
                patch.setenv("STEPS", str(steps))
                patch.delenv("SEED", raising=False)
                with watching(steps) as watch, contextlib.redirect_stdout(io.StringIO()):
                    try:
                        runpy.run_path("train.py", run_name="__main__")
                    except Exception as e:
                        error = f"{type(e).__name__}: {e}"
                done[text, steps] = {"error": error} | findings(watch, Path("."))
        return done[text, steps]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield run
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def failed(run):
    "What a script of an exercise is told."
    def failed(exercise, text: str) -> list[str]:
        steps = LONGER.get(exercise.name, SHORT)
        return grade(run(text, steps), [run(exercise.healthy, steps)])
    return failed


def test_there_are_two_right_and_three_wrong_repairs_for_each():
    assert RIGHT.keys() == WRONG.keys() == set(NAMES) and len(NAMES) == len(set(NAMES)) >= 16
    for e in EXERCISES:
        right = [e.healthy, *(edited(e.script, edits) for edits in RIGHT[e.name])]
        wrong = [edited(e.script, edits) for edits in WRONG[e.name]]
        assert len(set(right)) >= 2 and len(set(wrong)) == 3
        assert not {e.script, *right} & set(wrong) and e.script not in right


@each
def test_the_broken_script_fails(name, failed):
    assert failed(BY_NAME[name], BY_NAME[name].script)


@each
def test_right_repairs_pass(name, failed):
    e = BY_NAME[name]
    for text in (e.healthy, *(edited(e.script, edits) for edits in RIGHT[name])):
        assert failed(e, text) == []


@each
def test_tempting_wrong_repairs_fail(name, failed):
    e = BY_NAME[name]
    for edits in WRONG[name]:
        assert failed(e, edited(e.script, edits)), edits


# --- what a learner sees

def test_scripts_are_short_and_a_fault_is_a_small_edit():
    for e in EXERCISES:
        lines = e.script.splitlines()
        assert len(lines) < 80 and max(map(len, lines)) < 100
        assert len(set(lines) ^ set(e.healthy.splitlines())) <= 8
        compile(e.script, e.name, "exec")


def test_nothing_that_a_learner_reads_names_the_fault():
    told = " ".join(CHECKS)
    for e in EXERCISES:
        seen = f"{e.title} {e.report} {e.hints[0]} {told}".lower()
        assert e.name.lower() not in seen
        words = {"warm-up", "mask", "shift", "zero_grad", "clear", "micro", "padding", "sorted",
                 "optimizer", "initialis", "clip after", "accumul", "leak", "too high", "too low"}
        seen = f"{e.title} {e.report}".lower()
        assert not [w for w in words if w in e.name.lower() and w in seen]
        assert re.fullmatch(r"\d\d_\w+\.ipynb", e.section)
        assert (Path(__file__).parent.parent / "nbs" / e.section).is_file()


def test_an_edit_must_fit_once():
    assert edited("a b", (("b", "c"), ("a c", "d"))) == "d"
    for text in ("a", "b b"):
        with refused("'b'", "times"):
            edited(text, (("b", "c"),))


# --- an exercise in a folder

def test_an_exercise_is_started_hinted_failed_and_solved(tmp_path, run):
    folder, e = tmp_path / "new" / "one", EXERCISES[0]
    assert start(1, folder) is e
    assert (folder / "train.py").read_text(encoding="utf-8") == e.script
    assert e.report in (folder / "REPORT.md").read_text(encoding="utf-8")
    assert [hint(folder) for _ in range(4)] == [*enumerate(e.hints, 1), (3, e.hints[2])]
    healthy = [run(e.healthy, SHORT)]
    failed = check(folder, SHORT, healthy)
    assert failed and set(failed) <= set(CHECKS)
    (folder / "train.py").write_text(e.healthy, encoding="utf-8")
    assert check(folder, SHORT, healthy) == []
    assert read_progress(folder) == {"exercise": 1, "hints": 3, "attempts": 2, "solved": True}
    assert {p.name for p in folder.iterdir()} == {"train.py", "REPORT.md", "progress.json"}
    shutil.copytree(folder, tmp_path / "new" / "two")
    assert started(tmp_path / "new")[1]["solved"] and started(folder)[1]["folder"] == str(folder)


def test_a_script_that_ends_early_is_said_so(tmp_path, run):
    (tmp_path / "train.py").write_text("raise RuntimeError('no text')\n", encoding="utf-8")
    found = examine(tmp_path, SHORT)
    assert "no text" in grade(found, [run(HEALTHY, SHORT)])[0] and found["steps"] == 0


def test_folders_and_numbers_that_cannot_be_are_refused(tmp_path):
    for n in (0, len(EXERCISES) + 1):
        with refused(f"no exercise {n}", f"1 to {len(EXERCISES)}"):
            start(n, tmp_path / "new")
    (tmp_path / "mine.txt").write_text("Mine.", encoding="utf-8")
    with refused("is not empty"):
        start(1, tmp_path)
    for act in (hint, check, read_progress):
        with refused("holds no exercise"):
            act(tmp_path)
    for text in ("", "[]", '{"exercise": 99}', '{"exercise": 1, "hints": 7, "attempts": 0}'):
        (tmp_path / "progress.json").write_text(text, encoding="utf-8")
        with refused("progress.json"):
            hint(tmp_path)
    assert started(tmp_path) == {}


# --- what is measured

def test_the_leak_test_knows_a_causal_model_from_one_that_is_not():
    torch.manual_seed(0)
    model = GPT(ModelConfig(64, 64, n_layer=2, n_head=2, n_kv_head=2, d_model=16, d_ff=32)).eval()
    assert leak(model) == 0.0
    attend = model.blocks[1].attention
    attend.forward = lambda x, *rest: type(attend).forward(attend, x) + x.mean(1, keepdim=True)
    assert leak(model) > 1e-2


def test_weight_decay_alone_turns_nothing():
    w = torch.tensor([[3.0, 4.0]])
    assert turned(w, 0.5 * w) == pytest.approx(0, abs=1e-9) and turned(w, w) == 0
    assert turned(w, w + torch.tensor([[-4.0, 3.0]])) == pytest.approx(1)


def test_padding_is_taken_off():
    assert without_padding([9, 1, 2, 9, 9]) == (9, 1, 2) and without_padding([9, 9]) == (9,)


def test_a_log_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_log(path) == []
    path.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "lo', encoding="utf-8")
    rows = read_log(path)
    assert len(rows) == 1 and math.isnan(rows[0]["loss"])


# --- the record

@pytest.fixture(scope="module")
def record():
    return read_record()


def test_the_record_belongs_to_the_scripts(record):
    assert record["scripts"] == script_print(HEALTHY, *(e.script for e in EXERCISES))
    assert list(record["sick"]) == NAMES and len(record["healthy"]) == 3
    assert set(record["setting"]) == {e.name for e in EXERCISES if e.setting}
    path = shipped_model().parent / "dojo.json"
    assert path.stat().st_size < 150_000
    json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: 1 / 0)     # no NaN
    assert all(run["seconds"] < 60 for run in record["sick"].values())      # of one core


def test_the_record_tells_what_the_chapter_says(record):
    healthy, sick = record["healthy"], record["sick"]
    held, floor = [run["held_out"] for run in healthy], healthy[0]["floor"]
    assert max(held) - min(held) < 0.1 and min(held) > 3 * floor
    for name in ("targets not shifted", "future leaking through the mask"):
        assert rows_of(sick[name])[-1]["validation"] < 0.1 * floor
        assert sick[name]["held_out"] > 5 * max(held)
    for name in ("rate too high", "rate too low", "a part left out of the optimizer",
                 "gradients not cleared", "schedule stepped per micro-batch", "no warm-up"):
        assert sick[name]["held_out"] > max(held) + 0.3, name
    assert any(math.isnan(row["loss"]) for row in rows_of(sick["16-bit overflow without a scaler"]))
    quiet = rows_of(sick["clip after the step"])[-1]["loss"]
    assert abs(quiet - rows_of(healthy[0])[-1]["loss"]) < 0.3
    assert sick["clip after the step"]["longest"] > 1.1 > 1.02 > healthy[0]["longest"]


def test_a_sick_run_is_today_what_the_record_says(record, tmp_path):
    name = "schedule stepped per micro-batch"
    rows, recorded = run_script(BY_NAME[name].script, tmp_path), rows_of(record["sick"][name])
    assert len(rows) == record["steps"] == rows[-1]["step"]
    assert rows[0]["loss"] == pytest.approx(recorded[0]["loss"], abs=0.01)
    assert rows[-1]["loss"] == pytest.approx(recorded[-1]["loss"], abs=0.4)
    assert rows[-1]["validation"] == pytest.approx(rows[200]["validation"], abs=0.02)
    assert max(row["lr"] for row in rows[160:]) == 0
