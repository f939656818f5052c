"""The field's standard terms are explained on the tour before the tour uses them.

A reader who takes the chapters of the tour in their order, and skips what lies deeper, meets each
term of TERMS with its explanation, or with a pointer to it. What is read is prose: paragraphs and
list items, among them predictions and their answers. Titles, tables, quotes, code and formulas are
not sentences that somebody has to understand, and are left out.

(a) A term is **defined** where it stands in bold, by itself, in a sentence of five words at least,
    or in one that says what is *called* so. An item of a list "The words" counts as one sentence.
    A bold sentence at the head of a paragraph is a title. Every term is defined on the tour.
(b) In each chapter, up to the one that explains it, the first sentence with the term must
    define it; or hold it in *italics*, in five words at least (an explanation in passing: with it
    the term counts as known from there on); or link to a chapter that defines it. A remark in
    brackets behind a sentence belongs to that sentence. In a chapter whose own list "The words"
    defines the term, sentences before that list may use it: there it has a dotted line, and the
    explanation is on the same page.

Words that are plain English as well (COMMON) are held to (a) only: a coin has heads too.
"""
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import glossary
import levels
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent

LEAST = 5       # words of a sentence that explains

# The term, and how it may be written; a plural in s and capitals are allowed for.
TERMS = {
    "token": "token",
    "tokenizer": "tokenizer",
    "vocabulary": "vocabulary|vocabularies",
    "byte pair encoding": "byte pair encoding|BPE",
    "tensor": "tensor",
    "vector": "vector",
    "matrix": "matrix|matrices",
    "dot product": "dot product",
    "embedding": "embedding",
    "prompt": "prompt",
    "hallucination": "hallucination",
    "entropy": "entropy",
    "context length": "context length|context window|context",
    "window": "(?-i:window)",
    "batch": "batch|batches",
    "fine-tuning": r"fine-?tun(?:ing|e|ed)",
    "epoch": "epoch",
    "padding": "padding",
    "logits": "logit",
    "softmax": "softmax",
    "attention": "attention|self-attention",
    "causal mask": "causal mask",
    "rotary position": "rotary positions?|RoPE",
    "feed-forward network": "feed-forward network|MLP",
    "activation function": "activation function",
    "residual stream": "residual stream",
    "layer normalisation": "LayerNorm|layer normali[sz]ation",
    "RMSNorm": "RMSNorm",
    "layer": "layer",
    "parameters": "parameter",
    "FLOP": "FLOP",
    "autoregressive": "autoregressive",
    "loss": "loss|losses",
    "cross-entropy": "cross-entropy",
    "perplexity": "perplexity|perplexities",
    "logsumexp": "logsumexp",
    "gradient": "gradient",
    "optimizer": "optimizer",
    "learning rate": "learning rate",
    "stochastic gradient descent": "stochastic gradient descent|SGD",
    "momentum": "momentum",
    "Adam": "Adam",
    "AdamW": "AdamW",
    "first moment": "first moment|first and second moment",
    "second moment": "second moment",
    "singular value": "singular value",
    "warm-up": "warm-up|warmup",
    "weight decay": "weight decay",
    "clipping": "gradient clipping|clipping",
    "hyperparameter": "hyperparameter",
    "batch size": "batch size",
    "gradient accumulation": "gradient accumulation",
    "validation loss": "validation loss",
    "overfitting": "overfitting|overfit|overfits",
    "regularisation": "regulari[sz]ation",
    "checkpoint": "checkpoint",
    "sampling": "sampling",
    "temperature": "temperature",
    "top-k": "top-k",
    "top-p": "top-p",
    "min-p": "min-p",
    "greedy": "greedy|greedily",
    "KV cache": "KV cache",
    "prefill": "prefill|prefilling",
    "memory-bound": "memory-bound",
    "throughput": "throughput",
    "latency": "latency|latencies",
    "time to first token": "time to first token",
    "streaming": "streaming",
    "stop string": "stop string|stop condition",
    "supervised fine-tuning": "supervised fine-tuning|SFT",
    "loss masking": "loss masking",
    "catastrophic forgetting": "catastrophic forgetting",
    "chat template": "chat template",
    "system prompt": "system prompt",
    "prompt caching": "prompt caching|prefix caching",
    "LoRA": "LoRA",
    "adapter": "adapter",
    "low-rank": "low-rank|low rank",
    "quantization": "quanti[sz]ation|quanti[sz]ed",
    "NF4": "NF4",
    "double quantization": "double quanti[sz]ation",
    "QLoRA": "QLoRA",
    "in-context learning": "in-context learning",
    "prompt injection": "prompt injection",
    "calibrated": "calibrated",
    "AUROC": "AUROC",
    "tool call": "tool call",
    "BM25": "BM25",
    "recall@k": "recall@k",
}
# Plain English too: only that they are defined.
COMMON = {
    "query": "query|queries",
    "key": "key",
    "value": "value",
    "head": "head",
    "weights": "weight",
    "block": "block",
    "decode": "decode|decoding",
    "transfer": "transfer",
    "packing": "packing",
    "role": "role",
    "turn": "turn",
    "GGUF": "GGUF",
    "continuous batching": "continuous batching",
    "prefix cache": "prefix cache",
}
# No chapter of the tour needs these yet. The first that does defines the term, and it moves up.
NOT_YET: dict[str, str] = {}


# ---- reading -----------------------------------------------------------------------------------
@dataclass
class Sentence:
    text: str                           # without markup
    bold: tuple[tuple[int, int], ...]   # where in `text` something stands in bold,
    italic: tuple[tuple[int, int], ...]     # in italics
    links: tuple[str, ...]              # the chapters that it links to, by their file's stem
    listed: bool                        # in the list "The words"


END = re.compile(r"(?<=[.!?…])[\"”’)]*\s+(?=[^a-z\s(])")


def plain(markdown: str) -> str:
    "A cell without what is no prose; the question and the answer of a prediction stay."
    text = re.sub(r"^:::\{predict\} (.*)\n", r"\1\n\n", markdown, flags=re.M)
    text = re.sub(r"^:::.*$|^:\w[\w-]*:.*$|^\|.*$|^\(.*\)=$", "", text, flags=re.M)
    return re.sub(r"\s*\{cite:\w+\}`[^`]*`", "", text)


def sentences(markdown: str) -> list[Sentence]:
    "The sentences of a Markdown cell, in their order."
    found, title, skip = [], "", 0
    blocks = glossary.markdown().parse(plain(markdown))
    for before, block in zip([None, *blocks], blocks):
        skip += (block.type == "blockquote_open") - (block.type == "blockquote_close")
        if block.type == "inline" and before.type == "heading_open":
            title = block.content
        elif block.type == "inline" and not skip:
            found += cut(block.children, listed=title == "The words")
    return found


def cut(parts, listed: bool) -> list[Sentence]:
    "The sentences of a paragraph, from the parts that the parser made of it."
    text, spans, opened, title = "", {"strong": [], "em": [], "link": []}, [], 0
    for part in parts:
        kind = part.type.removesuffix("_open").removesuffix("_close")
        if part.type.endswith("_open"):
            opened.append((len(text), part.attrs.get("href", "")))
        elif part.type.endswith("_close"):
            start, to = opened.pop()
            spans[kind].append((start, len(text), to))
            if kind == "strong" and not text[:start].strip() and text[-1:] in (".", "?", "!"):
                title = len(text)                   # a title in bold: what follows is the prose
        elif part.type == "text":
            text += part.content
        elif part.type in ("softbreak", "hardbreak"):
            text += " "
        elif part.type in ("code_inline", "math_inline"):
            text += "`"
    text = text.rstrip()
    begin = len(text) - len(text[title:].lstrip())
    stops = [begin, *(m.end() for m in END.finditer(text, begin) if not listed), len(text)]

    def within(kind: str, start: int, stop: int) -> list[tuple]:
        return [(a - start, b - start, to) for a, b, to in spans[kind] if start <= a < stop]

    return [Sentence(text[a:b].rstrip(),
                     *(tuple(s[:2] for s in within(k, a, b)) for k in ("strong", "em")),
                     tuple(re.sub(r"\.ipynb.*", "", to) for *_, to in within("link", a, b)),
                     listed) for a, b in zip(stops, stops[1:]) if b > a]


@cache
def tour() -> dict[str, list[Sentence]]:
    "The chapters of the tour in their order. The first cell is a title and is left out."
    files = [p for p in sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
             if levels.level(f"nbs/{p.stem}") is levels.TOUR]
    return {p.stem: [s for c in nbformat.read(p, as_version=4).cells[1:]
                     if c.cell_type == "markdown" for s in sentences(c.source)] for p in files}


# ---- judging -----------------------------------------------------------------------------------
def pattern(written: str) -> re.Pattern:
    return re.compile(rf"(?i)(?<![\w-])(?:{written})s?(?![\w-])")


def explains(sentence: Sentence, written: str, marked: str = "bold") -> bool:
    "Whether the sentence holds the term in bold (or italics) and has enough words to explain it."
    if len(sentence.text.split()) < LEAST and "called" not in sentence.text:
        return False
    return any(pattern(written).fullmatch(sentence.text[start:stop])
               for start, stop in getattr(sentence, marked))


def homes(written: str, chapters: dict[str, list[Sentence]]) -> list[str]:
    "The chapters that define a term."
    return [c for c, prose in chapters.items() if any(explains(s, written) for s in prose)]


def used_too_early(term: str, written: str, chapters: dict[str, list[Sentence]]) -> str:
    "Where the tour uses a term without explaining it, in words; empty if nowhere."
    at, found = homes(written, chapters), pattern(written)
    for chapter, prose in chapters.items():
        uses = [s for s in prose if found.search(s.text)]
        if not uses:
            continue
        own = any(s.listed and explains(s, written) for s in prose)
        first = uses[0]
        if explains(first, written) or explains(first, written, "italic") or own:
            return ""
        if not set(first.links) & set(at):
            return (f"nbs/{chapter}.ipynb uses “{term}”, which nothing before it explains: "
                    f"“{first.text}” Put it in bold with an explanation there, or link to "
                    f"{' or '.join(at)}")
        if any(explains(s, written) for s in uses):
            return ""
    return ""


# ---- the rule itself, on small chapters --------------------------------------------------------
def judge(*cells: str) -> str:
    return used_too_early("bee", "bee", {str(n): sentences(c) for n, c in enumerate(cells)})


def test_markup_is_read():
    question, three, answer, item = sentences("""
:::{predict} How many *bees*?
:answer: 3
:choices: 3 | a bee

Three. See [it](1_b.ipynb#x).
:::

## The words

- **Bee**: `x` {cite:p}`y`. It $x_1$ flies.

| bee |
|---|
""")
    assert question.text == "How many bees?" and question.italic == ((9, 13),)
    assert three.text == "Three." and (answer.text, answer.links) == ("See it.", ("1_b",))
    assert item.listed and item.text == "Bee: `. It ` flies." and item.bold == ((0, 3),)


@pytest.mark.parametrize("cells", [
    ("A **bee** is what brings honey home.", "Bees."),
    ("That is called a **bee**.", "A bee."),
    ("A *bee* is what brings honey home.", "Bees.", "The **bee** again, and at some length."),
    ("A [bee](1.ipynb).", "A **bee** is what brings honey home."),
    ("**Honey.** the **bee** is what brings it home.", "Bees."),
    ("A bee. (See [there](1.ipynb).)", "A **bee** is what brings honey home."),
    ("A bee comes.\n\n## The words\n\n- **Bee**: what brings the honey home.",),
    ("# Bees\n\n> A bee.\n\n| bee |\n\n```\nbee\n```\n\n`bee` and beehive.",
     "A **bee** is one of many.")])
def test_words_that_are_explained_or_pointed_to_pass(cells):
    assert not judge(*cells)


@pytest.mark.parametrize("cells", [
    ("A bee comes. A **bee** is what brings honey home.",),
    ("A bee.", "A **bee** is what brings honey home."),
    ("A bee. See [there](1.ipynb).", "A **bee** is what brings honey home."),
    ("A [bee](2.ipynb).", "A **bee** is what brings honey home."),
    ("A [bee](2.ipynb).", "A bee.", "A **bee** is what brings honey home."),
    ("A *bee*.", "A **bee** is what brings honey home."),
    ("**Bees are what brings honey home.** Bees.", "A **bee** is what brings honey home.")])
def test_words_that_are_not_are_named(cells):
    assert "uses “bee”" in judge(*cells)


# ---- the book ----------------------------------------------------------------------------------
def test_chapters_that_say_so_are_no_part_of_the_tour():
    for path in (ROOT / "nbs").glob("[0-9]*.ipynb"):
        first = nbformat.read(path, as_version=4).cells[0].source
        if re.search(r"\*(?:.* )?(?:engine room|deeper)\b", first, re.I):
            assert path.stem not in tour(), path.name


@pytest.mark.parametrize("term", [*TERMS, *COMMON])
def test_every_term_is_defined_on_the_tour(term):
    assert homes((TERMS | COMMON)[term], tour()), (
        f"no chapter of the tour defines “{term}”: put it in bold where it is explained")


@pytest.mark.parametrize("term", TERMS)
def test_no_chapter_uses_a_term_before_it_is_explained(term):
    complaint = used_too_early(term, TERMS[term], tour())
    assert not complaint, complaint


@pytest.mark.parametrize("term", NOT_YET)
def test_terms_of_later_chapters_are_not_used_yet(term):
    found = pattern(NOT_YET[term])
    for chapter, prose in tour().items():
        for sentence in prose:
            assert not found.search(sentence.text), (
                f"nbs/{chapter}.ipynb uses “{term}”: “{sentence.text}” Define it in the chapter "
                "that needs it, and move it to TERMS")
