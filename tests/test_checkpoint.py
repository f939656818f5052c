"Laws of checkpoints: nothing changed is ever loaded, nothing saved is ever lost."
import json
import os
import random
import stat
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import minigpt.checkpoint
from minigpt.checkpoint import (
    checkpoints_in,
    fingerprint,
    load_checkpoint,
    load_model,
    load_tensors,
    pack_optimizers,
    save_checkpoint,
    save_model,
    save_tensors,
    unpack_optimizers,
    write_whole,
)
from minigpt.model import GPT
from minigpt.optim import adamw_for, muon_for

ABOUT = {"step": 500, "lr": 1e-08, "name": "a run"}


def new_run(cfg, seed=0):
    "A model and optimizers that have taken one step."
    torch.manual_seed(seed)
    model = GPT(cfg)
    optimizers = muon_for(model)
    model(torch.tensor([[1, 2, 3]])).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()
    return model, optimizers


def same_weights(a, b):
    return fingerprint(dict(a.named_parameters())) == fingerprint(dict(b.named_parameters()))


def refusal(load, path):
    "The one sentence that a broken file gets."
    with pytest.raises(ValueError) as error:
        load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


# --- what is read

@pytest.fixture
def small_file(tmp_path):
    path = tmp_path / "small.safetensors"
    save_tensors(path, {"weight": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}, ABOUT)
    return path


def test_a_file_cut_at_any_length_is_refused(small_file):
    whole = small_file.read_bytes()
    for n in range(len(whole)):
        small_file.write_bytes(whole[:n])
        refusal(load_tensors, small_file)
    small_file.write_bytes(whole + b"\0")
    refusal(load_tensors, small_file)


def test_a_changed_byte_never_changes_what_is_loaded(small_file):
    "Every byte of the file, description included: an error, or exactly what was saved."
    whole, rng = small_file.read_bytes(), random.Random(0)
    tensors, _ = load_tensors(small_file)
    expected, wrong = fingerprint(tensors), []
    for place in range(len(whole)):
        for bit in rng.sample(range(8), 3):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            small_file.write_bytes(flipped)
            try:
                tensors, about = load_tensors(small_file)
            except ValueError as e:
                assert str(small_file) in str(e) and "\n" not in str(e)
            else:
                if (fingerprint(tensors), about) != (expected, ABOUT):
                    wrong.append((place, about))
    assert not wrong, f"{len(wrong)} changes went unseen, the first: {wrong[0]}"


def test_a_changed_byte_in_a_checkpoint_of_a_run_is_refused(tiny_model, tmp_path):
    model, optimizers = new_run(tiny_model.cfg)
    path = save_checkpoint(tmp_path, 7, model, optimizers)
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(100):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole) // 2, len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        refusal(lambda p: load_checkpoint(p, model, optimizers), path)


@pytest.mark.parametrize("content", [
    b"", b"PK\x03\x04 a zip", b"\x80\x04 a pickle", b"\xff" * 100, b"{}", b"\2\0\0\0\0\0\0\0{}",
    b"\0" * 64])
def test_a_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    refusal(load_tensors, path)


@pytest.mark.parametrize("header", [
    None, {}, {"format": "pt"}, {"about": "{}"}, {"sha256": "0" * 64}, {"about": "", "sha256": ""},
    {"about": "{}", "sha256": "0" * 64}, {"about": "[" * 100_000, "sha256": "3"},
    {"minigpt": '{"about": {}, "sha256": "3"}'}], ids=lambda h: str(h)[:40])
def test_a_safetensors_file_of_others_is_refused(tmp_path, header):
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, path, metadata=header)
    refusal(load_tensors, path)


@pytest.mark.parametrize("text", ["", "null", "3", "[]", '"x"', "{", "[" * 100_000],
                         ids=lambda t: t[:4])
def test_a_description_that_is_none_is_refused(tmp_path, text):
    "Even where its SHA-256 fits."
    path, tensors = tmp_path / "foreign.safetensors", {"weight": torch.zeros(3)}
    save_file(tensors, path, metadata={"about": text, "sha256": fingerprint(tensors, text)})
    refusal(load_tensors, path)


@pytest.mark.parametrize("change, message", [
    (lambda t: t.pop("norm.weight"), "lacks norm.weight"),
    (lambda t: t.update(extra=torch.zeros(2)), "unknown extra"),
    (lambda t: t.update({"norm.weight": torch.zeros(99)}), "norm.weight is (99,)"),
    (lambda t: t.clear(), "lacks"),
    (lambda t: t.update({"norm.weight": t["norm.weight"].view(4, 4)}), "norm.weight is (4, 4)")],
    ids=["missing", "extra", "other size", "empty", "folded"])
def test_weights_of_another_kind_are_named(copied, change, message):
    path = copied / "model.safetensors"
    tensors, about = load_tensors(path)
    change(tensors)
    save_tensors(path, tensors, about)
    assert message in refusal(lambda p: load_model(p.parent), path)


@pytest.mark.parametrize("change", [
    {"n_layer": 2}, {"d_ff": 64}, {"d_model": 32}, {"n_kv_head": 1}, {"vocab_size": 999},
    {"norm": "layer"}, {"mlp": "gelu"}, {"position": "learned"}, {"bias": True},
    {"tie_embeddings": False}, {"n_head": 4, "n_kv_head": 4}, {"n_head": 1, "n_kv_head": 1},
    {"context_length": 64}, {"rope_theta": 500.0}, {"norm_eps": 1e-3}], ids=str)
def test_a_config_that_contradicts_the_weights_is_refused(copied, tiny_model, change):
    checkpoint = save_checkpoint(copied, 3, *new_run(tiny_model.cfg))
    replace(tiny_model.cfg, **change).save(copied / "config.json")
    for path in (copied, copied / "model.safetensors", checkpoint):
        with pytest.raises(ValueError, match="config.json contradicts the weights in"):
            load_model(path)


@pytest.mark.parametrize("change", [
    {"n_layer": 2}, {"d_ff": 64}, {"d_model": 32}, {"n_kv_head": 1}, {"vocab_size": 999},
    {"norm": "layer"}, {"mlp": "gelu"}, {"position": "learned"}, {"bias": True},
    {"tie_embeddings": False}], ids=str)
def test_shapes_contradict_a_config_where_the_header_has_none(copied, tiny_model, change):
    tensors, _ = load_tensors(copied / "model.safetensors")
    save_tensors(copied / "model.safetensors", tensors, {})
    replace(tiny_model.cfg, **change).save(copied / "config.json")
    with pytest.raises(ValueError, match="it belongs to a model of another"):
        load_model(copied)


@pytest.mark.parametrize("change", [
    {"d_model": 17}, {"d_model": "16"}, {"d_model": 16.0}, {"d_model": None}, {"n_layer": 0},
    {"vocab_size": 10**15}, {"context_length": 10**15}, {"colour": "red"},
    {"norm": ["rms"]}, {"norm_eps": "small"}, {"rope_theta": "large"}], ids=str)
def test_an_impossible_config_is_refused(copied, tiny_model, change):
    (copied / "config.json").write_text(json.dumps(asdict(tiny_model.cfg) | change))
    with pytest.raises(ValueError) as error:
        load_model(copied)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"[]", b"nul", b"[" * 100_000],
                         ids=lambda c: str(c)[:12])
def test_each_file_is_needed_and_named(copied, name, content):
    (copied / name).unlink()
    if content is not None:
        (copied / name).write_bytes(content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        load_model(copied)


def test_a_path_without_a_model_is_named(tmp_path, copied):
    for path in (tmp_path / "nowhere", tmp_path / "empty", copied / "nowhere.safetensors"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert "train" in refusal(load_model, path)


def test_another_models_tokenizer_is_refused(copied, tokenizer):
    from minigpt.tokenizer import Tokenizer
    larger = tokenizer.tokens + [b"zzz%d" % i for i in range(10)]
    Tokenizer(larger).save(copied / "tokenizer.json")
    with pytest.raises(ValueError, match="do not belong together"):
        load_model(copied)


def test_another_runs_checkpoint_is_refused_and_changes_nothing(tiny_model, tmp_path):
    model, optimizers = new_run(tiny_model.cfg)
    path = save_checkpoint(tmp_path, 3, model, optimizers)
    other, theirs = new_run(replace(tiny_model.cfg, n_layer=2), seed=1)
    before = fingerprint(dict(other.named_parameters()))
    with pytest.raises(ValueError, match="model with another n_layer"):
        load_checkpoint(path, other, theirs)
    assert fingerprint(dict(other.named_parameters())) == before
    with pytest.raises(ValueError, match=r"\['Muon', 'AdamW'\], the run has \['AdamW'\]"):
        load_checkpoint(path, model, adamw_for(model))


def test_fewer_optimizers_than_the_runs_are_refused_too(tiny_model, tmp_path):
    "Muon must never take AdamW's averages for its own."
    model, theirs = new_run(tiny_model.cfg)
    ours = adamw_for(model)
    for optimizer in ours:
        optimizer.step()
    path = save_checkpoint(tmp_path, 3, model, ours)
    with pytest.raises(ValueError, match="resume with the same recipe"):
        load_checkpoint(path, model, theirs)


def test_a_model_opens_from_its_folder_its_file_and_its_checkpoint(copied, tiny_model):
    trained, optimizers = new_run(tiny_model.cfg)
    checkpoint = save_checkpoint(copied, 5, trained, optimizers)
    for path in (copied, copied / "model.safetensors", str(copied)):
        assert same_weights(load_model(path)[0], tiny_model)
    assert same_weights(load_model(checkpoint)[0], trained)
    (copied / "model.safetensors").unlink()
    assert same_weights(load_model(copied)[0], trained)


def test_a_run_comes_back_with_its_optimizers_and_its_chance(tmp_path, tiny_model):
    model, optimizers = new_run(tiny_model.cfg, seed=1)
    path = save_checkpoint(tmp_path, 7, model, optimizers, {"note": "naïve"})
    expected = torch.rand(3)
    again, theirs = new_run(tiny_model.cfg, seed=2)
    about = load_checkpoint(path, again, theirs)
    assert (about["step"], about["note"]) == (7, "naïve")
    assert same_weights(model, again) and torch.equal(torch.rand(3), expected)
    state = pack_optimizers(optimizers)
    assert state and fingerprint(state) == fingerprint(pack_optimizers(theirs))
    for model_, optimizers_ in ((model, optimizers), (again, theirs)):       # and the next step
        model_.zero_grad()
        model_(torch.tensor([[4, 5, 6]])).square().mean().backward()
        for optimizer in optimizers_:
            optimizer.step()
    assert same_weights(model, again)
    assert fingerprint(pack_optimizers(optimizers)) == fingerprint(pack_optimizers(theirs))


def test_optimizers_keep_their_own_rates(tmp_path, tiny_model):
    "The recipe decides the rates; the checkpoint brings the memory alone."
    model, optimizers = new_run(tiny_model.cfg)
    path = save_checkpoint(tmp_path, 7, model, optimizers)
    again, theirs = new_run(tiny_model.cfg, seed=2)
    for optimizer in theirs:
        for group in optimizer.param_groups:
            group["lr"] = 0.125
    settings = [o.state_dict()["param_groups"] for o in theirs]
    load_checkpoint(path, again, theirs)
    assert [o.state_dict()["param_groups"] for o in theirs] == settings
    unpack_optimizers(optimizers, pack_optimizers(theirs))
    assert fingerprint(pack_optimizers(optimizers)) == fingerprint(pack_optimizers(theirs))


def test_keeping_no_checkpoint_is_refused(tmp_path, tiny_model):
    with pytest.raises(ValueError, match="keep=0"):
        save_checkpoint(tmp_path, 7, *new_run(tiny_model.cfg), keep=0)


def test_files_say_which_model_they_hold(copied, tiny_model):
    checkpoint = save_checkpoint(copied, 7, *new_run(tiny_model.cfg))
    for path in (checkpoint, copied / "model.safetensors"):
        assert load_tensors(path)[1]["config"] == asdict(tiny_model.cfg)


# --- what is written

def fails_midway(*args, **kwargs):
    "What a full disk does to save_file: half a file, and an error."
    Path(args[1]).write_bytes(b"half a file")
    raise OSError("no space left on device")


def test_a_save_that_fails_midway_loses_nothing(copied, tiny_model, tokenizer, monkeypatch):
    run = {step: new_run(tiny_model.cfg, seed=step) for step in (1, 2, 3)}
    for step in (1, 2):
        save_checkpoint(copied, step, *run[step])
    before = {p.name: p.read_bytes() for p in copied.iterdir()}
    monkeypatch.setattr(minigpt.checkpoint, "save_file", fails_midway)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(copied, 3, *run[3])
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(copied, 2, *run[3])
    with pytest.raises(OSError, match="no space left"):
        save_model(copied, run[3][0], tokenizer)
    assert {p.name: p.read_bytes() for p in copied.iterdir() if p.suffix != ".tmp"} == before
    monkeypatch.undo()
    save_checkpoint(copied, 3, *run[3])                  # over the half file that was left behind
    model, optimizers = new_run(tiny_model.cfg, seed=9)
    assert load_checkpoint(checkpoints_in(copied)[-1], model, optimizers)["step"] == 3
    assert same_weights(model, run[3][0])


def test_a_file_takes_its_name_when_the_disk_has_it(tmp_path, monkeypatch):
    "Or a power cut between the two could leave the name of a whole file on half of one."
    done, replace_file = [], os.replace
    monkeypatch.setattr(minigpt.checkpoint, "flush", lambda file: done.append(
        "folder" if stat.S_ISDIR(os.fstat(file).st_mode) else os.fstat(file).st_size))
    monkeypatch.setattr(os, "replace", lambda a, b: done.append("name") or replace_file(a, b))
    write_whole(tmp_path / "file.txt", lambda path: path.write_bytes(b"12345"))
    assert done == [5, "name", *["folder"] * (os.name == "posix")]


def test_an_old_unfinished_file_is_in_nobodys_way(copied, tiny_model, tokenizer):
    for name in ("model.safetensors", "config.json", "checkpoint-00000009.safetensors"):
        (copied / f"{name}.tmp").write_bytes(b"from a run that lost its power")
    assert checkpoints_in(copied) == []
    assert same_weights(load_model(copied)[0], tiny_model)
    save_checkpoint(copied, 9, *new_run(tiny_model.cfg))
    save_model(copied, tiny_model, tokenizer)
    assert [p.name for p in checkpoints_in(copied)] == ["checkpoint-00000009.safetensors"]
    assert not list(copied.glob("*.tmp"))


def test_the_newest_checkpoints_stay_and_what_was_just_saved_is_there(tmp_path, tiny_model):
    run = new_run(tiny_model.cfg)
    for step in (1, 2, 10, 20, 5):                       # the last: a run that went back
        assert save_checkpoint(tmp_path, step, *run).is_file(), step
        left = [int(path.stem[-8:]) for path in checkpoints_in(tmp_path)]
        assert left == {1: [1], 2: [1, 2], 10: [2, 10], 20: [10, 20], 5: [5, 10, 20]}[step]


def test_names_may_hold_spaces_and_any_letters(tmp_path):
    folder = tmp_path / "naïve folder with spaces"
    folder.mkdir()
    write_whole(folder / "größe.json", lambda p: p.write_text("{}"))
    assert [p.name for p in folder.iterdir()] == ["größe.json"]


def test_a_saved_model_is_plain_safetensors(saved, tiny_model):
    theirs = load_file(saved / "model.safetensors")
    assert fingerprint(theirs) == fingerprint(dict(tiny_model.named_parameters()))


SAVER = """
import sys, torch
from minigpt.checkpoint import save_checkpoint
from minigpt.config import ModelConfig
from minigpt.model import GPT
model = GPT(ModelConfig(vocab_size=500, n_layer=2, d_model=64, d_ff=128))
for step in range(1, 100_000):
    torch.nn.init.constant_(model.norm.weight, step)
    save_checkpoint(sys.argv[1], step, model, [])
    print(step, flush=True)
"""


def test_a_process_killed_while_saving_leaves_the_newest_whole(tmp_path):
    "Five times, at random moments: what was reported as saved is there, and loads."
    rng, root = random.Random(), Path(minigpt.__file__).parents[1]
    folders = [tmp_path / str(i) for i in range(5)]
    savers = []
    try:
        for folder in folders:
            folder.mkdir()
            savers.append(subprocess.Popen([sys.executable, "-c", SAVER, str(folder)], cwd=root,
                                           stdout=subprocess.PIPE, text=True))
        for folder, saver in zip(folders, savers):
            assert saver.stdout.readline() == "1\n"
            time.sleep(rng.uniform(0, 0.1))
            saver.kill()                                 # SIGKILL: nothing can be tidied up
            reported = 1 + len(saver.stdout.read().splitlines())
            saver.wait()
            newest = checkpoints_in(folder)[-1]
            tensors, about = load_tensors(newest)
            assert about["step"] >= reported
            assert (tensors["model.norm.weight"] == about["step"]).all()
    finally:
        for saver in savers:
            saver.kill()
            saver.wait()
            saver.stdout.close()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0,
                    reason="permissions bind neither Windows folders nor the superuser")
def test_a_folder_that_cannot_be_written_is_an_os_error(copied, tiny_model, tokenizer):
    copied.chmod(0o500)
    try:
        with pytest.raises(OSError):
            save_model(copied, tiny_model, tokenizer)
    finally:
        copied.chmod(0o700)
    assert same_weights(load_model(copied)[0], tiny_model)
