"Laws of fine-tuning: texts in a row are strangers, only answers count, a kill costs nothing."
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_cli import COMMAND, PATIENCE, runner
from test_families import build_theirs, build_tokenizer

import minigpt
from minigpt.checkpoint import checkpoints_in, fingerprint, load_tensors
from minigpt.config import ModelConfig
from minigpt.finetuning import (
    Batch,
    Example,
    Packed,
    answer_example,
    answer_loss,
    answer_nats,
    check_examples,
    freeze,
    hold_out,
    pack,
    text_example,
)
from minigpt.loss import IGNORE
from minigpt.model import GPT
from minigpt.tokenizer import train_tokenizer
from minigpt.tuning import (
    Tuning,
    load_examples,
    old_text,
    prepare_tuning,
    read_examples,
    read_tuning,
    tune,
)

V, T = 50, 24
SMALL = ModelConfig(vocab_size=V, context_length=T, n_layer=2, n_head=2, n_kv_head=1, d_model=16,
                    d_ff=32)
SHAPES = {"rotary": {}, "learned": {"position": "learned", "norm": "layer", "mlp": "gelu"},
          "alibi": {"position": "alibi"}, "window": {"window": 5},
          "latent": {"attention": "latent", "n_kv_head": 2, "d_latent": 8, "d_rope": 4},
          "experts": {"n_expert": 4}}


def build(shape="rotary"):
    torch.manual_seed(0)
    model = GPT(replace(SMALL, **SHAPES[shape]))
    with torch.no_grad():                        # large weights: small ones hide leaks
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def examples_of(*lengths, seed=0):
    "Random texts; in each the second half counts."
    rng = torch.Generator().manual_seed(seed)
    return [Example(torch.randint(V, (n,), generator=rng).tolist(),
                    [i >= max(1, n // 2) for i in range(n)]) for n in lengths]


def write_rows(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def questions(n):
    return [{"prompt": f"Rosa {i}?", "completion": f" Tom {i % 7}."} for i in range(n)]


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# --- packing

@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(30, 60))
def test_packing_loses_no_text_and_never_overfills(lengths, room):
    rows = pack(lengths, room)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= room for row in rows)
    full = sum(lengths)
    assert len(rows) <= max(1, 2 * full / room + 1)          # two half-empty rows would be one


@given(st.lists(st.integers(2, T + 1), min_size=1, max_size=30), st.integers(0, 5))
def test_an_epoch_counts_each_token_once(lengths, seed):
    examples = examples_of(*lengths)
    packed = Packed(examples, 1, T, seed)
    n = len(packed.rows)
    for epoch in (0, 1):
        batches = [packed[i] for i in range(epoch * n, (epoch + 1) * n)]
        counted = torch.cat([b.targets[b.targets != IGNORE] for b in batches])
        assert sorted(counted.tolist()) == sorted(
            i for e in examples for i, learn in zip(e.ids, e.learn) if learn)


@pytest.mark.parametrize("shape", SHAPES)
def test_texts_in_a_row_do_not_see_each_other(shape):
    model, (a, b, c) = build(shape), examples_of(12, 7, 5)         # the longest stands first
    before, after = (Packed([x, b, c], 1, T)[0] for x in (a, *examples_of(12, seed=1)))
    assert len(before.inputs) == 1 and torch.equal(before.segments, after.segments)
    same = before.inputs[0] == after.inputs[0]
    strangers = before.segments[0] != int(before.segments[0][~same][0])
    logits = [model(x.inputs, segments=x.segments)[0, strangers] for x in (before, after)]
    torch.testing.assert_close(*logits, atol=1e-6, rtol=0)
    gradients = []
    for x in (before, after):
        model.zero_grad()
        targets = x.targets.masked_fill(~strangers[None], IGNORE)
        answer_loss(model, Batch(x.inputs, targets, x.segments))[0].backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for p, q in zip(*gradients):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)
    blind = [model(x.inputs)[0, strangers] for x in (before, after)]         # and without segments
    assert (blind[0] - blind[1]).abs().max() > 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_the_packed_loss_is_that_of_the_examples_alone(shape):
    model, examples = build(shape), examples_of(9, 7, 8, 20, 3, 5, 12, 2)
    nats = n = 0
    for example in examples:
        loss, counted = answer_loss(model, Packed([example], 1, T)[0])
        nats, n = nats + loss.item() * counted, n + counted
    packed = Packed(examples, 8, T)
    assert len(packed.rows) < 5
    assert answer_nats(model, packed) == pytest.approx(nats / n, rel=1e-5)
    batch = Packed(examples, len(packed.rows), T)[0]
    loss, counted = answer_loss(model, batch)
    assert counted == n and loss.item() == pytest.approx(nats / n, rel=1e-5)


def test_only_counted_tokens_get_a_gradient():
    batch = Packed(examples_of(9, 7, 8), 1, T)[0]
    logits = torch.zeros(1, T, V, requires_grad=True)
    answer_loss(lambda inputs, segments: logits, batch)[0].backward()
    assert torch.equal(logits.grad.abs().sum(-1) > 0, batch.targets != IGNORE)


def test_a_token_that_joins_prompt_and_answer_belongs_to_the_answer():
    tokenizer = train_tokenizer(["bees bees bees"], 400)
    end, bees = tokenizer.end_of_text, tokenizer.encode("bees")
    assert len(bees) == 1 and tokenizer.encode("be") != bees
    assert answer_example(tokenizer, "be", "es") == ([end, *bees, end], [False, True, True])
    plain = answer_example(tokenizer, "xx", "yy")
    assert tokenizer.decode([i for i, learn in zip(*plain) if not learn][1:]) == "xx"
    assert text_example(tokenizer, "bees") == ([end, *bees, end], [False, True, True])


# --- examples of yours

def test_each_form_is_read_and_forms_may_be_mixed(tokenizer, tmp_path):
    chat = lambda messages: answer_example(tokenizer, *(m["content"] for m in messages))
    path = write_rows(tmp_path / "a.jsonl", [
        {"prompt": "Rosa?", "completion": " Tom.", "id": 7}, {"text": "Rosa and Tom"},
        {"messages": [{"role": "user", "content": "Rosa?"},
                      {"role": "assistant", "content": " Tom."}]}])
    path.write_text("\ufeff" + path.read_text("utf-8") + "\n \n", encoding="utf-8")
    answer, text, talk = read_examples(path, tokenizer, chat)
    assert answer == talk == answer_example(tokenizer, "Rosa?", " Tom.")
    assert text == text_example(tokenizer, "Rosa and Tom")
    (tmp_path / "texts").mkdir()
    for name in ("b.txt", "a.txt"):
        (tmp_path / "texts" / name).write_text(f"Rosa in {name}", encoding="utf-8")
    assert read_examples(tmp_path / "texts", tokenizer) == [
        text_example(tokenizer, f"Rosa in {name}") for name in ("a.txt", "b.txt")]
    assert len(read_examples(tmp_path / "texts" / "b.txt", tokenizer)) == 1


@pytest.mark.parametrize("line, named", [
    ("{", "Expecting"), ("[1]", "no example"), ("7", "no example"), ('{"a": 1}', "no example"),
    ('{"prompt": "x"}', '"completion" is missing'), ('{"completion": "x"}', '"prompt" is missing'),
    ('{"prompt": "x", "completion": ""}', '"completion" is empty'),
    ('{"prompt": "x", "completion": 3}', '"completion" is 3, not text'),
    ('{"prompt": null, "completion": "x"}', '"prompt" is None, not text'),
    ('{"text": ["x"]}', "\"text\" is ['x'], not text"), ('{"text": " "}', '"text" is empty'),
    ('{"text": "x", "completion": "y"}', "completion and text do not go together"),
    ('{"messages": []}', "chat template"), ("[" * 100_000, "line 2")])
def test_a_line_that_is_no_example_is_named(tokenizer, tmp_path, line, named):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "Rosa"}\n' + line, encoding="utf-8")
    with pytest.raises(ValueError) as error:
        read_examples(path, tokenizer)
    said = str(error.value)
    assert said.startswith(f"{path}, line 2: ") and named in said and "\n" not in said
    assert '{"prompt": "...", "completion": "..."}' in said


@pytest.mark.parametrize("messages", [[], "hello", ["hello"], [{"role": "user"}],
                                      [{"role": "user", "content": 7}]], ids=str)
def test_messages_that_are_none_are_named_before_the_template_sees_them(tokenizer, tmp_path,
                                                                        messages):
    path = write_rows(tmp_path / "a.jsonl", [{"messages": messages}])
    with pytest.raises(ValueError, match="line 1: \"messages\" is not a list of"):
        read_examples(path, tokenizer, lambda messages: 1 / 0)


def test_findings_are_plain_sentences(tokenizer):
    rosa, tom = (answer_example(tokenizer, "Rosa?", text) for text in (" Tom.", " Rosa."))
    long, mute = text_example(tokenizer, "Tom baked. " * 9), Example([1, 2, 3], [False] * 3)
    found = check_examples([rosa, rosa, tom, long, mute], [rosa], 16)
    for words in ("copies of other examples: 1 of 5, the first is example 1", "answers: 1;",
                  "held-out prompts that are trained on: 1 of 1", "example 3 with",
                  "context_length=16: 1", "no token counts: 1, the first is example 4"):
        assert any(words in sentence for sentence in found), (words, found)
    assert len(found) == 6 and re.fullmatch(r"tokens that count: \d+ of \d+, \d+%", found[-1])
    texts = [text_example(tokenizer, text) for text in ("Rosa", "Tom")]
    assert check_examples(texts, [text_example(tokenizer, "cake")], 16) == [
        check_examples(texts, [], 16)[-1]]                    # they only share the first marker


def test_prompts_are_held_out_not_examples(tokenizer):
    twice = [answer_example(tokenizer, f"Rosa {i // 2}?", f" Tom {i % 2}.") for i in range(60)]
    training, held_out = hold_out(twice, 0.1)
    assert len(held_out) == 6 and len(training) == 54
    assert not any("held-out" in line for line in check_examples(training, held_out, 32))
    assert hold_out(twice, 0.1) == (training, held_out) != hold_out(twice, 0.1, seed=1)
    assert hold_out(twice[:9], 0.5)[1] == hold_out(twice, 0.0)[1] == []
    one_prompt = [answer_example(tokenizer, "Rosa?", f" Tom {i}.") for i in range(40)]
    assert len(hold_out(one_prompt, 0.1)[1]) == 4


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75])
def test_the_share_of_old_text_is_that_of_the_tokens(share, tmp_path):
    data = write_rows(tmp_path / "a.jsonl", questions(400))
    tuning = Tuning(str(data), replay="tinytown", replay_share=share)
    for folder in ("one", "two"):
        prepare_tuning(tmp_path / folder, tuning)
    training, held_out, _ = load_examples(tmp_path / "one" / "examples.json")
    whole = [not any(e.learn[:1]) and all(e.learn[1:]) for e in training]
    old = sum(len(e.ids) for e, is_old in zip(training, whole) if is_old)
    assert old / sum(len(e.ids) for e in training) == pytest.approx(share, abs=0.01)
    assert not any(all(e.learn[1:]) for e in held_out)
    assert (tmp_path / "one" / "examples.json").read_bytes() == (
        tmp_path / "two" / "examples.json").read_bytes()
    prepare_tuning(tmp_path / "three", replace(tuning, seed=1))
    assert load_examples(tmp_path / "three" / "examples.json")[0][-1] != training[-1]


def test_old_text_that_does_not_fit_is_refused(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("Rosa and Tom baked a cake. " * 20, encoding="utf-8")
    with pytest.raises(ValueError, match="no document of at most 20 tokens"):
        old_text(str(tmp_path / "a.txt"), tokenizer, 1000, 20)


# --- freezing

@pytest.mark.parametrize("keep, expected", [
    ("last 1", {"blocks.1."}), ("last 9", {"blocks.0.", "blocks.1."}), ("^norm", {"norm."}),
    ("last 1, ^norm", {"blocks.1.", "norm."}), (lambda name: name == "norm.weight", {"norm."})])
def test_what_may_learn_is_named(keep, expected):
    model = build()
    free = freeze(model, keep)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names and {re.match(r"(blocks\.\d+|\w+)\.", name)[0] for name in names} == expected
    assert len(free) == len(names) and all(p.requires_grad for p in free)


@pytest.mark.parametrize("keep, named", [("head", "'head'"), ("", "''"), ("last 0", "last 0"),
                                         ("(", "no pattern")])
def test_a_name_that_no_parameter_has_is_refused(keep, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        freeze(build(), keep)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("keep", ["last 1", "norm", "^embedding"])
def test_what_is_frozen_stays_to_the_bit_also_over_a_resume(saved, tmp_path, optimizer, keep):
    data = write_rows(tmp_path / "a.jsonl", questions(30))
    tuning = Tuning(str(data), str(saved), steps=6, batch_size=2, lr=0.01, weight_decay=0.5,
                    optimizer=optimizer, freeze_all_but=keep)
    for name in ("straight", "stopped"):
        prepare_tuning(tmp_path / name, tuning)
    list(tune(tmp_path / "straight"))
    list(zip(range(3), tune(tmp_path / "stopped")))           # closed after step 3
    list(tune(tmp_path / "stopped"))
    (before, _), (after, _), (resumed, _) = (
        minigpt.load(f) for f in (saved, tmp_path / "straight", tmp_path / "stopped"))
    assert fingerprint(weights(after)) == fingerprint(weights(resumed))
    freeze(after, keep)
    old = weights(before)
    for name, p in after.named_parameters():
        assert torch.equal(p, old[name]) != p.requires_grad, name


# --- runs

def losses(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    return [(row["step"], row.get("loss"), row.get("validation")) for row in rows]


def same_end(a, b):
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (a, b))
    assert fingerprint(ours) == fingerprint(theirs) and losses(a) == losses(b)


def test_the_log_begins_with_what_was_found_and_has_each_step_once(saved, tmp_path):
    data = write_rows(tmp_path / "a.jsonl", questions(30))
    tuning, notes = prepare_tuning(tmp_path / "run", Tuning(str(data), str(saved), epochs=4))
    reports = list(tune(tmp_path / "run", evaluate_every=5))
    rows = losses(tmp_path / "run")
    assert [row[0] for row in rows] == list(range(tuning.steps + 1))
    assert rows[0][2] > rows[-1][2] == reports[-1].validation
    first = json.loads((tmp_path / "run" / "log.jsonl").read_text("utf-8").splitlines()[0])
    assert first["notes"] == notes and read_tuning(tmp_path / "run") == tuning
    assert tuning.steps == -(-4 * len(pack([len(e.ids) for e in load_examples(
        tmp_path / "run" / "examples.json")[0]], tuning.context_length + 1)) // tuning.batch_size)


def test_of_few_examples_none_is_held_out_and_the_log_says_so(saved, tmp_path):
    data = write_rows(tmp_path / "a.jsonl", questions(9))
    prepare_tuning(tmp_path / "run", Tuning(str(data), str(saved), steps=2))
    assert [report.validation for report in tune(tmp_path / "run")] == [None, None]
    assert "no examples are held out" in (tmp_path / "run" / "log.jsonl").read_text("utf-8")
    assert len(load_examples(tmp_path / "run" / "examples.json")[0]) == 9


def test_a_base_that_has_changed_is_refused(copied, saved, tmp_path):
    data = write_rows(tmp_path / "a.jsonl", questions(9))
    prepare_tuning(tmp_path / "run", Tuning(str(data), str(copied), steps=2))
    model, tokenizer = minigpt.load(copied)
    with torch.no_grad():
        model.norm.weight += 1
    minigpt.save_model(copied, model, tokenizer)
    with pytest.raises(ValueError, match="has other weights than when this run began"):
        next(tune(tmp_path / "run"))


def test_a_run_under_way_opens_and_does_not_need_your_data_again(saved, tmp_path):
    data = write_rows(tmp_path / "a.jsonl", questions(20))
    prepare_tuning(tmp_path / "run", Tuning(str(data), str(saved), steps=9))
    list(zip(range(4), tune(tmp_path / "run")))
    data.unlink()
    under_way = weights(minigpt.load(tmp_path / "run")[0])
    list(tune(tmp_path / "run"))
    assert fingerprint(under_way) != fingerprint(weights(minigpt.load(tmp_path / "run")[0]))


@pytest.mark.parametrize("changes, named", [
    ({"data": ""}, "data is missing"), ({"steps": 0}, "steps=0"), ({"epochs": 0}, "epochs=0"),
    ({"batch_size": 0}, "batch_size=0"), ({"lr": float("nan")}, "lr=nan"),
    ({"replay_share": 1.0}, "replay_share=1.0"), ({"held_out": -0.1}, "held_out=-0.1"),
    ({"context_length": 2.5}, "context_length=2.5"), ({"optimizer": "sgd"}, "optimizer='sgd'")])
def test_a_recipe_refuses_what_cannot_be(changes, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        Tuning(**{"data": "a.jsonl"} | changes)


# --- other people's models

@pytest.mark.parametrize("family", ["GPT-2", "LLaMA 3", "Qwen 3", "Mixtral"])
def test_a_hugging_face_checkpoint_comes_back_as_one(family, tmp_path):
    theirs, tokenizer = build_theirs(family), build_tokenizer(family)
    for part in (theirs, tokenizer):
        part.save_pretrained(tmp_path / "base")
    data = write_rows(tmp_path / "a.jsonl", questions(30))
    folder = tmp_path / "run"
    prepare_tuning(folder, Tuning(str(data), str(tmp_path / "base"), steps=6, lr=0.01))
    list(zip(range(3), tune(folder)))
    first, *_, last = tune(folder)
    assert first.step.n == 4 and last.validation < losses(folder)[0][2]
    ours, our_tokenizer = minigpt.load(folder)
    again = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    opened = transformers.AutoTokenizer.from_pretrained(folder)
    ids = torch.randint(3, 400, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), again(ids).logits, atol=1e-4, rtol=1e-4)
        assert (ours(ids) - theirs(ids).logits).abs().max() > 0.01
    for text in ("The cat of Rosa sleeps.", " two  spaces"):
        assert opened.encode(text) == tokenizer.encode(text)
        assert our_tokenizer.encode(text) == tokenizer.encode(text, add_special_tokens=False)
    assert our_tokenizer.stop_ids == {2}
    before = (folder / "model.safetensors").read_bytes()
    (folder / "config.json").unlink()                     # killed just before the end
    (folder / "model.safetensors").write_bytes(b"half")
    for _ in range(2):
        list(tune(folder))
        assert (folder / "model.safetensors").read_bytes() == before


# --- the command

PROGRESS = re.compile(r"Preparing |Note: |\d+ steps of |step \d+/|Done\. ")     # what is no error


@pytest.fixture
def run(capsys):
    return runner(capsys, PROGRESS)


@pytest.fixture(scope="module")
def places(saved, tmp_path_factory):
    "Paths to everything that a user could point at by mistake."
    root = tmp_path_factory.mktemp("places")
    long = {"prompt": "Rosa?", "completion": " and Tom baked a cake." * 20}
    for name, rows in {"good": questions(9), "long": [*questions(2), long], "onlylong": [long],
                       "talk": [{"messages": [{"role": "user", "content": "Rosa?"}]}],
                       "slip": [{"prompt": "Rosa?", "answer": "Tom."}], "void": []}.items():
        write_rows(root / f"{name}.jsonl", rows)
    (root / "latin.jsonl").write_bytes('{"text": "café"}'.encode("latin-1"))
    for folder in ("empty", "full", "cut"):
        (root / folder).mkdir()
    (root / "full" / "mine.txt").write_text("Mine.", encoding="utf-8")
    (root / "cut" / "tuning.json").write_text('{"data"', encoding="utf-8")
    prepare_tuning(root / "started", Tuning(str(root / "good.jsonl"), str(saved), steps=2))
    shutil.copytree(root / "started", root / "noexamples")
    (root / "noexamples" / "examples.json").write_text("{", encoding="utf-8")
    return root


BAD = [[part.strip() for part in line.rpartition("->")[::2]] for line in """
--out {new} -> data is missing
--data {nowhere} --out {new} -> {nowhere}
--data {empty} --out {new} -> {empty}
--data {void.jsonl} --out {new} -> no example
--data {latin.jsonl} --out {new} -> UTF-8
--data {slip.jsonl} --out {new} -> line 1: "completion" is missing
--data {talk.jsonl} --out {new} -> chat template
--data {long.jsonl} --out {new} -> line 3 has
--data {onlylong.jsonl} --skip-long --out {new} -> no example is left
--data {good.jsonl} --out {full} -> {full}
--data {good.jsonl} --out {good.jsonl} -> {good.jsonl}
--data {good.jsonl} --out {new} --lr 0 -> lr=0
--data {good.jsonl} --out {new} --lr nan -> lr=nan
--data {good.jsonl} --out {new} --steps 0 -> steps=0
--data {good.jsonl} --out {new} --epochs 0 -> epochs=0
--data {good.jsonl} --out {new} --epochs 1 --steps 1 -> --epochs
--data {good.jsonl} --out {new} --batch-size 0 -> batch_size=0
--data {good.jsonl} --out {new} --context-length 33 -> context_length=33
--data {good.jsonl} --out {new} --replay {nowhere} -> {nowhere}
--data {good.jsonl} --out {new} --replay tinytown --replay-share 1 -> replay_share=1
--data {good.jsonl} --out {new} --replay tinytown --replay-share nan -> replay_share=nan
--data {good.jsonl} --out {new} --freeze-all-but head -> head
--data {good.jsonl} --out {new} --freeze x -> --freeze
--resume {nowhere} -> {nowhere}
--resume {empty} -> tuning.json
--resume {cut} -> {cut}
--resume {noexamples} -> {noexamples}
--resume {started} --lr 0.1 -> --lr
--resume {started} --data x --skip-long -> --data, --skip-long
--resume {started} --checkpoint {started} -> --checkpoint
""".strip().splitlines()]


@pytest.mark.parametrize("line, named", BAD, ids=[line for line, _ in BAD])
def test_bad_input_gets_one_line_that_names_it(run, places, saved, line, named):
    def filled(word):
        path = word.strip("{}")
        return word if path == word else str(places / path)

    base = [] if "--resume" in line else ["--checkpoint", saved]
    code, out, errors = run("finetune", *base, *map(filled, line.split()))
    assert code == 2 and len(errors) == 1 and out == "", (out, errors)
    assert filled(named) in errors[0] and "Traceback" not in errors[0]
    assert not (places / "new").exists()                 # a refused run leaves its folder free


def test_long_examples_are_named_or_left_out(run, places, saved, tmp_path):
    code, _, (error,) = run("finetune", "--data", places / "long.jsonl", "--checkpoint", saved,
                            "--out", tmp_path / "run")
    assert code == 2 and re.search(r"long.jsonl, line 3 has \d+ tokens, and 33 fit; .*--skip-long",
                                   error)
    code, _, errors = run("finetune", "--data", places / "long.jsonl", "--checkpoint", saved,
                          "--out", tmp_path / "run", "--skip-long", "--steps", 2)
    assert code == 0 and errors == []
    assert "examples of more than 33 tokens, left out: 1, the first is " in run.err


def test_it_learns_and_says_how_to_try_it(run, saved, tmp_path):
    data = write_rows(tmp_path / "a.jsonl", questions(30))
    out = tmp_path / "a run"
    code, said, errors = run("finetune", "--data", data, "--checkpoint", saved, "--out", out,
                             "--epochs", 8, "--lr", 0.01, "--seed", 3)
    assert code == 0 and errors == [] and said == ""
    hint = shlex.split(run.err.splitlines()[-1].partition("Try it: ")[2])
    assert hint[:4] == ["minigpt", "generate", "--checkpoint", str(out)]
    assert run(*hint[1:])[0] == 0
    assert losses(out)[-1][2] < losses(out)[0][2]
    tuning = read_tuning(out)
    assert (tuning.seed, tuning.lr, tuning.epochs) == (3, 0.01, 8.0)
    before, rows = load_tensors(out / "model.safetensors"), losses(out)
    assert run("finetune", "--resume", out)[0] == 0           # it is finished: nothing changes
    assert str(load_tensors(out / "model.safetensors")) == str(before) and losses(out) == rows


@pytest.fixture
def twins(saved, tmp_path):
    "A prepared run, twice."
    data = write_rows(tmp_path / "a.jsonl", questions(40))
    tuning = Tuning(str(data), str(saved), steps=400, batch_size=2)
    for name in ("straight", "stopped"):
        prepare_tuning(tmp_path / name, tuning)
    return tmp_path / "straight", tmp_path / "stopped"


def wait_for(condition, process):
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def environment():
    return os.environ | {"PYTHONPATH": str(Path(minigpt.__file__).parents[1])}


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
def test_a_killed_run_ends_with_the_same_bits(run, twins):
    straight, stopped = twins
    code = "import sys; from minigpt.tuning import tune\nlist(tune(sys.argv[1], save_every=7))"
    process = subprocess.Popen([sys.executable, "-c", code, str(stopped)], env=environment())
    wait_for(lambda: len(checkpoints_in(stopped)) > 1, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not (stopped / "model.safetensors").exists()
    for folder in twins:
        assert run("finetune", "--resume", folder)[0] == 0
    same_end(straight, stopped)


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process alone")
def test_ctrl_c_saves_and_says_how_to_go_on(run, twins):
    straight, stopped = twins
    process = subprocess.Popen([*COMMAND, "finetune", "--resume", str(stopped)], text=True,
                               stderr=subprocess.PIPE, env=environment())
    wait_for(lambda: (stopped / "log.jsonl").exists() and len(losses(stopped)) > 3, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert shlex.split(err.splitlines()[-1].partition("go on with: ")[2]) == [
        "minigpt", "finetune", "--resume", str(stopped)]
    for folder in twins:
        assert run("finetune", "--resume", folder)[0] == 0
    same_end(straight, stopped)
