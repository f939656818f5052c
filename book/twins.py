"""Carry what was edited in a text twin (.text/*.md) into its notebook; do nothing without twins."""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def edited(root: Path = ROOT) -> list[Path]:
    "Twins that were saved after their notebooks."
    pairs = ((twin, root / "nbs" / f"{twin.stem}.ipynb") for twin in (root / ".text").glob("*.md"))
    return sorted(twin for twin, notebook in pairs
                  if notebook.exists() and twin.stat().st_mtime > notebook.stat().st_mtime)


def sync(root: Path = ROOT) -> int:
    found = edited(root)
    if not found:
        return 0
    from jupytext.cli import jupytext  # slow to import, and rarely needed
    return jupytext(["--quiet", "--sync", *map(str, found)])


if __name__ == "__main__":
    sys.exit(sync())
