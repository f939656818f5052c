"Laws of a run: it can be killed at any instant, it keeps others out, and it says why it stops."
import errno
import json
import os
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soak
import torch

from minigpt.checkpoint import checkpoints_in, load_model, only_run
from minigpt.data import Batches
from minigpt.recipe import RECIPES, documents_of, is_started, read_recipe, run, write_recipe
from minigpt.training import TrainingDiverged, train


@pytest.fixture
def folder(tmp_path):
    return soak.start(tmp_path / "run", 12)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and fork are POSIX's")
def test_a_run_killed_a_dozen_times_ends_with_the_same_bits(tmp_path):
    with soak.Children() as children:
        a_step = children.finish(soak.start(tmp_path / "quiet", 240)) / 240
        folder = soak.start(tmp_path / "killed", 240)
        under_way, _ = children.kill_often(folder, 12, random.Random(1), a_step)
    assert under_way >= 6                        # the others hit while the process was starting
    soak.same_end(tmp_path / "quiet", tmp_path / "killed")


def test_two_runs_in_one_folder_are_one_too_many(folder):
    reports = run(folder, read_recipe(folder))
    next(reports)
    with pytest.raises(ValueError, match="another run is writing to"):
        next(run(folder, read_recipe(folder)))
    reports.close()
    assert next(run(folder, read_recipe(folder))).step.n == 2          # the lock is free again


def test_what_a_killed_save_left_is_swept_up(folder):
    (folder / "checkpoint-00000002.safetensors.tmp").write_bytes(b"half")
    with only_run(folder):
        assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_frozen_disk_loses_nothing_and_says_so(folder, monkeypatch, number):
    list(zip(range(4), run(folder, read_recipe(folder), save_every=2)))
    before = {p.name: p.read_bytes() for p in checkpoints_in(folder)}

    def full(*args, **kwargs):
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr("minigpt.checkpoint.save_file", full)
    with pytest.raises(OSError, match=os.strerror(number)) as error:
        list(run(folder, read_recipe(folder), save_every=2))
    assert "untouched" in str(error.value) and "\n" not in str(error.value)
    after = {p.name: p.read_bytes() for p in checkpoints_in(folder)}
    assert before and after == before and not list(folder.glob("*.tmp"))


def test_a_diverging_run_keeps_the_last_good_checkpoint(folder):
    recipe = read_recipe(folder)
    list(zip(range(5), run(folder, recipe, save_every=2)))              # closed after step 5: saved
    good = checkpoints_in(folder)[-1].read_bytes()
    with pytest.raises(TrainingDiverged, match=r"step \d+, batch \d+: loss .*last good checkpoint"):
        list(run(folder, replace(recipe, lr=1e30, adamw_lr=1e30, steps=40), save_every=100))
    assert checkpoints_in(folder)[-1].read_bytes() == good


def test_the_log_has_each_step_once_and_tells_what_a_step_did(folder):
    list(zip(range(3), run(folder, read_recipe(folder), save_every=2)))
    with open(folder / "log.jsonl", "a") as torn:
        torn.write('{"step": 4, "lo')
    list(run(folder, read_recipe(folder), evaluate_every=6))
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[0].keys() >= {"loss", "lr", "grad_norm", "seconds", "tokens_per_second"}
    assert ["validation" in row for row in rows] == [n % 6 == 0 for n in range(1, 13)]


def test_validation_shares_no_document_with_training():
    recipe = replace(RECIPES["small"], megabytes=0.1)
    training, held_out = ([*documents_of(recipe, part)] for part in (False, True))
    assert len(held_out) > 20 and training[:20] != held_out[:20]
    assert not {text for text in training if len(text) > 100} & set(held_out)


def test_a_run_ends_with_a_look_whatever_the_interval(folder):
    seen = [r.validation is not None for r in run(folder, read_recipe(folder), evaluate_every=5)]
    assert [n for n, looked in enumerate(seen, 1) if looked] == [5, 10, 12]


def test_tensorboard_is_asked_for_by_name_where_it_is_missing(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        next(run(folder, read_recipe(folder), tensorboard=True))


def test_tensorboard_gets_every_step(folder):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    list(run(folder, read_recipe(folder), tensorboard=True))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == list(range(1, 13))


def test_a_preparation_that_was_stopped_is_in_nobodys_way(tmp_path):
    assert not is_started(tmp_path)
    (tmp_path / "train.npy").write_bytes(b"half")
    (tmp_path / "tokenizer.json.tmp").write_bytes(b"half")
    assert not is_started(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert is_started(tmp_path)


def test_what_is_no_number_is_named():
    from minigpt.training import diagnosis
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    assert "uniform guessing" in diagnosis(model, 99.0, 1.0, 0.5)
    assert "batch or a lower precision" in diagnosis(model, float("nan"), 1.0, 0.5)
    model[1].weight.grad = torch.full((2, 2), torch.inf)
    assert "gradient of 1.weight" in diagnosis(model, 1.0, float("inf"), 0.5)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    assert diagnosis(model, float("nan"), 1.0, 0.25).startswith("0.weight became infinite")
    assert "25% of the rate" in diagnosis(model, float("nan"), 1.0, 0.25)


def test_a_recipe_is_written_whole(tmp_path, folder):
    recipe = read_recipe(folder)
    write_recipe(tmp_path, recipe)
    assert read_recipe(tmp_path) == recipe


def test_a_model_without_a_config_trains_too():
    model = torch.nn.Sequential(torch.nn.Embedding(50, 8), torch.nn.Linear(8, 50))
    batches = Batches(np.arange(2000, dtype=np.uint16) % 50, 2, 8)
    first, *_, last = train(model, batches, [torch.optim.SGD(model.parameters(), lr=0.5)], 20)
    assert last.loss < first.loss


def losses(folder, **how) -> list[float]:
    return [report.step.loss for report in run(folder, read_recipe(folder), **how)]


def test_products_in_bfloat16_learn_about_the_same(tmp_path):
    plain, mixed = (soak.start(tmp_path / name, 12) for name in ("plain", "mixed"))
    write_recipe(mixed, replace(read_recipe(mixed), precision="bfloat16"))
    ours, theirs = losses(plain), losses(mixed)
    assert ours != theirs and max(abs(a - b) for a, b in zip(ours, theirs)) < 0.05
    with pytest.raises(ValueError, match="precision='int4' is unknown; choose from float32, bfl"):
        replace(read_recipe(plain), precision="int4")


HEADERS = [Path(torch.__file__).parent / "include", Path("/usr/include")]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler: g++")
@pytest.mark.skipif(not any((folder / "ATen").is_dir() for folder in HEADERS),
                    reason="torch.compile needs PyTorch's headers; in Debian, libtorch-dev")
@pytest.mark.skipif(os.environ.get("ATEN_CPU_CAPABILITY") == "default",
                    reason="torch.compile writes vector code that this variable leaves undeclared")
def test_a_compiled_run_learns_the_same_and_saves_plain_names(tmp_path):
    plain, fast = (soak.start(tmp_path / name, 4) for name in ("plain", "fast"))
    assert max(abs(a - b) for a, b in zip(losses(plain), losses(fast, compiled=True))) < 1e-4
    assert load_model(fast)[0].cfg == load_model(plain)[0].cfg
