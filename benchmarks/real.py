"""A real model, SmolLM2-135M: ours beside transformers and llama.cpp, from the same file.

Each is measured twice, on the idle machine and beside two processes that calculate all the time:
a decoder whose threads wait in a loop for each other is fast alone and collapses in company.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path

import torch

from minigpt.checkpoint import model_path
from minigpt.export import to_gguf
from minigpt.gguf_file import open_gguf
from minigpt.quantization import quantize_model

from .decoding import decode_ours, decode_theirs
from .machine import ROOT
from .measure import Options, Row, alternate, rows_of

BEGUN = "Once upon a time, a goat stood in front of the town hall and did not want to go"
OPENING = """
import json, sys, time
from benchmarks.machine import peak_memory
from minigpt.gguf_file import open_gguf
before, start = peak_memory(), time.perf_counter()
open_gguf(sys.argv[1])
print(json.dumps([time.perf_counter() - start, peak_memory() - before]))
"""
BUSY = "while True: sum(i * i for i in range(10_000))"


@contextmanager
def beside_busy(n: int) -> Iterator[None]:
    "So many processes calculate as long as this lasts."
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(n)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def opening(path: Path, rounds: int) -> Row:
    "A process of its own opens the file."
    done = [json.loads(subprocess.run([sys.executable, "-c", OPENING, str(path)], check=True,
                                      cwd=ROOT, capture_output=True, text=True).stdout)
            for _ in range(rounds)]
    took, more = zip(*done)
    return Row("opening the file", statistics.median(took), "s",
               note=f"{statistics.median(more):.0f} MB more at the peak; the file is "
                    f"{path.stat().st_size / 1e6:.0f} MB, its weights in float32 538 MB",
               detail={"seconds": took, "MB": more})


def llama_cpp(path: Path, threads: int) -> Callable[[list[int], int], None] | None:
    "Greedy by llama.cpp, where the package that carries it is installed."
    try:
        import xllamacpp
    except ImportError:
        return None
    p = xllamacpp.CommonParams()
    p.model.path, p.n_ctx, p.n_parallel, p.verbosity = str(path), 512, 1, -1
    p.warmup, p.fit_params, p.n_gpu_layers = False, False, 0
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(p)

    def decode(prompt: list[int], n_tokens: int) -> None:
        found = server.handle_completions({"prompt": prompt, "n_predict": n_tokens,
                                           "temperature": 0.0, "cache_prompt": False,
                                           "ignore_eos": True})
        assert found["usage"]["completion_tokens"] == n_tokens
    return decode


def decoders(path: Path, folder: Path) -> dict[str, Callable[[list[int], int], object]]:
    "Name -> what goes on with a prompt by so many tokens; ours in float32 comes first."
    from transformers import AutoModelForCausalLM
    model, tokenizer = open_gguf(path)
    with redirect_stderr(StringIO()):
        theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name,
                                                      dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id = None
    by = lambda m: lambda prompt, n: decode_ours(m, prompt, n)
    found = {"ours, float32": by(model), "ours, 8 bits": by(quantize_model(model, 8)),
             "ours, 4 bits": by(quantize_model(model, 4)),
             "transformers, float32": lambda prompt, n: decode_theirs(theirs, prompt, n)}
    to_gguf(folder / "eight.gguf", model, tokenizer, "q8_0")
    to_gguf(folder / "plain.gguf", model, tokenizer, "f32")
    for name, file in (("llama.cpp, float32", folder / "plain.gguf"),
                       ("llama.cpp, Q8_0", folder / "eight.gguf"), ("llama.cpp, the file", path)):
        if (decode := llama_cpp(file, torch.get_num_threads())) is not None:
            found[name] = decode
    return found


def measure(options: Options) -> list[Row]:
    "Opening, and one text, idle and in company."
    try:
        path = model_path("smollm2")
    except ValueError as e:
        return [Row("SmolLM2", None, note=str(e))]
    n_tokens, rounds = (2, 1) if options.quick else (32, 9)
    rows = [opening(path, 1 if options.quick else 5)]
    with tempfile.TemporaryDirectory() as folder:
        # not in inference_mode: our decoder stands aside for weights whose changes it cannot see
        prompt = open_gguf(path)[1].encode(BEGUN)
        works = {name: lambda decode=decode: decode(prompt, n_tokens)
                 for name, decode in decoders(path, Path(folder)).items()}
        busy = os.cpu_count() or 2
        for n, company in ((0, "idle"), (busy, f"beside {busy} busy processes")):
            with beside_busy(n):
                times = alternate(works, rounds, pause=0.1)
            for row in rows_of(times, n_tokens, "tokens/s"):
                rows.append(Row(f"{row.what}, {company}", row.value, row.unit, row.ours, row.note,
                                row.detail))
    return rows
