"""The still picture of rounded weights: a grid over a histogram, and what each grid costs in loss.

A function that has a namesake in `book/_static/page/rounding.js` does the same.
"""
import functools
import html
import itertools
import json
import math
from pathlib import Path

import torch
from torch import Tensor

from minigpt.checkpoint import load_model, shipped_model, write_whole
from minigpt.loss import document_loss
from minigpt.page import greedy
from minigpt.tinytown import SHARES, Document, Tinytown

WEIGHTS = shipped_model() / "model.safetensors"
FILE = "_static/page/quantize.json"          # where the page finds the texts
UNSEEN, OF_A_KIND = 8_000_080, 2             # a seed of no run; documents of each kind
BITS = (2, 3, 4, 5, 6, 8)
REACHES = {"matrix": "one for the matrix", "row": "one for each row",
           "group": "one for each group of 32"}
GROUP = 32
SHOWN, SHOWN_BITS, N_BINS = "blocks.0.attention.query.weight", 4, 60
N_TOKENS = 40


def is_old(path: Path, *sources: Path) -> bool:
    "Whether a file that is made from others must be made again."
    return not path.exists() or path.stat().st_mtime < max(s.stat().st_mtime for s in sources)


@functools.cache
def opened():
    return load_model()


# ---- Rounding ----------------------------------------------------------------------------------
def scales_of(
    W: Tensor,              # (M, N)
    bits: int,
    reach: str,             # one of REACHES
) -> Tensor:                # (M or 1, groups or 1, 1) from a level to the next, as float16 has it
    "The largest weight of each grid lies on its last level."
    most = 2 ** (bits - 1) - 1
    return (grids(W, reach).abs().amax(-1, keepdim=True) / most).half().float()


def grids(W: Tensor, reach: str) -> Tensor:       # (M or 1, groups or 1, weights)
    M, N = W.shape
    groups = -(-N // GROUP)
    if reach == "group":
        return torch.nn.functional.pad(W, (0, groups * GROUP - N)).view(M, groups, GROUP)
    return W.reshape(1, 1, -1) if reach == "matrix" else W.reshape(M, 1, N)


def rounded(
    W: Tensor,              # (M, N)
    bits: int,
    reach: str,             # one of REACHES
) -> Tensor:                # (M, N) every weight on a level of its grid
    most, scale = 2 ** (bits - 1) - 1, scales_of(W, bits, reach)
    codes = (grids(W, reach) / scale).nan_to_num(0).round().clamp(-most, most)
    return (codes * scale).reshape(len(W), -1)[:, :W.shape[1]]


def real_bits(W: Tensor, bits: int, reach: str) -> float:
    "Of one weight, its share of a scale of 16 bits counted."
    return bits + 16 * scales_of(W, bits, reach).numel() / W.numel()


# ---- The texts and the loss --------------------------------------------------------------------
@functools.cache
def documents() -> tuple[Document, ...]:
    "Texts of the town that no training saw: the first of each kind."
    found = {kind: [] for kind in SHARES}
    for document in Tinytown(0).corpus(10**7, seed=UNSEEN):
        if len(found[document.kind]) < OF_A_KIND:
            found[document.kind].append(document)
        if all(len(some) == OF_A_KIND for some in found.values()):
            break
    return tuple(itertools.chain(*found.values()))


def losses(model: torch.nn.Module) -> list[float]:
    "The loss of each document, in bits."
    _, tokenizer = opened()
    nats = document_loss(model, [tokenizer.encode(d.text) for d in documents()],
                         tokenizer.end_of_text)
    return (nats.double() / math.log(2)).tolist()


def document_bits(model: torch.nn.Module) -> float:
    "The mean loss of a document, in bits."
    return sum(losses(model)) / len(documents())


def floor_bits() -> float:
    "What no model can beat: the choices that made the documents."
    return sum(d.bits for d in documents()) / len(documents())


@torch.no_grad()
def round_model(model: torch.nn.Module, bits: int, reach: str, embedding: bool = True) -> None:
    "Put the shipped model's rounded weights into a copy of it; 32 bits: its own."
    for (name, p), exact in zip(model.named_parameters(), opened()[0].parameters()):
        keep = p.ndim < 2 or bits == 32 or (name.startswith("embedding") and not embedding)
        p.copy_(exact if keep else rounded(exact, bits, reach))


def write_documents(site: Path) -> None:
    "The file that the page fetches."
    path = site / FILE
    if not is_old(path, WEIGHTS, Path(__file__)):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"texts": [d.text for d in documents()], "floor": floor_bits(),
                       "float32": losses(opened()[0])})
    write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))


# ---- The picture -------------------------------------------------------------------------------
def histogram(W: Tensor, scale: float, most: int) -> str:
    "The weights of a matrix, and the levels of its one grid."
    reach = W.abs().max().item()
    counts = torch.histc(W, N_BINS, -reach, reach)
    wide = 100 / N_BINS
    bars = "".join(f"M{n * wide:.2f} 100v{-96 * c:.2f}h{wide * 0.9:.2f}V100z"
                   for n, c in enumerate((counts / counts.max()).tolist()) if c)
    levels = "".join(f"M{50 + 50 * code * scale / reach:.2f} 0V100"
                     for code in range(-most, most + 1))
    return ('<div class="live-chart quantize-weights"><svg viewBox="0 0 100 100" '
            f'preserveAspectRatio="none" role="img" aria-label="The {W.numel():,} weights of the '
            f"first block's queries, between −{reach:.2f} and {reach:.2f}, and {2 * most + 1} "
            f'levels at equal distances over them; most weights lie near 0">'
            f'<path class="quantize-bars" d="{bars}"/><path class="live-line quantize-level" '
            f'd="{levels}"/></svg><div aria-hidden="true">'
            f'<span class="quantize-at" style="left:0">−{reach:.2f}</span>'
            '<span class="quantize-at quantize-middle" style="left:50%">0</span>'
            f'<span class="quantize-at quantize-last" style="right:0">{reach:.2f}</span>'
            "</div></div>")


@torch.no_grad()
def table(model: torch.nn.Module) -> str:
    "For each number of bits and each reach of a scale: the loss."
    head = "".join(f'<th scope="col">{says}</th>' for says in REACHES.values())
    rows = []
    for bits in BITS:
        cells = []
        for reach in REACHES:
            round_model(model, bits, reach)
            cells.append(f"<td>{document_bits(model):,.1f}</td>")
        rows.append(f'<tr><th scope="row">{bits}</th>{"".join(cells)}</tr>')
    return ('<div class="pst-scrollable-table-container"><table class="table"><thead><tr>'
            f'<th scope="col">bits</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
            "</div>")


@functools.cache
@torch.no_grad()
def quantize(text: str) -> str:       # the prompt to begin with
    "One matrix with its grid, the loss of every grid, and a story in two of them."
    model, tokenizer = load_model()
    W = dict(opened()[0].named_parameters())[SHOWN]
    scale = scales_of(W, SHOWN_BITS, "matrix").item()
    ids, stories = tokenizer.prompt_ids(text), []
    for bits in (4, 3):
        round_model(model, bits, "row")
        made = greedy(model, ids, N_TOKENS)
        if tokenizer.end_of_text in made:
            made = made[:made.index(tokenizer.end_of_text)]
        stories.append(
            f'<p class="live-head">{bits} bits, a scale for each row</p><p class="live-text">'
            f'{html.escape(text)}<span class="live-made">{html.escape(tokenizer.decode(made))}'
            "</span></p>")
    return (f'<p class="live-head">Block 1: query, {SHOWN_BITS} bits, one scale</p>'
            f"{histogram(W, scale, 2 ** (SHOWN_BITS - 1) - 1)}"
            '<p class="live-head">Loss, bits a document, by the bits of a weight and the reach of '
            f"a scale</p>{table(model)}<p class=\"live-count\">In float32 it is "
            f"{document_bits(opened()[0]):,.1f}; no model can go below {floor_bits():,.1f}.</p>"
            f"{''.join(stories)}")
