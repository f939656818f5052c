"Laws of the command: one line for bad input, nothing lost on Ctrl-C, every option explained."
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import minigpt
from minigpt.checkpoint import checkpoints_in, load_model, load_tensors
from minigpt.cli import main
from minigpt.config import ModelConfig
from minigpt.recipe import Recipe, prepare, write_recipe

COMMAND = [sys.executable, "-c", "import sys; from minigpt.cli import main; sys.exit(main())"]
SAMPLING = ("--checkpoint", "--seed", "--temperature", "--top-k", "--top-p", "--min-p",
            "--max-tokens")
OPTIONS = {"generate": SAMPLING, "ask": SAMPLING, "tokenize": ("--checkpoint",),
           "info": ("--checkpoint",), "train": ("--data", "--recipe", "--out", "--resume",
                                                "--steps", "--minutes", "--seed", "--batch-size",
                                                "--lr", "--adamw-lr", "--vocab-size", "--n-layer",
                                                "--n-head", "--n-kv-head", "--d-model", "--d-ff",
                                                "--context-length", "--record"),
           "finetune": ("--checkpoint", "--data", "--out", "--resume", "--steps", "--epochs",
                        "--lr", "--batch-size", "--context-length", "--skip-long", "--replay",
                        "--replay-share", "--freeze-all-but", "--seed", "--device", "--record"),
           "chat": ("--checkpoint", "--system", "--load", "--chat-template", "--temperature",
                    "--top-p", "--seed", "--max-tokens"),
           "export": ("--to", "--out", "--type", "--cache"),
           "recipes": (), "eval": ("--checkpoint", "--tasks", "--n", "--seed", "--out"),
           "prompts": ("--checkpoint", "--questions", "--n", "--seed", "--max-tokens", "--stop",
                       "--examples", "--shots", "--choose", "--show", "--out"),
           "dojo": (), "doctor": ("--floor",),
           "zoo": ("--cure", "--seed", "--steps"),
           "serve": ("--host", "--port", "--max-batch-size", "--max-waiting", "--max-tokens",
                     "--max-body", "--deadline", "--patience", "--drain", "--device", "--dtype",
                     "--name", "--api-key-file", "--cors", "--chat-template", "--log-prompts"),
           "quantize": ("--bits", "--group", "--method", "--text", "--zero-points",
                        "--embedding-bits", "--out")}
PROGRESS = re.compile(r"Preparing |[\d,]+ parameters, |step \d+/|Done\. |Try it: ")     # no error
STEPS = 400
PATIENCE = 900      # seconds, against a hang: on a busy machine the start alone has taken a minute
posix = pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process alone")


def runner(capsys, progress):
    "Runs a command in this process and gives its exit code, its output and its error lines."
    def run(*argv):
        capsys.readouterr()
        try:
            code = main([str(a) for a in argv])
        except SystemExit as e:                         # argparse's way out
            code = e.code
        out, err = capsys.readouterr()
        run.err = err
        return code, out, [x for x in err.splitlines() if not progress.match(x)]
    return run


@pytest.fixture
def run(capsys):
    return runner(capsys, PROGRESS)


def start(*argv):
    "Starts a command in a process of its own."
    return subprocess.Popen([*COMMAND, *map(str, argv)], cwd=Path(minigpt.__file__).parents[1],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            encoding="utf-8")


def text_folder(folder):
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.txt").write_text(f"This is text number {i}. " * 60, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    "A run's folder before its first step, with a model so small that 400 steps take seconds."
    folder = tmp_path_factory.mktemp("prepared")
    model = ModelConfig(n_layer=1, n_head=2, n_kv_head=2, d_model=16, d_ff=32, context_length=16)
    prepare(folder / "run", Recipe(data=str(text_folder(folder / "text")), vocab_size=300,
                                   model=model, steps=STEPS, batch_size=2))
    return folder / "run"


def log(folder):
    rows = [json.loads(x) for x in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    return [(row["step"], row["loss"], row.get("validation")) for row in rows]


# --- bad input

@pytest.fixture(scope="module")
def places(saved, prepared, tmp_path_factory):
    "Paths to everything that a user could point at by mistake."
    root = tmp_path_factory.mktemp("places")
    (root / "empty").mkdir()
    for name, content in {"text.txt": b"Some words.", "void.txt": b"", "blank.txt": b" \n\n",
                          "latin.txt": "café".encode("latin-1"), "short.txt": b"Hello.",
                          "broken.gguf": b"GGUF\x03\0\0\0" + b"\xff" * 99,
                          "full/mine.txt": b"Mine.", "onlypictures/a.png": b"\x89PNG"}.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)

    def broken(name, source, file, change):
        shutil.copytree(source, root / name)
        path = root / name / file
        content = change(path.read_bytes() if path.exists() else b"")
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)

    def fields(**changes):
        return lambda raw: json.dumps(json.loads(raw) | changes).encode()

    def flipped(raw):
        return raw[:-9] + bytes([raw[-9] ^ 4]) + raw[-8:]

    broken("cut", saved, "model.safetensors", lambda raw: raw[:-7])
    broken("flipped", saved, "model.safetensors", flipped)
    broken("weightless", saved, "model.safetensors", lambda raw: None)
    broken("odd", saved, "config.json", fields(d_model=17))
    broken("float", saved, "config.json", fields(d_model=16.0))
    broken("deeper", saved, "config.json", fields(n_layer=2))
    broken("unsure", saved, "config.json", lambda raw: raw[:50])
    broken("speechless", saved, "tokenizer.json", lambda raw: raw[:500])
    broken("norecipe", prepared, "recipe.json", lambda raw: None)
    broken("cutrecipe", prepared, "recipe.json", lambda raw: raw[:40])
    broken("listrecipe", prepared, "recipe.json", lambda raw: b"[]")
    broken("newrecipe", prepared, "recipe.json", fields(colour="red"))
    broken("nomodel", prepared, "recipe.json",
           lambda raw: json.dumps({"data": "tinytown"}).encode())
    broken("notokens", prepared, "train.npy", lambda raw: None)
    broken("cuttokens", prepared, "train.npy", lambda raw: raw[:-7])
    broken("badcheckpoint", prepared, "checkpoint-00000007.safetensors", lambda raw: b"half a f")
    return root


BAD = [[part.strip() for part in line.rpartition("->")[::2]] for line in """
generate x --temperature -1 -> -1
generate x --temperature nan -> nan
generate x --temperature inf -> inf
generate x --temperature 1e-30 -> 1e-30
generate x --top-k -3 -> -3
generate x --top-p 0 -> 0
generate x --top-p 1.5 -> 1.5
generate x --top-p nan -> nan
generate x --min-p -0.1 -> -0.1
generate x --min-p 2 -> 2
generate x --max-tokens 0 -> 0
generate x --max-tokens -5 -> -5
generate x --checkpoint {saved} --seed 99999999999999999999999 -> 99999999999999999999999
generate x --temperature warm -> warm
generate x --top-k 2.5 -> 2.5
generate x --colour red -> --colour
generate -> prompt
sing -> sing
-> command
ask x --temperature -1 -> -1
generate x --checkpoint {nowhere} -> {nowhere}
generate x --checkpoint {empty} -> {empty}
generate x --checkpoint {text.txt} -> config.json
generate x --checkpoint {cut} -> {cut}
generate x --checkpoint {flipped} -> {flipped}
generate x --checkpoint {weightless} -> {weightless}
generate x --checkpoint {odd} -> d_model=17
generate x --checkpoint {float} -> d_model=16.0
generate x --checkpoint {deeper} -> {deeper}
generate x --checkpoint {unsure} -> {unsure}
generate x --checkpoint {speechless} -> {speechless}
ask x --checkpoint {cut} -> {cut}
chat --checkpoint {saved} -> add_chat_tokens
chat --checkpoint {nowhere} -> {nowhere}
chat --temperature -1 -> -1
chat --top-p 0 -> 0
chat --max-tokens 0 -> 0
chat --load {nowhere} -> {nowhere}
chat --chat-template {nowhere} -> {nowhere}
chat --load {void.txt} -> {void.txt}
chat Hello -> Hello
tokenize x --checkpoint {speechless} -> {speechless}
info --checkpoint {flipped} -> {flipped}
info --checkpoint {nowhere}.gguf -> .gguf
info --checkpoint {broken.gguf} -> {broken.gguf}
export {saved} --to gguf -> --out
export {saved} --out {new} -> --to
export {saved} --to word --out {new} -> word
export {saved} --to gguf --type bf16 --out {new} -> bf16
export {saved} --to onnx --type q4_0 --out {new} -> q4_0
export {saved} --to gguf --cache --out {new} -> cache
export {saved} --to gguf --out {nowhere}/model.gguf -> model.gguf
export {saved} --to gguf --out {short.txt} -> {short.txt}
export {saved} --to huggingface --out {full} -> {full}
export {nowhere} --to gguf --out {new} -> {nowhere}
export {cut} --to onnx --out {new} -> {cut}
eval --checkpoint {flipped} -> {flipped}
eval --tasks geography -> geography
eval --tasks {nowhere}.jsonl -> .jsonl
eval --n 0 -> 0
eval --n few -> few
eval --out {nowhere}/scores.json -> scores.json
train --recipe huge -> huge
train --recipe huge -> minigpt recipes
recipes huge -> huge
serve {nowhere} -> {nowhere}
serve {cut} -> {cut}
serve --port 99999999 -> 99999999
serve --port many -> many
serve --host 256.1.1.1 -> 256.1.1.1
serve --max-batch-size 0 -> --max-batch-size 0
serve --max-waiting -1 -> --max-waiting -1
serve --max-tokens 0 -> max_tokens=0
serve --max-body 0 -> max_body=0
serve --deadline 0 -> deadline=0
serve --patience nan -> patience=nan
serve --drain -1 -> drain=-1
serve --dtype int3 -> int3
serve --device toaster -> toaster
serve --api-key-file {nowhere} -> {nowhere}
serve --api-key-file {blank.txt} -> {blank.txt}
serve --api-key-file {text.txt} -> 8 to 512
serve --api-key-file {latin.txt} -> {latin.txt}
serve --chat-template {nowhere} -> {nowhere}
serve --colour red -> --colour
quantize {saved} -> --out
quantize --out {new} -> CHECKPOINT
quantize {nowhere} --out {new} -> {nowhere}
quantize {flipped} --out {new} -> {flipped}
quantize {saved} --out {saved} -> is not empty
quantize {saved} --out {text.txt} -> {text.txt}
quantize {saved} --out {new} --bits 1 -> bits=1
quantize {saved} --out {new} --bits 9 -> bits=9
quantize {saved} --out {new} --bits few -> few
quantize {saved} --out {new} --group 0 -> group=0
quantize {saved} --out {new} --group some -> 'some'
quantize {saved} --out {new} --group -4 -> '-4'
quantize {saved} --out {new} --embedding-bits 12 -> bits=12
quantize {saved} --out {new} --method best -> best
quantize {saved} --out {new} --method gptq -> --text
quantize {saved} --out {new} --text {text.txt} -> --method
quantize {saved} --out {new} --method gptq --text {nowhere} -> {nowhere}
quantize {saved} --out {new} --method gptq --text {latin.txt} -> {latin.txt}
quantize {saved} --out {new} --method awq --text {short.txt} -> tokens
dojo start 0 {new} -> no exercise 0
dojo start few {new} -> few
dojo start 1 {full} -> is not empty
dojo start 1 -> folder
dojo check {full} -> holds no exercise
dojo hint {nowhere} -> holds no exercise
dojo teach {new} -> teach
doctor {full} -> log.jsonl
doctor {nowhere} -> log.jsonl
doctor {full} --floor low -> low
zoo unicorn -> 'unicorn' is no animal of the zoo; choose from length, keyword
zoo length --steps 0 -> steps=0
zoo length --steps few -> few
zoo --cure --seed 3 -> --cure, --seed
train --batch-size 0 --out {new} -> batch_size=0
train --lr 0 --out {new} -> lr=0
train --lr nan --out {new} -> lr=nan
train --adamw-lr -1 --out {new} -> adamw_lr=-1
train --n-layer 0 --out {new} -> n_layer=0
train --n-head 7 --out {new} -> n_head=7
train --n-head 4 --n-kv-head 3 --out {new} -> n_kv_head=3
train --context-length 0 --out {new} -> context_length=0
train --d-model wide --out {new} -> wide
train --vocab-size 10 --out {new} -> 10
train --steps 0 --out {new} -> 0
train --steps -3 --out {new} -> -3
train --steps few --out {new} -> few
train --minutes 0 --out {new} -> 0
train --minutes -1 --out {new} -> -1
train --minutes nan --out {new} -> nan
train --minutes inf --out {new} -> inf
train --steps 3 --minutes 1 --out {new} -> --minutes
train --data {nowhere} --out {new} -> {nowhere}
train --data {empty} --out {new} -> {empty}
train --data {onlypictures} --out {new} -> {onlypictures}
train --data {void.txt} --out {new} -> {void.txt}
train --data {blank.txt} --out {new} -> {blank.txt}
train --data {latin.txt} --out {new} -> {latin.txt}
train --data {short.txt} --out {new} -> tokens
train --data {text.txt} --out {full} -> {full}
train --data {text.txt} --out {short.txt} -> {short.txt}
train --resume {notokens} --steps 3 -> --steps
train --resume {notokens} --minutes 1 -> --minutes
train --resume {notokens} --seed 0 -> --seed
train --resume {notokens} --precision bfloat16 -> --precision
train --resume {notokens} --batch-size 2 -> --batch-size
train --resume {notokens} --lr 0.1 -> --lr
train --resume {notokens} --n-layer 2 -> --n-layer
train --resume {notokens} --out {new} -> --out
train --resume {notokens} --data tinytown -> --data
train --resume {notokens} --recipe tinytown -> --recipe
train --resume {nowhere} -> {nowhere}
train --resume {empty} -> {empty}
train --resume {text.txt} -> {text.txt}
train --resume {norecipe} -> {norecipe}
train --resume {cutrecipe} -> {cutrecipe}
train --resume {listrecipe} -> {listrecipe}
train --resume {newrecipe} -> {newrecipe}
train --resume {nomodel} -> {nomodel}
train --resume {notokens} -> {notokens}
train --resume {cuttokens} -> {cuttokens}
train --resume {badcheckpoint} -> {badcheckpoint}
""".strip().splitlines()]


@pytest.mark.parametrize("line, named", BAD, ids=[line for line, _ in BAD])
def test_bad_input_gets_one_line_that_names_it(run, places, saved, line, named):
    def filled(word):
        path = word.strip("{}")
        return word if path == word else str(saved if path == "saved" else places / path)

    code, out, errors = run(*map(filled, line.split()))
    assert code == 2 and len(errors) == 1 and out == "", (out, errors)
    assert filled(named) in errors[0] and "Traceback" not in errors[0]


@pytest.mark.parametrize("command", ["generate", "ask", "tokenize"])
def test_a_prompt_that_is_not_utf8_is_read_or_refused(run, saved, command):
    code, _, errors = run(command, "caf\udce9", "--checkpoint", saved)
    assert (code, errors) == (0, []) or (
        code == 2 and len(errors) == 1 and "UTF-8" in errors[0].upper())


@pytest.mark.parametrize("data", ["void.txt", "latin.txt", "short.txt", "empty", "nowhere"])
def test_a_refused_run_leaves_its_folder_free(run, places, prepared, tmp_path, data):
    "Or the next try, with better text, would be refused because the folder is not empty."
    out = tmp_path / "out"
    assert run("train", "--data", places / data, "--out", out)[0] == 2
    assert run("train", "--recipe", "small", "--data", prepared.parent / "text", "--steps", 1,
               "--out", out)[0] == 0


def test_a_broken_checkpoint_is_not_thrown_away(run, places):
    path = places / "badcheckpoint" / "checkpoint-00000007.safetensors"
    run("train", "--resume", places / "badcheckpoint")
    assert path.read_bytes() == b"half a f"


def test_your_own_files_are_never_overwritten(run, places):
    run("train", "--data", places / "text.txt", "--out", places / "full")
    assert [(p.name, p.read_bytes()) for p in (places / "full").iterdir()] == [
        ("mine.txt", b"Mine.")]


# --- help

@pytest.mark.parametrize("command", OPTIONS)
def test_help_names_and_explains_every_option(run, command):
    code, out, errors = run(command, "--help")
    assert code == 0 and errors == []
    for option in OPTIONS[command]:
        entry = out.split(f"  {option} ")[-1].split("\n  --")[0]
        assert f"  {option} " in out and len(entry.split()) >= 4, option
    assert "(default: None)" not in out


def test_help_names_every_command(run):
    code, out, errors = run("--help")
    assert code == 0 and errors == [] and all(f"  {command} " in out for command in OPTIONS)


# --- good input

def test_the_zoo_lists_its_animals_and_shows_one(run):
    from minigpt.zoo import ZOO
    code, out, errors = run("zoo")
    assert code == 0 and errors == [] and all(f"\n{name} " in f"\n{out}" for name in ZOO)
    code, out, errors = run("zoo", "keyword", "--cure", "--steps", 2)
    lines = out.splitlines()
    assert code == 0 and errors == [] and ZOO["keyword"].cure in lines[1]
    assert [line.split()[0] for line in lines[-3:]] == ["steps", "0", "1"]


def test_the_dojo_lists_starts_and_hints(run, tmp_path):
    from minigpt.dojo import EXERCISES
    code, out, errors = run("dojo", "start", 2, tmp_path / "two")
    assert code == 0 and errors == [] and EXERCISES[1].report in out
    code, out, errors = run("dojo", "hint", tmp_path / "two")
    assert code == 0 and out == f"Hint 1 of 3: {EXERCISES[1].hints[0]}\n"
    code, out, errors = run("dojo", "list", tmp_path)
    lines = out.splitlines()
    assert code == 0 and errors == [] and len(lines) == len(EXERCISES) + 1
    assert [n for n, line in enumerate(lines, 1) if "begun" in line] == [2]
    assert run("dojo")[0] == 0


def test_the_doctor_names_what_looks_wrong_and_is_silent_otherwise(run, tmp_path):
    for nan, says in (("NaN", "step 2: loss nan"), ("5.0", "")):
        log = f'{{"step": 1, "loss": 6.0}}\n{{"step": 2, "loss": {nan}}}\n'
        (tmp_path / "log.jsonl").write_text(log, encoding="utf-8")
        code, out, errors = run("doctor", tmp_path)
        assert code == 0 and errors == [] and bool(out) == bool(says) and says in out


@posix
def test_ctrl_c_ends_a_visit_to_the_zoo_with_a_sentence():
    visit = start("zoo", "length")
    while not visit.stdout.readline().lstrip().startswith("0 "):
        assert visit.poll() is None
    visit.send_signal(signal.SIGINT)
    _, err = visit.communicate(timeout=PATIENCE)
    assert visit.returncode == 130, err
    assert re.fullmatch(r"minigpt zoo: stopped after \d+ steps; nothing was saved, .*\n", err)


@pytest.mark.parametrize("options", [
    ["--temperature", 0], ["--top-k", 0], ["--top-k", 10**9], ["--top-p", 1], ["--min-p", 0],
    ["--temperature", 0.0001], ["--top-p", "1e-60"], ["--seed", -1], ["--max-tokens", 1]], ids=str)
def test_the_edges_of_each_option_work(run, saved, options):
    code, out, errors = run("generate", "Rosa", "--checkpoint", saved, "--max-tokens", 9, *options)
    assert code == 0 and out.startswith("Rosa") and errors == []


@pytest.mark.parametrize("prompt", ["", " ", "Rosa and Tom baked a cake. " * 50, "🍓" * 200])
def test_a_prompt_of_any_length_is_continued(run, saved, prompt):
    code, out, errors = run("generate", prompt, "--checkpoint", saved, "--max-tokens", 50)
    assert code == 0 and out.startswith(prompt) and len(out) > len(prompt) + 1 and errors == []


def test_the_seed_decides_the_text(run, saved):
    a, again, b = (run("generate", "Rosa", "--checkpoint", saved, "--seed", seed)[1]
                   for seed in (1, 1, 2))
    assert a == again != b


def test_a_story_is_told_at_seven_tenths_and_an_answer_at_zero(run, saved):
    for command, t in (("generate", 0.7), ("ask", 0)):
        default, said, other = (run(command, "Rosa", "--checkpoint", saved, *options)[1] for options
                                in ([], ["--temperature", t], ["--temperature", 5]))
        assert default == said != other


def test_an_answer_is_one_line(run):
    assert run("ask", "Where does Abel live?") == (0, " Abel lives on Bridge Road.\n", [])


def test_standard_input_is_a_prompt(run, saved, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Rosa and\nTom\n"))
    code, out, errors = run("tokenize", "-", "--checkpoint", saved)
    assert code == 0 and errors == [] and out.endswith(" 12 bytes\n")


@pytest.mark.parametrize("data", ["folder", "file", "stdlib", "tinytown"])
def test_train_takes_any_text_and_every_command_takes_the_result(run, prepared, tmp_path, data):
    text = prepared.parent / "text"
    (tmp_path / "one.txt").write_text((text / "0.txt").read_text("utf-8") * 5, encoding="utf-8")
    source = {"folder": text, "file": tmp_path / "one.txt"}.get(data, data)
    out = tmp_path / "out"
    code, said, errors = run("train", "--recipe", "small", "--data", source, "--steps", 2,
                             "--out", out)
    assert code == 0 and errors == [] and [step for step, *_ in log(out)] == [1, 2]
    assert said == ""                                   # standard output is for results
    assert shlex.split(run.err.splitlines()[-1].partition("Try it: ")[2]) == [
        "minigpt", "generate", "--checkpoint", str(out), "Once upon a time"]
    for checkpoint in (out, out / "model.safetensors", checkpoints_in(out)[-1]):
        for command in (["generate", "The", "--max-tokens", 3], ["tokenize", "The"], ["info"],
                        ["ask", "What is it?", "--max-tokens", 3]):
            code, said, errors = run(*command, "--checkpoint", checkpoint)
            assert code == 0 and said and errors == []


def test_options_change_what_a_recipe_says(run, prepared, tmp_path):
    "And sizes that were not named follow from those that were."
    out = tmp_path / "out"
    code, _, errors = run("train", "--recipe", "small", "--data", prepared.parent / "text", "--out",
                          out, "--steps", 1, "--batch-size", 3, "--lr", 0.01, "--adamw-lr", 0.02,
                          "--vocab-size", 300, "--n-layer", 1, "--n-head", 4, "--d-model", 48,
                          "--context-length", 24)
    assert code == 0 and errors == []
    recipe = json.loads((out / "recipe.json").read_text("utf-8"))
    assert [recipe[name] for name in ("batch_size", "lr", "adamw_lr")] == [3, 0.01, 0.02]
    model = recipe["model"]
    assert [model[name] for name in ("n_layer", "n_head", "n_kv_head", "d_model", "d_ff",
                                     "context_length")] == [1, 4, 2, 48, 128, 24]
    assert model["vocab_size"] <= 300 and load_model(out)[0].cfg.d_model == 48


def test_a_printed_recipe_is_a_file_to_train_with(run, prepared, tmp_path):
    code, listed, errors = run("recipes")
    assert code == 0 and errors == [] and "tinytown: 1,820,736 parameters" in listed
    code, printed, errors = run("recipes", "small")
    assert code == 0 and errors == []
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(json.loads(printed) | {"data": str(prepared.parent / "text")}))
    code, _, errors = run("train", "--recipe", path, "--steps", 1, "--out", tmp_path / "out")
    assert code == 0 and errors == []


def test_minutes_choose_the_steps(run, prepared, tmp_path):
    code, *_ = run("train", "--recipe", "small", "--data", prepared.parent / "text",
                   "--minutes", 0.005, "--out", tmp_path / "out")
    steps = json.loads((tmp_path / "out" / "recipe.json").read_text("utf-8"))["steps"]
    assert code == 0 and [step for step, *_ in log(tmp_path / "out")] == list(range(1, steps + 1))


def test_a_finished_run_can_be_resumed_and_changes_nothing(run, prepared, tmp_path):
    out = shutil.copytree(prepared, tmp_path / "out")
    recipe = Recipe.from_dict(json.loads((out / "recipe.json").read_text("utf-8")))
    write_recipe(out, replace(recipe, steps=3))
    assert run("train", "--resume", out)[0] == 0
    before, rows = load_tensors(out / "model.safetensors"), log(out)
    assert run("train", "--resume", out)[0] == 0
    assert str(load_tensors(out / "model.safetensors")) == str(before) and log(out) == rows


def test_the_recipe_says_what_the_model_is(prepared):
    recipe = json.loads((prepared / "recipe.json").read_text("utf-8"))
    config = json.loads((prepared / "config.json").read_text("utf-8"))
    assert recipe["model"] == config and asdict(Recipe.from_dict(recipe)) == recipe


# --- Ctrl-C



@posix
def test_ctrl_c_saves_and_a_resumed_run_ends_with_the_same_losses(run, prepared, tmp_path):
    straight, stopped = (shutil.copytree(prepared, tmp_path / n) for n in ("straight", "a stop"))
    train = start("train", "--resume", stopped)
    deadline = time.monotonic() + PATIENCE
    while train.poll() is None and not (
            (stopped / "log.jsonl").exists() and (stopped / "log.jsonl").stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    train.send_signal(signal.SIGINT)
    _, err = train.communicate(timeout=PATIENCE)
    assert train.returncode == 130 and "Traceback" not in err, err
    assert shlex.split(err.splitlines()[-1].partition("go on with: ")[2]) == [
        "minigpt", "train", "--resume", str(stopped)]
    done = log(stopped)[-1][0]
    assert 0 < done < STEPS
    assert load_tensors(checkpoints_in(stopped)[-1])[1]["step"] == done
    with open(stopped / "log.jsonl", "a") as torn:       # as if it had been killed later on
        torn.write(json.dumps({"step": done + 1, "loss": 0.0}) + '\n{"step": ')
    for folder in (straight, stopped):
        assert run("train", "--resume", folder)[0] == 0
    assert [step for step, *_ in log(straight)] == list(range(1, STEPS + 1))
    assert log(stopped) == log(straight)
    (a, _), (b, _) = (load_model(folder) for folder in (straight, stopped))
    assert all((p == q).all() for p, q in zip(a.parameters(), b.parameters()))


@posix
def test_ctrl_c_ends_a_story_without_a_traceback(saved):
    story = start("generate", "Rosa", "--checkpoint", saved, "--max-tokens", 10**9,
                  "--temperature", 0)      # greedy, this model never comes to an end by itself
    assert story.stdout.read(40).startswith("Rosa")
    story.send_signal(signal.SIGINT)
    _, err = story.communicate(timeout=PATIENCE)
    assert story.returncode == 130 and "Traceback" not in err and len(err.splitlines()) <= 1


@posix
def test_a_reader_who_leaves_ends_a_story_without_a_traceback(saved):
    "As `minigpt generate ... | head -c 40` does."
    story = start("generate", "Rosa", "--checkpoint", saved, "--max-tokens", 10**9,
                  "--temperature", 0)      # greedy, this model never comes to an end by itself
    assert story.stdout.read(40).startswith("Rosa")
    story.stdout.close()
    err = story.stderr.read()
    story.stderr.close()
    story.wait(timeout=PATIENCE)
    assert "Traceback" not in err and "Exception" not in err and len(err.splitlines()) <= 1, err


# --- few bits

@pytest.mark.parametrize("more", [(), ("--bits", 8),
                                  ("--bits", 3, "--group", "row", "--zero-points"),
                                  ("--bits", 4, "--group", 16, "--embedding-bits", 8)])
def test_a_quantized_model_is_written_whole_and_every_command_opens_it(run, saved, tmp_path, more):
    out = tmp_path / "deep" / "small"
    code, said, errors = run("quantize", saved, "--out", out, *more)
    assert (code, errors) == (0, []) and "bits a weight" in said
    assert {p.name for p in out.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}
    assert [p.name for p in out.parent.iterdir()] == ["small"]
    assert f"{(out / 'model.safetensors').stat().st_size:,} bytes" in said
    model, _ = load_model(out)
    bits = more[1] if more else 4
    assert model.quantization.bits == bits
    code, told, errors = run("info", "--checkpoint", out)
    assert (code, errors) == (0, []) and f"{bits} bits, group" in told
    code, text, errors = run("generate", "Rosa", "--checkpoint", out, "--max-tokens", 5)
    assert (code, errors) == (0, []) and text.startswith("Rosa")
    code, _, errors = run("quantize", out, "--out", tmp_path / "twice")
    assert code == 2 and "dequantize_model" in errors[0] and not (tmp_path / "twice").exists()


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_calibration_says_what_it_found(run, saved, tmp_path, method):
    text = tmp_path / "text.txt"
    text.write_text("Rosa and Tom baked a cake, and it sank. " * 200, encoding="utf-8")
    code, said, errors = run("quantize", saved, "--out", tmp_path / "small", "--bits", 3,
                             "--method", method, "--text", text)
    found = re.search(r"on ([\d,]+) tokens: .* is ([\d.]+)%, .* rounding ([\d.]+)%", said)
    assert (code, errors) == (0, []) and found
    assert int(found[1].replace(",", "")) > 500 and float(found[2]) < float(found[3])
    layers = load_model(tmp_path / "small")[0].quantization.layers
    assert len(layers) == 7 and all(layer.tokens > 500 for layer in layers)


def test_another_librarys_model_is_quantized_with_its_own_words(run, tmp_path):
    from minigpt import load
    from minigpt.weights import HuggingFaceTokenizer, open_model, to_huggingface
    model, tokenizer = load("chat")
    to_huggingface(tmp_path / "theirs", model, tokenizer)
    raw = json.loads((tmp_path / "theirs" / "tokenizer.json").read_text("utf-8"))
    raw["version"] = "1.0"                              # theirs, but no longer as we write it
    raw["added_tokens"][0]["special"] = True
    (tmp_path / "theirs" / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    _, words = open_model(tmp_path / "theirs")
    code, _, errors = run("quantize", tmp_path / "theirs", "--out", tmp_path / "small")
    assert (code, errors) == (0, [])
    small, same = load_model(tmp_path / "small")
    text = "Where does Abel live?"
    assert same.encode(text) == words.encode(text) and same.stop_ids == words.stop_ids
    assert type(same) is type(words) and isinstance(words, HuggingFaceTokenizer | type(tokenizer))
    assert small.cfg == model.cfg


def test_a_refused_quantization_leaves_nothing_behind(run, places, saved, tmp_path):
    before = sorted(tmp_path.iterdir())
    for wrong in (("--bits", 1), ("--method", "awq", "--text", places / "short.txt")):
        assert run("quantize", saved, "--out", tmp_path / "small", *wrong)[0] == 2
        assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "small").mkdir()                        # an empty folder may be filled
    assert run("quantize", saved, "--out", tmp_path / "small")[0] == 0
    code, _, errors = run("quantize", saved, "--out", tmp_path / "small")
    assert code == 2 and "is not empty" in errors[0]
