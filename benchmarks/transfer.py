"""How many documents does a trained model need for a second town, and how many a fresh one?

    python -m benchmarks.transfer        # three seeds: about fifty minutes of one core

Prints one row of JSON a run; the chapter on fine-tuning shows them as a table.
"""
import argparse
import json
import math
import time
from collections.abc import Iterable
from functools import partial
from itertools import islice

import torch

from minigpt import GPT, load
from minigpt.evaluation import pick, sit
from minigpt.finetuning import Packed, answer_loss, text_example
from minigpt.loss import document_loss
from minigpt.optim import muon_for, trapezoid
from minigpt.tinytown import NEWCOMERS, Tinytown
from minigpt.training import train

FIRST, SECOND = Tinytown(0), Tinytown(7, NEWCOMERS)       # nobody lives in both


def documents(town: Tinytown, n: int, seed: int) -> list[str]:
    "New documents of a town."
    return [d.text for d in islice(town.corpus(10**12, seed), n)]


def bits(model: GPT, tokenizer, town: Tinytown, n: int = 150) -> float:
    "Bits above the floor, a document, on documents that no run has seen."
    fits = lambda d: len(tokenizer.encode(d.text)) < model.cfg.context_length
    new = list(islice(filter(fits, town.corpus(10**12, 10**6)), n))
    nats = document_loss(model, [tokenizer.encode(d.text) for d in new], tokenizer.end_of_text)
    return nats.mean().item() / math.log(2) - sum(d.bits for d in new) / n


def right(model: GPT, tokenizer, town: Tinytown, n: int = 200) -> float:
    "Share of questions in held-out phrasings; not those for owners, since towns share pets' names."
    asked = [q for q in town.questions(held_out=True) if q.relation != "owner"]
    return sum(sit(model, tokenizer, pick(asked, n, 0))) / n


def learn(model: GPT, tokenizer, texts: Iterable[str], steps: int, lr: float, seed: int) -> None:
    "Muon and AdamW at the recipe's proportion of rates, eight rows a step."
    examples = [e for e in (text_example(tokenizer, t) for t in texts) if len(e.ids) <= 257]
    batches, model = Packed(examples, 8, 256, seed), model.train()
    for _ in train(model, batches, muon_for(model, lr, 2.5 * lr, 0.02), steps,
                   partial(trapezoid, steps=steps, warmup=steps // 50 + 1,
                           cooldown=int(0.8 * steps)), objective=answer_loss):
        pass
    model.eval()


def report(**row) -> None:
    "One run as one row."
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}),
          flush=True)


RUNS = (("tuned", 400, 150, 0.004), ("tuned", 1600, 600, 0.004),      # documents, steps, rate
        ("fresh", 1600, 600, 0.008), ("fresh", 6400, 600, 0.008))


def curve(seeds: int) -> None:
    "A fresh model and a trained one, on documents of the second town."
    for seed in range(seeds):
        for kind, n, steps, lr in RUNS:
            base, tokenizer = load()
            torch.manual_seed(seed)
            model = base if kind == "tuned" else GPT(base.cfg)
            start = time.process_time()
            learn(model, tokenizer, documents(SECOND, n, 100 + seed), steps, lr, seed)
            minutes = (time.process_time() - start) / 60
            report(run=kind, documents=n, seed=seed, steps=steps, lr=lr, minutes=minutes,
                   above=bits(model, tokenizer, SECOND), right=right(model, tokenizer, SECOND))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    curve(parser.parse_args().seeds)
