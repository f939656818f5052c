"""Show the book while it is being written: save a file, and the page renews itself."""
import importlib
import os
import runpy
import socket
import subprocess
import sys

import run
import twins
from sphinx.cmd.build import build_main
from sphinx_autobuild import __main__ as autobuild
from sphinx_autobuild.build import Builder

ROOT = run.ROOT
IGNORED = ["book/node_modules", "book/_build", ".venv", ".git", "runs", "tests", "benchmarks",
           "__pycache__", ".ruff_cache", ".pytest_cache"]


def free_port(first: int = 8000) -> int:
    for port in range(first, first + 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    sys.exit(f"no free port from {first} to {first + 99}")


def prepare() -> None:
    "Before each rendering: what text twins and changed code need. A notebook that fails is shown."
    twins.sync()
    run.package.cache_clear()     # a fork inherits what the server knew
    run.surroundings.cache_clear()
    try:
        new = [path for path in run.chapters() if run.stored(run.load(path)) is None]
    except run.ChapterError:     # a file that is half written; the run below says so
        new = run.chapters()
    if new:
        subprocess.run([sys.executable, "book/run.py", "--draft"], cwd=ROOT)


class Resident(Builder):
    "Renders in a fork of the server, which has imported Sphinx and its extensions already."

    def __call__(self, *, changed_paths):
        prepare()
        build_main(self.sphinx_args)


def serve() -> int:
    port = os.environ.get("PORT") or str(free_port())
    print(f"\nThe book will be at http://127.0.0.1:{port} once the notebooks have run; "
          "stop with Ctrl-C.\n", flush=True)
    os.environ["BOOK_DRAFT"] = "1"
    sys.path[:0] = [str(ROOT / "book" / "_ext")]
    extensions = runpy.run_path(str(ROOT / "book" / "preview" / "conf.py"))["extensions"]
    for name in ["jupytext.cli", *extensions]:
        importlib.import_module(name)
    autobuild.Builder = Resident
    command = ["-c", "book/preview", "-d", "book/_build/preview-doctrees",
               "--host", "127.0.0.1", "--port", port, "--no-initial",
               *(arg for name in IGNORED for arg in ("--ignore", str(ROOT / name))),
               ".", "book/_build/preview"]
    first = [sys.executable, "-m", "sphinx", "build", "-q", *command[:4], *command[-2:]]
    try:
        prepare()
        subprocess.run(first, cwd=ROOT)  # not in this process: V8, which typesets, cannot fork
        autobuild.main(command)
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(serve())
