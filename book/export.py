"""Clean the notebooks and write the package: nbdev's two commands, and what they leave to do.

Exported cells with a random id are named after what they define, since ids become the headings
of the module. Instructions such as `#| code-fold: true` are for the page, not for the module.
"""
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
RANDOM_ID = re.compile(r"[0-9a-f]{8}")
DEFINED = re.compile(r"^(?:def|class)\s+(\w+)|^(\w+)\s*(?::[^=\n]+)?=|^((?:from|import) )",
                     re.M)


def scripts(name: str) -> str:
    "A console script of this environment."
    return str(shutil.which(name, path=sysconfig.get_path("scripts")) or name)


def tool(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([scripts(command[0]), *command[1:]], cwd=cwd, capture_output=True,
                          env=os.environ | {"PYTHONUTF8": "1"}, encoding="utf-8", errors="replace")


def cell_name(source: str) -> str:
    "`def top_k` -> top-k, `class KVCache` -> kv-cache, a cell of imports -> imports."
    found = DEFINED.search(source)
    if not found or found[3]:
        return "imports" if found else ""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", found[1] or found[2])
    return name.replace("_", "-").strip("-").lower()


def name_cells(path: Path) -> None:
    "Give the exported cells of a notebook ids that say what is in them."
    nb, changed = nbformat.read(path, as_version=4), False
    holders = {cell.get("id"): cell for cell in nb.cells}
    exported = lambda cell: re.match(r"#\|\s*export\b", cell.source)
    for cell in filter(exported, nb.cells):
        name = cell_name(cell.source) if RANDOM_ID.fullmatch(cell.get("id", "")) else ""
        if name and (name not in holders or not exported(holders[name])):
            if name in holders:                  # a cell that the module does not show gives way
                holders[name]["id"] = cell["id"]
            cell["id"], changed = name, True
            holders[name] = cell
    if changed:
        nbformat.write(nb, path)


def export(root: Path = ROOT) -> str:       # what went wrong; "" where nothing did
    "Name, clean, export, and take the page's instructions out of the modules."
    for path in sorted((root / "nbs").glob("*.ipynb")):
        name_cells(path)
    for command in ("nbdev_clean", "nbdev_export"):
        done = tool(command, cwd=root)
        if done.returncode:
            return f"{command} failed:\n{done.stdout}{done.stderr}"
    for path in (root / "minigpt").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        bare = re.sub(r"(?m)^#\|.*\n", "", text)
        if bare != text:
            path.write_text(bare, encoding="utf-8")
    return ""


if __name__ == "__main__":
    sys.exit(export() or None)
