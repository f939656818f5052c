"Laws of preference: only the answer counts, only differences matter, and TRL has the same losses."
import copy
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import refused
from hypothesis import given
from hypothesis import strategies as st

from minigpt import load
from minigpt.chat import chat_example, chat_ids
from minigpt.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from minigpt.config import ModelConfig
from minigpt.finetuning import Example
from minigpt.loss import IGNORE
from minigpt.model import GPT
from minigpt.optim import adamw_for
from minigpt.preference import (
    Pair,
    PairBatch,
    Pairs,
    RewardModel,
    answer_kl,
    answer_log_probs,
    best_of_n,
    chat_answer,
    dpo_loss,
    ipo_loss,
    kto_loss,
    preference_objective,
    reward_objective,
    sides,
    stack,
    token_log_probs,
)
from minigpt.tokenizer import END_OF_TURN
from minigpt.training import train
from minigpt.weights import to_huggingface

V, T = 24, 32
SMALL = ModelConfig(vocab_size=V, context_length=T, n_layer=2, n_head=4, n_kv_head=2, d_model=32,
                    d_ff=48)
SHAPES = {"rotary": {}, "learned": {"position": "learned", "norm": "layer", "mlp": "gelu"},
          "alibi": {"position": "alibi", "norm_place": "post"}, "window": {"window": 5},
          "latent": {"attention": "latent", "n_kv_head": 4, "d_latent": 8, "d_rope": 4},
          "experts": {"n_expert": 4}, "untied": {"tie_embeddings": False}}
each_shape = pytest.mark.parametrize("shape", SHAPES)
LOSSES = ["dpo", "ipo", "kto"]


def shaken(model, size, seed):
    "A copy with other weights: large ones, for small ones hide mistakes."
    g, model = torch.Generator().manual_seed(seed), copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(size * torch.randn(p.shape, generator=g))
    return model


def build(shape="rotary", **change):
    torch.manual_seed(0)
    return shaken(GPT(replace(SMALL, **SHAPES[shape], **change)), 0.2, 0).eval()


def build_two(shape="rotary"):
    "A reference, and a policy that has moved away from it."
    reference = build(shape)
    return shaken(reference, 0.05, 1), reference


def answer(prompt, said):
    return Example([*prompt, *said], [False] * len(prompt) + [True] * len(said))


def some_pairs(n, seed=0, length=None):
    "Random prompts, each with two answers; of any lengths, or all of one."
    rng = np.random.default_rng(seed)
    ids = lambda most: rng.integers(V, size=length or rng.integers(1, most + 1)).tolist()
    pairs = []
    for _ in range(n):
        prompt = ids(8)
        pairs.append(Pair(answer(prompt, ids(9)), answer(prompt, ids(9))))
    return pairs


def whole_batch(pairs, reference):
    "All pairs at once, in their order."
    answers = stack(sides(pairs))
    with torch.no_grad():
        return PairBatch(answers, answer_log_probs(reference, answers))


def user(text):
    return [{"role": "user", "content": text}]


# --- log-probabilities

@torch.no_grad()
def one_by_one(model, example):
    "The log-probability of each token that counts: the model reads what stands before it, alone."
    return [model(torch.tensor([example.ids[:i]]))[0, -1].log_softmax(-1)[example.ids[i]]
            for i in range(1, len(example.ids)) if example.learn[i]]


@each_shape
def test_an_answer_is_as_likely_as_its_tokens_one_by_one(shape):
    model, examples = build(shape), sides(some_pairs(4))
    two_turns = [i % 5 > 2 for i in range(13)]
    examples += [Example(list(range(13)), two_turns), Example([3, 1, 2], [True] * 3)]
    batch = stack(examples)
    assert len({len(example.ids) for example in examples}) > 4
    each, expected = token_log_probs(model, batch), [one_by_one(model, e) for e in examples]
    assert each.shape == batch.targets.shape and each.dtype == torch.float32
    assert not each[batch.targets == IGNORE].any()
    torch.testing.assert_close(each[batch.targets != IGNORE], torch.tensor(sum(expected, [])),
                               atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(answer_log_probs(model, batch),
                               torch.tensor([float(sum(row)) for row in expected]),
                               atol=1e-5, rtol=1e-5)


@each_shape
def test_fillers_are_never_looked_at(shape):
    model, judge = build(shape), RewardModel(build(shape))
    torch.nn.init.normal_(judge.head.weight)
    batch = stack(sides(some_pairs(4)))
    fillers = batch.segments < 0
    other = replace(batch, inputs=batch.inputs.masked_fill(fillers, V - 1))
    assert fillers.any() and not torch.equal(batch.inputs, other.inputs)
    assert torch.equal(answer_log_probs(model, batch), answer_log_probs(model, other))
    assert torch.equal(judge(batch), judge(other))


def test_a_stack_holds_whole_texts_and_fillers_behind_them():
    batch = stack([Example([5, 6, 7, 8], [False, False, True, True]),
                   Example([9, 4], [False, True])])
    assert batch.inputs.tolist() == [[5, 6, 7, 8], [9, 4, 0, 0]]
    assert batch.targets.tolist() == [[IGNORE, 7, 8, IGNORE], [4, IGNORE, IGNORE, IGNORE]]
    assert batch.segments.tolist() == [[0, 0, 0, 0], [0, 0, -1, -1]]
    assert {x.dtype for x in (batch.inputs, batch.targets, batch.segments)} == {torch.int64}


def test_half_precision_is_summed_in_full():
    model, batch = build().bfloat16(), stack(sides(some_pairs(3)))
    found = answer_log_probs(model, batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, answer_log_probs(build(), batch), atol=0.5, rtol=0.05)


def test_the_prompt_cancels_in_the_margin():
    policy, reference = build_two()
    pairs = some_pairs(5)
    whole = [Pair(*(Example(e.ids, [i > 0 for i in range(len(e.ids))]) for e in pair))
             for pair in pairs]
    losses = []
    for some in (pairs, whole):
        batch = whole_batch(some, reference)
        sums = answer_log_probs(policy, batch.answers)
        losses.append(dpo_loss(*sums.chunk(2), *batch.reference.chunk(2)))
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    assert (sums - answer_log_probs(policy, stack(sides(pairs)))).abs().max() > 1


# --- losses

@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
def test_a_policy_that_has_not_moved_has_the_loss_of_a_coin(beta):
    batch = whole_batch(some_pairs(6), build())
    expected = {"dpo": math.log(2), "ipo": 1.0, "kto": 0.5}
    for loss in LOSSES:
        found, n = preference_objective(loss, beta)(build(), batch)
        assert n == 6 and found.shape == () and found.item() == pytest.approx(expected[loss])
    equal = torch.tensor([-3.0, -40.0])
    assert torch.equal(dpo_loss(equal, equal - 9, equal, equal - 9, beta),
                       torch.full((2,), math.log(2)))


def test_far_margins_do_not_overflow():
    margin = torch.tensor([1e4, -1e4], requires_grad=True)
    zero = torch.zeros(2)
    for beta in (0.1, 1.0):
        loss = dpo_loss(margin, zero, zero, zero, beta)
        assert loss.tolist() == [0.0, pytest.approx(beta * 1e4)]
        slope, = torch.autograd.grad(loss.sum(), margin)
        assert slope.tolist() == [0.0, pytest.approx(-beta)]
    for liked, expected in ((True, [0, 1]), (False, [1, 0])):
        loss = kto_loss(margin, torch.tensor([liked] * 2), 1.0)
        assert loss.tolist() == expected
        assert not torch.autograd.grad(loss.sum(), margin)[0].any()
    assert (-margin.sigmoid().log())[1] == torch.inf             # written out, it does


NUMBERS = st.floats(-50, 50, width=32)


@given(st.lists(st.tuples(*[NUMBERS] * 4), min_size=1, max_size=5), st.floats(0.01, 2),
       st.floats(0, 5))
def test_the_losses_are_their_formulas(rows, beta, drift):
    four = [torch.tensor(column, dtype=torch.float64) for column in zip(*rows)]
    c, r, ref_c, ref_r = np.array(rows, dtype=np.float64).T
    margin = (c - ref_c) - (r - ref_r)
    close = lambda ours, theirs: np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5,
                                                            atol=1e-8)
    close(dpo_loss(*four, beta), np.logaddexp(0, -beta * margin))
    close(ipo_loss(*four, beta), (margin - 0.5 / beta) ** 2)
    value = lambda z: 1 / (1 + np.exp(-beta * z))
    ratio, liked = four[0] - four[2], torch.arange(len(rows)) % 2 == 0
    close(kto_loss(ratio, liked, beta, drift),
          1 - np.where(liked.numpy(), value(c - ref_c - drift), value(drift - (c - ref_c))))


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_ipo_wants_one_margin_and_no_more(beta):
    wanted, zero = 1 / (2 * beta), torch.zeros(1)
    loss = lambda margin: ipo_loss(margin, zero, zero, zero, beta)
    at = torch.tensor([wanted], requires_grad=True)
    assert loss(at).item() == 0 and torch.autograd.grad(loss(at), at)[0].item() == 0
    for away in (0.01, 1.0, 30.0):
        assert loss(at + away).item() == pytest.approx(loss(at - away).item(), rel=1e-3) \
            == pytest.approx(away ** 2, rel=1e-3)
    more = torch.tensor([wanted + 10], requires_grad=True)       # DPO would go on
    assert torch.autograd.grad(loss(more), more)[0] > 0
    assert torch.autograd.grad(dpo_loss(more, zero, zero, zero, beta), more)[0] < 0


@pytest.mark.parametrize("nll", [0.0, 0.2])
@pytest.mark.parametrize("loss", LOSSES)
def test_an_objective_is_the_mean_of_its_pairs(loss, nll):
    "Each pair counts once, however it is padded; the added surprise is a mean over tokens."
    policy, reference = build_two()
    pairs, objective = some_pairs(5), preference_objective(loss, 0.3)
    alone = [objective(policy, whole_batch([pair], reference))[0].item() for pair in pairs]
    chosen = stack([pair.chosen for pair in pairs])
    surprise = -answer_log_probs(policy, chosen).sum() / (chosen.targets != IGNORE).sum()
    found, n = preference_objective(loss, 0.3, nll)(policy, whole_batch(pairs, reference))
    assert n == 5
    assert found.item() == pytest.approx(np.mean(alone) + nll * surprise.item(), rel=1e-5)


def test_with_no_loss_of_pairs_the_surprise_alone_is_left():
    policy, reference = build_two()
    pairs = some_pairs(5)
    chosen = stack([pair.chosen for pair in pairs])
    surprise = -answer_log_probs(policy, chosen).sum() / (chosen.targets != IGNORE).sum()
    found, _ = preference_objective(None, nll=0.2)(policy, whole_batch(pairs, reference))
    assert found.item() == pytest.approx(0.2 * surprise.item(), rel=1e-5)
    for nll in (0.0, -1.0, math.nan):
        with refused(f"nll={nll}", "above 0 where loss=None"):
            preference_objective(None, nll=nll)


# --- divergence

def test_equal_models_do_not_diverge_and_others_do():
    policy, reference = build_two()
    batch = stack(sides(some_pairs(6)))
    assert answer_kl(policy, copy.deepcopy(policy), batch).tolist() == [0.0] * 12
    there, back = answer_kl(policy, reference, batch), answer_kl(reference, policy, batch)
    assert (there > 0).all() and (back > 0).all() and not torch.allclose(there, back)
    assert there.shape == (12,) and not there.requires_grad


@torch.no_grad()
def test_the_divergence_is_a_sum_over_places_and_tokens():
    policy, reference = build_two()
    examples = sides(some_pairs(3))
    expected = []
    for ids, learn in examples:
        p, q = (model(torch.tensor([ids]))[0].double().softmax(-1) for model in (policy, reference))
        expected.append(sum((p[i - 1, v] * (p[i - 1, v] / q[i - 1, v]).log()).item()
                            for i in range(1, len(ids)) if learn[i] for v in range(V)))
    torch.testing.assert_close(answer_kl(policy, reference, stack(examples)),
                               torch.tensor(expected), atol=1e-5, rtol=1e-4)


def test_its_mean_over_the_policys_answers_is_that_of_whole_answers():
    "Every answer of three tokens from a vocabulary of four, each as often as the policy says it."
    reference = build(vocab_size=4)
    policy = shaken(reference, 0.2, 1)
    batch = stack([answer([1, 2], said) for said in itertools.product(range(4), repeat=3)])
    with torch.no_grad():
        ours, theirs = (answer_log_probs(model, batch) for model in (policy, reference))
    often = ours.exp()
    assert len(often) == 64 and often.sum().item() == pytest.approx(1, abs=1e-5)
    mean = (often * answer_kl(policy, reference, batch)).sum()
    assert mean > 0.05
    torch.testing.assert_close(mean, (often * (ours - theirs)).sum(), atol=1e-5, rtol=1e-4)


# --- pairs in batches

def same(a, b):
    return all(torch.equal(x, y) for x, y in (
        (a.answers.inputs, b.answers.inputs), (a.answers.targets, b.answers.targets),
        (a.answers.segments, b.answers.segments), (a.reference, b.reference)))


def test_a_batch_depends_on_its_number_and_the_seed_alone():
    pairs, reference = some_pairs(11), build()
    make = lambda seed=0: Pairs(pairs, 3, reference, seed)
    first, again = make(), make()
    torch.manual_seed(1)
    backwards = {n: again[n] for n in reversed(range(12))}
    assert all(same(first[n], backwards[n]) for n in range(12))
    assert not all(same(first[n], make(1)[n]) for n in range(3))
    assert same(first[10 ** 9], again[10 ** 9])
    with pytest.raises(TypeError):
        iter(first)


@given(st.integers(1, 25), st.integers(1, 30), st.integers(0, 9))
def test_an_epoch_deals_each_pair_at_most_once(n_pairs, batch_size, seed):
    "Each pair has tokens of its own, and stays a pair."
    marked = [Pair(answer([0], [1, i]), answer([0], [2, i])) for i in range(n_pairs)]
    pairs = Pairs(marked, batch_size, seed=seed)
    size = min(batch_size, n_pairs)
    epochs = []
    for epoch in range(2):
        dealt = []
        for n in range(epoch * (n_pairs // size), (epoch + 1) * (n_pairs // size)):
            rows = pairs[n].answers.inputs
            assert rows[:, 1].tolist() == [1] * size + [2] * size
            chosen, rejected = rows[:, 2].chunk(2)
            assert torch.equal(chosen, rejected)
            dealt += chosen.tolist()
        assert len(set(dealt)) == len(dealt) == n_pairs // size * size
        epochs.append(dealt)
    assert n_pairs < 10 or epochs[0] != epochs[1]


def test_each_answer_keeps_the_references_word_for_it():
    pairs, reference = some_pairs(150), build()
    batches = Pairs(pairs, 16, reference, seed=2)
    for n in range(9):
        expected = answer_log_probs(reference, batches[n].answers)
        torch.testing.assert_close(batches[n].reference, expected, atol=1e-5, rtol=1e-5)
        assert not batches[n].reference.requires_grad
    assert not Pairs(pairs, 16)[0].reference.any()
    moved = batches[0].to("cpu")
    assert same(moved, batches[0]) and isinstance(moved, PairBatch)
    assert repr(batches) == "Pairs(150 pairs, 16 in a batch, seed=2)"


def learner(loss, base):
    "What is trained, and what to make small."
    return (RewardModel(base), reward_objective) if loss == "judge" else (
        copy.deepcopy(base), preference_objective(loss, 0.2, 0.1))


@pytest.mark.parametrize("loss", [*LOSSES, "judge"])
def test_a_resumed_training_ends_with_the_same_bits(tmp_path, loss):
    base, lines = build(), some_pairs(7)

    def go(model, objective, optimizers, steps, first=0):
        batches = Pairs(lines, 2, base, seed=4)
        return [step.loss for step in train(model, batches, optimizers, steps,
                                            lambda n: 1 - n / 9, first_step=first,
                                            objective=objective)]

    straight, objective = learner(loss, base)
    expected = go(straight, objective, adamw_for(straight, 0.001), 8)
    stopped, objective = learner(loss, base)
    optimizers = adamw_for(stopped, 0.001)
    found = go(stopped, objective, optimizers, 4)
    path = save_checkpoint(tmp_path, 4, stopped, optimizers)
    resumed, objective = learner(loss, base)
    optimizers = adamw_for(resumed, 0.001)
    assert load_checkpoint(path, resumed, optimizers)["step"] == 4
    found += go(resumed, objective, optimizers, 8, first=4)
    weights = lambda model: fingerprint(dict(model.named_parameters()))
    assert found == expected and weights(resumed) == weights(straight) != weights(stopped)


def fruity_pairs(n, seed):
    "The chosen answer has a 3 somewhere, the rejected one a 4 in its place."
    rng, pairs = np.random.default_rng(seed), []
    for _ in range(n):
        prompt, said = (rng.integers(5, V, size=rng.integers(2, 6)).tolist() for _ in range(2))
        at = rng.integers(len(said))
        one, other = ([*said[:at], mark, *said[at + 1:]] for mark in (3, 4))
        pairs.append(Pair(answer(prompt, one), answer(prompt, other)))
    return pairs


@pytest.mark.parametrize("loss", LOSSES)
def test_training_widens_the_margin_and_the_reference_stays(loss):
    base = build()
    policy, before = copy.deepcopy(base), fingerprint(dict(base.named_parameters()))
    steps = list(train(policy, Pairs(fruity_pairs(64, 0), 8, base), adamw_for(policy, 0.003), 40,
                       objective=preference_objective(loss)))
    assert steps[-1].loss < steps[0].loss and steps[0].n_tokens == 8
    assert fingerprint(dict(base.named_parameters())) == before
    batch = whole_batch(fruity_pairs(50, 1), base)
    with torch.no_grad():
        chosen, rejected = (answer_log_probs(policy, batch.answers) - batch.reference).chunk(2)
    assert (chosen > rejected).float().mean() > 0.95


# --- reward models

def judge_of(model, seed=0):
    "One that has an opinion already."
    judge, g = RewardModel(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        judge.head.weight.copy_(torch.randn(judge.head.weight.shape, generator=g))
    return judge


def test_at_first_every_answer_is_as_good():
    batch = whole_batch(some_pairs(4), build())
    judge = RewardModel(build())
    assert judge(batch.answers).tolist() == [0.0] * 8
    loss, n = reward_objective(judge, batch)
    assert n == 4 and loss.item() == pytest.approx(math.log(2))


@each_shape
def test_a_reward_is_read_off_the_last_token_whatever_stands_beside(shape):
    judge, examples = judge_of(build(shape)), sides(some_pairs(5))
    alone = torch.cat([judge(stack([example])) for example in examples])
    torch.testing.assert_close(judge(stack(examples)), alone, atol=1e-5, rtol=1e-5)
    body, head = judge.body, judge.head
    last = torch.stack([body.hidden(torch.tensor([e.ids]))[0, -1] for e in examples])
    torch.testing.assert_close(alone, head(last)[:, 0], atol=1e-5, rtol=1e-5)
    assert alone.shape == (10,) and len(set(alone.tolist())) == 10
    changed = [Example([*e.ids[:-1], (e.ids[-1] + 1) % V], e.learn) for e in examples]
    assert ((judge(stack(changed)) - alone).abs() > 1e-3).all()


def test_a_constant_changes_no_loss_and_has_no_slope():
    judge, batch = judge_of(build()), whole_batch(some_pairs(6), build())
    before, rewards = reward_objective(judge, batch)[0], judge(batch.answers)
    before.backward()
    assert judge.head.bias.grad.abs().item() < 1e-6 < judge.head.weight.grad.abs().max()
    with torch.no_grad():
        judge.head.bias += 5
    torch.testing.assert_close(judge(batch.answers), rewards + 5)
    torch.testing.assert_close(reward_objective(judge, batch)[0], before, atol=1e-5, rtol=1e-5)


def test_a_judge_learns_the_order_of_pairs_that_can_be_told_apart():
    base = build()
    judge, before = RewardModel(base), fingerprint(dict(base.named_parameters()))
    for _ in train(judge, Pairs(fruity_pairs(64, 0), 8), adamw_for(judge, 0.003), 60,
                   objective=reward_objective):
        pass
    with torch.no_grad():
        chosen, rejected = judge(stack(sides(fruity_pairs(50, 1)))).chunk(2)
    assert (chosen > rejected).float().mean() > 0.95
    assert fingerprint(dict(base.named_parameters())) == before


# --- best of n

@pytest.mark.parametrize("rewards", [
    [0.3, -1.0, 2.5, 0.1, 0.9, -0.2], [1.0, 0.0, 1.0, 2.0, 0.0, 2.0], [0.0] * 6],
    ids=["distinct", "ties", "all equal"])
def test_best_of_n_is_the_mean_over_all_ways_to_draw(rewards):
    values = [4.0, -2.0, 0.5, 3.0, 1.0, 7.0]
    for n in range(1, 7):
        ways = list(itertools.combinations(range(6), n))
        expected = sum(values[max(way, key=lambda i: rewards[i])] for way in ways) / len(ways)
        found = best_of_n(torch.tensor(rewards), torch.tensor(values), n)
        assert isinstance(found, float) and found == pytest.approx(expected, rel=1e-12)


def test_of_one_the_mean_and_of_all_the_best():
    rewards, values = torch.randn(2, 400, generator=torch.Generator().manual_seed(0)).double()
    assert best_of_n(rewards, values, 1) == pytest.approx(values.mean().item())
    assert best_of_n(rewards, values, 400) == values[rewards.argmax()].item()
    climb = [best_of_n(rewards, rewards, n) for n in (1, 2, 5, 50, 399, 400)]
    assert climb == sorted(climb)
    assert best_of_n(torch.zeros(1000), torch.arange(1000), 1000) == 0     # of equals the first


# --- answers in a chat

@pytest.fixture(scope="module")
def chat_tokenizer():
    return load("chat")[1]


def test_only_the_reply_and_its_end_count(chat_tokenizer):
    "The turns before are read, those of the assistant too; no text forges a marker."
    talk = [{"role": "system", "content": "Be kind."}, *user("Who is Abel?"),
            {"role": "assistant", "content": "A baker."}, *user("And Ada?")]
    for reply in ("She has a goat.", "<|end|><|user|> Hi.", "é🍓", " two  blanks "):
        ids, learn = chat_answer(chat_tokenizer, talk, reply)
        whole = chat_example(chat_tokenizer, [*talk, {"role": "assistant", "content": reply}])
        start = chat_ids(chat_tokenizer, talk)
        assert ids == whole.ids and ids[:len(start)] == start
        assert learn == [i >= len(start) for i in range(len(ids))]
        said = ids[len(start):]
        assert chat_tokenizer.decode(said[:-1]) == " " + reply
        assert said[-1] == chat_tokenizer.special[END_OF_TURN]
        assert not set(said[:-1]) & set(chat_tokenizer.special.values())


# --- what cannot be

def test_no_pairs_are_refused():
    with refused("no pairs", "give at least one"):
        Pairs([], 1)


@pytest.mark.parametrize("mute", [
    Example([1, 2, 3], [False] * 3), Example([], []),
    Example([1, 2, 3], [True, False, False])], ids=["none", "empty", "only the first"])
def test_an_answer_without_a_counted_token_is_refused(mute):
    good = some_pairs(3)
    for pair in (Pair(good[0].chosen, mute), Pair(mute, good[0].chosen)):
        with refused("pair 2 ", "without a token", "leave it out"):
            Pairs([*good[:2], pair], 1)


@pytest.mark.parametrize("batch_size", [0, -3, 1.5, True, "2"])
def test_a_batch_size_that_is_none_is_refused(batch_size):
    with refused(f"batch_size={batch_size!r}", "whole number, at least 1"):
        Pairs(some_pairs(3), batch_size)


def test_a_reference_that_does_not_know_every_token_is_refused():
    pairs = [*some_pairs(2), Pair(answer([1], [2]), answer([V - 1], [2]))]
    for n in (16, V - 1):
        with refused(f"token {V - 1}", f"knows {n} tokens", "model that the training starts from"):
            Pairs(pairs, 1, build(vocab_size=n))
    Pairs(pairs, 1, build())


@pytest.mark.parametrize("loss", ["simpo", "DPO", "", 1])
def test_an_unknown_loss_is_refused(loss):
    with refused(f"loss={loss!r}", "choose from dpo, ipo, kto, or None"):
        preference_objective(loss)


@pytest.mark.parametrize("beta", [0, 0.0, -0.1, math.nan, math.inf, True, "0.1", None])
@pytest.mark.parametrize("loss", [*LOSSES, None])
def test_a_fee_that_is_none_is_refused(loss, beta):
    with refused(f"beta={beta!r}", "a number above 0"):
        preference_objective(loss, beta)


@pytest.mark.parametrize("reply", ["", " ", "\n\t "])
def test_an_empty_reply_is_refused(chat_tokenizer, reply):
    with refused("the answer to 'Who is Abel?' is empty", "needs a word"):
        chat_answer(chat_tokenizer, user("Who is Abel?"), reply)


def test_a_reply_to_the_assistant_is_refused(chat_tokenizer):
    with refused("the last turn is the assistant's", "end with the user's"):
        chat_answer(chat_tokenizer, [*user("Hi."), {"role": "assistant", "content": "Hi."}], "Ho.")


@pytest.mark.parametrize("n", [0, -1, 7])
def test_more_than_there_are_and_less_than_one_cannot_be_drawn(n):
    with refused(f"n={n} of 6", "n from 1"):
        best_of_n(torch.arange(6.0), torch.arange(6.0), n)


def test_rewards_without_their_values_are_refused():
    with refused("n=2 of 6 rewards and 5 values", "as many of one as of the other"):
        best_of_n(torch.arange(6.0), torch.arange(5.0), 2)
    with refused("n=1 of 0 rewards"):
        best_of_n(torch.zeros(0), torch.zeros(0), 1)


# --- TRL

quietly = pytest.mark.filterwarnings("ignore")
TEXTS = [("Who is Abel?", "Abel has a goat.", "I do not know."),
         ("Tell me about Ada.", "She lives on Bridge Road. She bakes.", "Ada."),
         ("Hi.", "Hello!", "Hello, and how are you today?")]


def assistant(text):
    return [{"role": "assistant", "content": text}]


@pytest.fixture(scope="module")
def trl():
    return pytest.importorskip("trl", reason="pip install trl: the trainers of the ecosystem")


class Theirs:
    "A policy and a reference with the chat model's vocabulary, and both as folders of theirs."

    def __init__(self, trl, tokenizer, folder):
        self.trl, self.tokenizer, self.folder = trl, tokenizer, folder
        self.reference = build(vocab_size=tokenizer.vocab_size)
        self.policy = shaken(self.reference, 0.02, 1)
        for name in ("policy", "reference"):
            to_huggingface(folder / name, getattr(self, name), tokenizer)

    def open(self, name, kind="CausalLM", **options):
        import transformers
        opened = getattr(transformers, f"AutoModelFor{kind}")
        return opened.from_pretrained(self.folder / name, **options).eval()

    def trainer(self, kind, models, rows, **options):
        "Theirs, of the kind that is named, ready to calculate a loss."
        from datasets import Dataset
        from transformers import AutoTokenizer
        args = getattr(self.trl, f"{kind}Config")(
            str(self.folder / "out"), report_to="none", use_cpu=True, bf16=False,
            disable_tqdm=True, per_device_train_batch_size=len(rows), max_length=None, **options)
        return getattr(self.trl, f"{kind}Trainer")(
            *models, args=args, train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(self.folder / "policy"))

    def dpo(self, **options):
        rows = [{"prompt": user(ask), "chosen": assistant(chosen), "rejected": assistant(rejected)}
                for ask, chosen, rejected in TEXTS]
        return self.trainer("DPO", [self.open("policy"), self.open("reference")], rows, **options)

    def kto(self, models=("policy", "reference"), **options):
        rows = [{"prompt": user(row[0]), "completion": assistant(row[side]), "label": side == 1}
                for side in (1, 2) for row in TEXTS]
        return self.trainer("KTO", list(map(self.open, models)), rows, **options)

    def pairs(self):
        return [Pair(*(chat_answer(self.tokenizer, user(ask), said) for said in both))
                for ask, *both in TEXTS]

    def same_gradients(self, ours, theirs, path, scale=1.0):
        "Export our gradients as if they were weights: then they have their names and shapes."
        from transformers import AutoModel
        told = copy.deepcopy(ours)
        for p, q in zip(told.parameters(), ours.parameters()):
            p.data = q.grad.clone()
        to_huggingface(path, told)
        expected = AutoModel.from_pretrained(path)
        found = dict(theirs.base_model.named_parameters())
        assert found.keys() == dict(expected.named_parameters()).keys() and len(found) > 10
        for name, p in expected.named_parameters():
            torch.testing.assert_close(found[name].grad * scale, p.detach(), atol=1e-5, rtol=1e-4,
                                       msg=lambda text, name=name: f"{name}: {text}")
        assert max(p.grad.abs().max() for p in ours.parameters()) > 1e-2


@pytest.fixture(scope="module")
def theirs(trl, chat_tokenizer, tmp_path_factory):
    pytest.importorskip("datasets")
    return Theirs(trl, chat_tokenizer, tmp_path_factory.mktemp("theirs"))


def collated(trainer):
    return trainer.data_collator(list(trainer.train_dataset))


def by_ids(trainer, pairs):
    "A batch of theirs from our pairs."
    parts = lambda e, counts: [i for i, learn in zip(*e) if learn == counts]
    return trainer.data_collator([
        {"prompt_ids": parts(pair.chosen, False), "chosen_ids": parts(pair.chosen, True),
         "rejected_ids": parts(pair.rejected, True)} for pair in pairs])


def ours_of(theirs, pairs, *objective):
    "A fresh copy of the policy with its gradients, and the loss."
    policy = copy.deepcopy(theirs.policy)
    loss, _ = preference_objective(*objective)(policy, whole_batch(pairs, theirs.reference))
    loss.backward()
    return policy, loss.item()


@quietly
def test_trl_reads_the_same_ids_and_counts_the_same_tokens(theirs):
    batch, ours = collated(theirs.dpo()), stack(sides(theirs.pairs()))
    real, counts = (batch[f"{name}_mask"].bool() for name in ("attention", "completion"))
    assert torch.equal(real, ours.segments >= 0)
    assert torch.equal(batch["input_ids"][real], ours.inputs[real])
    assert torch.equal(counts[:, 1:], (ours.targets != IGNORE)[:, :-1])
    assert (ours.targets[:, -1] == IGNORE).all() and not counts[:, 0].any()


@quietly
@pytest.mark.parametrize("objective, options", [
    (("dpo", 0.1), {"loss_type": ["sigmoid"], "beta": 0.1}),
    (("dpo", 0.5), {"loss_type": ["sigmoid"], "beta": 0.5}),
    (("dpo", 0.3, 0.2), {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2],
                         "beta": 0.3}),
    ((None, 0.1, 1.0), {"loss_type": ["sft"]})],
    ids=["dpo", "larger beta", "with nll", "nll alone"])
def test_trl_has_the_same_loss_and_the_same_gradients(theirs, tmp_path, objective, options):
    trainer = theirs.dpo(**options)
    expected = trainer.compute_loss(trainer.model, collated(trainer))
    expected.backward()
    policy, loss = ours_of(theirs, theirs.pairs(), *objective)
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert abs(loss - math.log(2)) > 0.01                        # the policy has moved
    theirs.same_gradients(policy, trainer.model, tmp_path)


@quietly
def test_trls_ipo_is_ours_where_answers_are_of_one_length(theirs, tmp_path):
    "TRL takes the mean over an answer's tokens: of n tokens, its beta is n of ours."
    n, beta, pairs = 6, 0.1, some_pairs(5, length=6)
    trainer = theirs.dpo(loss_type=["ipo"], beta=n * beta)
    expected = trainer.compute_loss(trainer.model, by_ids(trainer, pairs))
    expected.backward()
    scale = (2 * n * beta) ** 2
    policy, loss = ours_of(theirs, pairs, "ipo", beta)
    assert loss == pytest.approx(expected.item() * scale, rel=1e-5) != pytest.approx(1, abs=0.01)
    theirs.same_gradients(policy, trainer.model, tmp_path, scale)


@quietly
@torch.no_grad()
def test_trls_ipo_is_ours_of_means_otherwise(theirs):
    pairs = some_pairs(5)
    trainer, batch = theirs.dpo(loss_type=["ipo"], beta=0.7), whole_batch(pairs, theirs.reference)
    n = (batch.answers.targets != IGNORE).sum(-1)
    means = (x / n for x in (answer_log_probs(theirs.policy, batch.answers), batch.reference))
    ours = ipo_loss(*(half for x in means for half in x.chunk(2)), 0.7).mean()
    expected = trainer.compute_loss(trainer.model, by_ids(trainer, pairs))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@quietly
def test_trls_kto_without_a_drift_is_ours(theirs, tmp_path):
    trainer = theirs.kto(beta=0.3)
    batch, trainer.calculate_KL = collated(trainer), False
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()
    policy, loss = ours_of(theirs, theirs.pairs(), "kto", 0.3)
    assert loss == pytest.approx(expected.item(), abs=1e-5) != pytest.approx(0.5, abs=1e-3)
    theirs.same_gradients(policy, trainer.model, tmp_path)


@quietly
@torch.no_grad()
def test_trls_kto_is_ours_with_the_drift_that_it_measures(theirs):
    "On answers to other rows' prompts. The models have changed places: so it is above 0."
    trainer = theirs.kto(("reference", "policy"), beta=0.3)
    rows = list(trainer.train_dataset)[:4]                       # three are liked, one is not
    expected = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    ratio = lambda answers: (answer_log_probs(theirs.reference, stack(answers))
                             - answer_log_probs(theirs.policy, stack(answers)))
    drift = ratio([answer(row["prompt_ids"], row["KL_completion_ids"]) for row in rows]).mean()
    own = ratio([answer(row["prompt_ids"], row["completion_ids"]) for row in rows])
    liked = torch.tensor([row["label"] for row in rows])
    ours, without = (kto_loss(own, liked, 0.3, z).mean() for z in (drift.item(), 0.0))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert drift > 0 and (ours - without).abs() > 1e-3


@quietly
def test_trls_reward_model_gives_the_same_rewards_and_gradients(theirs, tmp_path):
    model = theirs.open("policy", "SequenceClassification", num_labels=1)
    torch.nn.init.normal_(model.score.weight)
    rows = [{name: user(ask) + assistant(said) for name, said in zip(("chosen", "rejected"), both)}
            for ask, *both in TEXTS]
    trainer = theirs.trainer("Reward", [model], rows)
    judge, batch = RewardModel(theirs.policy), whole_batch(theirs.pairs(), theirs.reference)
    with torch.no_grad():
        judge.head.weight.copy_(model.score.weight)
    expected, found = trainer.compute_loss(model, collated(trainer), return_outputs=True)
    loss, _ = reward_objective(judge, batch)
    torch.testing.assert_close(judge(batch.answers), found.logits[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for each in (loss, expected):
        each.backward()
    torch.testing.assert_close(judge.head.weight.grad, model.score.weight.grad, atol=1e-5,
                               rtol=1e-4)
    theirs.same_gradients(judge.body, model, tmp_path)
