"""Laws of the adapter for EleutherAI's lm-evaluation-harness: its numbers are ours.

What the harness itself is needed for is skipped where it is not installed.
"""
import json
import random
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from minigpt import load
from minigpt.evaluation import (
    HarnessModel,
    choice_ids,
    choice_nats,
    harness_model,
    last_nats,
    new_sums,
    task_rules,
    token_nats,
    windows,
)
from minigpt.inference import complete_batch
from minigpt.model import GPT
from minigpt.sampling import temperature, top_k
from minigpt.tinytown import CANDIDATES, DEALT, Tinytown, with_article
from minigpt.weights import to_huggingface

CLOSE = 1e-4        # nats
PAIRS = [("Rosa has", " a goat"), ("Rosa has", ""), ("", "Rosa has"), ("Rosa ha", "s a goat"),
         ("Rosa has a go", "at"), ("7", "3 + 9"), ("A straw", "berry 🍓"), ("", ""),
         ("Q: Where does Rosa live?\nA:", " Rosa lives on Mill Lane."), ("Rosa has ", "a goat")]


@pytest.fixture(scope="module")
def shipped():
    return load()


@pytest.fixture(scope="module")
def short(shipped):
    "The shipped model with a context of 24 tokens."
    model, tokenizer = shipped
    cut = GPT(replace(model.cfg, context_length=24)).eval()
    cut.load_state_dict(model.state_dict())
    return cut, tokenizer


class NoMarker:
    "A tokenizer that puts nothing before a text, as GPT-2's does; only an empty one gets a marker."

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def prompt_ids(self, text):
        return self.tokenizer.encode(text) or [self.tokenizer.end_of_text]


def requests(*args):
    "As the harness sends them, as far as a model looks at them."
    return [SimpleNamespace(args=each) for each in args]


def by_hand(model, ids, n):
    "The last n of the ids: their log-probability, and whether each is the likeliest."
    with torch.no_grad():
        logs = model(torch.tensor([ids[:-1]]))[0].double().log_softmax(dim=-1)
    rows = list(range(len(ids) - 1 - n, len(ids) - 1))
    return (sum(logs[row, ids[row + 1]].item() for row in rows),
            all(logs[row].argmax() == ids[row + 1] for row in rows))


# --- how likely

def test_batches_are_the_choices_one_by_one(shipped):
    "Also where a token joins the context and its continuation, and where either is empty."
    model, tokenizer = shipped
    for batch_size in (1, 3, 16):
        found = HarnessModel(model, tokenizer, batch_size).loglikelihood(requests(*PAIRS))
        for (context, text), (log, likeliest) in zip(PAIRS, found):
            ids, n = choice_ids(tokenizer, context, text)
            again, best = by_hand(model, ids, n) if n else (0.0, True)
            assert log == pytest.approx(again, abs=CLOSE) and likeliest is best
            if n:
                nats, = choice_nats(model, tokenizer, context, [text])
                assert log == pytest.approx(-nats, abs=CLOSE)
            assert (log == 0) == (text == "")


def test_what_the_model_would_write_is_the_likeliest_and_one_other_token_is_not(shipped):
    model, tokenizer = shipped
    prompts = [q.prompt for q in Tinytown(0).newcomers(12, "told", seed=1)]
    written = complete_batch(model, tokenizer, prompts, 8, [temperature(0)])
    rows, counts = [], []
    for prompt, completion in zip(prompts, written):
        whole = [*tokenizer.prompt_ids(prompt), *completion.ids]
        for changed in (whole, [*whole[:-1], (whole[-1] + 1) % tokenizer.vocab_size]):
            rows.append(changed)
            counts.append(len(completion.ids))
    flags = [best.tolist() for _, best in last_nats(model, rows, counts)]
    assert all(all(flag) for flag in flags[::2])
    assert all(all(flag[:-1]) and not flag[-1] for flag in flags[1::2])
    pairs = [(prompt, completion.text) for prompt, completion in zip(prompts, written)]
    found = HarnessModel(model, tokenizer).loglikelihood(requests(*pairs))
    again = [by_hand(model, *choice_ids(tokenizer, *pair))[1] for pair in pairs]
    assert [likeliest for _, likeliest in found] == again and sum(again) >= 6


def test_a_row_without_a_token_is_never_the_likeliest(shipped):
    "Some models have more rows than their tokenizer has tokens."
    model, tokenizer = shipped
    ids, n = choice_ids(tokenizer, "Rosa has", " a goat")
    rows = model.cfg.vocab_size
    [(nats, best)] = last_nats(model, [ids], [n], rows)
    [(again, none)] = last_nats(model, [ids], [n], 1)           # only the first id has a token
    assert torch.equal(nats, again) and not none.any() and len(best) == n


def test_a_long_context_is_cut_at_its_start(short):
    model, tokenizer = short
    context, text = "Rosa has a goat. " * 20, "Tom lives on Mill Lane."
    [(log, _)] = HarnessModel(*short).loglikelihood(requests((context, text)))
    ids, n = choice_ids(tokenizer, context, text)
    assert len(ids) > 100 and 0 < n < 24
    assert log == pytest.approx(-token_nats(model, ids[-25:])[-n:].sum().item(), abs=CLOSE)


@pytest.mark.parametrize("n", [0, 1, 5, 23, 24, 25, 48, 49, 60])
def test_windows_count_each_token_once_with_all_that_fits_before_it(n):
    ids = list(range(61))
    rows = list(windows(ids, n, 24))
    assert [i for row, count in rows for i in row[-count:]] == ids[61 - n:]
    assert all(count < len(row) <= 25 for row, count in rows)
    assert all(len(row) == 25 or row[0] == 0 for row, _ in rows)


def test_a_short_document_is_the_sum_of_its_tokens(shipped):
    model, tokenizer = shipped
    texts = [d.text for _, d in zip(range(6), Tinytown(0).corpus(10**6, seed=5))]
    texts = [text for text in texts if len(tokenizer.prompt_ids(text)) <= 257] + [""]
    found = HarnessModel(model, tokenizer).loglikelihood_rolling(requests(*((t,) for t in texts)))
    again = [-token_nats(model, ids).sum().item() if len(ids) > 1 else 0.0
             for ids in map(tokenizer.prompt_ids, texts)]
    assert found == pytest.approx(again, abs=1e-3, rel=1e-6) and len(texts) > 3


def test_without_a_marker_the_first_token_of_an_empty_context_counts(shipped):
    "And so does one that joins the whole context with what follows."
    model, tokenizer = shipped[0], NoMarker(shipped[1])
    end = tokenizer.end_of_text
    assert choice_ids(tokenizer, "", "Rosa has") == ([end, *tokenizer.encode("Rosa has")],
                                                     len(tokenizer.encode("Rosa has")))
    word = next(w for w in map(tokenizer.decode, ([i] for i in range(300, 900)))
                if w.isalpha() and tokenizer.encode(w[:2])[0] != tokenizer.encode(w)[0])
    ids, n = choice_ids(tokenizer, word[:2], word[2:])
    assert ids[0] == end and n == len(ids) - 1
    assert choice_ids(tokenizer, "Rosa", " has")[0] == tokenizer.encode("Rosa has")
    [log] = HarnessModel(model, tokenizer).loglikelihood_rolling(requests(("Rosa has",)))
    whole = [end, *tokenizer.encode("Rosa has")]
    assert log == pytest.approx(-token_nats(model, whole).sum().item(), abs=CLOSE)


# --- new texts

def test_texts_end_before_their_stop_string_and_come_in_order(shipped):
    model, tokenizer = shipped
    prompts = [q.prompt for q in Tinytown(0).newcomers(9, "told", seed=2)]
    wishes = [{"until": ["\n"], "max_gen_toks": 30}, {"until": ".", "max_new_tokens": 5},
              {"until": ["", "lives"], "do_sample": False, "temperature": 1.0, "max_tokens": 12}]
    asked = [(prompt, wishes[i % 3]) for i, prompt in enumerate(prompts)]
    found = HarnessModel(model, tokenizer, 2).generate_until(requests(*asked))
    for (prompt, _), text, (n, stop) in zip(asked, found,
                                            [(30, ["\n"]), (5, ["."]), (12, ["lives"])] * 3):
        [alone] = complete_batch(model, tokenizer, [prompt], n, [temperature(0)], stop=stop)
        assert text == alone.text and stop[0] not in text


def test_draws_follow_the_seed_and_the_place(shipped):
    wishes = {"until": ["\n"], "do_sample": True, "temperature": 1.5, "max_gen_toks": 10,
              "top_k": 50}
    found = HarnessModel(*shipped, seed=7).generate_until(
        requests(*[("Once upon a time", wishes)] * 3))
    again = complete_batch(*shipped, ["Once upon a time"] * 3, 10, [top_k(50), temperature(1.5)],
                           range(7, 10), ["\n"])
    assert found == [completion.text for completion in again] and len(set(found)) > 1


def test_of_a_long_prompt_the_end_is_read(short):
    prompt = "Tom bakes bread. " * 20 + "Rosa has"
    [text] = HarnessModel(*short).generate_until(requests((prompt, {"max_gen_toks": 3})))
    [alone] = complete_batch(*short, [prompt], 3, [temperature(0)], overflow="slide")
    assert text == alone.text


@pytest.mark.parametrize("wishes, greedy, n, stop", [
    ({}, True, 256, []), ({"do_sample": True}, False, 256, []),
    ({"temperature": 0.5, "until": "\n\n"}, False, 256, ["\n\n"]),
    ({"do_sample": True, "temperature": 0.0}, True, 256, []),
    ({"do_sample": False, "temperature": 1.0, "num_beams": 1}, True, 256, []),
    ({"max_gen_toks": None, "max_new_tokens": "4", "top_p": 0.9}, True, 4, [])])
def test_a_task_s_wishes_are_read(wishes, greedy, n, stop):
    length, rules, until = task_rules(wishes)
    assert (length, until, rules[-1].greedy) == (n, stop, greedy)


@pytest.mark.parametrize("wishes, said", [
    ({"num_beams": 4}, "asks for num_beams; a text takes until"),
    ({"repetition_penalty": 1.1, "max_gen_toks": 5}, "asks for repetition_penalty;"),
    ({"top_p": 0.0}, "top_p=0.0 must lie above 0"), ({"temperature": -1}, "temperature=-1"),
    ({"max_gen_toks": -1}, "max_tokens=-1 must not be negative")])
def test_wishes_that_cannot_be_are_refused(shipped, wishes, said):
    with pytest.raises(ValueError, match=said):
        HarnessModel(*shipped).generate_until(requests(("Rosa", wishes)))


def test_no_request_no_answer_and_no_empty_batches(shipped):
    model = HarnessModel(*shipped)
    assert model.loglikelihood([]) == model.loglikelihood_rolling([]) == []
    assert model.generate_until([]) == []
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        HarnessModel(*shipped, batch_size=0)


def test_a_missing_harness_is_named(shipped, monkeypatch):
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"pip install minigpt\[harness\]"):
        harness_model(*shipped)


# --- the harness itself

CHOICE = """
task: town_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{path}"}}, cache_dir: "{cache}"}}
test_split: test
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: choices
doc_to_target: label
num_fewshot: 0
metric_list:
  - {{metric: acc}}
  - {{metric: acc_norm}}
"""
WRITE = """
task: town_sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{path}"}}, cache_dir: "{cache}"}}
test_split: test
output_type: generate_until
doc_to_text: prompt
doc_to_target: answer
generation_kwargs: {{until: ["\\n", "."], max_gen_toks: 6}}
num_fewshot: 0
metric_list:
  - {{metric: exact_match}}
"""
ROLL = """
task: town_surprise
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{path}"}}, cache_dir: "{cache}"}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list:
  - {{metric: bits_per_byte}}
"""


def harness():
    reason = "the harness is not installed: pip install minigpt[harness]"
    return pytest.importorskip("lm_eval", reason=reason)


def run(opened, folder, task, template, rows, **more):
    "Let the harness run a task of local files, without a network."
    lm_eval = harness()
    from lm_eval.tasks import TaskManager
    (folder / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{task}.yaml").write_text(template.format(
        path=(folder / "rows.json").as_posix(), cache=(folder / "cache").as_posix()))
    found = lm_eval.simple_evaluate(
        harness_model(*opened, **more), tasks=[task], bootstrap_iters=0, log_samples=True,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False))
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    return found["results"][task], [sample["resps"] for sample in samples]


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")


def choices_of(n):
    "Half about residents, beside their friend's fact; half about a note, beside what others do."
    town, rng, rows = Tinytown(0), random.Random(3), []
    friend = {person.name: person.friend for person in town.people}
    known = [q for q in town.questions(held_out=True) if q.relation in DEALT]
    told = [q for q in town.newcomers(2 * n, "told", seed=3) if q.relation in DEALT]
    for q in [*rng.sample(known, n // 2), *told[:n - n // 2]]:
        true = re.sub("^an? ", "", q.answer)
        near = re.sub("^an? ", "", town.truth(friend.get(q.subject, "Abel"), q.relation))
        noted = [c for c in CANDIDATES[q.relation] if re.search(rf"\b{c}\b", q.note)]
        others = rng.sample(CANDIDATES[q.relation], 5)
        wrong = [c for c in dict.fromkeys([*noted, near, *others]) if c != true][:3]
        choices = rng.sample([true, *wrong], 4)
        article = q.answer != true
        rows.append({"prompt": q.prompt, "label": choices.index(true),
                     "choices": [with_article(c) if article else c for c in choices]})
    return rows


def test_choices_of_the_harness_are_ours(shipped, tmp_path, no_network):
    rows = choices_of(120)
    results, said = run(shipped, tmp_path, "town_choice", CHOICE, rows)
    right, normed = [], []
    for row, replies in zip(rows, said):
        nats = choice_nats(*shipped, row["prompt"], [" " + c for c in row["choices"]])
        assert [-float(reply[0][0]) for reply in replies] == pytest.approx(nats, abs=CLOSE)
        right.append(min(range(4), key=nats.__getitem__) == row["label"])
        normed.append(min(range(4), key=lambda i: nats[i] / len(row["choices"][i]))
                      == row["label"])
    assert len(rows) == 120 and results["acc,none"] == sum(right) / 120
    assert results["acc_norm,none"] == sum(normed) / 120
    assert 0.3 < sum(right) / 120 < 0.95, "too easy or too hard to show a difference"


def test_sums_of_the_harness_are_ours(shipped, tmp_path, no_network):
    items = new_sums(Tinytown(0), 80, seed=4)
    rows = [{"prompt": item.prompt, "answer": " " + item.answers[0]} for item in items]
    results, said = run(shipped, tmp_path, "town_sums", WRITE, rows, batch_size=32)
    ours = complete_batch(*shipped, [item.prompt for item in items], 6, [temperature(0)],
                          stop=["\n", "."])
    assert [reply[0][0] for reply in said] == [completion.text for completion in ours]
    share = sum(c.text == row["answer"] for c, row in zip(ours, rows)) / 80
    assert results["exact_match,none"] == share and 0.1 < share < 1


def test_documents_of_the_harness_are_ours(short, tmp_path, no_network):
    "Longer than the context: cut as the harness itself cuts."
    harness()
    from lm_eval.utils import get_rolling_token_windows
    model, tokenizer = short
    texts = [d.text for _, d in zip(range(4), Tinytown(0).corpus(10**6, seed=6))]
    results, said = run(short, tmp_path, "town_surprise", ROLL,
                        [{"text": text} for text in texts])
    total = 0.0
    for text, reply in zip(texts, said):
        first, *rest = tokenizer.prompt_ids(text)
        theirs = list(get_rolling_token_windows(rest, first, 24, 1))
        assert len(theirs) > 1 and [([*a, b[-1]], len(b)) for a, b in theirs] == [
            (list(row), n) for row, n in windows([first, *rest], len(rest), 24)]
        nats = sum(by_hand(model, [*a, b[-1]], len(b))[0] for a, b in theirs)
        assert float(reply[0][0]) == pytest.approx(nats, abs=1e-3, rel=1e-6)
        total += nats
    bits = -total / sum(len(text.encode()) for text in texts) / torch.log(torch.tensor(2.0)).item()
    assert results["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)


def test_the_model_is_one_of_the_harness_s(shipped):
    harness()
    from lm_eval.api.model import LM
    model = harness_model(*shipped)
    assert isinstance(model, LM) and model.rank == 0 and model.world_size == 1


def test_the_harness_s_own_reader_of_the_same_weights_says_the_same(shipped, tmp_path, no_network):
    "Their model for transformers, which puts no marker before a text."
    harness()
    pytest.importorskip("accelerate", reason="the harness's own model needs accelerate")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    to_huggingface(tmp_path / "exported", *shipped)
    theirs = HFLM(pretrained=str(tmp_path / "exported"), device="cpu", dtype="float32",
                  batch_size=8, max_length=256)
    ours = harness_model(shipped[0], NoMarker(shipped[1]), batch_size=8)

    def both(kind, asked):
        asked = [Instance(kind, {}, args, i) for i, args in enumerate(asked)]
        return getattr(theirs, kind)(asked, disable_tqdm=True), getattr(ours, kind)(asked)

    pairs = [(row["prompt"], " " + choice) for row in choices_of(20) for choice in row["choices"]]
    for (log, likeliest), (again, best) in zip(*both("loglikelihood", [*pairs, ("", "Rosa has"),
                                                                       ("Rosa has ", "a goat")])):
        assert log == pytest.approx(again, abs=CLOSE) and likeliest is best
    texts = [(d.text * 3,) for _, d in zip(range(4), Tinytown(0).corpus(10**6, seed=6))]
    one, other = both("loglikelihood_rolling", texts)
    assert one == pytest.approx(other, rel=1e-6)
    assert any(len(shipped[1].encode(text)) > 256 for text, in texts)
    wishes = {"until": ["\n"], "max_gen_toks": 30, "do_sample": False}
    one, other = both("generate_until", [(q.prompt, wishes) for q in
                                         Tinytown(0).newcomers(12, "told", seed=9)])
    assert one == other
