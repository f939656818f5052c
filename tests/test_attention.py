"Laws of the parts of a block, each beside PyTorch's own or a formula: attention, norms, experts."
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from minigpt.attention import attend, attend_fused, causal_mask
from minigpt.block import Block
from minigpt.config import ModelConfig
from minigpt.efficient_attention import LatentAttention, attend_tiled
from minigpt.mlp import MLP, SwiGLU
from minigpt.model import initialise, window_mask
from minigpt.moe import balance_loss, expert_load, route, within_capacity
from minigpt.norm import build_norm
from minigpt.position import alibi_slopes, build_position, rope_frequencies, rotate

SMALL = ModelConfig(vocab_size=20, context_length=8, n_layer=2, n_head=2, n_kv_head=2, d_model=16,
                    d_ff=24, bias=True)


def random_heads(H, T, seed, Dh=8):
    return torch.randn(2, H, T, Dh, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("T, S", [(7, 7), (1, 7), (3, 7)])
def test_both_ways_to_attend_are_pytorch_s(T, S):
    q, k, v = random_heads(4, T, 0), random_heads(2, S, 1), random_heads(2, S, 2)
    seen = torch.arange(S) <= torch.arange(S - T, S)[:, None]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    blend, weights = attend(q, *(x.repeat_interleave(2, dim=1) for x in (k, v)))
    for found in (blend, attend_fused(q, k, v), attend_fused(q, k, v, ~seen)):
        torch.testing.assert_close(found, expected)
    assert torch.equal(weights > 0, seen.expand_as(weights))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, T))
    assert torch.equal(causal_mask(T, S), ~seen)


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("tile", [1, 3, 16])
def test_tiles_blend_what_the_whole_does(window, tile):
    T, S = 5, 9
    q, k, v = (random_heads(2, n, i) for i, n in enumerate((T, S, S)))
    hidden = causal_mask(T, S) if window is None else window_mask(T, S, window)
    torch.testing.assert_close(attend_tiled(q, k, v, tile, window),
                               attend_fused(q, k, v, hidden))


def test_latent_attention_unfolds_keys_and_values_and_sees_only_distances():
    torch.manual_seed(0)
    cfg = replace(SMALL, attention="latent", d_latent=6, d_rope=4)
    attention, position, x = LatentAttention(cfg), build_position(cfg), torch.randn(2, 5, 16)
    turns = position.rotation(torch.arange(5))
    latent, k_turned = attention.compress(x).split((6, 4), dim=-1)
    kv = attention.unfold(F.rms_norm(latent, (6,), None, cfg.norm_eps)).unflatten(-1, (2, 16))
    k, v = kv.transpose(1, 2).chunk(2, dim=-1)
    q, q_turned = attention.query(x).unflatten(-1, (2, 12)).transpose(1, 2).split((8, 4), dim=-1)
    k_turned = turns(k_turned[:, None]).expand(-1, 2, -1, -1)
    blend, _ = attend(torch.cat((q, turns(q_turned)), -1), torch.cat((k, k_turned), -1), v)
    expected = attention.out(blend.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, turns), expected)
    later = position.rotation(torch.arange(3, 8))
    torch.testing.assert_close(attention(x, later), expected)


def test_a_pair_turns_by_its_place_like_a_complex_number():
    x, frequencies = random_heads(1, 5, 0), rope_frequencies(8, 100.0)
    torch.testing.assert_close(frequencies, 100.0 ** -(torch.arange(4) / 4))
    angles = torch.arange(5)[:, None] * frequencies
    turned = torch.complex(*x.chunk(2, dim=-1)) * torch.exp(1j * angles)
    torch.testing.assert_close(rotate(x, angles.cos(), angles.sin()),
                               torch.cat((turned.real, turned.imag), dim=-1))


def test_alibi_takes_off_what_the_distance_costs():
    assert alibi_slopes(4).tolist() == [2**-2, 2**-4, 2**-6, 2**-8]
    fees = build_position(replace(SMALL, position="alibi")).bias(2, 4)      # slopes 1/16 and 1/256
    assert fees[0].tril(2).tolist() == [[-2 / 16, -1 / 16, 0, 0], [-3 / 16, -2 / 16, -1 / 16, 0]]


@pytest.mark.parametrize("size", [1.0, 1e-3])                  # of small numbers eps is most
def test_norms_are_those_of_their_formulas(size):
    x = size * torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    for kind in ("layer", "rms"):
        norm = build_norm(replace(SMALL, norm=kind, norm_eps=1e-4))
        with torch.no_grad():
            for i, p in enumerate(norm.parameters()):
                p.copy_(torch.linspace(i, 2, 16))
        middle = x - x.mean(-1, keepdim=True) if kind == "layer" else x
        expected = middle / (middle.square().mean(-1, keepdim=True) + 1e-4).sqrt() * norm.weight
        torch.testing.assert_close(norm(x), expected + getattr(norm, "bias", 0))


def test_networks_are_their_formulas():
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    gelu = lambda h: 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    for kind, switch in (("gelu", gelu), ("relu2", lambda h: h.clamp(min=0) ** 2)):
        net = MLP(replace(SMALL, mlp=kind))
        torch.testing.assert_close(net(x), net.down(switch(net.up(x))))
    net = SwiGLU(SMALL)
    gate = net.gate(x)
    torch.testing.assert_close(net(x), net.down(gate / (1 + torch.exp(-gate)) * net.up(x)))


@pytest.mark.parametrize("place", ["pre", "post"])
def test_a_block_adds_to_the_stream_what_its_parts_say(place):
    torch.manual_seed(0)
    block, x = Block(replace(SMALL, norm_place=place)), torch.randn(2, 5, 16)
    for norm in (block.attention_norm, block.mlp_norm):
        torch.nn.init.normal_(norm.weight)
    if place == "pre":
        middle = x + block.attention(block.attention_norm(x))
        expected = middle + block.mlp(block.mlp_norm(middle))
    else:
        middle = block.attention_norm(x + block.attention(x))
        expected = block.mlp_norm(middle + block.mlp(middle))
    torch.testing.assert_close(block(x), expected)


def test_what_writes_to_the_stream_begins_smaller_by_the_root_of_all_writes():
    torch.manual_seed(0)
    blocks = torch.nn.ModuleList(Block(replace(SMALL, d_model=64, d_ff=256)) for _ in range(2))
    initialise(blocks, n_layer=8)
    for name, p in blocks.named_parameters():
        if name.endswith((".out.weight", ".down.weight")):
            assert p.std().item() == pytest.approx(0.02 / 4, rel=0.05), name
        elif p.dim() == 2:
            assert p.std().item() == pytest.approx(0.02, rel=0.05), name
        elif name.endswith("bias"):
            assert not p.any(), name


def test_a_token_is_shared_among_its_experts_and_an_even_load_costs_least():
    scores = torch.tensor([[math.log(3), 0, -9.0, -9], [-9, 0, math.log(3), -9]])
    shares, experts = route(scores, 2)
    torch.testing.assert_close(shares, torch.tensor([[0.75, 0.25], [0.75, 0.25]]))
    assert experts.tolist() == [[0, 1], [2, 1]]
    torch.testing.assert_close(expert_load(scores, 2), torch.tensor([0.25, 0.5, 0.25, 0]))
    even, uneven = torch.eye(4) * 20, torch.eye(4)[[0, 0, 0, 1]] * 20
    assert balance_loss([even, even], 1).item() == pytest.approx(1, rel=1e-5)
    assert balance_loss([uneven], 1).item() == pytest.approx(4 * (9 + 1) / 16, rel=1e-5)


def test_seats_go_to_those_who_come_first():
    chosen = torch.tensor([[0], [0], [1], [0]])
    assert within_capacity(chosen, 2, 1.0).flatten().tolist() == [True, True, True, False]
    assert within_capacity(chosen, 2, 0.5).flatten().tolist() == [True, False, True, False]
