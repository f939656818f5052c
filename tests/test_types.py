"What an editor or a type checker knows of the library: enough to find a misspelt keyword."
import ast
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import get_args

import pytest

import minigpt
from minigpt import config, distributed, inference, loss
from minigpt.loss import cross_entropy

pytest.importorskip("mypy")

# PyTorch and NumPy are left out: reading their stubs takes minutes, and they are not ours.
SETTINGS = f"""[mypy]
strict = True
mypy_path = {Path(minigpt.__file__).parent.parent.as_posix()}
[mypy-torch.*,numpy.*]
follow_imports = skip
ignore_missing_imports = True
[mypy-minigpt.*]
ignore_errors = True
"""
RIGHT = """
from collections.abc import Iterator
from minigpt import GPT, Batches, KVCache, ModelConfig, Recipe, generate, load, stream
from minigpt import temperature, top_k, top_p, train
from minigpt.chat import Chat
from minigpt.inference import AnyTokenizer, complete, complete_batch, generate_ids

model, tokenizer = load("runs/mine", dtype="bfloat16")
text: str = generate(model, tokenizer, "Once", temperature=0.7, top_p=0.9, max_tokens=20, seed=1)
pieces: Iterator[str] = stream(model, tokenizer, "Once", stop=["Q:"], rules=[top_k(5)])
ids: list[int] = list(generate_ids(model, [1, 2], 5, [temperature(0.0)], overflow="slide"))
whole: str = "".join(complete(model, tokenizer, "Once", rules=[top_p(0.9)]))
first: str = complete_batch(model, tokenizer, ["a", "b"])[0].text
cfg = ModelConfig(n_layer=2, position="learned", norm="layer")
cache = KVCache.for_model(GPT(cfg), batch_size=2)
steps: int = Recipe(steps=10).steps
known: int = tokenizer.vocab_size
def shout(words: AnyTokenizer) -> str:
    return words.decode(words.encode("a")).upper()
loud: str = shout(tokenizer)
chat = Chat(*load("chat"), system="Be brief.", temperature=0.7)
said: str = "".join(chat.say("Where does Abel live?"))
"""
WRONG = {
    'generate(model, tokenizer, "Once", temprature=0.7)': 'argument "temprature"',
    'stream(model, tokenizer, "Once", topp=0.9)': 'argument "topp"',
    'complete(model, tokenizer, "Once", max_token=5)': 'argument "max_token"',
    'generate(model, "Once")': "incompatible type",
    'len(stream(model, tokenizer, "Once"))': '"Iterator[str]"; expected "Sized"',
    'load(dtyp="bfloat16")': 'argument "dtyp"',
    'ModelConfig(n_layers=2)': 'argument "n_layers"',
    'ModelConfig(position="ropes")': 'incompatible type "Literal[\'ropes\']"',
    'generate_ids(model, [1], overflow="wrap")': 'incompatible type "Literal[\'wrap\']"',
    'KVCache.for_model(model, batch=2)': 'argument "batch"',
    'Recipe(step=10)': 'argument "step"',
    'tokenizer.encoded("a")': 'no attribute "encoded"',
    'minigpt.genrate': 'no attribute "genrate"',
}


def test_mypy_passes_a_user_s_program_and_finds_each_misspelling(tmp_path):
    lines = (RIGHT + "import minigpt\n").splitlines()
    program = tmp_path / "program.py"
    program.write_text("\n".join([*lines, *WRONG]) + "\n")
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    done = subprocess.run([sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "program.py"],
                          cwd=tmp_path, capture_output=True, text=True)
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith("program.py:"):
            _, number, said = line.split(":", 2)
            found.setdefault(int(number), said)
    wrong = {len(lines) + 1 + i: said for i, said in enumerate(WRONG.values())}
    assert found.keys() == wrong.keys(), done.stdout + done.stderr
    assert [said for n, said in wrong.items() if said not in found[n]] == [], done.stdout


def test_the_package_says_that_it_has_types():
    assert (files("minigpt") / "py.typed").is_file()
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8")
    assert '"py.typed"' in project


def test_what_a_type_checker_sees_is_what_is_there():
    "Two lists in one file, one for each: the same names from the same modules."
    tree = ast.parse((files("minigpt") / "__init__.py").read_text("utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)
               and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == minigpt._HOME and sorted(seen) == sorted(minigpt.__all__)


@pytest.mark.parametrize("table, kind", [
    *((config.CHOICES[name], kind) for name, kind in (
        ("attention", config.AttentionKind), ("position", config.PositionKind),
        ("mlp", config.MLPKind), ("norm", config.NormKind), ("norm_place", config.NormPlace))),
    (config.STRETCHES, config.Stretch), (distributed.SPREADS, distributed.Spread)])
def test_a_table_of_choices_is_its_type(table, kind):
    assert table == get_args(kind) and len(table) > 1


def test_every_choice_of_the_config_is_typed():
    types = minigpt.ModelConfig.__dataclass_fields__
    assert all(get_args(types[name].type) == choices for name, choices in config.CHOICES.items())
    assert not [name for name, f in types.items() if f.type in (str, "str")]


def test_a_choice_that_is_none_is_refused():
    "A reduction that nobody knows was a mean."
    import torch
    with pytest.raises(ValueError, match="choose from mean, sum, none"):
        cross_entropy(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), "avg")
    assert get_args(loss.Reduction) and get_args(inference.Overflow)
