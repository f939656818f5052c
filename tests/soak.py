"""Kill a training run again and again; nothing may be lost: python tests/soak.py --kills 1000.

The test suite does the same a dozen times (test_recipe.py). A kill is SIGKILL at a random moment:
no signal handler runs, nothing is flushed, and some of them hit in the middle of a save.
"""
import argparse
import json
import multiprocessing
import os
import random
import signal
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from minigpt.config import ModelConfig
from minigpt.data import save_tokens
from minigpt.recipe import Recipe, read_recipe, run, write_recipe
from minigpt.tokenizer import train_tokenizer

CHILDREN = multiprocessing.get_context("forkserver")      # a fresh process in milliseconds
CHILDREN.set_forkserver_preload(["soak"])


def start(folder: Path, steps: int) -> Path:
    "A run's folder as `prepare` leaves it, for the smallest of models."
    folder.mkdir(parents=True)
    tokenizer = train_tokenizer(["a bee sees a sea"] * 4, 300)
    cfg = ModelConfig(tokenizer.vocab_size, context_length=8, n_layer=1, n_head=2, n_kv_head=1,
                      d_model=16, d_ff=16)
    tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, 3000, dtype=np.uint16)
    for name in ("train", "validation"):
        save_tokens(folder / f"{name}.npy", tokens)
    tokenizer.save(folder / "tokenizer.json")
    cfg.save(folder / "config.json")
    write_recipe(folder, Recipe(vocab_size=cfg.vocab_size, model=cfg, steps=steps, batch_size=2))
    return folder


def go_on(folder: Path) -> None:
    "What a process does until it is killed or the run is done: save at every other step."
    torch.set_num_threads(1)
    for _ in run(folder, read_recipe(folder), evaluate_every=50, save_every=2):
        pass


def finish(folder: Path) -> None:
    "Let a process run to its end."
    process = CHILDREN.Process(target=go_on, args=(folder,))
    process.start()
    process.join(600)
    assert process.exitcode == 0, f"the run in {folder} ended with {process.exitcode}"


def kill_often(folder: Path, kills: int, rng: random.Random) -> int:     # kills in mid-save
    "Start, wait for a random moment, SIGKILL; so many times. Then let it finish."
    in_a_save = 0
    for _ in range(kills):
        process = CHILDREN.Process(target=go_on, args=(folder,))
        process.start()
        process.join(rng.uniform(0, 0.25))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
        in_a_save += bool(list(folder.glob("*.tmp")))
    finish(folder)
    return in_a_save


def same_end(a: Path, b: Path) -> None:
    "Two runs ended with the same bits and the same log."
    ours, theirs = (load_file(str(folder / "model.safetensors")) for folder in (a, b))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    logs = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
            for folder in (a, b)]
    assert [(r["step"], r["loss"]) for r in logs[0]] == [(r["step"], r["loss"]) for r in logs[1]]
    for folder in (a, b):
        assert not list(folder.glob("*.tmp")) and len(list(folder.glob("checkpoint-*"))) <= 2


def main() -> None:
    "Soak, and say how it went."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, steps = Path(name), max(100, 20 * args.kills)
        finish(start(folder / "quiet", steps))
        in_a_save = kill_often(start(folder / "killed", steps), args.kills,
                               random.Random(args.seed))
        same_end(folder / "quiet", folder / "killed")
    print(f"{args.kills} kills, {in_a_save} of them in the middle of a save; {steps} steps, "
          "the same weights and the same log as without")


if __name__ == "__main__":
    import soak  # the children import this file by its name
    soak.main()
