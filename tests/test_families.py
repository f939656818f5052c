"Other people's checkpoints: the same logits, texts and token ids, there and back."
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Engine

from minigpt.cache import KVCache
from minigpt.checkpoint import load_model, save_model
from minigpt.cli import main
from minigpt.config import ModelConfig, RopeScaling
from minigpt.inference import complete, generate_ids
from minigpt.model import GPT
from minigpt.sampling import temperature
from minigpt.sizes import count_parameters
from minigpt.tokenizer import END_OF_TEXT, PATTERN, Tokenizer, train_tokenizer
from minigpt.weights import (
    FAMILIES,
    HuggingFaceTokenizer,
    family_for,
    from_huggingface,
    open_model,
    read_config,
    to_huggingface,
)

V = 400
TEXTS = ["The cat of Rosa sleeps by the warm stove.", "Tom's dog can't find 3 bones, or 12!",
         "¿Dónde está el perro? 🐕‍🦺 naïve café", "  two  spaces\n\nand lines\t",
         "日本語のテキスト", ""]
SIZES = dict(vocab_size=V, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
             bos_token_id=1, eos_token_id=2, pad_token_id=None)
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0,
               "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
        "original_max_position_embeddings": 16}
CONFIGS = {
    "GPT-2": lambda: transformers.GPT2Config(
        vocab_size=V, n_embd=48, n_layer=3, n_head=4, n_positions=64, bos_token_id=2,
        eos_token_id=2),
    "GPT-2, own head": lambda: transformers.GPT2Config(
        vocab_size=V, n_embd=48, n_layer=2, n_head=4, n_positions=64, n_inner=100,
        bos_token_id=2, eos_token_id=2, tie_word_embeddings=False),
    "LLaMA 2": lambda: transformers.LlamaConfig(**SIZES | {"num_key_value_heads": 4}),
    "LLaMA 3": lambda: transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE),
    "LLaMA 3.2": lambda: transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE,
                                                  tie_word_embeddings=True),
    "Mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=5),
    "Mistral, no window": lambda: transformers.MistralConfig(**SIZES, sliding_window=None,
                                                             head_dim=16),
    "Qwen 2.5": lambda: transformers.Qwen2Config(**SIZES, tie_word_embeddings=True),
    "Qwen 2.5, YaRN": lambda: transformers.Qwen2Config(**SIZES, rope_parameters=YARN),
    "Qwen 3": lambda: transformers.Qwen3Config(**SIZES, head_dim=20, tie_word_embeddings=True),
    "Mixtral": lambda: transformers.MixtralConfig(**SIZES, num_local_experts=4,
                                                  num_experts_per_tok=2),
}


def build_theirs(name):
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    with torch.no_grad():                        # large weights: small ones hide mistakes
        for p in theirs.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return theirs


def byte_level(normalizer=None, pattern=None):
    "A small tokenizer as GPT-2, LLaMA 3 and Qwen have one."
    engine = Engine(models.BPE(ignore_merges=pattern is not None))
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [*split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)])
    engine.normalizer, engine.decoder = normalizer, decoders.ByteLevel()
    engine.train_from_iterator(TEXTS * 4, trainers.BpeTrainer(
        vocab_size=V, special_tokens=["<unk>", "<s>", END_OF_TEXT], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return engine


def sentence_piece():
    "A small tokenizer as LLaMA 2 and Mistral have one: spaces as signs, bytes as a last resort."
    pieces = {"<unk>": 0, "<s>": 1, END_OF_TEXT: 2}
    pieces |= {f"<0x{b:02X}>": 3 + b for b in range(256)}
    merges = []
    for word in ("\u2581th", "\u2581the", "\u2581cat", "og"):
        for i, letter in enumerate(word):
            pieces.setdefault(letter, len(pieces))
            if i and word[:i + 1] not in pieces:
                pieces[word[:i + 1]] = len(pieces)
                merges.append((word[:i], letter))
    engine = Engine(models.BPE(pieces, merges, unk_token="<unk>", fuse_unk=True,
                               byte_fallback=True))
    engine.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"),
                                              normalizers.Replace(" ", "\u2581")])
    engine.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(),
                                        decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    engine.add_special_tokens(["<unk>", "<s>", END_OF_TEXT])
    engine.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)])
    return engine


def build_tokenizer(name):
    if name in ("LLaMA 2", "Mistral", "Mistral, no window", "Mixtral"):
        engine = sentence_piece()
    elif name.startswith("Qwen"):
        engine = byte_level(normalizers.NFC(), PATTERN)
    elif name.startswith("LLaMA 3"):
        engine = byte_level(None, r"\p{N}{1,3}|[^\r\n\p{L}\p{N}]?\p{L}+|\s+")
        engine.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)])
    else:
        engine = byte_level()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=engine, bos_token="<s>", eos_token=END_OF_TEXT)


@pytest.fixture(scope="module", params=CONFIGS)
def checkpoint(request, tmp_path_factory):
    "Their model, its folder with several shards, and what we read from it."
    folder = tmp_path_factory.mktemp("theirs")
    theirs, tokenizer = build_theirs(request.param), build_tokenizer(request.param)
    theirs.save_pretrained(folder, max_shard_size="60KB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return theirs, tokenizer, folder, *from_huggingface(folder)


def random_ids(B=3, T=20):
    return torch.randint(3, V, (B, T), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_logits_equal_theirs(checkpoint):
    theirs, _, _, ours, _ = checkpoint
    ids = random_ids(T=60)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)


def test_size_is_counted_to_the_unit(checkpoint):
    theirs, _, _, ours, _ = checkpoint
    assert count_parameters(ours.cfg)["total"] == sum(p.numel() for p in theirs.parameters())


@torch.no_grad()
def test_a_left_padded_batch_equals_theirs(checkpoint):
    theirs, _, _, ours, _ = checkpoint
    ids, padding = random_ids(), torch.tensor([0, 4, 11])
    seen = torch.arange(20) >= padding[:, None]
    places = (torch.arange(20) - padding[:, None]).clamp(min=0)
    expected = theirs(ids, attention_mask=seen.long(), position_ids=places).logits
    logits = ours(ids, padding=padding)
    torch.testing.assert_close(logits[seen], expected[seen], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_cached_equals_uncached_however_it_is_cut(checkpoint):
    ours, ids, padding = checkpoint[3], random_ids(), torch.tensor([0, 4, 11])
    seen = torch.arange(20) >= padding[:, None]
    for pads in (None, padding):
        whole = ours(ids, padding=pads)
        for cut in ([20], [1] * 20, [7, 1, 1, 11], [19, 1], [2, 3, 5, 7, 3]):
            cache = KVCache(ours.cfg, batch_size=3)
            pieces = torch.cat([ours(part, cache, pads) for part in ids.split(cut, dim=1)], dim=1)
            real = slice(None) if pads is None else seen
            torch.testing.assert_close(pieces[real], whole[real], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_greedy_texts_equal_theirs(checkpoint):
    theirs, _, _, ours, _ = checkpoint
    for row in random_ids(T=9):
        expected = theirs.generate(row[None], max_new_tokens=30, do_sample=False,
                                   eos_token_id=None, pad_token_id=0)[0, 9:]
        assert list(generate_ids(ours, row.tolist(), 30, [temperature(0)])) == expected.tolist()


def test_token_ids_equal_theirs(checkpoint):
    _, theirs, _, _, ours = checkpoint
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert ours.prompt_ids(text) == (theirs.encode(text) or [1])      # a start, if only that
        assert ours.decode(ours.encode(text)) == theirs.decode(ours.encode(text))
    assert ours.vocab_size == len(theirs) and ours.stop_ids == {2}


def test_pieces_of_text_join_to_the_text(checkpoint):
    ours = checkpoint[4]
    for text in TEXTS:
        joined = ours.decode_bytes(ours.encode(text)).decode()
        assert ours.decode(ours.encode(text)) in (joined, joined.removeprefix(" "))


def test_a_users_text_makes_no_special_token(checkpoint):
    ours = checkpoint[4]
    assert 2 not in ours.encode(f"a{END_OF_TEXT}b") and 2 not in ours.prompt_ids(END_OF_TEXT)[1:]
    assert 2 in ours.encode(f"a{END_OF_TEXT}b", allow_special=True)
    with pytest.raises(ValueError, match="token id 9999 is outside the vocabulary"):
        ours.decode_bytes([9999])


def test_it_writes_text(checkpoint):
    ours, tokenizer = checkpoint[3:]
    text = "".join(complete(ours, tokenizer, "The cat", 8, [temperature(0)]))
    again = "".join(complete(ours, tokenizer, "The cat", 8, [temperature(0)]))
    assert text == again


@torch.no_grad()
def test_written_back_it_is_theirs(checkpoint, tmp_path):
    theirs, tokenizer, _, ours, our_tokenizer = checkpoint
    to_huggingface(tmp_path / "one", ours, our_tokenizer)
    to_huggingface(tmp_path / "many", ours, our_tokenizer, max_shard_bytes=60_000)
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 1
    for folder in (tmp_path / "one", tmp_path / "many"):
        again = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        assert type(again) in (type(theirs), transformers.LlamaForCausalLM)
        ids = random_ids()
        torch.testing.assert_close(again(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)
        opened = transformers.AutoTokenizer.from_pretrained(folder)
        assert [opened.encode(t) for t in TEXTS] == [tokenizer.encode(t) for t in TEXTS]
        back, _ = from_huggingface(folder)
        assert back.cfg == ours.cfg
        assert all(torch.equal(a, b) for a, b in zip(back.parameters(), ours.parameters()))


@torch.no_grad()
def test_our_own_model_and_tokenizer_go_there_and_back(tmp_path):
    model, tokenizer = load_model()
    to_huggingface(tmp_path, model, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "Q: Where does Abel live?\nA:"]:
        assert their_tokenizer.encode(text) == tokenizer.encode(text)
        assert their_tokenizer.decode(tokenizer.encode(text)) == text
    ids = torch.tensor([tokenizer.prompt_ids("Once upon a time")])
    torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)
    expected = theirs.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1]:].tolist()
    got = list(generate_ids(model, ids[0].tolist(), 40, [temperature(0)], None, tokenizer.stop_ids))
    assert got == [i for i in expected if i != tokenizer.end_of_text]
    back, back_tokenizer = from_huggingface(tmp_path)
    assert isinstance(back_tokenizer, Tokenizer) and back_tokenizer.tokens == tokenizer.tokens
    assert torch.equal(back(ids), model(ids)) and back.cfg == model.cfg


def test_a_bfloat16_checkpoint_is_read_in_either_type(tmp_path):
    build_theirs("LLaMA 3").bfloat16().save_pretrained(tmp_path)
    model, tokenizer = from_huggingface(tmp_path)
    assert model.embedding.weight.dtype == torch.float32 and tokenizer is None
    half, _ = from_huggingface(tmp_path, dtype=torch.bfloat16)
    assert half.embedding.weight.dtype == torch.bfloat16
    assert torch.equal(half.embedding.weight.float(), model.embedding.weight)


def test_older_configs_say_the_same(tmp_path):
    "Before transformers 5, rope_theta and rope_scaling stood side by side."
    theirs = build_theirs("LLaMA 3")
    theirs.save_pretrained(tmp_path)
    before, _ = from_huggingface(tmp_path)
    path = tmp_path / "config.json"
    their = json.loads(path.read_text())
    rope = their.pop("rope_parameters")
    their["rope_theta"] = rope.pop("rope_theta")
    their["rope_scaling"] = rope | {"type": rope["rope_type"]}
    path.write_text(json.dumps(their))
    assert from_huggingface(tmp_path)[0].cfg == before.cfg
    assert before.cfg.rope_scaling == RopeScaling("llama3", 8.0, 16, 1.0, 4.0)


def test_names_without_a_prefix_and_old_buffers_are_read(tmp_path):
    "The first GPT-2 files have no `transformer.`, and carry the mask as a tensor."
    theirs = build_theirs("GPT-2")
    theirs.save_pretrained(tmp_path)
    tensors = {name.removeprefix("transformer."): t
               for name, t in load_file(tmp_path / "model.safetensors").items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
    tensors["lm_head.weight"] = tensors["wte.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    ours, _ = from_huggingface(tmp_path)
    ids = random_ids()
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)
    tensors["lm_head.weight"] += 1
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="ties lm_head.weight to the embedding"):
        from_huggingface(tmp_path)


@pytest.fixture
def folder(tmp_path):
    build_theirs("LLaMA 3").save_pretrained(tmp_path)
    build_tokenizer("LLaMA 3").save_pretrained(tmp_path)
    return tmp_path


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("changes, message", [
    ({"architectures": ["BertModel"]}, "holds a BertModel; minigpt reads GPT2LMHeadModel"),
    ({"architectures": None, "model_type": "bert"}, "holds a bert"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"num_hidden_layers": 4}, "lacks model.layers.3"),
    ({"num_hidden_layers": 2}, "unknown model.layers.2"),
    ({"hidden_size": 64}, r"is \(400, 48\), config.json says \(400, 64\)"),
    ({"num_attention_heads": 5}, "n_head=5"),
    ({"vocab_size": 401}, r"\(400, 48\), config.json says \(401, 48\)"),
    ({"vocab_size": "many"}, "vocab_size='many'"),
    ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "mscale": 2.0}}, "mscale"),
    ({"quantization_config": {"bits": 4}}, "is quantized"),
    ({"tie_word_embeddings": True}, "ties lm_head.weight"),
])
def test_a_config_that_does_not_fit_is_named(folder, changes, message):
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=message) as error:
        from_huggingface(folder)
    assert "\n" not in str(error.value)


def test_tensors_that_do_not_fit_are_named(folder):
    name = "model.layers.1.mlp.up_proj.weight"
    change_tensors(folder, lambda t: t.update({name: t[name].T.contiguous()}))
    with pytest.raises(ValueError, match=rf"{name} is \(48, 80\), config.json says \(80, 48\)"):
        from_huggingface(folder)
    change_tensors(folder, lambda t: t.pop(name))
    with pytest.raises(ValueError, match=f"lacks {name}"):
        from_huggingface(folder)
    more = {name: torch.zeros(80, 48), "new.thing": torch.ones(2)}
    change_tensors(folder, lambda t: t.update(more))
    with pytest.raises(ValueError, match="has the unknown new.thing"):
        from_huggingface(folder)


def test_files_that_are_missing_or_cut_short_are_named(folder):
    whole = (folder / "model.safetensors").read_bytes()
    for n in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:n])
        with pytest.raises(ValueError, match="model.safetensors is damaged or cut short"):
            from_huggingface(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="model.safetensors does not exist; minigpt reads"):
        from_huggingface(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(ValueError, match="other.safetensors does not exist"):
        from_huggingface(folder)
    index.write_text("[]")
    with pytest.raises(ValueError, match="index.json is damaged"):
        from_huggingface(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not JSON"):
        from_huggingface(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="holds no config.json"):
        from_huggingface(folder)


def test_a_broken_tokenizer_is_named(folder):
    (folder / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(ValueError, match="is no tokenizer.json"):
        from_huggingface(folder)


def test_a_model_that_no_architecture_describes_is_refused(tmp_path):
    small = ModelConfig(vocab_size=20, n_layer=1, d_model=16, n_head=2, d_ff=16)
    for change in ({"position": "alibi"}, {"mlp": "relu2"}, {"attention": "latent"},
                   {"rope_scaling": RopeScaling("ntk", 2.0, 256)}, {"norm_place": "post"}):
        with pytest.raises(ValueError, match="no architecture that minigpt writes"):
            to_huggingface(tmp_path, GPT(replace(small, **change)))
    to_huggingface(tmp_path, GPT(small))
    with pytest.raises(ValueError, match="holds a model already"):
        to_huggingface(tmp_path, GPT(small))


def test_a_name_is_looked_up_in_the_hub_s_cache(tmp_path, monkeypatch):
    "Offline, with a model that was fetched before; and one that was not."
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "hub" / "models--someone--tiny"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    build_theirs("Qwen 3").save_pretrained(home / "snapshots" / commit)
    code = ("import sys; from minigpt import from_huggingface\n"
            "print(from_huggingface('someone/tiny')[0].cfg.qk_norm)\n"
            "try: from_huggingface('someone/else')\n"
            "except ValueError as e: print(e)\n"
            "try: from_huggingface(sys.argv[1] + '/typo')\n"
            "except ValueError as e: print(e)\n"
            "try: from_huggingface('no such folder/at all')\n"
            "except ValueError as e: print(e)")
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub"),
                        "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, capture_output=True,
                          text=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "True", done.stderr
    assert "someone/else is no folder here, and cannot be fetched" in lines[1]
    assert "is no folder, and no model's name" in lines[2] and "typo" in lines[2]
    assert "is no folder, and no model's name" in lines[3] and len(lines) == 4


def test_loading_needs_the_weights_and_one_shard(tmp_path):
    "160 MB of weights in shards of 10 MB, read by a fresh process that watches its memory."
    if not os.path.exists("/proc/self/status"):
        pytest.skip("this system does not say how much memory a process has used")
    cfg = transformers.LlamaConfig(
        vocab_size=2000, hidden_size=512, intermediate_size=1536, num_hidden_layers=12,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=64)
    transformers.LlamaForCausalLM(cfg).save_pretrained(tmp_path / "large", max_shard_size="10MB")
    build_theirs("LLaMA 2").save_pretrained(tmp_path / "small")
    code = ("import sys, re, torch\n"
            "from minigpt.weights import from_huggingface\n"
            "status = lambda: open('/proc/self/status').read()\n"
            "used = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', status())[1])\n"
            "from_huggingface(sys.argv[1] + '/small')     # the fixed costs\n"
            "before = used()\n"
            "model, _ = from_huggingface(sys.argv[1] + '/large')\n"
            "print((used() - before) * 1024, sum(p.nbytes for p in model.parameters()))")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True,
                          text=True)
    grown, weights = map(int, done.stdout.split())
    assert weights > 140e6
    assert grown < weights + 10e6 + 6e6, (grown, weights)


def test_every_family_is_tested():
    tested = {type(build_theirs(name)).__name__ for name in CONFIGS}
    assert {f.architecture for f in FAMILIES} <= tested


def test_a_hugging_face_folder_is_named_where_ours_is_wanted(folder):
    with pytest.raises(ValueError, match="config"):
        load_model(folder)


def test_our_folder_is_named_where_theirs_is_wanted(tmp_path):
    model = GPT(ModelConfig(vocab_size=300, n_layer=1, d_model=16, n_head=2, d_ff=16))
    save_model(tmp_path, model, train_tokenizer(["some text"], 258))
    with pytest.raises(ValueError, match="load_model"):
        from_huggingface(tmp_path)


def test_what_a_file_hides_is_refused(folder):
    "Numbers that are no plain ones, and a tensor that is there twice."
    whole = (folder / "model.safetensors").read_bytes()
    name = "model.layers.1.mlp.up_proj.weight"
    change_tensors(folder, lambda t: t.update({name: t[name].to(torch.int8)}))
    with pytest.raises(ValueError, match=f"{name} is stored as I8"):
        from_huggingface(folder)
    (folder / "model.safetensors").write_bytes(whole)
    change_tensors(folder, lambda t: t.update({name.removeprefix("model."): t[name].clone()}))
    with pytest.raises(ValueError, match="is there twice"):
        from_huggingface(folder)


def test_a_huge_context_costs_nothing(folder):
    change_config(folder, max_position_embeddings=2**30)
    assert from_huggingface(folder)[0].cfg.context_length == 2**30


def test_defaults_are_those_of_transformers(tmp_path):
    "Keys that a file leaves out; where the default would be a guess, it is an error."
    for name, keys in (("LLaMA 2", ["num_key_value_heads", "rms_norm_eps", "rope_parameters",
                                    "tie_word_embeddings", "head_dim"]),
                       ("Mixtral", ["rms_norm_eps", "rope_parameters", "sliding_window"]),
                       ("Qwen 3", ["rope_parameters"])):
        their = CONFIGS[name]().to_dict()
        for key in keys:
            their.pop(key)
        (tmp_path / "config.json").write_text(json.dumps(their))
        theirs = transformers.AutoConfig.from_pretrained(tmp_path)
        family = next(f for f in FAMILIES if f.model_type == their["model_type"])
        cfg = read_config(family, their)
        assert cfg.rope_theta == theirs.rope_parameters["rope_theta"]
        assert (cfg.norm_eps, cfg.n_kv_head, cfg.tie_embeddings, cfg.window) == (
            theirs.rms_norm_eps, theirs.num_key_value_heads, theirs.tie_word_embeddings,
            getattr(theirs, "sliding_window", None))
    their = CONFIGS["Mistral"]().to_dict()
    their.pop("sliding_window")
    with pytest.raises(ValueError, match="sliding_window is missing"):
        read_config(next(f for f in FAMILIES if f.model_type == "mistral"), their)


@pytest.mark.parametrize("rope, message", [
    ({"rope_type": "llama3"}, "'llama3' lacks its factor"),
    ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic'"),
    ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor")])
def test_an_unknown_rotation_is_named(folder, rope, message):
    change_config(folder, rope_parameters=rope)
    with pytest.raises(ValueError, match=message):
        from_huggingface(folder)


def test_a_linear_stretch_gives_the_longer_context():
    their = CONFIGS["LLaMA 2"]().to_dict()
    their["rope_parameters"] = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    cfg = read_config(FAMILIES[1], their)
    assert (cfg.context_length, cfg.rope_scaling) == (256, RopeScaling("linear", 4.0, 64))


def test_numbers_that_a_model_does_not_use_do_not_choose_its_family(tmp_path):
    small = ModelConfig(vocab_size=20, n_layer=1, d_model=16, n_head=2, d_ff=16)
    gpt2 = replace(small, norm="layer", mlp="gelu", position="learned", bias=True, n_kv_head=2)
    for cfg, kind in ((replace(small, n_expert_used=1), "llama"),
                      (replace(small, d_attention=16), "llama"),
                      (replace(gpt2, rope_theta=5e5), "gpt2")):
        assert family_for(cfg)[0].model_type == kind


def test_a_tokenizer_file_neither_cuts_nor_pads(folder):
    path = folder / "tokenizer.json"
    engine = Engine.from_file(str(path))
    before = from_huggingface(folder)[1].prompt_ids("The cat of Rosa")
    engine.enable_truncation(3)
    engine.enable_padding(length=40)
    engine.save(str(path))
    assert from_huggingface(folder)[1].prompt_ids("The cat of Rosa") == before


def test_the_markers_of_a_tokenizer_are_found(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5]}))
    assert from_huggingface(folder)[1].stop_ids == {2, 5}
    (folder / "generation_config.json").unlink()
    change_config(folder, eos_token_id=None)
    assert from_huggingface(folder)[1].stop_ids == {2}                # tokenizer_config names it
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text(encoding="utf-8")) | {"post_processor": None}
    path.write_text(json.dumps(spec), encoding="utf-8")
    plain = from_huggingface(folder)[1]
    assert plain.prompt_ids("The") == plain.encode("The") and plain.prompt_ids("") == [1]
    about = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(about | {"add_bos_token": True}))
    tokenizer = from_huggingface(folder)[1]
    assert tokenizer.prompt_ids("The") == [1, *plain.encode("The")]
    assert tokenizer.encode("half a letter \udcff") == tokenizer.encode("half a letter ?")


def test_open_model_opens_either_kind(folder, tmp_path, capsys):
    model, tokenizer = open_model(folder)
    assert isinstance(tokenizer, HuggingFaceTokenizer) and model.cfg.n_layer == 3
    assert isinstance(open_model()[1], Tokenizer)
    with pytest.raises(ValueError, match="nowhere does not exist"):
        open_model(tmp_path / "nowhere")
    arguments = ["--checkpoint", str(folder), "--max-tokens", "5", "The cat"]
    assert main(["generate", *arguments]) == 0
    assert capsys.readouterr().out.startswith("The cat")
    assert main(["tokenize", "--checkpoint", str(folder), "The cat"]) == 0
    assert capsys.readouterr().out.endswith("7 bytes\n")
    assert main(["info", "--checkpoint", str(folder)]) == 0
    assert "rope_scaling" in capsys.readouterr().out
    (folder / "tokenizer.json").unlink()
    assert main(["generate", *arguments]) == 2
    assert "holds no tokenizer.json" in capsys.readouterr().err


def test_the_tokenizer_class_is_chosen_by_the_file(folder):
    assert isinstance(from_huggingface(folder)[1], HuggingFaceTokenizer)
