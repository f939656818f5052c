"Laws of calibration: scikit-learn has the same curves and scores, and SciPy the same temperature."
import copy
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import refused
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minigpt import load
from minigpt.calibration import (
    Bin,
    Scored,
    Selective,
    answer_logits,
    auroc,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    good_turing,
    reliability,
    selective,
    semantic_entropy,
)
from minigpt.chat import chat_example
from minigpt.config import ModelConfig
from minigpt.evaluation import answer, last_nats, sit, token_nats
from minigpt.finetuning import Example, answer_example, text_example
from minigpt.model import GPT
from minigpt.preference import chat_answer
from minigpt.tinytown import Tinytown

DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
OF_ALL = [reliability, expected_calibration_error, brier_score, auroc, selective]
OF_CONFIDENCE = [f for f in OF_ALL if f is not auroc]

each_of_all = pytest.mark.parametrize("measure", OF_ALL, ids=lambda f: f.__name__)
each_of_confidence = pytest.mark.parametrize("measure", OF_CONFIDENCE, ids=lambda f: f.__name__)


def answers(confidence, min_size=1):
    "Confidences with their marks."
    return st.lists(st.tuples(confidence, st.integers(0, 1)), min_size=min_size, max_size=40)


EXACT = st.integers(0, 64).map(lambda k: k / 64)       # no sum or mean of them is ever rounded
ANY = st.one_of(EXACT, st.integers(0, 10).map(lambda k: k / 10), st.floats(0, 1))
BOTH = lambda rows: len({mark for _, mark in rows}) == 2         # somebody right, somebody wrong


# --- scores of answers

@pytest.fixture(scope="module")
def shipped():
    return load()


@pytest.fixture(scope="module")
def tokenizer():
    return load("chat")[1]


@pytest.fixture(scope="module")
def model(tokenizer):
    "Large weights by lot: small ones hide mistakes."
    torch.manual_seed(0)
    cfg = ModelConfig(vocab_size=tokenizer.vocab_size, context_length=128, n_layer=2, n_head=4,
                      n_kv_head=2, d_model=32, d_ff=48)
    model = GPT(cfg).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    return model


def some_examples(tokenizer, kind, n):
    "Of many lengths. In a chat of two turns both replies count."
    names = ["Abel", "Rosa", "old Mrs Hill", "Tom and his dog", "nobody"]
    text = lambda i: " ".join(names[j % 5] for j in range(i, i + 1 + i % 7))
    talk = lambda i: [{"role": "user", "content": f"Who is {text(i)}?"}]
    reply = lambda i: [{"role": "assistant", "content": text(i + 2)}]
    make = {"text": lambda i: text_example(tokenizer, text(i)),
            "answer": lambda i: answer_example(tokenizer, f"Who is {text(i)}?", f" {text(i + 3)}."),
            "chat": lambda i: chat_answer(tokenizer, talk(i), text(i + 3)),
            "two turns": lambda i: chat_example(
                tokenizer, [*talk(i), *reply(i), *talk(i + 1), *reply(i + 1)])}
    return [make[kind](i) for i in range(n)]


KINDS = ["text", "answer", "chat", "two turns"]


@torch.no_grad()
def alone(model, example):
    "The scores before each token that counts; the model reads the example by itself."
    logits = model(torch.tensor([example.ids], device=model.device))[0].float().cpu()
    return logits[[i - 1 for i in range(1, len(example.ids)) if example.learn[i]]]


def told(example):
    return [i for i, learn in list(zip(*example))[1:] if learn]


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_each_answer_is_scored_as_if_it_were_alone(model, tokenizer, kind, device):
    "In three batches, the last of them small."
    model, examples = copy.deepcopy(model).to(device), some_examples(tokenizer, kind, 67)
    assert len({len(example.ids) for example in examples}) > 4
    scored = answer_logits(model, examples)
    assert len(scored) == 67 and all(isinstance(s, Scored) for s in scored)
    for s, example in zip(scored, examples):
        assert s.ids.tolist() == told(example) and s.ids.dtype == torch.int64
        assert s.logits.dtype == torch.float32 and not s.logits.requires_grad
        assert s.logits.device.type == s.ids.device.type == "cpu"
        assert_same(s.logits, alone(model, example))
    assert answer_logits(model, []) == []


def test_a_first_token_is_never_foretold(model):
    for learn in ([True] * 3, [False, True, True]):
        found, = answer_logits(model, [Example([5, 6, 7], learn)])
        assert found.ids.tolist() == [6, 7] and found.logits.shape == (2, model.cfg.vocab_size)


def test_half_precision_is_scored_in_full(model, tokenizer):
    examples = some_examples(tokenizer, "answer", 3)
    for found, full in zip(answer_logits(copy.deepcopy(model).bfloat16(), examples),
                           answer_logits(model, examples)):
        assert found.logits.dtype == torch.float32
        torch.testing.assert_close(found.logits, full.logits, atol=0.5, rtol=0.1)


def test_ids_that_have_no_token_take_no_part(model, tokenizer):
    "The chances of the others then sum to 1."
    examples = some_examples(tokenizer, "text", 35)
    known = max(max(example.ids) for example in examples) + 1
    assert known < model.cfg.vocab_size
    for s, example in zip(answer_logits(model, examples, known), examples):
        expected = alone(model, example)[:, :known]
        assert_same(s.logits, expected)
        assert_same(s.log_prob(), expected.log_softmax(-1)[range(len(s.ids)), s.ids].sum())
    whole, all_known = (answer_logits(model, examples[:1], n)[0].logits
                        for n in (None, model.cfg.vocab_size))
    assert torch.equal(whole, all_known)


def test_a_log_probability_is_minus_what_evaluation_calls_surprise(model, tokenizer):
    examples = some_examples(tokenizer, "text", 34)
    for s, example in zip(answer_logits(model, examples), examples):
        assert_same(s.log_prob(), -token_nats(model, example.ids).sum())
    for kind in ("answer", "chat"):
        examples = some_examples(tokenizer, kind, 34)
        counts = [sum(example.learn) for example in examples]
        nats = last_nats(model, [example.ids for example in examples], counts)
        for s, (expected, _) in zip(answer_logits(model, examples), nats):
            assert_same(s.log_prob(), -expected.sum())
            assert s.log_prob().shape == () and s.log_prob() < 0


def test_the_shipped_model_is_surer_of_what_it_knows(shipped):
    "Its right answers are likelier than what it says of strangers; every token was its likeliest."
    model, tok = shipped
    town = Tinytown(0)
    asked = [q for q in town.questions() if q.relation == "home"][:12]
    strange = [f"Q: Where does {name} live?\nA:" for name in town.strangers[:12]]
    prompts = [q.prompt for q in asked] + strange
    examples = [answer_example(tok, prompt, reply + "\n")
                for prompt, reply in zip(prompts, answer(model, tok, prompts))]
    scored = answer_logits(model, [Example(e.ids[:-1], e.learn[:-1]) for e in examples],
                           tok.vocab_size)
    assert all(torch.equal(s.logits.argmax(-1), s.ids) for s in scored)
    confidence = [s.log_prob().exp().item() for s in scored]
    assert sum(sit(model, tok, asked)) >= 10
    assert auroc(confidence, [1] * 12 + [0] * 12) > 0.8
    assert auroc([s.entropy().mean().item() for s in scored], [1] * 12 + [0] * 12) < 0.2


# --- one answer's probability and entropy

def some_scored(n, V=7, seed=0, sharp=3.0):
    g = torch.Generator().manual_seed(seed)
    return Scored(sharp * torch.randn(n, V, generator=g), torch.randint(V, (n,), generator=g))


@given(st.integers(1, 6), st.integers(2, 9), st.integers(0, 99),
       st.one_of(st.floats(0.01, 100), st.sampled_from([1, 2, 0.5])))
def test_a_temperature_divides_the_scores(n, V, seed, t):
    s = some_scored(n, V, seed)
    theirs = torch.distributions.Categorical(logits=s.logits.double() / t).log_prob(s.ids).sum()
    torch.testing.assert_close(s.log_prob(t).double(), theirs, atol=1e-4, rtol=1e-4)
    assert torch.equal(s.log_prob(), s.log_prob(1)) and torch.equal(s.log_prob(), s.log_prob(1.0))
    as_likely = -n * math.log(V)
    assert s.log_prob(1e6).item() == pytest.approx(as_likely, rel=1e-3)
    likeliest = Scored(s.logits, s.logits.argmax(-1))
    assert likeliest.log_prob(1e-5).item() == pytest.approx(0, abs=1e-2)
    assert as_likely - 1e-4 <= likeliest.log_prob(2 * t) <= likeliest.log_prob(t) + 1e-4 <= 1e-4


def test_a_score_of_ln_3_against_0_is_three_quarters():
    s = Scored(torch.tensor([[math.log(3), 0.0]] * 2), torch.tensor([0, 1]))
    assert s.log_prob().item() == pytest.approx(math.log(3 / 4) + math.log(1 / 4))
    assert s.log_prob(0.5).item() == pytest.approx(math.log(9 / 10) + math.log(1 / 10))
    mixed = -(3 / 4 * math.log(3 / 4) + 1 / 4 * math.log(1 / 4))
    assert s.entropy().tolist() == pytest.approx([mixed] * 2)


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 99), st.integers(0, 8))
def test_entropy_lies_between_0_and_that_of_a_fair_die(n, V, seed, without):
    "Tokens that cannot come (their score is minus infinity) count as if they were not there."
    s = some_scored(n, V, seed)
    theirs = torch.distributions.Categorical(logits=s.logits.double()).entropy()
    torch.testing.assert_close(s.entropy().double(), theirs, atol=1e-5, rtol=1e-5)
    assert s.entropy().shape == (n,)
    assert (s.entropy() >= 0).all() and (s.entropy() <= math.log(V) + 1e-6).all()
    more = Scored(torch.cat([s.logits, torch.full((n, without), -math.inf)], dim=1), s.ids)
    torch.testing.assert_close(more.entropy(), s.entropy())
    torch.testing.assert_close(more.log_prob(), s.log_prob())
    even = Scored(torch.zeros(n, V), s.ids).entropy()
    torch.testing.assert_close(even, torch.full((n,), math.log(V)))
    only = torch.full((n, V), -math.inf).scatter(1, s.ids[:, None], 5.0)
    assert not Scored(only, s.ids).entropy().any() and not Scored(only, s.ids).log_prob()


@pytest.mark.parametrize("t", [0, 0.0, -1, -0.5, math.nan, math.inf, -math.inf, True, "1", None])
def test_a_temperature_that_is_none_is_refused(t):
    with refused(f"t={t!r} must be a number above 0"):
        some_scored(3).log_prob(t)


@pytest.mark.parametrize("mute", [
    Example([1, 2, 3], [False] * 3), Example([1, 2, 3], [True, False, False]), Example([1], [True]),
    Example([], [])], ids=["none", "only the first", "one token", "empty"])
def test_an_answer_without_a_counted_token_is_refused(model, tokenizer, mute):
    "Its probability would be 1: the surest of all would be the one that says nothing."
    good = some_examples(tokenizer, "answer", 40)
    for examples, place in (([mute], 0), ([mute] * 3, 0), ([*good, mute, *good], 40)):
        with refused(f"example {place} ", "without a token", "leave it out"):
            answer_logits(model, examples)


def test_an_answer_of_unknown_tokens_is_refused(model):
    V = model.cfg.vocab_size
    fine, strange = Example([1, 2], [False, True]), Example([1, V + 3], [False, True])
    with refused("example 1 ", f"token {V + 3}", f"{V} tokens"):
        answer_logits(model, [fine, strange])
    with refused("example 0 ", "token 2", "2 tokens"):
        answer_logits(model, [fine], known=2)
    assert len(answer_logits(model, [fine], known=3)) == 1


@pytest.mark.parametrize("known", [0, -1, 2.5, True, "all"])
def test_a_number_of_known_tokens_that_is_none_is_refused(model, known):
    with refused(f"known={known!r}", "whole number, at least 1"):
        answer_logits(model, [Example([1, 2], [False, True])], known)


def test_an_answer_that_does_not_fit_the_context_is_refused(model):
    n = model.cfg.context_length + 1
    assert len(answer_logits(model, [Example([1] * n, [True] * n)])[0].ids) == n - 1
    with refused(f"{n} tokens", f"context_length={n - 1}"):
        answer_logits(model, [Example([1] * (n + 1), [True] * (n + 1))])


# --- bins

def sklearn_curve(rows, n_bins, strategy):
    "The share that is right and the mean confidence of each bin that holds an answer."
    from sklearn.calibration import calibration_curve
    p, y = zip(*rows)
    return calibration_curve(y, p, n_bins=n_bins, strategy=strategy, pos_label=1)


STRATEGIES = {"width": "uniform", "count": "quantile"}
each_way = pytest.mark.parametrize("equal", STRATEGIES)


@each_way
@given(answers(EXACT), st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_scikit_learn_has_the_same_bins_and_edges(equal, rows, n_bins):
    "Halves of halves, so that neither side rounds: most confidences lie on an edge, many repeat."
    found = reliability(*zip(*rows), n_bins, equal)
    right, confidence = sklearn_curve(rows, n_bins, STRATEGIES[equal])
    assert [b.right for b in found] == right.tolist()
    assert [b.confidence for b in found] == confidence.tolist()


@each_way
@given(answers(st.floats(0, 1)), st.integers(1, 25))
def test_scikit_learn_has_the_same_bins_between_edges(equal, rows, n_bins):
    if equal == "count":       # then an edge is never an answer, or lies between two that are equal
        assume(math.gcd(len(rows) - 1, n_bins) == 1)
    else:
        assume(all(abs(p * n_bins - round(p * n_bins)) > 1e-9 or p in (0, 1) for p, _ in rows))
    found = reliability(*zip(*rows), n_bins, equal)
    right, confidence = sklearn_curve(rows, n_bins, STRATEGIES[equal])
    np.testing.assert_allclose([b.right for b in found], right, rtol=1e-12)
    np.testing.assert_allclose([b.confidence for b in found], confidence, rtol=1e-12)


def sorted_into(rows, edges):
    "Bins by their definition: above one edge, and not above the next. The first holds its own."
    bins = [[row for row in rows if (row[0] > low or k == 0) and (row[0] <= high or k == last)]
            for last in [len(edges) - 2] for k, (low, high) in enumerate(zip(edges, edges[1:]))]
    return [(len(b), math.fsum(p for p, _ in b) / len(b), sum(y for _, y in b) / len(b))
            for b in bins if b]


def assert_bins(found, expected):
    assert [b.n for b in found] == [n for n, *_ in expected]
    for b, (_, confidence, right) in zip(found, expected):
        assert isinstance(b, Bin) and [type(x) for x in b] == [int, float, float]
        assert b.confidence == pytest.approx(confidence, rel=1e-12)
        assert b.right == pytest.approx(right, rel=1e-12)


@given(answers(ANY), st.integers(1, 25))
def test_bins_of_equal_width_are_those_of_their_definition(rows, n_bins):
    assert_bins(reliability(*zip(*rows), n_bins),
                sorted_into(rows, [k / n_bins for k in range(n_bins + 1)]))


@given(answers(ANY), st.integers(1, 25))
def test_bins_of_equal_count_are_cut_at_quantiles(rows, n_bins):
    "Exactly, with fractions: so many answers lie below each edge, and between two as many."
    ordered, edges = sorted(Fraction(p) for p, _ in rows), []
    for k in range(n_bins + 1):
        low, part = divmod(k * (len(rows) - 1), n_bins)
        high = min(low + 1, len(rows) - 1)
        edges.append(ordered[low] + Fraction(part, n_bins) * (ordered[high] - ordered[low]))
    assume(all(p in edges or abs(p - e) > 1e-12 for p in ordered for e in edges))
    assert_bins(reliability(*zip(*rows), n_bins, "count"), sorted_into(rows, edges))


@pytest.mark.parametrize("n_bins", [1, 2, 3, 5, 7, 10, 11, 15, 20, 25, 49, 50, 100])
def test_an_edge_belongs_to_the_bin_at_its_left(n_bins):
    "k of n bins as a Python program divides it: neither 0.3 nor 0.55 may slip to the right."
    edges = [k / n_bins for k in range(n_bins + 1)]
    found = reliability(edges, [1] * len(edges), n_bins)
    assert [b.n for b in found] == [2, *[1] * (n_bins - 1)]
    assert [b.confidence for b in found[1:]] == edges[2:]


@pytest.mark.parametrize("n_bins", [1, 2, 3, 5, 7, 10, 11, 13, 17, 20])
def test_bins_of_equal_count_are_equally_full(n_bins):
    "One for the first edge, and then as many for each bin."
    for each in (1, 3, 4):
        n = n_bins * each + 1
        p = torch.rand(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        found = reliability(p, [0] * n, n_bins, "count")
        assert [b.n for b in found] == [each + 1, *[each] * (n_bins - 1)]


@each_way
@given(answers(ANY), st.integers(1, 25))
def test_bins_hold_every_answer_once_and_equals_together(equal, rows, n_bins):
    p, y = zip(*rows)
    found = reliability(p, y, n_bins, equal)
    assert sum(b.n for b in found) == len(rows) and len(found) <= n_bins
    assert sum(b.n * b.right for b in found) == pytest.approx(sum(y))
    assert sum(b.n * b.confidence for b in found) == pytest.approx(sum(p))
    assert [b.confidence for b in found] == sorted(b.confidence for b in found)
    if len(found) == len(set(p)):                       # one confidence in each: how many have it?
        assert [b.n for b in found] == [n for _, n in sorted(Counter(p).items())]
    again = reliability(p[::-1], y[::-1], n_bins, equal)
    assert [(b.n, pytest.approx(b.confidence), pytest.approx(b.right)) for b in again] == found


@each_way
def test_the_ends_and_repeated_confidences_have_their_bins(equal):
    assert reliability([0.0, 1.0], [0, 1], 10, equal) == [Bin(1, 0, 0), Bin(1, 1, 1)]
    assert reliability([0.5] * 7 + [0.75], [1] * 7 + [0], 5, equal) in (
        [Bin(7, 0.5, 1), Bin(1, 0.75, 0)], [Bin(8, 4.25 / 8, 7 / 8)])
    for p in (0.0, 0.3, 1.0):
        assert reliability([p], [1], 10, equal) == [Bin(1, p, 1)]
        assert [b.n for b in reliability([p] * 9, [1] * 9, 10, equal)] == [9]


@each_way
@given(answers(ANY), st.integers(1, 25))
def test_the_calibration_error_is_a_mean_over_answers(equal, rows, n_bins):
    p, y = zip(*rows)
    found = expected_calibration_error(p, y, n_bins, equal)
    each = [abs(b.right - b.confidence) for b in reliability(p, y, n_bins, equal) for _ in
            range(b.n)]
    assert type(found) is float and 0 <= found <= 1
    assert found == pytest.approx(np.mean(each), abs=1e-12)
    in_one = abs(sum(y) - sum(p)) / len(rows)
    assert expected_calibration_error(p, y, 1, equal) == pytest.approx(in_one, abs=1e-12)
    assert found >= in_one - 1e-12                      # more bins find more, never less
    assert expected_calibration_error(y, y, n_bins, equal) == 0


def test_the_calibration_error_of_a_forecast_on_paper():
    "Five said 0.9 and four were right; five said 0.5 and three were: each is off by 0.1."
    said, came = [0.9] * 5 + [0.5] * 5, [1, 1, 1, 1, 0, 1, 1, 1, 0, 0]
    for equal, n_bins in (("width", 10), ("count", 2)):
        assert expected_calibration_error(said, came, n_bins, equal) == pytest.approx(0.1)
    assert expected_calibration_error(said, came) == pytest.approx(0.1)
    assert expected_calibration_error(said, came, 1) == pytest.approx(0)
    three = expected_calibration_error([0.9] * 3 + [0.1], [1, 1, 0, 0])
    assert three == pytest.approx((3 * (0.9 - 2 / 3) + 0.1) / 4)       # a full bin counts for more


@given(answers(ANY))
def test_scikit_learn_has_the_same_brier_score(rows):
    from sklearn.metrics import brier_score_loss
    p, y = zip(*rows)
    found = brier_score(p, y)
    assert type(found) is float and 0 <= found <= 1
    assert found == pytest.approx(brier_score_loss(y, p, pos_label=1), abs=1e-12)
    assert brier_score(y, y) == 0 and brier_score([1 - mark for mark in y], y) == 1
    share = sum(y) / len(y)                             # one number for all: the share is best
    assert brier_score([p[0]] * len(y), y) == pytest.approx(
        (p[0] - share) ** 2 + share * (1 - share), abs=1e-12)


# --- telling apart

SCORES = st.one_of(st.integers(-3, 3), st.floats(-1e6, 1e6))


@given(answers(SCORES, min_size=2).filter(BOTH))
def test_scikit_learn_has_the_same_auroc(rows):
    from sklearn.metrics import roc_auc_score
    scores, right = zip(*rows)
    found = auroc(scores, right)
    assert type(found) is float and found == pytest.approx(roc_auc_score(right, scores), abs=1e-12)


@given(answers(st.integers(-3, 3), min_size=2).filter(BOTH))
def test_auroc_counts_pairs_and_equals_half(rows):
    scores, right = zip(*rows)
    pairs = [(s > other) + (s == other) / 2 for s, y in rows for other, mark in rows
             if y == 1 and mark == 0]
    assert auroc(scores, right) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert auroc([-s for s in scores], right) == pytest.approx(1 - auroc(scores, right))
    assert auroc(scores, [1 - y for y in right]) == pytest.approx(1 - auroc(scores, right))
    assert auroc([math.exp(s) for s in scores], right) == auroc(scores, right)
    assert auroc([5] * len(rows), right) == 0.5 and auroc(right, right) == 1


# --- meanings

MEANINGS = st.lists(st.sampled_from("abcde"), min_size=1, max_size=30)


@given(MEANINGS)
def test_scipy_has_the_same_entropy_of_meanings(meanings):
    from scipy.stats import entropy
    found = semantic_entropy(meanings)
    counts = list(Counter(meanings).values())
    assert type(found) is float and found == pytest.approx(entropy(counts), abs=1e-12)
    assert 0 <= found <= math.log(len(counts)) + 1e-12
    assert (found == 0) == (len(counts) == 1) and math.copysign(1, found) == 1
    assert semantic_entropy(range(len(meanings))) == pytest.approx(math.log(len(meanings)))


@given(MEANINGS, st.permutations("vwxyz"), st.randoms())
def test_disagreement_does_not_see_names_or_order(meanings, names, rng):
    renamed = [(ord(dict(zip("abcde", names))[m]), "said") for m in meanings]
    rng.shuffle(renamed)
    assert semantic_entropy(renamed) == pytest.approx(semantic_entropy(meanings), abs=1e-12)
    assert semantic_entropy(meanings * 3) == pytest.approx(semantic_entropy(meanings), abs=1e-12)


# --- one temperature for all

def marked(n, t, seed=0, V=5, longest=3):
    "Answers, and marks that are right as often as their probability at temperature t says."
    g = torch.Generator().manual_seed(seed)
    scored = [Scored(4 * torch.randn(k, V, generator=g), torch.randint(V, (k,), generator=g))
              for k in torch.randint(1, longest + 1, (n,), generator=g).tolist()]
    scored = [Scored(s.logits, s.logits.argmax(-1)) for s in scored]          # the likeliest
    p = torch.stack([s.log_prob(t) for s in scored]).exp()
    return scored, (torch.rand(n, generator=g) < p).double().tolist()


def surprise(scored, marks, t):
    p = torch.stack([Scored(s.logits.double(), s.ids).log_prob(t) for s in scored]).exp()
    return torch.nn.functional.binary_cross_entropy(
        p.clamp(1e-12, 1 - 1e-12), torch.tensor(marks, dtype=torch.float64)).item()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("t", [0.5, 1.0, 2.0, 5.0])
def test_scipy_finds_the_same_temperature(t, seed):
    from scipy.optimize import minimize_scalar
    scored, marks = marked(400, t, seed)
    found = fit_temperature(scored, marks)
    theirs = minimize_scalar(lambda log_t: surprise(scored, marks, math.exp(log_t)),
                             bounds=(math.log(0.05), math.log(20)), method="bounded",
                             options={"xatol": 1e-6})
    assert type(found) is float and found == pytest.approx(math.exp(theirs.x), rel=5e-3)
    assert surprise(scored, marks, found) <= theirs.fun + 1e-5
    assert found == pytest.approx(t, rel=0.35)               # which is where the marks come from


def test_a_valley_that_is_not_the_deepest_does_not_hold_it():
    scored, marks = marked(12, 1.0, 7)
    found = fit_temperature(scored, marks)
    everywhere = [surprise(scored, marks, math.exp(x / 40)) for x in range(-119, 120)]
    assert surprise(scored, marks, found) <= min(everywhere) + 1e-5


@settings(max_examples=10)
@given(st.integers(0, 99), st.floats(0.5, 2))
def test_twice_the_scores_need_twice_the_temperature(seed, factor):
    scored, marks = marked(80, 1.5, seed)
    found = fit_temperature(scored, marks)
    assume(0.3 < found < 4)
    scaled = [Scored(s.logits * factor, s.ids) for s in scored]
    again = fit_temperature(scaled, marks) / factor
    assert surprise(scored, marks, again) == pytest.approx(surprise(scored, marks, found), abs=1e-4)


def test_order_and_tokens_that_cannot_come_do_not_change_the_temperature():
    scored, marks = marked(90, 2.0)
    found = fit_temperature(scored, marks)
    assert fit_temperature(tuple(scored[::-1]), marks[::-1]) == pytest.approx(found, rel=1e-6)
    more = [Scored(torch.cat([s.logits, torch.full((len(s.ids), 4), -math.inf)], 1), s.ids)
            for s in scored]
    assert fit_temperature(more, marks) == pytest.approx(found, rel=1e-6)


def test_a_temperature_stays_between_its_ends():
    one = [Scored(3 * torch.eye(5), torch.arange(5))]
    assert 0.0499999 <= fit_temperature(one, [1]) < 0.5           # surer and surer
    assert fit_temperature(one, [0]) > 2                     # less and less
    assert fit_temperature(one, [0]) <= 20.000001


def test_no_answers_have_no_temperature():
    nothing = Scored(torch.zeros(0, 7), torch.zeros(0, dtype=torch.int64))
    for none in ([], (), [nothing], [nothing] * 2):
        with refused("no answers to fit a temperature to", "give at least one"):
            fit_temperature(none, [1] * len(none))
    for marks in ([1], [1, 0, 1]):
        with refused("2 answers beside"):
            fit_temperature([some_scored(2), some_scored(3)], marks)
    with refused("a mark of 0.5 cannot be"):
        fit_temperature([some_scored(2)], [0.5])


@pytest.mark.parametrize("row, why", [
    ([math.nan, 0.0, 0.0], "nan"), ([math.inf, 0.0, 0.0], "inf"), ([0.0, math.inf, 0.0], "inf")])
def test_scores_that_have_no_temperature_are_refused(row, why):
    broken = Scored(torch.tensor([[0.0, 1.0, 2.0], row]), torch.tensor([0, 1]))
    with refused(f"a score of {why}", "give finite ones"):
        fit_temperature([some_scored(4, V=3), broken], [1, 0])


# --- answering some

@given(answers(ANY))
def test_selective_answers_are_counted_at_every_threshold(rows):
    p, y = zip(*rows)
    found = selective(p, y)
    assert all(isinstance(r, Selective) and [type(x) for x in r] == [float] * 3 for r in found)
    assert found[0] == (math.inf, 0, 0)
    assert [r.threshold for r in found[1:]] == sorted(set(p), reverse=True)      # each once
    for threshold, right, wrong in found:
        some = [mark for c, mark in rows if c >= threshold]
        assert right == pytest.approx(sum(some) / len(rows), abs=1e-12)
        assert wrong == pytest.approx((len(some) - sum(some)) / len(rows), abs=1e-12)
    for a, b in zip(found, found[1:]):
        assert a.right <= b.right and a.wrong <= b.wrong and a[1:] != b[1:]
    assert found[-1].right + found[-1].wrong == pytest.approx(1, abs=1e-12)
    assert found[-1].right == pytest.approx(sum(y) / len(y), abs=1e-12)


@given(answers(ANY, min_size=2).filter(BOTH))
def test_the_area_under_selective_answers_is_the_auroc(rows):
    "Right answers over wrong ones, each as a share of its kind; equals make a slope."
    found = selective(*zip(*rows))
    area = sum((b.wrong - a.wrong) * (a.right + b.right) / 2 for a, b in zip(found, found[1:]))
    assert area / (found[-1].right * found[-1].wrong) == pytest.approx(auroc(*zip(*rows)))


# --- what comes next

@given(st.lists(st.integers(1, 6), min_size=1, max_size=12))
def test_good_and_turing_take_each_draw_away_in_turn(n_seen):
    "How often is it then new to the others?"
    draws = [thing for thing, n in enumerate(n_seen) for _ in range(n)]
    new = sum(draw not in draws[:i] + draws[i + 1:] for i, draw in enumerate(draws))
    found = good_turing(n_seen)
    assert type(found) is float and 0 <= found <= 1 and found == new / len(draws)


def test_good_and_turing_are_right_on_average():
    "Twenty draws from a hundred things, some rarer than others; then the truth is known."
    rng, chances = np.random.default_rng(0), 1 / np.arange(1, 101)
    chances /= chances.sum()
    off = []
    for _ in range(2000):
        seen = np.bincount(rng.choice(100, 20, p=chances), minlength=100)
        off.append(good_turing(seen[seen > 0].tolist()) - chances[seen == 0].sum())
    assert abs(np.mean(off)) < 0.02 < np.std(off)


def test_all_new_and_none_new():
    assert good_turing([1, 1, 1]) == 1 and good_turing([2, 9]) == 0
    assert good_turing([1, 1, 3]) == 0.4 and good_turing(Counter("abbcc").values()) == 0.2


# --- lists, arrays and tensors

P, Y = [0.125, 0.5, 0.5, 0.75, 1.0, 0.25], [0, 1, 0, 1, 1, 0]


@pytest.mark.parametrize("kind", [
    tuple, np.array, torch.tensor, lambda x: np.array(x, np.float32), lambda x: np.array(x)[::1],
    lambda x: np.array(x[::-1])[::-1], lambda x: torch.tensor(x).half(),
    lambda x: torch.tensor(x).bfloat16(), lambda x: [torch.tensor(v) for v in x],
    lambda x: torch.tensor(x, dtype=torch.float64, requires_grad=True)],
    ids=["tuple", "array", "tensor", "float32", "slice", "backwards", "half", "bfloat16",
         "tensors in a list", "with a gradient"])
@each_of_all
def test_arrays_and_tensors_are_as_good_as_lists(measure, kind):
    assert measure(kind(P), kind(Y)) == measure(P, Y)


@pytest.mark.parametrize("kind", [
    list, np.array, torch.tensor], ids=["list", "array", "tensor"])
@each_of_all
def test_marks_may_be_true_and_false(measure, kind):
    assert measure(P, kind([bool(mark) for mark in Y])) == measure(P, Y)


@pytest.mark.parametrize("device", DEVICES)
@each_of_all
def test_tensors_of_any_device_will_do(measure, device):
    assert measure(torch.tensor(P).to(device), torch.tensor(Y).to(device)) == measure(P, Y)


@pytest.mark.parametrize("kind", [tuple, np.array, torch.tensor,
                                  lambda x: [torch.tensor(v) for v in x]],
                         ids=["tuple", "array", "tensor", "tensors in a list"])
def test_counts_and_meanings_may_be_arrays_too(kind):
    some = [1, 1, 2, 3, 1, 3]
    assert good_turing(kind(some)) == good_turing(some)
    assert semantic_entropy(kind(some)) == semantic_entropy(some)


def test_meanings_may_be_an_array_of_words():
    words = ["Mill Lane", "Hill", "Mill Lane"]
    assert semantic_entropy(np.array(words)) == semantic_entropy(words)


@each_of_all
def test_what_is_measured_stays_as_it_is(measure):
    p, y = torch.tensor(P, dtype=torch.float64), torch.tensor(Y, dtype=torch.float64)
    measure(p, y)
    assert p.tolist() == P and y.tolist() == Y


# --- what cannot be

@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -0.1, 1.1, 50.0])
@each_of_confidence
def test_a_confidence_that_is_none_is_refused(measure, bad):
    for kind in (list, np.array):
        with refused(f"a confidence of {bad:g} cannot be; it goes from 0 to 1"):
            measure(kind([0.5, bad, 0.2]), [0, 1, 1])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused(bad):
    with refused(f"a score of {bad:g} cannot be", "finite"):
        auroc([0.5, bad, 0.2], [0, 1, 1])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.5, 2, -1, 1e-9, 100])
@each_of_all
def test_a_mark_between_right_and_wrong_is_refused(measure, bad):
    for right in ([0, bad, 1], [bad] * 3, [bad, 0, 0]):
        with refused(f"a mark of {bad:g} cannot be; right is 1, wrong is 0"):
            measure([0.5, 0.6, 0.7], right)


@each_of_all
def test_marks_of_other_answers_are_refused(measure):
    noun = "scores" if measure is auroc else "confidences"
    for p, y in ((P, Y[:5]), (P[:5], Y), ([], Y), (P, [])):
        with refused(f"{len(p)} {noun} beside {len(y)} marks", "for every answer"):
            measure(p, y)


@each_of_confidence
def test_no_answers_are_refused(measure):
    for none in ([], (), np.array([]), torch.tensor([])):
        with refused("0 confidences beside 0 marks; give one of each for every answer"):
            measure(none, none)


@each_of_all
def test_a_table_in_place_of_a_list_is_refused(measure):
    "Nor is a single number a list."
    column, marks = torch.tensor(P)[:, None], torch.tensor(Y)
    for p, y, shape in ((column, marks, "(6, 1)"), (column, marks[:, None], "(6, 1)"),
                        (marks, column, "(6, 1)"), (column.view(2, 3), marks[:2], "(2, 3)"),
                        (torch.tensor(0.5), torch.tensor(1), "()")):
        with refused(shape, "a list"):
            measure(p, y)


@pytest.mark.parametrize("mark, n_right", [(0, 0), (1, 3)])
def test_auroc_needs_one_of_each(mark, n_right):
    with refused(f"{n_right} of 3 are right", "one of each"):
        auroc([0.1, 0.2, 0.3], [mark] * 3)
    with refused("0 ", "one of each"):
        auroc([], [])


@pytest.mark.parametrize("measure", [reliability, expected_calibration_error],
                         ids=lambda f: f.__name__)
class TestBinsThatCannotBe:
    @pytest.mark.parametrize("n_bins", [0, -1, 2.5, 10.0, math.nan, True, "10", None])
    def test_a_number_of_bins_that_is_none_is_refused(self, measure, n_bins):
        with refused(f"n_bins={n_bins!r}", "whole number, at least 1"):
            measure(P, Y, n_bins)

    @pytest.mark.parametrize("equal", ["mass", "Width", "", None, 1])
    def test_an_unknown_kind_of_bins_is_refused(self, measure, equal):
        with refused(f'equal={equal!r} is unknown; bins are of equal "width" or "count"'):
            measure(P, Y, 10, equal)

    def test_bad_answers_are_refused_before_bad_bins(self, measure):
        with refused("a confidence of 2"):
            measure([2.0], [1], 10, "mass")


def test_many_bins_for_few_answers_take_no_time():
    assert [b.n for b in reliability(P, Y, 10**6)] == [1, 1, 2, 1, 1]


@pytest.mark.parametrize("none", [[], (), np.array([]), torch.tensor([])],
                         ids=["list", "tuple", "array", "tensor"])
def test_no_answers_do_not_disagree(none):
    with refused("there are no answers to compare; draw some"):
        semantic_entropy(none)


def test_one_answer_in_place_of_several_is_refused():
    "Its letters would be compared."
    with refused("'Mill Lane'", "must be a list"):
        semantic_entropy("Mill Lane")


@pytest.mark.parametrize("n_seen", [
    [], [0], [1, 0, 2], [3, -1], [1.5, 1], [math.nan], [1, math.nan], [math.inf]])
def test_counts_that_are_none_are_refused(n_seen):
    for kind in (list, np.array):
        with refused("n_seen=[", "a count for each thing that was seen", "1 at least"):
            good_turing(kind(n_seen))
    with refused(f"n_seen={n_seen}"):
        good_turing(n_seen)
