"Laws of sums and their steps; the half-taught model that ships with them is what its facts say."
import hashlib
import json
import math
import re

import pytest
from conftest import refused

from benchmarks.reasoning import RATE, SHARE, STEPS, measure
from minigpt import load
from minigpt.chat import chat_ids
from minigpt.checkpoint import shipped_model
from minigpt.evaluation import wilson
from minigpt.reasoning import (
    bare,
    check_steps,
    is_right,
    sum_examples,
    sum_pairs,
    sum_question,
    worked,
)
from minigpt.tokenizer import END_OF_TURN

HELD_OUT, TO_LEARN, N = sum_pairs(held_out=True), sum_pairs(held_out=False), 200


@pytest.fixture(scope="module")
def taught():
    return load("sums")


# --- sums

def test_all_sums_are_dealt_once_and_alike_in_every_process():
    assert (len(HELD_OUT), len(TO_LEARN)) == (1000, 7100)
    assert {*HELD_OUT, *TO_LEARN} == {(a, b) for a in range(10, 100) for b in range(10, 100)}
    told = hashlib.sha256(f"{HELD_OUT} {TO_LEARN}".encode()).hexdigest()
    assert told == "325eb840c922852fdf97fefa6e1e89c27cfeae3d0a9ae53b8a06804052a6cf54"


def test_a_worked_answer_is_right_at_every_step():
    for a, b in HELD_OUT + TO_LEARN:
        text, short = worked(a, b), bare(a, b)
        assert is_right(text, a, b) and is_right(short, a, b) and check_steps(short) == []
        assert check_steps(text) == [True, True] and text.endswith(f" So {short}")
        assert not is_right(text, a, b + 1) and not is_right(short, a + 1, b)
        carry = a % 10 + b % 10 >= 10
        assert text.startswith(f"{a % 10} + {b % 10} = ")
        assert f". {a // 10} + {b // 10}{' + 1' if carry else ''} = {(a + b) // 10}. " in text
    assert worked(47, 85) == "7 + 5 = 12. 4 + 8 + 1 = 13. So 132." and bare(47, 85) == "132."


@pytest.mark.parametrize("reply, right", [
    ("", False), (" \n", False), ("I do not know.", False), ("132", True), ("132.", True),
    ("It is\n132\n", True), ("So 13\n2.", False), ("131. No, 132!", True), ("132, not 131", False),
    ("one hundred and 32", False), ("1320", False), ("0132", True), ("9" * 4000, False),
    ("7 + 5 = 13. So 132.", True), ("47 + 85 = 132 = 132", True)])
def test_the_last_number_decides(reply, right):
    assert is_right(reply, 47, 85) is right


@pytest.mark.parametrize("reply, steps", [
    ("", []), ("132.", []), ("so + so = so", []), ("3 + 4", []), ("7 + 5 =\n12", []),
    ("7+5=12", []), ("7 + 5 = 12", [True]), ("7 + 5 = 13. 1 + 1 + 1 = 3", [False, True]),
    ("12 + 3 = 15 + 4 = 19", [True]), ("12 + 3 = 15\n15 + 4 = 20", [True, False]),
    ("Well, 12 + 3 = 15, so 15 + 4 = 19!", [True, True]), ("7 + 5 = 120", [False]),
    (f"{10**4000} + 1 = {10**4000 + 1}", [False]), (f"1 + 1 = {10**4000}", [False])])
def test_each_step_is_judged_by_itself(reply, steps):
    assert check_steps(reply) == steps


def test_numbers_of_any_length_are_judged():
    huge = "9" * 5000
    assert not is_right(huge, 47, 85)
    assert check_steps(f"1 + 1 = {huge}") == [False]


def test_examples_are_sums_to_learn_in_the_share_that_was_asked_for(taught):
    tokenizer, n, learned = taught[1], 400, set(TO_LEARN)
    for share in (0, 0.35, 1):
        found, thinks = sum_examples(tokenizer, n, share), 0
        for ids, learn in found:
            start = learn.index(True)
            asked, said = (tokenizer.decode(part).strip() for part in (ids[:start], ids[start:-1]))
            pair = tuple(map(int, re.search(r"What is (\d+) \+ (\d+)\?", asked).groups()))
            assert pair in learned and ids[:start] == chat_ids(tokenizer, sum_question(*pair))
            assert all(learn[start:]) and ids[-1] == tokenizer.special[END_OF_TURN]
            assert said in (worked(*pair), bare(*pair))
            thinks += said == worked(*pair)
        assert abs(thinks - n * share) <= 4 * math.sqrt(n * share * (1 - share))
        assert found == sum_examples(tokenizer, n, share) != sum_examples(tokenizer, n, share, 1)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, math.inf])
def test_bad_shares_and_counts_are_refused(taught, share):
    with refused(f"share={share}", "between 0 (all bare) and 1 (all worked)"):
        sum_examples(taught[1], 3, share)
    with refused("n=0", "whole number, at least 1"):
        sum_examples(taught[1], 0, 0.5)


# --- the shipped model

def test_the_shipped_model_is_what_its_facts_say(taught):
    home = shipped_model("sums")
    facts = json.loads((home / "facts.json").read_text(encoding="utf-8"))
    assert taught[0].num_parameters() == facts["parameters"]
    assert (facts["steps"], facts["share of worked sums"], facts["rate"]) == (STEPS, SHARE, RATE)
    assert sum(p.stat().st_size for p in home.iterdir()) <= 2_000_000
    found, n_all = measure(home, N), facts["held-out sums"]
    for name in ("likeliest", "drawn"):
        right, low, high = facts[f"{name}, right"]
        assert [right, low, high] == pytest.approx(wilson(round(n_all * right), n_all), abs=1e-4)
        there, wider = found[f"{name}, right"][0], math.sqrt(n_all / N)
        assert right - wider * (right - low) <= there <= right + wider * (high - right), name
        kinds = [[about[f"{name}, right if it {kind}"] for kind in ("thinks", "blurts")]
                 for about in (facts, found)]
        for (r, n), (r_few, n_few) in zip(*kinds):
            for count, of, p in ((r_few, n_few, r / n), (n_few, N, n / n_all)):
                assert abs(count - of * p) <= 4 * math.sqrt(of * p * (1 - p)), (name, count, of)
        assert [sum(x) for x in zip(*kinds[0])] == [round(n_all * right), n_all]
        assert facts[f"{name}, thinks"] == kinds[0][0][1] / n_all
