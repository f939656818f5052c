"Every chapter runs from top to bottom; what has not changed since it last ran is not run again."
import os

import pytest
import run

# `make test` has run them by now, and reports them itself
CHAPTERS = [] if "CHECK_RESULTS" in os.environ else run.chapters()


@pytest.mark.slow
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_runs(path):
    run.run(path)


def test_a_chapter_that_fails_says_where(tmp_path, monkeypatch):
    import nbformat
    cells = [nbformat.v4.new_code_cell("a = 1"), nbformat.v4.new_code_cell("assert a == 2, 'no'")]
    path = tmp_path / "99_wrong.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    monkeypatch.setattr(run, "STORE", tmp_path / "store" / "runs")
    with pytest.raises(run.ChapterError, match=r"FAILED nbs/99_wrong\.ipynb, cell 2(?s:.)*no"):
        run.run(path)
    assert not list(tmp_path.glob("store/runs/*.ipynb"))
