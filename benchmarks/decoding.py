"""One token after another, greedily, one text at a time: ours against `transformers`."""
import tempfile

import torch

from minigpt.config import ModelConfig, count_parameters
from minigpt.inference import generate
from minigpt.model import GPT
from minigpt.sampling import temperature
from minigpt.weights import to_huggingface

from .measure import Options, Row, alternate, rows_of

SMALL = ModelConfig(4096, context_length=512, n_layer=4, n_head=4, n_kv_head=4, d_model=128,
                    d_ff=352)
LARGE = ModelConfig(50_257, context_length=512, n_layer=12, n_head=12, n_kv_head=12, d_model=768,
                    d_ff=2048)


def random_model(cfg: ModelConfig) -> GPT:
    "A model with random weights, large enough that it does not repeat one token for ever."
    torch.manual_seed(0)
    model = GPT(cfg).eval().requires_grad_(False)
    for block in model.blocks:
        for linear in (m for m in block.modules() if isinstance(m, torch.nn.Linear)):
            torch.nn.init.normal_(linear.weight, std=2 / linear.in_features ** 0.5)
    return model


def llama(model: GPT):           # a LlamaForCausalLM with the same shape and the same weights
    "The same model as `transformers` builds it."
    from transformers import AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as folder:
        to_huggingface(folder, model)
        return AutoModelForCausalLM.from_pretrained(folder).eval()


def decode_ours(model: GPT, prompt: list[int], n_tokens: int) -> list[int]:
    "Greedy, with our cache."
    return list(generate(model, prompt, n_tokens, [temperature(0)]))


def decode_theirs(model, prompt: list[int], n_tokens: int) -> list[int]:
    "Greedy, with their cache."
    from transformers import DynamicCache
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n_tokens,
                         do_sample=False, past_key_values=DynamicCache(config=model.config))
    return out[0, len(prompt):].tolist()


def rows_for(cfg: ModelConfig, n_tokens: int, rounds: int) -> list[Row]:
    "Tokens a second of both, after a prompt of 16 tokens, which is read within the time."
    model = random_model(cfg)
    theirs, prompt = llama(model), torch.arange(1, 17).tolist()
    written = decode_ours(model, prompt, n_tokens)
    if decode_theirs(theirs, prompt, n_tokens) != written:
        raise AssertionError("transformers writes other tokens with the same weights")
    size = f"{count_parameters(cfg)['total'] / 1e6:.3g} M"
    name = f"{size}: ours"
    note = f"the same {n_tokens} tokens from both, {len(set(written))} of them different"
    return rows_of(alternate({
        name: lambda: decode_ours(model, prompt, n_tokens),
        f"{size}: transformers": lambda: decode_theirs(theirs, prompt, n_tokens),
    }, rounds), n_tokens, "tokens/s", {name: note})


def measure(options: Options) -> list[Row]:
    "Both sizes."
    if options.quick:
        return rows_for(SMALL, 16, 1)
    return rows_for(SMALL, 256, 7) + rows_for(LARGE, 64, 5)
