"""Teach the chat model to call tools, measure it, and put it into the package.

    python -m benchmarks.agent runs/agent              # trains: about 12 minutes of one quiet core
    python -m benchmarks.agent runs/agent --ship       # measures it, and ships it
    python -m benchmarks.agent runs --compare          # five ways to know ninety people

Six tenths of the tokens are errands with tools, three are conversations as the chat model knows
them, and one is the town's documents, so that it forgets neither.
"""
import argparse
import json
import platform
import random
import re
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.ship import into_package
from minigpt import load, save_model
from minigpt.agent import Agent, add_tool_tokens, tool_example, tool_ids
from minigpt.chat import chat_example, replies
from minigpt.conversations import chat_exam, conversation
from minigpt.errands import ERRAND_SHARES, Gazette, Register, errand_exam, errands
from minigpt.evaluation import answer, wilson
from minigpt.finetuning import Example, Packed, answer_example, answer_loss, text_example
from minigpt.memory import BM25
from minigpt.optim import muon_for, trapezoid
from minigpt.preference import stack
from minigpt.tinytown import Chooser, Tinytown
from minigpt.tokenizer import Tokenizer
from minigpt.tools import Toolbox
from minigpt.training import train

TOWN = Tinytown(0)
STEPS, ROWS, LENGTH = 1800, 8, 256
SHARES = {"errands": 0.6, "conversations": 0.3, "documents": 0.1}      # of the tokens
RATES = (0.004, 0.01)             # Muon's and AdamW's


def one_conversation(tokenizer: Tokenizer, rng: random.Random) -> Example:
    "A conversation without tools, cut by whole turns until it fits."
    messages = conversation(Chooser(rng), TOWN).messages
    while len(chat_example(tokenizer, messages).ids) > LENGTH + 1 and len(messages) > 3:
        messages = messages[:-2]
    return chat_example(tokenizer, messages)


def lessons(tokenizer: Tokenizer, n_tokens: int, seed: int) -> list[Example]:
    "Errands, conversations and documents that fit into a row."
    rng, examples = random.Random(seed + 100), []
    documents = TOWN.corpus(10**12, seed + 101, 0.2)
    makers = {"errands": lambda: tool_example(tokenizer, errands(rng, TOWN)),
              "conversations": lambda: one_conversation(tokenizer, rng),
              "documents": lambda: text_example(tokenizer, next(documents).text)}
    for name, share in SHARES.items():
        left = n_tokens * share
        while left > 0:
            example = makers[name]()
            if len(example.ids) <= LENGTH + 1:
                examples.append(example)
                left -= len(example.ids)
    return examples


def teach(folder: Path, seed: int, steps: int) -> None:
    "Train, and write the model down in 8 bits with its facts."
    torch.manual_seed(seed)
    model, tokenizer = add_tool_tokens(*load("chat"))
    batches = Packed(lessons(tokenizer, steps * ROWS * (LENGTH + 1), seed), ROWS, LENGTH, seed)
    schedule = partial(trapezoid, steps=steps, warmup=steps // 50, cooldown=steps * 8 // 10)
    start, cpu = time.perf_counter(), time.process_time()
    for step in train(model.train(), batches, muon_for(model, *RATES, 0.02), steps, schedule,
                      objective=answer_loss):
        if step.n % 100 == 0:
            print(f"{step.n} {step.loss:.3f} {time.perf_counter() - start:.0f} s", flush=True)
    about = {"recipe": "python -m benchmarks.agent", "seed": seed, "steps": steps,
             "tokens seen": steps * ROWS * LENGTH, "shares": SHARES, "rates": list(RATES),
             "minutes": round((time.perf_counter() - start) / 60, 1),
             "processor minutes": round((time.process_time() - cpu) / 60, 1),
             "threads": torch.get_num_threads(), "torch": torch.__version__,
             "python": platform.python_version(), "parameters": model.num_parameters()}
    save_model(folder, model.eval(), tokenizer, about, bits=8)
    (folder / "facts.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def right_errands(model, tokenizer, kind: str, n: int, seed: int = 7) -> int:
    "How many errands of a kind end with the right reply."
    register, asked = errand_exam(kind, TOWN, n, seed)
    agent = Agent(model, tokenizer, Toolbox(register.tools()), confirm=lambda call: True)
    runs = agent.run_many([[{"role": "user", "content": one.user}] for one in asked])
    return sum(run.messages[-1]["content"] == one.reply for run, one in zip(runs, asked))


def sums_alone(model, tokenizer, n: int, seed: int = 7) -> int:
    "How many of the same sums it gets right where it has no tools."
    _, asked = errand_exam("sum", TOWN, n, seed)
    said = replies(model, tokenizer, [[{"role": "user", "content": one.user}] for one in asked], 40)
    return sum(reply == one.reply for reply, one in zip(said, asked))


def measure(folder: Path, n: int = 300) -> dict:
    "Facts about the model in a folder."
    model, tokenizer = load(folder)
    facts = {"errands of each exam": n}
    counts = {kind: right_errands(model, tokenizer, kind, n) for kind in ERRAND_SHARES}
    counts |= {"sum, without tools": sums_alone(model, tokenizer, n)}
    for name in ("single", "follow-up", "manner", "told"):
        asked = chat_exam(name, TOWN, n, 7)
        said = replies(model, tokenizer, [exchange.messages for exchange in asked])
        counts[f"chat, {name}"] = sum(e.is_correct(r) for e, r in zip(asked, said))
    for name, count in counts.items():
        facts[f"{name}, right"] = [round(x, 4) for x in wilson(count, n)]
        print(name, facts[f"{name}, right"], flush=True)
    return facts


def tuned_reader(gazette: Gazette, seed: int):
    "The base model, taught a gazette's facts; a quarter of each batch is old text."
    model, tokenizer = load()
    lesson = [answer_example(tokenizer, *pair) for pair in gazette.lesson(seed=seed)]
    old = [text_example(tokenizer, TOWN.document(random.Random(i), practice=0.2).text)
           for i in range(400)]
    old = [example for example in old if len(example.ids) <= LENGTH]
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(120):
        loss, _ = answer_loss(model, stack(rng.sample(lesson, 9) + rng.sample(old, 3)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), tokenizer


def ways(seed: int) -> dict:
    "What each way says to a gazette's questions: (reply, tokens, seconds) for all of them."
    gazette, reader = Gazette(TOWN, seed), load()
    questions = [q for q, _ in gazette.questions]
    index = BM25(gazette.pages)
    pages = {"no page": [""] * len(questions),
             "the right page": [gazette.pages[place] + "\n" for _, place in gazette.questions],
             "retrieval": ["".join(gazette.pages[f.place] + "\n" for f in index.search(q.text, 1))
                           for q in questions]}
    said = {}
    pages["fine-tuned"], tuned = pages["no page"], tuned_reader(gazette, seed)
    for name in pages:
        model = tuned if name == "fine-tuned" else reader
        prompts = [f"{page}Q: {q.text}\nA:" for page, q in zip(pages[name], questions)]
        start = time.perf_counter()
        replies_ = answer(*model, prompts)
        seconds = time.perf_counter() - start
        tokens = sum(len(model[1].encode(p + r)) for p, r in zip(prompts, replies_))
        said[name] = replies_, tokens / len(questions), seconds / len(questions)
    lookup = next(t for t in Register(random.Random(0), TOWN).tools() if t.name == "lookup")
    agent = Agent(*load("agent"), Toolbox([replace(lookup, run=gazette.lookup)]))
    start = time.perf_counter()
    runs = agent.run_many([[{"role": "user", "content": q.text}] for q in questions])
    seconds = time.perf_counter() - start
    read = sum(len(tool_ids(agent.tokenizer, run.messages[:-1])) + run.n_tokens for run in runs)
    said["a tool"] = ([run.messages[-1]["content"] or "" for run in runs], read / len(questions),
                      seconds / len(questions))
    silent = re.compile("do not know|not mention|not find out")      # then it states no fact
    return {name: {"right": sum(q.is_correct(r) and not silent.search(r)
                                for q, r in zip(questions, replies_)),
                   "does not know": sum(bool(silent.search(r)) for r in replies_),
                   "n": len(questions), "tokens": tokens, "milliseconds": 1000 * seconds}
            for name, (replies_, tokens, seconds) in said.items()}


def compare(seeds: int) -> None:
    "Five ways over several gazettes: right, wrong, does not know, tokens, milliseconds."
    rows = [ways(seed) for seed in range(seeds)]
    for name in rows[0]:
        some = [row[name] for row in rows]
        n = sum(row["n"] for row in some)
        right, silent = (wilson(sum(row[what] for row in some), n)
                         for what in ("right", "does not know"))
        tokens, ms = (sum(row[what] for row in some) / seeds for what in ("tokens", "milliseconds"))
        print(f"{name:<15} right {right.mean:.1%} ({right.low:.1%} to {right.high:.1%}), does not "
              f"know {silent.mean:.1%}, wrong {1 - right.mean - silent.mean:.1%}, "
              f"{tokens:.0f} tokens, {ms:.0f} ms; by gazette "
              f"{', '.join(format(row['right'] / row['n'], '.0%') for row in some)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--measure", action="store_true", help="print its exams")
    parser.add_argument("--ship", action="store_true", help="measure it, and ship it")
    parser.add_argument("--compare", action="store_true", help="five ways, three gazettes")
    args = parser.parse_args()
    if args.ship:
        into_package("agent", args.folder, measure(args.folder))
    elif args.measure:
        measure(args.folder)
    elif args.compare:
        compare(3)
    else:
        teach(args.folder, args.seed, args.steps)
