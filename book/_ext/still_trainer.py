"""The trainer's still picture, a table of pairs that learned when the site was built; and its text.

A function that has a namesake in `book/_static/page/names.js` or `trainer.js` does the same.
"""
import functools
import math
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import torch

from minigpt.bigram import LETTERS, count_pairs, function_names, letter_ids

NAMES = "names of functions"                 # the text to begin with, if the page names no other
FILE = "_static/page/names.txt"              # where the site has them
SEED, RATE, BATCH, EVERY, STEPS = 1, 20.0, 256, 10, 400
V, LONGEST = len(LETTERS), 40
LOW, HIGH = 2, 5                             # the picture reaches from 2 bits to 5


@functools.cache
def library() -> list[str]:
    return function_names()


def write_names(site: Path) -> None:
    "The file that the page fetches: one name a line. It changes with the Python only."
    path = site / FILE
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(library()) + "\n", encoding="utf-8", newline="\n")


def read_names(text: str) -> list[str]:
    lines = re.split(r"\r\n|\r|\n", unicodedata.normalize("NFD", text.lower()))
    names = ["".join(letter for letter in line if letter in LETTERS[1:]) for line in lines]
    return [name for name in names if name]


def is_held_out(name: str) -> bool:
    hash_ = 2166136261
    for letter in name:
        hash_ = ((hash_ ^ ord(letter)) * 16777619) % 2**32
    return hash_ % 10 == 0


def draws(state: int) -> Iterator[float]:
    while True:
        state = (1664525 * state + 1013904223) % 2**32
        yield state / 2**32


def bits(counts: torch.Tensor, table: torch.Tensor) -> float:
    nats = -(counts * table.log_softmax(dim=1)).nan_to_num(0).sum() / counts.sum()
    return nats.item() / math.log(2)


def train(learned: list[str], held: list[str]) -> tuple[torch.Tensor, list[tuple], float]:
    "The table; the points of its curve, (step, training, held out); the norm of its gradient."
    ids = [letter_ids(name) for name in learned]
    x, y = torch.tensor([pair for row in ids for pair in zip(row, row[1:])]).T
    table, dice, losses = torch.zeros(V, V, dtype=torch.float64), draws(SEED), []
    seen, unseen = count_pairs(learned), count_pairs(held)
    points = [(0, bits(seen, table), bits(unseen, table))]
    for step in range(1, STEPS + 1):
        at = torch.tensor([int(next(dice) * len(y)) for _ in range(BATCH)])
        slope = table[x[at]].softmax(dim=1)
        losses.append(-slope.gather(1, y[at, None]).log2().mean().item())
        slope -= torch.nn.functional.one_hot(y[at], V)
        gradient = torch.zeros_like(table).index_add_(0, x[at], slope / BATCH)
        table -= RATE * gradient
        if step % EVERY == 0:
            points.append((step, sum(losses) / EVERY, bits(unseen, table)))
            losses.clear()
    return table, points, gradient.norm().item()


def invent(table: torch.Tensor, dice: Iterator[float]) -> str:
    name, letter, chances = "", 0, table.softmax(dim=1).cumsum(dim=1)
    while len(name) < LONGEST:
        letter = min(int((chances[letter] <= next(dice)).sum()), V - 1)
        if letter == 0:
            break
        name += LETTERS[letter]
    return name


def up(value: float) -> float:
    return 100 * (HIGH - value) / (HIGH - LOW)


def picture(points: list[tuple], counted: float) -> str:
    def path(of: str, d: str) -> str:
        return f'<path class="live-line live-of-{of}" d="{d}"/>'

    def curve(of: str, column: int) -> str:
        places = (f"{100 * p[0] / STEPS:.2f} {up(p[column]):.2f}" for p in points)
        return path(of, "M" + "L".join(places))

    ticks = range(LOW, HIGH + 1)
    levels = [("rule", b) for b in ticks] + [("uniform", math.log2(V)), ("counted", counted)]
    lines = "".join(path(of, f"M0 {up(b):.2f}H100") for of, b in levels)
    marks = "".join(f'<span class="live-tick" style="top:{up(b):.2f}%">{b}</span>' for b in ticks)
    return ('<div class="live-chart"><svg viewBox="0 0 100 100" preserveAspectRatio="none" '
            f'role="img" aria-label="The loss falls from {points[0][1]:.2f} to {points[-1][1]:.2f} '
            f'bits a letter in {STEPS} steps; counted pairs have {counted:.2f}">{lines}'
            f'{curve("train", 1)}{curve("held", 2)}</svg><div aria-hidden="true">{marks}'
            f'<span class="live-end">{STEPS} steps</span></div></div>')


@functools.cache
def trainer(text: str) -> str:
    "A table of pairs that learned from the text: its curve, its gradient, and eight names."
    names = library() if text == NAMES else read_names(text)
    if not names:
        raise ValueError(f"the text {text!r} of a trainer has no letter from a to z: write names, "
                         "with \\n between them")
    learned = [name for name in names if not is_held_out(name)]
    held = [name for name in names if is_held_out(name)]
    if not learned or not held:
        learned = held = names
    table, points, norm = train(learned, held)
    counts, dice = count_pairs(learned).double(), draws(SEED)
    counted = bits(counts, (counts / counts.sum(dim=1, keepdim=True)).log())
    key = "".join(f'<span><i class="live-of-{of}"></i> {says}</span> ' for of, says in (
        ("train", "training"), ("held", "held out"),
        ("uniform", f"knows nothing: {math.log2(V):.2f}"),
        ("counted", f"pairs, counted: {counted:.2f}")))
    written = "".join(f"<li><code>{invent(table, dice) or '–'}</code></li>" for _ in range(8))
    _, train_bits, held_bits = points[-1]
    return (f'{picture(points, counted)}<p class="live-key">bits a letter: {key}</p>'
            f'<p class="live-count">Step {STEPS}: training {train_bits:.2f}, held out '
            f'{held_bits:.2f} bits a letter.</p><div class="live-two"><div><p class="live-head">'
            f'It writes</p><ol class="live-names">{written}</ol></div><div><p class="live-head">'
            'Length of each gradient, log scale</p><ol class="live-bars live-norms"><li>'
            f'<code>W</code><span class="live-bar"><i class="live-after" style="width:'
            f'{100 * (math.log10(norm) + 4) / 6:.0f}%"></i></span><span class="live-percent">'
            f"{norm:.2g}</span></li></ol></div></div>")
