"""Train the runs that the chapter on scaling laws is about, and note what came.

    python -m benchmarks.scaling rates       # which rate suits which width: 8 minutes of one core
    python -m benchmarks.scaling grid        # small runs, three seeds: 25 minutes of one core
    python -m benchmarks.scaling predict     # write down what they say about the large model
    python -m benchmarks.scaling large       # and only then train it, three seeds: 50 minutes
    python -m benchmarks.scaling mistakes    # a low rate for all, no cooldown: 12 minutes
    python -m benchmarks.scaling people      # who is known when, in one run: 3 minutes
    python -m benchmarks.scaling recipe      # the Tinytown recipe, short and narrow: 20 minutes
    python -m benchmarks.scaling law         # fit the law that `minigpt plan` uses
    python -m benchmarks.scaling plan        # what `plan` expects of two budgets, and what comes

Finished runs are kept in the file, `minigpt/shipped/scaling.json`, so that each part can be
stopped and started again, and several processes can share the work.
"""
import argparse
import json
import math
import os
import random
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from filelock import FileLock

from minigpt.checkpoint import shipped_model, write_whole
from minigpt.data import Batches, encode_documents, load_tokens
from minigpt.loss import document_loss
from minigpt.optim import trapezoid
from minigpt.recipe import RECIPES, Recipe, build, prepare, sized
from minigpt.scaling import County, fit_law, interval, plan, recipe_law, small_config, train_small
from minigpt.sizes import count_parameters
from minigpt.tinytown import QUESTIONS, Chooser
from minigpt.tokenizer import Tokenizer, train_tokenizer
from minigpt.training import evaluate, train

from .machine import ROOT

FILE = shipped_model().parent / "scaling.json"
LOCK = FileLock(ROOT / "runs" / "scaling.lock")     # several processes may share the work
WIDTHS, BUDGETS, SEEDS = (24, 32, 48, 64), (500_000, 1_000_000, 2_000_000), (0, 1, 2)
LR, ADAMW_LR = 0.04, 0.01    # each the best of its row in `rates`; the pair is not among them
LARGE = {"width": 208, "n_tokens": 4_000_000}
N_DOCUMENTS, N_HELD_OUT, N_FAMOUS = 200_000, 10_000, 64


def county() -> tuple[County, Tokenizer, list, list]:
    "The text: tokens to train on, and documents that no run sees."
    world = County()
    texts = [d.text for d in world.documents(N_DOCUMENTS, seed=1)]
    tokenizer = train_tokenizer(texts[:30_000], 512)
    return world, tokenizer, encode_documents(tokenizer, texts), world.documents(N_HELD_OUT, seed=2)


@torch.no_grad()
def probe(model: torch.nn.Module, world: County, tokenizer: Tokenizer) -> list[list[float]]:
    "For each famous person and relation: nats for the answer, and whether its tokens come first."
    rows = []
    for rank in range(N_FAMOUS):
        asked = [world.question(Chooser(random.Random(0)), rank, r) for r in QUESTIONS]
        for question in asked:
            start = [tokenizer.end_of_text, *tokenizer.encode(question.prompt)]
            ids = [tokenizer.end_of_text,
                   *tokenizer.encode(f"{question.prompt} {question.answer}"), tokenizer.end_of_text]
            logits = model(torch.tensor([ids[:-1]]))[0, len(start) - 1:]
            true = torch.tensor(ids[len(start):])
            nats = torch.nn.functional.cross_entropy(logits, true, reduction="sum").item()
            rows.append([rank, nats, bool((logits.argmax(-1) == true).all())])
    return rows


def facts(model: torch.nn.Module, text: tuple) -> dict:
    "What a finished run is judged by."
    world, tokenizer, _, held_out = text
    ids = [tokenizer.encode(d.text) for d in held_out]
    bits = document_loss(model, ids, tokenizer.end_of_text, 256) / math.log(2)
    over = bits - torch.tensor([d.bits for d in held_out])
    asked = probe(model, world, tokenizer)
    right = [[r for rank, _, r in asked if rank == n] for n in range(N_FAMOUS)]
    sizes = count_parameters(model.cfg)
    return {"weights": sizes["total"], "embedding": model.embedding.weight.numel(),
            "bits": round(bits.mean().item(), 4), "floor": round((bits - over).mean().item(), 4),
            "error": round(over.std().item() / len(over) ** 0.5, 4),
            "answer_nats": round(sum(nats for _, nats, _ in asked) / len(asked), 4),
            "right": round(sum(map(sum, right)) / len(asked), 4),
            "all_right": round(sum(map(all, right)) / N_FAMOUS, 4)}


def read() -> dict:
    "The record, or an empty one."
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {"runs": []}


def write(book: dict) -> None:
    "The record, a run in a line."
    rows = ",\n  ".join(json.dumps(run) for run in sorted(book["runs"], key=lambda r: json.dumps(
        [r["part"], r["width"], r["n_tokens"], r["seed"], r["lr"], r["adamw_lr"]])))
    rest = "".join(f',\n "{key}": {json.dumps(book[key])}' for key in book if key != "runs")
    text = f'{{"runs": [\n  {rows}]{rest}\n}}\n'
    write_whole(FILE, lambda path: path.write_text(text, encoding="utf-8"))


def is_same(run: dict, job: dict) -> bool:
    "Whether a run in the record is that job."
    return all(run[key] == value for key, value in job.items())


def do(jobs: list[dict]) -> None:
    "Train what the record lacks."
    text = None
    for job in jobs:
        if any(is_same(run, job) for run in read()["runs"]):
            continue
        text = text or county()
        began = sum(os.times()[:2])
        model = train_small(text[2], text[1], **{k: v for k, v in job.items() if k != "part"})
        run = job | {"seconds": round(sum(os.times()[:2]) - began, 1)} | facts(model, text)
        with LOCK:
            book = read()
            book["runs"].append(run)
            write(book)
        print(run, flush=True)


def jobs_of(part: str) -> list[dict]:
    "The runs of a part."
    base = {"part": part, "n_tokens": 1_000_000, "seed": 0, "adamw_lr": 0.02, "cooldown": 0.8}
    if part == "rates":
        tried = [(lr, 0.02) for lr in (0.01, 0.02, 0.04, 0.08)] + [(0.02, 0.01), (0.02, 0.04)]
        return [base | {"width": width, "lr": lr, "adamw_lr": adamw_lr}
                for width in (16, *WIDTHS) for lr, adamw_lr in tried]
    base |= {"lr": LR, "adamw_lr": ADAMW_LR}
    sizes = [{"width": width, "n_tokens": n}
             for n in reversed(BUDGETS) for width in reversed(WIDTHS)]
    if part == "grid":
        return [base | size | {"seed": seed} for seed in SEEDS for size in sizes]
    if part == "large":
        return [base | LARGE | {"seed": seed} for seed in SEEDS]
    if part == "mistakes":
        low = {"part": "low rate", "lr": 0.005, "adamw_lr": 0.0025}
        flat = {"part": "no cooldown", "cooldown": 0.0}
        return [base | size | mistake for mistake in (low, flat) for size in sizes]
    raise ValueError(part)


def people() -> None:
    "Ask about people of different fame while one model learns."
    text, ranks, rows = county(), (0, 2, 7, 20), []
    steps = 2_000_000 // 1024

    def look(model: torch.nn.Module, n: int) -> None:
        if n != steps and n not in {round(2 ** (i / 3)) for i in range(15, 40)}:
            return
        model.eval()
        asked = probe(model, text[0], text[1])
        model.train()
        row: dict = {"n_tokens": n * 1024, "nats": round(sum(a[1] for a in asked) / len(asked), 4),
                     "right": sum(a[2] for a in asked) / len(asked)}
        for rank in ranks:
            some = [a for a in asked if a[0] == rank]
            row[str(rank)] = [round(sum(a[1] for a in some) / len(some), 4),
                              sum(a[2] for a in some)]
        rows.append(row)
        print(row, flush=True)
    train_small(text[2], text[1], 64, 2_000_000, LR, ADAMW_LR, look=look)
    with LOCK:
        write(read() | {"people": rows})


def planned(n_layer: int, d_model: int, n_head: int, n_tokens: int) -> Recipe:
    "The Tinytown recipe in another size, for as many tokens."
    recipe = sized(RECIPES["tinytown"], n_layer, d_model, n_head, 8)
    return replace(recipe, steps=n_tokens // (8 * recipe.model.context_length))


def train_recipe(folder: Path, recipe: Recipe) -> dict:
    "One run as `minigpt train` makes it, without its log."
    batches = Batches(load_tokens(folder / "train.npy"), recipe.batch_size,
                      recipe.model.context_length, recipe.seed, 0)
    model, optimizers = build(recipe)
    schedule = partial(trapezoid, steps=recipe.steps, warmup=int(recipe.warmup * recipe.steps),
                       cooldown=int(recipe.cooldown * recipe.steps))
    began = time.perf_counter()
    for _ in train(model, batches, optimizers, recipe.steps, schedule):
        pass
    seconds = time.perf_counter() - began
    loss = evaluate(model, load_tokens(folder / "validation.npy"), recipe.model.context_length,
                    end_of_text=0)
    return {"weights": count_parameters(recipe.model)["total"], "seconds": round(seconds, 1),
            "n_tokens": recipe.steps * recipe.batch_size * recipe.model.context_length,
            "nats": round(loss, 4)}


def recipe_runs(share: tuple[int, int]) -> None:
    "Short and narrow runs of the recipe that `minigpt plan` starts from."
    jobs = [(n_layer, d_model, n_head, n) for (n_layer, d_model, n_head), budgets in (
        ((4, 160, 4), (1_200_000, 500_000)), ((4, 128, 4), (1_000_000, 500_000)),
        ((2, 96, 2), (2_000_000, 1_000_000, 500_000))) for n in budgets]
    folder = prepared()
    for job in jobs[share[0]::share[1]]:
        key = {"layers": job[0], "width": job[1], "asked": job[3]}
        if not any(is_same(run, key) for run in read().get("recipe", [])):
            run = key | train_recipe(folder, planned(*job))
            with LOCK:
                book = read()
                book["recipe"] = [*book.get("recipe", []), run]
                write(book)
            print(run, flush=True)


def prepared() -> Path:
    "The recipe's text as tokens, made once."
    folder = ROOT / "runs" / "scaling"
    with LOCK:
        if not (folder / "recipe.json").exists():
            prepare(folder, RECIPES["tinytown"])
    return folder


def fit_recipe() -> None:
    "Fit the law that `minigpt plan` uses, the shipped model's run included."
    book, facts = read(), json.loads((shipped_model() / "facts.json").read_text("utf-8"))
    floor = facts["validation loss, nats a token"] * (
        facts["floor_bits a document"] / facts["held_out_bits a document"])
    points = [(r["weights"], r["n_tokens"], r["nats"]) for r in book["recipe"]]
    points.append((facts["parameters"], facts["tokens seen"],
                   facts["validation loss, nats a token"]))
    laws = {form: fit_law(points, floor, form, slack=0.01) for form in ("sum", "shared")}
    for law in laws.values():
        print(law, [f"{loss / law.loss(n, d) - 1:+.1%}" for n, d, loss in points])
    write(book | {"recipe law": asdict(laws["sum"])})


def check_plan(minutes: tuple[float, ...] = (2, 4)) -> None:
    "What `minigpt plan` expects of so many minutes on this machine, and what comes."
    folder = prepared()
    for budget in minutes:
        recipe = plan(budget)
        size = count_parameters(recipe.model)["total"]
        n_tokens = recipe.steps * recipe.batch_size * recipe.model.context_length
        expected = recipe_law().loss(size, n_tokens)
        run = {"minutes": budget, "expected": round(expected, 4)} | train_recipe(folder, recipe)
        print(run | {"off": f"{expected / run['nats'] - 1:+.1%}"}, flush=True)
        with LOCK:
            book = read()
            book["plan"] = [*(r for r in book.get("plan", []) if r["minutes"] != budget), run]
            write(book)


def predict() -> None:
    "Write down what the small runs say about the large one, in several ways, before it is trained."
    book = read()
    if any(run["part"] == "large" for run in book["runs"]):
        raise SystemExit("the large model is trained already, so this would be no prediction")
    grid = [run for run in book["runs"] if run["part"] == "grid"]
    floor, n_tokens = grid[0]["floor"], LARGE["n_tokens"]
    n_weights = count_parameters(small_config(LARGE["width"]))["total"]
    book["predictions"] = []
    for least in (24, 32):
        points = [(r["weights"], r["n_tokens"], r["bits"]) for r in grid if r["width"] >= least]
        for form in ("shared", "sum"):
            for known in (floor, None):
                law = fit_law(points, known, form)
                low, high = interval(points, n_weights, n_tokens, known, form)
                book["predictions"].append({
                    "least width": least, "form": form, "floor known": known is not None,
                    "runs": len(points), "bits": round(law.loss(n_weights, n_tokens), 4),
                    "low": round(low, 4), "high": round(high, 4)})
                print(book["predictions"][-1])
    write(book)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["rates", "grid", "predict", "large", "mistakes",
                                         "people", "recipe", "law", "plan"])
    parser.add_argument("--share", default="0/1", help="i/n: every n-th run, from the i-th")
    args = parser.parse_args()
    share = tuple(map(int, args.share.split("/")))
    (ROOT / "runs").mkdir(parents=True, exist_ok=True)
    if args.part == "plan":
        return check_plan()
    torch.set_num_threads(1)
    if args.part == "predict":
        predict()
    elif args.part == "people":
        people()
    elif args.part == "recipe":
        recipe_runs(share)
    elif args.part == "law":
        fit_recipe()
    else:
        do(jobs_of(args.part)[share[0]::share[1]])


if __name__ == "__main__":
    main()
