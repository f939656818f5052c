"Laws of quantization: what rounding may cost, GPTQ and AWQ against oracles, a model of codes."
import copy
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import refused
from hypothesis import given
from hypothesis import strategies as st

import minigpt.quantization as quantization
from minigpt import load
from minigpt.beam_search import beam_search
from minigpt.cache import KVCache
from minigpt.chat import add_chat_tokens
from minigpt.checkpoint import (
    fingerprint,
    from_bytes,
    load_model,
    load_tensors,
    save_model,
    save_tensors,
    to_bytes,
)
from minigpt.config import ModelConfig
from minigpt.decoder import Decoder, choose_layout, decoder_for
from minigpt.gguf_file import from_blocks
from minigpt.inference import complete_batch, generate, generate_ids
from minigpt.lora import add_lora, lora_layers, merge, pack
from minigpt.loss import cross_entropy
from minigpt.model import GPT
from minigpt.quantization import (
    BLOCK_BITS,
    QuantizedEmbedding,
    QuantizedKVCache,
    bytes_product,
    calibrate,
    calibration_rows,
    code_product,
    dequantize_model,
    fold_scales,
    gptq,
    layer_error,
    model_bits,
    outliers,
    pack_bits,
    quantize,
    quantize_model,
    tables,
    to_blocks,
    unpack_bits,
    works,
)
from minigpt.sampling import temperature
from minigpt.weights import from_huggingface, to_huggingface

BASE = ModelConfig(vocab_size=67, context_length=48, n_layer=2, n_head=4, n_kv_head=2, d_model=32,
                   d_ff=72)
KINDS = {
    "llama": BASE,
    "gpt2": replace(BASE, n_kv_head=4, norm="layer", mlp="gelu", position="learned", bias=True),
    "untied": replace(BASE, tie_embeddings=False, n_kv_head=4, qk_norm=True),
    "post": replace(BASE, norm_place="post", position="sinusoidal"),
    "alibi": replace(BASE, position="alibi", mlp="relu2", qkv_bias=True),
    "latent": replace(BASE, attention="latent", d_latent=16, d_rope=8),
    "experts": replace(BASE, n_expert=3),
}
FOLDABLE = ("llama", "gpt2", "untied", "alibi")
SMALL = {"bits": 4, "group": 32}


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(kind="llama", seed=0):
    "A model with weights large enough that mistakes show."
    torch.manual_seed(seed)
    model = GPT(KINDS[kind]).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p) / max(1, p.shape[-1]) ** 0.5
    return model


def some_rows(n=12, T=24, seed=1, vocab=67):
    return torch.randint(vocab, (n, T), generator=torch.Generator().manual_seed(seed))


def correlated(n, width, seed):
    "Inputs that say much the same in many columns, and that are uneven."
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(n, width // 4, generator=g) @ torch.randn(width // 4, width, generator=g)
            + 0.3 * torch.randn(n, width, generator=g)) * (0.1 + torch.rand(width, generator=g))


# ---- codes side by side -------------------------------------------------------------------------
@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 70), st.integers(0, 99))
def test_unpacking_undoes_packing_without_a_gap(bits, rows, n, seed):
    codes = torch.randint(2**bits, (rows, n), generator=torch.Generator().manual_seed(seed),
                          dtype=torch.uint8)
    packed = pack_bits(codes, bits)
    assert packed.shape == (rows, math.ceil(n * bits / 8)) and packed.dtype == torch.uint8
    assert torch.equal(unpack_bits(packed, bits, n), codes)
    written = ["".join(f"{c:0{bits}b}" for c in row) for row in codes.tolist()]     # as text
    wide = packed.shape[1]
    assert packed.tolist() == [[int(line.ljust(8 * wide, "0")[8 * i:8 * i + 8], 2)
                                for i in range(wide)] for line in written]


def test_two_codes_a_byte_lie_as_in_nf4():
    codes = torch.randint(16, (3, 10), dtype=torch.uint8)
    assert torch.equal(pack_bits(codes, 4).flatten(), pack(codes.flatten()))


# ---- rounding -----------------------------------------------------------------------------------
@pytest.mark.parametrize("group", [1, 7, 32, 500, "row", "tensor"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_nothing_is_off_by_more_than_half_a_step(bits, group, symmetric):
    weight = numbers(9, 75)
    q = quantize(weight, bits, group, symmetric)
    step = q.scales.float().repeat_interleave(q.group, dim=1)[:, :75]
    room = 0.5 + 2**bits * (2**-11 if isinstance(group, int) else 1e-5)    # scales are rounded too
    off = (q.dequantize() - weight).abs()
    assert (off <= step * (room if symmetric else room + 0.5) + 1e-6).all()
    assert q.codes.max().item() < 2**bits and q.shape == (9, 75)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_are_what_pytorch_rounds_to(bits, symmetric):
    weight = numbers(11, 40)
    q = quantize(weight, bits, "row", symmetric)
    zeros = torch.full((11,), 2 ** (bits - 1)) if symmetric else q.zeros[:, 0]
    theirs = torch.fake_quantize_per_channel_affine(weight, q.scales[:, 0], zeros.int(), 0,
                                                    int(symmetric), 2**bits - 1)
    torch.testing.assert_close(q.dequantize(), theirs)
    ends = ((weight.abs().amax(1) / (2 ** (bits - 1) - 1)) if symmetric else
            (weight.amax(1) - weight.amin(1)) / (2**bits - 1))
    torch.testing.assert_close(q.scales[:, 0], ends)


@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_are_rounded_each_by_itself(symmetric):
    weight = numbers(6, 80)                          # 32 + 32 + 16: the last is shorter
    q = quantize(weight, 4, 32, symmetric)
    parts = [quantize(weight[:, a:a + 32], 4, 32, symmetric) for a in (0, 32, 64)]
    assert torch.equal(q.dequantize(), torch.cat([p.dequantize() for p in parts], dim=1))
    assert q.scales.shape == (6, 3) and q.scales.dtype == torch.float16


def test_zero_stays_zero_and_codes_stay():
    weight = numbers(5, 64)
    weight[2] = 0
    weight[:, 3] = 0
    for symmetric in (True, False):
        for group in (32, "row", "tensor"):
            q = quantize(weight, 4, group, symmetric)
            found = q.dequantize()
            assert (found[2] == 0).all() and (found[:, 3] == 0).all()
            assert torch.equal(quantize(found, 4, group, symmetric).dequantize(), found) \
                or not symmetric                     # float16 steps: only symmetric ones return


def test_a_shift_costs_symmetric_codes_and_not_the_others():
    weight = torch.rand(8, 64, generator=torch.Generator().manual_seed(0)) + 0.01
    even, shifted = (quantize(weight, 4, 32, symmetric).dequantize() - weight
                     for symmetric in (True, False))
    assert shifted.square().mean() < 0.4 * even.square().mean()


def test_bits_are_counted_with_scales_and_zeros():
    weight = numbers(10, 64)
    assert quantize(weight, 4, 32).bits_per_weight == 4 + 16 / 32
    assert quantize(weight, 4, 32, symmetric=False).bits_per_weight == 4 + 24 / 32
    assert quantize(weight, 3, 64).bits_per_weight == 3 + 16 / 64
    assert quantize(weight, 8, "row").bits_per_weight == 8 + 32 / 64
    assert quantize(weight, 8, "tensor").bits_per_weight == 8 + 32 / 640
    q = quantize(weight, 4, 32)
    assert q.nbytes == q.packed.nbytes + q.scales.nbytes == 10 * (32 + 4)


def test_rows_of_eight_bits_are_those_of_the_checkpoints():
    weight = numbers(7, 33)
    theirs = to_bytes({"w": weight})
    q = quantize(weight, 8, "row")
    assert torch.equal((q.packed ^ 128).view(torch.int8), theirs["w"])
    assert torch.equal(q.scales[:, 0], theirs["w.scale"])
    assert torch.equal(q.dequantize(), from_bytes(theirs)["w"])


@pytest.mark.parametrize("arguments, words", [
    ({"bits": 1}, ("bits=1", "2 to 8")), ({"bits": 9}, ("bits=9",)), ({"bits": 4.0}, ("bits=4.0",)),
    ({"bits": True}, ("bits=True",)), ({"group": 0}, ("group=0", "row")),
    ({"group": "channel"}, ("'channel'", "tensor")), ({"group": 2.5}, ("2.5",)),
    ({"group": True}, ("True",))])
def test_what_is_no_choice_is_refused(arguments, words):
    with refused(*words):
        quantize(numbers(4, 8), **arguments)


def test_what_cannot_be_rounded_is_refused():
    with refused("(8,)", "matrix"):
        quantize(numbers(8))
    with refused("1e+08", "float16", "row"):
        quantize(torch.full((2, 8), 1e8))
    assert quantize(torch.full((2, 8), 1e8), 4, "row").dequantize().max() == pytest.approx(1e8)
    for wrong in (math.nan, math.inf):
        with refused("scale"):
            quantize(torch.tensor([[1.0, wrong]]), 4, "row")


# ---- GGUF's blocks ------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", BLOCK_BITS)
def test_blocks_are_those_of_gguf_to_the_byte(kind):
    gguf = pytest.importorskip("gguf")
    from gguf import quants
    theirs = getattr(gguf.GGMLQuantizationType, kind)
    weight = numbers(40, 96, seed=3) * torch.logspace(-3, 2, 40)[:, None]
    weight[0], weight[1, 32:64], weight[2] = 0, 0, torch.arange(96) % 9 - 4.0
    weight[3] = torch.arange(96) / 2 - 20                       # halves: ties
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)         # of theirs, on blocks of zeros
        expected = quants.quantize(weight.numpy(), theirs)
    found = to_blocks(weight, kind)
    np.testing.assert_array_equal(found.numpy(), expected)
    np.testing.assert_array_equal(from_blocks(found, kind).numpy(),
                                  quants.dequantize(expected, theirs))


@pytest.mark.parametrize("kind, size", [("Q8_0", 34), ("Q4_0", 18), ("Q4_1", 20), ("Q5_0", 22)])
def test_blocks_by_hand(kind, size):
    weight = torch.zeros(1, 32)
    weight[0, :4] = torch.tensor([-1.0, 0.5, 0.25, 1 / 128])
    blocks = to_blocks(weight, kind)
    assert blocks.shape == (1, size)
    off = (from_blocks(blocks, kind) - weight).abs().max()
    assert off <= {"Q8_0": 1 / 254, "Q4_0": 1 / 16, "Q4_1": 1 / 20, "Q5_0": 1 / 32}[kind] + 1e-3


def test_what_is_no_block_is_refused():
    with refused("'Q3_K'", "Q4_0"):
        to_blocks(numbers(2, 32), "Q3_K")
    with refused("(2, 33)", "32"):
        to_blocks(numbers(2, 33), "Q4_0")


# ---- outliers -----------------------------------------------------------------------------------
def test_outliers_by_hand():
    x = torch.ones(100, 4)
    x[:, 3], x[7, 0] = 10, 50
    found = outliers(x)
    size = (x**2).mean(0).sqrt()
    torch.testing.assert_close(found.peak, torch.tensor([50 / size[0], 1, 1, 1]))
    assert found.width == pytest.approx(10 / size.median().item())
    assert found.share == pytest.approx(1 / 400)
    assert outliers(torch.zeros(3, 4)).share == 0
    even = outliers(numbers(4000, 8))
    assert even.width < 1.1 and even.share == 0 and even.peak.max() < 6


# ---- GPTQ ---------------------------------------------------------------------------------------
def textbook(weight, hessian, scales, zeros, bits, lowest, group, damp, order):
    "Optimal brain quantization, one column at a time, with a fresh inverse for what is left."
    W, H = weight.double().clone(), hessian.double().clone()
    H += damp * H.diagonal().mean() * torch.eye(len(H), dtype=torch.float64)
    left, found = list(order), torch.zeros_like(W)
    while left:
        i = left[0]
        s, z = scales[:, i // group].double(), zeros[:, i // group].double()
        q = ((W[:, i] / s).round() + z).clamp(lowest, 2**bits - 1)
        found[:, i] = (q - z) * s
        inverse = torch.linalg.inv(H[left][:, left])
        error = (W[:, i] - found[:, i]) / inverse[0, 0]
        for k, j in enumerate(left):
            W[:, j] -= error * inverse[0, k]
        left = left[1:]
    return found.float()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group", ["row", "tensor", 8])
def test_gptq_is_the_textbook(symmetric, act_order, group):
    if group == 8 and not act_order:
        group = "row"                                # scales are chosen on the way: see below
    weight, x = numbers(6, 24, seed=4), correlated(60, 24, 5)
    hessian = x.T @ x
    plain = quantize(weight, 3, group, symmetric)
    zeros = torch.full(plain.scales.shape, 4) if symmetric else plain.zeros
    order = (hessian.diagonal() + 0.01 * hessian.diagonal().mean()).argsort(descending=True) \
        if act_order else torch.arange(24)
    expand = lambda t: t.expand(6, -1)
    theirs = textbook(weight, hessian, expand(plain.scales), expand(zeros), 3, int(symmetric),
                      plain.group, 0.01, order.tolist())
    ours = gptq(weight, hessian, 3, group, symmetric, act_order=act_order).dequantize()
    assert (ours - theirs).abs().max() < 1e-5
    assert (ours != plain.dequantize()).any()


def test_gptq_is_the_textbook_beyond_its_first_block_of_columns():
    weight, x = numbers(3, 160, seed=4), correlated(400, 160, 5)
    hessian = x.T @ x
    plain = quantize(weight, 3, 8)                   # 16 groups make a block of 128 columns
    order = (hessian.diagonal() + 0.01 * hessian.diagonal().mean()).argsort(descending=True)
    theirs = textbook(weight, hessian, plain.scales, torch.full(plain.scales.shape, 4), 3, 1, 8,
                      0.01, order.tolist())
    ours = gptq(weight, hessian, 3, 8, act_order=True).dequantize()
    assert ((ours - theirs).abs() > 1e-5).float().mean() < 0.01        # float32 may round a tie


def test_gptq_chooses_a_groups_scales_when_it_gets_there():
    weight, x = numbers(5, 24, seed=6), correlated(60, 24, 7)
    hessian = x.T @ x
    ours, start = gptq(weight, hessian, 3, 8), 8
    first = gptq(weight, hessian, 3, "row")          # scales of a row: other codes; not of a group
    assert torch.equal(ours.scales[:, 0], quantize(weight, 3, 8).scales[:, 0])
    assert not torch.equal(ours.scales[:, 1], quantize(weight, 3, 8).scales[:, 1])
    assert first.scales.shape == (5, 1)
    damped = (hessian + 0.01 * hessian.diagonal().mean() * torch.eye(24)).double()
    error = (weight - ours.dequantize())[:, :start].double()
    moved = weight[:, start:].double() + error @ (      # the best answer to fixed first columns
        damped[:start, start:] @ torch.linalg.inv(damped[start:, start:]))
    torch.testing.assert_close(ours.scales[:, 1],
                               quantize(moved[:, :8].float(), 3, 8).scales[:, 0])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [16, 200, "row"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_without_correlation_gptq_is_rounding(bits, group, symmetric):
    weight = numbers(7, 150, seed=2)
    for act_order in (False, True):
        ours = gptq(weight, 3 * torch.eye(150), bits, group, symmetric, act_order=act_order)
        assert torch.equal(ours.dequantize(), quantize(weight, bits, group, symmetric).dequantize())


@pytest.mark.parametrize("seed", range(4))
def test_gptq_moves_answers_less_than_rounding(seed):
    weight, x = numbers(24, 160, seed=seed), correlated(500, 160, seed + 10)
    hessian = x.T @ x
    for bits, group, symmetric in ((2, 32, True), (3, 16, False), (4, 32, True), (4, "row", True),
                                   (4, 48, True), (8, "row", True)):
        for act_order in (False, True):
            error = lambda q: ((x @ weight.T - x @ q.dequantize().T) ** 2).sum().item()
            ours = error(gptq(weight, hessian, bits, group, symmetric, act_order=act_order))
            assert ours < 0.7 * error(quantize(weight, bits, group, symmetric)), (bits, group)


def test_the_error_is_that_of_the_answers():
    weight, x = numbers(6, 20), correlated(50, 20, 1)
    other = weight + 0.1 * numbers(6, 20, seed=1)
    direct = ((x @ weight.T - x @ other.T) ** 2).sum().item()
    assert layer_error(weight, other, x.T @ x) == pytest.approx(direct, rel=1e-4)


def test_columns_that_nothing_reads_are_rounded():
    weight, x = numbers(4, 32), correlated(80, 32, 3)
    x[:, 5] = 0
    found = gptq(weight, x.T @ x, 4, "row").dequantize()
    assert torch.equal(found[:, 5], quantize(weight, 4, "row").dequantize()[:, 5])


def test_gptq_refuses_what_no_calibration_gives():
    weight = numbers(4, 8)
    for wrong in (torch.zeros(8, 8), torch.eye(7), torch.full((8, 8), math.nan)):
        with refused("hessian", "(8, 8)", "calibrate"):
            gptq(weight, wrong)
    with refused("bits=1"):
        gptq(weight, torch.eye(8), bits=1)


# ---- calibration --------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_calibration_hears_what_layers_read(kind):
    model, rows, inputs = build(kind), some_rows(), {}
    layers = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)
              and name.startswith("blocks.") and not name.endswith("router")}
    hooks = [layer.register_forward_hook(lambda m, args, out, name=name: inputs.setdefault(
        name, []).append(args[0].detach().flatten(0, -2))) for name, layer in layers.items()]
    with torch.no_grad():
        model(rows)
    for hook in hooks:
        hook.remove()
    heard = {name: found for block in calibrate(model, rows) for name, found in block.items()}
    assert heard.keys() == layers.keys()
    for name, found in heard.items():
        x = torch.cat(inputs[name])
        assert found.tokens == len(x) and ("experts" in name or found.tokens == rows.numel())
        torch.testing.assert_close(found.hessian, x.T @ x, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.size, x.abs().sum(0), rtol=1e-3, atol=1e-3)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_later_blocks_hear_what_was_changed():
    model, rows = build(), some_rows()
    whole = [block for block in calibrate(model, rows)]
    changed = copy.deepcopy(model)
    heard = calibrate(changed, rows)
    first = next(heard)
    with torch.no_grad():
        changed.blocks[0].mlp.down.weight *= 2
    second = next(heard)
    name = "blocks.1.attention.query"
    assert torch.equal(first["blocks.0.mlp.up"].hessian, whole[0]["blocks.0.mlp.up"].hessian)
    assert not torch.allclose(second[name].hessian, whole[1][name].hessian)
    again = list(calibrate(changed, rows))[1][name]
    torch.testing.assert_close(second[name].hessian, again.hessian)


@pytest.mark.parametrize("rows, words", [
    (torch.empty(0, 8, dtype=torch.int64), ("at least one row",)), ([[1, 2]], ("(N, T)",)),
    (torch.ones(2, 8), ("token ids",)), (torch.ones(4, dtype=torch.int64), ("(N, T)",)),
    (torch.full((3, 8), 5), ("token 5",)), (some_rows(2, 49), ("49", "context_length=48"))])
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_rows_that_teach_nothing_are_refused(rows, words, method):
    with refused(*words):
        quantize_model(build(), method=method, rows=rows)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_calibration_that_does_nothing_is_noticed(method):
    with refused(method, "rows"):
        quantize_model(build(), method=method)
    with refused(method, "changed no code"):
        quantize_model(build(), method=method, rows=some_rows(), skip=["blocks"])
    dead = build()
    with torch.no_grad():
        dead.blocks[1].mlp_norm.weight.zero_()
    with refused("blocks.1.mlp", "only zeros"):
        quantize_model(dead, method=method, rows=some_rows())
    broken = build()
    with torch.no_grad():
        broken.blocks[0].mlp_norm.weight[0] = math.nan
    with refused("blocks.0.mlp", "not finite"):
        quantize_model(broken, method=method, rows=some_rows())


def test_an_expert_that_no_token_chose_is_named():
    model = build("experts")
    with torch.no_grad():
        model.blocks[0].mlp.router.weight.zero_()
    with refused("experts.2", "no token"):
        quantize_model(model, method="gptq", rows=some_rows())


def test_calibration_rows_come_from_all_over(tokenizer):
    text = " ".join(f"Rosa and Tom baked cake {i}." for i in range(200))
    ids = tokenizer.encode(text)
    rows = calibration_rows(tokenizer, text, 16, 9)
    assert rows.shape == (9, 16) and rows[0].tolist() == ids[:16] and rows[-1].tolist() == ids[-16:]
    assert calibration_rows(tokenizer, text, 16, 10**6).shape == (len(ids) // 16, 16)
    with refused(f"{len(tokenizer.encode('Rosa'))} tokens", "at least 16"):
        calibration_rows(tokenizer, "Rosa", 16)


# ---- AWQ ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", FOLDABLE)
def test_folded_scales_change_no_answer(kind):
    model, rows = build(kind), some_rows()
    before = fingerprint(dict(model.named_parameters()))
    folded, factors = fold_scales(model, rows, 3, 16)
    ids = some_rows(3, 40, seed=9)
    torch.testing.assert_close(folded(ids), model(ids), atol=1e-5, rtol=1e-5)
    assert fingerprint(dict(model.named_parameters())) == before
    query = "blocks.0.attention.query"
    assert factors[query].std() > 0.01
    torch.testing.assert_close(folded.get_submodule(query).weight,
                               model.get_submodule(query).weight * factors[query])
    outs = {name for name in factors if name.endswith("attention.out")}
    assert len(outs) == (2 if model.cfg.n_kv_head == model.cfg.n_head else 0)
    assert any("down" in name for name in factors) == (model.cfg.mlp == "swiglu")


def test_awq_moves_answers_no_more_than_rounding():
    model, rows = build("untied"), some_rows()
    with torch.no_grad():
        model.blocks[0].attention_norm.weight[:3] *= 20               # outliers
    q = quantize_model(model, 3, 32, "awq", rows)
    reports = {r.name: r for r in q.quantization.layers}
    worst = max(r.error / r.nearest for r in reports.values())
    assert worst < 1.05 and reports["blocks.0.attention.query"].error \
        < 0.5 * reports["blocks.0.attention.query"].nearest


@pytest.mark.parametrize("kind", ["post", "latent", "experts"])
def test_what_cannot_be_folded_is_refused(kind):
    with refused("awq", "gptq"):
        quantize_model(build(kind), method="awq", rows=some_rows())


# ---- a model of codes ---------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [{"bits": 4, "group": 32}, {"bits": 8},
                                 {"bits": 3, "group": "tensor", "symmetric": False}])
def test_codes_answer_as_their_plain_numbers_do(kind, how):
    model, ids = build(kind), some_rows(3, 20)
    before = fingerprint(dict(model.named_parameters()))
    q = quantize_model(model, **how)
    plain = dequantize_model(q)
    torch.testing.assert_close(q(ids), plain(ids))
    assert type(plain.blocks[0].attention.out) is torch.nn.Linear
    assert q.num_parameters() == model.num_parameters() and q.cfg == model.cfg
    assert q.dtype == torch.float32 and q.device.type == "cpu" and not q.training
    assert not any(p.requires_grad for p in q.parameters())
    assert fingerprint(dict(model.named_parameters())) == before
    owners = {p.data_ptr() for p in model.parameters()}
    assert not owners & {p.data_ptr() for p in q.parameters()}
    far = (q(ids) - model(ids)).norm() / model(ids).norm()
    assert 0 < far < (0.05 if how["bits"] == 8 else 1)
    cache = KVCache.for_model(q, 3)
    parts = [q(part, cache) for part in ids.split([15, 1, 1, 3], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), q(ids), atol=1e-4, rtol=1e-4)


def test_more_bits_come_nearer():
    model, ids = build("gpt2"), some_rows(3, 20)
    far = [(quantize_model(model, bits, 32)(ids) - model(ids)).norm().item()
           for bits in range(2, 9)]
    assert far == sorted(far, reverse=True) and far[0] > 8 * far[-1]


def test_a_tied_head_shares_the_codes():
    q = quantize_model(build(), **SMALL)
    assert q.head.table is q.embedding.table and list(tables(q)).count("embedding.weight") == 1
    assert type(q.embedding) is QuantizedEmbedding and "head.weight" not in tables(q)
    untied = quantize_model(build("untied"), **SMALL)
    assert untied.head.table is not untied.embedding.table and "head.weight" in tables(untied)
    copied = copy.deepcopy(q)
    assert copied.head.table is copied.embedding.table
    ids = some_rows(1, 5)
    torch.testing.assert_close(q.logits(q.hidden(ids)),
                               q.hidden(ids) @ q.embedding.weight.T, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(q.embedding(ids), q.embedding.weight[ids])


def test_layers_can_be_left_out_or_kept_finer():
    q = quantize_model(build(), **SMALL, skip=["embedding", "down", "blocks.1.attention"])
    names = set(tables(q))
    assert type(q.embedding) is torch.nn.Embedding and not hasattr(q, "head")
    assert "blocks.0.attention.out.weight" in names and "blocks.1.mlp.up.weight" in names
    assert not any("down" in n or "blocks.1.attention" in n for n in names)
    finer = tables(quantize_model(build(), 4, 32, embedding_bits=8))
    assert finer["embedding.weight"].bits == 8 and finer["blocks.0.mlp.up.weight"].bits == 4
    with refused("'nothing'", "embedding"):
        quantize_model(build(), skip=["nothing"])
    with refused("'exact'", "gptq"):
        quantize_model(build(), method="exact")
    with refused("'em'"):
        quantize_model(build(), skip="em")


def test_bits_of_a_model_are_those_of_its_parts():
    model = build()
    q = quantize_model(model, **SMALL)
    nbytes = sum(t.nbytes for t in tables(q).values()) + sum(p.nbytes for p in q.parameters())
    assert model_bits(q) == 8 * nbytes / model.num_parameters() and 4.5 < model_bits(q) < 6.5
    assert model_bits(model) == 32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_codes_and_scales_survive_a_change_of_precision(dtype):
    q = quantize_model(build("gpt2"), **SMALL)
    half = copy.deepcopy(q).to(dtype)
    assert half.dtype == dtype and half(some_rows(1, 6)).dtype == dtype
    assert half.num_parameters() == q.num_parameters()
    for name, t in tables(half).items():
        assert t.scales.dtype == torch.float16 and torch.equal(t.dequantize(),
                                                               tables(q)[name].dequantize())
    theirs = quantize_model(build("gpt2").to(dtype), **SMALL)
    assert theirs.dtype == dtype and theirs(some_rows(1, 6)).isfinite().all()


def test_gptq_shows_its_evidence():
    model, rows = build(), some_rows(16)
    q = quantize_model(model, 3, 32, "gptq", rows)
    assert len(q.quantization.layers) == 14 and q.quantization.method == "gptq"
    for report in q.quantization.layers:
        assert report.tokens == rows.numel() and 0.01 < report.changed < 1
        assert 0 < report.error < report.nearest < 1
    nearest = quantize_model(model, 3, 32, rows=rows)
    assert all(r.changed == 0 and r.error == r.nearest for r in nearest.quantization.layers)
    assert torch.equal(nearest(rows), quantize_model(model, 3, 32)(rows))
    assert not quantize_model(model, 3, 32).quantization.layers


@pytest.fixture(scope="module")
def shipped():
    return load()


@pytest.fixture(scope="module")
def town_rows(shipped):
    from itertools import islice

    from minigpt.tinytown import Tinytown
    model, tokenizer = shipped
    text = "\n".join(d.text for d in islice(Tinytown(0).corpus(10**6, seed=5), 150))
    return calibration_rows(tokenizer, text, 96, 64)


def test_gptq_helps_on_text_that_it_has_not_seen(shipped, town_rows):
    model, _ = shipped
    train, held_out = town_rows[::2], town_rows[1::2]
    loss = lambda m: cross_entropy(m(held_out[:, :-1]), held_out[:, 1:]).item()
    with torch.no_grad():
        exact = loss(model)
        nearest, better = (loss(quantize_model(model, 3, 32, method, train, skip=["embedding"]))
                           - exact for method in ("nearest", "gptq"))
    assert 0 < better < 0.85 * nearest


# ---- writing text -------------------------------------------------------------------------------
def test_every_way_of_writing_gives_the_same_text(shipped):
    model, tokenizer = shipped
    q = quantize_model(model)
    plain = dequantize_model(q)
    prompts = ["Q: Where does Abel live?\nA:", "Once", ""]
    assert Decoder.fits(q) and choose_layout(q, 1) == "rows"           # it is small: exact
    batch = complete_batch(q, tokenizer, prompts, 25, seeds=[1, 2, 3])
    assert [c.text for c in batch] == [c.text for c in complete_batch(plain, tokenizer, prompts, 25,
                                                                      seeds=[1, 2, 3])]
    assert [generate(q, tokenizer, p, max_tokens=25, seed=s) for p, s in zip(prompts, (1, 2, 3))] \
        == [c.text for c in batch]
    ids = tokenizer.prompt_ids("Once upon")
    assert beam_search(q, ids, 2, 8) == beam_search(plain, ids, 2, 8)
    assert "lives on" in generate(q, tokenizer, prompts[0], temperature=0, max_tokens=12)


def test_a_decoder_hears_of_new_codes():
    q = quantize_model(build(), **SMALL)
    first = decoder_for(q)
    assert decoder_for(q) is first
    with torch.no_grad():
        q.blocks[0].mlp.up.table.packed ^= 1
    assert decoder_for(q) is not first


@pytest.mark.parametrize("kind", ["llama", "gpt2", "untied", "post", "alibi"])
@pytest.mark.parametrize("how", [{"bits": 8}, {"bits": 4, "group": 32}, {"bits": 6, "group": "row"},
                                 {"bits": 3, "group": 32, "symmetric": False},
                                 {"bits": 4, "group": 32, "skip": ["key", "down", "embedding"]},
                                 {"bits": 4, "group": 20}, {"bits": 8, "group": "tensor"}])
def test_a_decoder_that_reads_codes_answers_like_the_model(kind, how):
    q = quantize_model(build(kind), **how)
    ids, decoder = some_rows(2, 12), Decoder(q, "codes")
    for rows in (1, 2):
        cache, other = KVCache.for_model(q, rows), KVCache.for_model(q, rows)
        with torch.no_grad():
            q(ids[:rows, :-1], cache)
            q(ids[:rows, :-1], other)
            expected = q(ids[:rows, -1:], cache)[:, -1]
        found = decoder.step(ids[:rows, -1].tolist(), other)
        far = (found - expected).norm() / expected.norm()
        assert far < (1e-3 if how["bits"] > 4 else 3e-2), far


def test_large_models_are_written_from_their_codes(monkeypatch):
    monkeypatch.setattr("minigpt.decoder.PROCESSOR_CACHE", 0)
    q = quantize_model(build("gpt2"), 8)
    ids = some_rows(1, 6)[0].tolist()
    plain = list(generate_ids(dequantize_model(q), ids, 20, [temperature(0)]))
    if works("bytes"):
        assert choose_layout(q, 1) == choose_layout(q, 4) == "codes"
    assert list(generate_ids(q, ids, 20, [temperature(0)])) == plain
    monkeypatch.setattr(quantization, "works", lambda kind: False)     # another processor
    assert choose_layout(q, 1) == "columns"
    assert list(generate_ids(q, ids, 20, [temperature(0)])) == plain


@pytest.mark.skipif(not works("bytes"), reason="no such product here")
@pytest.mark.parametrize("shape", [(3072, 768), (7, 33), (1, 64), (50, 3000)])
def test_a_product_of_bytes_keeps_sixteen_bits_of_its_input(shape):
    tensor = quantize(numbers(*shape), 8, "row")
    for rows in ((), (1,), (2,), (5,), (2, 3)):
        x = numbers(*rows, shape[1], seed=3).numpy()
        exact = x.astype(np.float64) @ tensor.dequantize().double().numpy().T
        found = bytes_product(tensor)(x)
        assert found.shape == (*rows, shape[0]) and found.dtype == np.float32
        assert np.linalg.norm(found - exact) < 3e-4 * np.linalg.norm(exact)
    extreme = quantize(torch.full((4, 3000), 5.0), 8, "row")
    y = bytes_product(extreme)(np.full(3000, -2.0, np.float32))
    np.testing.assert_allclose(y, np.full(4, -30000.0), rtol=1e-3)
    assert (bytes_product(extreme)(np.zeros(3000, np.float32)) == 0).all()


@pytest.mark.skipif(not works("nibbles"), reason="no such product here")
@pytest.mark.parametrize("group, symmetric, bits", [(32, True, 4), (64, False, 4), (96, True, 4),
                                                    (32, False, 3), (32, True, 2), ("row", True, 4),
                                                    ("tensor", False, 4)])
def test_a_product_of_nibbles_is_as_exact_as_bfloat16(group, symmetric, bits):
    tensor = quantize(numbers(41, 192), bits, group, symmetric)
    product = code_product(tensor)
    assert product is not None
    for rows in ((), (1,), (5,)):
        x = numbers(*rows, 192, seed=3).numpy()
        exact = x @ tensor.dequantize().numpy().T
        found = product(x)
        assert found.shape == (*rows, 41)
        assert np.linalg.norm(found - exact) < 1e-2 * np.linalg.norm(exact)


def test_where_no_product_fits_there_is_none(monkeypatch):
    assert code_product(quantize(numbers(4, 60), 4, 20)) is None         # no group of 32
    assert code_product(quantize(numbers(4, 64), 8, 32)) is None         # bytes in groups
    assert code_product(quantize(numbers(4, 64), 8, "row", False)) is None
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    works.cache_clear()
    try:
        assert not works("bytes") and not works("nibbles")
        assert code_product(quantize(numbers(4, 64), 4, 32)) is None
    finally:
        works.cache_clear()


def test_a_product_that_calculates_wrongly_is_not_used(monkeypatch):
    works.cache_clear()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(quantization, "bytes_product", lambda t: lambda x: np.zeros(64, np.float32))
    monkeypatch.setattr(quantization, "nibbles_product", lambda t, g: 1 / 0 if g == 0 else None)
    try:
        assert not works("bytes") and not works("nibbles")
    finally:
        works.cache_clear()


# ---- files --------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [{"bits": 4, "group": 20}, {"bits": 8},
                                 {"bits": 3, "group": "row", "symmetric": False},
                                 {"bits": 8, "group": "tensor", "skip": ["embedding"]}])
def test_a_saved_model_of_codes_opens_as_it_was(kind, how, tokenizer, tmp_path):
    torch.manual_seed(0)
    model = GPT(replace(KINDS[kind], vocab_size=tokenizer.vocab_size)).eval()
    q = quantize_model(model, **how)
    save_model(tmp_path, q, tokenizer, {"note": "mine"})
    same, words = load_model(tmp_path)
    ids = some_rows(2, 10)
    assert torch.equal(same(ids), q(ids)) and words.vocab_size == tokenizer.vocab_size
    assert same.quantization == q.quantization and same.num_parameters() == q.num_parameters()
    assert load_tensors(tmp_path / "model.safetensors")[1]["note"] == "mine"
    again = tmp_path / "again"
    save_model(again, same, tokenizer, {"note": "mine"})
    (first, said), (second, repeated) = (load_tensors(folder / "model.safetensors")
                                         for folder in (tmp_path, again))
    assert said == repeated and fingerprint(first) == fingerprint(second)
    assert load(tmp_path)[0](ids).equal(q(ids))


def test_evidence_comes_back_with_the_file(tokenizer, tmp_path):
    model = GPT(replace(BASE, vocab_size=tokenizer.vocab_size)).eval()
    q = quantize_model(model, 4, 32, "gptq", some_rows())
    save_model(tmp_path, q, tokenizer)
    assert load_model(tmp_path)[0].quantization == q.quantization


def test_rows_of_eight_bits_have_one_format(shipped, tmp_path):
    model, tokenizer = shipped
    save_model(tmp_path / "plain", model, tokenizer, bits=8)
    q = quantize_model(model, 8)
    save_model(tmp_path / "codes", q, tokenizer)
    plain, codes = (load_tensors(tmp_path / name / "model.safetensors")[0]
                    for name in ("plain", "codes"))
    assert plain.keys() == codes.keys() and all(torch.equal(plain[n], codes[n]) for n in plain)
    weights = from_bytes(codes)
    for name, p in dequantize_model(q).named_parameters():
        assert torch.equal(weights[name], p)


@pytest.mark.parametrize("name", ["tinytown", "chat", "sums", "agent"])
def test_shipped_models_open_as_plain_ones_and_quantize(name):
    model, tokenizer = load(name)
    assert type(model.embedding) is torch.nn.Embedding and not hasattr(model, "quantization")
    q = quantize_model(model, 8)
    ids = torch.tensor([tokenizer.prompt_ids("Where does Abel live?")])
    far = (q(ids) - model(ids)).norm() / model(ids).norm()
    assert far < (0.05 if name == "tinytown" else 1e-4)        # the others are kept in 8 bits


def spoil(folder, change):
    "Change a file and give it a true fingerprint again."
    path = folder / "model.safetensors"
    tensors, about = load_tensors(path)
    change(tensors, about["quantization"])
    save_tensors(path, tensors, about)


@pytest.mark.parametrize("change, word", [
    (lambda t, a: t.pop("blocks.0.mlp.up.weight.scale"), "blocks.0.mlp.up.weight.scale"),
    (lambda t, a: t.pop("blocks.0.mlp.up.weight"), "blocks.0.mlp.up.weight"),
    (lambda t, a: t.pop("norm.weight"), "norm.weight"),
    (lambda t, a: t.update(extra=torch.ones(3)), "extra"),
    (lambda t, a: t.update({"norm.weight": torch.ones(3)}), "norm.weight"),
    (lambda t, a: t.update({"embedding.weight": t["embedding.weight"][:, 1:]}), "embedding.weight"),
    (lambda t, a: t.update({"embedding.weight.scale": torch.ones(3, 3)}), "embedding.weight"),
    (lambda t, a: a["tensors"].update({"nobody.weight": [4, 32]}), "nobody"),
    (lambda t, a: a["tensors"].update({"norm.weight": [4, 32]}), "norm"),
    (lambda t, a: a["tensors"].update({"embedding.weight": [4, 0]}), "group=0"),
    (lambda t, a: a["tensors"].update({"embedding.weight": [11, 32]}), "bits=11"),
    (lambda t, a: a["tensors"].update({"embedding.weight": 7}), "promises"),
    (lambda t, a: a.pop("tensors"), "tensors"), (lambda t, a: a.pop("bits"), "bits"),
    (lambda t, a: a.update(layers=[{"a": 1}]), "promises"),
    (lambda t, a: a.update(more=1), "more")])
def test_a_file_that_breaks_its_promise_is_refused(change, word, tokenizer, tmp_path):
    model = GPT(replace(BASE, vocab_size=tokenizer.vocab_size, n_layer=1)).eval()
    save_model(tmp_path, quantize_model(model, **SMALL), tokenizer)
    spoil(tmp_path, change)
    with refused("model.safetensors", word):
        load_model(tmp_path)


def test_what_needs_plain_weights_says_so(shipped, tmp_path):
    model, tokenizer = shipped
    q = quantize_model(model)
    for do in (lambda: to_huggingface(tmp_path / "theirs", q, tokenizer),
               lambda: quantize_model(q), lambda: add_chat_tokens(q, tokenizer)):
        with refused("quantized", "dequantize_model"):
            do()
    add_lora(q, rank=2)
    with refused("no plain layer"):
        save_model(tmp_path / "adapted", q, tokenizer)
    with refused("bits=4"):
        save_model(tmp_path / "wrong", model, tokenizer, bits=4)
    to_huggingface(tmp_path / "plain", dequantize_model(quantize_model(model)), tokenizer)
    assert from_huggingface(tmp_path / "plain")[0].cfg == model.cfg


def test_an_adapter_learns_beside_codes():
    q, ids = quantize_model(build(), **SMALL), some_rows(4, 20)
    codes = {name: t.packed.clone() for name, t in tables(q).items()}
    add_lora(q, rank=4)
    assert len(lora_layers(q)) == 14
    optimizer = torch.optim.AdamW([p for p in q.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        loss = cross_entropy(q(ids[:, :-1]), ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2
    found = {name.replace(".base", ""): t.packed for name, t in tables(q).items()}
    assert found.keys() == codes.keys() and all(torch.equal(found[n], codes[n]) for n in codes)
    answer = q(ids)
    merge(q)
    torch.testing.assert_close(q(ids), answer, atol=1e-4, rtol=1e-4)


# ---- keys and values in 8 bits ------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_a_small_cache_remembers_nearly_the_same(kind):
    model, ids = build(kind), some_rows(3, 30)
    cache, exact = QuantizedKVCache.for_model(model, 3, 32), KVCache.for_model(model, 3, 32)
    with torch.no_grad():
        for part in (ids[:, :20], ids[:, 20:21], ids[:, 21:]):
            found, expected = model(part, cache), model(part, exact)
    assert cache.length == 30 and 0 < (found - expected).norm() < 0.02 * expected.norm()
    widths = [(heads, width) for heads, width in model.cfg.cache_shape]
    per_token = sum(heads * (width + 2) for heads, width in widths)
    assert cache.nbytes == 2 * 3 * 32 * per_token
    assert cache.nbytes / exact.nbytes == pytest.approx(
        per_token / (4 * sum(heads * width for heads, width in widths)))
    cache.truncate(20)
    exact.truncate(20)
    cache.select(torch.tensor([2, 0]))
    exact.select(torch.tensor([2, 0]))
    with torch.no_grad():
        found, expected = (model(ids[[2, 0], 20:25], c) for c in (cache, exact))
    assert found.shape == expected.shape and (found - expected).norm() < 0.02 * expected.norm()


def test_a_small_cache_keeps_each_token_to_half_a_step():
    cache = QuantizedKVCache(BASE, 2, 8)
    k, v = numbers(2, 2, 5, 8), numbers(2, 2, 5, 8, seed=1) * 100
    k[0, 0, 0] = 0
    for layer in cache.layers:
        keys, values = layer.append(k, v)
        for found, x in ((keys, k), (values, v)):
            step = x.abs().amax(-1, keepdim=True) / 127
            assert ((found - x).abs() <= 0.6 * step + 1e-6).all() and found.dtype == torch.float32
        with refused("9 tokens", "max_length"):
            layer.append(numbers(2, 2, 4, 8), numbers(2, 2, 4, 8))
        assert layer.length == 5
    assert "int8" in repr(cache) and cache.length == 5


def test_the_fast_decoder_refuses_a_small_cache():
    model = build()
    cache = QuantizedKVCache.for_model(model)
    with torch.no_grad():
        model(some_rows(1, 5), cache)
    with refused("int8", "float32"):
        Decoder(model).step([1], cache)
