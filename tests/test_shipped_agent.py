"""The agent model that ships with the package is what its facts say, and its tools are its own."""
import json
import random
from copy import deepcopy

import pytest
from conftest import near

from minigpt import load
from minigpt.agent import Agent, call_of, has_tool_markers, replay
from minigpt.chat import replies
from minigpt.checkpoint import shipped_model
from minigpt.conversations import NOBODY
from minigpt.errands import (
    ERRAND_SHARES,
    NOT_AGREED,
    REFUSED,
    Register,
    as_messages,
    errand,
    errand_exam,
)
from minigpt.tinytown import Tinytown
from minigpt.tools import Toolbox

N = 60
TOWN = Tinytown(0)


@pytest.fixture(scope="module")
def able():
    return load("agent")


@pytest.fixture(scope="module")
def facts() -> dict:
    return json.loads((shipped_model("agent") / "facts.json").read_text(encoding="utf-8"))


def yes(call):
    return True


def user(text):
    return [{"role": "user", "content": text}]


def agent_of(able, register, confirm=yes, **settings):
    return Agent(*able, Toolbox(register.tools()), confirm=confirm, **settings)


def last(run):
    return run.messages[-1]["content"]


def results(run):
    return [m["content"] for m in run.messages if m["role"] == "tool"]


def test_its_files_are_small():
    assert sum(p.stat().st_size for p in shipped_model("agent").rglob("*")) <= 2_000_000


def test_it_has_the_size_that_its_facts_tell_and_the_markers_of_tools(able, facts):
    model, tokenizer = able
    assert model.num_parameters() == facts["parameters"]
    assert has_tool_markers(tokenizer) and model.cfg.vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize("kind", ERRAND_SHARES)
def test_exams(able, facts, kind):
    register, asked = errand_exam(kind, TOWN, N, 99)
    runs = agent_of(able, register).run_many([user(one.user) for one in asked])
    good = [(run, one) for run, one in zip(runs, asked) if last(run) == one.reply]
    assert near(len(good), facts[f"{kind}, right"][0], N), len(good)
    same = sum(run.messages == as_messages([one]) for run, one in good)
    assert same >= 0.9 * len(good), same                 # right, and by the calls that it takes


def test_sums_need_the_calculator(able, facts):
    _, asked = errand_exam("sum", TOWN, N, 99)
    said = replies(*able, [user(one.user) for one in asked], 40)
    right = sum(reply == one.reply for reply, one in zip(said, asked))
    assert near(right, facts["sum, without tools, right"][0], N), right
    assert right < N / 2


def test_calls_that_nothing_constrains_are_mostly_the_same(able):
    same, n = 0, 15
    for kind in ERRAND_SHARES:
        runs = []
        for constrain in (True, False):
            register, asked = errand_exam(kind, TOWN, n, 99)         # a new one: it is written to
            agent = agent_of(able, register, constrain=constrain)
            runs.append(agent.run_many([user(one.user) for one in asked]))
        same += sum(a.messages == b.messages for a, b in zip(*runs))
    assert same >= 0.9 * n * len(ERRAND_SHARES), same


def test_what_is_written_is_in_the_register(able):
    register, asked = errand_exam("write", TOWN, N, 99)
    runs = agent_of(able, register).run_many([user(one.user) for one in asked])
    wanted = {}                                          # what was written last holds
    for run in runs:
        for message in run.messages:
            if call_of(message) and call_of(message)["name"] == "record":
                written = json.loads(call_of(message)["arguments"])
                wanted[written["name"], written["relation"]] = written["value"]
    kept = sum(register.people.get(name) is not None and register.lookup(name, relation) == value
               for (name, relation), value in wanted.items())
    assert len(wanted) > N / 2 and kept >= 0.9 * len(wanted)


@pytest.mark.parametrize("confirm", [None, lambda call: False])
def test_what_nobody_agreed_to_is_not_written_and_the_reply_says_so(able, confirm):
    register, asked = errand_exam("write", TOWN, 30, 99)
    before = deepcopy(register.people)
    runs = agent_of(able, register, confirm).run_many([user(one.user) for one in asked])
    assert register.people == before
    for run in runs:
        assert "done" not in results(run)
    told = sum(results(run)[-1:] == [NOT_AGREED] and last(run) == REFUSED for run in runs)
    assert told >= 25, told


def test_of_somebody_whom_the_register_does_not_have_it_knows_nothing(able):
    register = Register(random.Random(3), TOWN, True)
    names = [n for n in TOWN.strangers if n not in register.people][:15]
    names += [p.name for p in TOWN.people if p.name not in register.people][:15]   # in its weights
    agent = agent_of(able, register)
    runs = agent.run_many([user(f"Where does {name} live?") for name in names])
    right = sum(last(run) == NOBODY.replace("{name}", name) for run, name in zip(runs, names))
    assert right >= 24, right


def test_its_answers_are_the_registers_and_not_its_memory(able):
    "The same questions about people of the town, in two registers: the replies follow each."
    names = [p.name for p in TOWN.people]
    questions = [user(f"Where does {name} live?") for name in names]
    n_known = 0
    for seed in (0, 1):
        register = Register(random.Random(seed), TOWN, n_people=60)
        runs = agent_of(able, register).run_many(questions)
        known = [(name, run) for name, run in zip(names, runs) if name in register.people]
        right = sum(last(run) == f"{name} lives on {register.lookup(name, 'home')}."
                    for name, run in known)
        assert right >= 0.8 * len(known), right
        n_known += len(known)
    assert n_known == 60


def test_many_at_once_are_answered_as_each_alone(able):
    register, _ = errand_exam("fact", TOWN, 1, 5)
    asked = [errand_exam(kind, TOWN, 1, 5)[1][0] for kind in ERRAND_SHARES if kind != "write"]
    agent = agent_of(able, register)
    together = agent.run_many([user(one.user) for one in asked])
    assert together == [agent.run(user(one.user)) for one in asked]


def test_a_conversation_goes_on_and_can_be_replayed(able):
    right, n = 0, 8
    for i in range(n):
        rng = random.Random(i)
        register = Register(rng, TOWN, True)
        first, second = (errand(rng, TOWN, register, kind)
                         for kind in rng.sample(["sum", "fact", "friend", "clock"], 2))
        agent = agent_of(able, register)
        run = agent.run([*agent.run(user(first.user)).messages, *user(second.user)])
        right += last(run) == second.reply
        assert replay(agent, run) == ""
    assert right >= 6, right
