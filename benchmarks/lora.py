"""Full fine-tuning, LoRA and QLoRA on their chapter's lesson, at two rates and three seeds.

    python -m benchmarks.lora        # about four minutes of one core

The lesson: answer with the bare fact. Prints one row of JSON a run.
"""
import copy
import json
import random

import numpy as np
import torch

from minigpt import GPT, Batches, load, train
from minigpt.evaluation import answer
from minigpt.lora import add_lora, merge, to_nf4
from minigpt.optim import adamw_for
from minigpt.tinytown import Tinytown
from minigpt.training import evaluate

RATES = {"full": (3e-4, 1e-3), "lora": (3e-3, 1e-2), "qlora": (3e-3, 1e-2)}


def main() -> None:
    "Thirty steps of eight windows of 64 tokens; a hundred questions; the loss on the lesson."
    base, tokenizer = load()
    end, town = tokenizer.end_of_text, Tinytown(0)

    def ids_of(texts: list[str]) -> np.ndarray:
        "Texts in a row, each behind the marker."
        return np.array([i for t in texts for i in (end, *tokenizer.encode(t))], dtype=np.uint16)

    old = ids_of([d.text for d in town.corpus(150_000, 5_000_000) if "Q:" not in d.text])
    for seed in range(3):
        questions = town.questions(held_out=False)
        random.Random(seed).shuffle(questions)
        asked, lesson = questions[-100:], questions[:-100]
        rows = [ids_of([f"{q.prompt} {q.answer}\n" for q in some]) for some in (lesson, asked)]
        for how, rates in RATES.items():
            for lr in rates:
                torch.manual_seed(seed)
                pupil: GPT = copy.deepcopy(base).train()
                if how == "qlora":
                    to_nf4(pupil)
                if how != "full":
                    add_lora(pupil, rank=8, alpha=16)
                batches = Batches(rows[0], 8, 64, seed=seed, end_of_text=end)
                for _ in train(pupil, batches, adamw_for(pupil, lr, weight_decay=0.0), 30):
                    pass
                if how != "full":
                    merge(pupil, keep=False)
                said = answer(pupil.eval(), tokenizer, [q.prompt for q in asked], 12)
                print(json.dumps({
                    "how": how, "lr": lr, "seed": seed,
                    "loss": round(evaluate(pupil, rows[1], 64, 16, end_of_text=end), 3),
                    "old": round(evaluate(pupil, old, 256, 16, end_of_text=end), 3),
                    "right": sum(s.strip() == q.answer for s, q in zip(said, asked))}), flush=True)


if __name__ == "__main__":
    main()
