"""Run the notebooks, render the site, check it, and say how to open it."""
import contextlib
import os
import re
import shutil
import subprocess
import sys
import time

import check_site
import run

ROOT = run.ROOT
SITE = ROOT / "book" / "_build" / "html"
PLACE = re.compile(r"\.ipynb:(\d+)(\d{4}):")
JUPYTER_BOOK = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
RENDER = [*JUPYTER_BOOK, "build", ".", "--path-output", "book",
          "--config", "book/_config.yml", "--toc", "_toc.yml", "-W", "-n", "--keep-going"]


def place(match: re.Match) -> str:  # MyST-NB counts 10,000 lines for each cell
    return f".ipynb, cell {match[1]}, line {int(match[2])}:"


class Steps:
    "Name each step as it starts, and keep how long it took."

    def __init__(self, total: int):
        self.total, self.times = total, []

    @contextlib.contextmanager
    def __call__(self, name: str):
        print(f"\n[{len(self.times) + 1}/{self.total}] {name}", flush=True)
        start = time.monotonic()
        try:
            yield
        finally:
            self.times.append((name, time.monotonic() - start))
            print(f"  {self.times[-1][1]:.1f} s", flush=True)

    def summary(self) -> str:
        rows = [f"  {name:<44}{seconds:7.1f} s" for name, seconds in self.times]
        return "\n".join([*rows, f"  {'in all':<44}{sum(t for _, t in self.times):7.1f} s"])


def render() -> bool:
    "Build the pages; a warning counts as an error, and is repeated at the end."
    shutil.rmtree(SITE, ignore_errors=True)  # no page of an earlier table of contents stays
    process = subprocess.Popen(RENDER, cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, encoding="utf-8", errors="replace")
    troubles, last, live = [], [], sys.stdout.isatty()
    for line in process.stdout:
        line = run.COLOUR.sub("", line.rstrip())
        last = [*last[-20:], line]
        if re.search("WARNING|ERROR|Error|Exception", line):
            troubles.append(PLACE.sub(place, line.replace(f"{ROOT}{os.sep}", "")))
        elif line.startswith(("reading sources", "writing output")) and live:
            print("\r\x1b[K  " + line[:90], end="", flush=True)
    print("\r\x1b[K" if live else "", end="")
    if process.wait() == 0:
        return True
    print("\nThe site was not accepted:", *dict.fromkeys(troubles or last), sep="\n", flush=True)
    return False


def build() -> int:
    step = Steps(3)
    with step("Run the notebooks that changed"):
        failures = run.run_all(run.chapters())
    if failures:
        print("\n" + "\n\n".join(failures.values()))
        return 1
    with step("Render the pages"):
        rendered = render()
    if not rendered:
        return 1
    with step("Check every page and link"):
        problems = check_site.problems(SITE)
        print(f"  {len(list(SITE.rglob('*.html')))} pages, {len(problems)} problems")
    if problems:
        print("\n".join(["", *problems]))
        return 1
    folder = SITE.relative_to(ROOT).as_posix()
    print(f"\n{step.summary()}\n\nThe book is in {folder}. Open {folder}/index.html, or serve it:\n"
          f"  python3 -m http.server --bind 127.0.0.1 --directory {folder} 8000\n"
          "  and look at http://127.0.0.1:8000", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(build())
