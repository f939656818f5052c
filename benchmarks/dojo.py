"""Run the dojo's healthy and sick scripts at full length, and note what came.

    python -m benchmarks.dojo                # about 7 minutes of one core
    python -m benchmarks.dojo --only "no warm-up"     # this fault anew; the others stay
    python -m benchmarks.dojo --prove        # right repairs pass, wrong ones fail: 20 minutes
    python -m benchmarks.dojo --table        # what stands in the file, as a table

The chapter shows the file, `minigpt/shipped/dojo.json`, and `minigpt dojo check` compares with it.
"""
import argparse
import json
import math
import os
import platform
import tempfile
from pathlib import Path

import torch

from minigpt.checkpoint import shipped_model, write_whole
from minigpt.dojo import COLUMNS, EXERCISES, HEALTHY, STEPS, edited, script_print
from minigpt.grading import examine, grade, healthy_runs

from .dojo_repairs import RIGHT, WRONG

SEEDS = (0, 1, 2)
FILE = shipped_model().parent / "dojo.json"
KEPT = ("steps", "n_tokens", "n_distinct", "n_looks", "known", "leak", "turned", "config",
        "held_out", "floor", "n_validated", "train", "validation")
SETTINGS = [e for e in EXERCISES if e.setting]


def number(value: float | None) -> float | None:      # four digits; None for what is no number
    "As JSON holds it."
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None


def thinned(rows: list[dict]) -> dict[str, list]:
    "The first steps, every fourth one, and those with a look at the validation text; by column."
    rows = [r for r in rows if r["step"] <= 8 or r["step"] % 4 == 0 or "validation" in r]
    found = {c: [number(row.get(c)) for row in rows] for c in COLUMNS}
    return found | {"step": [row["step"] for row in rows]}


def run(script: str, seed: int = 0) -> dict:
    "One run, as the record holds it."
    began = sum(os.times()[2:4])                           # seconds of processors, for children
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train.py").write_text(script, encoding="utf-8")
        found = examine(folder, STEPS, seed)
    kept = {key: number(found[key]) if isinstance(found[key], float) else found[key]
            for key in KEPT if key in found}
    truth = [{key: number(value) for key, value in t.items()} for t in found.get("truth", [])]
    return {"seed": seed, **kept, "truth": truth, "longest": number(max(found["norms"])),
            "error": found["error"], "sample": found["output"][:400], "log": thinned(found["log"]),
            "seconds": round(sum(os.times()[2:4]) - began, 1)}


def table(book: dict) -> None:
    "A line for each run: how it ends, and what was measured from the outside."
    runs = [(f"healthy, seed {r['seed']}", r) for r in book["healthy"]]
    runs += [(f"healthy for: {name}", r) for name, rs in book["setting"].items() for r in rs]
    runs += list(book["sick"].items())
    print("| run | first loss | loss | validation | held out | leak | cosines | longest | seconds |"
          "\n|---|---|---|---|---|---|---|---|---|")
    for name, r in runs:
        log = r["log"]
        looks = [v for v in log["validation"] if v is not None] or [None]
        ends = [log["loss"][0], log["loss"][-1], looks[-1], r.get("held_out"), r.get("leak")]
        cells = ["nan" if v is None else f"{v:.3g}" for v in ends]
        cosines = ", ".join("nan" if t["cosine"] is None else f"{t['cosine']:.2f}"
                            for t in r["truth"])
        print(f"| {name} | {' | '.join(cells)} | {cosines} | {r['longest']} | {r['seconds']} |")


def prove() -> int:      # how many verdicts are wrong
    "Grade every repair at full length."
    wrong = 0
    for e in EXERCISES:
        cases = [("broken", e.script, False)]
        cases += [("right", edited(e.script, edits), True) for edits in RIGHT[e.name]]
        cases += [("wrong", edited(e.script, edits), False) for edits in WRONG[e.name]]
        for kind, script, passes in cases:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "train.py").write_text(script, encoding="utf-8")
                failed = grade(examine(folder), healthy_runs(e))
            as_it_should = passes == (not failed)
            wrong += not as_it_should
            print("ok " if as_it_should else "NOT", e.name, "|", kind, "|", failed, flush=True)
    print(f"{wrong} verdicts are wrong")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[e.name for e in EXERCISES])
    parser.add_argument("--prove", action="store_true")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.prove:
        return prove() > 0
    book = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    if not args.table:
        if not args.only or not book:
            book = {"healthy": [run(HEALTHY, seed) for seed in SEEDS], "setting": {}, "sick": {}}
        for e in EXERCISES:
            if args.only and e.name not in args.only:
                continue
            if e.setting:
                book["setting"][e.name] = [run(e.healthy)]
            book["sick"][e.name] = run(e.script)
            print(e.name, book["sick"][e.name]["seconds"], flush=True)
        book |= {"torch": torch.__version__, "machine": platform.machine(), "steps": STEPS,
                 "scripts": script_print(HEALTHY, *(e.script for e in EXERCISES))}
        book["sick"] = {e.name: book["sick"][e.name] for e in EXERCISES}
        text = json.dumps(book, ensure_ascii=False, separators=(",", ":")) + "\n"
        write_whole(FILE, lambda path: path.write_text(text, encoding="utf-8"))
    table(book)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
