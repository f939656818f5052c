"""What the figures were measured on: a figure without its machine means nothing."""
import platform
import re
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .measure import Options, seconds

ROOT = Path(__file__).parent.parent


def output_of(*command: str) -> str:
    "What a command prints, or nothing where it does not exist or fails."
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                              check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def cpu_name() -> str:
    "The processor's name, as its system tells it."
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return output_of("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()


def version_of(package: str) -> str:
    "An installed package's version."
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def describe(options: Options) -> dict:
    "Processor, threads, versions and commit."
    device = cpu_name()
    if options.device != "cpu":
        device += f"; training rows on {torch.cuda.get_device_name(options.device)}"
    changed = " with changes" if output_of("git", "status", "--porcelain") else ""
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{p: version_of(p) for p in ("torch", "tokenizers", "tiktoken", "transformers")},
        "commit": (output_of("git", "rev-parse", "--short", "HEAD") or "unknown") + changed,
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
    }


def peak_memory() -> float:      # MB
    "The most memory that this process has held so far."
    status = Path("/proc/self/status")              # Linux: getrusage would count the parent's, too
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1000
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


class MatmulPeak:
    "A large product: the most arithmetic that PyTorch gets out of these threads."

    def __init__(self, device: str = "cpu", size: int = 2048,
                 dtype: torch.dtype = torch.float32):
        self.a, self.b = torch.randn(2, size, size, device=device).to(dtype).unbind()
        self.size = size

    def __call__(self) -> None:
        "One product, waited for."
        (self.a @ self.b)[0, 0].item()

    @property
    def flops(self) -> int:       # additions and multiplications in one call
        "The arithmetic of one product."
        return 2 * self.size ** 3

    def rate(self, rounds: int = 5) -> float:      # FLOP/s, the best of the rounds
        "Measure by itself."
        self()
        return self.flops / min(seconds(self) for _ in range(rounds))
