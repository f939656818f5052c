"""Plant known faults in the library, one at a time, and see that the test named for each fails.

`make mutants` runs all of `mutants.toml`. A fault that its test lets pass is a test to mend: find
the law that was broken, and let the test say it.
"""
import argparse
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests" / "mutants.toml"
SECONDS = 120          # that one test may take; a fault that makes it run longer is caught
ENOUGH = 0.95          # the share that has to be caught


@dataclass(frozen=True)
class Mutant:
    "One fault, and the test that must notice it."
    module: str        # minigpt/MODULE.py
    name: str          # what is wrong, in words
    old: str           # the text that is replaced; it stands once in the module
    new: str           # the text that takes its place
    test: str          # test_file.py::test_name, perhaps with [parameters]

    def applied(self, text: str) -> str:
        "The module with its fault. A ValueError says if the list is out of date."
        if text.count(self.old) != 1:
            raise ValueError(f"{self.module}: {self.name!r} replaces a text that stands "
                             f"{text.count(self.old)} times in minigpt/{self.module}.py, not "
                             f"once; mend its `old` in tests/mutants.toml")
        return text.replace(self.old, self.new)


def read_list(
    path: Path = LIST,
) -> tuple[list[Mutant], dict[str, str]]:     # the faults; modules without one, with the reason
    "What `mutants.toml` says."
    found = tomllib.loads(path.read_text(encoding="utf-8"))
    return [Mutant(**row) for row in found["mutant"]], found["without"]


def source(module: str) -> str:
    "A module's text as it should be."
    return (ROOT / "minigpt" / f"{module}.py").read_text(encoding="utf-8")


def run_pytest(arguments: Sequence[str], folder: Path) -> None:
    "What a process of its own does: tests import the package that lies in the folder."
    if hasattr(os, "setsid"):
        os.setsid()                            # so that what its tests started ends with it
    said = os.open(folder / "said.txt", os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(folder)
    paths = [str(path) for path in (folder, ROOT, ROOT / "book", ROOT / "tests")]
    os.environ["PYTHONPATH"], sys.path[:0] = os.pathsep.join(paths), paths
    os._exit(pytest.main(["-o", f"pythonpath={shlex.join(paths)}", *arguments]))


class Workshop:
    "A copy of the package in a folder of its own, and pytest that imports the copy."

    def __init__(self, folder: Path):
        self.folder, self.n_writes = folder, 0
        shutil.copytree(ROOT / "minigpt", folder / "minigpt",
                        ignore=shutil.ignore_patterns("__pycache__"))
        # where it exists, a process that has imported PyTorch already divides into two
        ways = multiprocessing.get_all_start_methods()
        self.context = multiprocessing.get_context("forkserver" if "forkserver" in ways else None)
        if "forkserver" in ways:
            self.context.set_forkserver_preload(["torch", "pytest", "hypothesis", "transformers"])

    def put(self, module: str, text: str) -> None:
        "Write a module; its time is a new one, so that what was compiled before is not used."
        path, self.n_writes = self.folder / "minigpt" / f"{module}.py", self.n_writes + 1
        path.write_text(text, encoding="utf-8")
        os.utime(path, (self.n_writes, self.n_writes))

    def pytest(
        self,
        tests: Sequence[str],        # test_file.py::test_name
        seconds: float,              # to wait for them
        *options: str,
    ) -> tuple[int | None, str]:     # the exit status, None after too long; what it wrote
        "Run tests against the copy, in a process of their own."
        arguments = ["-q", "-n0", "-p", "no:cacheprovider", "--tb=line", "-c",
                     str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "--basetemp",
                     str(self.folder / "tests"), *options,
                     *(f"{ROOT / 'tests' / test}" for test in tests)]
        said = self.folder / "said.txt"
        said.write_text("")
        process = self.context.Process(target=run_pytest, args=(arguments, self.folder))
        process.start()
        try:
            process.join(seconds)
            return process.exitcode, said.read_text(encoding="utf-8", errors="replace")
        finally:
            if process.is_alive():
                os.killpg(process.pid, signal.SIGKILL) if os.name == "posix" else process.kill()
                process.join()


def verdict(status: int | None, said: str) -> str:
    "What became of a fault, or of a test without one."
    if status is None or status < 0:
        return "caught (too long)" if status is None else "caught (crash)"
    if status == 0:
        return "survived" if " passed" in said else "skipped"
    return "caught" if status == 1 else "broken"           # 2 to 5: no test ran


def unfit(shop: Workshop, tests: Sequence[str]) -> dict[str, str]:
    "The tests that do not pass in a healthy library, each with what it does instead."
    report = shop.folder / "healthy.xml"
    shop.pytest(tests, SECONDS * len(tests), f"--junitxml={report}")
    cases = {} if not report.exists() else {
        f"{case.get('classname').rpartition('.')[2]}.py::{case.get('name')}": {e.tag for e in case}
        for case in ElementTree.parse(report).iter("testcase")}
    found = {}
    for test in tests:
        ends = [tags for name, tags in cases.items() if name == test or name.startswith(f"{test}[")]
        if not ends or any(tags & {"failure", "error"} for tags in ends):
            found[test] = "fails without the fault too"
        elif all("skipped" in tags for tags in ends):
            found[test] = "skipped"
    return found


def run(mutants: Sequence[Mutant]) -> dict[Mutant, str]:
    "What became of each fault; a line is printed as soon as it is known."
    found = {}
    with tempfile.TemporaryDirectory(prefix="minigpt-mutants-") as name:
        shop = Workshop(Path(name))
        wrong = unfit(shop, list(dict.fromkeys(m.test for m in mutants)))
        for mutant in mutants:
            start, healthy = time.perf_counter(), source(mutant.module)
            if mutant.test in wrong:
                found[mutant] = wrong[mutant.test]
            else:
                shop.put(mutant.module, mutant.applied(healthy))
                found[mutant] = verdict(*shop.pytest([mutant.test], SECONDS, "-x"))
                shop.put(mutant.module, healthy)
            print(f"{found[mutant]:14} {time.perf_counter() - start:5.1f} s  {mutant.module:18} "
                  f"{mutant.name}  [{mutant.test}]", flush=True)
    return found


def main(arguments: list[str] | None = None) -> int:
    "Read the command line, run, and count; the exit status is 1 if too few were caught."
    parser = argparse.ArgumentParser("python tests/mutants.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="WORDS", default="",
                        help="the faults whose module, name or test hold these words")
    parser.add_argument("--list", action="store_true", help="show the faults, and run nothing")
    args = parser.parse_args(arguments)
    mutants = [m for m in read_list()[0] if args.only in f"{m.module} {m.name} {m.test}"]
    if not mutants:
        parser.error(f"no fault holds {args.only!r}; --list shows all")
    if args.list:
        for m in mutants:
            print(f"{m.module:18} {m.name}  [{m.test}]")
        return 0
    start, found = time.perf_counter(), run(mutants)
    counted = [what for what in found.values() if what != "skipped"]
    caught = sum(what.startswith("caught") for what in counted)
    print(f"\n{caught} of {len(counted)} faults caught in {time.perf_counter() - start:.0f} s"
          + f", {len(found) - len(counted)} skipped" * (len(found) > len(counted)))
    for mutant, what in found.items():
        if not what.startswith("caught"):
            print(f"{what}: {mutant.module}, {mutant.name}  [{mutant.test}]")
    return int(caught < ENOUGH * len(counted) or not counted)


if __name__ == "__main__":
    sys.exit(main())
