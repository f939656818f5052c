"What several test files share: repeatable hypothesis, refusals, a tiny tokenizer and saved model."
import json
import math
import os
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from minigpt.checkpoint import save_model
from minigpt.config import ModelConfig
from minigpt.model import GPT
from minigpt.tokenizer import train_tokenizer

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:      # as behind nohup: what the tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)     # would not hear a Ctrl-C either

settings.register_profile("laws", deadline=None, derandomize=True, database=None)
settings.load_profile("laws")


class Check(pytest.Item):
    "What `book/verify.py` checked before the tests began: it fails with what was found."

    def __init__(self, *, problem: str, **keywords):
        super().__init__(**keywords)
        self.problem = problem

    def runtest(self):
        if self.problem:
            raise AssertionError(self.problem)

    def repr_failure(self, excinfo):
        return str(excinfo.value)

    def reportinfo(self):
        return self.name, None, self.name


# The files that take longest, and begin first where several processes share them: none is left to
# run alone at the end. A file stays in one process, for its fixtures are what costs most.
LONG = ("test_open_notebooks", "test_zoo", "test_distributed", "test_page", "test_generation",
        "test_config_fields", "test_dojo", "test_gguf_file", "test_cli", "test_site_check")


def pytest_collection_modifyitems(session, items):
    "Each process that runs tests is told by a file: processes share nothing but variables."
    if hasattr(session.config, "workerinput"):
        rank = {name: i for i, name in enumerate(LONG)}
        items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
    if "CHECK_RESULTS" in os.environ:
        results = json.loads(Path(os.environ["CHECK_RESULTS"]).read_text(encoding="utf-8"))
        items[:0] = [Check.from_parent(session, name=name, problem=problem)
                     for name, problem in results.items()]


SOME_TEXT = "Rosa and Tom baked a cake. Tom's cake was larger than Rosa's cake, and it sank.\n" * 20


@pytest.fixture(scope="session")
def browser() -> str:
    "The browser's path, once all that it needs is installed."
    import check_site
    lack = check_site.missing() or check_site.install()
    if lack:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lack)
    return check_site.browser()


def near(right: int, share: float, n: int) -> bool:
    "Whether a count of n fits a share, with four deviations and two answers for other machines."
    return abs(right - n * share) <= 4 * math.sqrt(n * share * (1 - share)) + 2


@contextmanager
def refused(*words):
    "One clear sentence, and the words are in it."
    with pytest.raises(ValueError) as caught:
        yield
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer([SOME_TEXT], 300)


@pytest.fixture(scope="session")
def tiny_model(tokenizer):
    torch.manual_seed(0)
    return GPT(ModelConfig(vocab_size=tokenizer.vocab_size, context_length=32, n_layer=1, n_head=2,
                           n_kv_head=2, d_model=16, d_ff=32)).eval()


@pytest.fixture(scope="session")
def saved(tiny_model, tokenizer, tmp_path_factory):
    "A folder with a saved model, to read and not to change."
    folder = tmp_path_factory.mktemp("saved")
    save_model(folder, tiny_model, tokenizer)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    "The same folder again, to break."
    return shutil.copytree(saved, tmp_path / "copied")
