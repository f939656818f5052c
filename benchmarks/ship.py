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
from minigpt.config import count_parameters
from minigpt.inference import complete
from minigpt.loss import document_loss
from minigpt.recipe import read_recipe
from minigpt.sampling import temperature
from minigpt.tinytown import Tinytown

UNSEEN = 424_242      # a seed that neither training nor validation uses


def share_right(model, tokenizer, town: Tinytown, held_out: bool, n: int) -> float:
    "Share of a sample of questions that the model answers right, greedily."
    questions = town.questions(held_out)
    random.Random(UNSEEN).shuffle(questions)
    right = 0
    for q in questions[:n]:
        reply = "".join(complete(model, tokenizer, q.prompt, 40, [temperature(0)], stop=["\n"]))
        right += q.is_correct(reply)
    return right / n


def measure(folder: Path) -> dict:
    "The facts of a finished run: its cost, its losses, and how much of the town it knows."
    recipe = read_recipe(folder)
    model, tokenizer = load_model(folder / "model.safetensors")
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    log = [json.loads(line) for line in lines]
    seconds = sum(a["seconds"] for a, b in zip(log, log[1:] + [{"seconds": -1}])
                  if b["seconds"] < a["seconds"])
    town = Tinytown(recipe.seed)
    documents = [d for _, d in zip(range(1000), town.corpus(10**8, seed=UNSEEN))]
    ids = [tokenizer.encode(d.text) for d in documents]
    bits = document_loss(model, ids, tokenizer.end_of_text).sum().item() / math.log(2)
    floor = sum(d.bits for d in documents)
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
        "right answers, held-out phrasings": share_right(model, tokenizer, town, True, 704),
        "right answers, known phrasings": share_right(model, tokenizer, town, False, 704),
        "curve": [(row["step"], round(row["validation"], 4)) for row in log if "validation" in row],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    folder = parser.parse_args().run
    facts = measure(folder)
    shipped_model().mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "recipe.json"):
        shutil.copy(folder / name, shipped_model() / name)
    text = json.dumps(facts, indent=1) + "\n"
    (shipped_model() / "facts.json").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
