"Laws of the loop: what a step does, at which rate, however its batch is cut; and fair evaluation."
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minigpt.training import TrainingDiverged, accumulate_gradients, evaluate, train

V, T = 11, 6


class Numbers:
    "Batches of random ids; batch n is the same each time."

    def __getitem__(self, n):
        return torch.randint(V, (4, T + 1), generator=torch.Generator().manual_seed(n))


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Embedding(V, 5), torch.nn.Linear(5, V))


def mean_loss(model, ids):
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize("n_micro", [1, 2, 3])
def test_gradients_are_those_of_the_mean_however_a_batch_is_cut(n_micro):
    model, plain, ids = net(), net(), Numbers()[0]
    loss = mean_loss(plain, ids)
    loss.backward()
    assert accumulate_gradients(model, ids, n_micro) == pytest.approx(loss.item(), rel=1e-5)
    for p, q in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(p.grad, q.grad)


def test_a_run_is_the_loop_that_one_would_write():
    "Rates of their own in two groups, set before each step; gradients anew, cut where too long."
    model, plain, schedule = net(), net(), lambda n: (n + 1) / 8
    groups = lambda net: [{"params": net[0].parameters(), "lr": 0.5},
                          {"params": net[1].parameters(), "lr": 2.0}]
    steps = list(train(model, Numbers(), [torch.optim.SGD(groups(model))], 4, schedule, n_micro=2,
                       max_grad_norm=0.3))
    theirs = torch.optim.SGD(groups(plain))
    for n, step in enumerate(steps):
        theirs.zero_grad()
        loss = mean_loss(plain, Numbers()[n])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.3).item()
        for group, peak in zip(theirs.param_groups, (0.5, 2.0)):
            group["lr"] = peak * (n + 1) / 8
        theirs.step()
        assert (step.n, step.lr, step.n_tokens) == (n + 1, (n + 1) / 8, 4 * T)
        assert step.loss == pytest.approx(loss.item(), rel=1e-4)
        assert step.grad_norm == pytest.approx(norm, rel=1e-4) and norm > 0.3
    for p, q in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)


def test_a_resumed_run_takes_the_steps_that_were_left():
    runs = []
    for cuts in ((0, 6), (0, 2, 6)):
        model = net()
        optimizers = [torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)]
        said = [step for a, b in zip(cuts, cuts[1:]) for step in
                train(model, Numbers(), optimizers, b, lambda n: 1 - n / 6, first_step=a)]
        runs.append(said)
    assert runs[0] == runs[1]


def test_an_exploded_loss_ends_a_run_before_its_step():
    model = net()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(TrainingDiverged, match="step 1, batch 0: loss"):
        list(train(model, Numbers(), [torch.optim.SGD(model.parameters(), lr=1.0)], 3,
                   max_loss=0.5))
    assert all(map(torch.equal, before, model.parameters()))


def test_evaluation_is_the_mean_over_every_target_of_its_windows():
    model, tokens = net(), np.arange(40) * 7 % V
    rows = torch.tensor(np.stack([tokens[i * T:i * T + T + 1] for i in range(6)]))
    for batch_size in (1, 4, 16):
        found = evaluate(model, tokens, T, batch_size=batch_size)
        assert found == pytest.approx(mean_loss(model, rows).item(), rel=1e-5)
    guess = torch.nn.Embedding(V, V)
    torch.nn.init.zeros_(guess.weight)
    assert evaluate(guess, tokens, T, max_windows=2) == pytest.approx(math.log(V), rel=1e-5)
