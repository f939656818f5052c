"""Measure a finished Tinytown run and put its model into the package.

python -m benchmarks.ship runs/tinytown
"""
import argparse
import json
import math
import platform
import random
import shutil
from pathlib import Path

import torch

from minigpt.checkpoint import load_model, shipped_model
from minigpt.evaluation import answer, new_sums, sit
from minigpt.loss import document_loss
from minigpt.recipe import read_recipe
from minigpt.sizes import count_parameters
from minigpt.tinytown import DOES_NOT_SAY, SHARES, Question, Tinytown

UNSEEN = 424_242      # a seed that neither training nor validation uses


def share_right(model, tokenizer, questions: list[Question]) -> float:
    "Share of the questions that the model answers right, greedily."
    return sum(sit(model, tokenizer, questions)) / len(questions)


def reading(model, tokenizer, town: Tinytown, n: int = 500, seed: int = UNSEEN) -> dict:
    "How well it reads notes about people whom it never saw, in words that it never saw."
    facts = {}
    for kind, name in (("told", "about strangers"), ("pretend", "against the town's truth"),
                       ("untold", "where the note does not say"), ("absent", "about the absent")):
        questions = town.newcomers(n, kind, seed)
        said = answer(model, tokenizer, [q.prompt for q in questions])
        facts[f"right by the note, {name}"] = sum(
            q.is_correct(reply) for q, reply in zip(questions, said)) / n
        if kind in ("told", "pretend"):
            facts[f"\"does not say\" though it does, {name}"] = sum(
                DOES_NOT_SAY in reply for reply in said) / n
    return facts


def sums_right(model, tokenizer, town: Tinytown, n: int = 300, seed: int = UNSEEN) -> float:
    "Share of new small sums that it finishes right."
    items = new_sums(town, n, seed)
    said = answer(model, tokenizer, [item.prompt for item in items], 4)
    return sum(item.is_correct(reply) for item, reply in zip(items, said)) / n


def measure(folder: Path) -> dict:
    "The facts of a finished run: its cost, its losses, and how much of the town it knows."
    recipe = read_recipe(folder)
    model, tokenizer = load_model(folder / "model.safetensors")
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    log = [json.loads(line) for line in lines]
    seconds = sum(a["seconds"] for a, b in zip(log, log[1:] + [{"seconds": -1}])
                  if b["seconds"] < a["seconds"])
    town = Tinytown(recipe.seed)
    known, held_out = (random.Random(UNSEEN).sample(town.questions(held), 704)
                       for held in (False, True))
    documents = [d for _, d in zip(range(1000), town.corpus(10**8, seed=UNSEEN))]
    ids = [tokenizer.encode(d.text) for d in documents]
    bits = document_loss(model, ids, tokenizer.end_of_text) / math.log(2)
    over = {kind: [(b, d.bits) for b, d in zip(bits.tolist(), documents) if d.kind == kind]
            for kind in SHARES}
    bits, floor = bits.sum().item(), sum(d.bits for d in documents)
    return {
        "recipe": "tinytown",
        "seed": recipe.seed,
        "parameters": count_parameters(recipe.model)["total"],
        "steps": recipe.steps,
        "tokens seen": recipe.steps * recipe.batch_size * recipe.model.context_length,
        "minutes": round(seconds / 60, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "last batch loss, nats a token": round(log[-1]["loss"], 4),
        "validation loss, nats a token": round(log[-1]["validation"], 4),
        "held_out_bits a document": round(bits / len(documents), 2),
        "floor_bits a document": round(floor / len(documents), 2),
        "held_out_bits / floor_bits": round(bits / floor, 4),
        "bits above the floor a document, by kind": {
            kind: round(sum(b - f for b, f in pairs) / len(pairs), 2)
            for kind, pairs in over.items()},
        "right answers, held-out phrasings": share_right(model, tokenizer, held_out),
        "right answers, known phrasings": share_right(model, tokenizer, known),
        **reading(model, tokenizer, town),
        "sums right": sums_right(model, tokenizer, town),
        "curve": [(row["step"], round(row["validation"], 4)) for row in log if "validation" in row],
    }


def into_package(name: str, folder: Path, measured: dict, more: tuple[str, ...] = ()) -> None:
    "Copy a trained model and more of its files into the package, with its facts and measurements."
    home, facts = shipped_model(name), folder / "facts.json"
    told = json.loads(facts.read_text(encoding="utf-8")) if facts.exists() else {}
    home.mkdir(parents=True, exist_ok=True)
    for file in ("model.safetensors", "config.json", "tokenizer.json", *more):
        shutil.copy(folder / file, home / file)
    text = json.dumps({**told, **measured}, indent=1) + "\n"
    (home / "facts.json").write_text(text, encoding="utf-8")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    folder = parser.parse_args().run
    into_package("tinytown", folder, measure(folder), ("recipe.json",))


if __name__ == "__main__":
    main()
