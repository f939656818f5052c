"""Kill a training run again and again; nothing may be lost: python tests/soak.py --kills 1000.

The test suite does the same a dozen times (test_recipe.py). A kill is SIGKILL at a random moment:
no signal handler runs, nothing is flushed, and some of them hit in the middle of a save.
"""
import argparse
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file

from minigpt.config import ModelConfig
from minigpt.data import save_tokens
from minigpt.recipe import Recipe, read_recipe, run, steps_done, write_recipe
from minigpt.tokenizer import train_tokenizer


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
    "What a process does until it is killed or the run is done: save at every step."
    for _ in run(folder, read_recipe(folder), evaluate_every=50, save_every=1):
        pass


def serve() -> None:
    "Fork a child for each folder that comes, warm, so that it takes its first step at once."
    # A fork must not come after threads were started, and `backward` starts some where PyTorch
    # knows another device than the CPU: a GPU, or Vulkan as Debian builds it.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, mock.patch("torch.Tensor.backward"):
        go_on(start(Path(name) / "warm", 2))
    for line in sys.stdin:
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            try:
                go_on(Path(line.rstrip("\n")))
                os._exit(0)
            except BaseException as e:
                print(f"{type(e).__name__}: {e}", file=sys.stderr, flush=True)
                os._exit(1)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


class Children:
    "Processes that train, one after another."

    def __enter__(self):
        # unbuffered: a line that were read ahead would be hidden from `select`
        self.server = subprocess.Popen([sys.executable, __file__, "--serve"], bufsize=0,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(self, *error) -> None:
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()

    def run(
        self,
        folder: Path,
        patience: float | None,      # seconds; None: let it come to its end
        first: int = 0,              # new steps that it may take before
    ) -> int:                        # the exit code
        "Let a child go on with a run, and SIGKILL it some time after its first steps."
        ended = lambda seconds: select.select([self.server.stdout], [], [], seconds)[0]
        goal = steps_done(folder) + first
        self.server.stdin.write(f"{folder}\n".encode())
        pid = int(self.server.stdout.readline())
        if patience is not None:
            while steps_done(folder) < goal and not ended(0.001):
                pass
            if not ended(patience):
                os.kill(pid, signal.SIGKILL)
        return int(self.server.stdout.readline())

    def finish(self, folder: Path) -> float:
        "Let a child train to the end; how many seconds it took."
        start = time.monotonic()
        assert self.run(folder, None) == 0, f"the run in {folder} failed"
        return time.monotonic() - start

    def kill_often(
        self,
        folder: Path,
        kills: int,
        rng: random.Random,
        a_step: float,         # seconds that one takes: other machines, other patience
    ) -> tuple[int, int]:      # kills that hit a run under way; kills in the middle of a save
        """Start, wait for a random moment, SIGKILL; so many times. Then let it finish.

        Every other child may take a step before its moment comes; the others are often hit while
        they start.
        """
        under_way = in_a_save = 0
        for n in range(kills):
            before = steps_done(folder)
            code = self.run(folder, rng.uniform(0, 10) * a_step, first=n % 2)
            assert code in (0, -signal.SIGKILL), f"a child ended with {code}"
            under_way += code != 0 and steps_done(folder) > before
            in_a_save += bool(list(folder.glob("*.tmp")))
        self.finish(folder)
        return under_way, in_a_save


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
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve()
    with tempfile.TemporaryDirectory() as name, Children() as children:
        folder, steps = Path(name), max(100, 20 * args.kills)
        a_step = children.finish(start(folder / "quiet", steps)) / steps
        under_way, in_a_save = children.kill_often(start(folder / "killed", steps), args.kills,
                                                   random.Random(args.seed), a_step)
        same_end(folder / "quiet", folder / "killed")
    print(f"{args.kills} kills, {under_way} of them after new steps, {in_a_save} in the middle of "
          f"a save; {steps} steps, the same weights and the same log as without")


if __name__ == "__main__":
    main()
