"""How fast a whole training step is, and how much of the machine's arithmetic it uses."""
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from minigpt.config import ModelConfig
from minigpt.data import Batches
from minigpt.distributed import World
from minigpt.optim import clip_gradients
from minigpt.recipe import PRECISIONS, RECIPES, Recipe, Report, build, logs
from minigpt.sizes import count_parameters, forward_flops
from minigpt.training import accumulate_gradients, train

from .machine import MatmulPeak
from .measure import Options, Row, alternate

TEN_MILLION = replace(RECIPES["tinytown"], batch_size=24, model=ModelConfig(
    n_layer=6, n_head=6, n_kv_head=2, d_model=384, d_ff=1024))


GPT2_SMALL = replace(RECIPES["tinytown"], batch_size=16, precision="bfloat16", model=ModelConfig(
    vocab_size=50_304, context_length=1024, n_layer=12, n_head=12, n_kv_head=12, d_model=768,
    d_ff=2048))


class Steps:
    "A training run that takes a few steps each time it is called."

    def __init__(self, recipe: Recipe, n_steps: int, device: str, compiled: bool = False):
        cfg = recipe.model
        tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, 500_000, dtype=np.uint16)
        # random tokens teach nothing: rates at which nothing can diverge
        recipe = replace(recipe, vocab_size=cfg.vocab_size, lr=1e-8, adamw_lr=1e-8)
        self.model, self.optimizers = build(recipe, World(device=device))
        model = torch.compile(self.model) if compiled else self.model
        self.batches = Batches(tokens, recipe.batch_size, cfg.context_length)
        self.run = train(model, self.batches, self.optimizers, steps=10**9,
                         n_micro=recipe.n_micro, precision=PRECISIONS[recipe.precision])
        self.cfg, self.n_steps, self.device = cfg, n_steps, device
        self.n_tokens = n_steps * recipe.batch_size * cfg.context_length

    def __call__(self) -> None:
        "Take the steps, and wait until the last one is done."
        list(islice(self.run, self.n_steps))
        if self.device != "cpu":
            torch.cuda.synchronize()

    @property
    def flops(self) -> int:       # additions and multiplications in one call
        "Forward once, backward twice as much; the optimizer's own work is not counted."
        windows = self.n_tokens // self.cfg.context_length
        return 3 * windows * forward_flops(self.cfg, self.cfg.context_length)["total"]


class Bare(Steps):
    "The same arithmetic and nothing else: one batch, over and over, no schedule, no report."

    def __call__(self) -> None:
        ids = self.batches[0]
        params = [p for o in self.optimizers for g in o.param_groups for p in g["params"]]
        for _ in range(self.n_steps):
            self.model.zero_grad(set_to_none=True)
            accumulate_gradients(self.model, ids)
            clip_gradients(params, 1.0)
            for optimizer in self.optimizers:
                optimizer.step()


class Logged(Steps):
    "The whole loop: batches, schedule, reports, and each step's row in log.jsonl."

    def __init__(self, recipe: Recipe, n_steps: int, device: str, log):
        super().__init__(recipe, n_steps, device)
        self.log = log

    def __call__(self) -> None:
        for step in islice(self.run, self.n_steps):
            self.log(Report(step, 10**9, None, 1.0, 1.0), False)


def overhead(n_steps: int, rounds: int) -> Row:
    "What the loop adds to the arithmetic of a step."
    recipe = RECIPES["tinytown"]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log = stack.enter_context(logs(folder, tensorboard=False))
        times = alternate({"bare": Bare(recipe, n_steps, "cpu"),
                           "loop": Logged(recipe, n_steps, "cpu", log)}, rounds)
    more = [100 * (loop / bare - 1) for bare, loop in zip(times["bare"], times["loop"])]
    return Row("the loop's own work: batches, schedule, log", statistics.median(more), "%",
               detail=times,
               note="of a step of the tinytown recipe on the CPU, beside the bare arithmetic of "
                    f"one batch; median of {rounds} rounds, "
                    f"from {min(more):.1f} to {max(more):.1f}")


def measure(options: Options) -> list[Row]:
    "Tokens a second and the share of the measured peak."
    gpu = options.device != "cpu"
    n, rounds = (1, 1) if options.quick else (4, 5)
    precision = "bfloat16" if gpu else "float32"
    peak = MatmulPeak(options.device, 8192 if gpu else 2048, PRECISIONS[precision])
    if gpu:
        runs = {f"train: 124 M parameters, {precision}, compiled":
                Steps(GPT2_SMALL, n, options.device, compiled=True)}
    else:
        runs = {"train: the tinytown recipe": Steps(RECIPES["tinytown"], n, options.device)}
        if not options.quick:
            runs["train: the same with 10 M parameters"] = Steps(TEN_MILLION, n // 2, "cpu")
    times = alternate({"peak": lambda: [peak() for _ in range(5)], **runs}, rounds)
    best = 5 * peak.flops / min(times["peak"])
    rows = [Row(f"matrix product, {peak.size} x {peak.size}, {precision}", best / 1e9, "GFLOP/s",
                note="the best round: what 100% means below", detail={"seconds": times["peak"]})]
    for name, run in runs.items():
        middle = statistics.median(times[name])
        share, cfg = run.flops / middle / best, run.cfg
        rows.append(Row(name, run.n_tokens / middle, "tokens/s",
                        note=f"{share:.0%} of the peak; {count_parameters(cfg)['total'] / 1e6:.2f} "
                             f"M parameters, {cfg.context_length} tokens a window",
                        detail={"seconds": times[name], "share_of_peak": share}))
    if not gpu:
        rows.append(overhead(n, rounds if options.quick else 15))
    return rows
