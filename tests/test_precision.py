"One law: what works in float32 on the CPU works in any precision and wherever the model is."
from dataclasses import replace

import numpy as np
import pytest
import torch

from minigpt.beam_search import beam_search
from minigpt.cache import KVCache
from minigpt.config import ModelConfig
from minigpt.inference import complete_batch, generate_ids
from minigpt.loss import cross_entropy, document_loss
from minigpt.model import GPT, as_dtype
from minigpt.page import attention_rows, gaps, golden, greedy
from minigpt.sampling import (
    banned,
    frequency_penalty,
    min_p,
    presence_penalty,
    repetition_penalty,
    sample,
    temperature,
    token_counts,
    top_k,
    top_p,
    typical,
)
from minigpt.speculative import Tally, speculative_generate
from minigpt.training import accumulate_gradients, evaluate

SMALL = ModelConfig(vocab_size=32, context_length=16, n_layer=2, n_head=2, n_kv_head=1, d_model=16,
                    d_ff=24)
KINDS = {"llama": {}, "gpt2": dict(position="learned", norm="layer", mlp="gelu", bias=True),
         "alibi": dict(position="alibi"), "waves": dict(position="sinusoidal", norm_place="post"),
         "window": dict(window=5), "latent": dict(attention="latent", d_latent=8, d_rope=4),
         "experts": dict(n_expert=3), "qwen3": dict(qk_norm=True, tie_embeddings=False)}
RULES = [repetition_penalty(1.2), frequency_penalty(0.1), presence_penalty(0.1), banned([7]),
         typical(0.95), min_p(0.01), top_k(20), top_p(0.9), temperature(0.8)]
GREEDY = [temperature(0)]
PLACES = [("cpu", "bfloat16"), ("cpu", "float16"), ("cpu", "float64")]
if torch.cuda.is_available():
    PLACES += [("cuda", "float32"), ("cuda", "bfloat16"), ("cuda", "float16")]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_place = pytest.mark.parametrize("device, dtype", PLACES)


def build(kind, device="cpu", dtype="float32", seed=0):
    "A small model whose distributions are far from even."
    torch.manual_seed(seed)
    model = GPT(replace(SMALL, **KINDS[kind])).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model.to(device, as_dtype(dtype))


@torch.no_grad()
def lag(model, prompt, new):
    "How far the tokens of a greedy text lie behind the likeliest ones, at most; in logits."
    ids = torch.tensor([[*prompt, *new]], device=model.device)
    logits = model(ids)[0, len(prompt) - 1:-1].float().cpu()
    return (logits.amax(-1) - logits.gather(1, torch.tensor([new]).T)[:, 0]).max().item()


@each_kind
@each_place
def test_every_way_of_writing_works(kind, device, dtype):
    "The greedy ones take the likeliest token, or one that sixteen bits do not tell from it."
    model, draft = build(kind, device, dtype), build(kind, device, dtype, seed=1)
    for new in (list(generate_ids(model, [1, 2], 8, GREEDY)), greedy(model, [1, 2], 8),
                list(beam_search(model, [1, 2], 8, 1)[0].ids),
                list(speculative_generate(model, draft, [1, 2], 8, 3, GREEDY))):
        assert len(new) == 8 and lag(model, [1, 2], new) < 0.15
    assert len(list(generate_ids(model, [1, 2], 8, RULES, torch.Generator().manual_seed(0)))) == 8
    tally = Tally()
    assert len(list(speculative_generate(model, draft, [1, 2], 8, 3, RULES, None, (), tally))) == 8
    assert len(beam_search(model, [1, 2], 8, 4, {3})) == 4 and tally.rounds > 0


@each_kind
@each_place
def test_what_is_measured_is_what_float32_measures(kind, device, dtype):
    model, exact = build(kind, device, dtype), build(kind)
    documents = [[1, 2, 3], [4], [], [5, 6, 7, 8]]
    nats = document_loss(model, documents, 0)
    assert nats.device.type == device and nats.dtype == torch.float32
    torch.testing.assert_close(nats.cpu(), document_loss(exact, documents, 0), atol=0.3, rtol=0.05)
    tokens = np.arange(60) % 32
    assert evaluate(model, tokens, 8) == pytest.approx(evaluate(exact, tokens, 8), rel=0.05)
    if kind != "latent":                       # its queries and keys are not made by `project`
        for rows, true in zip(attention_rows(model, [1, 2, 3]), attention_rows(exact, [1, 2, 3])):
            assert rows.device.type == device
            torch.testing.assert_close(rows.cpu().float(), true, atol=0.1, rtol=0)
            sums = rows.sum(-1).float()
            torch.testing.assert_close(sums, torch.ones_like(sums), atol=0.01, rtol=0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "latent"])
@torch.no_grad()
def test_attention_rows_blend_to_what_attention_says(kind):
    model, said, ids = build(kind), [], [1, 2, 3, 4, 5, 6, 7]
    for block in model.blocks:
        block.attention.value.register_forward_hook(lambda _, x, y: said.append(y[0]))
        block.attention.out.register_forward_pre_hook(lambda _, x: said.append(x[0][0]))
    model(torch.tensor([ids]))
    for rows, values, blend in zip(attention_rows(model, ids), said[::2], said[1::2]):
        values = values.unflatten(-1, (-1, model.cfg.d_head)).transpose(0, 1)        # (G, T, Dh)
        values = values.repeat_interleave(len(rows) // len(values), dim=0)
        torch.testing.assert_close((rows @ values).transpose(0, 1).flatten(1), blend)


@each_place
def test_a_golden_file_is_written_wherever_the_model_is(device, dtype, tokenizer):
    torch.manual_seed(0)
    cfg = replace(SMALL, vocab_size=tokenizer.vocab_size)
    model = GPT(cfg).eval().to(device, as_dtype(dtype))
    jar = golden(model, tokenizer, ["a"], ["Rosa", ""], 4)
    assert max(gaps(jar, model).values()) == gaps(jar, model)["greedy"] == 1
    assert len(complete_batch(model, tokenizer, ["Rosa", ""], 5)) == 2


@each_kind
def test_on_the_meta_device_all_shapes_are_right(kind):
    model = build(kind, "meta")
    cache = KVCache.for_model(model, 3, 8)
    assert cache[0].keys.device.type == "meta" == model.device.type
    if kind == "experts":
        pytest.skip("which expert a token goes to depends on numbers that are not there")
    ids = torch.zeros(3, 4, dtype=torch.long, device="meta")
    assert model(ids, cache).shape == (3, 4, 32) and cache.length == 4
    cache.select(torch.tensor([0, 2]))
    assert model(ids[:2, :1], cache).shape == (2, 1, 32) and cache.length == 5
    cache.truncate(2)
    assert document_loss(model, [[1, 2], [3]], 0).shape == (2,)
    assert cross_entropy(model(ids), ids).shape == ()
    if kind != "latent":
        assert [rows.shape for rows in attention_rows(model, [1, 2, 3])] == [(2, 3, 3)] * 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_a_cache_follows_its_model(dtype):
    model = build("llama", dtype=dtype)
    cache = KVCache.for_model(model, 2, 5)
    assert cache[0].keys.dtype == as_dtype(dtype) == model.dtype
    assert cache[0].keys.shape == (2, 1, 5, 8)
    assert KVCache.for_model(model)[1].values.shape[2] == 16
    assert KVCache(model.cfg, dtype=dtype)[0].keys.dtype == as_dtype(dtype)
    assert dtype in repr(cache) and "0 of 5 tokens" in repr(cache)


@pytest.mark.parametrize("dtype", ["float", "int64", "nn", "Tensor", 32, None])
def test_what_is_no_precision_is_named(dtype):
    if dtype == "float":                       # PyTorch's own second name for float32
        assert as_dtype(dtype) == torch.float32
    else:
        with pytest.raises(ValueError, match="choose for example float32"):
            as_dtype(dtype)


def test_a_precision_by_its_name_is_the_precision():
    ids, losses = torch.arange(18).view(2, 9), []
    for precision in ("float32", torch.float32, "bfloat16", torch.bfloat16):
        losses.append(accumulate_gradients(build("llama"), ids, precision=precision))
    assert losses[0] == losses[1] != losses[2] == losses[3]


def test_a_draw_does_not_depend_on_the_precision_of_the_scores():
    "Sixteen bits hold the scores, and are too coarse to add up a thousand chances."
    scores = (torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))).bfloat16()
    for rules in ((), (top_p(0.9),), (typical(0.9),), (min_p(0.1), temperature(0.7))):
        drawn = [sample(logits, rules, torch.Generator().manual_seed(1))
                 for logits in (scores, scores.float())]
        assert torch.equal(*drawn)


def test_penalties_count_a_past_that_lies_elsewhere():
    past = torch.tensor([[1, 1, -1]])
    assert token_counts(torch.zeros(1, 4, device="meta"), past).device.type == "meta"


@pytest.mark.parametrize("rules", [[repetition_penalty(1.8)], [frequency_penalty(1.0)],
                                   [presence_penalty(2.0), top_k(6)]])
def test_speculation_counts_no_marker_as_a_word(rules):
    "As `generate` does: else the token of the marker would be unlikely from the beginning."
    model, draft = build("llama"), build("llama", seed=1)
    for marker in range(32):
        prompt = [marker, 5, marker, 9, marker]
        alone = list(generate_ids(model, prompt, 10, [*rules, *GREEDY], None, {marker}))
        for k in (1, 4):
            assert list(speculative_generate(model, draft, prompt, 10, k, [*rules, *GREEDY], None,
                                             {marker})) == alone


def test_a_speculation_sets_aside_no_more_room_than_it_needs(monkeypatch):
    made = []
    for_model = KVCache.for_model
    monkeypatch.setattr(KVCache, "for_model", lambda *a: made.append(for_model(*a)) or made[-1])
    model = GPT(replace(SMALL, context_length=10_000))
    list(speculative_generate(model, model, [1, 2, 3], 5, 2))
    assert [cache[0].keys.shape[2] for cache in made] == [8, 8]
