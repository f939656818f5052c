"""Teach the shipped model to hold a conversation, measure it, and put it into the package.

    python -m benchmarks.chat runs/chat              # trains: about 12 minutes on two quiet cores
    python -m benchmarks.chat runs/chat --ship       # measures the trained one, and ships it
    python -m benchmarks.chat runs/lora --how lora   # an adapter in place of all weights; or qlora
    python -m benchmarks.chat runs/lora --measure    # the exams, and no more

Seven tenths of the tokens are conversations, the rest are the town's documents, so that the model
forgets none of them. Muon moves the matrices, AdamW the rest; an adapter and the markers' vectors
are moved by AdamW.
"""
import argparse
import json
import math
import platform
import random
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.ship import into_package
from minigpt import GPT, load, save_model
from minigpt.chat import add_chat_tokens, chat_example, replies
from minigpt.conversations import CHAT_EXAMS, chat_exam, conversation
from minigpt.evaluation import wilson
from minigpt.finetuning import Example, Packed, answer_loss, text_example
from minigpt.lora import add_lora, merge, to_nf4
from minigpt.loss import document_loss
from minigpt.optim import AdamW, muon_for, trapezoid
from minigpt.tinytown import Chooser, Tinytown
from minigpt.tokenizer import Tokenizer
from minigpt.training import train

TOWN = Tinytown(0)
STEPS, ROWS, LENGTH, SHARE = 3000, 8, 256, 0.7
RATES = (0.005, 0.0125)           # Muon's and AdamW's; the base was trained with 0.008 and 0.02
RANK, LORA_RATE = 32, 0.003       # of an adapter beside every matrix of the blocks


def lessons(tokenizer: Tokenizer, n_tokens: int, seed: int) -> list[Example]:
    "Conversations that fit, cut by whole turns, and old documents."
    rng, examples, left = random.Random(seed + 100), [], n_tokens * SHARE
    while left > 0:
        messages = conversation(Chooser(rng), TOWN).messages
        while len(chat_example(tokenizer, messages).ids) > LENGTH + 1 and len(messages) > 3:
            messages = messages[:-2]
        example = chat_example(tokenizer, messages)
        if len(example.ids) <= LENGTH + 1:
            examples.append(example)
            left -= len(example.ids)
    left += n_tokens * (1 - SHARE)
    for document in TOWN.corpus(10**12, seed + 101, 0.2):
        example = text_example(tokenizer, document.text)
        if len(example.ids) <= LENGTH + 1:
            examples.append(example)
            left -= len(example.ids)
        if left <= 0:
            return examples


def adapt(model: GPT, n_new: int, lr: float, nf4: bool) -> list[AdamW]:
    "Freeze a model but for an adapter and the vectors of its last tokens, the markers."
    if nf4:
        to_nf4(model)
    add_lora(model, RANK, 2.0 * RANK)
    table = model.embedding.weight.requires_grad_()
    is_new = torch.arange(len(table))[:, None] >= len(table) - n_new
    table.register_hook(lambda grad: grad * is_new)              # AdamW leaves a slope of 0 alone
    return [AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)]


def teach(folder: Path, seed: int, steps: int, how: str, lr: float) -> None:
    "Train, and write the model down in 8 bits with its facts."
    base, tokenizer = load()
    torch.manual_seed(seed)
    model, tokenizer = add_chat_tokens(base, tokenizer)
    n_new, n_all = model.cfg.vocab_size - base.cfg.vocab_size, model.num_parameters()
    if how == "full":
        optimizers, trained = muon_for(model, *RATES, 0.02), n_all
    else:
        optimizers = adapt(model, n_new, lr, how == "qlora")
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad) \
            - base.cfg.vocab_size * base.cfg.d_model
    batches = Packed(lessons(tokenizer, steps * ROWS * (LENGTH + 1), seed), ROWS, LENGTH, seed)
    schedule = partial(trapezoid, steps=steps, warmup=steps // 50, cooldown=steps * 8 // 10)
    start, cpu = time.perf_counter(), time.process_time()
    for step in train(model.train(), batches, optimizers, steps, schedule, objective=answer_loss):
        if step.n % 100 == 0:
            print(f"{step.n} {step.loss:.3f} {time.perf_counter() - start:.0f} s", flush=True)
    about = {"recipe": "python -m benchmarks.chat", "seed": seed, "steps": steps,
             "tokens seen": steps * ROWS * LENGTH, "share of conversations": SHARE,
             "how": how, "parameters trained": trained,
             "rates": list(RATES) if how == "full" else [lr],
             "minutes": round((time.perf_counter() - start) / 60, 1),
             "processor minutes": round((time.process_time() - cpu) / 60, 1),
             "threads": torch.get_num_threads(), "torch": torch.__version__,
             "python": platform.python_version(), "parameters": n_all}
    if how != "full":
        merge(model, keep=False)
    save_model(folder, model.eval(), tokenizer, about, bits=8)
    (folder / "facts.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def tale_bits(model: GPT, tokenizer: Tokenizer, n: int = 150) -> float:
    "Bits that a new tale costs the model."
    tales = [TOWN.document(random.Random(10**6 + i), "tale").text for i in range(n)]
    ids = [tokenizer.encode(tale) for tale in tales]
    return document_loss(model, ids, tokenizer.end_of_text).mean().item() / math.log(2)


def sit_chat(model: GPT, tokenizer: Tokenizer, name: str, n: int, seed: int = 7) -> dict[str, int]:
    "Right answers of one exam; how many keep the manner; and right without the turns before."
    asked = chat_exam(name, TOWN, n, seed)
    said = replies(model, tokenizer, [exchange.messages for exchange in asked])
    marks = {"right": sum(e.is_correct(reply) for e, reply in zip(asked, said))}
    if name == "manner":
        marks["manner kept"] = sum(e.obeys(reply) for e, reply in zip(asked, said))
    if name == "follow-up":
        alone = replies(model, tokenizer, [exchange.messages[-1:] for exchange in asked])
        marks["right without context"] = sum(e.is_correct(r) for e, r in zip(asked, alone))
    return marks


def measure(folder: Path, n: int = 500) -> dict:
    "Facts about the model in a folder."
    model, tokenizer = load(folder)
    facts = {"questions of each exam": n}
    for name in CHAT_EXAMS:
        for what, count in sit_chat(model, tokenizer, name, n).items():
            share = wilson(count, n)
            facts[f"{name}, {what}"] = [round(x, 4) for x in share]
            print(f"{name}, {what}: {share.mean:.1%} ({share.low:.1%} to {share.high:.1%})")
    facts["bits of a tale, base"] = round(tale_bits(*load()), 2)
    facts["bits of a tale"] = round(tale_bits(model, tokenizer), 2)
    print("bits of a tale:", facts["bits of a tale"], "base", facts["bits of a tale, base"])
    return facts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--how", choices=("full", "lora", "qlora"), default="full")
    parser.add_argument("--lr", type=float, default=LORA_RATE, help="of an adapter")
    parser.add_argument("--measure", action="store_true", help="print its exams")
    parser.add_argument("--ship", action="store_true", help="measure it, and ship it")
    args = parser.parse_args()
    if args.ship:
        into_package("chat", args.folder, measure(args.folder))
    elif args.measure:
        print(json.dumps(measure(args.folder)))
    else:
        teach(args.folder, args.seed, args.steps, args.how, args.lr)
