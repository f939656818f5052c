"Laws of a recording: nothing lost or doubled by a kill, small, exact but for fp16; and its page."
import json
import math
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import soak
import still_recording
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_page import KINDS, node

from benchmarks.recording import MEGABYTES, held_out_bits
from minigpt.checkpoint import (
    fill_model,
    load_model,
    load_tensors,
    save_tensors,
    shipped_model,
)
from minigpt.cli import main
from minigpt.config import ModelConfig
from minigpt.model import GPT
from minigpt.page import attention_rows, greedy
from minigpt.recipe import read_recipe, run
from minigpt.recorder import (
    FILE,
    Recorder,
    open_recording,
    rows_to_keep,
    snapshots_that_fit,
    steps_to_keep,
)

ROOT = Path(__file__).parent.parent

SMALL = 0.25          # MB: some snapshots of soak's model, fewer than steps


def record(folder: Path, stop: int | None = None, megabytes: float | None = SMALL) -> Path:
    "Train and record, to the end or until a stop; the run's folder."
    reports = run(folder, read_recipe(folder), evaluate_every=7, save_every=5,
                  watch=Recorder(folder, megabytes))
    for report in reports:
        if report.step.n == stop:
            reports.close()
    return folder


def same(a: Path, b: Path) -> None:
    "Two recordings hold the same bits and say the same; safetensors shuffles its header."
    (ours, mine), (theirs, yours) = (load_tensors(folder / FILE) for folder in (a, b))
    assert mine == yours and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory) -> Path:
    return record(soak.start(tmp_path_factory.mktemp("quiet") / "run", 24))


# ---- Which steps

@settings(max_examples=300, deadline=None)
@given(steps=st.integers(1, 10**6), n=st.integers(2, 500))
def test_steps_rise_from_0_to_the_last_and_double_at_most(steps, n):
    kept = steps_to_keep(steps, n)
    assert len(kept) == min(n, steps + 1) and kept[0] == 0 and kept[-1] == steps
    assert all(a < b for a, b in zip(kept, kept[1:]))
    above = kept[1:]
    assert all(b <= 2 * a + 1 for a, b in zip(above, above[1:]))
    if n > math.log2(steps) + 2:
        assert kept[1] == 1                           # there is room to begin at the beginning


@pytest.mark.parametrize("steps, n", [(10, 1), (10, 0), (0, 5)])
def test_a_recording_has_two_ends(steps, n):
    with pytest.raises(ValueError, match="at least two"):
        steps_to_keep(steps, n)


def test_a_long_log_stays_small_and_keeps_looks():
    rows = [{"step": n, "loss": 1.23456789, "lr": 1, "grad_norm": 0.1, "seconds": 9.0}
            | ({"validation": 2.0} if n % 200 == 0 else {}) for n in range(1, 100_001)]
    kept = rows_to_keep(rows, 100_000)
    assert 400 <= len(kept) <= 500 and kept[0]["step"] == 1
    assert kept[-1] == {"step": 100_000, "loss": 1.23457, "lr": 1.0, "grad_norm": 0.1,
                        "validation": 2.0}
    assert rows_to_keep([], 10) == []


# ---- Size

@pytest.mark.parametrize("megabytes", [0.2, 0.3, 1.5])
def test_the_file_stays_below_its_limit(tmp_path, megabytes):
    folder = record(soak.start(tmp_path / "run", 60), megabytes=megabytes)
    size, got = (folder / FILE).stat().st_size, open_recording(folder)
    model = got.model(0)
    n = snapshots_that_fit(model, got.tokenizer.spec(), megabytes)
    assert list(got.steps) == steps_to_keep(60, n) and size <= megabytes * 1e6
    assert len(got.steps) == 61 or megabytes < 1


@pytest.mark.parametrize("megabytes", [0.001, -1.0, math.nan])
def test_too_little_room_is_refused_with_what_would_do(tmp_path, megabytes):
    folder = soak.start(tmp_path / "run", 6)
    with pytest.raises(ValueError, match=r"cannot hold two snapshots .* at least 0\.\d MB"):
        record(folder, megabytes=megabytes)
    assert not (folder / FILE).exists()


# ---- What a snapshot is

@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_is_the_model_in_half_precision_exactly(tmp_path, kind, quiet):
    torch.manual_seed(0)
    words = open_recording(quiet).tokenizer
    kind = {"n_kv_head": 2} | KINDS[kind]
    model = GPT(ModelConfig(words.vocab_size, context_length=40, n_layer=2, n_head=4, d_model=64,
                            d_ff=90, **kind)).eval()
    words.save(tmp_path / "tokenizer.json")
    Recorder(tmp_path)(model, 0, 9)
    got = open_recording(tmp_path)
    assert got.steps == (0,) and got.cfg == model.cfg and got.rows == []
    assert all(t.dtype == torch.float16 for t in got.tensors.values())
    assert len(got.tensors) == len(dict(model.named_parameters()))     # tied weights once
    fill_model(model, {name: p.half().float() for name, p in model.named_parameters()}, "")
    ids = torch.randint(words.vocab_size, (2, 40))
    torch.testing.assert_close(got.model(0)(ids), model(ids), rtol=0, atol=0)


def test_the_last_snapshot_is_the_finished_model(quiet):
    got, (model, _) = open_recording(quiet), load_model(quiet)
    for name, p in model.named_parameters():
        assert torch.equal(got.weights(24)[name], p.half()), name
    assert [row["step"] for row in got.rows] == list(range(1, 25))
    assert [row["step"] for row in got.rows if "validation" in row] == [7, 14, 21, 24]
    with pytest.raises(ValueError, match="has no snapshot of step 23; it has 0, "):
        got.weights(23)


# ---- Stopped and killed

@pytest.mark.parametrize("stop", [1, 3, 5, 12, 23])
def test_a_run_that_was_stopped_records_the_same_bits(tmp_path, quiet, stop):
    folder = record(soak.start(tmp_path / "run", 24), stop)
    record(folder, megabytes=None)                   # the limit is remembered
    same(folder, quiet)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_run_that_was_killed_records_the_same_bits(tmp_path, quiet):
    "Each child dies without a signal's warning, right after some step; the last one finishes."
    folder, rng = soak.start(tmp_path / "run", 24), random.Random(0)
    for _ in range(8):
        most = rng.randint(1, 12)
        pid = os.fork()
        if not pid:
            for n, _ in enumerate(run(folder, read_recipe(folder), evaluate_every=7, save_every=5,
                                      watch=Recorder(folder, SMALL)), 1):
                if n == most:
                    break
            os._exit(9)
        os.waitpid(pid, 0)
    record(folder)
    same(folder, quiet)


def test_a_run_that_is_recorded_late_begins_there(tmp_path):
    folder = soak.start(tmp_path / "run", 24)
    list(zip(range(10), run(folder, read_recipe(folder), save_every=5)))    # closed after step 10
    record(folder, 13)
    assert open_recording(folder).steps[0] == 10
    record(folder)
    got = open_recording(folder)
    n = snapshots_that_fit(got.model(10), got.tokenizer.spec(), SMALL)
    assert list(got.steps) == [10, *(s for s in steps_to_keep(24, n) if s > 10)]
    assert [row["step"] for row in got.rows] == list(range(1, 25))


# ---- Refusals

def damage(folder: Path, **changes):
    "Writes a recording with another description at a path; its checksum is right."
    tensors, about = load_tensors(folder / FILE)
    return lambda path: save_tensors(path, tensors, {**about, **changes})


@pytest.mark.parametrize("break_it, says", [
    (lambda path, good: path.write_bytes(good.read_bytes()[:-9]), "damaged or cut short"),
    (lambda path, good: path.write_bytes(b"GIF89a" * 99), "damaged or cut short"),
    (lambda path, good: path.write_bytes(b""), "damaged or cut short"),
    (lambda path, good: path.write_bytes(
        good.read_bytes()[:-9] + b"!" + good.read_bytes()[-8:]), "SHA-256 differs"),
    (lambda path, good: path.write_bytes((good.parent / "model.safetensors").read_bytes()),
     "is no recording; give a recording.safetensors that `minigpt train --record` wrote"),
    (lambda path, good: damage(good.parent, version=2)(path), "version 2, and this minigpt reads"),
    (lambda path, good: damage(good.parent, steps=[0, 1])(path), "it names the steps"),
    (lambda path, good: damage(good.parent, steps=7)(path), "not a whole recording"),
    (lambda path, good: damage(good.parent, log=[{"loss": 1}])(path), "not a whole recording"),
    (lambda path, good: damage(good.parent, config={"d_model": -1})(path), "not a whole recording"),
    (lambda path, good: damage(good.parent, tokenizer={"a": 1})(path), "not a whole recording"),
])
def test_what_is_no_recording_is_refused_in_one_sentence(tmp_path, quiet, break_it, says):
    break_it(tmp_path / FILE, quiet / FILE)
    with pytest.raises(ValueError, match=says) as error:
        open_recording(tmp_path)
    assert "\n" not in str(error.value)
    soak.start(tmp_path / "run", 6)
    (tmp_path / FILE).rename(tmp_path / "run" / FILE)
    with pytest.raises(ValueError, match=says):      # nor does a run go on with it
        record(tmp_path / "run")


def test_no_file_and_another_model_are_refused(tmp_path, quiet):
    with pytest.raises(ValueError, match="is no file"):
        open_recording(tmp_path)
    folder = soak.start(tmp_path / "run", 6)
    (folder / FILE).write_bytes((quiet / FILE).read_bytes())
    recipe = read_recipe(folder)
    other = replace(recipe, model=replace(recipe.model, d_ff=24))
    with pytest.raises(ValueError, match="the recording of another model; move it away"):
        next(run(folder, other, watch=Recorder(folder, SMALL)))


# ---- The command

def test_the_command_records_goes_on_and_says_where_it_begins(tmp_path, capsys, monkeypatch):
    plain, folder = (soak.start(tmp_path / name, 12) for name in ("plain", "run"))
    assert main(["train", "--resume", str(plain)]) == 0 and not (plain / FILE).exists()
    list(zip(range(5), run(folder, read_recipe(folder))))
    assert main(["train", "--resume", str(folder), "--record", "0.3"]) == 0
    assert "nothing was recorded up to step 5; the recording begins there" in (
        capsys.readouterr().err)
    got = open_recording(folder)
    assert got.megabytes == 0.3 and got.steps[0] == 5 and got.steps[-1] == 12
    assert main(["train", "--resume", str(soak.start(tmp_path / "full", 6)), "--record",
                 "0.01"]) == 2
    assert "0.01 MB cannot hold two snapshots" in capsys.readouterr().err


def test_a_fine_tuning_is_recorded_too(tmp_path, quiet, capsys):
    rows = [json.dumps({"text": f"a {word} sees"}) for word in ("bee", "sea", "a bee", "a sea")]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    assert main(["finetune", "--checkpoint", str(quiet), "--data", str(tmp_path / "rows.jsonl"),
                 "--out", str(tmp_path / "tuned"), "--steps", "3", "--record"]) == 0
    got = open_recording(tmp_path / "tuned")
    assert got.steps == (0, 1, 2, 3) and [row["step"] for row in got.rows] == [1, 2, 3]
    assert torch.equal(got.weights(0)["embedding.weight"],
                       load_model(quiet)[0].embedding.weight.half())


# ---- The recording in the package

def test_the_shipped_recording_is_small_and_its_facts_are_true():
    folder = shipped_model("recording")
    facts, got = json.loads((folder / "facts.json").read_text(encoding="utf-8")), open_recording()
    assert facts["bytes"] == (folder / FILE).stat().st_size <= MEGABYTES * 1e6
    assert facts["snapshots"] == list(got.steps) and len(got.steps) >= 10
    assert facts["steps"] == got.steps[-1] and got.rows[-1]["step"] == got.steps[-1]
    assert round(got.rows[-1]["validation"], 4) == facts["validation loss, nats a token"]
    told = facts["held_out_bits a document that fits, by step"]
    bits = {step: held_out_bits(got, step) for step in (0, got.steps[-1])}
    for step, measured in bits.items():
        assert measured == pytest.approx(told[str(step)], rel=1e-3)
    assert list(told.values()) == sorted(told.values(), reverse=True)       # each knows more
    assert got.model(0).cfg == read_recipe(folder / "recipe.json").model


# ---- The page

@pytest.fixture(scope="module")
def golden(tmp_path_factory) -> Path:
    "What PyTorch finds in the shipped recording, at some of its steps."
    got, cases = open_recording(), []
    for step in (0, got.steps[len(got.steps) // 2], got.steps[-1]):
        model = got.model(step)
        for text in ("Once upon a time", "Q: Where does Abel live?\nA:", ""):
            ids = got.tokenizer.prompt_ids(text)
            with torch.no_grad():
                probs = model(torch.tensor([ids]))[0, -1].double().softmax(-1)
            said, end = greedy(model, ids, 30), got.tokenizer.end_of_text
            cases.append(dict(
                step=step, text=text, ids=ids, probs=probs.tolist(),
                attention=[[[row[:t + 1] for t, row in enumerate(head)] for head in layer.tolist()]
                           for layer in attention_rows(model, ids)],
                greedy=said[:said.index(end)] if end in said else said))
    path = tmp_path_factory.mktemp("golden") / "golden.json"
    path.write_text(json.dumps(cases), encoding="utf-8")
    return path


def test_the_page_finds_what_pytorch_finds_at_every_step(golden, quiet, tmp_path):
    good = (quiet / FILE).read_bytes()
    bad = {"cut": good[:-9], "empty": b"", "picture": b"GIF89a" * 99,
           "model": (quiet / "model.safetensors").read_bytes(),
           "strange": b"\x05" + bytes(7) + b"[1,2]" + bytes(9)}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    damage(quiet, version=2)(tmp_path / "new")
    damage(quiet, steps=[0, 1])(tmp_path / "fewer")
    tensors, about = load_tensors(quiet / FILE)
    name = f"step-{about['steps'][-1]:06d}.norm.weight"
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    save_tensors(tmp_path / "nan", tensors, about)
    refused = [tmp_path / name for name in (*bad, "new", "fewer", "nan")]
    found = json.loads(node("recording.mjs", shipped_model("recording") / FILE, golden, *refused))
    got = open_recording()
    assert found["wrong"] == [] and found["steps"] == list(got.steps)
    assert found["rows"] == len(got.rows) and max(found["probs"], found["attention"]) < 1e-5
    for sentence, says in zip(found["refused"], (
            "ends within", "not a whole", "not a whole", "This is no recording: choose a record",
            "damaged, or no recording: choose", "version 2; the page plays version 1",
            "lacks snapshots that it names", "are not numbers"), strict=True):
        assert says in sentence and "\n" not in sentence


def test_the_recorder_works_as_a_reader_uses_it(tmp_path, quiet, browser):
    own, wrong = tmp_path / "own.safetensors", tmp_path / "wrong.safetensors"
    own.write_bytes((quiet / FILE).read_bytes())
    wrong.write_bytes((quiet / "model.safetensors").read_bytes())
    assert "the recorder works" in node("recorder.mjs", shipped_model("recording") / FILE, own,
                                        wrong, browser=browser)


def test_the_still_picture_of_the_recording_is_what_the_snapshots_say(tmp_path):
    still_recording.write_recording(tmp_path)
    assert open_recording(tmp_path / still_recording.FILE).steps == open_recording().steps
    picture = still_recording.recording("Once upon <a> time\nAbel has a")
    assert picture.count("<tr>") == 1 + still_recording.N_SHOWN and "<path" in picture
    assert "Once upon &lt;a&gt; time" in picture and "<a>" not in picture
