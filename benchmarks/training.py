"""How fast a whole training step is, and how much of the machine's arithmetic it uses."""
import statistics
from dataclasses import replace
from itertools import islice

import numpy as np

from minigpt.config import ModelConfig, count_parameters, forward_flops
from minigpt.data import Batches
from minigpt.recipe import RECIPES, Recipe, build
from minigpt.training import train

from .machine import MatmulPeak
from .measure import Options, Row, alternate

TEN_MILLION = replace(RECIPES["tinytown"], batch_size=16, model=ModelConfig(
    n_layer=6, n_head=6, n_kv_head=2, d_model=384, d_ff=1024))


class Steps:
    "A training run that takes a few steps each time it is called."

    def __init__(self, recipe: Recipe, n_steps: int, device: str):
        cfg = recipe.model
        tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, 500_000, dtype=np.uint16)
        recipe = replace(recipe, vocab_size=cfg.vocab_size)
        model, optimizers = build(recipe)
        model.to(device)
        batches = Batches(tokens, recipe.batch_size, cfg.context_length)
        self.run = train(model, batches, optimizers, steps=10**9, n_micro=recipe.n_micro)
        self.cfg, self.n_steps = cfg, n_steps
        self.n_tokens = n_steps * recipe.batch_size * cfg.context_length

    def __call__(self) -> None:
        "Take the steps."
        list(islice(self.run, self.n_steps))

    @property
    def flops(self) -> int:       # additions and multiplications in one call
        "Forward once, backward twice as much; the optimizer's own work is not counted."
        windows = self.n_tokens // self.cfg.context_length
        return 3 * windows * forward_flops(self.cfg, self.cfg.context_length)["total"]


def measure(options: Options) -> list[Row]:
    "Tokens a second and the share of the measured peak."
    n, rounds = (1, 1) if options.quick else (4, 5)
    peak = MatmulPeak(options.device)
    runs = {"train: the tinytown recipe": Steps(RECIPES["tinytown"], n, options.device)}
    if not options.quick:
        runs["train: the same with 10 M parameters"] = Steps(TEN_MILLION, n // 2, options.device)
    times = alternate({"peak": lambda: [peak() for _ in range(5)], **runs}, rounds)
    best = 5 * peak.flops / min(times["peak"])
    rows = [Row(f"matrix product, {peak.size} x {peak.size}, float32", best / 1e9, "GFLOP/s",
                note="the best round: what 100% means below", detail={"seconds": times["peak"]})]
    for name, run in runs.items():
        middle = statistics.median(times[name])
        share, cfg = run.flops / middle / best, run.cfg
        rows.append(Row(name, run.n_tokens / middle, "tokens/s",
                        note=f"{share:.0%} of the peak; {count_parameters(cfg)['total'] / 1e6:.2f} "
                             f"M parameters, {cfg.context_length} tokens a window",
                        detail={"seconds": times[name], "share_of_peak": share}))
    return rows
