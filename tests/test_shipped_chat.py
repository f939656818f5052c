"""The chat model that ships with the package is what its facts say."""
import json
import random

import pytest
from conftest import near

from minigpt import load
from minigpt.chat import Chat, replies
from minigpt.checkpoint import shipped_model
from minigpt.conversations import CHAT_EXAMS, chat_exam
from minigpt.loss import document_loss
from minigpt.tinytown import Tinytown

N = 100


@pytest.fixture(scope="module")
def chatty():
    return load("chat")


@pytest.fixture(scope="module")
def facts() -> dict:
    return json.loads((shipped_model("chat") / "facts.json").read_text(encoding="utf-8"))


def test_its_files_are_small():
    assert sum(p.stat().st_size for p in shipped_model("chat").rglob("*")) <= 2_000_000


@pytest.mark.parametrize("name", CHAT_EXAMS)
def test_exams(chatty, facts, name):
    asked = chat_exam(name, Tinytown(0), N, 99)
    said = replies(*chatty, [e.messages for e in asked])
    right = sum(e.is_correct(reply) for e, reply in zip(asked, said))
    assert near(right, facts[f"{name}, right"][0], N), right
    if name == "manner":
        kept = sum(e.obeys(reply) for e, reply in zip(asked, said))
        assert near(kept, facts["manner, manner kept"][0], N), kept
    if name == "follow-up":
        alone = replies(*chatty, [e.messages[-1:] for e in asked])
        lucky = sum(e.is_correct(reply) for e, reply in zip(asked, alone))
        assert near(lucky, facts["follow-up, right without context"][0], N), lucky


def test_it_tells_tales_as_well_as_its_base(chatty, facts):
    town = Tinytown(0)
    tales = [town.document(random.Random(10**6 + i), "tale").text for i in range(60)]
    bits = [document_loss(model, [tokenizer.encode(t) for t in tales],
                          tokenizer.end_of_text).mean().item() for model, tokenizer in
            (chatty, load())]
    assert bits[0] < 1.1 * bits[1]
    told = facts["bits of a tale"] / facts["bits of a tale, base"]
    assert bits[0] / bits[1] == pytest.approx(told, abs=0.02)


def test_a_story_on_request_is_about_whom_it_should_be(chatty):
    chat = Chat(*chatty)
    story = "".join(chat.say("Tell me a story about a shy miller."))
    assert "shy miller" in story and story.count(".") >= 5 and chat.finish == "stop"
