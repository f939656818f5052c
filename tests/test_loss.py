"Laws of the loss: PyTorch's own surprise and slopes, whatever does not count, and fair bits."
import math

import pytest
import torch
import torch.nn.functional as F

from minigpt.loss import (
    IGNORE,
    bits_per_byte,
    cross_entropy,
    document_loss,
    pad_documents,
    perplexity,
    shift,
)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_surprise_and_slopes_are_pytorch_s(reduction):
    rng = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(3, 4, 7, generator=rng)
    targets = torch.randint(7, (3, 4), generator=rng)
    targets[0, :2] = targets[2, 3] = IGNORE
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    found = cross_entropy(ours, targets, reduction)
    expected = F.cross_entropy(theirs.flatten(0, 1), targets.flatten(), reduction=reduction)
    torch.testing.assert_close(found.flatten(), expected.flatten())
    for loss in (found, expected):
        (3 * loss.sum()).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert not ours.grad[targets == IGNORE].any()


def test_a_target_is_the_token_after_its_input():
    inputs, targets = shift(torch.tensor([[1, 2, 3, 4]]))
    assert inputs.tolist() == [[1, 2, 3]] and targets.tolist() == [[2, 3, 4]]


def test_guessing_among_eight_costs_three_bits():
    loss = cross_entropy(torch.zeros(2, 8), torch.tensor([0, 5])).item()
    assert loss == pytest.approx(math.log(8)) and perplexity(loss) == pytest.approx(8)
    assert bits_per_byte(loss, n_tokens=10, n_bytes=40) == pytest.approx(3 * 10 / 40)


def test_padding_asks_nothing_and_a_document_costs_all_its_tokens_and_its_end():
    inputs, targets = pad_documents([[1, 2, 3], [4]], 0)
    assert inputs.tolist() == [[0, 1, 2, 3], [0, 4, 0, 0]]
    assert targets.tolist() == [[1, 2, 3, 0], [4, 0, IGNORE, IGNORE]]
    guess = lambda ids: torch.zeros(*ids.shape, 8)
    nats = document_loss(guess, [[1, 2, 3], [4], [5, 6]], 0, batch_size=2)
    torch.testing.assert_close(nats, torch.tensor([4.0, 2, 3]) * math.log(8))
