"Laws of the shipped model: it is small, it tells stories, it knows its town, its card is true."
import json
import math
import random
import re

import pytest
import torch

from minigpt.checkpoint import load_model, shipped_model
from minigpt.config import count_parameters
from minigpt.inference import complete, generate_ids
from minigpt.loss import document_loss
from minigpt.sampling import temperature
from minigpt.tinytown import Tinytown

UNSEEN = 4_021_977          # a seed of documents that no run and no chapter uses


@pytest.fixture(scope="module")
def shipped():
    return load_model()


@pytest.fixture(scope="module")
def facts():
    return json.loads((shipped_model() / "facts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def town():
    return Tinytown(0)


def test_the_folder_is_small_and_holds_no_code():
    files = [p for p in shipped_model().rglob("*") if p.is_file()]
    assert {p.name for p in files} >= {"model.safetensors", "config.json", "tokenizer.json",
                                       "facts.json"}
    assert {p.suffix for p in files} == {".safetensors", ".json"}
    assert sum(p.stat().st_size for p in files) <= 8e6


def test_it_has_one_to_three_million_parameters(shipped):
    model, tokenizer = shipped
    n = sum(p.numel() for p in model.parameters())
    assert 1e6 <= n <= 3e6 and n == count_parameters(model.cfg)["total"]
    assert tokenizer.vocab_size == model.cfg.vocab_size


def test_its_held_out_loss_is_what_its_card_says(shipped, facts, town):
    model, tokenizer = shipped
    new = [d for _, d in zip(range(300), town.corpus(10**9, seed=UNSEEN))]
    nats = document_loss(model, [tokenizer.encode(d.text) for d in new], tokenizer.end_of_text)
    ratio = nats.sum().item() / math.log(2) / sum(d.bits for d in new)
    assert ratio == pytest.approx(facts["held_out_bits / floor_bits"], abs=0.03)
    assert ratio > 1                                    # nobody can do better than the floor


def test_it_answers_nine_of_ten_questions_in_words_it_never_trained_on(shipped, town):
    model, tokenizer = shipped
    questions = random.Random(UNSEEN).sample(town.questions(held_out=True), 300)
    wrong = []
    for q in questions:
        reply = "".join(complete(model, tokenizer, q.prompt, 30, [temperature(0)], stop=["\n"]))
        if not q.is_correct(reply):
            wrong.append(f"{q.text}{reply} ({q.answer})")
    assert len(wrong) <= 0.1 * len(questions), wrong


@pytest.mark.parametrize("seed", range(3))
def test_it_tells_a_story_of_a_townsperson_and_ends_it(shipped, town, seed):
    model, tokenizer = shipped
    prompt = [tokenizer.end_of_text, *tokenizer.encode("Once upon a time")]
    rng = torch.Generator().manual_seed(seed)
    ids = list(generate_ids(model, prompt, 10**6, [temperature(0.7)], rng, {tokenizer.end_of_text}))
    story = tokenizer.decode(ids)
    assert len(prompt) + len(ids) < model.cfg.context_length       # it ended, and was not cut off
    assert story.rstrip()[-1] in '.!?"' and "\ufffd" not in story
    assert set(re.findall(r"\w+", story)) & {p.name for p in town.people}


def test_its_card_tells_how_it_was_made(facts):
    assert facts["minutes"] <= 15 and facts["held_out_bits / floor_bits"] > 1
    steps, losses = zip(*facts["curve"])
    assert list(steps) == sorted(steps) and losses[-1] < losses[0]
