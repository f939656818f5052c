"""Train a model that is small enough for a page to open its whole run, and ship the recording.

python -m benchmarks.recording
"""
import argparse
import json
import math
import platform
import shutil
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.ship import UNSEEN
from minigpt.checkpoint import shipped_model
from minigpt.config import ModelConfig
from minigpt.loss import document_loss
from minigpt.recipe import Recipe, prepare, read_recipe, run
from minigpt.recorder import Recorder, Recording, open_recording
from minigpt.sizes import count_parameters
from minigpt.tinytown import Tinytown

MEGABYTES = 4.0
RECIPE = Recipe(megabytes=12.0, vocab_size=768, steps=8000, batch_size=16, lr=0.015, adamw_lr=0.03,
                model=ModelConfig(768, n_layer=2, d_model=64, n_head=4, n_kv_head=2, d_ff=176,
                                  context_length=128, qk_norm=True, rope_theta=100.0))


def held_out_bits(recording: Recording, step: int, n: int = 300) -> float:
    "Bits that a snapshot needs for a document that it never saw and that fits its context."
    tokenizer, town = recording.tokenizer, Tinytown(0)
    T = recording.cfg.context_length
    ids = [tokenizer.encode(d.text) for _, d in zip(range(n), town.corpus(10**8, seed=UNSEEN))]
    ids = [row for row in ids if len(row) < T]
    bits = document_loss(recording.model(step), ids, tokenizer.end_of_text) / math.log(2)
    return bits.mean().item()


def facts(recording: Recording, recipe: Recipe, seconds: float) -> dict:
    "What the recording holds, and how it was made."
    last = recording.rows[-1]
    return {
        "recipe": "benchmarks/recording.py", "seed": recipe.seed,
        "parameters": count_parameters(recording.cfg)["total"], "steps": recipe.steps,
        "tokens seen": recipe.steps * recipe.batch_size * recipe.model.context_length,
        "minutes": round(seconds / 60, 1), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "python": platform.python_version(),
        "snapshots": list(recording.steps), "bytes": recording.path.stat().st_size,
        "validation loss, nats a token": round(last["validation"], 4),
        "held_out_bits a document that fits, by step": {
            str(step): round(held_out_bits(recording, step), 2) for step in recording.steps}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/recording"))
    parser.add_argument("--steps", type=int, default=RECIPE.steps)
    args = parser.parse_args()
    recipe = prepare(args.folder, replace(RECIPE, steps=args.steps))
    recorder, start = Recorder(args.folder, MEGABYTES), time.perf_counter()
    for report in run(args.folder, read_recipe(args.folder), watch=recorder):
        if report.validation is not None:
            print(f"step {report.step.n}: {report.validation:.3f}", flush=True)
    home = shipped_model("recording")
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(recorder.path, home / recorder.path.name)
    shutil.copyfile(args.folder / "recipe.json", home / "recipe.json")
    told = facts(open_recording(home), recipe, time.perf_counter() - start)
    text = json.dumps(told, indent=1) + "\n"
    (home / "facts.json").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
