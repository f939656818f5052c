"""Laws of the dojo: each broken script fails, right repairs pass, tempting wrong ones fail.

The scripts run in this process, 24 steps each, watched as `minigpt dojo check` watches them.
"""
import contextlib
import io
import json
import math
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from benchmarks.dojo_repairs import RIGHT, WRONG
from conftest import refused
from minigpt.dojo import EXERCISES, HEALTHY, edited, read_record
from minigpt.grading import check, findings, grade, hint, is_sound, read_progress, start, watching

SHORT = 24
NAMES = [e.name for e in EXERCISES]
BY_NAME = {e.name: e for e in EXERCISES}
each = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "Run a script once for each text, and give its findings."
    done: dict[str, dict] = {}

    def run(text: str) -> dict:
        if text not in done:
            folder, error = tmp_path_factory.mktemp("run"), ""
            (folder / "train.py").write_text(text, encoding="utf-8")
            with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                patch.chdir(folder)
                patch.setenv("STEPS", str(SHORT))
                patch.delenv("SEED", raising=False)
                with watching(SHORT) as watch, contextlib.redirect_stdout(io.StringIO()):
                    try:
                        runpy.run_path("train.py", run_name="__main__")
                    except Exception as e:
                        error = f"{type(e).__name__}: {e}"
                done[text] = {"error": error} | findings(watch, Path("."))
        return done[text]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield run
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def failed(run):
    "What a script of an exercise is told."
    def failed(exercise, text: str) -> list[str]:
        return grade(run(text), [run(exercise.healthy)])
    return failed


def test_there_are_two_right_and_three_wrong_repairs_for_each():
    assert RIGHT.keys() == WRONG.keys() == set(NAMES) and len(NAMES) == len(set(NAMES)) >= 16
    for e in EXERCISES:
        right = [e.healthy, *(edited(e.script, edits) for edits in RIGHT[e.name])]
        wrong = [edited(e.script, edits) for edits in WRONG[e.name]]
        assert len(set(right)) >= 2 and len(set(wrong)) == 3
        assert not {e.script, *right} & set(wrong) and e.script not in right


@each
def test_the_broken_script_fails(name, failed):
    assert failed(BY_NAME[name], BY_NAME[name].script)


@each
def test_right_repairs_pass(name, failed):
    e = BY_NAME[name]
    for text in (e.healthy, *(edited(e.script, edits) for edits in RIGHT[name])):
        assert failed(e, text) == []


@each
def test_tempting_wrong_repairs_fail(name, failed):
    e = BY_NAME[name]
    for edits in WRONG[name]:
        assert failed(e, edited(e.script, edits)), edits
