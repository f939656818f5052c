"""Timing in alternation, rows, and the table they make."""
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Options:
    "What the command line chose."
    quick: bool = False        # small and few: does everything run? The figures mean nothing
    device: str = "cpu"        # where the training rows run


@dataclass(frozen=True)
class Row:
    "One line of the table."
    what: str                       # what was measured
    value: float | None             # the median; None: it could not be measured, the note says why
    unit: str = ""                  # of the value
    ours: float | None = None       # how many times as fast ours is: the median over the rounds
    note: str = ""                  # what a reader must know to read the value
    detail: dict = field(default_factory=dict)     # every single measurement, for the JSON file


def seconds(work: Callable[[], object]) -> float:
    "How long one call takes."
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alternate(
    contestants: dict[str, Callable[[], object]],   # name -> one round of its work
    rounds: int,                                    # measured rounds; one more warms up
    pause: float = 0.0,                             # seconds before each, so that threads go idle
) -> dict[str, list[float]]:                        # name -> seconds, one a round
    "Time the contestants in turn, A B A B ..., so that a slow minute of the machine hits them all."
    for work in contestants.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            time.sleep(pause)
            times[name].append(seconds(work))
    return times


def times_as_fast(
    ours: list[float],        # seconds, one a round
    theirs: list[float],      # seconds of the same rounds
) -> float:                   # above 1: ours is faster
    "Compare within each round, then take the median."
    return statistics.median(b / a for a, b in zip(ours, theirs))


def rows_of(
    times: dict[str, list[float]],    # what `alternate` gave; the first contestant is ours
    amount: float | None,             # work in a round: the value is amount/s; None: seconds
    unit: str,
    notes: dict[str, str] | None = None,     # name -> note
) -> list[Row]:
    "One row for each contestant."
    ours, *_ = times.values()
    rows = []
    for name, t in times.items():
        middle = statistics.median(t)
        rows.append(Row(name, middle if amount is None else amount / middle, unit,
                        None if t is ours else times_as_fast(ours, t),
                        (notes or {}).get(name, ""), {"seconds": t}))
    return rows


def shown(value: float | None) -> str:
    "A number with three figures that mean something."
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(title: str, rows: list[Row]) -> str:
    "The rows as text; the column `ours` says how many times as fast ours is."
    lines = [f"{title:<52}{'':>10} {'':<10}{'ours':>7}"]
    for row in rows:
        ours = f"{row.ours:.2f}x" if row.ours is not None else ""
        unit = row.unit if row.value is not None else ""
        line = f"  {row.what:<50}{shown(row.value):>10} {unit:<10}{ours:>7}"
        lines.append(f"{line}  {row.note}".rstrip())
    return "\n".join(lines)
