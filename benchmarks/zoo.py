"""Let the chat model learn from each reward of the zoo, and from its cure, and note what came.

    python -m benchmarks.zoo                # three seeds: about 20 minutes of one core
    python -m benchmarks.zoo --only judge   # this anew; the others stay as they are
    python -m benchmarks.zoo --table        # what stands in the file, as a table

The file is `minigpt/shipped/zoo.json`; the chapter on reinforcement shows it. Numbers have four
digits. One seed can differ from another by more than a cure does: read three.
"""
import argparse
import json
import platform
import time

import torch

from minigpt.checkpoint import shipped_model, write_whole
from minigpt.zoo import ZOO, hunt

SEEDS, EVERY = (0, 1, 2), 5               # a sample is kept at every fifth step
FILE = shipped_model().parent / "zoo.json"
NUMBERS = ("reward", "truth", "tokens", "alarm")


def run(name: str, cure: bool, seed: int) -> dict:
    "One run: a number for each step, and samples."
    sightings = list(hunt(name, cure, seed))
    last = sightings[-1].n
    found = {"seed": seed} | {key: [float(f"{getattr(s, key):.4g}") for s in sightings]
                              for key in NUMBERS}
    if seed == SEEDS[0]:
        found["question"] = sightings[0].question
        found["samples"] = [[s.n, s.text] for s in sightings if s.n % EVERY == 0 or s.n == last]
    return found


def facts(name: str) -> dict:
    "What there is to say of an animal."
    animal = ZOO[name]
    said = {key: getattr(animal, key) for key in ("meant", "pays", "truth", "notice")}
    return said | {"remedy": animal.cure}                # "cure" holds the cure's runs


def write(book: dict) -> None:
    text = json.dumps(book, ensure_ascii=False, separators=(",", ":")) + "\n"
    write_whole(FILE, lambda path: path.write_text(text, encoding="utf-8"))


def table(book: dict) -> None:
    "Before and after, by seed: the mean of the first report, and of the last three."
    print("| animal | run | reward | truth | alarm |\n|---|---|---|---|---|")
    for name, animal in book["animals"].items():
        for kind in ("hack", "cure"):
            cells = []
            for key in ("reward", "truth", "alarm"):
                ends = [f"{r[key][0]:.2f} → {sum(r[key][-3:]) / 3:.2f}" for r in animal[kind]]
                cells.append(", ".join(ends))
            print(f"| {name} | {kind} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(ZOO), default=list(ZOO))
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    book = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {"animals": {}}
    if not args.table:
        old = book["animals"]
        book = {"torch": torch.__version__, "machine": platform.machine(), "every": EVERY,
                "animals": {name: old.get(name, {}) for name in ZOO}}
        for name in args.only:
            book["animals"][name] = facts(name) | {"hack": [], "cure": []}
        for seed in SEEDS:
            for name in args.only:
                for kind in ("hack", "cure"):
                    began = time.process_time()
                    book["animals"][name][kind].append(run(name, kind == "cure", seed))
                    last = book["animals"][name][kind][-1]
                    print(f"{name} {kind} seed {seed}: reward {last['reward'][0]} to "
                          f"{last['reward'][-1]}, truth {last['truth'][0]} to {last['truth'][-1]}, "
                          f"{time.process_time() - began:.0f} s", flush=True)
            if all(book["animals"].values()):
                write(book)
    table(book)


if __name__ == "__main__":
    main()
