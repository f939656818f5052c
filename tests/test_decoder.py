"Laws of the decoder: for every model that it takes, it says what the model's forward pass says."
import gc
import math
import os
import threading
import time
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
    Helpers,
    SharedProducts,
    choose_layout,
    cuts,
    decoder_for,
    layouts,
    product,
    share,
    switch,
)
from minigpt.inference import Writing, generate_ids, numpy_libraries, write
from minigpt.model import GPT
from minigpt.quantization import quantize_model
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


@pytest.fixture
def two_threads():
    "As many as PyTorch may use here, whatever the machine has."
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not numpy_libraries(), reason="NumPy multiplies with the system's own library")
@pytest.mark.parametrize("cache_size, helpers", [(PROCESSOR_CACHE, 0), (0, 1)])
def test_no_library_starts_threads_and_a_large_model_has_helpers(monkeypatch, two_threads,
                                                                cache_size, helpers):
    seen, before, alive = [], threads(), threading.active_count()
    for lib in numpy_libraries():
        lib.set_num_threads(2)
    monkeypatch.setattr("minigpt.inference.PROCESSOR_CACHE", cache_size)
    monkeypatch.setattr("minigpt.inference.draw", lambda logits, texts, *_: [
        seen.append((threads(), threading.active_count() - alive)) or text.ids.append(1) or 1
        for text in texts])
    try:
        for _ in write(random_model(), [Writing([1, 2], None, 2)], 5):
            assert all(lib.num_threads == 2 for lib in numpy_libraries())
            assert threading.active_count() == alive           # between tokens all is as it was
    finally:
        for lib, n in zip(numpy_libraries(), before[1:]):
            lib.set_num_threads(n)
    assert len(seen) == 5
    for n, more in seen[1:]:
        assert all(one == 1 for one in n) and more == helpers


def large_model():
    "Matrices of several parts, and large enough for helpers."
    torch.manual_seed(5)
    cfg = ModelConfig(vocab_size=4096, context_length=32, n_layer=1, n_head=4, n_kv_head=2,
                      d_model=512, d_ff=1536)
    model = GPT(cfg).eval().requires_grad_(False)
    assert sum(p.nbytes for p in model.parameters()) > PROCESSOR_CACHE
    assert len(cuts(3072, model.blocks[0].mlp.up.weight.nbytes)) > 1
    return model


@pytest.mark.parametrize("kind", ["rows", "columns", "packed", "8 bits", "4 bits"])
@pytest.mark.parametrize("batch", [1, 3])
def test_no_number_of_threads_changes_a_bit(kind, batch):
    if kind == "packed" and not onednn:
        pytest.skip("this PyTorch comes without oneDNN")
    model = large_model()
    if kind.endswith("bits"):
        model, kind = quantize_model(model, int(kind[0])), "codes"
    decoder, spoken, before = Decoder(model, kind), [], torch.get_num_threads()
    torch.set_num_threads(1)                     # what a library does with more is its own affair
    try:
        for n in (0, 0, 1, 3):
            cache = KVCache(model.cfg, batch)
            with torch.no_grad(), Helpers(n):
                spoken.append(torch.stack([decoder.step([i] * batch, cache) for i in range(9)]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(said, spoken[0]) for said in spoken[1:])


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_no_number_of_threads_changes_a_token(bits):
    model, written, before = large_model(), [], torch.get_num_threads()
    model = model if bits is None else quantize_model(model, bits)
    try:
        for n in (1, 2, 4):
            torch.set_num_threads(n)
            rng = torch.Generator().manual_seed(0)
            written.append(list(generate_ids(model, range(1, 9), 12, [temperature(1)], rng)))
    finally:
        torch.set_num_threads(before)
    assert written[0] == written[1] == written[2] and len(set(written[0])) > 3


def test_an_abandoned_text_leaves_no_thread(two_threads):
    before, model = set(threading.enumerate()), large_model()
    texts = generate_ids(model, [1, 2, 3], 20)
    next(texts), next(texts)
    assert set(threading.enumerate()) == before
    texts.close()
    half = generate_ids(model, [1, 2, 3], 20)
    next(half)
    del half
    assert set(threading.enumerate()) == before


def test_what_fails_while_writing_leaves_no_thread(monkeypatch, two_threads):
    before, model = set(threading.enumerate()), large_model()
    monkeypatch.setattr(decoder_for(model), "head", lambda x: share(lambda part: 1 // 0, 4))
    with pytest.raises(ZeroDivisionError):
        list(generate_ids(model, [1, 2, 3], 5))
    assert set(threading.enumerate()) == before


def test_what_fails_at_a_helper_is_raised_where_work_was_asked_for():
    here, at_helper, done = threading.get_ident(), threading.Event(), []

    def work(part):
        if threading.get_ident() != here:
            at_helper.set()
            raise KeyError(part)
        assert at_helper.wait(60)                              # until the helper has taken one
        done.append(part)
    with Helpers(1) as helpers:
        with pytest.raises(KeyError):
            share(work, 2)
        share(done.append, 5)                                  # the helpers work on
    assert sorted(done)[-1] == 4 and len(done) == 6
    assert not any(thread.is_alive() for thread in helpers.threads)


@pytest.mark.parametrize("n_helpers", [0, 1, 5])
@pytest.mark.parametrize("n_parts", [0, 1, 2, 40])
def test_each_part_is_done_once(n_helpers, n_parts):
    before = threading.active_count()
    with Helpers(n_helpers):
        for _ in range(20):
            done = []
            share(done.append, n_parts)
            assert sorted(done) == list(range(n_parts))
    assert threading.active_count() == before


def test_helpers_sleep_while_they_wait():
    with Helpers(1):
        share(lambda part: None, 4)
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.15             # who asks in a loop takes all of it


def test_work_that_shares_work_ends():
    done = []
    with Helpers(2):
        share(lambda i: share(lambda j: done.append((i, j)), 3), 4)
    assert len(done) == 12


def test_helpers_belong_to_the_block_and_the_thread_that_began_it():
    elsewhere = []
    with Helpers(1) as helpers:
        other = threading.Thread(target=lambda: share(
            lambda part: elsewhere.append(threading.current_thread()), 8))
        other.start()
        other.join()
    share(lambda part: elsewhere.append(threading.current_thread()), 8)
    assert len(elsewhere) == 16 and not set(elsewhere) & set(helpers.threads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_does_its_work_alone():
    with Helpers(1):
        child = os.fork()
        if not child:
            done = []
            share(done.append, 6)
            os._exit(0 if done == list(range(6)) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("shape", [(1, 1), (7, 300_000), (4096, 512), (50_257, 768), (2000, 1000)])
def test_parts_cover_a_matrix_and_depend_on_nothing_else(shape):
    found = cuts(shape[0], 4 * shape[0] * shape[1])
    assert [i for s in found for i in range(shape[0])[s]] == list(range(shape[0]))
    assert all(s.start % 16 == 0 for s in found) and found == cuts(shape[0], 4 * math.prod(shape))


@each_layout
@pytest.mark.parametrize("shape", [(3000, 500), (500, 3000), (33, 40_000)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_product_in_parts_is_what_pytorch_says(layout, shape, biased):
    torch.manual_seed(1)
    weight, bias = torch.randn(shape), torch.randn(shape[0]) if biased else None
    times = product(weight, bias, layout)
    x = torch.randn(4, shape[1])
    expected = torch.nn.functional.linear(x.double(), weight.double(),
                                          None if bias is None else bias.double()).float()
    with Helpers(1):
        torch.testing.assert_close(torch.from_numpy(times(x.numpy())), expected,
                                   atol=2e-3, rtol=1e-4)
        if layout != "packed":
            torch.testing.assert_close(torch.from_numpy(times(x[0].numpy())), expected[0],
                                       atol=2e-3, rtol=1e-4)


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


@torch.no_grad()
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_a_prompt_in_parts_is_the_same_prompt(bits):
    "With helpers or without to the bit, and near what the model's own pass says."
    model = large_model() if bits is None else quantize_model(large_model(), bits)
    ids, before, said = torch.arange(1, 20)[None], torch.get_num_threads(), []
    plain = model(ids)
    torch.set_num_threads(1)
    try:
        for n in (0, 1, 3):
            with Helpers(n), SharedProducts():
                said.append(model(ids))
            with torch.inference_mode(), Helpers(n), SharedProducts():
                said.append(model(ids).clone())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, said[0]) for one in said)
    torch.testing.assert_close(said[0], plain, atol=1e-4, rtol=1e-4)


def test_gradients_flow_through_products_in_parts():
    torch.manual_seed(2)
    layer, x = torch.nn.Linear(600, 1000), torch.randn(3, 600, requires_grad=True)
    found = []
    for block in (Helpers(0), Helpers(2)):
        with block, SharedProducts():
            y = layer(x)
        found.append(torch.autograd.grad(y.square().sum(), (x, layer.weight, layer.bias)))
    expected = torch.autograd.grad(layer(x).square().sum(), (x, layer.weight, layer.bias))
    for got in found:
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)
