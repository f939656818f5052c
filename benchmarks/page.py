"""How fast the shipped model writes in a page: plain JavaScript, one core, no graphics card."""
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from minigpt.checkpoint import load_model, shipped_model
from minigpt.page import write_golden
from minigpt.sizes import count_parameters

from .measure import Options, Row

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "tests" / "page"
sys.path.insert(0, str(ROOT / "book"))
import check_site  # noqa: E402


def milliseconds(script: str, golden: Path, rounds: int) -> list[float]:
    "Milliseconds a token of the greedy texts of the golden file, once a round."
    command = ["node", SCRIPTS / script, shipped_model(), golden]
    found = []
    for _ in range(rounds):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300,
                              env=os.environ | {"CHROMIUM": check_site.browser() or ""})
        result = json.loads(done.stdout)
        if result["wrong"]:
            raise AssertionError(f"{script}: {result['wrong'][0]}")
        found.append(result["ms"])
    return sorted(found)


def measure(options: Options) -> list[Row]:
    "Milliseconds a token in Node and in a headless browser, with the same texts as PyTorch."
    model, tokenizer = load_model()
    size = count_parameters(model.cfg)["total"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        golden = Path(folder) / "golden.json"
        write_golden(golden, model, tokenizer)
        for place, script, lack in (
                ("Node", "node.mjs", "" if shutil.which("node") else "node is not here"),
                ("headless Chromium", "browser.mjs", check_site.missing() or check_site.install())):
            if lack:
                rows.append(Row(f"the page's engine in {place}", None,
                                note=f"not measured: {lack}"))
                continue
            ms = milliseconds(script, golden, 1 if options.quick else 5)
            rows.append(Row(f"the page's engine in {place}", ms[len(ms) // 2], "ms/token",
                            note=f"{size:,} parameters, the same greedy texts as PyTorch; median "
                                 f"of {len(ms)}, from {ms[0]:.1f} to {ms[-1]:.1f}",
                            detail={"ms": ms}))
    return rows
