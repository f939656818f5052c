"""The live pages: the JavaScript engine must find what the golden file says."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from minigpt.checkpoint import load_model, save_model, shipped_model
from minigpt.config import ModelConfig
from minigpt.model import GPT
from minigpt.page import write_golden

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "book"))
import check_site  # noqa: E402

PAGE = Path(__file__).parent / "page"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="needs node; install nodejs")


@pytest.fixture(scope="module")
def browser() -> str:
    "The browser's path, once all that it needs is installed."
    lack = check_site.missing() or check_site.install()
    if lack:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lack)
    return check_site.browser()


KINDS = {
    "gpt2": dict(norm="layer", mlp="gelu", position="learned", bias=True, n_kv_head=4,
                 tie_embeddings=False),
    "qwen": dict(qk_norm=True, qkv_bias=True, n_kv_head=1, d_attention=96),
    "window": dict(mlp="relu2", position="none", norm_place="post", window=3),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    "A folder with the shipped model and small ones of other kinds, and a golden file for each."
    folder = tmp_path_factory.mktemp("page")
    model, tokenizer = load_model()
    shutil.copytree(shipped_model(), folder / "shipped")

    write_golden(folder / "shipped.json", model, tokenizer)
    for name, kind in KINDS.items():
        torch.manual_seed(0)
        cfg = ModelConfig(tokenizer.vocab_size, context_length=40, n_layer=2, n_head=4, d_model=64,
                          d_ff=90, **({"n_kv_head": 2} | kind))
        small = GPT(cfg).eval()
        for p in small.parameters():              # larger than at the start: mistakes show
            nn.init.normal_(p, std=0.3) if p.ndim > 1 else nn.init.normal_(p, 1, 0.2)
        save_model(folder / name, small, tokenizer)
        write_golden(folder / f"{name}.json", small, tokenizer)
    return folder


def node(script: str, *args, browser: str = "") -> str:
    "Run a script of tests/page; its standard output."
    done = subprocess.run([NODE, PAGE / script, *map(str, args)], capture_output=True,
                          encoding="utf-8", timeout=900, env=os.environ | {"CHROMIUM": browser})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def agrees(found: dict) -> None:
    assert found["wrong"] == []
    assert found["texts"] == 110 and found["runs"] == 5
    assert max(found["logits"], found["attention"], found["chances"]) < 1e-4


@needs_node
@pytest.mark.parametrize("name", ["shipped", *KINDS])
def test_the_engine_agrees_in_node(models, name):
    agrees(json.loads(node("node.mjs", models / name, models / f"{name}.json")))


@pytest.mark.parametrize("name", ["shipped", *KINDS])
def test_the_engine_agrees_in_a_browser(models, browser, name):
    agrees(json.loads(node("browser.mjs", models / name, models / f"{name}.json",
                           browser=browser)))


def test_every_part_works_as_a_reader_uses_it(models, browser):
    assert "every part works" in node("parts.mjs", models / "gpt2", browser=browser)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@needs_node
@pytest.mark.parametrize("change, says", [
    (lambda f: (f / "model.safetensors").write_bytes(b"1234"), "not a whole .safetensors"),
    (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    (lambda f: edit(f / "tokenizer.json", "(?i:[sdmt]", "(?i:[sdm]"), "in another way"),
    (lambda f: edit(f / "config.json", '"rope"', '"alibi"'), "cannot run position"),
    (lambda f: edit(f / "config.json", '"d_model": 192', '"d_model": 96'), "different models"),
    (lambda f: (f / "model.safetensors").write_bytes(
        (f / "model.safetensors").read_bytes()[:-9]), "ends within"),
])
def test_a_model_that_the_page_cannot_run_is_refused_in_one_sentence(tmp_path, change, says):
    folder = shutil.copytree(shipped_model(), tmp_path / "model")
    change(folder)
    (tmp_path / "golden.json").write_text('{"texts": [], "runs": []}')
    done = subprocess.run([NODE, PAGE / "node.mjs", folder, tmp_path / "golden.json"],
                          capture_output=True, encoding="utf-8", timeout=900)
    assert done.returncode == 1 and says in done.stderr


def test_the_engine_stays_short():
    assert len((ROOT / "book/_static/page/engine.js").read_text().splitlines()) < 400
