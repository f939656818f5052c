"""Carry what was edited in a text twin (.text/*.md) into its notebook; do nothing without twins."""
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def edited(root: Path = ROOT) -> list[Path]:
    "Twins that were saved after their notebooks."
    pairs = ((twin, root / "nbs" / f"{twin.stem}.ipynb") for twin in (root / ".text").glob("*.md"))
    return sorted(twin for twin, notebook in pairs
                  if notebook.exists() and twin.stat().st_mtime > notebook.stat().st_mtime)


def sync(root: Path = ROOT) -> int:
    twins = [str(twin) for twin in edited(root)]
    command = [sys.executable, "-m", "jupytext", "--quiet", "--sync", *twins]
    return subprocess.run(command, cwd=root).returncode if twins else 0


if __name__ == "__main__":
    sys.exit(sync())
