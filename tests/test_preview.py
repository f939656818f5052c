"Laws of the text twins: an edit reaches the notebook, its ids stay, and nothing else changes."
import os
import shutil
from pathlib import Path

import nbformat
import pytest
import twins

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def paired(tmp_path, monkeypatch):
    "A checkout with one chapter and its twin, as old as it."
    from jupytext.cli import jupytext
    notebook = tmp_path / "nbs" / "34_norm.ipynb"
    notebook.parent.mkdir()
    shutil.copy(ROOT / "nbs" / "34_norm.ipynb", notebook)
    shutil.copy(ROOT / "jupytext.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    jupytext(["--quiet", "--sync", str(notebook)])
    twin = tmp_path / ".text" / "34_norm.md"
    os.utime(twin, (0, 0))
    return notebook, twin


def test_an_edited_twin_reaches_its_notebook(paired, tmp_path):
    notebook, twin = paired
    before = nbformat.read(notebook, as_version=4)
    twin.write_text(twin.read_text("utf-8").replace("## By hand", "## On paper"), "utf-8")
    os.utime(twin, (notebook.stat().st_mtime + 9,) * 2)
    assert twins.edited(tmp_path) == [twin]
    assert twins.sync(tmp_path) == 0
    after = nbformat.read(notebook, as_version=4)
    assert [cell.id for cell in after.cells] == [cell.id for cell in before.cells]
    changed = [(a.source, b.source) for a, b in zip(before.cells, after.cells) if a != b]
    assert changed == [(old, old.replace("## By hand", "## On paper")) for old, _ in changed]
    assert len(changed) == 1


def test_an_older_twin_is_left_alone(paired, tmp_path):
    notebook, twin = paired
    before = notebook.read_bytes()
    twin.write_text("stale", "utf-8")
    os.utime(twin, (0, 0))
    assert twins.edited(tmp_path) == [] and twins.sync(tmp_path) == 0
    assert notebook.read_bytes() == before
