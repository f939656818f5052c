"Laws of adapters and of four bits, and what peft and bitsandbytes say to the same numbers."
import copy
import json
import math
import os
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import refused
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from minigpt.adapters import base_fingerprint, load_adapter, save_adapter, their_layers
from minigpt.checkpoint import (
    load_checkpoint,
    load_model,
    load_tensors,
    save_checkpoint,
    save_model,
)
from minigpt.config import ModelConfig
from minigpt.decoder import Decoder
from minigpt.inference import complete_batch, generate, stream
from minigpt.lora import (
    NF4,
    LoRALinear,
    LowRank,
    NF4Linear,
    active,
    adapter_weights,
    adapters,
    add_lora,
    dequantize_blocks,
    dequantize_nf4,
    dynamic_points,
    linears,
    lora_layers,
    lora_update,
    merge,
    nf4_bytes,
    nf4_points,
    pack,
    quantize_blocks,
    quantize_nf4,
    to_nf4,
    training_memory,
    unmerge,
    unpack,
    use,
    using,
)
from minigpt.model import GPT
from minigpt.optim import adamw_for
from minigpt.training import train
from minigpt.weights import from_huggingface, to_huggingface

LLAMA = ModelConfig(vocab_size=64, context_length=32, n_layer=2, n_head=4, n_kv_head=2, d_model=32,
                    d_ff=48)
GPT2 = replace(LLAMA, n_kv_head=4, norm="layer", mlp="gelu", position="learned", bias=True)
CONFIGS = {"GPT-2": GPT2, "LLaMA": LLAMA, "Qwen 3": replace(LLAMA, qk_norm=True),
           "untied": replace(LLAMA, tie_embeddings=False),
           "experts": replace(LLAMA, n_expert=4), "latent": replace(LLAMA, attention="latent"),
           "no family": replace(LLAMA, position="alibi", mlp="relu2", norm_place="post")}
each_kind = pytest.mark.parametrize("kind", CONFIGS)
IDS = torch.randint(0, 64, (3, 12), generator=torch.Generator().manual_seed(3))


def build(kind="LLaMA", seed=0):
    torch.manual_seed(seed)
    model = GPT(CONFIGS[kind]).eval()
    with torch.no_grad():                    # large weights: small ones hide mistakes
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def shake(model, name="default", seed=1):
    "Give an adapter some content, as if it had been trained."
    g = torch.Generator().manual_seed(seed)
    for path, p in model.named_parameters():
        if f".adapters.{name}." in path:
            p.data = 0.2 * torch.randn(p.shape, generator=g)
    return model


def adapted(kind="LLaMA", seed=0, **knobs):
    model = build(kind, seed)
    add_lora(model, **{"rank": 3, "alpha": 5, "name": "default"} | knobs)
    return shake(model, knobs.get("name", "default"))


# ---- a layer and a model ------------------------------------------------------------------------
def test_the_update_is_the_product_of_its_parts():
    A, B, x = torch.randn(2, 7), torch.randn(5, 2), torch.randn(3, 4, 7)
    torch.testing.assert_close(lora_update(x, A, B, 0.5), x @ (0.5 * B @ A).T)
    update = LowRank(nn.Linear(7, 5), rank=4, alpha=6)
    assert update.scale == 1.5 and not update.delta().any()
    assert LowRank(nn.Linear(7, 5), 4, 6, rslora=True).scale == 3
    assert update.A.abs().max() <= 1 / math.sqrt(7)


@each_kind
def test_the_start_is_the_base_to_the_bit(kind):
    model = build(kind)
    before = model(IDS)
    add_lora(model, rank=4, alpha=8, dropout=0.1)
    assert torch.equal(model(IDS), before)
    assert torch.equal(model.train()(IDS), before)           # dropout reaches the update alone


@each_kind
def test_only_the_adapter_gets_gradients(kind):
    model = adapted(kind)
    model(IDS).square().mean().backward()
    told = {name for name, p in model.named_parameters() if p.grad is not None}
    assert told == {name for name, p in model.named_parameters() if ".adapters." in name}
    per_layer = {"GPT-2": 6, "experts": 4 + 4 * 3, "latent": 4 + 3, "no family": 6}.get(kind, 7)
    assert len(told) == 2 * 2 * per_layer
    assert len([p for group in adamw_for(model)[0].param_groups
                for p in group["params"]]) == len(told)


def test_targets_are_named_as_our_parts():
    model = build()
    assert set(linears(model, ["query", "mlp"])) == {
        f"blocks.{i}.{part}" for i in (0, 1)
        for part in ("attention.query", "mlp.gate", "mlp.up", "mlp.down")}
    assert list(linears(model, ["blocks.1.mlp.up"])) == ["blocks.1.mlp.up"]
    assert len(linears(model, ["blocks.0"])) == 7
    assert not any("router" in name for name in linears(build("experts")))


def test_the_embedding_stays_untouched_where_it_is_the_head_too():
    model = adapted()
    assert type(model.embedding) is nn.Embedding and not model.embedding.weight.requires_grad
    assert not hasattr(build(), "head") and type(adapted("untied").head) is nn.Linear


def test_dropout_falls_on_the_input_of_the_update():
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(400, 6))
    layer.adapters["a"], layer.active = LowRank(layer.base, 2, 2, dropout=0.25), "a"
    nn.init.normal_(layer.adapters["a"].B)
    x = torch.ones(2000, 400)
    means = (layer(x) - layer.base(x)).mean(0)
    layer.eval()
    expected = (layer(x) - layer.base(x)).mean(0)
    assert torch.equal(layer(x), layer(x))
    torch.testing.assert_close(means, expected, rtol=0, atol=0.05)
    layer.train()
    assert not torch.equal(layer(x), layer(x))


def test_a_model_stays_in_its_mode():
    model = build()
    add_lora(model)
    assert not any(part.training for part in model.modules())
    model.train()
    add_lora(model, name="more")
    assert all(part.training for part in model.modules())


def test_updates_of_a_half_precision_base_are_float32():
    model = build().to(torch.bfloat16)
    before = model(IDS)
    add_lora(model)
    assert torch.equal(model(IDS), before) and model(IDS).dtype == torch.bfloat16
    assert {p.dtype for p in adapter_weights(model).parameters()} == {torch.float32}
    shake(model)(IDS).float().sum().backward()


# ---- switching ----------------------------------------------------------------------------------
def test_the_active_adapter_decides_and_the_base_is_still_there():
    model = build()
    bare = model(IDS)
    first = shake_new(model, "first", rank=2)
    second = shake_new(model, "second", rank=5, targets=["query", "down"])
    assert adapters(model) == ["first", "second"] and active(model) == "second"
    use(model, "first")
    assert torch.equal(model(IDS), first)
    with using(model, None):
        assert torch.equal(model(IDS), bare) and active(model) is None
        with using(model, "second"):
            assert torch.equal(model(IDS), second)
        assert torch.equal(model(IDS), bare)
    assert active(model) == "first"
    alone = build()
    shake_new(alone, "second", rank=5, targets=["query", "down"])
    assert torch.equal(alone(IDS), second)                    # beside another, or alone
    with pytest.raises(KeyError), using(model, "second"):
        raise KeyError
    assert active(model) == "first"                           # even after an error


def shake_new(model, name, **knobs):
    add_lora(model, alpha=4, name=name, **knobs)
    return shake(model, name, len(name))(IDS)


def test_only_the_active_adapter_is_trained():
    model = adapted(name="first")
    add_lora(model, name="second")
    trained = lambda: {name.split(".adapters.")[1].split(".")[0]
                       for name, p in model.named_parameters() if p.requires_grad}
    assert trained() == {"second"}
    use(model, "first")
    assert trained() == {"first"}
    use(model, None)
    assert trained() == set()


def test_a_copy_has_its_own_adapters():
    model = adapted()
    twin = copy.deepcopy(model)
    use(twin, None)
    assert active(model) == "default" and not torch.equal(model(IDS), twin(IDS))


# ---- merging ------------------------------------------------------------------------------------
@each_kind
@pytest.mark.parametrize("four_bits", [False, True])
def test_merged_equals_unmerged_and_there_is_a_way_back(kind, four_bits):
    model = build(kind)
    if four_bits:
        to_nf4(model)
    add_lora(model, rank=3, alpha=5, targets=["attention"])
    answer, state = shake(model)(IDS), base_fingerprint(model)
    merge(model)
    torch.testing.assert_close(model(IDS), answer, atol=1e-5, rtol=1e-5)
    assert {type(layer) for layer in linears(model).values()} == {nn.Linear}
    assert not any(p.requires_grad for p in model.parameters())
    unmerge(model)
    assert torch.equal(model(IDS), answer) and base_fingerprint(model) == state


def test_merging_in_half_precision_is_taken_back_to_the_bit():
    model = shake(lora_in_bfloat16())
    answer = model(IDS)
    merge(model)
    assert model(IDS).dtype == torch.bfloat16
    unmerge(model)
    assert torch.equal(model(IDS), answer)


def lora_in_bfloat16():
    model = build().to(torch.bfloat16)
    add_lora(model)
    return model


def test_a_merge_with_no_adapter_active_is_the_base():
    model, bare = adapted(), build()
    use(model, None)
    merge(model, keep=False)
    assert torch.equal(model(IDS), bare(IDS))
    assert not list(lora_layers(model))


def test_a_merged_model_is_a_plain_one(tmp_path, tokenizer):
    model = adapted()
    answer = model(IDS)
    for write in (lambda: save_model(tmp_path, model, tokenizer),
                  lambda: to_huggingface(tmp_path / "theirs", model)):
        with refused("blocks.0.attention.", "merge", "save_adapter"):
            write()
    assert not list(tmp_path.iterdir())
    merge(model)
    assert Decoder.fits(model)
    to_huggingface(tmp_path / "theirs", model)
    torch.testing.assert_close(from_huggingface(tmp_path / "theirs")[0](IDS), answer,
                               atol=1e-5, rtol=1e-5)
    four = build()
    to_nf4(four)
    for write in (lambda: save_model(tmp_path, four, tokenizer),
                  lambda: to_huggingface(tmp_path / "four", four)):
        with refused("blocks.0.attention.", "merge"):
            write()


def test_a_merged_model_is_saved_and_opened(tmp_path, tokenizer):
    cfg = replace(LLAMA, vocab_size=tokenizer.vocab_size)
    torch.manual_seed(0)
    model = GPT(cfg).eval()
    add_lora(model)
    answer = shake(model)(IDS)
    merge(model)
    save_model(tmp_path, model, tokenizer)
    torch.testing.assert_close(load_model(tmp_path)[0](IDS), answer, atol=1e-5, rtol=1e-5)


def test_while_merged_nothing_else_is_done(tmp_path):
    model = adapted()
    merge(model)
    for do in (lambda: merge(model), lambda: use(model, None), lambda: add_lora(model, name="b"),
               lambda: save_adapter(tmp_path, model), lambda: load_adapter(tmp_path, model, "c"),
               lambda: to_nf4(model), lambda: adapter_weights(model)):
        with refused("merged", "unmerge"):
            do()
    unmerge(model)
    with refused("not merged"):
        unmerge(model)
    merge(model, keep=False)
    with refused("not merged", "keep=False"):
        unmerge(model)


# ---- writing text -------------------------------------------------------------------------------
@pytest.mark.parametrize("four_bits", [False, True])
def test_text_is_that_of_the_merged_model(four_bits):
    model, tokenizer = load_model()
    if four_bits:
        to_nf4(model)
    add_lora(model, rank=4, alpha=4)
    shake(model)
    for p in adapter_weights(model).parameters():
        p.data *= 0.3
    prompts = ["Q: Where does Abel live?\nA:", "Once", ""]
    assert not Decoder.fits(model)
    batch = complete_batch(model, tokenizer, prompts, 25, seeds=[1, 2, 3])
    single = [generate(model, tokenizer, p, max_tokens=25, seed=s)
              for p, s in zip(prompts, (1, 2, 3))]
    streamed = ["".join(stream(model, tokenizer, p, max_tokens=25, seed=s))
                for p, s in zip(prompts, (1, 2, 3))]
    with using(model, None):
        bare = generate(model, tokenizer, prompts[0], max_tokens=25, seed=1)
    merge(model)
    assert Decoder.fits(model)
    fast = complete_batch(model, tokenizer, prompts, 25, seeds=[1, 2, 3])
    assert [c.text for c in batch] == [c.text for c in fast] == single == streamed
    assert bare != single[0]


# ---- training -----------------------------------------------------------------------------------
class Windows:
    def __getitem__(self, n):
        "They count upwards, each from somewhere."
        start = torch.randint(0, 64, (4, 1), generator=torch.Generator().manual_seed(n))
        return (start + torch.arange(13)) % 64


def run(model, steps, optimizers=None, first=0):
    optimizers = optimizers or adamw_for(model, lr=0.01)
    losses = [step.loss for step in train(model, Windows(), optimizers, steps, first_step=first)]
    return losses, optimizers


@pytest.mark.parametrize("four_bits", [False, True])
def test_training_moves_the_adapter_and_nothing_else(four_bits):
    model = build()
    if four_bits:
        to_nf4(model)
    before = base_fingerprint(model)
    add_lora(model)
    losses, _ = run(model, 20)
    assert losses[-1] < losses[0] and base_fingerprint(model) == before
    assert all(layer.adapters["default"].B.any() for layer in lora_layers(model).values())


@pytest.mark.parametrize("four_bits", [False, True])
def test_a_checkpoint_of_the_adapter_alone_goes_on_as_if_nothing_had_happened(tmp_path, four_bits):
    def new():
        model = build()
        if four_bits:
            to_nf4(model)
        torch.manual_seed(5)
        add_lora(model, rank=2)
        return model

    model = new()
    _, optimizers = run(model, 4)
    path = save_checkpoint(tmp_path, 4, adapter_weights(model), optimizers)
    expected, _ = run(model, 8, optimizers, first=4)
    again = new()
    fresh = adamw_for(again, lr=0.01)
    assert load_checkpoint(path, adapter_weights(again), fresh)["step"] == 4
    assert run(again, 8, fresh, first=4)[0] == expected
    kept = load_tensors(path)[0]
    n = sum(p.numel() for p in adapter_weights(model).parameters())
    assert sum(t.numel() for name, t in kept.items() if name.startswith("model.")) == n
    add_lora(again, rank=3, name="other")
    with refused("another size"):
        load_checkpoint(path, adapter_weights(again))


# ---- files --------------------------------------------------------------------------------------
@each_kind
@pytest.mark.parametrize("knobs", [
    {}, {"rslora": True, "dropout": 0.1, "alpha": 7.5}, {"targets": ["query", "down"]},
    {"targets": ["out"], "alpha": 2}])
def test_an_adapter_comes_back_from_its_file(kind, knobs, tmp_path):
    model = adapted(kind, **knobs)
    save_adapter(tmp_path, model)
    again = build(kind)
    load_adapter(tmp_path, again, "mine")
    assert torch.equal(again(IDS), model(IDS)) and active(again) == "mine"
    ours = {path: layer.adapters["default"] for path, layer in lora_layers(model).items()}
    theirs = {path: layer.adapters["mine"] for path, layer in lora_layers(again).items()}
    assert ours.keys() == theirs.keys()
    for path, update in ours.items():
        for what in ("alpha", "rank", "dropout", "rslora"):
            assert getattr(update, what) == getattr(theirs[path], what)
        assert torch.equal(update.A, theirs[path].A) and torch.equal(update.B, theirs[path].B)
    save_adapter(tmp_path / "again", again)
    one, two = ((folder / "adapter_config.json").read_text()
                for folder in (tmp_path, tmp_path / "again"))
    assert one == two
    one, two = (load_file(folder / "adapter_model.safetensors")
                for folder in (tmp_path, tmp_path / "again"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_an_adapter_over_four_bits_comes_back(tmp_path):
    model, again = build(), build()
    to_nf4(model), to_nf4(again)
    add_lora(model)
    answer = shake(model)(IDS)
    save_adapter(tmp_path, model)
    load_adapter(tmp_path, again)
    assert torch.equal(again(IDS), answer)
    with refused("other weights", "any_base=True"):
        load_adapter(tmp_path, build())
    load_adapter(tmp_path, whole := build(), any_base=True)
    assert (whole(IDS) - answer).std() < 0.3 * answer.std()


def test_names_are_those_of_the_exported_model(tmp_path):
    save_adapter(tmp_path, adapted("GPT-2", targets=["query", "value", "up"]))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    shapes = {name.removeprefix("base_model.model.transformer.h.0."): tuple(t.shape)
              for name, t in tensors.items() if ".h.0." in name}
    assert shapes == {"attn.c_attn.lora_A.weight": (6, 32), "attn.c_attn.lora_B.weight": (96, 6),
                      "mlp.c_fc.lora_A.weight": (3, 32), "mlp.c_fc.lora_B.weight": (48, 3)}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["c_attn", "c_fc"] and config["fan_in_fan_out"] is True
    assert config["rank_pattern"]["transformer.h.0.attn.c_attn"] == 6
    assert config["alpha_pattern"]["transformer.h.0.attn.c_attn"] == 10
    assert not tensors["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"][32:64].any()
    save_adapter(tmp_path, adapted("GPT-2", targets=["attention.out"]))   # there are two c_proj
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == [f"transformer.h.{i}.attn.c_proj" for i in (0, 1)]
    assert "blocks.0.attention.unfold" in their_layers(CONFIGS["latent"])


def test_a_write_that_fails_leaves_the_old_adapter(tmp_path, monkeypatch):
    model = adapted()
    save_adapter(tmp_path, model)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    shake(model, seed=9)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="untouched"):
        save_adapter(tmp_path, model)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# ---- what is refused ----------------------------------------------------------------------------
def test_numbers_and_names_that_cannot_be_are_refused():
    model = build()
    for knobs, words in (({"rank": 0}, ("rank=0", "at least 1")),
                         ({"rank": 2.0}, ("rank=2.0", "whole number")),
                         ({"alpha": 0}, ("alpha=0", "above 0")),
                         ({"alpha": -1.0}, ("alpha=-1.0", "above 0")),
                         ({"alpha": math.nan}, ("alpha=nan",)),
                         ({"dropout": 1.0}, ("dropout=1.0", "less than 1")),
                         ({"targets": ["querry"]}, ("'querry'", "query, key, value, out, gate")),
                         ({"targets": ["head"]}, ("'head'", "choose from")),
                         ({"targets": "query"}, ("'query'", "list")),
                         ({"targets": []}, ("[]", "list")),
                         ({"name": "a.b"}, ("'a.b'", "letters")),
                         ({"name": "keys"}, ("'keys'", "letters")), ({"name": ""}, ("''",))):
        with refused(*words):
            add_lora(model, **knobs)
    assert not lora_layers(model) and all(p.requires_grad for p in model.parameters())
    add_lora(model, name="mine")
    with refused("'mine'", "taken"):
        add_lora(model, name="mine")
    for do in (lambda: use(model, "other"), lambda: using(model, "other").__enter__(),
               lambda: save_adapter("nowhere", model, "other"),
               lambda: adapter_weights(model, "other")):
        with refused("'other'", "mine"):
            do()
    with refused("to_nf4(model), then add_lora"):
        to_nf4(model)
    with refused("None", "none"):
        save_adapter("nowhere", build())


def test_an_adapter_of_another_base_is_refused(tmp_path):
    save_adapter(tmp_path, adapted())
    for other, words in ((build(seed=1), ("other weights", "any_base=True")),
                         (GPT(replace(LLAMA, d_model=64)), ("lora_A", "(32, 3)", "(64, 3)")),
                         (GPT(replace(LLAMA, n_layer=1)), ("layers.1.", "open the base")),
                         (build("GPT-2"), ("down_proj", "c_attn", "open the base")),
                         (build("latent"), ("down_proj", "blocks.0"))):
        before = other(IDS)
        with refused(str(tmp_path), *words):
            load_adapter(tmp_path, other)
        assert not lora_layers(other) and torch.equal(other(IDS), before)
    half = build().to(torch.bfloat16)
    with refused("other weights"):
        load_adapter(tmp_path, half)
    load_adapter(tmp_path, half, any_base=True)
    taken = adapted()
    with refused("'default'", "taken"):
        load_adapter(tmp_path, taken)


def test_wrong_files_are_refused_in_a_sentence(tmp_path):
    good = tmp_path / "good"
    save_adapter(good, adapted())
    config = json.loads((good / "adapter_config.json").read_text())
    with refused("adapter_config.json"):
        load_adapter(tmp_path / "nowhere", build())

    def with_config(**changes):
        (good / "adapter_config.json").write_text(json.dumps(config | changes))
        load_adapter(good, build())

    for changes, words in (
            ({"peft_type": "IA3"}, ("'IA3'", "LORA")), ({"use_dora": True}, ("use_dora",)),
            ({"bias": "all"}, ("bias", "'all'")), ({"modules_to_save": ["lm_head"]}, ("lm_head",)),
            ({"layer_replication": [[0, 2]]}, ("layer_replication",)),
            ({"init_lora_weights": "pissa"}, ("pissa", "changes the base")),
            ({"r": 0}, ("r=0",)), ({"r": 7}, ("r=7", "lora_A")), ({"lora_alpha": -1}, ("-1",)),
            ({"lora_dropout": 2}, ("2",)), ({"rank_pattern": []}, ("rank_pattern",)),
            ({"something_new": 3}, ("something_new",))):
        with refused(*words):
            with_config(**changes)
    with_config(peft_version="1.0", use_dora=False, layers_pattern=None, loftq_config={})
    (good / "adapter_config.json").write_text("no json")
    with refused("adapter_config.json"):
        load_adapter(good, build())
    (good / "adapter_config.json").write_text(json.dumps(config))
    path = good / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with refused("damaged"):
        load_adapter(good, build())
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with refused("has changed", "SHA-256"):
        load_adapter(good, build())
    tensors = load_file(path)
    save_file(tensors | {"base_model.model.x.lora_magnitude_vector": torch.ones(2)}, path)
    with refused("lora_magnitude_vector", "plain LoRA"):
        load_adapter(good, build())
    save_file({}, path)
    with refused("nothing"):
        load_adapter(good, build())
    path.unlink()
    with refused("adapter_model.safetensors", "pickle"):
        load_adapter(good, build())


# ---- four bits ----------------------------------------------------------------------------------
def test_the_points_are_quantiles_of_a_normal_distribution():
    tail = 1 - (1 / 30 + 1 / 32) / 2
    above, below = (torch.special.ndtri(torch.linspace(tail, 0.5, n + 1).double()[:-1])
                    for n in (8, 7))
    expected = torch.cat((-below, torch.zeros(1), above.flip(0))) / above.max()
    torch.testing.assert_close(nf4_points(), expected.float(), atol=1e-6, rtol=0)
    assert NF4[0] == -1 and NF4[7] == 0 and NF4[15] == 1
    assert len(dynamic_points()) == len(dynamic_points().unique()) == 256


@given(st.integers(1, 700), st.integers(0, 9))
def test_every_number_goes_to_its_nearest_point(n, seed):
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    parts = quantize_nf4(x)
    assert sum(t.nbytes for t in parts.values()) == nf4_bytes(n)
    back = dequantize_nf4(parts, n)
    assert back.shape == x.shape
    widest = max(b - a for a, b in zip(NF4, NF4[1:])) / 2
    for a in range(0, n, 64):                # half a step, and what the scale itself lost
        top = x[a:a + 64].abs().max()
        assert (back - x)[a:a + 64].abs().max() <= top * (widest + 0.02) + 0.05


@given(st.lists(st.integers(0, 15), max_size=30))
def test_two_codes_a_byte_and_back(codes):
    codes = torch.tensor(codes, dtype=torch.uint8)
    assert torch.equal(unpack(pack(codes), len(codes)), codes)
    assert pack(codes).numel() == (len(codes) + 1) // 2


def test_zeros_stay_zeros_and_nothing_becomes_nan():
    back = dequantize_nf4(quantize_nf4(torch.zeros(200)), 200)
    assert torch.equal(back, torch.zeros(200))
    x = torch.cat((torch.zeros(64), torch.ones(64)))
    assert dequantize_nf4(quantize_nf4(x), 128)[:64].abs().max() == 0


def test_bits_a_weight():
    n = 4096 * 4096
    parts = quantize_nf4(torch.randn(n, generator=torch.Generator().manual_seed(0)))
    bits = 8 * sum(t.nbytes for t in parts.values()) / n
    assert bits == 4 + 8 / 64 + 32 / (64 * 256) + 32 / n
    assert round(bits, 3) == 4.127


def test_a_layer_of_four_bits_is_the_layer_of_its_weights():
    torch.manual_seed(0)
    layer = NF4Linear(nn.Linear(96, 40))
    plain = nn.Linear(96, 40)
    plain.weight, plain.bias = nn.Parameter(layer.weight), layer.bias
    x = torch.randn(5, 96, requires_grad=True)
    (mine,) = torch.autograd.grad(layer(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(plain(x).square().sum(), x)
    torch.testing.assert_close(layer(x), plain(x))
    torch.testing.assert_close(mine, theirs)
    assert "weight" not in dict(layer.named_parameters())


def test_a_cast_does_not_hurt_the_codes():
    model = build()
    to_nf4(model)
    layer = model.blocks[0].mlp.up
    before = layer.weight
    model.to(torch.bfloat16)
    assert torch.equal(layer.weight, before) and model(IDS).dtype == torch.bfloat16


@pytest.mark.parametrize("four_bits", [False, True])
def test_mixed_precision_trains(four_bits):
    model = build()
    if four_bits:
        to_nf4(model)
    add_lora(model)
    steps = list(train(model, Windows(), adamw_for(model, lr=0.01), 15, precision="bfloat16"))
    assert steps[-1].loss < steps[0].loss


def test_four_bits_leave_embeddings_norms_and_the_router():
    model = build("experts")
    to_nf4(model)
    kinds = {name: type(part) for name, part in model.named_modules()}
    assert kinds["blocks.0.mlp.router"] is nn.Linear and kinds["embedding"] is nn.Embedding
    assert kinds["blocks.0.mlp.experts.0.up"] is kinds["blocks.1.attention.out"] is NF4Linear
    state = build("experts")
    to_nf4(state)
    state.load_state_dict(model.state_dict())
    assert torch.equal(state(IDS), model(IDS))


# ---- memory -------------------------------------------------------------------------------------
@each_kind
@pytest.mark.parametrize("how", [{}, {"rank": 3}, {"rank": 2, "targets": ["query"]},
                                 {"rank": 3, "nf4": True}])
def test_the_formula_counts_the_real_bytes(kind, how):
    model = build(kind)
    if how.get("nf4"):
        to_nf4(model)
    if how:
        add_lora(model, how["rank"], targets=how.get("targets"))
    optimizers = adamw_for(model)
    list(train(model, Windows(), optimizers, 1))
    for p in model.parameters():             # an expert that no token chose has no gradient yet
        if p.requires_grad and p.grad is None:
            p.grad = torch.zeros_like(p)
    optimizers[0].step()
    seen = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.state_dict().values())}
    assert training_memory(model.cfg, **how) == {
        "weights": sum(seen.values()),
        "gradients": sum(p.grad.nbytes for p in model.parameters() if p.grad is not None),
        "optimizer": sum(t.nbytes for state in optimizers[0].state.values()
                         for key, t in state.items() if key != "step")}


def test_seven_billion_in_four_bits():
    cfg = ModelConfig(vocab_size=32_000, context_length=4096, n_layer=32, n_head=32, n_kv_head=32,
                      d_model=4096, d_ff=11_008, tie_embeddings=False)
    full, lora, qlora = (sum(training_memory(cfg, bytes_per_number=2, **knobs).values()) for knobs
                         in ({}, {"rank": 16}, {"rank": 16, "nf4": True}))
    assert round(full / 1e9, 1) == 53.9 and round(lora / 1e9, 1) == 14.1
    assert round(qlora / 1e9, 1) == 4.5


# ---- peft ---------------------------------------------------------------------------------------
WHOLE = {"GPT-2": ["c_attn", "c_proj", "c_fc"],
         "LLaMA": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
WHOLE |= {"Qwen 3": WHOLE["LLaMA"], "untied": WHOLE["LLaMA"]}
each_family = pytest.mark.parametrize("kind", WHOLE)


@pytest.fixture(scope="module")
def peft():
    pytest.importorskip("transformers")
    return pytest.importorskip("peft", reason="pip install peft: the adapters of the ecosystem")


def exported(model, folder):
    import transformers
    to_huggingface(folder, model)
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def theirs_with(peft, model, folder, **knobs):
    "peft's own adapter on the exported model, with some content."
    kind = next(k for k, cfg in CONFIGS.items() if cfg == model.cfg)
    knobs = {"r": 3, "lora_alpha": 5, "target_modules": WHOLE[kind],
             "fan_in_fan_out": kind == "GPT-2"} | knobs
    theirs = peft.get_peft_model(exported(model, folder),
                                 peft.LoraConfig(task_type="CAUSAL_LM", **knobs)).eval()
    g = torch.Generator().manual_seed(2)
    for name, p in theirs.named_parameters():
        if "lora_" in name:
            p.data = 0.2 * torch.randn(p.shape, generator=g)
    return theirs


KNOBS = [{}, {"use_rslora": True}, {"alpha_pattern": {"down_proj": 2, "c_fc": 9}},
         {"rank_pattern": {"down_proj": 5, r"h\.1\.mlp\.c_proj": 4},
                                    "alpha_pattern": {"down_proj": 2, "c_fc": 9}},
         {"target_modules": ["o_proj", "c_attn", "v_proj"]}, {"layers_to_transform": [1]}]


@each_family
@pytest.mark.parametrize("knobs", KNOBS, ids=["plain", "rslora", "alphas", "ranks", "some", "one"])
def test_we_open_theirs(peft, kind, knobs, tmp_path):
    model = build(kind)
    theirs = theirs_with(peft, model, tmp_path / "base", **knobs)
    theirs.save_pretrained(tmp_path / "adapter")
    load_adapter(tmp_path / "adapter", model)
    torch.testing.assert_close(model(IDS), theirs(IDS).logits, atol=2e-5, rtol=1e-5)
    save_adapter(tmp_path / "ours", model)
    again = peft.PeftModel.from_pretrained(exported(build(kind), tmp_path / "new"),
                                           tmp_path / "ours")
    torch.testing.assert_close(again(IDS).logits, theirs(IDS).logits, atol=2e-5, rtol=1e-5)
    merge(model)
    torch.testing.assert_close(model(IDS), theirs.merge_and_unload()(IDS).logits,
                               atol=2e-5, rtol=1e-5)


@each_family
@pytest.mark.parametrize("knobs", [
    {}, {"rslora": True}, {"targets": ["query", "down"]}, {"targets": ["attention.out"]},
    {"targets": ["blocks.1"]}], ids=["plain", "rslora", "some", "out", "one"])
def test_they_open_ours(peft, kind, knobs, tmp_path):
    model = adapted(kind, **knobs)
    answer = model(IDS)
    save_adapter(tmp_path / "adapter", model)
    theirs = peft.PeftModel.from_pretrained(exported(build(kind), tmp_path / "base"),
                                            tmp_path / "adapter")
    torch.testing.assert_close(theirs(IDS).logits, answer, atol=2e-5, rtol=1e-5)
    theirs.save_pretrained(tmp_path / "back")      # and we open what they make of it
    again = build(kind)
    load_adapter(tmp_path / "back", again)
    torch.testing.assert_close(again(IDS), answer, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("targets", [["attention"], ["mlp"], None])
def test_experts_reach_peft_where_theirs_are_one_tensor(peft, targets, tmp_path):
    "peft joins the experts of Mixtral on its way in; what it writes then is no plain LoRA."
    model = adapted("experts", targets=targets)
    save_adapter(tmp_path / "adapter", model)
    theirs = peft.PeftModel.from_pretrained(exported(build("experts"), tmp_path / "base"),
                                            tmp_path / "adapter")
    torch.testing.assert_close(theirs(IDS).logits, model(IDS), atol=2e-5, rtol=1e-5)
    if targets != ["attention"]:
        theirs.save_pretrained(tmp_path / "back")
        with refused("target_parameters", "plain LoRA"):
            load_adapter(tmp_path / "back", build("experts"))


def test_peft_takes_our_own_class_under_our_own_names(peft, tmp_path):
    model = adapted("no family")
    save_adapter(tmp_path, model)
    theirs = peft.PeftModel.from_pretrained(build("no family"), tmp_path)
    torch.testing.assert_close(theirs.base_model.model(IDS), model(IDS), atol=1e-5, rtol=1e-5)


def test_an_adapter_over_four_bits_is_theirs_over_the_dequantized_base(peft, tmp_path):
    model, plain = build(), build()
    to_nf4(model), to_nf4(plain)
    add_lora(model)
    answer = shake(model)(IDS)
    save_adapter(tmp_path / "adapter", model)
    merge(plain, keep=False)
    theirs = peft.PeftModel.from_pretrained(exported(plain, tmp_path / "base"),
                                            tmp_path / "adapter")
    torch.testing.assert_close(theirs(IDS).logits, answer, atol=2e-5, rtol=1e-5)


def language_loss(logits):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


@pytest.mark.parametrize("kind", ["LLaMA", "Qwen 3"])
def test_gradients_and_ten_steps_are_those_of_peft(peft, kind, tmp_path):
    model = build(kind)
    theirs = theirs_with(peft, model, tmp_path / "base", use_rslora=True)
    for name, p in theirs.named_parameters():
        if "lora_B" in name:
            p.data.zero_()                                         # as training begins
    theirs.save_pretrained(tmp_path / "adapter")
    load_adapter(tmp_path / "adapter", model)
    place = {f"base_model.model.{name}.lora_{leaf}.default.weight": (parts[0], leaf)
             for name, parts in their_layers(model.cfg).items() for leaf in "AB"}
    pairs = {name: (getattr(model.get_submodule(place[name][0]).adapters["default"],
                            place[name][1]), p)
             for name, p in theirs.named_parameters() if p.requires_grad}
    assert len(pairs) == 2 * 7 * 2 == sum(p.requires_grad for p in model.parameters())
    ours, other = (torch.optim.AdamW([pair[i] for pair in pairs.values()], lr=0.01) for i in (0, 1))
    for _ in range(10):
        for optimizer, loss in ((ours, language_loss(model(IDS))),
                                (other, language_loss(theirs(IDS).logits))):
            optimizer.zero_grad()
            loss.backward()
        for mine, p in pairs.values():
            torch.testing.assert_close(mine.grad, p.grad, atol=1e-5, rtol=1e-3)
        ours.step(), other.step()
    for mine, p in pairs.values():
        torch.testing.assert_close(mine, p, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(model(IDS), theirs(IDS).logits, atol=1e-4, rtol=1e-4)


def test_a_fresh_adapter_is_drawn_as_theirs(peft, tmp_path):
    theirs = peft.get_peft_model(exported(build(), tmp_path), peft.LoraConfig(
        r=8, target_modules=["q_proj"]))
    model = build()
    add_lora(model, rank=8, targets=["query"])
    for a, b in ((next(p for n, p in theirs.named_parameters() if "lora_A" in n),
                  lora_layers(model)["blocks.0.attention.query"].adapters["default"].A),):
        assert a.shape == b.shape
        bound = 1 / math.sqrt(32)
        assert max(a.abs().max(), b.abs().max()) <= bound < 1.1 * min(a.abs().max(), b.abs().max())


# ---- bitsandbytes -------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def functional():
    pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes: NF4 as QLoRA has it")
    from bitsandbytes import functional
    return functional


# Flattened: on the CPU it is wrong where the last dimension is no multiple of 64.
@pytest.mark.parametrize("n", [64, 128, 64 * 256, 192 * 384, 64 * 1000, 100, 1000])
@pytest.mark.parametrize("double", [False, True])
def test_codes_and_values_are_those_of_bitsandbytes(functional, n, double):
    x = torch.randn(n, generator=torch.Generator().manual_seed(n)) * 0.02
    packed, state = functional.quantize_4bit(x, blocksize=64, quant_type="nf4",
                                             compress_statistics=double)
    parts = quantize_nf4(x)
    theirs = functional.dequantize_4bit(packed, state).flatten()
    assert torch.equal(parts["codes"], packed.flatten())
    codes, scales = quantize_blocks(x, nf4_points(), 64)
    if double:
        offset, *_ = exact = parts["coarse"].view(torch.float32)
        assert torch.equal(exact[1:], state.state2.absmax) and offset == state.offset
        theirs_as_ours = {**parts, "scale_codes": state.absmax.flatten()}
        assert torch.equal(dequantize_nf4(theirs_as_ours, n), theirs)
        # Of the scales' own codes about one in a thousand differs, and there ours lies nearer.
        size = exact[1:].repeat_interleave(256)[:len(scales)]
        value = (scales - offset) / size.clamp(min=1e-38)
        far = [(dynamic_points()[c.int()] - value).abs() * size
               for c in (parts["scale_codes"], state.absmax.flatten())]
        other = (parts["scale_codes"] != state.absmax.flatten()) & (size > 0)
        assert (far[0] <= far[1]).all() and other.sum() <= max(1, len(scales) // 200)
    else:
        assert torch.equal(scales, state.absmax)
        assert torch.equal(dequantize_blocks(codes, scales, nf4_points(), 64), theirs)
    assert torch.equal(nf4_points(), state.code)
    assert torch.equal(dynamic_points(), functional.create_dynamic_map())
