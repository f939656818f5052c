"""The still picture of a recorded run: its curve, and what the model writes at some snapshots."""
import functools
import html
import math
import shutil
from pathlib import Path

from minigpt.checkpoint import shipped_model
from minigpt.page import greedy
from minigpt.recorder import Recording, open_recording

RUN = shipped_model("recording") / "recording.safetensors"
FILE = "_static/page/recording.safetensors"       # where the page finds it
N_TOKENS, N_SHOWN = 24, 5
TEXTS = "Once upon a time\nAbel has a"            # to continue; to read


def write_recording(site: Path) -> None:
    "The file that the page fetches."
    path = site / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(RUN, path)


@functools.cache
def opened() -> Recording:
    return open_recording(RUN)


def curve(rows: list[dict], last: int) -> str:
    "The loss along the run, steps on a logarithmic axis; as `drawing` in recorder.js."
    top = math.ceil(max(row["loss"] for row in rows))
    points = [(100 * math.log1p(row["step"]) / math.log1p(last), 100 * (1 - row["loss"] / top))
              for row in rows]
    path = "L".join(f"{x:.2f} {y:.2f}" for x, y in points)
    return ('<div class="live-chart"><svg viewBox="0 0 100 100" preserveAspectRatio="none" '
            f'role="img" aria-label="The loss along {last:,} steps on a logarithmic axis: '
            f'{rows[0]["loss"]:.2f} at first, {rows[-1]["loss"]:.2f} at the end">'
            f'<path class="live-line live-of-train" d="M{path}"/></svg></div>')


def told(step: int, text: str) -> str:
    "What a snapshot writes after a text, the likeliest token each time."
    tokenizer = opened().tokenizer
    made = greedy(opened().model(step), tokenizer.prompt_ids(text), N_TOKENS)
    end = tokenizer.end_of_text
    return tokenizer.decode(made[:made.index(end)] if end in made else made)


@functools.cache
def recording(text: str) -> str:       # a text to continue, and a line below one to read
    "The curve, and a story at some steps of the run."
    run, begins = opened(), text.split("\n")[0]
    every = (len(run.steps) - 1) / (N_SHOWN - 1)
    rows = "".join(f'<tr><td>{step:,}</td><td class="live-text">{html.escape(begins)}'
                   f"{html.escape(told(step, begins))}</td></tr>"
                   for step in (run.steps[round(n * every)] for n in range(N_SHOWN)))
    return (f"{curve(run.rows, run.steps[-1])}"
            '<div class="pst-scrollable-table-container"><table class="table"><thead><tr>'
            f"<th>steps</th><th>it writes</th></tr></thead><tbody>{rows}</tbody></table></div>")
