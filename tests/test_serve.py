"Laws of serving: whatever else comes, waits, fails or goes, a text is what it would be alone."
import random
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from minigpt.cache import KVCache
from minigpt.checkpoint import load_model
from minigpt.config import ModelConfig
from minigpt.constrained import fits_regex
from minigpt.inference import Passes, complete_batch
from minigpt.model import GPT
from minigpt.sampling import (
    banned,
    frequency_penalty,
    logit_bias,
    min_p,
    presence_penalty,
    repetition_penalty,
    temperature,
    top_k,
    top_p,
    typical,
)
from minigpt.serve import (
    BLOCK,
    BatchCache,
    Busy,
    Engine,
    EngineThread,
    Output,
    PrefixCache,
    Request,
    kept,
    rule_key,
)

KINDS = [{}, {"position": "learned"}, {"position": "alibi"}, {"window": 5}, {"n_kv_head": 2},
         {"attention": "latent", "d_latent": 8, "d_rope": 4}, {"n_expert": 3},
         {"tie_embeddings": False}]


def loud_model(tokenizer, seed=0, **changes):
    "A small model whose distributions are far from even."
    cfg = ModelConfig(tokenizer.vocab_size, context_length=48, n_layer=2, n_head=2, n_kv_head=1,
                      d_model=16, d_ff=24)
    torch.manual_seed(seed)
    model = GPT(replace(cfg, **changes)).eval().requires_grad_(False)
    for p in model.parameters():
        p.add_(0.3 * torch.randn_like(p))
    return model


@pytest.fixture(scope="module")
def shipped():
    return load_model()


@pytest.fixture(scope="module")
def loud(tokenizer):
    return loud_model(tokenizer), tokenizer


class Clock:
    "A clock that a test winds."
    now = 0.0

    def __call__(self):
        return self.now


class Heard:
    "What the listeners were told, by request."

    def __init__(self):
        self.outputs: dict[str, list[Output]] = {}

    def __call__(self, output):
        self.outputs.setdefault(output.name, []).append(output)

    def text(self, name):
        return "".join(o.text for o in self.outputs[name])

    def ids(self, name):
        return tuple(i for o in self.outputs[name] for i in o.ids)

    def logprobs(self, name):
        return tuple(x for o in self.outputs[name] for x in o.logprobs)

    def finish(self, name):
        *before, last = [o.finish for o in self.outputs[name]]
        assert not any(before) and last, "one end, and it comes last"
        return last


def serve(engine, requests, per_step=None):
    "All of them, some with each step."
    heard, waiting = Heard(), list(requests)
    while waiting or engine.jobs:
        for _ in range(len(waiting) if per_step is None else per_step):
            if waiting:
                engine.add(waiting.pop(0), heard)
        engine.step()
    return heard


def lone(model, tokenizer, r):
    return complete_batch(model, tokenizer, [r.ids], r.max_tokens, r.rules, r.seed, r.stop,
                          allowed=r.allowed)[0]


def check_law(model, tokenizer, request, heard):
    alone, name = lone(model, tokenizer, request), request.name
    assert (heard.ids(name), heard.text(name)) == (alone.ids, alone.text)
    assert heard.finish(name) == alone.finish
    last = heard.outputs[name][-1]
    assert (last.n_prompt, last.n_new) == (len(request.ids), len(alone.ids))
    if request.top_logprobs is not None:
        torch.testing.assert_close(torch.tensor(heard.logprobs(name)),
                                   torch.tensor(alone.logprobs), atol=1e-4, rtol=1e-4)


# The law ------------------------------------------------------------------------------------------

def random_request(rng, n, tokenizer, limit, openings, most):
    "Any length up to the limit, any rules, stops, a grammar; many begin alike."
    length = rng.choice([1, 2, 5, rng.randint(1, limit), limit - 1, limit])
    opening = rng.choice(openings)[:rng.randrange(length + 1)]
    ids = opening + [rng.randrange(tokenizer.vocab_size) for _ in range(length - len(opening))]
    rules = rng.choice([
        [temperature(0)], [temperature(0.9)], [top_p(0.9), temperature(1.1)], [],
        [repetition_penalty(1.3), top_k(5)],
        [frequency_penalty(0.4), logit_bias({3: 1.0}), temperature(0.8)]])
    parity = torch.arange(tokenizer.vocab_size) % 2 == n % 2
    allowed = rng.choice([None, None, None, lambda ids: parity])
    return Request(ids, rng.choice([0, 1, 3, most]), rules, rng.randrange(99),
                   rng.choice([(), (), ["a"], ["e ", "os"]]), allowed,
                   rng.choice([None, 0, 2]), client=rng.choice("abc"), name=str(n))


def random_load(model, tokenizer, seed, n_requests, most):
    rng, heard = random.Random(seed), Heard()
    limit = model.cfg.context_length
    openings = [[rng.randrange(tokenizer.vocab_size) for _ in range(limit)] for _ in range(2)]
    requests = [random_request(rng, n, tokenizer, limit, openings, most) for n in range(n_requests)]
    engine = Engine(model, tokenizer, rng.choice([1, 2, 5, 16]), n_requests,
                    rng.choice([1, 7, 64]), rng.choice([0, 64, 4096]))
    coming, cancelled = list(requests), set()
    while coming or engine.jobs:
        while coming and rng.random() < 0.5:
            engine.add(coming.pop(0), heard)
        if engine.jobs and rng.random() < 0.05:
            cancelled.add(name := rng.choice(list(engine.jobs)))
            assert engine.cancel(name)
        engine.step()
    return requests, heard, cancelled, engine


def check_load(model, tokenizer, seed, n_requests, most):
    requests, heard, cancelled, engine = random_load(model, tokenizer, seed, n_requests, most)
    assert len(heard.outputs) == n_requests
    for request in requests:
        if heard.finish(request.name) == "cancelled":
            assert request.name in cancelled
            alone = lone(model, tokenizer, request)
            ids = heard.ids(request.name)
            assert ids == alone.ids[:len(ids)]
        else:
            check_law(model, tokenizer, request, heard)
    assert engine.stats.tokens_out == sum(len(heard.ids(r.name)) for r in requests)


@pytest.mark.parametrize("seed", range(12))
def test_a_text_does_not_depend_on_who_else_is_served(loud, seed):
    check_load(*loud, seed, 25, 60)


@pytest.mark.parametrize("seed", range(2))
def test_nor_does_that_of_the_shipped_model(shipped, seed):
    check_load(*shipped, seed, 16, 40)


def test_nor_does_that_of_a_model_that_the_fast_decoder_cannot_follow(tokenizer):
    model = loud_model(tokenizer)
    model.blocks[0].register_forward_hook(lambda *_: None)
    assert Passes(model, 1).decoder is None
    check_load(model, tokenizer, 3, 25, 60)


def test_a_grammar_of_each_request_holds(shipped):
    model, tokenizer = shipped
    grammars = [fits_regex(tokenizer, p) for p in ("[0-9]{3,5}", "(Rosa|Tom) (sang|ran)")]
    requests = [Request(tokenizer.prompt_ids("Once"), 12, [temperature(1.0)], n, (),
                        [*grammars, None][n % 3], name=str(n)) for n in range(9)]
    heard = serve(Engine(model, tokenizer, 4), requests, 1)
    for request in requests:
        check_law(model, tokenizer, request, heard)
    assert all(heard.text(str(n)).isdigit() for n in range(0, 9, 3))


class Noted:
    "A rule that changes nothing and keeps what it saw."

    def __init__(self):
        self.logits, self.past = [], []

    def __call__(self, logits, past):
        self.logits.append(logits[0].clone())
        self.past.append([i for i in past[0].tolist() if i >= 0])
        return logits


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_scores_are_those_of_a_whole_pass_at_every_step(tokenizer, changes):
    model, rng = loud_model(tokenizer, **changes), random.Random(1)
    ids = [[rng.randrange(1, 290) for _ in range(n)] for n in (3, 40, 1, 17, 47, 9, 33, 48, 2)]
    ids += [ids[4][:35] + [5], ids[1][:20]]
    requests = [Request(p, rng.choice([4, 12, 40]), [Noted()], name=str(n), top_logprobs=3)
                for n, p in enumerate(ids)]
    heard = serve(Engine(model, tokenizer, 4, prefill_chunk=10), requests, 1)
    assert any(heard.outputs[r.name][0].n_cached for r in requests)
    for request in requests:
        new, noted = list(heard.ids(request.name)), request.rules[0]
        with torch.no_grad():
            whole = model(torch.tensor([[*request.ids, *new][:48]]))[0][len(request.ids) - 1:]
        assert len(whole) >= len(new) > 0
        torch.testing.assert_close(torch.stack(noted.logits), whole[:len(noted.logits)],
                                   atol=1e-4, rtol=1e-4)
        markers = tokenizer.stop_ids
        assert noted.past == [[i for i in [*request.ids, *new[:n]] if i not in markers]
                              for n in range(len(noted.past))]
        best = whole[:len(new)].log_softmax(dim=-1).topk(3)
        top = [t for o in heard.outputs[request.name] for t in o.top]
        assert [[i for i, _ in t] for t in top] == best.indices.tolist()
        torch.testing.assert_close(torch.tensor([[x for _, x in t] for t in top]), best.values,
                                   atol=1e-4, rtol=1e-4)


def test_each_end_is_told_once_and_says_why(loud):
    model, tokenizer = loud
    ban = banned([tokenizer.end_of_text])
    only = logit_bias({tokenizer.end_of_text: 1000.0})
    requests = [Request([5] * 40, 99, [ban], name="context"), Request([5], 3, [ban], name="length"),
                Request([5], 9, [only], name="stop"), Request([5], 0, name="nothing"),
                Request([5] * 48, 5, [ban], name="full")]
    heard = serve(Engine(model, tokenizer), requests)
    assert {r.name: (heard.finish(r.name), len(heard.ids(r.name))) for r in requests} == {
        "context": ("context", 9), "length": ("length", 3), "stop": ("stop", 0),
        "nothing": ("length", 0), "full": ("context", 1)}


# What goes wrong stays where it is ----------------------------------------------------------------

def failing_after(n, what):
    calls = Counter()

    def fails(*arguments):
        calls["n"] += 1
        if calls["n"] > n:
            raise ZeroDivisionError(what)
        return arguments[0]
    return fails


@pytest.mark.parametrize("n", [0, 1, 4])
def test_a_rule_a_grammar_or_a_listener_that_fails_ends_its_own_request(loud, n):
    model, tokenizer = loud
    everything = torch.ones(tokenizer.vocab_size, dtype=torch.bool)
    grammar = failing_after(n, "grammar")
    ban = banned([tokenizer.end_of_text])
    good = [Request([7, i], 12, [ban, temperature(0.9)], i, name=f"good {i}") for i in range(4)]
    bad = [Request([9], 12, [ban, failing_after(n, "rule")], name="rule"),
           Request([9, 9], 12, [ban], name="grammar",
                   allowed=lambda ids: grammar(everything))]
    engine, heard, deaf, said = Engine(model, tokenizer), Heard(), failing_after(n, "deaf"), Heard()
    for request in (*good[:2], *bad, *good[2:]):
        engine.add(request, heard)

    def listener(output):
        said(output)
        deaf(output)
    engine.add(Request([3], 12, [ban], name="listener"), listener)
    while engine.step():
        pass
    for request in good:
        check_law(model, tokenizer, request, heard)
    for name in ("rule", "grammar"):
        assert heard.finish(name) == "error" and len(heard.ids(name)) == n
        assert heard.outputs[name][-1].error == f"ZeroDivisionError: {name}"
    assert said.finish("listener") == "error" and len(said.ids("listener")) == n + 1
    assert engine.stats.finished == {"length": 4, "error": 3}


def test_rows_with_equal_rules_that_forbid_everything_fail_one_by_one(loud):
    model, tokenizer = loud
    nothing, everything = (torch.full((tokenizer.vocab_size,), b) for b in (False, True))
    allowed = lambda ids: everything if len(ids) < 2 else nothing      # one object for both
    requests = [Request([7], 5, allowed=allowed, name="a"), Request([8], 1, allowed=allowed,
                                                                   name="b")]
    heard = serve(Engine(model, tokenizer), requests)
    assert heard.finish("a") == "error" and "no token is left" in heard.outputs["a"][-1].error
    assert heard.finish("b") == "length"


def test_scores_that_are_no_numbers_do_not_reach_the_others(tokenizer):
    model = loud_model(tokenizer, tie_embeddings=False)
    model.embedding.weight[250] = torch.nan
    fine = [Request([7 + n] * (3 * n + 2), 30, [temperature(1.0)], n, name=str(n))
            for n in range(12)]
    ill = [Request([3] * 5 + [250] * n, 9, name=f"ill {n}") for n in (1, 30)]
    late = Request([3, 4], 40, [logit_bias({250: 1e9}), temperature(0)], name="ill late")
    mixed = fine[:3] + [ill[0], late] + fine[3:6] + [ill[1]] + fine[6:]
    heard = serve(Engine(model, tokenizer, 4), mixed, 1)
    for request in (*ill, late):
        assert heard.finish(request.name) == "error"
        assert "not numbers" in heard.outputs[request.name][-1].error
    for request in fine:
        check_law(model, tokenizer, request, heard)


def test_a_pass_that_fails_ends_those_that_were_in_it_and_no_more(loud, monkeypatch):
    model, tokenizer = loud
    engine, heard = Engine(model, tokenizer), Heard()
    engine.add(Request([5], 30, name="under way"), heard)
    engine.step()
    step = Passes.step
    monkeypatch.setattr(Passes, "step", lambda *_: 1 / 0)
    engine.step()
    monkeypatch.setattr(Passes, "step", step)
    assert heard.finish("under way") == "error"
    request = Request([5], 30, name="next")
    engine.add(request, heard)
    while engine.step():
        pass
    check_law(model, tokenizer, request, heard)


@pytest.mark.parametrize("where", [(BatchCache, "join"), (BatchCache, "leave"),
                                   (PrefixCache, "store"), (PrefixCache, "fill")])
def test_a_fault_anywhere_ends_who_is_under_way_and_not_the_engine(loud, monkeypatch, where):
    engine, heard = Engine(*loud, max_batch_size=2), Heard()
    ban = banned([loud[1].end_of_text])
    requests = [Request([n + 5] * 20, 3 + n, [ban], n, name=str(n)) for n in range(5)]
    for request in requests:
        engine.add(request, heard)
    with monkeypatch.context() as patch:
        patch.setattr(*where, lambda *_: 1 / 0)
        while len(engine.jobs) > 2:
            engine.step()
    while engine.step():
        pass
    failed = [r.name for r in requests if heard.finish(r.name) == "error"]
    assert set("01") & set(failed) and not set("4") & set(failed)
    assert all("ZeroDivisionError" in heard.outputs[name][-1].error for name in failed)
    for request in requests:
        if request.name not in failed:
            check_law(*loud, request, heard)
    assert not engine.jobs and not engine.reading and engine.stats.kv_bytes == 0


@pytest.mark.parametrize("request_, words", [
    (Request([]), "no tokens"), (Request([1] * 49), "context_length=48"),
    (Request([1], -1), "max_tokens=-1"), (Request([294]), "0 to 293"),
    (Request([1], stop="a"), "give a list"), (Request([1], top_logprobs=-1), "top_logprobs=-1"),
    (Request([1], name="taken"), "choose another")])
def test_what_cannot_be_served_is_refused_at_the_door(loud, request_, words):
    engine = Engine(*loud)
    engine.add(Request([1], name="taken"), Heard())
    with pytest.raises(ValueError, match=words):
        engine.add(request_, Heard())
    assert list(engine.jobs) == ["taken"] and engine.n_waiting == 1


def test_an_engine_without_places_is_refused(loud):
    with pytest.raises(ValueError, match="max_batch_size=0 must be at least 1"):
        Engine(*loud, max_batch_size=0)


# Nothing leaks -----------------------------------------------------------------------------------

def test_a_thousand_requests_leave_nothing_behind(loud):
    model, tokenizer = loud
    rng, heard, ends = random.Random(0), Heard(), Counter()
    engine = Engine(model, tokenizer, 6, 2000, 32, 10 * BLOCK)
    for n in range(1000):
        rules = [failing_after(rng.randrange(4), "rule")] if rng.random() < 0.1 else []
        ids = [rng.randrange(290)] * rng.choice([1, 3, 20, 40])
        engine.add(Request(ids, rng.choice([1, 2, 5]), rules, n, name=str(n),
                           client=str(n % 7)), heard)
    while engine.step():
        if rng.random() < 0.3:
            engine.cancel(rng.choice(list(engine.jobs)))
        stats = engine.stats
        assert stats.running + stats.reading <= 6 and stats.prefix_tokens <= 10 * BLOCK
        assert stats.running + stats.reading + stats.waiting == len(engine.jobs)
        assert len(engine.cache.lengths) == len(engine.running)
    ends.update(heard.finish(str(n)) for n in range(1000))
    assert ends == engine.stats.finished and set(ends) >= {"length", "cancelled", "error"}
    assert not (engine.jobs or engine.queues or engine.reading or engine.running
                or engine.cancelled or engine.n_waiting)
    assert engine.stats.kv_bytes == 0 and len(engine.cache.ids) == 0
    assert 0 < engine.stats.prefix_tokens <= 10 * BLOCK
    assert not engine.step()


def test_who_has_ended_is_not_counted_among_the_running(loud):
    engine, seen = Engine(*loud), {}

    def listener(output):
        if output.finish:          # who hears the end may look at the figures at once
            stats = engine.stats
            seen[output.name] = stats.running, stats.reading, stats.waiting
    for n in range(3):
        engine.add(Request([5], 2 + 2 * n, name=str(n)), listener)
    while engine.step():
        pass
    assert seen == {"0": (2, 0, 0), "1": (1, 0, 0), "2": (0, 0, 0)}


def test_room_follows_the_longest_text_and_not_the_number_of_steps(loud):
    model, tokenizer = loud
    engine = Engine(model, tokenizer, 4, 1000, prefix_tokens=0)
    ban = banned([tokenizer.end_of_text])
    for n in range(60):
        engine.add(Request([n + 1], 5 + n % 7, [ban]), Heard())
    per_token = 2 * 2 * 8 * 4               # layers, keys and values, their width, bytes
    while engine.step():
        assert engine.stats.kv_bytes <= 4 * 2 * 16 * per_token
    assert engine.stats.steps > 100


def test_a_cancelled_request_gives_its_place_away_at_the_next_step(loud):
    engine, heard = Engine(*loud, max_batch_size=1), Heard()
    ban = banned([loud[1].end_of_text])
    engine.add(Request([1], 40, [ban], name="first"), heard)
    engine.add(Request([2], 40, [ban], name="second"), heard)
    engine.step()
    assert "second" not in heard.outputs
    assert engine.cancel("first") and not engine.cancel("nobody")
    engine.step()
    assert heard.finish("first") == "cancelled" and heard.ids("second")
    assert not engine.cancel("first")


def test_a_name_may_be_used_again_and_the_order_to_cancel_was_for_the_first(loud):
    engine, heard = Engine(*loud), Heard()
    said = []
    engine.add(Request([1], 1, name="other"), lambda output: said.append(engine.cancel("same")))
    engine.add(Request([1], 1, [banned([loud[1].end_of_text])], name="same"), heard)
    engine.step()                                     # both end, the other one first
    assert said == [True] and heard.finish("same") == "length"
    heard.outputs.clear()
    second = Request([1], 6, name="same")
    engine.add(second, heard)
    while engine.step():
        pass
    check_law(*loud, second, heard)


# Who waits how long ------------------------------------------------------------------------------

def test_clients_take_turns(loud):
    engine, order = Engine(*loud, max_batch_size=1, max_waiting=200), []

    def listener(output):
        if output.finish:
            order.append(output.name)
    for n in range(100):
        engine.add(Request([1], 2, name=f"many {n}", client="many"), listener)
    for _ in range(5):
        engine.step()
    engine.add(Request([1], 2, name="one", client="one"), listener)
    for n in range(3):
        engine.add(Request([1], 2, name=f"few {n}", client="few"), listener)
    served = len(order)
    assert served < 10                                   # of two tokens each, so most still wait
    while engine.step():
        pass
    assert order.index("one") <= served + 1
    assert order.index("few 2") <= served + 7
    assert [n for n in order if n.startswith("many")] == [f"many {n}" for n in range(100)]


@pytest.mark.parametrize("chunk", [1, 5, 16, 100])
def test_a_long_prompt_does_not_hold_up_the_others(loud, monkeypatch, chunk):
    model, tokenizer = loud
    events, read, step = [], Passes.read, Passes.step
    monkeypatch.setattr(Passes, "read", lambda self, ids, *rest: (
        events.append(ids.numel()), read(self, ids, *rest))[1])
    monkeypatch.setattr(Passes, "step", lambda *args: (events.append("step"), step(*args))[1])
    rng, engine = random.Random(chunk), Engine(model, tokenizer, 4, 99, chunk, prefix_tokens=0)
    requests = [Request([rng.randrange(290) for _ in range(rng.randint(1, 48))], 3, seed=n)
                for n in range(20)]
    held_up = 0
    for request in (Request([1], 40), *requests):
        engine.add(request, Heard())
    while engine.jobs:
        events.clear()
        under_way = len(engine.running)
        engine.step()
        tokens = sum(n for n in events if n != "step")
        assert tokens <= chunk
        if under_way:
            assert events.count("step") == 1 and events[-1] == "step"
            held_up += tokens > 0
    assert held_up > 10
    assert engine.stats.tokens_in == 1 + sum(len(r.ids) for r in requests)


def test_short_prompts_are_read_together(loud, monkeypatch):
    shapes, read = [], Passes.read
    monkeypatch.setattr(Passes, "read", lambda self, ids, *rest: (
        shapes.append(tuple(ids.shape)), read(self, ids, *rest))[1])
    requests = [Request([n + 1] * length, 3, name=str(n))
                for n, length in enumerate([4, 6, 2, 5, 30, 1, 40, 48])]
    heard = serve(Engine(*loud, prefill_chunk=24), requests)
    assert shapes[0] == (4, 6) and all(B * T <= 24 for B, T in shapes)
    for request in requests:
        check_law(*loud, request, heard)


def test_too_many_are_told_when_to_come_again(loud):
    model, tokenizer = loud
    clock = Clock()
    engine, heard = Engine(model, tokenizer, 2, 3, clock=clock), Heard()
    ban = banned([tokenizer.end_of_text])
    for _ in range(5):
        engine.add(Request([1], 4, [ban]), heard)
    with pytest.raises(Busy) as early:
        engine.add(Request([1], 4), heard)
    assert early.value.retry_after == 1.0 and engine.n_waiting == 5
    step = engine.decode

    def slow():                        # each decode step takes two seconds
        clock.now += 2.0
        step()
    engine.decode = slow
    for _ in range(3):                 # two requests of four tokens: one at prefill, three steps
        engine.step()
    assert engine.stats.finished == {"length": 2} and engine.stats.seconds_decode == 6.0
    engine.add(Request([1], 4, [ban]), heard)
    engine.add(Request([1], 4, [ban]), heard)
    with pytest.raises(Busy) as later:
        engine.add(Request([1], 4), heard)
    assert later.value.retry_after == pytest.approx(engine.n_waiting * 6.0 / 2, rel=0.7)


def test_deadlines_hold_for_those_that_wait_and_those_that_write(loud):
    model, tokenizer = loud
    clock, heard = Clock(), Heard()
    engine = Engine(model, tokenizer, 1, clock=clock)
    ban = banned([tokenizer.end_of_text])
    request = Request([1], 40, [ban], name="writes", deadline=2.0)
    engine.add(request, heard)
    engine.add(Request([1], 40, [ban], name="waits", deadline=1.0), heard)
    engine.add(Request([1], 2, [ban], name="patient"), heard)
    for clock.now in (0.0, 0.9):
        engine.step()
    assert "waits" not in heard.outputs
    clock.now = 1.0
    engine.step()
    assert heard.finish("waits") == "deadline" and heard.ids("waits") == ()
    assert len(heard.ids("writes")) == 4          # two in the first step
    clock.now = 2.5
    engine.step()
    assert heard.finish("writes") == "deadline" and heard.finish("patient") == "length"
    assert heard.ids("writes") == lone(model, tokenizer, request).ids[:4]


# The prefix cache ---------------------------------------------------------------------------------

def text_of(ids):
    "Keys and values that tell their tokens: two layers, one head, width one."
    kv = torch.tensor(ids, dtype=torch.float32)[None, :, None]
    return [(kv, kv + 0.25), (kv + 0.5, kv + 0.75)]


def found(prefix, ids):
    "How much of a prompt is known, and that it is what was stored."
    cache = KVCache(ModelConfig(8, 1000, 2, 1, 1, 1, 1, position="none"))
    n = prefix.fill(cache, ids)
    for layer, (keys, values) in zip(cache.layers, text_of(list(ids))):
        assert torch.equal(layer.keys[0, :, :n], keys[:, :n])
        assert torch.equal(layer.values[0, :, :n], values[:, :n])
    return n


def test_the_longest_known_beginning_is_found_and_the_last_token_is_left():
    rng, prefix, stored = random.Random(0), PrefixCache(10**6), []
    for _ in range(300):
        old = rng.choice(stored) if stored else []
        ids = old[:rng.randrange(len(old) + 1)]
        ids = ids + [rng.randrange(3) for _ in range(rng.randrange(50))]
        shared = [next((n for n, (a, b) in enumerate(zip(ids, s)) if a != b),
                       min(len(ids), len(s))) for s in stored]
        most = min(max(shared, default=0), len(ids) - 1)
        assert found(prefix, ids) == max(0, most) // BLOCK * BLOCK
        if rng.random() < 0.5:
            prefix.store(ids, text_of(ids))
            stored.append(ids)
    assert prefix.n_tokens == BLOCK * len({tuple(s[:n]) for s in stored
                                           for n in range(BLOCK, len(s) + 1, BLOCK)})
    assert prefix.nbytes == prefix.n_tokens * 4 * 4
    whole = [3] * 3 * BLOCK                          # something is read, or there were no scores
    prefix.store(whole, text_of(whole))
    assert found(prefix, whole) == 2 * BLOCK and found(prefix, [*whole, 0]) == 3 * BLOCK


def test_what_was_unused_for_longest_is_forgotten_from_its_end():
    a, b, c = ([n] * (3 * BLOCK) for n in (1, 2, 3))
    prefix = PrefixCache(6 * BLOCK + 5)
    for ids in (a, b):
        prefix.store(ids, text_of(ids))
    assert found(prefix, [*a, 0]) == 3 * BLOCK         # b is unused for longer now
    prefix.store(c[:BLOCK], text_of(c[:BLOCK]))
    assert [found(prefix, [*ids, 0]) // BLOCK for ids in (b, a, c)] == [2, 3, 1]
    prefix.store([4] * (2 * BLOCK), text_of([4] * (2 * BLOCK)))
    assert [found(prefix, [*ids, 0]) // BLOCK for ids in (b, a, c)] == [0, 3, 1]
    longer = list(range(10 * BLOCK))
    prefix.store(longer, text_of(longer))
    assert prefix.n_tokens == 6 * BLOCK == found(prefix, longer)


def test_a_prefix_cache_of_nothing_keeps_nothing():
    prefix = PrefixCache(0)
    prefix.store([1] * 40, text_of([1] * 40))
    assert prefix.n_tokens == prefix.nbytes == 0 == found(prefix, [1] * 40)


def test_shared_beginnings_are_read_once_and_answers_are_remembered(loud):
    model, tokenizer = loud
    ban = banned([tokenizer.end_of_text])
    opening = list(range(40, 73))                                          # 33 tokens
    first = Request(opening, 8, [ban], name="first")
    engine = Engine(model, tokenizer)
    heard = serve(engine, [first])
    second = Request([*opening[:20], 5, 6], 4, [ban], name="second")       # 16 of 20 are shared
    third = Request([*opening, *heard.ids("first"), 9], 3, [ban], name="third")     # a next turn
    same = Request(opening[:32], 4, [ban], name="same")                    # its last must be read
    more = serve(engine, [second, third, same])
    assert [heard.outputs["first"][0].n_cached, *(
        more.outputs[r.name][0].n_cached for r in (second, third, same))] == [0, 16, 32, 16]
    assert engine.stats.tokens_in == 33 + 6 + 10 + 16
    assert engine.stats.tokens_cached == 64 and engine.stats.prefix_hits == 3
    for request in (second, third, same):
        check_law(model, tokenizer, request, more)


def test_what_another_model_has_read_is_not_used(tokenizer):
    model, request = loud_model(tokenizer), Request(list(range(40)), 8, name="one")
    engine = Engine(model, tokenizer)
    before = serve(engine, [request])
    check_law(model, tokenizer, request, before)
    with torch.no_grad():
        model.blocks[0].attention.value.weight.mul_(-1.5)
    after = serve(engine, [request])
    assert after.outputs["one"][0].n_cached == 0
    check_law(model, tokenizer, request, after)
    assert after.ids("one") != before.ids("one")


# Parts --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(5))
def test_rows_of_a_batch_keep_their_own_keys(loud, seed):
    "Beside plain lists, which hold the same numbers."
    model, rng = loud[0], random.Random(seed)
    batch, texts = BatchCache(model, 5), []
    numbers = iter(range(1, 10**6))

    def layers(ids):
        kv = torch.tensor(ids, dtype=torch.float32)[None, :, None].expand(1, -1, 8)
        return [(kv, kv + 0.5)] * 2
    for _ in range(300):
        if len(texts) < 5 and rng.random() < 0.3:
            texts.append([next(numbers) for _ in range(rng.randint(1, 30))])
            batch.join(layers(texts[-1]), texts[-1])
        elif texts and (rng.random() < 0.3 or max(map(len, texts)) == 47):
            row = rng.randrange(len(texts))
            batch.leave(row, rng.random() < 0.5)
            texts[row] = texts[-1]
            texts.pop()
        elif texts:
            new = [next(numbers) for _ in texts]
            batch.open_column(new)
            k = torch.tensor(new, dtype=torch.float32)[:, None, None, None].expand(-1, 1, 1, 8)
            for layer in batch.layers:
                layer.append(k, k + 0.5)
            batch.close_column()
            texts = [[*text, i] for text, i in zip(texts, new)]
        width = max(map(len, texts), default=0)
        assert batch.length == width and batch.lengths == list(map(len, texts))
        assert batch.past.tolist() == [[-1] * (width - len(t)) + t for t in texts]
        padding = np.zeros(len(texts)) if batch.padding is None else batch.padding.numpy()
        assert padding.tolist() == [width - len(t) for t in texts]
        assert all(room.isfinite().all() for room in batch.rooms)
        for row, text in enumerate(texts):
            for (k, v), (expected, more) in zip(kept(batch, row, len(text)), layers(text)):
                assert torch.equal(k, expected) and torch.equal(v, more)


def test_rules_with_equal_numbers_are_equal_and_others_are_not():
    assert rule_key(temperature(0.8)) == rule_key(temperature(0.8)) != rule_key(temperature(0.9))
    assert rule_key(top_k(5)) != rule_key(top_p(0.5)) != rule_key(temperature(0.5))
    assert rule_key(frequency_penalty(0.5)) == rule_key(frequency_penalty(0.5))
    assert rule_key(logit_bias({1: 2.0, 3: 0.0})) == rule_key(logit_bias({3: 0.0, 1: 2.0}))
    assert rule_key(logit_bias({1: 2.0})) != rule_key(logit_bias({1: 3.0}))
    for make in (top_k, top_p, min_p, typical, temperature, repetition_penalty, presence_penalty,
                 frequency_penalty, lambda n: banned([n]), lambda n: logit_bias({n: 2.0})):
        assert {rule_key(make(1)): 0} == {rule_key(make(1)): 0}
    def counting(n):
        return lambda logits, past: logits + n
    assert rule_key(counting(1)) != rule_key(counting(1))          # it might count


def test_one_call_draws_for_all_rows_with_equal_rules(loud, monkeypatch):
    sizes, draw = [], Engine.draw_alike
    monkeypatch.setattr(Engine, "draw_alike", lambda self, logits, jobs, past, rows: (
        sizes.append(len(rows)), draw(self, logits, jobs, past, rows))[1])
    ban = banned([loud[1].end_of_text])
    requests = [Request([n + 1], 2, [ban, temperature(0.5 + n % 2)], n) for n in range(8)]
    serve(Engine(*loud), requests)
    assert sizes == [4, 4, 4, 4]


# The thread ---------------------------------------------------------------------------------------

class Ended(Heard):
    "Knows when so many requests have ended."

    def __init__(self, n):
        super().__init__()
        self.left, self.all = n, threading.Event()

    def __call__(self, output):
        super().__call__(output)
        if output.finish:
            self.left -= 1
            if not self.left:
                self.all.set()


def test_many_threads_may_ask_at_once(loud):
    requests = [Request([n + 1] * (n % 9 + 1), 10, [temperature(1.0)], n, name=str(n))
                for n in range(40)]
    ended = Ended(40)
    with EngineThread(Engine(*loud, max_batch_size=3)) as served:
        assert served.healthy

        def ask(some):
            for request in some:
                served.add(request, ended)
        askers = [threading.Thread(target=ask, args=(requests[n::4],)) for n in range(4)]
        for asker in askers:
            asker.start()
        assert ended.all.wait(60)
        for asker in askers:
            asker.join()
    assert not served.healthy and served.error is None and not served.thread.is_alive()
    for request in requests:
        check_law(*loud, request, ended)


def test_draining_finishes_what_was_let_in(loud):
    heard, begun = Heard(), threading.Event()

    def listener(output):
        heard(output)
        begun.set()
    requests = [Request([n + 1], 10, name=str(n)) for n in range(8)]
    with EngineThread(Engine(*loud, max_batch_size=2)) as served:
        for request in requests:
            served.add(request, listener)
        begun.wait(60)
        assert served.drain(60)
        with pytest.raises(RuntimeError, match="has stopped"):
            served.add(Request([1]), heard)
    for request in requests:
        check_law(*loud, request, heard)


class Holds:
    "A rule that lets the engine go on when it is told to."

    def __init__(self):
        self.entered, self.go_on = threading.Event(), threading.Event()

    def __call__(self, logits, past):
        self.entered.set()
        assert self.go_on.wait(60)
        return logits


def test_who_comes_while_it_drains_is_sent_away(loud):
    heard, holds, drained = Heard(), Holds(), []
    with EngineThread(Engine(*loud)) as served:
        served.add(Request([1], 5, [holds], name="held"), heard)
        assert holds.entered.wait(60)
        drainer = threading.Thread(target=lambda: drained.append(served.drain(60)))
        drainer.start()
        while not served.draining:
            pass
        with pytest.raises(Busy, match="about to stop"):
            served.add(Request([2]), heard)
        holds.go_on.set()
        drainer.join()
    assert drained == [True]
    check_law(*loud, Request([1], 5, name="held"), heard)


def test_when_the_time_to_drain_is_over_the_rest_is_cancelled(loud):
    heard, holds = Heard(), Holds()

    def let_go():
        while not served.stopping:
            pass
        holds.go_on.set()
    with EngineThread(Engine(*loud, max_batch_size=1)) as served:
        served.add(Request([1], 40, [holds], name="held"), heard)
        served.add(Request([1], 40, name="waits"), heard)
        assert holds.entered.wait(60)
        helper = threading.Thread(target=let_go)
        helper.start()
        assert not served.drain(0)
        helper.join()
    assert heard.finish("held") == heard.finish("waits") == "cancelled"
    assert not served.thread.is_alive() and not served.engine.jobs


def test_a_broken_engine_says_so_to_everybody(loud):
    engine, ended = Engine(*loud), Ended(2)

    def breaks():
        raise MemoryError("no room")
    engine.sweep, served = breaks, EngineThread(engine)
    for n in range(2):
        served.add(Request([1], name=str(n)), ended)
    with served:
        assert ended.all.wait(60)
        served.thread.join()
        assert isinstance(served.error, MemoryError) and not served.healthy
        assert {ended.finish(n) for n in "01"} == {"error"}
        assert "no room" in ended.outputs["0"][-1].error
        with pytest.raises(RuntimeError, match="no room"):
            served.add(Request([1]), ended)


def test_a_listener_may_ask_and_cancel(loud):
    engine, heard = Engine(*loud), Heard()

    def listener(output):
        heard(output)
        if output.finish and output.name == "first":
            engine.add(Request([2], 5, name="second"), heard)
            engine.cancel("endless")
    ban = banned([loud[1].end_of_text])
    engine.add(Request([1], 3, name="first"), listener)
    engine.add(Request([3], 40, [ban], name="endless"), heard)
    while engine.step():
        pass
    assert heard.finish("endless") == "cancelled"
    check_law(*loud, Request([2], 5, name="second"), heard)
