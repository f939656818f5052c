"""The still picture of each live part: drawn by the same model when the site is built.

The page runs the shipped model in weights of 8 bits, a quarter of the download; so do the pictures.
"""
import functools
import html
from pathlib import Path

import still_batching
import still_chat
import still_graph
import still_quantize
import still_recording
import still_trainer
import still_zoo
import torch

from minigpt.checkpoint import (
    fill_model,
    from_bytes,
    load_model,
    save_model,
    shipped_model,
    to_bytes,
)
from minigpt.page import attention_rows, greedy

WEIGHTS = shipped_model() / "model.safetensors"
FOLDER = "_static/tinytown-8bit"             # where the page finds the model, see shell.js
N_BARS = 8


@functools.cache
def opened():
    "The model as the page reads it: each row of a matrix in whole numbers, times a scale."
    model, tokenizer = load_model()
    fill_model(model, from_bytes(to_bytes(dict(model.named_parameters()))), WEIGHTS)
    return model, tokenizer


def write_model(site: Path) -> None:
    "The folder that the page fetches: the shipped model in weights of 8 bits."
    if still_quantize.is_old(site / FOLDER / "model.safetensors", WEIGHTS, Path(__file__)):
        save_model(site / FOLDER, *load_model(), bits=8)
        (site / FOLDER / "model.safetensors").chmod(0o644)     # for any server to read


def shown(token: int) -> str:
    "A token as the page shows it: spaces and line ends visible, broken letters as bytes."
    _, tokenizer = opened()
    piece = tokenizer.decode_bytes([token])
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return html.escape("".join(f"‹{b:02x}›" for b in piece))
    for plain, sign in ((" ", "␣"), ("\n", "⏎"), ("\t", "⇥")):
        text = text.replace(plain, sign)
    return html.escape(text)


def chips(ids: list[int], numbers: bool = True) -> str:
    small = (lambda i: f"<small>{i}</small>") if numbers else (lambda i: "")
    return '<ol class="live-tokens">' + "".join(
        f'<li><span class="live-token live-hue-{n % 5}">{shown(i)}{small(i)}</span></li>'
        for n, i in enumerate(ids)) + "</ol>"


@torch.no_grad()
def next_chances(ids: list[int]) -> list[tuple[int, float]]:
    model, _ = opened()
    probs = model(torch.tensor([ids]))[0, -1].softmax(-1)
    best = probs.topk(N_BARS)
    return list(zip(best.indices.tolist(), best.values.tolist()))


def tokens(text: str) -> str:
    _, tokenizer = opened()
    ids = tokenizer.encode(text)
    return (f"<p>{html.escape(text)}</p>{chips(ids)}"
            f"<p class=\"live-count\">{len(text)} characters, {len(text.encode())} bytes, "
            f"{len(ids)} tokens.</p>")


def bars(rows: list[tuple[int, float, str]]) -> str:      # token, share of the line, what it says
    return '<ol class="live-bars">' + "".join(
        f'<li><code>{shown(token)}</code><span class="live-bar"><i class="live-after" '
        f'style="width:{share * 100:.1f}%"></i></span><span class="live-percent">{says}</span></li>'
        for token, share, says in rows) + "</ol>"


def attention(text: str) -> str:
    model, tokenizer = opened()
    ids = tokenizer.prompt_ids(text)
    layer, head = min(2, model.cfg.n_layer - 1), min(2, model.cfg.n_head - 1)
    weights = attention_rows(model, ids)[layer][head].tolist()
    cell, room = 18, 120
    size = room + cell * len(ids)
    drawn = [f'<svg viewBox="0 0 {size} {size}" width="{size}" role="img" aria-label="'
             f'Layer {layer + 1}, head {head + 1}: each row is a token that reads, '
             'each column one that is read">']
    for t, row in enumerate(weights):
        drawn.append(f'<text x="{room - 6}" y="{room + cell * t + 13}" text-anchor="end" '
                     f'fill="currentColor" font-size="13">{shown(ids[t])}</text>')
        drawn += [f'<rect x="{room + cell * s}" y="{room + cell * t}" width="{cell}" '
                  f'height="{cell}" fill="currentColor" opacity="{w:.2f}"/>'
                  for s, w in enumerate(row[:t + 1]) if w >= 0.005]
    return f'{chips(ids, numbers=False)}<div class="live-pair">{"".join(drawn)}</svg></div>'


def machine(text: str) -> str:
    model, tokenizer = opened()
    cfg, ids = model.cfg, tokenizer.prompt_ids(text)
    rows = [("token id", "1", shown(ids[-1])), ("embedding", f"{cfg.d_model}", "")]
    for n in range(cfg.n_layer):
        rows += [(f"block {n + 1}: query", f"{cfg.n_head} × {cfg.d_head}", ""),
                 (f"block {n + 1}: key, value", f"{cfg.n_kv_head} × {cfg.d_head} each", ""),
                 (f"block {n + 1}: weights", f"{cfg.n_head} × {len(ids)}", ""),
                 (f"block {n + 1}: hidden units", f"{cfg.d_ff}", ""),
                 (f"block {n + 1}: stream", f"{cfg.d_model}", "")]
    best = ", ".join(f"{shown(i)} {p:.0%}" for i, p in next_chances(ids)[:4])
    rows += [("logits", f"{cfg.vocab_size}", ""), ("chances", f"{cfg.vocab_size}", best)]
    body = "".join(f"<tr><td>{a}</td><td>{b}</td><td>{c}</td></tr>" for a, b, c in rows)
    return (f"<p>{html.escape(text)}</p><div class=\"pst-scrollable-table-container\">"
            f"<table class=\"table\"><thead><tr><th>station</th>"
            f"<th>numbers</th><th>values</th></tr></thead><tbody>{body}</tbody></table></div>")


def sampler(text: str) -> str:
    _, tokenizer = opened()
    chances = next_chances(tokenizer.prompt_ids(text))
    widest = chances[0][1]                           # fills the line, as in the live part
    rows = [(i, p / widest, f"{p:.1%}") for i, p in chances]
    return f'<p class="live-text">{html.escape(text)}</p>{bars(rows)}'


@torch.no_grad()
def kin(text: str) -> str:
    model, tokenizer = opened()
    table, token = model.embedding.weight, tokenizer.encode(f" {text}")[-1]
    likeness = torch.cosine_similarity(table[token], table, dim=-1)
    likeness[token] = -1
    best = likeness.topk(N_BARS)
    rows = [(i, c, f"{c:.2f}") for i, c in zip(best.indices.tolist(), best.values.tolist())]
    return f'<p class="live-text">{html.escape(text)}</p>{bars(rows)}'


def continuation(text: str, n: int) -> tuple[list[int], list[int]]:
    "The prompt's ids, and the n likeliest that follow one after another, the end included."
    model, tokenizer = opened()
    ids = tokenizer.prompt_ids(text)
    made = greedy(model, ids, n)
    end = made.index(tokenizer.end_of_text) + 1 if tokenizer.end_of_text in made else n
    return ids, made[:end]


def story(text: str) -> str:
    _, tokenizer = opened()
    _, made = continuation(text, 60)
    made = [i for i in made if i != tokenizer.end_of_text]
    return (f'<p class="live-text">{html.escape(text)}<span class="live-made">'
            f"{html.escape(tokenizer.decode(made))}</span></p>")


def cache(text: str) -> str:
    ids, made = continuation(text, 8)
    rows, room = [], len(ids) + len(made)
    for n, token in enumerate(made):
        known, new = (0, len(ids)) if n == 0 else (len(ids) + n - 1, 1)
        rows.append(f'<li><span class="live-cells"><i class="live-known" style="flex:{known}"></i>'
                    f'<i class="live-new" style="flex:{new}"></i>'
                    f'<i style="flex:{room - known - new}"></i></span>'
                    f"<code>{shown(token)}</code></li>")
    return (f'<p class="live-text">{html.escape(text)}</p>'
            '<p class="live-key"><i class="live-known"></i> found in the cache '
            '<i class="live-new"></i> computed now</p>'
            f'<ol class="live-steps">{"".join(rows)}</ol>')


PICTURES = {"tokens": tokens, "attention": attention, "machine": machine, "sampler": sampler,
            "story": story, "cache": cache, "kin": kin,
            "chat": still_chat.chat,
            "graph": still_graph.graph,
            "trainer": still_trainer.trainer,
            "zoo": still_zoo.zoo,
            "quantize": still_quantize.quantize,
            "batching": still_batching.batching,
            "recording": still_recording.recording}
