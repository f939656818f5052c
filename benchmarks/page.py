"""How fast the shipped model writes in a page: plain JavaScript, one core, no graphics card."""
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from minigpt.checkpoint import load_model, shipped_model
from minigpt.config import count_parameters
from minigpt.page import write_golden

from .measure import Options, Row

SCRIPTS = Path(__file__).parent.parent / "tests" / "page"
MODULES = Path(__file__).parent.parent / "book" / "node_modules" / "playwright-core"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_HERE = MODULES.exists() and any(map(shutil.which, BROWSERS))


def milliseconds(script: str, golden: Path, rounds: int) -> list[float]:
    "Milliseconds a token of the greedy texts of the golden file, once a round."
    browser = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), "")
    command = ["node", SCRIPTS / script, shipped_model(), golden]
    found = []
    for _ in range(rounds):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300,
                              env=os.environ | {"CHROMIUM": browser})
        result = json.loads(done.stdout)
        if result["wrong"]:
            raise AssertionError(f"{script}: {result['wrong'][0]}")
        found.append(result["ms"])
    return sorted(found)


def measure(options: Options) -> list[Row]:
    "Milliseconds a token in Node and in a headless browser, with the same texts as PyTorch."
    model, tokenizer = load_model()
    size = count_parameters(model.cfg)["total"]
    missing = "" if shutil.which("node") else "node"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        golden = Path(folder) / "golden.json"
        write_golden(golden, model, tokenizer)
        for place, script in (("Node", "node.mjs"), ("headless Chromium", "browser.mjs")):
            if script == "browser.mjs" and not BROWSER_HERE:
                missing = missing or "chromium or book/node_modules"
            if missing:
                rows.append(Row(f"the page's engine in {place}", None,
                                note=f"not measured: {missing} is not here"))
                continue
            ms = milliseconds(script, golden, 1 if options.quick else 5)
            rows.append(Row(f"the page's engine in {place}", ms[len(ms) // 2], "ms/token",
                            note=f"{size:,} parameters, the same greedy texts as PyTorch; median "
                                 f"of {len(ms)}, from {ms[0]:.1f} to {ms[-1]:.1f}",
                            detail={"ms": ms}))
    return rows
