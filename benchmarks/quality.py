"""Time to quality: how soon does our recipe reach the loss that a well-known baseline ends at?"""
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from minigpt.config import ModelConfig
from minigpt.data import Batches
from minigpt.model import GPT
from minigpt.optim import AdamW, muon_for, parameter_groups, trapezoid, warmup_cosine
from minigpt.sizes import count_parameters
from minigpt.training import evaluate, train

from .measure import Options, Row
from .text import benchmark_text

# The clock stands still during a look, but the steps after it are slower: the caches are cold.
EVENLY = [n / 10 for n in range(1, 11)]
LATE = [0.7 + n / 20 for n in range(7)]             # near the end, where the mark is passed
MARK = 1.874       # nats a character: where well-known code ends in this setting
SHAPE = dict(context_length=64, n_layer=4, n_head=4, d_model=128)
T = SHAPE["context_length"]


@dataclass(frozen=True)
class Contestant:
    "One way to train a model of four layers and width 128 on characters."
    name: str
    cfg: ModelConfig
    batch_size: int                                   # windows in a step
    steps: int                                        # steps in all
    optimizers: Callable[[GPT], list]                 # made for a model
    schedule: Callable[[int], float]                  # steps taken -> share of the peak rate
    looks: Sequence[float]                            # when to evaluate: shares of the steps


@dataclass(frozen=True)
class Look:
    "The validation loss at one moment."
    step: int
    seconds: float       # of training, without the evaluations
    loss: float          # nats a character


def baseline_optimizers(model: GPT) -> list:
    "AdamW for everything, as the setting is usually run."
    groups = parameter_groups(model)
    return [AdamW([{"params": groups["matrices"] + groups["embeddings"], "weight_decay": 0.1},
                   {"params": groups["vectors"], "weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.99))]


def baseline(vocab_size: int, steps: int = 2000) -> Contestant:
    "GPT-2's parts, AdamW at 1e-3 with a cosine to 1e-4, 12 sequences a step."
    cfg = ModelConfig(vocab_size, **SHAPE, n_kv_head=4, d_ff=512, norm="layer", mlp="gelu",
                      position="learned", bias=False)
    return Contestant("baseline", cfg, 12, steps, baseline_optimizers,
                      partial(warmup_cosine, steps=steps, warmup=100, floor=0.1), EVENLY)


def ours(vocab_size: int, steps: int = 210) -> Contestant:
    "This book's parts, Muon for the matrices, a trapezoid; no more parameters."
    cfg = ModelConfig(vocab_size, **SHAPE, n_kv_head=1, d_ff=256, qk_norm=True)
    return Contestant("ours", cfg, 16, steps,
                      partial(muon_for, lr=0.02, adamw_lr=0.03, weight_decay=0.0, momentum=0.8),
                      partial(trapezoid, steps=steps, warmup=10, cooldown=steps * 8 // 10),
                      LATE)


def ours_long(vocab_size: int, steps: int) -> Contestant:
    "The same, for a run that is several times as long: more momentum, a lower rate, fewer looks."
    return replace(ours(vocab_size, steps), name="ours, long", looks=[1.0], optimizers=partial(
        muon_for, lr=0.012, adamw_lr=0.03, weight_decay=0.0, momentum=0.95))


def characters(text: str) -> tuple[np.ndarray, np.ndarray, int]:     # train, validation, V
    "Each character is a token; the last tenth of the text is held out."
    alphabet = sorted(set(text))
    place = {c: i for i, c in enumerate(alphabet)}
    ids = np.array([place[c] for c in text], np.uint16)
    cut = len(ids) * 9 // 10
    return ids[:cut], ids[cut:], len(alphabet)


def race(
    contestant: Contestant,
    tokens: np.ndarray,           # (n,) ids to train on
    held_out: np.ndarray,         # (n,) ids to validate on, all of them each time
    seed: int,
) -> list[Look]:                  # the losses on the way, the final one last
    "Train, and look at the loss now and then with the clock stopped."
    torch.manual_seed(seed)
    model = GPT(contestant.cfg)
    run = train(model, Batches(tokens, contestant.batch_size, T, seed),
                contestant.optimizers(model), contestant.steps, contestant.schedule)
    looks, spent = [], 0.0
    when = {round(share * contestant.steps) for share in contestant.looks}
    start = time.perf_counter()
    for step in run:
        if step.n in when:
            spent += time.perf_counter() - start
            loss = evaluate(model, held_out, T, max_windows=len(held_out), batch_size=64)
            looks.append(Look(step.n, spent, loss))
            start = time.perf_counter()
    return looks


def seconds_to(looks: list[Look], loss: float) -> float | None:
    "Training time until the loss was first seen at or below the mark."
    return next((look.seconds for look in looks if look.loss <= loss), None)


def measure(options: Options) -> list[Row]:
    "Two races, in both orders, each with its own seed."
    text, source = benchmark_text()
    if options.quick:
        text = text[:50_000]
    tokens, held_out, vocab_size = characters(text)
    pair = [baseline(vocab_size, 110), ours(vocab_size, 20)] if options.quick else \
        [baseline(vocab_size), ours(vocab_size)]
    races = []
    for seed in range(1 if options.quick else 2):
        order = pair if seed % 2 == 0 else pair[::-1]
        races.append({c.name: race(c, tokens, held_out, seed) for c in order})
    rows = []
    for c in pair:
        ends = [r[c.name][-1] for r in races]
        rows.append(Row(
            f"{c.name}: {c.steps:,} steps of {c.batch_size} windows",
            statistics.median(e.seconds for e in ends), "s",
            note="validation loss " + ", ".join(f"{e.loss:.4f}" for e in ends) +
                 f"; {count_parameters(c.cfg)['total']:,} parameters",
            detail={"curves": [[vars(look) for look in r[c.name]] for r in races]}))
    for n, r in enumerate(races, 1):
        end, looks = r["baseline"][-1], r["ours"]
        marks = [MARK] if "shakespeare" in source and not options.quick else []
        for loss in [*marks, end.loss]:
            whose = "" if loss == MARK else "the baseline's "
            reached = seconds_to(looks, loss)
            rows.append(Row(f"pair {n}: ours reaches {whose}{loss:.4g}", reached, "s",
                            end.seconds / reached if reached else None,
                            f"the baseline took {end.seconds:.1f} s and ended at {end.loss:.4f}"
                            if reached else f"not reached; ours ended at {looks[-1].loss:.4f}"))
    room = min(r["baseline"][-1].seconds for r in races)
    trial = race(ours_long(vocab_size, 10 if options.quick else 100), tokens, held_out, seed=1)
    steps = int(0.97 * room * trial[-1].step / trial[-1].seconds)
    looks = race(ours_long(vocab_size, max(20, steps)), tokens, held_out, seed=0)
    rows.append(Row(f"ours with the baseline's whole time: {looks[-1].step:,} steps",
                    looks[-1].seconds, "s", note=f"validation loss {looks[-1].loss:.4f}; "
                    f"the faster baseline took {room:.1f} s"))
    rows[0] = Row(**{**vars(rows[0]), "note": f"{rows[0].note}; {source}"})
    return rows
