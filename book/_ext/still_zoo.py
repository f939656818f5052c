"""The zoo's still picture: a table of its recorded runs; and the file that the page fetches."""
import functools
import html
import json
import shutil
from pathlib import Path

from minigpt.checkpoint import shipped_model

RUNS = shipped_model().parent / "zoo.json"
FILE = "_static/page/zoo.json"


@functools.cache
def animals() -> dict:
    return json.loads(RUNS.read_text(encoding="utf-8"))["animals"]


def write_runs(site: Path) -> None:
    "The file that the page fetches."
    path = site / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(RUNS, path)


def ends(runs: list[dict], of: str) -> str:
    "Before and after, the mean of the seeds."
    first, last = (sum(run[of][at] for run in runs) / len(runs) for at in (0, -1))
    return f"{first:.2f} → {last:.2f}".replace("-", "−")


@functools.cache
def zoo(text: str) -> str:       # the animal to begin with
    "Each reward, what it did to the truth, and what its cure did."
    if text not in animals():
        raise ValueError(f"{text!r} is no animal of the zoo; choose from {', '.join(animals())}")
    rows = "".join(
        f"<tr><td>{html.escape(animal['meant'])}</td><td>{html.escape(animal['pays'])}</td>"
        f"<td>{ends(animal['hack'], 'reward')}</td><td>{ends(animal['hack'], 'truth')}</td>"
        f"<td>{html.escape(animal['remedy'])}</td><td>{ends(animal['cure'], 'truth')}</td></tr>"
        for animal in animals().values())
    head = "".join(f"<th>{name}</th>" for name in (
        "you mean", "you pay", "paid", "in truth", "the cure", "in truth, cured"))
    return ('<div class="pst-scrollable-table-container"><table class="table"><thead><tr>'
            f"{head}</tr></thead><tbody>{rows}</tbody></table></div>")
