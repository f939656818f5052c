"""The town's conversations: every right reply is right by its own marking, and exams are new."""
import json
import random
import re

import pytest

from minigpt.conversations import (
    CHAT_EXAMS,
    FIRSTS,
    MANNERS,
    NEXTS,
    OPENINGS,
    REQUESTS,
    SMALL_TALK,
    WISHES,
    chat_exam,
    conversation,
    of_friend,
    with_pronoun,
)
from minigpt.tinytown import QUESTIONS, Chooser, Tinytown


@pytest.fixture(scope="module")
def town() -> Tinytown:
    return Tinytown(0)


@pytest.fixture(scope="module")
def talks(town) -> list:
    chooser = Chooser(random.Random(1))
    return [conversation(chooser, town) for _ in range(1500)]


def test_right_replies_are_right_and_keep_their_manner(talks):
    for talk in talks:
        for exchange in talk.exchanges:
            assert exchange.is_correct(exchange.reply), exchange
            assert exchange.obeys(exchange.reply), exchange


def test_every_kind_occurs_and_turns_alternate(talks):
    kinds = {e.kind for talk in talks for e in talk.exchanges}
    assert kinds == FIRSTS.keys() | NEXTS.keys()
    for talk in talks:
        roles = [m["role"] for m in talk.messages]
        turns = roles[roles[0] == "system":]
        assert turns == ["user", "assistant"] * (len(turns) // 2) and len(turns) >= 2
        assert all(m["content"].strip() == m["content"] != "" for m in talk.messages)
        assert not any(re.search(r"[{}<>\[\]|]", m["content"]) for m in talk.messages
                       if not m["content"].startswith("{"))


def test_json_is_json_and_its_facts_are_the_towns(talks, town):
    people, seen = {p.name: p.facts() for p in town.people}, 0
    for talk in talks:
        for e in talk.exchanges:
            if e.reply.startswith("{"):
                fields = json.loads(e.reply)
                if e.kind == "facts":
                    name = fields.pop("name")
                    assert all(str(value) == people[name][key] for key, value in fields.items())
                    seen += 1
    assert seen > 50


def test_a_wrong_fact_and_a_lost_manner_are_marked_wrong(town):
    for e in chat_exam("manner", town, 200, 3):
        assert not e.is_correct("I do not know.")
        if e.manner in OPENINGS:
            bare = e.without_opening(e.reply)
            assert not e.obeys(bare) and not e.is_correct(bare)
        if e.manner == "json":
            assert not e.obeys("Abel lives on Mill Lane.") and not e.obeys("[1]")
    for e in chat_exam("sum", town, 50, 3):
        right = e.reply.partition("=")[2].split()[0].rstrip(".,")
        assert not e.is_correct(e.reply.replace(f"= {right}", f"= {int(right) + 1}"))


def test_exams_use_no_phrasing_of_training():
    for lists in (REQUESTS, MANNERS, WISHES, SMALL_TALK, QUESTIONS):
        for name, (training, exams, *_) in lists.items():
            assert not set(training) & set(exams), name


def test_the_same_seed_gives_the_same_exam(town):
    for name in CHAT_EXAMS:
        assert chat_exam(name, town, 20, 4) == chat_exam(name, town, 20, 4)
        assert chat_exam(name, town, 20, 4) != chat_exam(name, town, 20, 5)
    with pytest.raises(ValueError, match="'riddles' is unknown; choose from single"):
        chat_exam("riddles", town, 3)


def test_a_follow_up_does_not_name_whom_it_means(town):
    named = {p.name for p in town.people}
    for e in chat_exam("follow-up", town, 300, 6):
        last = set(re.findall(r"\w+", e.messages[-1]["content"]))
        if e.kind in ("pronoun", "ellipsis", "friend"):
            assert not last & named, e
        else:                                        # it names somebody, but not what is asked
            assert last & named
            relations = "|".join(QUESTIONS)
            assert not re.search(rf"\b({relations}|live|old|eat)\b", e.messages[-1]["content"])


@pytest.mark.parametrize("pattern, says", [
    ("What is {name}'s job?", "What is {his} job?"),
    ("On which street would you knock to visit {name}?",
     "On which street would you knock to visit {him}?"),
    ("With whom is {name} best friends?", "With whom is {he} best friends?"),
    ("Which food makes {name} smile?", "Which food makes {him} smile?"),
    ("What does {name} call the {pet}?", "What does {he} call the {pet}?")])
def test_pronouns(pattern, says):
    assert with_pronoun(pattern) == says


def test_friends_are_not_named():
    assert of_friend("Where does {name} live?") == "Where does {his} best friend live?"


def test_no_pattern_puts_he_where_him_belongs():
    for training, exams, _ in QUESTIONS.values():
        for pattern in (*training, *exams):
            assert not re.search(r"\b(with|for|of|to|visit|makes) \{he\}", with_pronoun(pattern))
