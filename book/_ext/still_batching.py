"""The batch board's still picture: the same requests under two policies, and what each achieves.

A function that has a namesake in `book/_static/page/board.js` does the same.
"""
import functools
import itertools
import math
from dataclasses import dataclass, field

SLOTS, CHUNK = 4, 64
GAPS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.2, 1.7, 3)
PROMPTS, ANSWERS = (20, 40, 60, 90, 130, 180, 260, 400), (2, 4, 6, 8, 11, 15, 20, 30)
N_REQUESTS, SEED = 14, 12
RATE = 0.3                              # requests that arrive in a step
CELL, HIGH, SIDE = 5, 18, 48            # px: of a step, of a slot, of the slots' names
BEGIN = "static"                        # what the live part begins with
WORDS = {"static", "continuous", "chunked"}
KINDS = {"prefill": "reads its prompt", "decode": "makes a token", "wait": "waits for others",
         "empty": "nobody there"}
POLICIES = tuple((name, name == "continuous", chunked)
                 for chunked in (False, True) for name in ("static", "continuous"))


@dataclass
class Request:
    arrive: int                         # the step from which it waits
    prompt: int                         # tokens to read
    answer: int                         # tokens to make
    read: int = 0
    made: list[int] = field(default_factory=list)    # the step of each token

    @property
    def done(self) -> bool:
        return len(self.made) == self.answer


def requests(rate: float = RATE, seed: int = SEED, n: int = N_REQUESTS) -> list[Request]:
    "The page's requests: always the same ones; the rate stretches the time between them."
    state, clock, found = seed, 0.0, []
    for i in range(n):
        drawn = []
        for values in (GAPS, PROMPTS, ANSWERS):
            state = (1664525 * state + 1013904223) % 2**32
            drawn.append(values[int(state / 2**32 * len(values))])
        clock += drawn[0] if i else 0
        found.append(Request(math.floor(clock / rate), *drawn[1:]))
    return found


def simulate(asked: list[Request], continuous: bool, chunked: bool) -> list[list[tuple]]:
    "For each step what each slot does: (kind, number of its request or None). Fills in `made`."
    waiting, slots, columns = list(range(len(asked))), [None] * SLOTS, []
    while waiting or any(s is not None for s in slots):
        step = len(columns)
        if continuous or slots == [None] * SLOTS:
            for i in range(SLOTS):
                if slots[i] is None and waiting and asked[waiting[0]].arrive <= step:
                    slots[i] = waiting.pop(0)
        reading = min((s for s in slots if s is not None and asked[s].read < asked[s].prompt),
                      default=None)
        column = []
        for s in slots:
            kind, r = "empty" if s is None else "wait", None if s is None else asked[s]
            if r and s == reading:
                kind, r.read = "prefill", min(r.prompt, r.read + CHUNK)
                if r.read == r.prompt:
                    r.made.append(step)
            elif r and r.read == r.prompt and not r.done and (chunked or reading is None):
                kind = "decode"
                r.made.append(step)
            column.append((kind, s))
        columns.append(column)
        if continuous or all(s is None or asked[s].done for s in slots):
            slots = [None if s is None or asked[s].done else s for s in slots]
    return columns


def figures(asked: list[Request], columns: list) -> tuple:
    "Steps, share of slot-steps that made a token, mean and 95th percentile of the first token."
    first = sorted(r.made[0] + 1 - r.arrive for r in asked)
    pauses = [b - a for r in asked for a, b in itertools.pairwise(r.made)]
    return (len(columns), sum(len(r.made) for r in asked) / (SLOTS * len(columns)),
            sum(first) / len(first), first[math.ceil(0.95 * len(first)) - 1],
            max(pauses, default=1))


def board(columns: list[list[tuple]], says: str) -> str:
    "One column a step, one row a slot; neighbours of one kind and one request are one stripe."
    drawn = []
    for slot in range(SLOTS):
        y, step = slot * HIGH, 0
        drawn.append(f'<text x="{SIDE - 6}" y="{y + 13}" text-anchor="end">slot {slot + 1}</text>')
        for (kind, _), run in itertools.groupby(column[slot] for column in columns):
            n = len(list(run))
            drawn.append(f'<rect class="board-{kind}" x="{SIDE + step * CELL + 0.5}" y="{y + 1.5}" '
                         f'width="{n * CELL - 1}" height="{HIGH - 3}" rx="2"/>')
            step += n
    wide, high = SIDE + len(columns) * CELL, SLOTS * HIGH
    return (f'<div class="board-view board-still" tabindex="0"><svg viewBox="0 0 {wide} {high}" '
            f'width="{wide}" height="{high}" role="img" aria-label="{says}">{"".join(drawn)}</svg>'
            "</div>")


@functools.cache
def batching(text: str) -> str:       # what the live part begins with: some of WORDS
    "The board of both policies, without chunked prefill, and the figures of all four."
    if unknown := set(text.lower().split()) - WORDS:
        raise ValueError(f"{min(unknown)!r} says nothing to a batch board; choose from "
                         f"{', '.join(sorted(WORDS))}")
    boards, rows = [], []
    for name, continuous, chunked in POLICIES:
        asked = requests()
        columns = simulate(asked, continuous, chunked)
        steps, use, mean, p95, pause = figures(asked, columns)
        if not chunked:
            says = f"{name.capitalize()} batching: {steps} steps, {use:.0%} of the slots used"
            boards.append(f'<p class="live-head">{says}</p>{board(columns, says)}')
        whole = name + (", chunked prefill" if chunked else "")
        rows.append(f'<tr><th scope="row">{whole}</th><td>{steps}</td><td>{use:.0%}</td>'
                    f"<td>{mean:.1f}</td><td>{p95}</td><td>{pause}</td></tr>")
    key = "".join(f'<span><svg viewBox="0 0 18 22" aria-hidden="true"><rect class="board-{kind}" '
                  f'x="1" y="1" width="16" height="20" rx="2"/></svg> {name}</span> '
                  for kind, name in KINDS.items())
    head = "".join(f'<th scope="col">{name}</th>' for name in (
        "batching", "steps in all", "slots used", "first token, mean", "first token, p95",
        "longest pause"))
    return (f'{"".join(boards)}<p class="live-key">{key}</p>'
            '<div class="pst-scrollable-table-container"><table class="table board-figures">'
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>")
