"Laws of the model: cached equals uncached, rows are alone, everything learns, sizes are counted."
import json
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from minigpt.cache import KVCache
from minigpt.config import CHOICES, ModelConfig, RopeScaling
from minigpt.inference import generate_ids
from minigpt.loss import cross_entropy, shift
from minigpt.model import GPT
from minigpt.sampling import temperature
from minigpt.sizes import active_parameters, count_parameters, forward_flops, memory_bytes
from minigpt.training import accumulate_gradients

LIKE_LLAMA = ModelConfig(vocab_size=40, context_length=12, n_layer=2, n_head=4, n_kv_head=2,
                         d_model=32, d_ff=48, tie_embeddings=False)
LIKE_GPT2 = ModelConfig(vocab_size=40, context_length=12, n_layer=2, n_head=4, n_kv_head=4,
                        d_model=32, d_ff=64, norm="layer", mlp="gelu", position="learned",
                        bias=True)
VARIATIONS = {
    "like GPT-2": LIKE_GPT2, "like LLaMA": LIKE_LLAMA,
    "window": replace(LIKE_LLAMA, window=4),
    "alibi, post-norm": replace(LIKE_GPT2, position="alibi", norm_place="post"),
    "sinusoidal, ReLU²": replace(LIKE_GPT2, position="sinusoidal", mlp="relu2"),
    "no position": replace(LIKE_LLAMA, position="none"),
    "YaRN, wide heads": replace(LIKE_LLAMA, d_attention=48, qk_norm=True,
                                rope_scaling=RopeScaling("yarn", 4.0, 6)),
    "latent": replace(LIKE_LLAMA, attention="latent", d_latent=12, d_rope=6, qkv_bias=True),
    "experts": replace(LIKE_LLAMA, n_expert=3)}


@pytest.fixture(params=VARIATIONS.values(), ids=VARIATIONS)
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
        # an expert's product has as many rows as tokens chose it, and rounds accordingly
        near = 1e-4 if model.cfg.n_expert else 1e-6
        torch.testing.assert_close(model(others)[row], together[row], atol=near, rtol=1e-6)


@torch.no_grad()
def test_the_future_does_not_touch_the_past(model):
    ids = random_ids(B=1, T=12)
    before = model(ids)
    for t in range(12):
        changed = ids.clone()
        changed[0, t] = (changed[0, t] + 1) % 40
        difference = (model(changed) - before).abs().amax(dim=(0, 2))
        # an expert's product has as many rows as tokens chose it, and rounds accordingly
        assert difference[:t].sum() <= (1e-4 if model.cfg.n_expert else 0)
        reach = 12 if model.cfg.window is None else 1 + 2 * (model.cfg.window - 1)
        assert (difference[t:t + reach] > 1e-4).all()
        assert difference[t + reach:].sum() == 0


@torch.no_grad()
def test_a_left_padded_row_is_as_if_alone(model):
    "Whatever stands in the padding, whole or with a cache that is cut anywhere."
    ids, padding = random_ids(B=3, T=12), torch.tensor([0, 3, 11])
    for cut in ([12], [1] * 12, [5, 1, 6]):
        cache = KVCache(model.cfg, batch_size=3) if len(cut) > 1 else None
        together = torch.cat([model(part, cache, padding) for part in ids.split(cut, dim=1)], dim=1)
        assert together.isfinite().all()
        for row, n in enumerate(padding.tolist()):
            alone = model(ids[row:row + 1, n:])[0]
            torch.testing.assert_close(together[row, n:], alone, atol=1e-4, rtol=1e-4)
    other = ids.clone()
    other[1, :3], other[2, :11] = 7, 9
    near = 1e-4 if model.cfg.n_expert else 0       # experts take padding for tokens, and round
    torch.testing.assert_close(model(other, padding=padding)[1, 3:],
                               model(ids, padding=padding)[1, 3:], atol=near, rtol=0)


@pytest.mark.parametrize("cfg", [c for c in VARIATIONS.values() if not c.n_expert],
                         ids=[n for n, c in VARIATIONS.items() if not c.n_expert])
@torch.no_grad()
def test_arithmetic_is_counted_to_the_operation(cfg):
    plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with plain, FlopCounterMode(display=False) as counter:
        GPT(cfg)(torch.zeros(1, 9, dtype=torch.long))
    assert counter.get_total_flops() == forward_flops(cfg, 9)["total"]


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
    chosen = {name: draw(st.sampled_from(choices)) for name, choices in CHOICES.items()}
    n_expert = draw(st.sampled_from((0, 0, 1, 3)))
    return ModelConfig(
        vocab_size=draw(size), context_length=draw(size), n_layer=draw(few),
        n_head=n_head, n_kv_head=n_kv_head, d_model=2 * n_head * draw(few), d_ff=draw(size),
        d_attention=draw(st.sampled_from((None, 4 * n_head))), d_latent=draw(size),
        d_rope=2 * draw(few), window=draw(st.sampled_from((None, 1, 3))),
        n_expert=n_expert, n_expert_used=draw(st.integers(1, max(1, n_expert))),
        bias=draw(st.booleans()), qkv_bias=draw(st.booleans()), tie_embeddings=draw(st.booleans()),
        qk_norm=chosen["attention"] == "heads" and draw(st.booleans()), **chosen)


@settings(max_examples=100)
@given(configs())
def test_parameters_are_counted_without_building(cfg):
    model = GPT(cfg)
    assert count_parameters(cfg)["total"] == sum(p.numel() for p in model.parameters())
    idle = (cfg.n_expert - cfg.n_expert_used) * cfg.n_layer if cfg.n_expert else 0
    one = sum(p.numel() for name, p in model.named_parameters()
              if name.startswith("blocks.0.mlp.experts.0."))
    assert active_parameters(cfg) == count_parameters(cfg)["total"] - idle * one
    cache = KVCache(cfg, batch_size=2)
    assert cache.nbytes == 2 * cfg.context_length * memory_bytes(cfg)["cache_per_token"]
    assert ModelConfig.from_dict(json.loads(json.dumps(asdict(cfg)))) == cfg
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
    assert list(generate_ids(model, ids, 30, [temperature(0)], overflow="slide")) == expected


def test_a_cache_keeps_only_what_the_query_heads_share():
    "Bytes by hand: keys and values of two heads for a layer and token, or a latent and its turn."
    assert KVCache(LIKE_LLAMA, 3, 5).nbytes == 4 * 2 * (2 * 8) * 2 * 3 * 5
    assert KVCache(VARIATIONS["latent"], 3, 5, "bfloat16").nbytes == 2 * (12 + 6) * 2 * 3 * 5
    assert memory_bytes(LIKE_LLAMA)["cache_per_token"] == 4 * 2 * (2 * 8) * 2


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
    ({"rope_theta": 0.0}, "rope_theta=0.0"), ({"d_attention": 130}, "d_attention=130 cannot split"),
    ({"window": 0}, "window=0"), ({"n_expert": -1}, "n_expert=-1"), ({"bias": 1}, "bias=1"),
    ({"n_expert": 2, "n_expert_used": 3}, "n_expert_used=3 is more than the n_expert=2"),
    ({"attention": "latent", "d_rope": 5}, "d_rope=5 is odd"),
    ({"attention": "latent", "qk_norm": True}, "qk_norm needs attention='heads'"),
    ({"position": "sinusoidal", "d_model": 127, "n_head": 1, "n_kv_head": 1}, "d_model=127 is odd"),
    ({"position": "alibi", "rope_scaling": RopeScaling("ntk", 2.0, 8)}, "rope_scaling needs")])
def test_an_impossible_config_is_refused_by_its_numbers(change, message):
    with pytest.raises(ValueError) as error:
        ModelConfig(**change)
    assert message in str(error.value)


@pytest.mark.parametrize("scaling, message", [
    (("longer", 2.0, 8), "kind='longer' is unknown"), (("yarn", 0.5, 8), "factor=0.5"),
    (("yarn", 2.0, 0), "original_length=0"), (("llama3", 2.0, 8, 4.0, 4.0), "fast_turns=4.0 above"),
    (("yarn", 2.0, 8, 1.0, 32.0, -1.0), "magnitude=-1.0")])
def test_an_impossible_stretch_is_refused_by_its_numbers(scaling, message):
    with pytest.raises(ValueError, match=message):
        RopeScaling(*scaling)


def test_experts_learn_with_a_balance_loss_whatever_the_cut():
    "One micro-batch or three; and the balance reaches only the routers' side of the gradient."
    ids, gradients = random_ids(B=6, T=13), {}
    for n_micro, balance in ((1, 0.0), (1, 0.1), (3, 0.0)):
        torch.manual_seed(0)
        model = GPT(VARIATIONS["experts"])
        loss = accumulate_gradients(model, ids, n_micro, balance)
        gradients[n_micro, balance] = loss, model.blocks[1].mlp.router.weight.grad
    assert abs(gradients[1, 0.0][0] - gradients[1, 0.1][0]) < 1e-6
    torch.testing.assert_close(gradients[1, 0.0][1], gradients[3, 0.0][1], atol=1e-6, rtol=1e-4)
    assert (gradients[1, 0.0][1] - gradients[1, 0.1][1]).abs().max() > 1e-6


def test_torch_export_takes_every_batch_and_length():
    "One exported program: attention must not decide by a length that is only a symbol."
    torch.manual_seed(0)
    model = GPT(ModelConfig(64, n_layer=2, d_model=32, d_ff=64, n_head=4, n_kv_head=2,
                            context_length=32, qk_norm=True)).eval()
    free = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    program = torch.export.export(model, (torch.zeros(2, 7, dtype=torch.long),),
                                  dynamic_shapes=(free,), strict=False).module()
    for shape in ((1, 1), (1, 2), (3, 20), (2, 32)):
        ids = torch.randint(64, shape)
        torch.testing.assert_close(program(ids), model(ids))
