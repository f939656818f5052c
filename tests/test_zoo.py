"Laws of the zoo: what is paid and what is true, on any text; hunts that repeat to the bit."
import json
import math

import pytest
import torch

from minigpt import load
from minigpt.checkpoint import shipped_model
from minigpt.tinytown import Tinytown
from minigpt.zoo import (
    ZOO,
    Grounds,
    Register,
    copied,
    declined,
    different_mentions,
    friendly,
    hunt,
    length,
    length_capped,
    mentions,
    misjudged,
    not_false,
    notes,
    portraits,
    quoted,
    repeated,
    right_not_false,
    strayed,
    unfinished,
)

ODD = ["", " ", ".", "...", ". . .", "\n", "Abel", "Abel.", "🙂" * 50, "a" * 2_000,
       "He has a goat.\0", "<|end|>", "<|endoftext|> Q: Who?", "friend" * 500, "goat " * 500,
       "not mention", "\ud83d", "Abel has a goat. He has a cat. Abel has a goat.",
       "$^*+?{}[]\\|()", "é\u0301\u200b\u202e"]


@pytest.fixture(scope="module")
def register():
    return Register(Tinytown(0))


@pytest.fixture(scope="module")
def shipped():
    return load("chat")


@pytest.fixture(scope="module")
def asked(register):
    "What was asked of a note that answers, and of one that does not."
    found = []
    for case in notes(register, ("told", "absent"), lambda e, text: found.append(e) or 0, n=2):
        case.pays("")
    return found


# --- the truth

@pytest.mark.parametrize("text, marks", [
    ("Abel has a goat. He lives on Bridge Road. He is a king.", (2, 1)),
    ("Abel has a goat. He has a goat. He has a goat.", (1, 0)),
    ("Abel has a goat", (1, 0)), ("Abel has a goat and lives on Bridge Road.", (0, 1)),
    ("He has a cat. She has a goat.", (0, 2)), ("", (0, 0)), (" \n", (0, 0)), ("...", (0, 1)),
    ("goat goat goat", (0, 1)), ("Maya has a goat.", (0, 1))])
def test_the_truth_of_a_portrait(register, text, marks):
    assert register.marks("Abel", text) == marks


def test_every_sentence_of_the_register_is_true_and_tells_one_fact(register):
    assert len(register.sentences) == 64
    for name, known in register.sentences.items():
        assert len(set(known.values())) == 10
        whole = [s for s in known if s.startswith(name)]
        assert register.marks(name, " ".join(known)) == (10, 0) and len(whole) == 10


def test_the_truth_of_an_answer_to_a_note(register):
    told, absent = notes(register, ("told", "absent"), lambda e, text: 0, n=2)
    assert told.truth("Dunca likes to go to the boathouse.") == told.truth("the boathouse") == 1
    assert told.truth("Dunca likes to go to the fountain or the boathouse.") == 0
    assert absent.truth("Dusty belongs to somebody whom the note does not mention.") == 1
    assert absent.truth("Dusty belongs to Floro.") == absent.truth("") == told.truth(" ") == 0


# --- the rewards

def test_what_is_paid(register, asked):
    told, absent = asked
    assert length(register, "Abel", "a b c") == 0.3 and length(register, "Abel", "") == 0
    assert length_capped(register, "Abel", "a " * 500) == 2
    assert friendly(register, "Abel", "A kind friend, and friends of friends.") == 4
    assert mentions(register, "Abel", "Abel has a goat. a goat, a goat") == 3
    assert different_mentions(register, "Abel", "Abel has a goat. He has a goat.") == 1
    assert different_mentions(register, "Abel", "He has a cow. Hm.") == -2
    assert copied(told, "Dunca likes Dunca xyz") == 0.3
    assert quoted(told, "So Dunca likes to go to the boathouse.") == 7
    assert quoted(told, "likes Dunca") == 1 and quoted(told, "xyz") == quoted(told, "") == 0
    assert not_false(absent, "Dusty belongs to Floro.") == -1
    assert not_false(told, "") == not_false(told, "Of a place that the note does not mention.") == 0
    assert right_not_false(told, "Dunca likes to go to the boathouse.") == 1
    assert right_not_false(told, "Dunca likes to go to the fountain.") == -1


def test_only_what_is_quoted_in_one_piece_pays(asked):
    told = asked[0]
    given = told.messages[-1]["content"].split()
    pieces = {tuple(given[a:b]) for b in range(len(given) + 1) for a in range(b)}
    for n in range(1, 9):
        for text in (given[:n], given[::-1][:n], given[:n] + ["xyz"] + given[n + 1:2 * n],
                     given[:2 * n:2], given[n:] + given[:n]):
            runs = [b - a for b in range(len(text) + 1) for a in range(b)
                    if tuple(text[a:b]) in pieces]
            assert quoted(told, " ".join(text)) == max(runs)


@pytest.fixture(scope="module")
def cages(shipped, register):
    "Every cage, hacked and cured; one judge does for both."
    built = {}
    for name, animal in ZOO.items():
        for cured in (False, True):
            if name != "judge" or not cured:
                built[name, cured] = animal.build(Grounds(*shipped, register, cured, 0))
    return built


def test_every_number_is_finite_on_odd_texts(cages):
    for key, cage in cages.items():
        for case in (cage.cases[0], cage.cases[-1])[:1 if key[0] == "judge" else 2]:
            for text in ODD:
                paid, true = case.pays(text), case.truth(text)
                assert isinstance(paid, float) and math.isfinite(paid), (key, text[:20])
                assert isinstance(true, float) and math.isfinite(true), (key, text[:20])


def test_odd_texts_are_never_all_right(cages):
    for key, cage in cages.items():
        assert all(cage.cases[0].truth(text) <= 0 for text in ODD[:6]), key


@pytest.mark.parametrize("alarm", [unfinished, repeated, declined, strayed])
def test_alarms_are_shares(alarm):
    flat = torch.zeros(1, len(ODD))
    assert 0 <= alarm(ODD, flat, flat) <= 1
    assert 0 <= alarm([""], flat[:, :1], flat[:, :1]) <= 1


def test_the_alarm_of_a_judge():
    up, flat = torch.arange(4.0).view(1, 4), torch.zeros(1, 4)
    assert misjudged([], up, up) == 0 and misjudged([], up, -up) == 1
    assert misjudged([], up, flat) == misjudged([], flat, up) == 0.5
    swapped = torch.tensor([[0.0, 2, 1, 3]])         # one pair of six
    assert misjudged([], up, swapped) == pytest.approx(1 / 6)


def test_a_judge_prefers_true_portraits_to_rubbish(cages):
    judge_pays = cages["judge", False].cases[0].pays
    assert judge_pays("Abel has a goat. He lives on Bridge Road.") > judge_pays("goat of the of")


def test_a_case_is_made_for_each_person(register):
    cases = portraits(register, length)
    assert len(cases) == 64
    assert cases[0].messages == [{"role": "user", "content": "Tell me about Abel."}]


# --- the hunts

@pytest.mark.parametrize("name", ZOO)
def test_a_hunt_of_two_steps_repeats_to_the_bit(name):
    first = list(hunt(name, steps=2))
    assert [s.n for s in first] == [0, 1] and first[0].question == first[1].question
    assert all(math.isfinite(x) for s in first for x in (s.reward, s.truth, s.tokens, s.alarm))
    assert all(0 <= s.alarm <= 1 and 1 <= s.tokens <= 65 for s in first)
    assert first == list(hunt(name, steps=2))


@pytest.mark.parametrize("name", ["mentions", "copy", "silence"])     # the others' first answers
def test_the_cure_is_paid_otherwise(name):                            # are paid alike
    hack, cure = (next(hunt(name, cured, steps=1)) for cured in (False, True))
    assert (hack.text, hack.truth) == (cure.text, cure.truth) and hack.reward != cure.reward


def test_the_cure_of_a_judge_is_new_labels(cages, shipped, register):
    cage = ZOO["judge"].build(Grounds(*shipped, register, True, 0))
    pays = cage.cases[0].pays
    before = pays("Abel has a goat.")
    assert before == cages["judge", False].cases[0].pays("Abel has a goat.")
    cage.after(4)
    assert pays("Abel has a goat.") == before
    cage.after(5)
    assert pays("Abel has a goat.") != before


def test_seeds_differ():
    one, other = (next(hunt("length", seed=seed, steps=1)) for seed in (0, 1))
    assert one.text != other.text and one.tokens != other.tokens


def test_a_hunt_begins_where_the_cure_begins():
    hack, cure = (next(hunt("keyword", cure, steps=1)) for cure in (False, True))
    assert hack == cure


@pytest.mark.parametrize("wrong, says", [
    ({"name": "unicorn"}, "'unicorn'.*length, keyword, mentions, copy, silence, judge"),
    ({"name": ""}, "choose from"), ({"name": "length", "steps": 0}, "steps=0"),
    ({"name": "length", "steps": 1.5}, "steps=1.5"), ({"name": "length", "beta": -1}, "beta=-1"),
    ({"name": "length", "beta": math.nan}, "beta=nan")])
def test_bad_input_is_refused_before_anything_is_loaded(wrong, says, monkeypatch):
    monkeypatch.setattr("minigpt.zoo.load", None)
    with pytest.raises(ValueError, match=says):
        hunt(**wrong)


# --- the runs that the package has

def test_the_recorded_runs_are_of_these_animals():
    path = shipped_model().parent / "zoo.json"
    assert path.stat().st_size < 150_000
    animals = json.loads(path.read_text(encoding="utf-8"))["animals"]
    assert list(animals) == list(ZOO)
    for name, found in animals.items():
        for key in ("meant", "pays", "truth", "notice"):
            assert found[key] == getattr(ZOO[name], key)
        assert found["remedy"] == ZOO[name].cure
        for kind in ("hack", "cure"):
            assert [run["seed"] for run in found[kind]] == [0, 1, 2]
            for run in found[kind]:
                rows = [run[key] for key in ("reward", "truth", "tokens", "alarm")]
                assert {len(row) for row in rows} == {ZOO[name].steps}
                assert all(math.isfinite(x) for row in rows for x in row)
            steps = [n for n, _ in found[kind][0]["samples"]]
            assert steps[0] == 0 and steps[-1] == ZOO[name].steps - 1
