"Laws of sampling: rules narrow a distribution and never break it, at every edge of their range."
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigpt.sampling import min_p, repetition_penalty, sample, temperature, top_k, top_p

TINY, HUGE, NAN, INF = 1e-300, 1e300, math.nan, math.inf
numbers = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=8)
rows = numbers.map(lambda row: torch.tensor([row]))
rules = st.one_of(
    (st.just(0) | st.floats(0.01, 10)).map(temperature), st.integers(0, 10).map(top_k),
    st.floats(0.001, 1).map(top_p), st.floats(0, 1).map(min_p),
    st.floats(0.1, 10).map(repetition_penalty))


def called(x):
    "How a test's name shows a rule or a value."
    return getattr(x, "__name__", str(x))


def draw(logits, *chosen, past=None, n=200):
    rng = torch.Generator().manual_seed(0)
    return {sample(logits, chosen, rng, past).item() for _ in range(n)}


@given(rows, st.lists(rules, max_size=5))
def test_any_rules_in_any_order_leave_something_to_draw(logits, chosen):
    past = torch.zeros(1, 1, dtype=torch.long)
    reshaped = logits
    for rule in chosen:
        reshaped = rule(reshaped, past)
        assert reshaped.shape == logits.shape
        assert reshaped.softmax(-1).sum().item() == pytest.approx(1)
    assert 0 <= sample(logits, chosen, past=past).item() < logits.shape[-1]


@given(rows, st.lists(rules, max_size=5))
def test_rules_do_not_change_what_they_are_given(logits, chosen):
    before = logits.clone()
    sample(logits, chosen, past=torch.zeros(1, 1, dtype=torch.long))
    assert torch.equal(logits, before)


def test_each_row_is_reshaped_alone():
    logits = torch.tensor([[1.0, 2, 3, 4], [4.0, 1, 1, 1], [-9.0, 0, 0, 0]])
    past = torch.tensor([[0, 1], [2, 2], [3, 0]])
    for rule in (temperature(0), temperature(0.5), top_k(2), top_p(0.5), min_p(0.5),
                 repetition_penalty(2.0)):
        alone = torch.cat([rule(row[None], seen[None]) for row, seen in zip(logits, past)])
        torch.testing.assert_close(rule(logits, past), alone)


def test_temperature_divides_and_the_rules_keep_what_they_should():
    "Chances that can be worked out on paper."
    chances = lambda logits, rule: [round(p, 4) for p in rule(logits).softmax(-1)[0].tolist()]
    assert chances(torch.tensor([[math.log(3), 0]]), temperature(0.5)) == [0.9, 0.1]
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
    assert chances(logits, top_p(0.49)) == [0, 1, 0]
    for rule in (top_p(0.6), min_p(0.5), top_k(2)):
        assert chances(logits, rule) == [0, 0.625, 0.375]


@pytest.mark.parametrize("n", [2, 3, 50])
def test_ties_are_cut_exactly(n):
    tie = torch.zeros(2, n)
    for kept, rule in ((1, temperature(0)), (1, top_k(1)), (2, top_k(2)), (1, top_p(0.5 / n)),
                       (n, min_p(1)), (n, top_p(1)), (n, top_k(n + 1))):
        assert rule(tie, None).isfinite().sum(dim=-1).tolist() == [kept, kept]


@pytest.mark.parametrize("make, value", [
    (temperature, 0), (temperature, 1e-4), (top_k, 1),
    (top_p, 1e-12), (top_p, 1e-50), (top_p, TINY), (min_p, 1)], ids=called)
def test_the_narrowest_setting_is_greedy(make, value):
    assert draw(torch.tensor([[1.0, 3.0, 2.0]]), make(value)) == {1}


@pytest.mark.parametrize("rule", [
    top_k(0), top_k(3), top_k(10**9), top_p(1), min_p(0), min_p(TINY), temperature(1),
    repetition_penalty(1)])
def test_the_widest_setting_changes_nothing(rule):
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    reshaped = rule(logits, torch.tensor([[0]]))
    torch.testing.assert_close(reshaped.softmax(-1), logits.softmax(-1))


def test_endless_heat_evens_all_chances_out():
    assert draw(torch.tensor([[1.0, 30.0, 2.0]]), temperature(HUGE)) == {0, 1, 2}


def test_a_huge_penalty_forbids():
    logits, past = torch.tensor([[0.5, 3.0, -1.0]]), torch.tensor([[1, 2]])
    assert draw(logits, repetition_penalty(1e30), past=past, n=2_000) <= {0, 1}
    assert draw(logits, repetition_penalty(1e30), temperature(0), past=past) == {0}


def test_a_token_used_twice_is_punished_once():
    logits = torch.tensor([[4.0, 0.0]])
    once, twice = (repetition_penalty(2.0)(logits, torch.tensor([p])) for p in ([0], [0, 0, 0]))
    assert torch.equal(once, twice)


@pytest.mark.parametrize("make, value", [
    (temperature, -1), (temperature, -TINY), (temperature, NAN), (temperature, INF),
    (temperature, 9e-5), (temperature, 1e-12), (temperature, 1e-40), (temperature, TINY),
    (top_k, -1), (top_p, 0), (top_p, -0.5), (top_p, 1.01), (top_p, NAN), (min_p, -0.1),
    (min_p, 1.5), (min_p, NAN), (repetition_penalty, 0), (repetition_penalty, -2),
    (repetition_penalty, NAN), (repetition_penalty, INF)], ids=called)
def test_an_impossible_value_is_named(make, value):
    with pytest.raises(ValueError) as error:
        make(value)
    assert f"{make.__name__}={value}" in str(error.value)
    assert "\n" not in str(error.value)
