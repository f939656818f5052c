"Laws of the front door: three names that do what they say, and say at once what cannot be."
import inspect
import subprocess
import sys

import pytest
import torch

import minigpt
from minigpt import inference
from minigpt.beam_search import beam_search
from minigpt.checkpoint import load_model, save_model
from minigpt.inference import complete, generate_ids
from minigpt.sampling import min_p, repetition_penalty, temperature, top_k, top_p
from minigpt.speculative import speculative_generate
from minigpt.weights import to_huggingface

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def shipped():
    return minigpt.load()


# Opening ------------------------------------------------------------------------------------------

def test_the_shipped_model_opens_without_a_name(shipped):
    model, tokenizer = shipped
    same, _ = load_model()
    assert model.cfg == same.cfg and model.device.type == "cpu" and model.dtype == torch.float32
    assert model.num_parameters() == 1_820_736 and not model.training
    assert repr(tokenizer) == "Tokenizer(2,560 tokens, <|endoftext|> among them)"


def test_a_folder_a_file_and_a_folder_of_theirs_open(saved, tiny_model, tokenizer, tmp_path):
    to_huggingface(tmp_path / "theirs", tiny_model, tokenizer)
    ids = torch.tensor([[1, 2, 3]])
    for name in (saved, str(saved), saved / "model.safetensors", tmp_path / "theirs"):
        model, words = minigpt.load(name)
        assert words.encode("Rosa") == tokenizer.encode("Rosa")
        with torch.no_grad():
            torch.testing.assert_close(model(ids), tiny_model(ids), atol=1e-5, rtol=1e-5)
    assert minigpt.GPT.from_pretrained(saved).cfg == tiny_model.cfg


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_precision_and_place_are_chosen_when_it_opens(saved, dtype):
    model, tokenizer = minigpt.load(saved, dtype)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert isinstance(minigpt.generate(model, tokenizer, "Rosa", max_tokens=5), str)
    assert minigpt.load(saved, device="meta")[0].device.type == "meta"


@pytest.mark.parametrize("name, message", [
    ("no such model!", "no such model!"), ("./nowhere/at/all", "nowhere")])
def test_what_cannot_be_opened_is_named(name, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=message):
        minigpt.load(name)
    with pytest.raises(ValueError, match="dtype='int8'"):
        minigpt.load(dtype="int8")


# Writing ------------------------------------------------------------------------------------------

KNOBS = dict(temperature=0.8, top_k=50, top_p=0.95, min_p=0.02, max_tokens=25, seed=3)


def test_the_knobs_are_the_rules_of_sampling(shipped):
    rules = [repetition_penalty(1.2), top_k(50), top_p(0.95), min_p(0.02), temperature(0.8)]
    text = "".join(complete(*shipped, PROMPT, 25, rules, 3))
    more = dict(KNOBS, rules=[repetition_penalty(1.2)])
    assert minigpt.generate(*shipped, PROMPT, **more) == text
    assert "".join(minigpt.stream(*shipped, PROMPT, **more)) == text
    assert shipped[0].generate(shipped[1], PROMPT, **more) == text
    assert minigpt.generate(*shipped, PROMPT, **dict(more, seed=4)) != text


def test_nothing_asked_changes_nothing(shipped):
    assert minigpt.generate(*shipped, PROMPT, max_tokens=20) == "".join(complete(*shipped, PROMPT,
                                                                                 20))


def test_a_stream_comes_in_pieces_and_stops_where_it_is_told(shipped):
    question = "Q: Where does Abel live?\nA:"
    pieces = list(minigpt.stream(*shipped, question, temperature=0, stop=["\n"]))
    assert len(pieces) > 3 and "".join(pieces) == " Abel lives on Bridge Road."


def test_both_doors_have_the_same_knobs():
    doors = [inspect.signature(f).parameters for f in (minigpt.generate, minigpt.stream)]
    assert [*doors[0].values()] == [*doors[1].values()]


# Refusing -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("wrong, message", [
    (dict(temperature=-1), "temperature=-1"), (dict(top_k=-1), "top_k=-1"),
    (dict(top_p=0), "top_p=0"), (dict(min_p=2), "min_p=2"), (dict(max_tokens=-1), "max_tokens=-1"),
    (dict(overflow="wrap"), "choose from refuse, stop, slide"), (dict(stop="x"), "one string"),
    (dict(rules=temperature(1.0)), "takes a list"), (dict(max_new_tokens=5), "ours is max_tokens"),
    (dict(do_sample=True), "temperature=0"), (dict(temprature=1), "temprature"),
    (dict(prompt="a b " * 300), "more than context_length=256")])
@pytest.mark.parametrize("door", ["generate", "stream"])
def test_a_knob_that_cannot_be_is_refused_before_anything_is_written(shipped, door, wrong, message):
    "A stream, too: not when its first piece is asked for."
    with pytest.raises((ValueError, TypeError), match=message):
        getattr(minigpt, door)(*shipped, **{"prompt": PROMPT, **wrong})


@pytest.mark.parametrize("ask, message", [
    (lambda m, t: generate_ids(m, []), "no tokens"),
    (lambda m, t: generate_ids(m, [1], rng=0), "manual_seed"),
    (lambda m, t: generate_ids(m, [1], 5, temperature(0.7)), "takes a list"),
    (lambda m, t: generate_ids(m, torch.tensor([[1, 2]])), "whole numbers"),
    (lambda m, t: generate_ids(m, [1.5]), "whole numbers"),
    (lambda m, t: generate_ids(m, [1], overflow="wrap"), "wrap"),
    (lambda m, t: complete(m, t, overflow="wrap"), "wrap"),
    (lambda m, t: complete(m, t, stop="x"), "one string"),
    (lambda m, t: complete(m, t, temperature=0.7), r"temperature\(\.\.\.\)"),
    (lambda m, t: inference.stream_text(t, [], stop="x"), "one string"),
    (lambda m, t: inference.complete_batch(m, t, ["a"], 5, temperature(0)), "takes a list"),
    (lambda m, t: beam_search(m, [], 4), "0 prompt tokens"),
    (lambda m, t: speculative_generate(m, m, []), "0 prompt tokens"),
    (lambda m, t: minigpt.generate(m, "Once upon"), "the tokenizer comes second"),
    (lambda m, t: minigpt.generate(m), "tokenizer"),
    (lambda m, t: m.generate("Once upon"), "the tokenizer comes first"),
    (lambda m, t: m.generate(torch.tensor([[1, 2]]), max_new_tokens=5), "generate_ids")])
def test_a_request_that_cannot_be_is_refused_when_it_is_made(shipped, ask, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ask(*shipped)


@pytest.mark.parametrize("name, ours", [
    ("config", "cfg"), ("block_size", "cfg.context_length"), ("tokenizer", "load"),
    ("save_pretrained", "save_model")])
def test_a_name_of_another_library_is_answered_with_ours(shipped, name, ours):
    with pytest.raises(AttributeError, match=ours):
        getattr(shipped[0], name)
    assert not hasattr(shipped[0], "nothing") and not hasattr(shipped[0], name)


def test_the_package_too_knows_other_libraries_names():
    with pytest.raises(AttributeError, match=r"ours is minigpt\.load"):
        minigpt.from_pretrained()
    assert all(getattr(minigpt, name) for name in minigpt.__all__)
    assert set(minigpt.__all__) <= set(dir(minigpt))


# What was before ----------------------------------------------------------------------------------

def test_ids_in_place_of_a_tokenizer_still_work(shipped):
    model, rules = shipped[0], [temperature(0)]
    expected = list(generate_ids(model, [1, 2, 3], 6, rules))
    assert len(expected) == 6 and isinstance(expected[0], int)
    for old in (inference.generate(model, [1, 2, 3], 6, rules),
                inference.generate(model, ids=[1, 2, 3], max_tokens=6, rules=rules),
                minigpt.generate(model, (1, 2, 3), max_tokens=6, rules=rules),
                inference.generate(model, torch.tensor([1, 2, 3]), 6, rules)):
        assert list(old) == expected
    with pytest.warns(DeprecationWarning, match="called generate_ids"):
        minigpt.generate(model, [1])


def test_the_package_runs_as_a_command(tmp_path):
    done = subprocess.run([sys.executable, "-m", "minigpt", "tokenize", "a bee"], cwd=tmp_path,
                          capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0 and "5 bytes" in done.stdout
    wrong = subprocess.run([sys.executable, "-m", "minigpt", "tokenise", "a"], cwd=tmp_path,
                           capture_output=True, text=True, encoding="utf-8")
    assert wrong.returncode == 2 and wrong.stderr.startswith("minigpt: ")


def test_a_model_is_saved_without_its_door(shipped, tmp_path):
    "What is asked for later adds nothing to the weights."
    save_model(tmp_path, *shipped)
    assert minigpt.load(tmp_path)[0].num_parameters() == shipped[0].num_parameters()
