"Laws of many processes: one equals two, and a checkpoint does not care how many wrote it."
import subprocess
import sys

import pytest
import soak
import torch
from safetensors.torch import load_file

from minigpt.checkpoint import load_model
from minigpt.distributed import ALONE, join_world
from minigpt.recipe import build, read_recipe, run
from minigpt.recorder import open_recording

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo and torchrun: POSIX only")
JOB = """
import sys, torch
from pathlib import Path
from minigpt.distributed import join_world
from minigpt.recipe import read_recipe, run
from minigpt.recorder import Recorder
folder, how, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
with join_world() as world:
    reports = run(folder, read_recipe(folder), 4, 100, world=world, how=how,
                  watch=Recorder(folder))
    for report in reports:
        if report.step.n == steps:
            reports.close()
            break
    assert world.any(world.rank == 1) and not world.any(False)
"""


def job(folder, processes, how="replicate", steps=0):
    "Go on with a run in so many processes, to its end or up to a step."
    program = folder.parent / "job.py"
    program.write_text(JOB)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone",
              f"--nproc-per-node={processes}"]
    done = subprocess.run([*launch, str(program), str(folder), how, str(steps)],
                          capture_output=True, text=True, timeout=900)      # against a hang
    assert done.returncode == 0, done.stderr[-3000:]


def alone(folder, steps=0):
    "The same in this process."
    reports = run(folder, read_recipe(folder), 4, 100)
    for report in reports:
        if report.step.n == steps:
            reports.close()
            break
    return folder


def apart(a, b):
    "How far two finished models are from each other."
    ours, theirs = (load_file(str(folder / "model.safetensors")) for folder in (a, b))
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return alone(soak.start(tmp_path_factory.mktemp("alone") / "run", 12))


@pytest.fixture(scope="module")
def torchrun():
    "Its store needs libuv, which Debian's PyTorch, for one, is built without."
    try:
        torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    except RuntimeError as e:
        if "libuv" not in str(e):
            raise
        pytest.skip("torchrun needs libuv, and this PyTorch was built without it")


@pytest.mark.parametrize("how", ["replicate", pytest.param("shard", marks=pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"),
    reason="PyTorch shards on the CPU since 2.7, when torch.cpu.Stream got record_event"))])
def test_two_processes_equal_one_and_hand_over_to_it_and_back(tmp_path, torchrun, expected, how):
    both = soak.start(tmp_path / "both", 12)
    job(both, 2, how)
    assert apart(both, expected) < 1e-5
    recorded = open_recording(both)                          # whole weights, from the first one
    assert recorded.steps == tuple(range(13)) and len(recorded.rows) == 12
    for name, p in load_model(both)[0].named_parameters():
        assert torch.equal(recorded.weights(12)[name], p.half()), name
    changing = soak.start(tmp_path / "changing", 12)
    job(changing, 2, how, steps=4)
    alone(changing, steps=8)
    job(changing, 2, how)
    assert apart(changing, expected) < 1e-5
    rows = (changing / "log.jsonl").read_text().splitlines()
    assert len(rows) == 12                                   # one process writes the log


def test_a_program_that_was_started_alone_is_a_world_of_one():
    with join_world() as world:
        assert world.size == 1 and world.is_first and not world.any(False) and world.any(True)
        world.wait()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(ValueError, match="device='cuda' is not here; choose cpu"):
        with join_world(device="cuda"):
            pass


def test_more_processes_than_windows_are_refused(tmp_path):
    from dataclasses import replace
    folder = soak.start(tmp_path / "run", 3)
    with pytest.raises(ValueError, match="batch_size=2 is less than the 3 processes"):
        next(run(folder, read_recipe(folder), world=replace(ALONE, size=3)))


def test_an_unknown_way_to_spread_is_refused(tmp_path):
    folder = soak.start(tmp_path / "run", 3)
    with pytest.raises(ValueError, match="choose from replicate, shard"):
        build(read_recipe(folder), how="slice")
