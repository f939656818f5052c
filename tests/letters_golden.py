"""The page's small models of letters once more, in PyTorch: what the trainer must compute.

`write_golden` makes a file with initial weights, names and a seed, and what comes of them: the
first 50 losses, the gradients' norms of the first step, and names drawn after the last one.
"""
import json
import math
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from minigpt.bigram import LETTERS, function_names

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "book" / "_ext"))
import still_trainer  # noqa: E402

CONTEXT = {"bigram": 1, "mlp": 5, "attention": 8}
RATES = {"bigram": 30.0, "mlp": 0.5, "attention": 0.2}
SEED, STEPS, BATCH, WIDTH = 7, 50, 32, 20
V, LONGEST = len(LETTERS), 40
TEXTS = ["", "\n \r\n", "anna\nbert\r\nOTTO\rzoé", "Ärger, 3 × Öl!\n🙂\n_a.b_", "ﬁne İstanbul"]


def draws(state: int):
    "Numbers from 0 to 1, by the generator that both languages have."
    while True:
        state = (1664525 * state + 1013904223) % 2**32
        yield state / 2**32


def examples(names: list[str], n: int) -> tuple[Tensor, Tensor]:     # (count, n), (count)
    rows, after = [], []
    for name in names:
        ids = [0] * n + [LETTERS.index(letter) for letter in name] + [0]
        rows += [ids[i - n:i] for i in range(n, len(ids))]
        after += ids[n:]
    return torch.tensor(rows), torch.tensor(after)


def initial(kind: str, rng: torch.Generator) -> dict[str, Tensor]:
    "Weights of the shapes that the page has; larger than at its start, so that mistakes show."
    shapes = {
        "bigram": {"W": (V, V)},
        "mlp": {"E": (V, 16), "W1": (5 * 16, WIDTH), "b1": (WIDTH,), "W2": (WIDTH, V), "b2": (V,)},
        "attention": {"E": (V, 32), "P": (8, 32), "Q": (32, 32), "K": (32, 32), "V": (32, 32),
                      "W1": (32, WIDTH), "b1": (WIDTH,), "W2": (WIDTH, 32), "b2": (32,),
                      "O": (32, V)}}[kind]
    return {name: 0.4 * torch.randn(shape, generator=rng, dtype=torch.float64) / shape[0] ** 0.25
            for name, shape in shapes.items()}


def logits(kind: str, p: dict[str, Tensor], x: Tensor) -> Tensor:    # (rows, n) -> (rows, 28)
    if kind == "bigram":
        return p["W"][x[:, -1]]
    if kind == "mlp":
        return torch.tanh(p["E"][x].flatten(1) @ p["W1"] + p["b1"]) @ p["W2"] + p["b2"]
    z = p["E"][x] + p["P"]                                           # (rows, n, d)
    q, k, v = z[:, -1] @ p["Q"], z @ p["K"], z @ p["V"]
    w = (torch.einsum("rd,rnd->rn", q, k) / math.sqrt(z.shape[-1])).softmax(dim=-1)
    y = z[:, -1] + torch.einsum("rn,rnd->rd", w, v)
    return (y + torch.relu(y @ p["W1"] + p["b1"]) @ p["W2"] + p["b2"]) @ p["O"]


@torch.no_grad()
def sample(kind: str, p: dict[str, Tensor], dice) -> str:
    name, ids = "", [0] * CONTEXT[kind]
    while len(name) < LONGEST:
        chances = logits(kind, p, torch.tensor([ids]))[0].softmax(dim=0).cumsum(dim=0)
        letter = min(int((chances <= next(dice)).sum()), V - 1)
        if letter == 0:
            break
        name += LETTERS[letter]
        ids = [*ids[1:], letter]
    return name


def train(kind: str, names: list[str]) -> dict:
    x, y = examples(names, CONTEXT[kind])
    p = initial(kind, torch.Generator().manual_seed(SEED))
    run = {"rate": RATES[kind], "weights": {n: w.flatten().tolist() for n, w in p.items()},
           "losses": []}
    dice = draws(SEED)
    for w in p.values():
        w.requires_grad_()
    for step in range(STEPS):
        at = torch.tensor([int(next(dice) * len(y)) for _ in range(BATCH)])
        loss = F.cross_entropy(logits(kind, p, x[at]), y[at])
        grads = dict(zip(p, torch.autograd.grad(loss, list(p.values()))))
        run["losses"].append(loss.item())
        if step == 0:
            run["norms"] = {name: g.norm().item() for name, g in grads.items()}
        with torch.no_grad():
            for name, w in p.items():
                w -= RATES[kind] * grads[name]
    dice = draws(SEED)
    run["samples"] = [sample(kind, p, dice) for _ in range(8)]
    run["bits"] = F.cross_entropy(logits(kind, p, x), y).item() / math.log(2)
    return run


def write_golden(path: Path) -> None:
    names = function_names()[::15]                                   # a few hundred
    path.write_text(json.dumps({
        "names": names, "seed": SEED, "batch": BATCH, "width": WIDTH,
        "held": [name for name in names if still_trainer.is_held_out(name)],
        "texts": [[text, still_trainer.read_names(text)] for text in TEXTS],
        "runs": {kind: train(kind, names) for kind in CONTEXT}}), encoding="utf-8")
