"""Laws of export: another program computes the same, or the model is refused in a sentence.

Oracles: transformers, onnxruntime and onnx's checker, gguf, and llama.cpp (inside xllamacpp).
"""
import json
import math
import random
import struct
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SOME_TEXT, refused
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Engine

from minigpt import export as ours
from minigpt.chat import chat_ids, replies
from minigpt.checkpoint import save_model
from minigpt.cli import main
from minigpt.config import ModelConfig, RopeScaling
from minigpt.export import (
    KINDS,
    GGUFTensor,
    as_stored,
    export,
    onnx_model,
    to_gguf,
    to_onnx,
    to_transformers,
    write_gguf,
)
from minigpt.gguf_file import gguf_info
from minigpt.inference import complete_batch, generate_ids, load
from minigpt.model import GPT
from minigpt.sampling import temperature
from minigpt.tinytown import Tinytown
from minigpt.tokenizer import END_OF_TEXT, PATTERN, all_splits, train_tokenizer
from minigpt.weights import HuggingFaceTokenizer

TEXTS = ["Rosa lives on Mill Lane.\n\nTom's 12 dogs!! can't   find\tit…",
         "日本語のテキスト  \n \n x", "¿Dónde está el perro? 🐕‍🦺 naïve café",
         "<|endoftext|> <|user|> 3.14", "I'LL we're 'S x’d"]
LETTERS = ["Qwen 2", "LLaMA 3", "GPT-2"]


def package(name):
    return pytest.importorskip(name, reason=f"{name} is not installed: pip install {name}")


@pytest.fixture(scope="module")
def town():
    return load("tinytown")


@pytest.fixture(scope="module")
def chat():
    return load("chat")


@pytest.fixture(scope="module")
def documents():
    world = Tinytown(0)
    return [world.document(random.Random(10**6 + i)).text for i in range(64)]


# --- llama.cpp

class LlamaCpp:
    "llama.cpp with one file: plain float32 wherever it has a choice."

    def __init__(self, path, n_ctx=256):
        x = package("xllamacpp")
        p = x.CommonParams()
        p.model.path, p.n_ctx, p.n_parallel, p.verbosity = str(path), n_ctx, 1, -1
        p.warmup, p.fit_params, p.n_gpu_layers = False, False, 0
        p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
        p.cache_type_k = p.cache_type_v = x.ggml_type.GGML_TYPE_F32
        p.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = x.Server(p)

    def ask(self, prompt, n=1, **more):
        order = {"prompt": prompt, "n_predict": n, "temperature": 0.0, "cache_prompt": True} | more
        return self.server.handle_completions(order)["choices"][0]

    def said(self, ids, token, n_probs=1):
        "What it makes of the next token: the bias decides which is taken, and is no part of this."
        found = self.ask(ids, n_probs=n_probs, logit_bias=[[token, 1000.0]])
        return found["logprobs"]["content"][0]

    def logprobs(self, ids, vocab_size):
        "(V,) nats, of every token that may follow."
        found = torch.full((vocab_size,), math.nan)
        for row in self.said(ids, 65, vocab_size)["top_logprobs"]:
            found[row["id"]] = row["logprob"]
        return found

    def call(self, place, **order):
        request = urllib.request.Request(
            self.server.listening_address + place, json.dumps(order).encode(),
            {"Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)

    def ids(self, text):
        return self.call("/tokenize", content=text, add_special=True)["tokens"]


# --- blocks, and the format

def rows_to_pack():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 96)).astype(np.float32)
    rows[1], rows[2, :32], rows[3] = 0, -rows[2, :32], np.float32(1e-30)
    rows[4] = np.tile([1, -1, 0.5, -0.5], 24)                 # ties: who is the largest?
    rows[5] = np.arange(96) / 2 - 24                          # halves: whither are they rounded?
    rows[6] = 60_000 * np.sign(rows[6])
    rows[7, :] = np.float32(-3.25)
    return rows


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_blocks_are_theirs_byte_for_byte(kind):
    gguf = package("gguf")
    rows = rows_to_pack()
    theirs = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[kind])
    mine = np.frombuffer(as_stored(torch.from_numpy(rows), kind.lower()), np.uint8)
    mine = mine.reshape(len(rows), -1)
    assert mine.dtype == np.uint8 and mine.shape == theirs.shape and (mine == theirs).all()
    again = gguf.quants.dequantize(mine, gguf.GGMLQuantizationType[kind])
    step = np.abs(rows).reshape(40, -1, 32).max(-1, keepdims=True) / (127 if kind == "Q8_0" else 8)
    assert (np.abs(again - rows).reshape(40, -1, 32) <= 1.01 * step + 1e-6).all()


FACTS = {"general.architecture": "llama", "a.bool": True, "b.whole": 7, "c.number": 0.1,
         "d.text": "naïve ✓", "e.words": ["a", "", "日本"], "f.wholes": [1, -2, 3],
         "g.numbers": [0.5, -2.0]}


def some_tensors():
    g = torch.Generator().manual_seed(0)
    shapes = {"v": (5,), "m": (3, 7), "half": (4, 6), "eight": (4, 64), "four": (2, 3, 32)}
    kinds = {"half": "f16", "eight": "q8_0", "four": "q4_0"}
    numbers = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    return numbers, [GGUFTensor(name, shape, kinds.get(name, "f32"), lambda name=name:
                                numbers[name]) for name, shape in shapes.items()]


def test_another_reader_finds_every_fact_and_number(tmp_path):
    gguf = package("gguf")
    numbers, tensors = some_tensors()
    write_gguf(tmp_path / "a.gguf", FACTS, tensors)
    theirs = gguf.GGUFReader(tmp_path / "a.gguf")
    for key, value in FACTS.items():
        assert theirs.fields[key].contents() == pytest.approx(value)
    for found in theirs.tensors:
        want = numbers[found.name].numpy()
        assert tuple(found.shape.tolist()) == want.shape[::-1] and found.data_offset % 32 == 0
        back = gguf.quants.dequantize(found.data, found.tensor_type).reshape(want.shape)
        np.testing.assert_allclose(back, want, atol={"four": 0.4, "eight": 0.02}.get(
            found.name, 2e-3 if found.name == "half" else 0))
    assert [t.name for t in theirs.tensors] == [t.name for t in tensors]


def test_we_read_what_we_and_others_wrote(tmp_path):
    gguf = package("gguf")
    numbers, tensors = some_tensors()
    write_gguf(tmp_path / "a.gguf", FACTS, tensors)
    facts, found = gguf_info(tmp_path / "a.gguf")
    assert list(facts) == list(FACTS) and facts["a.bool"] is True
    assert all(facts[key] == pytest.approx(value) for key, value in FACTS.items())
    theirs = gguf.GGUFReader(tmp_path / "a.gguf")
    assert [(t.name, t.shape, t.kind, t.offset, t.nbytes) for t in found] == [
        (t.name, tuple(t.shape.tolist()[::-1]), t.tensor_type.name.lower(), t.data_offset,
         t.n_bytes) for t in theirs.tensors]

    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "qwen3")
    for kind, value in (("uint8", 200), ("int8", -3), ("uint16", 9), ("int16", -9), ("uint32", 7),
                        ("int32", -7), ("float32", 0.5), ("uint64", 2**60), ("int64", -2**60),
                        ("float64", 0.1), ("bool", False), ("string", "x")):
        getattr(writer, f"add_{kind}")(f"k.{kind}", value)
    writer.add_array("k.lists", [[1, 2], [3]])
    writer.add_tensor("w", numbers["m"].numpy())
    writer.add_tensor("q", np.zeros((2, 144), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    facts, found = gguf_info(tmp_path / "b.gguf")
    assert facts["k.lists"] == [[1, 2], [3]] and facts["k.uint64"] == 2**60
    assert facts["k.float64"] == 0.1 and facts["k.int8"] == -3 and facts["k.bool"] is False
    assert [(t.name, t.shape, t.kind, t.nbytes) for t in found] == [
        ("w", (3, 7), "f32", 84), ("q", (2, 256), "q4_k", 288)]


def test_a_damaged_file_is_refused_or_read_within_its_bounds(tmp_path):
    _, tensors = some_tensors()
    path = tmp_path / "a.gguf"
    write_gguf(path, FACTS, tensors)
    whole, rng = path.read_bytes(), random.Random(0)
    head = gguf_info(path)[1][0].offset
    refusals = 0
    for n in range(500):
        raw = bytearray(whole)
        if n % 4 == 0:
            raw = raw[:rng.randrange(len(raw))]
        else:
            for _ in range(rng.choice((1, 1, 3))):
                at = rng.randrange(head)
                raw[at:at + rng.choice((1, 1, 4, 8))] = rng.choice(
                    (bytes([rng.randrange(256)]), b"\xff" * 8, b"\0" * 8, rng.randbytes(4)))
        path.write_bytes(raw)
        try:
            facts, found = gguf_info(path)
        except ValueError as e:
            refusals += 1
            assert str(path) in str(e)
        else:
            assert isinstance(facts, dict) and len(raw) > 24
            assert all(0 <= t.offset and t.offset + (t.nbytes or 0) <= len(raw) for t in found)
    assert refusals > 250


def gguf_bytes(n_tensors, n_facts, rest=b"", magic=b"GGUF", version=3):
    return struct.pack("<4sIQQ", magic, version, n_tensors, n_facts) + rest


KEY = struct.pack("<Q", 1) + b"k"
TENSOR = struct.pack("<Q", 1) + b"t"
HOSTILE = {
    "empty": (b"", "header"), "no magic": (gguf_bytes(0, 0, magic=b"GGML"), "GGML"),
    "old": (gguf_bytes(0, 0, version=1), "version 1"),
    "other end first": (b"GGUF" + struct.pack(">I", 3) + bytes(16), "version"),
    "many facts": (gguf_bytes(0, 2**63), "more than"),
    "many tensors": (gguf_bytes(2**62, 0), "more than"),
    "a long key": (gguf_bytes(0, 1, struct.pack("<Q", 2**60)), "header"),
    "a long list": (gguf_bytes(0, 1, KEY + struct.pack("<IIQ", 9, 0, 2**50)), "more than"),
    "a list beyond the end": (gguf_bytes(0, 1, KEY + struct.pack("<IIQ", 9, 8, 2**20)), "header"),
    "lists in lists": (gguf_bytes(0, 1, KEY + struct.pack("<I", 9)
                                  + struct.pack("<IQ", 9, 1) * 9), "unknown type 9"),
    "no type": (gguf_bytes(0, 1, KEY + struct.pack("<II", 77, 0)), "unknown type 77"),
    "no text": (gguf_bytes(0, 1, struct.pack("<Q", 2) + b"\xff\xfe"), "UTF-8"),
    "twice": (gguf_bytes(0, 2, (KEY + struct.pack("<IB", 0, 5)) * 2 + bytes(32)), "twice"),
    "alignment 0": (gguf_bytes(0, 1, struct.pack("<Q", 17) + b"general.alignment"
                               + struct.pack("<II", 4, 0) + bytes(32)), "alignment"),
    "many dimensions": (gguf_bytes(1, 0, TENSOR + struct.pack("<I", 2**31)), "dimensions"),
    "huge": (gguf_bytes(1, 0, TENSOR + struct.pack("<IQQIQ", 2, 2**63, 2**63, 0, 0)
                        + bytes(64)), "outside"),
    "behind": (gguf_bytes(1, 0, TENSOR + struct.pack("<IQIQ", 1, 4, 0, 2**40) + bytes(64)),
               "outside"),
    "crooked": (gguf_bytes(1, 0, TENSOR + struct.pack("<IQIQ", 1, 4, 0, 4) + bytes(64)),
                "between"),
    "half a block": (gguf_bytes(1, 0, TENSOR + struct.pack("<IQIQ", 1, 31, 8, 0) + bytes(64)),
                     "blocks of 32"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused_in_a_sentence(tmp_path, case):
    raw, word = HOSTILE[case]
    (tmp_path / "a.gguf").write_bytes(raw)
    with refused(str(tmp_path / "a.gguf"), word):
        gguf_info(tmp_path / "a.gguf")


def test_a_missing_file_is_named(tmp_path):
    with refused("nothing.gguf"):
        gguf_info(tmp_path / "nothing.gguf")


# --- the law over shapes

BASE = ModelConfig(context_length=64, n_layer=2, n_head=4, n_kv_head=2, d_model=32, d_ff=64)
GPT2 = dict(norm="layer", mlp="gelu", position="learned", bias=True, n_kv_head=4)
YARN = RopeScaling("yarn", 4.0, 16)
LLAMA3 = RopeScaling("llama3", 8.0, 16, 1.0, 4.0)
VARIATIONS = {      # changes -> what refuses it, and the word that names it
    "llama": ({}, {}), "own head": (dict(tie_embeddings=False, norm_eps=1e-3), {}),
    "qwen 3": (dict(qk_norm=True, rope_theta=50.0), {}),
    "qwen 2": (dict(qkv_bias=True, n_kv_head=1), {}),
    "wide heads": (dict(d_attention=64, n_kv_head=4), {}),
    "gpt-2": (GPT2, {}), "gpt-2, own head": (GPT2 | dict(tie_embeddings=False), {}),
    "a window as long as the context": (dict(window=64), {}),
    "linear": (dict(qk_norm=True, rope_scaling=RopeScaling("linear", 4.0, 16)), {}),
    "llama 3": (dict(rope_scaling=LLAMA3), {}),
    "yarn": (dict(qkv_bias=True, rope_scaling=YARN), {}),
    "yarn, louder": (dict(rope_scaling=replace(YARN, magnitude=1.5)), {}),
    "experts": (dict(n_expert=4), {"onnx": "n_expert=4"}),
    "one expert": (dict(n_expert=3, n_expert_used=1), {"onnx": "n_expert=3"}),
    "window": (dict(window=5), {"gguf": "window=5"}),
    "qwen 3, llama 3": (dict(qk_norm=True, rope_scaling=LLAMA3), {"gguf": "llama3"}),
} | {f"{key}={value!r:.20}": ({key: value} | more, dict.fromkeys(("gguf", "huggingface"), word))
     for key, value, more, word in (
        ("position", "alibi", {}, "alibi"), ("position", "none", {}, "none"),
        ("position", "sinusoidal", {}, "sinusoidal"), ("mlp", "relu2", {}, "relu2"),
        ("mlp", "gelu", {}, "gelu"), ("norm", "layer", {}, "layer"), ("bias", True, {}, "bias"),
        ("norm_place", "post", {}, "post"), ("qkv_bias", True, dict(qk_norm=True), "qk_norm"),
        ("rope_scaling", RopeScaling("ntk", 4.0, 16), {}, "ntk"), ("n_kv_head", 2, GPT2 | {
            "n_kv_head": 2}, "learned"))
} | {"latent": (dict(attention="latent"), dict.fromkeys(("gguf", "huggingface", "onnx"), "latent"))}


def build(changes, vocab_size):
    torch.manual_seed(0)
    model = GPT(replace(BASE, **{"vocab_size": vocab_size + 3} | changes)).eval()
    with torch.no_grad():                        # large weights: small ones hide mistakes
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


@pytest.fixture(params=VARIATIONS)
def variation(request, tokenizer):
    "A small random model, and who refuses it with which word."
    changes, refusals = VARIATIONS[request.param]
    return build(changes, tokenizer.vocab_size), refusals


def some_ids(B, T):
    return torch.randint(0, 256, (B, T), generator=torch.Generator().manual_seed(B + T))


@torch.no_grad()
def test_llama_cpp_computes_the_same_or_the_shape_is_refused(variation, tokenizer, tmp_path):
    (model, refusals), path = variation, tmp_path / "a.gguf"
    if "gguf" in refusals:
        with refused(refusals["gguf"]):
            to_gguf(path, model, tokenizer)
        assert list(tmp_path.iterdir()) == []
        return
    to_gguf(path, model, tokenizer)
    theirs, ids = LlamaCpp(path, 64), some_ids(1, 50)
    logprobs = model(ids)[0].log_softmax(-1)
    loose = model.cfg.mlp == "gelu"              # llama.cpp looks GELU up in a table of float16
    for n in (1, 2, 17, 50):
        torch.testing.assert_close(theirs.logprobs(ids[0, :n].tolist(), model.cfg.vocab_size),
                                   logprobs[n - 1], atol=5e-3 if loose else 1e-4, rtol=1e-4)


@torch.no_grad()
def test_transformers_computes_the_same_or_the_shape_is_refused(variation, tokenizer, tmp_path):
    import transformers
    (model, refusals), folder = variation, tmp_path / "a"
    if "huggingface" in refusals:
        with refused(refusals["huggingface"]):
            to_transformers(folder, model, tokenizer)
        assert list(tmp_path.iterdir()) == []
        return
    to_transformers(folder, model, tokenizer)
    theirs, ids = transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), some_ids(2, 50)
    torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-4, rtol=1e-4)
    assert theirs.generation_config.eos_token_id == tokenizer.end_of_text


def run_onnx(session, ids, padding, past=None):
    "Logits, and the new past; each row begins with some dummies."
    S = ids.shape[1] + (past[0].shape[2] if past else 0)
    mask = (torch.arange(S) >= padding[:, None]).long()
    feed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    names = [i.name for i in session.get_inputs()][2:]
    logits, *kept = session.run(None, feed | dict(zip(names, past or [])))
    return torch.from_numpy(logits), kept


def empty_past(cfg, B):
    return [np.zeros((B, cfg.n_kv_head, 0, cfg.d_head), np.float32)] * (2 * cfg.n_layer)


def session_of(graph):
    return package("onnxruntime").InferenceSession(graph.SerializeToString(),
                                                   providers=["CPUExecutionProvider"])


@torch.no_grad()
def test_onnxruntime_computes_the_same_or_the_shape_is_refused(variation, tokenizer, tmp_path):
    "With and without a cache, alone and in a batch of rows of other lengths."
    onnx = package("onnx")
    model, refusals = variation
    if "onnx" in refusals:
        with refused(refusals["onnx"]):
            to_onnx(tmp_path / "a", model, tokenizer)
        assert list(tmp_path.iterdir()) == []
        return
    for cache in (False, True):
        graph = onnx_model(model, cache=cache)
        onnx.checker.check_model(graph, full_check=True)
        session = session_of(graph)
        for B, T in ((1, 1), (1, 64), (3, 7)):
            ids, padding = some_ids(B, T), torch.arange(B)
            real = torch.arange(T) >= padding[:, None]
            want, past = model(ids, padding=padding)[real], empty_past(model.cfg, B)
            parts = [ids] if not cache else [p for p in (ids[:, :4], ids[:, 4:5], ids[:, 5:])
                                             if p.shape[1]]
            got = []
            for part in parts:
                logits, past = run_onnx(session, part, padding, past if cache else None)
                got.append(logits)
            torch.testing.assert_close(torch.cat(got, 1)[real], want, atol=1e-4, rtol=1e-4)


def test_onnx_names_are_those_that_others_look_for(tokenizer):
    package("onnx")
    model = build({}, tokenizer.vocab_size)
    graph = onnx_model(model, cache=True).graph
    shape = lambda v: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
    assert [v.name for v in graph.input] == [
        "input_ids", "attention_mask", *(f"past_key_values.{i}.{part}" for i in range(2)
                                         for part in ("key", "value"))]
    assert [v.name for v in graph.output] == [
        "logits", *(f"present.{i}.{part}" for i in range(2) for part in ("key", "value"))]
    assert shape(graph.input[0]) == ["batch_size", "sequence_length"]
    assert shape(graph.input[2]) == ["batch_size", 2, "past_sequence_length", 8]
    assert {t.name for t in graph.initializer} >= dict(model.named_parameters()).keys()


@torch.no_grad()
@pytest.mark.parametrize("kind, atol", [("f16", 0.02), ("q8_0", 0.3), ("q4_0", 4.0)])
def test_smaller_types_are_near(tokenizer, tmp_path, kind, atol):
    "And the weights that llama.cpp takes out of a file are those that gguf takes out of it."
    gguf, model = package("gguf"), build({}, tokenizer.vocab_size)
    to_gguf(tmp_path / "a.gguf", model, tokenizer, kind)
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == kind.upper() and kinds["output_norm.weight"] == "F32"
    assert kinds["token_embd.weight"] == {"q4_0": "Q8_0"}.get(kind, kind.upper())
    theirs, ids = LlamaCpp(tmp_path / "a.gguf", 64), some_ids(1, 30)
    got = theirs.logprobs(ids[0].tolist(), model.cfg.vocab_size)
    worst = (got - model(ids)[0, -1].log_softmax(-1)).abs().max().item()
    assert 1e-5 < worst < atol


@torch.no_grad()
@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("shape", ["gpt-2", "own head", "experts", "llama 3", "qwen 2"])
def test_every_shape_takes_every_type(tokenizer, tmp_path, shape, kind):
    "llama.cpp computes what our own class computes with the weights of the file."
    gguf, model = package("gguf"), build(VARIATIONS[shape][0], tokenizer.vocab_size)
    to_gguf(tmp_path / "a.gguf", model, tokenizer, kind)
    stored = {t.name: torch.tensor(gguf.quants.dequantize(t.data, t.tensor_type))
              for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    architecture = ours.gguf_architecture(model.cfg)
    parts = {}
    for name, p in model.named_parameters():
        parts.setdefault(ours.gguf_name(name, architecture), []).append(p)
    for name, own in parts.items():
        flat = stored[name].reshape(-1, *own[0].shape[1:])
        for p, rows in zip(own, flat.split([len(p) for p in own])):
            turned = architecture == "llama" and name.split(".")[-2] in ("attn_q", "attn_k")
            back = rows.unflatten(0, (-1, model.cfg.d_head // 2, 2)).transpose(1, 2).reshape(
                p.shape) if turned else rows.reshape(p.shape)
            torch.testing.assert_close(back, p, atol={"f16": 2e-3, "q8_0": 0.01,
                                                      "q4_0": 0.2}[kind], rtol=1e-3)
            p.copy_(back)
    theirs, ids = LlamaCpp(tmp_path / "a.gguf", 64), some_ids(1, 30)
    got = theirs.logprobs(ids[0].tolist(), model.cfg.vocab_size)
    torch.testing.assert_close(got, model(ids)[0, -1].log_softmax(-1), rtol=0,
                               atol=0.02 if kind == "f16" else 0.3)      # it rounds what comes in


@torch.no_grad()
def test_half_precision_is_near_in_the_other_two(tokenizer, tmp_path):
    import transformers
    model, ids = build({}, tokenizer.vocab_size), some_ids(1, 30)
    to_transformers(tmp_path / "a", model, tokenizer, "f16")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype="auto").eval()
    assert theirs.dtype == torch.float16 and model.dtype == torch.float32
    rounded = [build({}, tokenizer.vocab_size) for _ in range(2)]
    for n, one in enumerate(rounded):
        for p in one.parameters():
            p.data = p.half().float() if n == 0 or p.dim() > 1 else p
    torch.testing.assert_close(theirs.float()(ids).logits, rounded[0](ids), atol=1e-4, rtol=1e-4)
    package("onnx")
    got, _ = run_onnx(session_of(onnx_model(model, "f16")), ids, torch.zeros(1))
    torch.testing.assert_close(got, rounded[1](ids), atol=1e-4, rtol=1e-4)    # norms stay exact


def test_rows_that_no_block_fits_are_said_to_be_f16(tokenizer, tmp_path):
    model = build(dict(d_model=48, d_ff=80), tokenizer.vocab_size)
    lines = to_gguf(tmp_path / "a.gguf", model, tokenizer, "q8_0")
    assert "rows of 48, 80 numbers are f16: no multiple of 32" in lines
    kinds = {t.name: t.kind for t in gguf_info(tmp_path / "a.gguf")[1]}
    assert kinds["blk.0.attn_q.weight"] == kinds["blk.1.ffn_down.weight"] == "f16"
    assert LlamaCpp(tmp_path / "a.gguf", 64).said([1, 2, 3], 65)["id"] == 65
    lines = to_gguf(tmp_path / "b.gguf", build({}, tokenizer.vocab_size), tokenizer, "q4_0")
    assert lines[1:] == ["the embedding and the output are q8_0"]


# --- vocabularies

def split_by(kind):
    "The pattern by which a family cuts texts; GPT-2's is in the library."
    qwen = PATTERN.replace("'(?i:[sdmt]|ll|ve|re)", "(?i:'s|'t|'re|'ve|'m|'ll|'d)")
    return {"Qwen 2": qwen, "LLaMA 3": qwen.replace(r"|\p{N}|", r"|\p{N}{1,3}|")}.get(kind)


def byte_level(kind, pattern=None):
    engine = Engine(models.BPE(ignore_merges=kind == "LLaMA 3"))
    pattern = pattern or split_by(kind)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    engine.pre_tokenizer = pre_tokenizers.Sequence([*split, pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=pattern is None)])
    engine.normalizer = normalizers.NFC() if kind == "Qwen 2" else None
    engine.decoder = decoders.ByteLevel()
    engine.train_from_iterator([SOME_TEXT, *TEXTS * 4], trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", END_OF_TEXT], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    if kind == "LLaMA 3":
        engine.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)])
    return engine


def sentence_piece(metaspace=False):
    pieces = {"<unk>": 0, "<s>": 1, END_OF_TEXT: 2} | {f"<0x{b:02X}>": 3 + b for b in range(256)}
    merges = []
    for word in ("\u2581th", "\u2581the", "\u2581cat", "og", "\u2581Ros"):
        for i, letter in enumerate(word):
            pieces.setdefault(letter, len(pieces))
            if i and word[:i + 1] not in pieces:
                pieces[word[:i + 1]] = len(pieces)
                merges.append((word[:i], letter))
    engine = Engine(models.BPE(pieces, merges, unk_token="<unk>", fuse_unk=True,
                               byte_fallback=True))
    if metaspace:
        engine.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", "first", False)
    else:
        engine.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"),
                                                  normalizers.Replace(" ", "\u2581")])
    engine.add_special_tokens(["<unk>", "<s>", END_OF_TEXT])
    engine.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)])
    return engine


def theirs_in(folder, engine, **about):
    engine.save(str(folder / "their.json"))
    about = {"bos_token": "<s>", "eos_token": END_OF_TEXT} | about
    return HuggingFaceTokenizer(folder / "their.json", about=about)


@pytest.mark.parametrize("kind", [*LETTERS, "SentencePiece", "Metaspace"])
def test_other_vocabularies_cut_texts_as_before(tmp_path, kind):
    engine = byte_level(kind) if kind in LETTERS else sentence_piece(kind == "Metaspace")
    words = theirs_in(tmp_path, engine)
    model = build({}, 420)
    to_gguf(tmp_path / "a.gguf", model, words)
    theirs = LlamaCpp(tmp_path / "a.gguf", 64)
    for text in [*TEXTS, SOME_TEXT[:90], "the cats"]:
        assert theirs.ids(text.replace("<|", "<")) == words.prompt_ids(text.replace("<|", "<"))
    facts, _ = gguf_info(tmp_path / "a.gguf")
    assert facts["tokenizer.ggml.eos_token_id"] == 2 and facts["tokenizer.ggml.bos_token_id"] == 1
    assert facts["tokenizer.ggml.add_bos_token"] is (kind not in ("Qwen 2", "GPT-2"))


@pytest.mark.parametrize("engine, word", [
    (byte_level("Qwen 2", r"\w+|\W+"), r"\w+"),
    (Engine(models.WordLevel({"a": 0}, "a")), "WordLevel"),
    (Engine(models.Unigram([("a", 0.0)])), "Unigram")])
def test_a_vocabulary_that_gguf_cannot_hold_is_refused(tmp_path, engine, word):
    words = theirs_in(tmp_path, engine)
    with refused(word):
        to_gguf(tmp_path / "a.gguf", build({}, 420), words)
    assert not (tmp_path / "a.gguf").exists()


def test_a_token_that_looks_like_another_is_refused(tmp_path):
    words = train_tokenizer([SOME_TEXT], 300, (END_OF_TEXT, "Rosa"))
    assert b"Rosa" in words.tokens
    with refused("'Rosa' is there twice"):
        to_gguf(tmp_path / "a.gguf", build({}, words.vocab_size), words)


def test_a_marker_behind_the_text_is_refused(tmp_path):
    engine = byte_level("GPT-2")
    engine.post_processor = processors.TemplateProcessing(
        single=f"$A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, 2)])
    with refused("none behind it"):
        to_gguf(tmp_path / "a.gguf", build({}, 420), theirs_in(tmp_path, engine))


@pytest.mark.parametrize("where", ["tokenizer_config.json", "chat_template.jinja"])
def test_their_template_travels_along(tmp_path, where):
    from minigpt.weights import to_huggingface
    template = "{% for m in messages %}<s>{{ m.content }}{% endfor %}"
    about = {"chat_template": template} if where.endswith("json") else {}
    words = theirs_in(tmp_path, byte_level("GPT-2"), **about)
    to_huggingface(tmp_path / "source", build({}, 420), words)
    if not about:
        (tmp_path / "source" / where).write_text(template, encoding="utf-8")
    export(tmp_path / "source", "gguf", tmp_path / "a.gguf")
    export(tmp_path / "source", "huggingface", tmp_path / "b")
    assert gguf_info(tmp_path / "a.gguf")[0]["tokenizer.chat_template"] == template
    assert json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())["chat_template"] \
        == template


def test_one_merge_makes_each_token(town):
    _, words = town
    merges = [tuple(merge.split(" ")) for merge in ours.one_merge_each(words)]
    letter = ours.printable_bytes()
    show = {t: "".join(letter[b] for b in t) for t in words.tokens}
    long = [t for t in words.tokens if len(t) > 1]
    assert len(merges) == len(long)
    for token, merge in zip(long, merges):
        assert merge in [(show[a], show[b]) for a, b in all_splits(token, words.ranks)]


# --- the models that come with the package

def test_llama_cpp_cuts_texts_as_we_do(town, documents, tmp_path):
    model, words = town
    to_gguf(tmp_path / "a.gguf", model, words)
    theirs = LlamaCpp(tmp_path / "a.gguf")
    for text in [*documents[:20], *TEXTS[:3], "", "I'LL we're 'S x’d", " <|end|>"]:
        text = text.replace("<|", "< |")         # llama.cpp obeys markers that a text spells
        assert theirs.ids(text) == words.prompt_ids(text)


def test_llama_cpp_writes_the_same_64_texts(town, documents, tmp_path):
    model, words = town
    to_gguf(tmp_path / "a.gguf", model, words)
    theirs = LlamaCpp(tmp_path / "a.gguf")
    prompts = [words.prompt_ids(text[:len(text) // 3])[:120] for text in documents]
    want = [c.text for c in complete_batch(model, words, prompts, 48, [temperature(0)])]
    same = [theirs.ask(ids, 48)["text"] == text for ids, text in zip(prompts, want)]
    assert sum(same) >= 63 and len(set(want)) > 30       # one tie, on another processor


@torch.no_grad()
def test_eight_bits_cost_less_than_a_hundredth_of_the_bits(town, documents, tmp_path):
    model, words = town
    to_gguf(tmp_path / "a.gguf", model, words, "q8_0")
    theirs, nats = LlamaCpp(tmp_path / "a.gguf"), torch.zeros(2)
    for text in documents[:6]:
        ids = [*words.prompt_ids(text), words.end_of_text]
        logprobs = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
        for n, token in enumerate(ids[1:], 1):
            nats += torch.tensor([logprobs[n - 1, token], theirs.said(ids[:n], token)["logprob"]])
    assert nats[1] != nats[0] and abs(nats[1] / nats[0] - 1) < 0.01


QUESTIONS = ["Where does Abel live?", "What is 3 + 4?", "Who are you?"]


def test_llama_cpp_answers_as_the_chat_model_does(chat, tmp_path):
    model, words = chat
    export("chat", "gguf", tmp_path / "a.gguf")
    theirs = LlamaCpp(tmp_path / "a.gguf")
    for told in ([], [{"role": "system", "content": "Answer in a whole sentence."}]):
        asked = [[*told, {"role": "user", "content": q}] for q in QUESTIONS]
        for messages, want in zip(asked, replies(model, words, asked, 60)):
            got = theirs.server.handle_chat_completions(
                {"messages": messages, "temperature": 0.0, "max_tokens": 60})
            assert got["choices"][0]["message"]["content"].removeprefix(" ") == want
            assert got["usage"]["prompt_tokens"] == len(chat_ids(words, messages))
    facts, _ = gguf_info(tmp_path / "a.gguf")
    assert facts["general.license"] == "apache-2.0" and facts["general.name"] == "chat"


@torch.no_grad()
def test_transformers_opens_the_chat_model_with_its_template(chat, tmp_path):
    import transformers
    model, words = chat
    export("chat", "huggingface", tmp_path / "a")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    cutter = transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        ids = chat_ids(words, messages)
        assert list(cutter.apply_chat_template(messages, add_generation_prompt=True,
                                               return_dict=False)) == ids
        torch.testing.assert_close(theirs(torch.tensor([ids])).logits, model(torch.tensor([ids])),
                                   atol=1e-4, rtol=1e-4)
    assert all(cutter.encode(t, split_special_tokens=True) == words.encode(t) for t in TEXTS)
    assert set(theirs.generation_config.eos_token_id) == words.stop_ids


@torch.no_grad()
def test_onnxruntime_writes_the_same_text_with_a_cache(town, documents, tmp_path):
    model, words = town
    export(None, "onnx", tmp_path / "a", cache=True)
    session = package("onnxruntime").InferenceSession(tmp_path / "a" / "model.onnx")
    for text in documents[:3]:
        prompt = words.prompt_ids(text[:len(text) // 3])
        want = list(generate_ids(model, prompt, 64, [temperature(0)]))
        ids, past, said = torch.tensor([prompt]), empty_past(model.cfg, 1), []
        while len(said) < len(want):
            logits, past = run_onnx(session, ids, torch.zeros(1), past)
            said.append(logits[0, -1].argmax().item())
            ids = torch.tensor([said[-1:]])
        assert said == want
        logits, _ = run_onnx(session, torch.tensor([prompt]), torch.zeros(1),
                             empty_past(model.cfg, 1))
        torch.testing.assert_close(logits, model(torch.tensor([prompt])), atol=1e-4, rtol=1e-4)
    import transformers
    cutter = transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
    assert cutter.encode(documents[0]) == words.encode(documents[0])


# --- whole or not at all

@pytest.mark.parametrize("to", ["huggingface", "onnx", "gguf"])
@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
def test_nothing_half_written_stays(saved, tmp_path, monkeypatch, to, error):
    if to == "onnx":
        package("onnx")

    def fail(*args, **kwargs):
        raise error
    monkeypatch.setattr(ours, "as_stored" if to == "gguf" else "write_json", fail)
    with pytest.raises(type(error)):
        export(saved, to, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["huggingface", "onnx", "gguf"])
def test_what_is_there_stays(saved, tmp_path, to):
    mine = tmp_path / "out" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("Mine.")
    for out in (mine.parent, mine, tmp_path / "nowhere" / "out"):
        with refused("must be a new", str(out)):
            export(saved, to, out)
    assert [p.read_text() for p in tmp_path.rglob("*.*")] == ["Mine."]


def test_an_empty_folder_is_filled(saved, tmp_path):
    (tmp_path / "out").mkdir()
    export(saved, "huggingface", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("value", [math.nan, math.inf, 70_000.0])
def test_weights_that_no_file_can_hold_are_named(tokenizer, tmp_path, value):
    model = build({}, tokenizer.vocab_size)
    with torch.no_grad():
        model.blocks[1].mlp.up.weight[3, 3] = value
    for kind in KINDS:
        if kind == "f32" and value == 70_000:
            continue
        with refused("blocks.1.mlp.up.weight", kind):
            to_gguf(tmp_path / "a.gguf", model, tokenizer, kind)
    assert list(tmp_path.iterdir()) == []


def test_large_weights_lie_beside_the_graph(saved, tiny_model, tmp_path, monkeypatch):
    ort = package("onnxruntime")
    monkeypatch.setattr(ours, "ONE_FILE", 1000)
    export(saved, "onnx", tmp_path / "a")
    assert (tmp_path / "a" / "model.onnx.data").stat().st_size > 10_000
    ids = some_ids(1, 9)
    got, _ = run_onnx(ort.InferenceSession(tmp_path / "a" / "model.onnx"), ids, torch.zeros(1))
    with torch.no_grad():
        torch.testing.assert_close(got, tiny_model(ids), atol=1e-4, rtol=1e-4)


def test_a_missing_package_is_named(tiny_model, tokenizer, tmp_path, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "onnx", None)
    with refused("pip install minigpt[onnx]"):
        to_onnx(tmp_path / "a", tiny_model, tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_wish_is_refused(saved, tmp_path):
    for more, word in ((dict(to="word"), "word"), (dict(to="onnx", kind="q8_0"), "q8_0"),
                       (dict(to="huggingface", kind="q4_0"), "q4_0"),
                       (dict(to="gguf", kind="bf16"), "bf16"),
                       (dict(to="gguf", cache=True), "cache")):
        with refused(word):
            export(saved, out=tmp_path / "a", **more)
    assert list(tmp_path.iterdir()) == []


# --- the command

def test_the_command_writes_and_info_reads(saved, tmp_path, capsys):
    path = tmp_path / "a.gguf"
    assert main(["export", str(saved), "--to", "gguf", "--out", str(path), "--type", "q8_0"]) == 0
    out = capsys.readouterr().out
    assert str(path) in out and "architecture llama" in out and "f16: no multiple of 32" in out
    assert main(["info", "--checkpoint", str(path)]) == 0
    out = capsys.readouterr().out
    assert "general.architecture 'llama'" in out and "token_embd.weight" in out
    path.write_bytes(path.read_bytes()[:900])
    assert main(["info", "--checkpoint", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_file_and_a_merged_model_are_exported_as_well(saved, tmp_path, tokenizer):
    export(saved / "model.safetensors", "gguf", tmp_path / "a.gguf")
    model = build({}, tokenizer.vocab_size)
    save_model(tmp_path / "mine", model, tokenizer)
    export(tmp_path / "mine", "gguf", tmp_path / "b.gguf", "f16")
    assert [len(gguf_info(tmp_path / name)[1]) for name in ("a.gguf", "b.gguf")] == [11, 20]


def test_an_adapter_must_be_merged_first(tokenizer, tmp_path):
    from minigpt.lora import add_lora, merge
    model = build({}, tokenizer.vocab_size)
    add_lora(model, rank=2)
    for write in (to_gguf, to_transformers):
        with refused("merge(model)"):
            write(tmp_path / "a", model, tokenizer)
    merge(model)
    to_gguf(tmp_path / "a", model, tokenizer)
