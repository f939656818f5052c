"""The text that the benchmarks read."""
import os
from pathlib import Path

from minigpt.data import read_text, stdlib_text

# A folder with tinyshakespeare.txt: 1,115,394 characters of plays, 65 different ones.
DATA = Path(os.environ.get("MINIGPT_DATA") or
            Path(__file__).resolve().parents[2] / "shared" / "data")


def benchmark_text() -> tuple[str, str]:     # the text; what it is
    "Tiny Shakespeare where it is at hand, else as much source of the standard library."
    path = DATA / "tinyshakespeare.txt"
    if path.is_file():
        return read_text(path), "tinyshakespeare.txt"
    return ("\n\n".join(stdlib_text(1_100_000)),
            "the standard library's source, as MINIGPT_DATA names no tinyshakespeare.txt")


def paragraphs(text: str) -> list[str]:
    "The text cut after its empty lines, into documents that can be read in parallel."
    parts = text.split("\n\n")
    return [*(p + "\n\n" for p in parts[:-1]), parts[-1]]
