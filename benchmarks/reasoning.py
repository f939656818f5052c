"""Teach the chat model sums, some with their steps, and put the result into the package.

    python -m benchmarks.reasoning runs/sums           # trains: a minute of one core
    python -m benchmarks.reasoning runs/sums --ship    # measures it, and ships it
    python -m benchmarks.reasoning runs --compare      # bare, worked and distilled, three seeds

A third of the examples is worked, the others are bare. It is meant to be half taught: the chapters
on reinforcement and on reasoning go on from there.
"""
import argparse
import json
import platform
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.ship import into_package
from minigpt import GPT, load, save_model
from minigpt.chat import replies
from minigpt.evaluation import wilson
from minigpt.finetuning import Example, Packed, answer_loss
from minigpt.optim import muon_for, trapezoid
from minigpt.preference import chat_answer
from minigpt.reasoning import is_right, sum_examples, sum_pairs, sum_question
from minigpt.sampling import temperature
from minigpt.training import train

STEPS, ROWS, LENGTH, SHARE, RATE = 180, 8, 128, 0.35, 0.003


def learn(model: GPT, examples: list[Example], steps: int, seed: int) -> None:
    "Muon and AdamW, eight rows of 128 tokens a step."
    torch.manual_seed(seed)
    schedule = partial(trapezoid, steps=steps, warmup=steps // 20, cooldown=steps * 6 // 10)
    for _ in train(model.train(), Packed(examples, ROWS, LENGTH, seed),
                   muon_for(model, RATE, 2.5 * RATE, 0.0), steps, schedule, objective=answer_loss):
        pass
    model.eval()


def teach(folder: Path, seed: int, steps: int, share: float) -> None:
    "Train, and write the model down in 8 bits with its facts."
    model, tokenizer = load("chat")
    start, cpu = time.perf_counter(), time.process_time()
    learn(model, sum_examples(tokenizer, 50 * steps, share, seed), steps, seed)
    about = {"recipe": "python -m benchmarks.reasoning", "seed": seed, "steps": steps,
             "share of worked sums": share, "rate": RATE,
             "seconds": round(time.perf_counter() - start),
             "processor seconds": round(time.process_time() - cpu),
             "threads": torch.get_num_threads(), "torch": torch.__version__,
             "python": platform.python_version(), "parameters": model.num_parameters()}
    save_model(folder, model, tokenizer, about, bits=8)
    (folder / "facts.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def measure(folder: Path, n: int = 1000) -> dict:
    "Right answers to held-out sums, how many think, greedily and at temperature 1."
    model, tokenizer = load(folder)
    asked, facts = sum_pairs(held_out=True)[:n], {"held-out sums": n}
    for name, t in (("likeliest", 0.0), ("drawn", 1.0)):
        said = replies(model, tokenizer, [sum_question(*pair) for pair in asked], 60,
                       [temperature(t)])
        marks = [is_right(reply, *pair) for reply, pair in zip(said, asked)]
        thinks = ["=" in reply for reply in said]
        facts[f"{name}, right"] = [round(x, 4) for x in wilson(sum(marks), n)]
        facts[f"{name}, thinks"] = round(sum(thinks) / n, 4)
        for kind, wanted in (("thinks", True), ("blurts", False)):
            these = [mark for mark, think in zip(marks, thinks) if think == wanted]
            facts[f"{name}, right if it {kind}"] = [sum(these), len(these)]
    return facts


def right(model: GPT, tokenizer, pairs: list[tuple[int, int]]) -> tuple[list[str], list[bool]]:
    "The likeliest answers, and which of them are right."
    said = replies(model, tokenizer, [sum_question(*pair) for pair in pairs], 60)
    return said, [is_right(reply, *pair) for reply, pair in zip(said, pairs)]


def compare(seeds: int) -> None:
    "The same tokens of bare sums, of worked ones, and of a worker's answers without their steps."
    exam, to_learn = sum_pairs(held_out=True)[:500], sum_pairs(held_out=False)
    for seed in range(seeds):
        for steps in (90, 180, 360):
            models = {}
            for name, share in (("bare", 0.0), ("worked", 1.0)):
                models[name], tokenizer = load("chat")
                n = 150 * steps // (4 if share else 1)      # worked ones are four times as long
                examples = sum_examples(tokenizer, n, share, seed)
                learn(models[name], examples, steps, seed)
            teacher_said, teacher_right = right(models["worked"], tokenizer, to_learn[:2000])
            lessons = [chat_answer(tokenizer, sum_question(*pair), reply.split(" ")[-1])
                       for pair, reply in zip(to_learn, teacher_said)]
            truths = [chat_answer(tokenizer, sum_question(*pair), f"{sum(pair)}.")
                      for pair in to_learn[:2000]]
            for name, examples in (("distilled", lessons), ("bare, same 2,000", truths)):
                if steps == 180:
                    models[name], _ = load("chat")
                    learn(models[name], examples, steps, seed)
            for name, model in models.items():
                print(json.dumps({
                    "kind": name, "seed": seed, "steps": steps,
                    "right": sum(right(model, tokenizer, exam)[1]) / len(exam),
                    "teacher": sum(teacher_right) / 2000 if name == "distilled" else None}),
                    flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--share", type=float, default=SHARE, help="of worked sums")
    parser.add_argument("--ship", action="store_true", help="measure it, and ship it")
    parser.add_argument("--compare", action="store_true", help="bare, worked, distilled: 3 seeds")
    args = parser.parse_args()
    if args.compare:
        compare(3)
    elif args.ship:
        into_package("sums", args.folder, measure(args.folder))
    else:
        teach(args.folder, args.seed, args.steps, args.share)
