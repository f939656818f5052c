"Laws of the optimizers: PyTorch's steps, also for latecomers and for matrices of one shape."
import copy

import pytest
import torch

from minigpt.checkpoint import pack_optimizers, unpack_optimizers
from minigpt.config import ModelConfig
from minigpt.model import GPT
from minigpt.optim import (
    AdamW,
    Muon,
    adamw_for,
    clip_gradients,
    muon_for,
    parameter_groups,
    trapezoid,
    warmup_cosine,
)


def steps_of(model, optimizer, late):
    "Twenty steps; one matrix gets its first gradient at step 7, and none at every third."
    torch.manual_seed(0)
    for n in range(20):
        optimizer.zero_grad()
        x = torch.randn(8, 16)
        model(x).square().mean().backward()
        if late and (n < 7 or n % 3 == 0):
            model[1].weight.grad = None
        optimizer.step()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", ["AdamW", "Muon"])
def test_every_step_is_pytorch_s(kind, late):
    if not hasattr(torch.optim, kind):
        pytest.skip(f"this PyTorch has no {kind}")
    torch.manual_seed(1)
    ours = torch.nn.Sequential(*(torch.nn.Linear(16, 16, bias=False) for _ in range(3)))
    theirs, settings = copy.deepcopy(ours), dict(lr=0.01, weight_decay=0.1)
    more = dict(dtype=torch.bfloat16) if kind == "Muon" else dict(betas=(0.9, 0.95))
    own = {"AdamW": AdamW, "Muon": Muon}[kind]
    steps_of(ours, own(ours.parameters(), **settings, **more), late)
    more.pop("dtype", None)
    steps_of(theirs, getattr(torch.optim, kind)(theirs.parameters(), **settings, **more), late)
    tolerance = 1e-6 if kind == "AdamW" else 1e-3              # rounds of bfloat16
    for p, q in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(p, q, atol=tolerance, rtol=tolerance)


def test_no_schedule_leaves_its_range_even_after_the_end():
    for n in range(300):
        assert 0 <= trapezoid(n, steps=100, warmup=10, cooldown=40) <= 1
        assert 0.1 - 1e-9 <= warmup_cosine(n, steps=100, warmup=5) <= 1 or n < 5


def test_schedules_by_hand():
    warm = [warmup_cosine(n, steps=8, warmup=4) for n in (0, 1, 3, 4, 6, 8)]
    assert warm == pytest.approx([0.25, 0.5, 1, 1, 0.55, 0.1])
    flat = [trapezoid(n, steps=8, warmup=2, cooldown=4) for n in range(8)]
    assert flat == [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 100.0])
def test_clipping_is_pytorch_s(max_norm):
    ours, theirs = ([torch.zeros(2, 3), torch.zeros(4)] for _ in range(2))
    for params in (ours, theirs):
        for n, p in enumerate(params, 1):
            p.grad = n * torch.arange(p.numel()).view_as(p) / 4
    length = torch.nn.utils.clip_grad_norm_(theirs, max_norm).item()
    assert clip_gradients(ours, max_norm) == pytest.approx(length)
    for p, q in zip(ours, theirs):
        torch.testing.assert_close(p.grad, q.grad)


def test_matrices_decay_and_vectors_do_not():
    model = GPT(ModelConfig(vocab_size=20, context_length=8, n_layer=1, n_head=2, n_kv_head=1,
                            d_model=16, d_ff=16, bias=True))
    named = {id(p): name for name, p in model.named_parameters()}
    [adamw], muon = adamw_for(model, weight_decay=0.3), muon_for(model, weight_decay=0.3)
    for optimizers in ([adamw], muon):
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        assert sorted(id(p) for group in groups for p in group["params"]) == sorted(named)
        for group in groups:
            for p in group["params"]:
                embedding = named[id(p)] == "embedding.weight" and optimizers is muon
                assert (group["weight_decay"] == 0.3) == (p.ndim == 2 and not embedding)


def test_nothing_to_clip_is_no_error():
    assert clip_gradients([torch.zeros(3, requires_grad=True)], 1.0) == 0.0


def frozen_but(free):
    "A small model in which only the named parameters may learn."
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=20, context_length=8, n_layer=2, n_head=2, n_kv_head=1,
                            d_model=16, d_ff=16))
    for name, p in model.named_parameters():
        p.requires_grad_(free in name)
    return model


def steps_with(model, optimizers, n):
    for _ in range(n):
        model.zero_grad()
        model(torch.tensor([[1, 2, 3]])).square().mean().backward()
        assert clip_gradients(model.parameters(), 1.0) > 0
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("free", ["blocks.1", "embedding", "norm", "mlp.up"])
@pytest.mark.parametrize("make", [adamw_for, muon_for])
def test_what_is_frozen_stays_and_the_rest_resumes(make, free):
    "Also where an optimizer has nothing left to move."
    model = frozen_but(free)
    assert sum(map(len, parameter_groups(model).values())) == sum(
        p.requires_grad for p in model.parameters())
    before, optimizers = copy.deepcopy(model), make(model)
    steps_with(model, optimizers, 2)
    for (name, p), q in zip(model.named_parameters(), before.parameters()):
        assert torch.equal(p, q) != (free in name), name
    again = copy.deepcopy(model)
    theirs = make(again)
    memory = {name: t.clone() for name, t in pack_optimizers(optimizers).items()}
    unpack_optimizers(theirs, memory)
    for one, its in ((model, optimizers), (again, theirs)):
        steps_with(one, its, 2)
    for p, q in zip(model.parameters(), again.parameters()):
        assert torch.equal(p, q)
