"The list of planted faults is in step with the library: `make mutants` runs it."
import ast
from functools import cache

import pytest
from mutants import ROOT, Mutant, read_list, source, verdict

MUTANTS, WITHOUT = read_list()


@cache
def names_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.module}: {m.name}")
def test_a_fault_fits_its_module_once_and_its_test_is_there(mutant):
    changed = mutant.applied(source(mutant.module))
    ast.parse(changed)
    assert changed != source(mutant.module)
    file, _, test = mutant.test.partition("::")
    assert test.partition("[")[0] in names_in(file), mutant.test


def test_every_module_has_a_fault_or_a_reason_to_have_none():
    modules = {path.stem for path in (ROOT / "minigpt").glob("*.py")}
    tried = {mutant.module for mutant in MUTANTS}
    assert tried | WITHOUT.keys() == modules and not tried & WITHOUT.keys()
    assert all(reason.strip() for reason in WITHOUT.values())


def test_there_are_many_and_no_two_of_one_name():
    assert len({(m.module, m.name) for m in MUTANTS}) == len(MUTANTS) >= 60


def test_a_list_that_is_out_of_date_says_so():
    mutant = Mutant("norm", "eps is lost", "eps", "0", "test_attention.py::test_norms")
    for text, n in (("no such text", 0), ("eps + eps", 2)):
        with pytest.raises(ValueError, match=f"norm: 'eps is lost' replaces .* {n} times"):
            mutant.applied(text)
    assert mutant.applied("x + eps") == "x + 0"


def test_only_a_test_that_fails_has_caught_a_fault():
    assert verdict(1, "1 failed") == "caught" and verdict(None, "") == "caught (too long)"
    assert verdict(0, "1 passed") == "survived" and verdict(0, "1 skipped") == "skipped"
    assert verdict(2, "1 error") == verdict(4, "") == verdict(5, "no tests ran") == "broken"
