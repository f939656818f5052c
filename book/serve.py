"""Show the book while it is being written: save a file, and the page renews itself."""
import os
import socket
import subprocess
import sys

import run
import twins

ROOT = run.ROOT
IGNORED = ["book/_build", ".venv", ".git", "runs", "tests", "benchmarks", "__pycache__",
           ".ruff_cache", ".pytest_cache"]


def free_port(first: int = 8000) -> int:
    for port in range(first, first + 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    sys.exit(f"no free port from {first} to {first + 99}")


def prepare() -> int:
    "Before each rendering: what text twins and changed code need. A notebook that fails is shown."
    status = twins.sync()
    for message in run.run_all(run.chapters()).values():
        print("\n" + message, flush=True)
    return status


def serve() -> int:
    port = os.environ.get("PORT") or str(free_port())
    print(f"\nThe book will be at http://127.0.0.1:{port} once the notebooks have run; "
          "stop with Ctrl-C.\n", flush=True)
    command = ["sphinx_autobuild", "-c", "book/preview", "-d", "book/_build/preview-doctrees",
               "--host", "127.0.0.1", "--port", port, "--delay", "1",
               *(arg for name in IGNORED for arg in ("--ignore", str(ROOT / name))),
               "--pre-build", f'"{sys.executable}" book/serve.py prepare',
               ".", "book/_build/preview"]
    try:
        return subprocess.run([sys.executable, "-m", *command], cwd=ROOT,
                              env=os.environ | {"BOOK_DRAFT": "1"}).returncode
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(prepare() if "prepare" in sys.argv[1:] else serve())
