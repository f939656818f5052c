"Live parts of the chapters on production: rounded weights, and the batch board."
import hashlib
import html
import json
import math
import os
import random
import re
import shutil
import subprocess
from collections import Counter, deque
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import still
import still_batching
import still_quantize
import torch

from minigpt.checkpoint import load_model, shipped_model
from minigpt.loss import document_loss
from minigpt.page import greedy
from minigpt.tinytown import Tinytown

ROOT = Path(__file__).parent.parent

PAGE = Path(__file__).parent / "page"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="needs node; install nodejs")


def node(script: str, *args, browser: str = "") -> str:
    "Run a script of tests/page; its standard output."
    done = subprocess.run([NODE, PAGE / script, *map(str, args)], capture_output=True,
                          encoding="utf-8", timeout=900, env=os.environ | {"CHROMIUM": browser})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- The page's model: 8 bits --------------------------------------------------------------------
@pytest.fixture(scope="module")
def eight(tmp_path_factory) -> Path:
    "The folder that the site has."
    site = tmp_path_factory.mktemp("site")
    still.write_model(site)
    return site / still.FOLDER


@torch.no_grad()
def town_bits(model, tokenizer, n: int = 150) -> float:
    "Bits a document of the town that no training saw."
    corpus = Tinytown(0).corpus(10**7, seed=4_021_978)
    ids = [tokenizer.encode(d.text) for _, d in zip(range(n), corpus)]
    return document_loss(model, ids, tokenizer.end_of_text).double().mean().item() / math.log(2)


def test_the_page_loads_a_quarter_and_loses_less_than_half_a_percent(eight):
    whole, part = ((folder / "model.safetensors").stat().st_size
                   for folder in (shipped_model(), eight))
    assert part < 0.26 * whole
    exact, small = town_bits(*load_model()), town_bits(*load_model(eight))
    assert exact != small and abs(small / exact - 1) < 0.005


def test_the_pictures_are_drawn_by_the_model_that_the_page_loads(eight):
    drawn, loaded = still.opened()[0].state_dict(), load_model(eight)[0].state_dict()
    assert drawn.keys() == loaded.keys()
    assert all(torch.equal(drawn[name], loaded[name]) for name in drawn)
    shell = (ROOT / "book/_static/page/shell.js").read_text(encoding="utf-8")
    assert f'folder: "{eight.name}"' in shell


def test_the_page_s_model_is_written_again_only_if_its_source_is_newer(eight):
    path = eight / "model.safetensors"
    before = path.stat().st_mtime_ns
    still.write_model(eight.parent.parent)
    assert path.stat().st_mtime_ns == before
    os.utime(path, (0, 0))
    still.write_model(eight.parent.parent)
    assert path.stat().st_mtime > 0


# ---- Rounded weights: an oracle in numpy ---------------------------------------------------------
SETTINGS = [(2, "matrix", True), (3, "row", True), (3, "row", False), (4, "matrix", True),
            (4, "row", True), (4, "group", True), (5, "group", False), (6, "matrix", True),
            (8, "row", True), (32, "row", True)]


def oracle(W: np.ndarray, bits: int, reach: str) -> tuple[np.ndarray, list[float]]:
    "Weights on their grids, and the scales, grid by grid, from the definition alone."
    W, most, scales = W.astype(np.float32), 2 ** (bits - 1) - 1, []
    out = np.zeros_like(W)
    rows, columns = W.shape
    width = {"matrix": None, "row": columns, "group": 32}[reach]
    places = ([(slice(None), slice(None))] if width is None else
              [(row, slice(start, start + width)) for row in range(rows)
               for start in range(0, columns, width)])
    for place in places:
        scale = np.float32(np.float16(np.abs(W[place]).max() / np.float32(most)))
        scales.append(float(scale))
        if scale:
            out[place] = np.rint(W[place] / scale).clip(-most, most) * scale
    return out + np.float32(0), scales                    # -0 becomes 0


SOME = still_quantize.documents()[::2]                    # one of each kind; the browser reads all


def small_matrices() -> list[dict]:
    "Ties, zeros, single columns, groups that are cut short, scales that float16 cannot hold."
    rng, found = np.random.default_rng(0), []
    for rows, columns in ((1, 1), (3, 5), (2, 31), (2, 32), (3, 33), (2, 64), (4, 97)):
        for scale in (1, 1e-3, 1e-6, 1e-9, 3e3):
            W = rng.normal(size=(rows, columns)) * scale
            W[0, 0] = 7 * scale
            W[-1, -1] = 3.5 * scale                       # half way between two levels of a grid
            if rows > 2:
                W[1] = 0
            W = W.astype(np.float32)
            found += [dict(W=W.ravel().tolist(), columns=columns, bits=bits, reach=reach)
                      for bits in (2, 3, 4, 8) for reach in ("matrix", "row", "group")]
    return found


NUMBERS = np.concatenate([
    np.float32([0, 1, 2**-24, 2**-25, 3 * 2**-25, 2**-14, 65504, 65519]),
    np.float32([1 + 2**-11, 1 + 3 * 2**-11]),             # half way between two of float16
    np.float32(2) ** np.random.default_rng(1).uniform(-26, 15.9, 2000).astype(np.float32)])


@pytest.fixture(scope="module")
def rounding(tmp_path_factory) -> dict:
    "What the page finds: its losses, its rounded weights, its scales."
    path = tmp_path_factory.mktemp("rounding") / "golden.json"
    path.write_text(json.dumps(dict(
        settings=[dict(bits=bits, reach=reach, embedding=whole) for bits, reach, whole in SETTINGS],
        texts=[d.text for d in SOME], small=small_matrices(),
        numbers=NUMBERS.tolist())), encoding="utf-8")
    return json.loads(node("rounding.mjs", shipped_model(), path))


@pytest.fixture(scope="module")
def by_torch() -> list[dict]:
    "The same in Python: the oracle's weights in a GPT of ours."
    model, tokenizer = load_model()
    exact = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = [tokenizer.encode(d.text) for d in still_quantize.documents()]
    found = []
    for bits, reach, whole in SETTINGS:
        scales, zeros, weights, rounded = 0, 0, 0, {}
        for name, W in exact.items():
            if W.ndim < 2 or bits == 32 or ("embedding" in name and not whole):
                continue
            values, own = oracle(W.numpy(), bits, reach)
            rounded[name] = torch.from_numpy(values)
            scales, zeros, weights = (scales + len(own), zeros + int((values == 0).sum()),
                                      weights + values.size)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(rounded.get(name, exact[name]))
            bits_each = document_loss(model, ids, tokenizer.end_of_text).double() / math.log(2)
        names = [n for n, W in exact.items() if W.ndim == 2]
        found.append(dict(loss=bits_each.mean().item(), some=bits_each[::2].mean().item(),
                          scales=scales, zeros=zeros, weights=weights,
                          hashes={n: rounded.get(n, exact[n]).numpy().tobytes() for n in names}))
    return found


def page_order() -> list[str]:
    "The matrices as engine.js lists them."
    names = ["embedding.weight"]
    for n in range(load_model()[0].cfg.n_layer):
        names += [f"blocks.{n}.{part}.weight" for part in (
            "attention.query", "attention.out", "attention.key", "attention.value", "mlp.gate",
            "mlp.up", "mlp.down")]
    return names


@needs_node
def test_the_page_s_rounded_weights_are_python_s_to_the_bit(rounding, by_torch):
    for mine, theirs in zip(rounding["found"], by_torch, strict=True):
        assert sorted(theirs["hashes"]) == sorted(page_order())
        digest = hashlib.sha256(b"".join(theirs["hashes"][name] for name in page_order()))
        assert mine["hash"] == digest.hexdigest()
        assert all(mine[key] == theirs[key] for key in ("scales", "zeros", "weights"))


@needs_node
def test_the_page_s_losses_are_python_s(rounding, by_torch):
    for mine, theirs in zip(rounding["found"], by_torch, strict=True):
        assert mine["loss"] == pytest.approx(theirs["some"], rel=1e-4)
    assert rounding["whole"] == pytest.approx(rounding["stepwise"], rel=1e-6)


@needs_node
def test_the_page_rounds_awkward_matrices_and_numbers_as_numpy_does(rounding):
    assert rounding["halves"] == NUMBERS.astype(np.float16).astype(float).tolist()
    for case, mine in zip(small_matrices(), rounding["small"], strict=True):
        W = np.float32(case["W"]).reshape(-1, case["columns"])
        values, scales = oracle(W, case["bits"], case["reach"])
        assert mine["values"] == values.ravel().tolist() and mine["scales"] == scales


def test_the_still_picture_rounds_as_numpy_does():
    for case in small_matrices():
        W = np.float32(case["W"]).reshape(-1, case["columns"])
        values, scales = oracle(W, case["bits"], case["reach"])
        mine = still_quantize.rounded(torch.from_numpy(W), case["bits"], case["reach"])
        assert (mine + 0.0).numpy().tobytes() == values.tobytes()
        found = still_quantize.scales_of(torch.from_numpy(W), case["bits"], case["reach"])
        assert found.flatten().tolist() == scales


def test_more_bits_and_shorter_reach_cost_less():
    "A law of the grid itself: the squared error falls, and a weight moves by half a level at most."
    W = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    errors = {}
    for reach in still_quantize.REACHES:
        for bits in still_quantize.BITS:
            gap = (still_quantize.rounded(W, bits, reach) - W).abs()
            scale = still_quantize.scales_of(W, bits, reach)
            assert (still_quantize.grids(gap, reach) <= scale * (0.5 + 2 ** (bits - 12))).all()
            errors[reach, bits] = gap.square().mean().item()
        row = [errors[reach, bits] for bits in still_quantize.BITS]
        assert row == sorted(row, reverse=True)
    for bits in still_quantize.BITS[1:]:                  # at 2 bits an outlier is not the trouble
        assert errors["group", bits] < errors["row", bits] < errors["matrix", bits]


def test_the_texts_are_of_every_kind_and_cost_more_than_their_choices(tmp_path):
    still_quantize.write_documents(tmp_path)
    told = json.loads((tmp_path / still_quantize.FILE).read_text(encoding="utf-8"))
    _, tokenizer = load_model()
    n_tokens = sum(len(tokenizer.encode(text)) + 1 for text in told["texts"])
    assert len(set(told["texts"])) == 14 and 1000 < n_tokens < 2000
    kinds = Counter(d.kind for d in still_quantize.documents())
    assert set(kinds.values()) == {2} and len(kinds) == 7
    model, tokenizer = load_model()
    exact = document_loss(model, [tokenizer.encode(t) for t in told["texts"]],
                          tokenizer.end_of_text) / math.log(2)
    assert told["float32"] == pytest.approx(exact.tolist(), rel=1e-4)
    assert told["floor"] < exact.mean().item() < 1.3 * told["floor"]


def test_the_still_picture_tells_the_loss_of_every_grid(by_torch):
    picture = still_quantize.quantize("<b>Once</b>")
    assert picture.count("<td>") == 18 and "<b>" not in picture
    cells = dict(zip(((bits, reach) for bits in still_quantize.BITS
                      for reach in still_quantize.REACHES),
                     re.findall(r"<td>([\d,.]+)</td>", picture)))
    for (bits, reach, whole), theirs in zip(SETTINGS, by_torch):
        if bits < 32 and whole:
            assert float(cells[bits, reach].replace(",", "")) == pytest.approx(theirs["loss"],
                                                                               rel=2e-3)
    assert f"In float32 it is {by_torch[-1]['loss']:.1f}" in picture
    model, tokenizer = load_model()
    still_quantize.round_model(model, 3, "row")
    made = greedy(model, tokenizer.prompt_ids("<b>Once</b>"), 5)
    assert html.escape(tokenizer.decode(made)) in picture


def test_rounding_works_as_a_reader_uses_it(tmp_path, browser, by_torch):
    still_quantize.write_documents(tmp_path)
    names = [f"{bits}" if bits == 32 else f"{bits} {reach}{'' if whole else ', exact embedding'}"
             for bits, reach, whole in SETTINGS]
    losses = tmp_path / "losses.json"
    losses.write_text(json.dumps({n: found["loss"] for n, found in zip(names, by_torch)}))
    assert "rounding works" in node("quantize.mjs", tmp_path / still_quantize.FILE, losses,
                                    browser=browser)


# ---- The batch board: an oracle that follows each request, not each slot -------------------------
class Guest:
    "A request that keeps a diary: what happened to it in each step since it got a slot."

    def __init__(self, number: int, arrive: int, prompt: int, answer: int):
        self.number, self.arrive = number, arrive
        self.pages, self.words = math.ceil(prompt / 64), answer
        self.slot, self.diary = None, {}

    def read(self, step: int) -> None:
        self.pages -= 1
        self.words -= self.pages == 0                     # the last page gives the first word
        self.diary[step] = ["prefill", self.pages == 0]

    def speak(self, step: int) -> None:
        self.words -= 1
        self.diary[step] = ["decode", True]


def follow(asked: list[dict], continuous: bool, chunked: bool) -> list[dict]:
    "The timeline as the page writes it."
    guests = [Guest(n, **r) for n, r in enumerate(asked)]
    outside, inside, table, step = deque(guests), [], [], 0     # table: the batch, finished or not
    while outside or inside:
        free = sorted(set(range(4)) - {g.slot for g in table})
        while free and outside and outside[0].arrive <= step and (continuous or len(table) < 4) \
                and (continuous or all(not g.diary for g in table)):
            guest = outside.popleft()
            guest.slot = free.pop(0)
            inside.append(guest)
            table.append(guest)
        readers = [g for g in inside if g.pages]
        speakers = [g for g in inside if not g.pages] if chunked or not readers else []
        for guest in readers[:1]:
            guest.read(step)
        for guest in speakers:
            guest.speak(step)
        for guest in table:
            guest.diary.setdefault(step, ["wait", False])
        inside = [g for g in inside if g.words]
        table = [g for g in table if g.words] if continuous else table if inside else []
        step += 1
    columns = [dict(queue=[], cells=[dict(kind="empty") for _ in range(4)]) for _ in range(step)]
    for guest in guests:
        for at, (kind, made) in guest.diary.items():
            columns[at]["cells"][guest.slot] = dict(kind=kind, request=guest.number) | (
                dict(token=made) if kind != "wait" else {})
        for at in range(guest.arrive, min(guest.diary)):
            columns[at]["queue"].append(guest.number)
    return columns


POLICIES = [dict(continuous=a, chunked=b) for a in (False, True) for b in (False, True)]
RATES = [0.05, 0.1, 0.3, 1]


def days() -> list[dict]:
    "Random requests, and some that lie at the edges, under each policy."
    rng, lists = random.Random(0), [
        [dict(arrive=0, prompt=1, answer=1)], [dict(arrive=3, prompt=64, answer=2)],
        [dict(arrive=0, prompt=65, answer=1)] * 9, [dict(arrive=0, prompt=640, answer=3)] * 2,
        [dict(arrive=50 * n, prompt=100, answer=5) for n in range(3)]]
    for _ in range(40):
        spread, n = rng.choice((1, 30, 200)), rng.randint(1, 16)
        arrivals = sorted(rng.randint(0, spread) for _ in range(n))
        lists.append([dict(arrive=a, prompt=rng.choice((1, 63, 64, 65, 128, rng.randint(1, 500))),
                           answer=rng.choice((1, 2, rng.randint(1, 40)))) for a in arrivals])
    return [dict(list=asked) | policy for asked in lists for policy in POLICIES]


@pytest.fixture(scope="module")
def boards(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("boards") / "days.json"
    path.write_text(json.dumps(dict(days=days(), rates=RATES)))
    return json.loads(node("board.mjs", path))


@needs_node
def test_the_board_s_timelines_are_those_of_an_oracle_that_follows_each_request(boards):
    for day, found in zip(days(), boards["days"], strict=True):
        assert found["columns"] == follow(day["list"], day["continuous"], day["chunked"])


@needs_node
def test_the_board_keeps_its_laws(boards):
    for day, found in zip(days(), boards["days"], strict=True):
        asked, columns = day["list"], found["columns"]
        places = {n: [] for n in range(len(asked))}
        for step, column in enumerate(columns):
            here = [c["request"] for c in column["cells"] if "request" in c]
            assert len(here) == len(set(here)) <= 4 and not set(here) & set(column["queue"])
            kinds = Counter(c["kind"] for c in column["cells"])
            assert kinds["prefill"] <= 1
            assert day["chunked"] or not (kinds["prefill"] and kinds["decode"])
            if day["continuous"]:                          # no slot is empty while somebody waits
                assert not (kinds["empty"] and column["queue"])
            for slot, cell in enumerate(column["cells"]):
                if "request" in cell:
                    places[cell["request"]].append((step, slot, cell))
        for n, r in enumerate(asked):
            steps, slots, cells = zip(*places[n])
            assert len(set(slots)) == 1 and steps == tuple(range(steps[0], steps[-1] + 1))
            assert steps[0] >= r["arrive"] and [n in c["queue"] for c in columns] == [
                r["arrive"] <= step < steps[0] for step in range(len(columns))]
            assert sum(c["kind"] == "prefill" for c in cells) == math.ceil(r["prompt"] / 64)
            assert sum(c.get("token", False) for c in cells) == r["answer"]
            if day["continuous"]:                          # it leaves with its last token
                assert cells[-1]["token"]
        begins = [places[n][0][0] for n in range(len(asked))]
        assert begins == sorted(begins)                    # who came first begins first
        if not day["continuous"]:                          # nobody joins a batch that has begun
            ends = [places[n][-1][0] for n in range(len(asked))]
            for a, b in pairwise(range(len(asked))):
                assert begins[b] == begins[a] or begins[b] > max(ends[:b])


@needs_node
def test_the_board_s_figures_are_counted_from_its_timelines(boards):
    for day, found in zip(days(), boards["days"], strict=True):
        columns, asked, figures = found["columns"], day["list"], found["figures"]
        made = [[t for t, c in enumerate(columns) for cell in c["cells"]
                 if cell.get("request") == n and cell.get("token")] for n in range(len(asked))]
        waits = [steps[0] - r["arrive"] + 1 for steps, r in zip(made, asked)]
        assert figures["steps"] == len(columns)
        assert figures["use"] == pytest.approx(sum(map(len, made)) / (4 * len(columns)))
        assert figures["mean"] == pytest.approx(np.mean(waits))
        assert figures["p95"] == np.percentile(waits, 95, method="inverted_cdf")
        assert figures["pause"] == max((b - a for steps in made for a, b in pairwise(steps)),
                                       default=1)


@needs_node
def test_the_picture_of_the_board_is_the_page_s_board(boards):
    for rate, own in zip(RATES, boards["own"], strict=True):
        drawn = still_batching.requests(rate)
        assert own == [dict(arrive=r.arrive, prompt=r.prompt, answer=r.answer) for r in drawn]
    for day, found in zip(days(), boards["days"], strict=True):
        asked = [still_batching.Request(**r) for r in day["list"]]
        columns = still_batching.simulate(asked, day["continuous"], day["chunked"])
        assert columns == [[(c["kind"], c.get("request")) for c in column["cells"]]
                           for column in found["columns"]]
        assert still_batching.figures(asked, columns) == pytest.approx(
            [found["figures"][key] for key in ("steps", "use", "mean", "p95", "pause")])


def test_the_still_picture_of_the_board_shows_both_policies():
    picture = still_batching.batching("static")
    assert picture.count("<svg") == 2 + 4 and picture.count("<tr>") == 1 + 4
    static = follow([dict(arrive=r.arrive, prompt=r.prompt, answer=r.answer)
                     for r in still_batching.requests()], continuous=False, chunked=False)
    assert f"Static batching: {len(static)} steps" in picture
    with pytest.raises(ValueError, match="'unicorn' says nothing to a batch board; choose from"):
        still_batching.batching("static unicorn")


def test_the_board_works_as_a_reader_uses_it(browser):
    assert "the board works" in node("batching.mjs", browser=browser)
