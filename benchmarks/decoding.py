"""Writing: tokens a second beside `transformers`, memory's bound, batches, prompts, memory."""
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from minigpt.cache import KVCache
from minigpt.config import ModelConfig
from minigpt.inference import Passes, Writing, generate_ids, write
from minigpt.model import GPT
from minigpt.sampling import temperature
from minigpt.sizes import count_parameters, forward_flops
from minigpt.weights import to_huggingface

from .machine import ROOT, MatmulPeak
from .measure import Options, Row, alternate, rows_of

SMALL = ModelConfig(4096, context_length=1088, n_layer=4, n_head=4, n_kv_head=4, d_model=128,
                    d_ff=352)
LARGE = ModelConfig(50_257, context_length=1088, n_layer=12, n_head=12, n_kv_head=12, d_model=768,
                    d_ff=2048)
MEMORY = """
import json, sys, torch
from benchmarks.machine import peak_memory
folder, prompt = sys.argv[2], list(range(1, 17))
if sys.argv[1] == "ours":
    from minigpt.inference import generate_ids
    from minigpt.sampling import temperature
    from minigpt.weights import from_huggingface
    model, _ = from_huggingface(folder)
    opened = peak_memory()
    list(generate_ids(model, prompt, 64, [temperature(0)]))
else:
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    opened = peak_memory()
    model.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False)
print(json.dumps([opened, peak_memory()]))
"""


def random_model(cfg: ModelConfig) -> GPT:
    "A model with random weights, large enough that it does not repeat one token for ever."
    torch.manual_seed(0)
    model = GPT(cfg).eval().requires_grad_(False)
    for block in model.blocks:
        for linear in (m for m in block.modules() if isinstance(m, torch.nn.Linear)):
            torch.nn.init.normal_(linear.weight, std=2 / linear.in_features ** 0.5)
    return model


def prompt_of(n_tokens: int, row: int = 0) -> list[int]:
    "A prompt of so many tokens, another for each row."
    return torch.randint(1, 4096, (n_tokens,),
                         generator=torch.Generator().manual_seed(row)).tolist()


def decode_ours(model: GPT, prompt: list[int], n_tokens: int) -> list[int]:
    "Greedy, with our cache."
    return list(generate_ids(model, prompt, n_tokens, [temperature(0)]))


def decode_theirs(model, prompt: list[int], n_tokens: int) -> list[int]:
    "Greedy, with their cache."
    from transformers import DynamicCache
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n_tokens,
                         do_sample=False, past_key_values=DynamicCache(config=model.config))
    return out[0, len(prompt):].tolist()


def decode_batch(model: GPT, n_rows: int, n_tokens: int) -> None:
    "Greedy, several texts at once."
    texts = [Writing(prompt_of(16, row), None, 16) for row in range(n_rows)]
    for _ in write(model, texts, n_tokens, [temperature(0)]):
        pass


def steps_at(model: GPT, length: int, n_tokens: int = 32) -> Callable[[], None]:
    "Greedy steps with so many tokens before them; the prompt is read beforehand."
    cache, passes = KVCache(model.cfg), Passes(model, 1)
    with torch.no_grad():
        model.hidden(torch.tensor([prompt_of(length)]), cache)

    def work() -> None:
        cache.truncate(length)
        token = 1
        for _ in range(n_tokens):
            with passes.threads():
                token = passes.step([token], cache).argmax().item()
    return work


def memory_of(folder: Path, whose: str) -> list[float]:      # MB when it is open, MB at the peak
    "A process of its own opens a checkpoint and writes 64 tokens."
    done = subprocess.run([sys.executable, "-c", MEMORY, whose, str(folder)], check=True, cwd=ROOT,
                          capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def rows_for(cfg: ModelConfig, n_tokens: int, rounds: int, long: int) -> list[Row]:
    "All rows of one size."
    model = random_model(cfg)
    count = count_parameters(cfg)["total"]
    size, prompt = f"{count / 1e6:.3g} M", prompt_of(16)
    with tempfile.TemporaryDirectory() as name:
        from transformers import AutoModelForCausalLM
        folder = Path(name)
        to_huggingface(folder, model)
        theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
        memory = {whose: memory_of(folder, whose) for whose in ("ours", "transformers")}
    written = decode_ours(model, prompt, n_tokens)
    if decode_theirs(theirs, prompt, n_tokens) != written:
        raise AssertionError("transformers writes other tokens with the same weights")

    bulk, peak = torch.randn(150_000_000 if n_tokens > 16 else 1000), MatmulPeak()
    names = [f"{size}: {what}" for what in ("ours", "transformers", "ours, batch 16")]
    times = alternate({
        names[0]: lambda: decode_ours(model, prompt, n_tokens),
        names[1]: lambda: decode_theirs(theirs, prompt, n_tokens),
        "read": lambda: [bulk.sum() for _ in range(5)],
    }, rounds, pause=0.05)
    bound = [4 * count / (5 * bulk.nbytes / t) for t in times["read"]]     # seconds a token
    share = statistics.median(b / (t / n_tokens) for b, t in zip(bound, times[names[0]]))
    bandwidth = 5 * bulk.nbytes / statistics.median(times.pop("read")) / 1e9
    rows = rows_of(times, n_tokens, "tokens/s", {
        names[0]: f"{share:.0%} of the bound at {bandwidth:.0f} GB/s read; the same {n_tokens} "
                  f"tokens from both, {len(set(written))} of them different"})

    alone = f"{size}: ours, again"
    times = alternate({alone: lambda: decode_batch(model, 1, n_tokens),
                       names[2]: lambda: decode_batch(model, 16, n_tokens)}, rounds, pause=0.05)
    gain = statistics.median(16 * a / b for a, b in zip(times[alone], times[names[2]]))
    rows.append(Row(names[2], 16 * n_tokens / statistics.median(times[names[2]]), "tokens/s",
                    note=f"{gain:.1f} times batch 1", detail={"seconds": times}))

    lengths = [128, 512, 1024] if long > 128 else [long]
    works = {f"{size}: ours, after {n} tokens": steps_at(model, n) for n in lengths}
    rows += [replace(row, ours=None) for row in
             rows_of(alternate(works, rounds, pause=0.05), 32, "tokens/s")]

    flops = forward_flops(cfg, long)
    ids = torch.tensor([prompt_of(long)])
    work = (flops["total"] - flops["head"] * (long - 1) // long)       # only the last one's scores

    @torch.no_grad()
    def prefill() -> None:
        model.logits(model.hidden(ids, KVCache(cfg, max_length=long))[:, -1])
    times = alternate({"prefill": prefill, "peak": lambda: [peak() for _ in range(3)]}, rounds,
                      pause=0.05)
    best = 3 * peak.flops / min(times["peak"])
    middle = statistics.median(times["prefill"])
    rows.append(Row(f"{size}: prompt of {long} tokens", long / middle, "tokens/s",
                    note=f"{work / middle / best:.0%} of the matrix-multiply peak of "
                         f"{best / 1e9:.0f} GFLOP/s", detail={"seconds": times}))
    for n in (16, long):
        asked = prompt_of(n)
        first = f"{size}: first token after {n}"
        rows += rows_of(alternate({
            f"{first}, ours": lambda asked=asked: decode_ours(model, asked, 1),
            f"{first}, transformers": lambda asked=asked: decode_theirs(theirs, asked, 1),
        }, rounds, pause=0.05), None, "s")
    for whose, (opened, most) in memory.items():
        rows.append(Row(f"{size}: peak memory, {whose}", most, "MB",
                        note=f"of a whole process; {opened:.0f} MB before the first token; "
                             f"the weights are {4 * count / 1e6:.0f} MB"))
    return rows


def measure(options: Options) -> list[Row]:
    "Both sizes, in float32."
    if options.quick:
        return rows_for(SMALL, 16, 1, 64)
    return rows_for(SMALL, 256, 7, 512) + rows_for(LARGE, 64, 5, 512)
