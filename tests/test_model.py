"Laws of the model: cached equals uncached, rows are alone, everything learns, sizes are counted."
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.cache import KVCache
from minigpt.config import CHOICES, ModelConfig, count_parameters
from minigpt.inference import generate
from minigpt.loss import cross_entropy, shift
from minigpt.model import GPT
from minigpt.sampling import temperature

LIKE_LLAMA = ModelConfig(vocab_size=40, context_length=12, n_layer=2, n_head=4, n_kv_head=2,
                         d_model=32, d_ff=48, tie_embeddings=False)
LIKE_GPT2 = ModelConfig(vocab_size=40, context_length=12, n_layer=2, n_head=4, n_kv_head=4,
                        d_model=32, d_ff=64, norm="layer", mlp="gelu", position="learned",
                        bias=True)


@pytest.fixture(params=[LIKE_GPT2, LIKE_LLAMA], ids=["like GPT-2", "like LLaMA"])
def model(request):
    torch.manual_seed(0)
    model = GPT(request.param).eval()
    with torch.no_grad():
        for p in model.parameters():          # large weights: small ones hide a wrong mask
            p.add_(0.3 * torch.randn_like(p))
    return model


def random_ids(B=2, T=7, seed=1):
    return torch.randint(40, (B, T), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_cached_equals_uncached_however_it_is_cut(model):
    ids = random_ids()
    whole, T = model(ids), ids.shape[1]
    for cuts in range(2 ** (T - 1)):                        # every way to cut seven tokens
        borders = [0, *(i + 1 for i in range(T - 1) if cuts >> i & 1), T]
        cache = KVCache(model.cfg, batch_size=2)
        pieces = [model(ids[:, a:b], cache) for a, b in zip(borders, borders[1:])]
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-4, rtol=1e-4)
        assert cache.length == T


@torch.no_grad()
def test_a_row_does_not_depend_on_the_other_rows(model):
    ids = random_ids(B=5)
    together = model(ids)
    for row in range(5):
        torch.testing.assert_close(model(ids[row:row + 1])[0], together[row], atol=1e-5, rtol=1e-5)
        others = random_ids(B=5, seed=99)
        others[row] = ids[row]
        torch.testing.assert_close(model(others)[row], together[row], atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_the_future_does_not_touch_the_past(model):
    ids = random_ids(B=1, T=12)
    before = model(ids)
    for t in range(12):
        changed = ids.clone()
        changed[0, t] = (changed[0, t] + 1) % 40
        difference = (model(changed) - before).abs().amax(dim=(0, 2))
        assert difference[:t].sum() == 0 and (difference[t:] > 0).all()


def test_gradient_flows_to_every_parameter(model):
    inputs, targets = shift(random_ids(B=4, T=13))
    cross_entropy(model(inputs), targets).backward()
    dry = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dry


@st.composite
def configs(draw):
    few, size = st.integers(1, 3), st.integers(1, 9)
    n_kv_head = draw(few)
    n_head = n_kv_head * draw(few)
    return ModelConfig(
        vocab_size=draw(size), context_length=draw(size), n_layer=draw(few),
        n_head=n_head, n_kv_head=n_kv_head, d_model=2 * n_head * draw(few), d_ff=draw(size),
        bias=draw(st.booleans()), tie_embeddings=draw(st.booleans()),
        **{name: draw(st.sampled_from(choices)) for name, choices in CHOICES.items()})


@settings(max_examples=50)
@given(configs())
def test_parameters_are_counted_without_building(cfg):
    model = GPT(cfg)
    assert count_parameters(cfg)["total"] == sum(p.numel() for p in model.parameters())
    ids = torch.zeros(1, cfg.context_length, dtype=torch.long)
    assert model(ids).shape == (1, cfg.context_length, cfg.vocab_size)


@torch.no_grad()
def test_generation_equals_reading_everything_again_each_time(model):
    "Also past the context's end, where the newer half is kept."
    limit, ids = model.cfg.context_length, random_ids(B=1, T=5)[0].tolist()
    window, expected = list(ids), []
    for _ in range(30):
        if len(window) > limit:
            window = window[-(limit // 2):]
        expected.append(model(torch.tensor([window]))[0, -1].argmax().item())
        window.append(expected[-1])
    assert list(generate(model, ids, 30, [temperature(0)], overflow="slide")) == expected


def test_a_cache_works_where_gradients_are_on(model):
    cache = KVCache(model.cfg, batch_size=2)
    pieces = [model(ids, cache) for ids in random_ids().split(3, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(random_ids()), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_too_many_tokens_are_named(model):
    with pytest.raises(ValueError, match="13 tokens do not fit context_length=12"):
        model(random_ids(T=13))
    cache = KVCache(model.cfg, batch_size=2, max_length=6)
    with pytest.raises(ValueError, match="7 tokens do not fit a cache made for 6"):
        model(random_ids(T=7), cache)
    with pytest.raises(ValueError, match="13 tokens do not fit context_length=12"):
        cache = KVCache(model.cfg, batch_size=2)
        model(random_ids(T=9), cache)
        model(random_ids(T=4), cache)


@pytest.mark.parametrize("change, message", [
    ({"d_model": 130}, "d_model=130 cannot split into n_head=4"),
    ({"n_kv_head": 3}, "n_head=4 cannot share n_kv_head=3"),
    ({"d_model": 12}, "d_head=3 is odd"),
    ({"n_layer": 0}, "n_layer=0"), ({"vocab_size": -1}, "vocab_size=-1"),
    ({"d_ff": 0}, "d_ff=0"), ({"context_length": 0}, "context_length=0"),
    ({"mlp": "relu"}, "mlp='relu'"), ({"position": None}, "position=None"),
    ({"d_model": 128.0}, "d_model=128.0"), ({"n_layer": 2.5}, "n_layer=2.5"),
    ({"d_ff": "64"}, "d_ff="), ({"norm_eps": -1.0}, "norm_eps=-1.0"),
    ({"rope_theta": 0.0}, "rope_theta=0.0")])
def test_an_impossible_config_is_refused_by_its_numbers(change, message):
    with pytest.raises(ValueError) as error:
        ModelConfig(**change)
    assert message in str(error.value)
