"""Scaling laws: fits find what they were made of, and the record is what the laws say it is."""
import json
import math
import random

import numpy as np
import pytest

from minigpt import scaling
from minigpt.recipe import RECIPES
from minigpt.scaling import County, Law, fit_law, interval, plan, recipe_law, scaling_record
from minigpt.sizes import count_parameters
from minigpt.tinytown import QUESTIONS

GRID = [(n, d) for n in (2e4, 5e4, 1e5, 4e5) for d in (5e5, 1e6, 2e6, 8e6)]
LAWS = {"sum": Law(1.8, 400.0, 0.35, 2000.0, 0.37),
        "shared": Law(10.6, 4e6, 0.9, 9e3, 0.6, "shared")}


def made(law, noise=0.0, seed=0):
    rng = random.Random(seed)
    return [(n, d, law.loss(n, d) * math.exp(rng.gauss(0, noise))) for n, d in GRID]


@pytest.mark.parametrize("form", LAWS)
@pytest.mark.parametrize("knows", (True, False))
def test_a_fit_finds_the_law_that_made_the_losses(form, knows):
    law = LAWS[form]
    found = fit_law(made(law), law.floor if knows else None, form)
    assert found.form == form
    for name in ("floor", "alpha", "beta"):
        assert math.isclose(getattr(found, name), getattr(law, name), rel_tol=2e-2), name
    assert math.isclose(found.loss(4e6, 8e7), law.loss(4e6, 8e7), rel_tol=2e-3)


@pytest.mark.parametrize("form", LAWS)
def test_units_and_order_change_nothing(form):
    law, points = LAWS[form], made(LAWS[form], 0.005)
    one = fit_law(points, law.floor, form)
    nats = fit_law([(n, d, loss * math.log(2)) for n, d, loss in points],
                   law.floor * math.log(2), form)
    millions = fit_law([(n / 1e6, d / 1e6, loss) for n, d, loss in points], law.floor, form)
    backwards = fit_law(points[::-1], law.floor, form)
    there = one.loss(3e6, 3e7)
    assert math.isclose(nats.loss(3e6, 3e7) / math.log(2), there, rel_tol=1e-4)
    assert math.isclose(millions.loss(3, 30), there, rel_tol=1e-4)
    assert math.isclose(backwards.loss(3e6, 3e7), there, rel_tol=1e-4)


def test_one_run_that_went_wrong_moves_the_fit_little():
    law, points = LAWS["sum"], made(LAWS["sum"])
    points[5] = (*points[5][:2], points[5][2] * 1.3)
    assert math.isclose(fit_law(points, law.floor).loss(4e6, 8e7), law.loss(4e6, 8e7), rel_tol=0.02)


@pytest.mark.parametrize("law", [*LAWS.values(), Law(1.69, 406.4, 0.34, 410.7, 0.28)],
                         ids=["sum", "shared", "Hoffmann"])
@pytest.mark.parametrize("flops", (1e15, 1e21))
def test_the_best_split_is_the_lowest_point_of_its_budget(law, flops):
    n, d = law.best(flops)
    assert math.isclose(6 * n * d, flops, rel_tol=1e-9)
    for x in (0.5, 0.9, 0.99, 1.01, 1.1, 2):
        assert law.loss(n, d) < law.loss(n * x, d / x)


def test_hoffmann_with_the_refitted_numbers_says_twenty_tokens_a_weight():
    n, d = Law(1.8172, 482.01, 0.3478, 2085.43, 0.3658).best(5.76e23)
    assert 15 < d / n < 25


def test_a_law_without_a_best_size_says_so():
    with pytest.raises(ValueError, match="alpha=0.3 is not above beta=0.5"):
        Law(1.0, 10.0, 0.3, 10.0, 0.5, "shared").best(1e15)


@pytest.mark.parametrize("points, floor, part", [
    ([(1e4, 1e6, 5.0)] * 6, None, "6 runs of 1 sizes on 1 amounts"),
    ([(n, 1e6, 5.0 - n / 1e5) for n in (1e4, 2e4, 3e4, 4e4, 5e4)], 1.0, "5 sizes on 1 amounts"),
    (made(LAWS["sum"])[:4], None, "4 runs"),
    (made(LAWS["sum"]), 20.0, "lies under the floor, 20"),
])
def test_what_cannot_tell_a_law_is_refused(points, floor, part):
    with pytest.raises(ValueError, match=part):
        fit_law(points, floor)


@pytest.mark.parametrize("form", LAWS)
def test_an_interval_holds_the_truth_and_grows_with_the_noise(form):
    law, widths = LAWS[form], []
    for noise in (0.002, 0.02):
        low, high = interval(made(law, noise, seed=1), 3e6, 3e7, law.floor, form, n_fits=60)
        assert low < law.loss(3e6, 3e7) < high
        widths.append(high - low)
    assert widths[1] > 3 * widths[0]


def test_a_document_costs_its_person_its_fact_and_its_words():
    county = County(n_towns=2)
    assert len(county.people) == 128 and math.isclose(sum(county.shares), 1)
    assert all(a > b for a, b in zip(county.shares, county.shares[1:]))
    for d in county.documents(200, seed=3):
        rest = d.bits - math.log2(len(QUESTIONS)) - 3
        assert min(abs(rest + math.log2(share)) for share in county.shares) < 1e-9
    who = -sum(share * math.log2(share) for share in county.shares)
    mean = np.mean([d.bits for d in county.documents(20_000, seed=4)])
    assert abs(mean - (who + math.log2(len(QUESTIONS)) + 3)) < 0.05
    assert county.documents(5, seed=1) == County(2).documents(5, seed=1)


def test_the_record_says_of_the_large_model_what_its_runs_say():
    book = scaling_record()
    grid = [r for r in book["runs"] if r["part"] == "grid"]
    cells = {(r["width"], r["n_tokens"], r["seed"]) for r in grid}
    assert len(grid) == len(cells) == 36
    points, said = [(r["weights"], r["n_tokens"], r["bits"]) for r in grid], book["predictions"][0]
    assert said["form"] == "shared" and said["floor known"] and said["runs"] == 36
    law = fit_law(points, grid[0]["floor"], "shared")
    large = [r for r in book["runs"] if r["part"] == "large"]
    n_weights, n_tokens = large[0]["weights"], large[0]["n_tokens"]
    assert math.isclose(law.loss(n_weights, n_tokens), said["bits"], rel_tol=1e-3)
    low, high = interval(points, n_weights, n_tokens, grid[0]["floor"], "shared")
    assert math.isclose(low, said["low"], rel_tol=5e-3)
    assert math.isclose(high, said["high"], rel_tol=5e-3)
    assert n_weights > 8 * max(r["weights"] for r in grid) and len(large) == 3
    for r in large:                     # the bar: two percent, and inside of the interval
        assert abs(said["bits"] / r["bits"] - 1) < 0.02 and said["low"] < r["bits"] < said["high"]


def test_the_laws_floors_are_those_of_the_text():
    "Ten thousand documents, drawn anew, cost what the record says."
    county = County()
    held_out = county.documents(10_000, seed=2)
    mean = sum(d.bits for d in held_out) / len(held_out)
    assert all(abs(r["floor"] - mean) < 1e-3 for r in scaling_record()["runs"])


def test_plan_takes_the_largest_size_that_sees_enough_text(monkeypatch):
    "If a machine computes at a constant rate, more minutes mean a larger model and a lower loss."
    def steps(recipe, batches, minutes, n_trial, world):
        n_tokens = recipe.batch_size * recipe.model.context_length
        return int(minutes * 60 * 8e10 / (6 * count_parameters(recipe.model)["total"] * n_tokens))
    monkeypatch.setattr(scaling, "steps_for", steps)
    law, before = recipe_law(), (math.inf, 0)
    for minutes in (1, 5, 15, 60):
        recipe = plan(minutes)
        size = count_parameters(recipe.model)["total"]
        n_tokens = recipe.steps * recipe.batch_size * recipe.model.context_length
        assert law.loss(size, n_tokens) < before[0] and size >= before[1]
        assert n_tokens > 3 * size or recipe.model.n_layer == 2
        before = law.loss(size, n_tokens), size
    assert recipe.data == RECIPES["tinytown"].data


def test_the_recipes_law_is_fitted_to_the_recorded_runs():
    book = scaling_record()
    law = recipe_law()
    for r in book["recipe"]:
        if r["n_tokens"] > 0.4 * r["weights"]:           # less text than that is another regime
            assert abs(law.loss(r["weights"], r["n_tokens"]) / r["nats"] - 1) < 0.025
    assert json.loads(json.dumps(law.__dict__)) == book["recipe law"]
