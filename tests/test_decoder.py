"Laws of the decoder: for every model that it takes, it says what the model's forward pass says."
import gc
import weakref

import numpy as np
import pytest
import torch

from minigpt.cache import KVCache
from minigpt.config import ModelConfig
from minigpt.decoder import (
    DECODERS,
    PROCESSOR_CACHE,
    Decoder,
    choose_layout,
    decoder_for,
    layouts,
    switch,
)
from minigpt.inference import Writing, numpy_libraries, write
from minigpt.model import GPT
from minigpt.sampling import temperature

SIZES = dict(vocab_size=96, context_length=24, n_layer=2, n_head=4, n_kv_head=2, d_model=32,
             d_ff=48)
KINDS = {
    "llama": {},
    "gpt2": dict(position="learned", norm="layer", mlp="gelu", bias=True, n_kv_head=4),
    "qwen2": dict(qkv_bias=True, tie_embeddings=False),
    "qwen3": dict(qk_norm=True, d_attention=64),
    "mistral": dict(window=5, n_kv_head=1),
    "alibi": dict(position="alibi", window=7, mlp="relu2"),
    "waves": dict(position="sinusoidal", norm_place="post"),
    "post": dict(position="none", norm="layer", norm_place="post"),
}
OTHERS = {"latent": dict(attention="latent"), "experts": dict(n_expert=4)}
onednn = "packed" in layouts()
each_layout = pytest.mark.parametrize("layout", [
    pytest.param(name, marks=pytest.mark.skipif(
        name == "packed" and not onednn, reason="this PyTorch comes without oneDNN"))
    for name in ("rows", "columns", "packed")])


def random_model(**choices):
    "Weights large enough that every part of the model matters."
    torch.manual_seed(3)
    model = GPT(ModelConfig(**SIZES | choices)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (p.dim() == 1))
    return model


@torch.no_grad()
def both(model, layout, padding=None, batch=3):
    "Scores of the model and of its decoder, from a prompt of 6 to the end of the context."
    ids = torch.randint(96, (batch, 24), generator=torch.Generator().manual_seed(1))
    caches, decoder = [KVCache(model.cfg, batch) for _ in range(2)], Decoder(model, layout)
    for cache in caches:
        model(ids[:, :6], cache, padding)
    for t in range(6, 24):
        yield (model(ids[:, t:t + 1], caches[0], padding)[:, -1],
               decoder.step(ids[:, t].numpy(), caches[1], padding))
    for a, b in zip(caches[0].layers, caches[1].layers):
        torch.testing.assert_close(b.keys, a.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(b.values, a.values, atol=1e-4, rtol=1e-4)


@each_layout
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_says_what_its_model_says(kind, padded, batch, layout):
    model = random_model(**KINDS[kind])
    padding = torch.tensor([4, 0, 2][:batch]) if padded else None
    for theirs, ours in both(model, layout, padding, batch):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_decode_by_their_forward_pass(kind):
    assert decoder_for(random_model(**OTHERS[kind])) is None
    assert decoder_for(random_model().double()) is None
    with torch.inference_mode():
        assert decoder_for(random_model()) is None


@torch.no_grad()
def test_a_decoder_lives_as_long_as_the_weights_that_it_was_made_of():
    model = random_model()
    first = decoder_for(model)
    assert decoder_for(model) is first
    model.blocks[0].mlp.up.weight.mul_(2)              # a step of an optimizer, say
    second, cache = decoder_for(model), KVCache(model.cfg)
    assert second is not first
    torch.testing.assert_close(second.step([5], cache), model(torch.tensor([[5]]))[:, -1],
                               atol=1e-4, rtol=1e-4)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None and all(m is not None for m in DECODERS)


@torch.no_grad()
def test_what_the_decoder_does_not_know_decodes_by_its_forward_pass():
    hooked, wrapped = random_model(), random_model()
    hooked.blocks[0].mlp.register_forward_hook(lambda *args: None)
    wrapped.blocks[0].attention.out = torch.nn.Sequential(wrapped.blocks[0].attention.out)
    assert decoder_for(hooked) is None and decoder_for(wrapped) is None


@torch.no_grad()
def test_another_position_makes_another_decoder():
    model, longer = random_model(), random_model(rope_theta=500_000.0)
    first = decoder_for(model)
    model.position = longer.position
    assert decoder_for(model) is not first


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_beyond_the_context_are_refused(kind):
    model = random_model(**KINDS[kind])
    cache = KVCache(model.cfg, max_length=40)
    model(torch.ones(1, 24, dtype=torch.long), cache)
    with pytest.raises(ValueError, match="25 tokens do not fit context_length=24"):
        Decoder(model).step([4], cache)


@torch.no_grad()
@pytest.mark.parametrize("cache", [dict(batch_size=2), dict(dtype=torch.bfloat16)])
def test_a_cache_that_does_not_fit_the_tokens_is_refused(cache):
    model = random_model()
    with pytest.raises(ValueError, match="1 tokens and a cache of"):
        Decoder(model).step([4], KVCache(model.cfg, **cache))


def test_a_gate_far_below_zero_is_no_overflow():
    gates = np.array([[-500.0, -90, 0, 90, 1, 1, 1, 1]], np.float32)
    with np.errstate(all="raise"):
        assert switch(gates, "swiglu").tolist() == [[0, 0, 0, 90]]


@torch.no_grad()
def test_a_full_cache_is_refused():
    model = random_model()
    cache = KVCache(model.cfg, max_length=3)
    model(torch.tensor([[1, 2, 3]]), cache)
    with pytest.raises(ValueError, match="4 tokens do not fit a cache made for 3"):
        Decoder(model).step([4], cache)


def test_large_models_are_laid_out_for_their_batch():
    class Large:
        def parameters(self):
            return [torch.empty(2**24)]
    assert choose_layout(random_model(), 1) == choose_layout(random_model(), 16) == "rows"
    assert choose_layout(Large(), 1) == "columns"
    assert choose_layout(Large(), 16) == ("packed" if onednn else "rows")


def threads():
    "Those of PyTorch and of what multiplies for NumPy."
    return [torch.get_num_threads(), *(lib.num_threads for lib in numpy_libraries())]


@pytest.mark.skipif(not numpy_libraries(), reason="NumPy multiplies with the system's own library")
@pytest.mark.parametrize("cache_size, alone", [(PROCESSOR_CACHE, True), (0, False)])
def test_a_small_model_writes_on_one_thread(monkeypatch, cache_size, alone):
    "And a large one on as many as NumPy had."
    seen, before = [], threads()
    for lib in numpy_libraries():
        lib.set_num_threads(2)
    monkeypatch.setattr("minigpt.inference.PROCESSOR_CACHE", cache_size)
    monkeypatch.setattr("minigpt.inference.draw", lambda logits, texts, *_: [
        seen.append(threads()) or text.ids.append(1) or 1 for text in texts])
    try:
        for _ in write(random_model(), [Writing([1, 2], None, 2)], 5):
            assert all(lib.num_threads == 2 for lib in numpy_libraries())
    finally:
        for lib, n in zip(numpy_libraries(), before[1:]):
            lib.set_num_threads(n)
    assert len(seen) == 5
    assert all(n == [1] * len(n) for n in seen[1:]) == alone


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("overflow", ["stop", "slide"])
def test_generation_is_the_same_with_and_without_a_decoder(monkeypatch, kind, overflow):
    model = random_model(**KINDS[kind])

    def story():
        texts = [Writing(list(p), torch.Generator().manual_seed(i), len(p), logprobs=[])
                 for i, p in enumerate(([1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11, 12]))]
        before = threads()
        for _ in write(model, texts, 30, [temperature(0.7)], [3], overflow):
            assert threads() == before                         # between tokens all is as it was
        return [(text.ids, text.done) for text in texts], [text.logprobs for text in texts]
    ids, logprobs = story()
    monkeypatch.setattr("minigpt.inference.decoder_for", lambda model, batch_size: None)
    plain_ids, plain = story()
    assert ids == plain_ids
    for ours, theirs in zip(logprobs, plain):
        assert ours == pytest.approx(theirs, abs=1e-4)
