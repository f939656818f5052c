"""Laws of the doctor: silent on healthy runs, and right about the sick ones that a log can tell."""
import json
import math
from dataclasses import replace

import pytest
from conftest import refused

from minigpt.doctor import as_log, doctor, examine_log
from minigpt.dojo import EXERCISES, read_record, rows_of
from minigpt.recipe import RECIPES, prepare, run

SILENT = {"validation inside training", "shifted twice", "mask after softmax",
          "clip after the step", "train and inference tokenized differently"}     # no log can tell


@pytest.fixture(scope="module")
def record():
    return read_record()


def examined(found):
    return examine_log(as_log(rows_of(found), found["config"]["vocab_size"], found["floor"]))


def test_healthy_runs_hear_nothing(record):
    for found in [*record["healthy"], *(r for runs in record["setting"].values() for r in runs)]:
        assert examined(found) == []


@pytest.mark.parametrize("name", [e.name for e in EXERCISES])
def test_sick_runs_are_suspected_of_what_they_have(record, name):
    found = record["sick"][name]
    config = record["healthy"][0] | found          # a run that broke has left no config
    heard = examined(config)
    suspects = {s for finding in heard for s in finding.suspects}
    assert heard == [] if name in SILENT else name in suspects, heard
    for finding in heard:
        assert any(c.isdigit() for c in finding.evidence)


def test_a_recipe_hears_nothing(tmp_path):
    recipe = replace(RECIPES["small"], megabytes=0.3, steps=120)
    for _ in run(tmp_path / "run", prepare(tmp_path / "run", recipe), evaluate_every=30):
        pass
    assert doctor(tmp_path / "run") == doctor(tmp_path / "run" / "log.jsonl", floor=0.3) == []


def rows(losses, **columns):
    "A log by hand."
    return [{"step": n + 1, "loss": loss} | {k: v[n] for k, v in columns.items()}
            for n, loss in enumerate(losses)]


def curve(n=200, start=6.0, end=1.0):
    "A healthy descent."
    return [end + (start - end) * math.exp(-5 * i / n) for i in range(n)]


def suspects(losses, vocab_size=None, floor=None, **columns):
    found = examine_log(as_log(rows(losses, **columns), vocab_size, floor))
    return [f.suspects[0] for f in found]


def test_each_rule_is_heard_on_a_log_made_for_it():
    good = curve()
    assert suspects(good) == suspects(good, vocab_size=403, floor=0.9) == []
    nan = [*good[:50], *[math.nan] * 150]
    assert suspects(nan) == ["16-bit overflow without a scaler"]
    assert suspects([6, 6.5, 9, math.inf, math.nan]) == ["rate too high"]
    assert suspects(good, vocab_size=150) == ["initialisation ten times too large"]
    assert suspects(curve(start=18), vocab_size=403) == ["accumulation not divided"]
    assert suspects(curve(start=5.5), vocab_size=403) == ["padding counted in the loss"]
    assert suspects(curve(start=3), vocab_size=403) == []            # it has learned before
    assert suspects(good, floor=1.5) == ["future leaking through the mask"]
    assert suspects(good, lr=[1.0] * 100 + [0.5] * 100) == ["no warm-up"]
    assert suspects(good, lr=[0.5] + [1.0] * 99 + [0.0] * 100) == [
        "schedule stepped per micro-batch"]
    assert suspects([6.0] + [4.0] * 199) == ["rate too high"]
    assert suspects(curve(end=5.0)) == ["rate too low"]
    assert "sorted documents" in suspects([*good[:100], *(2.0 * x for x in good[100:])])
    slow, long = [6.0] + [3.2 - n / 400 for n in range(199)], [1.0] * 2 + [2.0] * 198
    assert suspects(slow) == suspects(good, grad_norm=long) == []
    assert suspects(slow, grad_norm=long) == ["gradients not cleared"]
    looks = [{"step": 200, "validation": v} for v in (0.5, 3.0)]
    for look, suspect in zip(looks, ("padding counted in the loss", "sorted documents")):
        found = examine_log(as_log([*rows(good), look]))
        assert [f.suspects[0] for f in found] == [suspect]


def test_what_is_no_log_is_refused(tmp_path):
    with refused("holds no log.jsonl"):
        doctor(tmp_path)
    path = tmp_path / "log.jsonl"
    for text in ("", "not JSON", '{"step": 1, "loss": 2}\n', '[1]\n' * 9, '{"step": 1}\n' * 9):
        path.write_text(text, encoding="utf-8")
        with refused("log.jsonl", "two rows"):
            doctor(tmp_path)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows(curve())), encoding="utf-8")
    assert doctor(tmp_path) == []
    with refused("floor=-1"):
        doctor(tmp_path, floor=-1)
