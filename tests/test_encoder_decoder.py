"Laws of the encoder-decoder: what it may see, and that a cache changes nothing."
from dataclasses import replace

import pytest
import torch

from minigpt.cache import KVCache
from minigpt.config import ModelConfig
from minigpt.encoder_decoder import EncoderDecoder

BASE = ModelConfig(vocab_size=30, context_length=12, n_layer=2, n_head=4, n_kv_head=2, d_model=32,
                   d_ff=48)
VARIATIONS = {"rope": BASE, "sinusoidal, post-norm": replace(BASE, position="sinusoidal",
                                                             norm_place="post"),
              "experts": replace(BASE, n_expert=3),
              "like 2017": replace(BASE, norm="layer", mlp="gelu", bias=True, position="learned")}


@pytest.fixture(params=VARIATIONS.values(), ids=VARIATIONS)
def model(request):
    torch.manual_seed(0)
    model = EncoderDecoder(request.param).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def texts(seed=1):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(30, (3, 9), generator=rng), torch.randint(30, (3, 7), generator=rng)


@torch.no_grad()
def test_cached_equals_uncached_however_it_is_cut(model):
    (source, target), lengths = texts(), torch.tensor([9, 4, 6])
    whole, read = model(source, target, lengths), model.encode(source, lengths)
    for cut in ([7], [1] * 7, [3, 1, 3]):
        cache = KVCache(model.cfg, batch_size=3)
        pieces = [model.decode(part, *read, cache) for part in target.split(cut, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_filling_is_not_read(model):
    (source, target), lengths = texts(), torch.tensor([9, 4, 6])
    together = model(source, target, lengths)
    for row, n in enumerate(lengths.tolist()):
        alone = model(source[row:row + 1, :n], target[row:row + 1])[0]
        torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_every_guess_sees_the_whole_source_and_no_later_target(model):
    source, target = texts()
    before = model(source, target)
    for s in range(9):
        changed = source.clone()
        changed[:, s] = (changed[:, s] + 1) % 30
        assert ((model(changed, target) - before).abs().amax(dim=-1) > 0).all()
    for t in range(7):
        changed = target.clone()
        changed[:, t] = (changed[:, t] + 1) % 30
        difference = (model(source, changed) - before).abs().amax(dim=-1)
        # an expert's product has as many rows as tokens chose it, and rounds accordingly
        assert difference[:, :t].sum() <= (1e-4 if model.cfg.n_expert else 0)
        assert (difference[:, t:] > 0).all()


def test_gradient_flows_to_every_parameter(model):
    source, target = texts()
    model(source, target).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@torch.no_grad()
def test_too_many_tokens_are_named(model):
    with pytest.raises(ValueError, match="13 tokens do not fit context_length=12"):
        model.encode(torch.zeros(1, 13, dtype=torch.long))
