"""Train a tokenizer and encode with it: ours, Hugging Face's, tiktoken's, the teaching loop."""
import os
import tempfile
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path

import tiktoken
import tokenizers

from minigpt.tokenizer import END_OF_TEXT, PATTERN, Tokenizer, merge_pair, train_tokenizer

from .measure import Options, Row, alternate, rows_of, seconds
from .text import DATA, benchmark_text, paragraphs

VOCAB_SIZE = 1024
MOMENTS = (0, 25, 75, 175, 375, 767)       # merges done when the teaching loop's step is timed


def train_hugging_face(documents: list[str]) -> tokenizers.Tokenizer:
    "Byte-level BPE with our pattern, our vocabulary size and our special token."
    pre, byte_level = tokenizers.pre_tokenizers, tokenizers.pre_tokenizers.ByteLevel
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = pre.Sequence([
        pre.Split(tokenizers.Regex(PATTERN), "isolated"),
        byte_level(add_prefix_space=False, use_regex=False)])
    theirs.train_from_iterator(documents, tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[END_OF_TEXT], show_progress=False,
        initial_alphabet=byte_level.alphabet()))
    return theirs


def naive_merge(ids: list[int], new_id: int) -> list[int]:
    "A step of the teaching loop: count every pair of the whole text, join the commonest."
    pairs = Counter(zip(ids, ids[1:]))
    return merge_pair(ids, max(pairs, key=pairs.get), new_id)


def naive_seconds(
    text: str,
    tokens: list[bytes],       # a finished vocabulary: its first tokens give the text midway
) -> tuple[float, dict[int, float]]:       # seconds for all merges; merges done -> seconds of one
    "Time one step of the loop at a few moments, and extrapolate linearly between them."
    step = {}
    for done in (m for m in MOMENTS if 256 + m <= len(tokens)):
        ids = Tokenizer(tokens[:256 + done]).encode(text)
        step[done] = min(seconds(partial(naive_merge, ids, 256 + done)) for _ in range(2))
    whole = sum((b - a) * (step[a] + step[b]) / 2 for a, b in pairwise(step))
    return whole, step


def training_rows(text: str, source: str, rounds: int) -> list[Row]:
    "Seconds to learn the vocabulary."
    documents = paragraphs(text)
    times = alternate({
        f"train {VOCAB_SIZE:,} tokens: ours": lambda: train_tokenizer(documents, VOCAB_SIZE),
        f"train {VOCAB_SIZE:,} tokens: Hugging Face": lambda: train_hugging_face(documents),
    }, rounds)
    ours, theirs = rows_of(times, None, "s")
    learned = train_tokenizer(documents, VOCAB_SIZE).tokens
    naive, step = naive_seconds(text, learned)
    note = f"{len(text.encode()) / 1e6:.2f} MB of {source}"
    return [Row(ours.what, ours.value, ours.unit, note=note, detail=ours.detail), theirs,
            Row("  the loop that recounts every pair", naive, "s", naive / ours.value,
                f"extrapolated from {len(step)} merges", {"seconds_of_one_merge": step})]


def gpt2_encoding() -> tiktoken.Encoding | None:
    "tiktoken's own GPT-2 vocabulary where it is on disk already: a benchmark downloads nothing."
    folder = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or DATA / "tiktoken")
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    return tiktoken.get_encoding("gpt2")


def encoding_rows(text: str, rounds: int) -> list[Row]:
    "Megabytes of text a second, to lists of ids."
    ours, documents = train_tokenizer(paragraphs(text), VOCAB_SIZE), paragraphs(text)
    with tempfile.TemporaryDirectory() as folder:
        ours.save(Path(folder) / "tokenizer.json")
        theirs = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    if theirs.encode(text).ids != ours.encode(text):
        raise AssertionError("Hugging Face reads our tokenizer.json to other ids")
    contestants = {
        "encode: ours": lambda: ours.encode(text),
        "encode: Hugging Face, our tokenizer.json": lambda: theirs.encode(text).ids,
        "encode: the same, paragraphs on all cores": lambda: [
            e.ids for e in theirs.encode_batch_fast(documents)],
    }
    gpt2 = gpt2_encoding()
    if gpt2:
        contestants["encode: tiktoken, its gpt2 vocabulary"] = lambda: gpt2.encode_ordinary(text)
    notes = {"encode: ours": "same ids as Hugging Face's",
             "encode: tiktoken, its gpt2 vocabulary": "50,257 tokens, so fewer joins fail"}
    rows = rows_of(alternate(contestants, rounds), len(text.encode()) / 1e6, "MB/s", notes)
    if not gpt2:
        rows.append(Row("encode: tiktoken, its gpt2 vocabulary", None,
                        note="skipped: its vocabulary is not in TIKTOKEN_CACHE_DIR"))
    return rows


def measure(options: Options) -> list[Row]:
    "Every row about the tokenizer."
    text, source = benchmark_text()
    text = text[:100_000] if options.quick else text
    rounds = 1 if options.quick else 7
    return training_rows(text, source, rounds) + encoding_rows(text, rounds)
