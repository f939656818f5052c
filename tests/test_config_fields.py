"A config of another library is obeyed or refused, field by field; long contexts agree as well."
import json
import os
from dataclasses import fields

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file, save_model

from minigpt.position import RotaryPosition
from minigpt.weights import FAMILIES, from_huggingface, read_config

V, T = 60, 24
SIZES = dict(vocab_size=V, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
             bos_token_id=1, eos_token_id=2)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
        "original_max_position_embeddings": 16}
CONFIGS = {
    "gpt2": transformers.GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=32,
                                    bos_token_id=1, eos_token_id=2),
    "llama": transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "mistral": transformers.MistralConfig(**SIZES, sliding_window=5),
    "qwen2": transformers.Qwen2Config(**SIZES, rope_parameters=YARN, tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=12),
    "mixtral": transformers.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
}
STRANGE = {                               # fields of other classes, of other years, and of nobody
    "is_causal": [False, None, True], "is_decoder": [True], "layer_types": [
        ["full_attention", "sliding_attention"], ["full_attention"] * 2,
        ["sliding_attention"] * 2, ["full_attention"], [], "full_attention"],
    "per_layer_config": [{"0": {"sliding_window": 3}}], "sliding_window": [3, None, 0, "3"],
    "hidden_size": [16, 32], "n_embd": [16], "num_experts": [2], "num_attention_heads": [2, 8],
    "max_position_embeddings": [8, 16], "head_dim": [4, 8, 16, 0, "8", [8], True, None],
    "attention_bias": [True, False, 0, None], "mlp_bias": [True], "use_sliding_window": [True],
    "original_max_position_embeddings": [8, 16], "partial_rotary_factor": [0.5, 1.0, "1", None],
    "rope_theta": [100.0, 5e5, "1e4", None, 0, 1, 10**400], "attention_chunk_size": [3],
    "scale_attn_weights": [False], "pretraining_tp": [2], "n_ctx": [7], "a_new_switch": [3, None],
    "transformers_weights": ["other.safetensors"], "quantization_config": [{"bits": 4}],
    "model_type": ["llama", "mistral", "qwen2", "gpt2"], "dtype": ["bfloat16"], "eos_token_id": [7],
    "rope_scaling": [
        None, {}, [], "linear", {"type": "linear", "factor": 2.0}, {"rope_type": "dynamic"},
        {"type": "linear", "factor": "2.0"}, {"type": "linear"}, {"rope_type": "default"},
        {"type": "linear", "factor": 0.5}, {"type": "linear", "factor": True},
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 77.0}, {"rope_theta": 33.0},
        {"rope_type": "default", "full_attention": {"rope_theta": 50.0}},
        {"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}},
        *({key: value for key, value in LLAMA3.items() if key != left_out} for left_out in LLAMA3),
        *(LLAMA3 | {key: f"{value}"} for key, value in LLAMA3.items() if key != "rope_type"),
        LLAMA3 | {"low_freq_factor": 4.0}, LLAMA3 | {"attention_factor": 2.0},
        LLAMA3 | {"partial_rotary_factor": 0.5},
        *(YARN | more for more in (
            {}, {"factor": 3.0}, {"factor": None}, {"factor": "4.0"}, {"mscale": 1.0},
            {"mscale": None}, {"truncate": False}, {"truncate": None}, {"attention_factor": 1.5},
            {"attention_factor": "1.5"}, {"beta_fast": 8, "beta_slow": 2}, {"beta_fast": None},
            {"beta_fast": 0.5}, {"original_max_position_embeddings": 1}, {"beta_slow": 0},
            {"rope_theta": 1},
            {"original_max_position_embeddings": 100_000}, {"type": "linear"})),
        {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 4,
         "long_factor": [2.0] * 4, "original_max_position_embeddings": 16}],
}


def others(value):
    "Other legal values of a field, and some that are none."
    if isinstance(value, bool):
        return [not value, None, str(value).lower(), int(value)]
    if isinstance(value, int):
        return [value + 1, 2 * value, max(1, value // 2), 0, None, str(value), float(value)]
    if isinstance(value, float):
        return [2 * value + 0.1, 0.0, None, str(value)]
    if isinstance(value, str):
        return ["relu", "gelu", None, "silu", "gelu_pytorch_tanh"]
    return [5, 1, 0.5, True, "5", [3], {"0": 1}]


def changes(config):
    "Every field of a config's class with another value, and the strange ones."
    now = config.to_dict()
    names = {f.name for f in fields(type(config))} - {"transformers_version"}
    for name in sorted(names | set(now)):
        yield from ((name, value) for value in others(now.get(name)))
    for name, values in STRANGE.items():
        yield from ((name, value) for value in values)


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request, tmp_path_factory):
    "A small model with large weights: small ones hide mistakes."
    path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(CONFIGS[request.param])
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.2 * torch.randn_like(p))
    theirs.save_pretrained(path)
    return path


@torch.no_grad()
def test_a_changed_field_is_obeyed_or_refused(folder, tmp_path):
    config = transformers.AutoConfig.from_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    ids = torch.randint(3, V, (2, T), generator=torch.Generator().manual_seed(0))
    os.link(folder / "model.safetensors", tmp_path / "model.safetensors")
    obeyed = refused = 0
    wrong = []
    for name, value in changes(config):
        (tmp_path / "config.json").write_text(json.dumps(written | {name: value}))
        try:
            ours = from_huggingface(tmp_path)[0]
        except ValueError as e:
            assert "\n" not in str(e) and len(str(e)) < 500
            refused += 1
            continue
        try:
            theirs = transformers.AutoModelForCausalLM.from_pretrained(
                tmp_path, dtype=torch.float32, attn_implementation="sdpa").eval()
            expected = theirs(ids).logits
        except Exception:                 # what they refuse we may still read
            continue
        n = min(T, ours.cfg.context_length)
        off = (ours(ids[:, :n]) - expected[:, :n]).abs().max().item()
        obeyed += 1
        if not off < 2e-4:
            wrong.append((name, value, off))
    assert not wrong
    assert obeyed > 50 and refused > 90, (obeyed, refused)


# --- rotary positions

ROPES = {
    "plain": {"rope_type": "default", "rope_theta": 1e4},
    "slow": {"rope_type": "default", "rope_theta": 500_000.0},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    "llama3": LLAMA3 | {"original_max_position_embeddings": 8192},
    "llama3, by 7": LLAMA3 | {"original_max_position_embeddings": 1000, "factor": 7.0},
    "yarn": YARN | {"original_max_position_embeddings": 2048},
    "yarn, by 3": YARN | {"factor": 3.0, "beta_fast": 20.0, "beta_slow": 2.0},
    "yarn, hardly trained": YARN | {"original_max_position_embeddings": 1},
    "yarn, long": YARN | {"original_max_position_embeddings": 10**6, "factor": 1.5},
}


@pytest.mark.parametrize("d_head", [8, 48, 64, 128, 256])
@pytest.mark.parametrize("name", ROPES)
def test_clocks_equal_theirs_to_the_bit(name, d_head):
    config = transformers.LlamaConfig(**SIZES | {"max_position_embeddings": 8192}, head_dim=d_head,
                                      rope_parameters=dict(ROPES[name]))
    theirs = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    ours = RotaryPosition(read_config(FAMILIES[1], config.to_dict()))
    assert torch.equal(ours.frequencies, theirs.inv_freq)
    assert ours.magnitude == theirs.attention_scaling
    positions = torch.arange(8192)
    expected = theirs(torch.zeros(1), positions[None])
    # The clocks are equal to the bit. Their cosines need not be: some libraries choose how to take
    # those of eight or sixteen numbers by the largest, so a last bit depends on the neighbours.
    for table, turned in zip(ours.rotation(positions), expected):
        torch.testing.assert_close(torch.cat((table, table), dim=-1), turned[0],
                                   atol=2.0**-22, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["plain", "llama3", "yarn"])
def test_logits_equal_theirs_in_a_long_context(name, tmp_path):
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        **SIZES | {"max_position_embeddings": 8192, "num_attention_heads": 1,
                   "num_key_value_heads": 1}, head_dim=128,
        rope_parameters=dict(ROPES[name]))).eval()
    for layer in theirs.model.layers:                 # sharp attention, far into the past
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            part.weight.normal_(std=0.15)
    theirs.save_pretrained(tmp_path)
    ours = from_huggingface(tmp_path)[0]
    ids = torch.randint(3, V, (1, 8192))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=2e-5, rtol=2e-5)


# --- tied weights

@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_tied_weights_open_under_the_head_s_name_alone(name, tmp_path):
    theirs = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    theirs.save_pretrained(tmp_path)
    save_model(theirs, str(tmp_path / "model.safetensors"))
    assert "lm_head.weight" in load_file(tmp_path / "model.safetensors")
    ours = from_huggingface(tmp_path)[0]
    ids = torch.randint(3, V, (2, T))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("lm_head.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks .*(wte|embed_tokens).weight"):
        from_huggingface(tmp_path)
