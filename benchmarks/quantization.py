"""A model in few bits: what it costs in bits a document, what it gains in speed and memory.

python -m benchmarks.quantization             speed and memory with 124 M parameters
python -m benchmarks.quantization --quality   the shipped model in 8, 4, 3 and 2 bits
"""
import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from minigpt.cache import KVCache
from minigpt.checkpoint import load_model, save_model
from minigpt.config import GPT2, ModelConfig
from minigpt.gguf_file import from_blocks
from minigpt.inference import generate_ids
from minigpt.loss import document_loss
from minigpt.model import GPT
from minigpt.quantization import (
    Quantization,
    QuantizedKVCache,
    dequantize_model,
    joined_codes,
    model_bits,
    quantize_model,
    tables,
    to_blocks,
)
from minigpt.sampling import temperature
from minigpt.tinytown import Tinytown
from minigpt.tokenizer import Tokenizer

from .decoding import SMALL, prompt_of, random_model
from .machine import ROOT
from .measure import Options, Row, alternate, rows_of, table
from .ship import UNSEEN, share_right

MEMORY = """
import json, sys
from benchmarks.machine import peak_memory
from minigpt.checkpoint import load_model
from minigpt.inference import generate_ids
from minigpt.sampling import temperature
model, _ = load_model(sys.argv[1])
opened = peak_memory()
list(generate_ids(model, list(range(1, 17)), 64, [temperature(0)]))
print(json.dumps([opened, peak_memory()]))
"""


def memory_of(folder: Path) -> list[float]:      # MB when it is open, MB at the peak
    "A process of its own opens a folder and writes 64 tokens."
    done = subprocess.run([sys.executable, "-c", MEMORY, str(folder)], check=True, cwd=ROOT,
                          capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def gpt2_small(cfg: ModelConfig = GPT2) -> GPT:
    "GPT-2 small's shape, 124 M parameters, with random weights that keep a signal's size."
    return random_model(cfg)


def bytes_a_token(model: GPT) -> int:
    "What one token reads: all matrices once, of an embedding one row, which is nothing beside it."
    plain = [p for name, p in model.named_parameters() if not name.startswith("position.")]
    return sum(t.nbytes for t in (*tables(model).values(), *plain))


def steps_of(model: GPT, n_tokens: int, most: int) -> Callable[[], None]:
    "Each call goes on with one text, greedily, by so many tokens."
    text: Iterator[int] = iter(())

    def work() -> None:
        nonlocal text
        if len(list(islice(text, n_tokens))) < n_tokens:              # at its end, or not begun
            text = generate_ids(model, prompt_of(16), most, [temperature(0)])
            list(islice(text, n_tokens))
    return work


def speed_rows(cfg: ModelConfig, n_tokens: int, rounds: int) -> list[Row]:
    "Float32, 8 and 4 bits in turns, and a plain read of memory beside them."
    model = gpt2_small(cfg)
    models = {"float32": model, "int8": quantize_model(model, 8), "int4": quantize_model(model, 4)}
    words = Tokenizer.load(ROOT / "minigpt/shipped/tinytown/tokenizer.json")
    memory, sizes = {}, {}
    with tempfile.TemporaryDirectory() as name:
        for kind, m in models.items():
            folder = Path(name) / kind
            save_model(folder, m, words)
            sizes[kind], memory[kind] = (folder / "model.safetensors").stat().st_size, \
                memory_of(folder)
    bulk = torch.randn(150_000_000 if rounds > 1 else 1000)
    most = min(cfg.context_length - 16, n_tokens * (rounds + 2))
    times = alternate({kind: steps_of(m, n_tokens, most) for kind, m in models.items()}
                      | {"read": lambda: bulk.sum()}, rounds, pause=0.05)
    read = times.pop("read")
    bandwidth = bulk.nbytes / statistics.median(read)
    notes = {}
    for kind, m in models.items():
        bound = statistics.median(bytes_a_token(m) / (bulk.nbytes / r) / (t / n_tokens)
                                  for r, t in zip(read, times[kind]))
        notes[kind] = (f"{bytes_a_token(m) / 1e6:.0f} MB a token, {bound:.0%} of the bound at "
                       f"{bandwidth / 1e9:.0f} GB/s")
    size = f"{model.num_parameters() / 1e6:.3g} M"
    rows = rows_of(times, n_tokens, "tokens/s", notes)
    for row in rows:
        gain = statistics.median(a / b for a, b in zip(times["float32"], row.detail["seconds"]))
        rows[rows.index(row)] = replace(row, what=f"{size}: {row.what}", ours=None,
                                        note=f"{gain:.2f} times float32; {row.note}")
    for kind, (opened, peak) in memory.items():
        rows.append(Row(f"{size}: peak memory, {kind}", peak, "MB",
                        note=f"of a whole process; {opened:.0f} MB before the first token; the file"
                             f" is {sizes[kind] / 1e6:.0f} MB, "
                             f"{model_bits(models[kind]):.2f} bits a weight"))
    ids = torch.tensor([prompt_of(16)])
    works = {f"{size}: prompt of 16, {kind}": partial(m.hidden, ids) for kind, m in models.items()}
    with torch.no_grad():
        rows += [Row(what, statistics.median(t), "s") for what, t in
                 alternate(works, max(1, rounds // 3), pause=0.05).items()]
    return rows


def measure(options: Options) -> list[Row]:
    "One text, greedily, in float32, 8 and 4 bits."
    return speed_rows(SMALL, 4, 1) if options.quick else speed_rows(GPT2, 24, 15)


# ---- what it costs ------------------------------------------------------------------------------
def held_out(tokenizer, n: int) -> tuple[list[list[int]], float]:      # ids; floor, bits a document
    "Documents that no training saw, and what it cost to choose them."
    documents = list(islice(Tinytown(0).corpus(10**8, seed=UNSEEN), n))
    return ([tokenizer.encode(d.text) for d in documents],
            sum(d.bits for d in documents) / n)


def town_rows(tokenizer, seed: int, n: int = 128, length: int = 256) -> torch.Tensor:
    "Rows to calibrate on: documents of another seed, one behind the other."
    ids = [tokenizer.end_of_text]
    for document in Tinytown(0).corpus(10**8, seed=1000 + seed):
        ids += [*tokenizer.encode(document.text), tokenizer.end_of_text]
        if len(ids) >= n * length:
            return torch.tensor(ids[:n * length]).view(n, length)
    raise ValueError("the corpus ended")


def in_blocks(model: GPT, kind: str) -> GPT:      # plain numbers, quantized attribute for the bits
    "A model whose matrices went through GGUF's blocks and back."
    new = dequantize_model(quantize_model(model, 8))
    with torch.no_grad():
        for p, old in zip(new.parameters(), model.parameters()):
            p.copy_(from_blocks(to_blocks(old, kind), kind) if old.dim() == 2 else old)
    return new


class FromCodes(torch.nn.Module):
    "A model whose large products are the decoder's, which read the codes."

    def __init__(self, model: GPT):
        super().__init__()
        self.model = model
        for module in [m for m in model.modules() if type(m).__name__ == "QuantizedLinear"]:
            module.forward = partial(self.times, joined_codes([module]))

    @staticmethod
    def times(product, x: torch.Tensor) -> torch.Tensor:
        "(..., in) to (..., out)."
        return torch.from_numpy(product(x.numpy()))

    @torch.no_grad()
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        "(B, T) to (B, T, V)."
        return self.model(ids)


class WithCache(torch.nn.Module):
    "A model that keeps keys and values in a cache of a kind while it reads."

    def __init__(self, model: GPT, kind: type[KVCache]):
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        "(B, T) to (B, T, V)."
        return self.model(ids, self.kind.for_model(self.model, *ids.shape))


def choices(model: GPT, rows: dict[int, torch.Tensor]) -> Iterator[tuple[str, Callable[[], GPT]]]:
    "What is compared: a name, and how to make it."
    q, few = partial(quantize_model, model), {"rows": rows[0]}
    yield "float32", lambda: model
    for bits, group in ((8, "tensor"), (8, "row"), (8, 32), (4, "tensor"), (4, "row"), (4, 64),
                        (4, 32), (4, 16)):
        yield f"int{bits} {group}", partial(q, bits, group)
    yield "int4 32, zero-points", partial(q, 4, 32, symmetric=False)
    yield "int4 32, embedding in float32", partial(q, 4, 32, skip=["embedding"])
    yield "int4 32, embedding in 8 bits", partial(q, 4, 32, embedding_bits=8)
    for kind in ("Q8_0", "Q5_0", "Q4_1", "Q4_0"):
        yield kind, partial(in_blocks, model, kind)
    for seed, some in rows.items():
        yield f"int4 32, GPTQ, seed {seed}", partial(q, 4, 32, "gptq", some)
    yield "int4 32, GPTQ, embedding in 8 bits", partial(q, 4, 32, "gptq", **few, embedding_bits=8)
    yield "int4 row, GPTQ", partial(q, 4, "row", "gptq", **few)
    yield "int4 32, AWQ", partial(q, 4, 32, "awq", **few)
    for bits in (3, 2):
        for name, method in (("nearest", "nearest"), ("GPTQ", "gptq"), ("AWQ", "awq")):
            yield f"int{bits} 32, {name}, embedding in 8 bits", partial(
                q, bits, 32, method, **few, embedding_bits=8)
        yield f"int{bits} 32, GPTQ, zero-points, embedding in 8 bits", partial(
            q, bits, 32, "gptq", **few, embedding_bits=8, symmetric=False)
    yield "int8 row, decoder's products", lambda: FromCodes(q(8))
    yield "int4 32, decoder's products", lambda: FromCodes(q(4))
    yield "float32, cache in 8 bits", lambda: WithCache(model, QuantizedKVCache)


def quality(n_documents: int, n_questions: int) -> Iterator[dict]:
    "Bits a document, distance of the logits, answers, bits a weight and the file, for each."
    model, tokenizer = load_model()
    ids, floor = held_out(tokenizer, n_documents)
    questions = random.Random(UNSEEN).sample(Tinytown(0).questions(True), n_questions)
    rows = {seed: town_rows(tokenizer, seed) for seed in range(3)}
    some = town_rows(tokenizer, 99, 8)
    with torch.no_grad():
        exact = model(some)
    yield {"documents": n_documents, "floor": floor, "questions": n_questions}
    for name, make in choices(model, rows):
        start = time.perf_counter()
        other = make()
        seconds, found = time.perf_counter() - start, {"what": name}
        bits = document_loss(other, ids, tokenizer.end_of_text).sum().item() / math.log(2)
        with torch.no_grad():
            off = other(some) - exact
        found |= {"bits": bits / n_documents, "over": bits / n_documents - floor,
                  "logits": (off.norm() / exact.norm()).item(), "seconds": seconds}
        if isinstance(other, GPT):
            found["right"] = share_right(other, tokenizer, questions)
        notes: Quantization | None = getattr(other, "quantization", None)
        if isinstance(other, GPT):
            with tempfile.TemporaryDirectory() as folder:
                save_model(folder, other, tokenizer)
                found |= {"weight": model_bits(other),
                          "file": (Path(folder) / "model.safetensors").stat().st_size}
        if notes and notes.layers:
            mean = lambda key, notes=notes: statistics.mean(getattr(r, key) for r in notes.layers)
            found |= {key: mean(key) for key in ("nearest", "error", "changed")}
            found["tokens"] = notes.layers[0].tokens
        yield found


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.quantization",
                                     description=__doc__.splitlines()[0])
    parser.add_argument("--quality", action="store_true", help="the shipped model, in many ways")
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    args = parser.parse_args()
    if args.quality:
        for found in quality(*(20, 10) if args.quick else (300, 200)):
            print(json.dumps({k: round(v, 5) if isinstance(v, float) else v
                              for k, v in found.items()}), flush=True)
        return
    print(table("124 M parameters, one text, greedy", measure(Options(args.quick))))


if __name__ == "__main__":
    main()
