"Laws of the measures: intervals, pairs, attempts, surprise, exams, and the command that sits them."
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import minigpt
from minigpt.checkpoint import load_model
from minigpt.cli import main
from minigpt.config import ModelConfig
from minigpt.evaluation import (
    EXAMS,
    ShortAnswer,
    Z,
    answer,
    bits_per_byte,
    bootstrap,
    choice_nats,
    compare,
    evaluate,
    exam,
    new_sums,
    pass_at_k,
    read_exam,
    sit,
    token_nats,
    wilson,
)
from minigpt.loss import document_loss
from minigpt.model import GPT
from minigpt.sampling import temperature
from minigpt.tinytown import Tinytown

SCORES = st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
MARKS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def shipped():
    return load_model()


@pytest.fixture(scope="module")
def unlearned(shipped):
    "A small model with weights by lot, and the words of the shipped one."
    torch.manual_seed(0)
    cfg = ModelConfig(vocab_size=shipped[1].vocab_size, n_layer=1, n_head=2, n_kv_head=2,
                      d_model=16, d_ff=32, context_length=64)
    return GPT(cfg).eval(), shipped[1]


# --- shares

@given(SCORES)
def test_the_ends_of_wilson_s_interval_solve_its_equation(score):
    right, n = score
    share = wilson(right, n)
    assert 0 <= share.low <= share.mean <= share.high <= 1 and share.mean == right / n
    for t in (share.low, share.high):
        assert (share.mean - t) ** 2 == pytest.approx(Z * Z * t * (1 - t) / n, abs=1e-12)


@given(SCORES)
def test_one_more_right_answer_moves_both_ends_up(score):
    right, n = score
    if right < n:
        a, b = wilson(right, n), wilson(right + 1, n)
        assert a.low < b.low and a.high < b.high
    mirrored = wilson(n - right, n)
    assert mirrored.low == pytest.approx(1 - wilson(right, n).high, abs=1e-12)


def test_four_times_the_questions_halve_the_interval():
    few, many = wilson(300, 600), wilson(1200, 2400)
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("n", [10, 30, 100])
def test_wilson_s_interval_keeps_its_promise(n):
    "Exactly, by sums: for shares from 10 to 90% it holds in nine exams of ten, in 95% on average."
    ends, covered = [wilson(right, n) for right in range(n + 1)], []
    for t in (i / 200 for i in range(20, 181)):
        covered.append(sum(math.comb(n, k) * t ** k * (1 - t) ** (n - k)
                           for k, end in enumerate(ends) if end.low <= t <= end.high))
    assert min(covered) >= 0.9 and sum(covered) / len(covered) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("right, n", [(-1, 5), (6, 5), (0, 0), (1, -1)])
def test_a_score_that_cannot_be_is_refused(right, n):
    with pytest.raises(ValueError, match=f"{right} right of {n} cannot be"):
        wilson(right, n)


# --- means

@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.integers(0, 9))
def test_a_bootstrap_is_the_same_by_its_seed_and_lies_among_the_values(values, seed):
    found = bootstrap(values, 200, seed)
    assert found == bootstrap(values, 200, seed)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found.mean == pytest.approx(sum(values) / len(values), abs=1e-9)


def test_a_bootstrap_agrees_with_the_formula():
    values = torch.randn(2000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = bootstrap(values.tolist())
    half = Z * values.std().item() / math.sqrt(len(values))
    assert found.low < found.mean < found.high
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)


def test_a_bootstrap_in_pieces_makes_as_many_exams(monkeypatch):
    "Many values are drawn in several rounds, for the sake of memory."
    values, sizes, draw = [0.0, 1.0] * 500_000, [], torch.randint

    def spy(high, size, **more):
        sizes.append(size[0])
        return draw(high, size, **more)
    monkeypatch.setattr(torch, "randint", spy)
    found = bootstrap(values, 10)
    assert sum(sizes) == 10 and len(sizes) > 1 and found.mean == 0.5
    assert 0.495 < found.low <= found.high < 0.505


def test_a_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])
    with pytest.raises(ValueError, match="n=0"):
        bootstrap([1.0], 0)


# --- pairs

@given(MARKS)
def test_the_coin_test_counts_every_outcome(pairs):
    first, second = zip(*pairs)
    found = compare(first, second)
    a, b = found.only_first, found.only_second
    outcomes = [sum(o) for o in itertools.product((0, 1), repeat=a + b)]
    as_uneven = sum(abs(2 * heads - a - b) >= abs(a - b) for heads in outcomes)
    assert found.p == pytest.approx(as_uneven / len(outcomes))
    assert found.difference.mean == pytest.approx((sum(first) - sum(second)) / len(pairs))


@given(MARKS)
def test_swapping_two_models_swaps_the_signs(pairs):
    first, second = zip(*pairs)
    there, back = compare(first, second), compare(second, first)
    assert (there.only_first, there.only_second, there.p) == (
        back.only_second, back.only_first, back.p)
    assert there.difference.mean == pytest.approx(-back.difference.mean)
    assert there.difference.low == pytest.approx(-back.difference.high)
    assert there.difference.high == pytest.approx(-back.difference.low)


@given(st.lists(st.booleans(), min_size=1))
def test_equals_do_not_differ(marks):
    assert compare(marks, marks) == ((0, 0, 0), 0, 0, 1)


def test_marks_of_other_questions_are_refused():
    with pytest.raises(ValueError, match="3 marks beside 2"):
        compare([True] * 3, [True] * 2)


# --- attempts

@given(st.integers(1, 8).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_counts_the_subsets(attempts):
    n, right, k = attempts
    subsets = list(itertools.combinations([True] * right + [False] * (n - right), k))
    assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("n, right, k", [(5, 6, 1), (5, -1, 1), (5, 1, 0), (5, 1, 6), (0, 0, 1)])
def test_attempts_that_cannot_be_are_refused(n, right, k):
    with pytest.raises(ValueError, match=f"pass@{k} of {n} attempts with {right} right cannot be"):
        pass_at_k(n, right, k)


# --- surprise

def nats_by_hand(model, ids):
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]]))[0].double()
    return F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")


@pytest.mark.parametrize("prompt, choice", [
    ("Rosa has", " a goat"), ("Rosa has", ""), ("", "Rosa has"), ("Rosa ha", "s a goat"),
    ("Rosa has a go", "at"), ("7", "3 + 9"), ("A straw", "berry 🍓")])
def test_a_choice_costs_the_whole_less_what_it_shares_with_the_prompt(unlearned, prompt, choice):
    "Also where a token joins the end of the prompt with the start of the choice."
    model, tokenizer = unlearned
    start, whole = tokenizer.prompt_ids(prompt), tokenizer.prompt_ids(prompt + choice)
    shared = len(os.path.commonprefix([start, whole]))
    nats = nats_by_hand(model, whole) if len(whole) > 1 else torch.zeros(1)
    by_hand = nats.sum() - nats[:shared - 1].sum()
    found, = choice_nats(model, tokenizer, prompt, [choice])
    assert found == pytest.approx(by_hand.item(), abs=1e-3) and (found == 0) == (choice == "")


def test_some_choice_above_is_joined_to_its_prompt(unlearned):
    tokenizer = unlearned[1]
    start, whole = (tokenizer.prompt_ids(text) for text in ("Rosa ha", "Rosa has a goat"))
    assert whole[:len(start)] != start


def test_token_nats_are_pytorch_s_cross_entropy(unlearned):
    model, tokenizer = unlearned
    ids = tokenizer.prompt_ids("Rosa and Tom baked a cake.")
    torch.testing.assert_close(token_nats(model, ids).double(), nats_by_hand(model, ids),
                               atol=1e-5, rtol=1e-5)


def test_bits_per_byte_count_every_token_and_every_byte(unlearned):
    model, tokenizer = unlearned
    texts = ["Rosa has a goat.", "🍓", ""]
    nats = sum(nats_by_hand(model, [*tokenizer.prompt_ids(text), tokenizer.end_of_text]).sum()
               for text in texts).item()
    found = bits_per_byte(model, tokenizer, texts)
    assert found == pytest.approx(nats / math.log(2) / (16 + 4 + 0 + 3), rel=1e-5)
    ids = [tokenizer.encode(text) for text in texts]
    again = document_loss(model, ids, tokenizer.end_of_text).sum().item()
    assert found == pytest.approx(again / math.log(2) / 23, rel=1e-5)


@pytest.mark.parametrize("none", [[], "one text"])
def test_a_text_in_place_of_a_list_is_refused(unlearned, none):
    with pytest.raises(ValueError, match="must be a list"):
        choice_nats(*unlearned, "Rosa", none)
    with pytest.raises(ValueError, match="must be a list"):
        bits_per_byte(*unlearned, none)


# --- exams

@pytest.mark.parametrize("answers, reply, good", [
    (("Mill Lane",), " mill  LANE.\nQ: and", True), (("Mill Lane",), "On Mill Lane", False),
    (("Paris", "Paname"), "'paname'", True), (("!",), "!", True), (("!",), "", False),
    (("12",), " 12. Only 12 stayed", True), (("12",), "It is 12", True),
    (("12",), "1 or 12", False), (("12",), "", False), (("12", "twelve"), "Twelve!", True)])
def test_a_short_answer_is_marked(answers, reply, good):
    assert ShortAnswer("Q:", answers).is_correct(reply) is good


@pytest.mark.parametrize("name", EXAMS)
def test_every_exam_is_fixed_by_its_seed_and_its_answers_are_right(name):
    asked, again, other = (exam(name, 30, seed) for seed in (1, 1, 2))
    assert len(asked) == 30 and [q.prompt for q in asked] == [q.prompt for q in again]
    assert [q.prompt for q in asked] != [q.prompt for q in other]
    for q in asked:
        assert q.is_correct(q.answers[0] if name == "sums" else q.answer)
        assert not q.is_correct("") and not q.is_correct("I do not know.")


def test_sums_are_right_sums():
    for item in new_sums(Tinytown(0), 50, 3):
        a, sign, b = item.prompt.split()[-4:-1]
        assert int(item.answers[0]) == (int(a) + int(b) if sign == "+" else int(a) - int(b))


BROKEN = [("", "has no questions"), ("\n \n", "has no questions"), ("{", "line 1"),
          ('{"prompt": "a", "answer": "b"}\n\n{"prompt": "a"}', "line 3"),
          ('{"prompt": 1, "answer": "b"}', "line 1"), ('{"prompt": "a", "answer": []}', "line 1"),
          ('{"prompt": "a", "answer": [1]}', "line 1"),
          ('{"prompt": "a", "answer": " "}', "line 1"),
          ('{"prompt": "a", "answer": {"b": 1}}', "line 1"), ("[]", "line 1"), ("7", "line 1"),
          ("[" * 100_000, "line 1")]


@pytest.mark.parametrize("text, said", BROKEN, ids=[str(i) for i in range(len(BROKEN))])
def test_a_broken_exam_is_refused_by_file_and_line(tmp_path, text, said):
    path = tmp_path / "mine.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as error:
        read_exam(path)
    assert str(path) in str(error.value) and said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_cannot_be_read_is_refused_by_name(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes("é".encode("latin-1"))
    for name, why in (("none.jsonl", "No such file"), ("latin.jsonl", "not UTF-8")):
        with pytest.raises(ValueError, match=f"{name}.*{why}"):
            read_exam(tmp_path / name)


def test_your_own_exam_is_read_as_it_is_written(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"prompt": "Q: a\u2028b\nA:", "answer": "x"}, {"prompt": "", "answer": ["y", "é"]}]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode() + b"\n\n")         # as some editors begin it
    assert read_exam(path) == [ShortAnswer("Q: a\u2028b\nA:", ("x",)), ShortAnswer("", ("y", "é"))]
    assert set(exam(str(path), 5)) == set(read_exam(path)) and len(exam(str(path), 1)) == 1


@pytest.mark.parametrize("name, n, said", [
    ("geography", 5, "'geography' is unknown; choose from residents"), ("told", 0, "n=0"),
    ("", 5, "'' is unknown")])
def test_an_exam_that_is_none_is_refused(name, n, said):
    with pytest.raises(ValueError, match=said):
        exam(name, n)


# --- sitting

def test_an_answer_depends_on_its_prompt_and_its_place_alone(shipped):
    "Batches of 32 are for speed; every prompt has luck of its own, and the seed moves it."
    prompts = ["Once upon a time"] * 35
    said = answer(*shipped, prompts, 8, [temperature(1.0)], seed=3)
    assert len(set(said)) > 20
    assert answer(*shipped, prompts[:2], 8, [temperature(1.0)], seed=35) == said[32:34]
    assert len(set(answer(*shipped, prompts[:3], 8))) == 1                 # the likeliest is one


def test_the_shipped_model_sits_exams(shipped):
    rows = evaluate(*shipped, ["residents", "sums"], n=5)
    assert [row["exam"] for row in rows] == ["residents", "sums"]
    for row in rows:
        marks = sit(*shipped, exam(row["exam"], 5))
        assert row == {"exam": row["exam"], "n": 5, "right": sum(marks), "share": sum(marks) / 5,
                       "low": wilson(sum(marks), 5).low, "high": wilson(sum(marks), 5).high}
    assert rows[0]["right"] >= 4


def test_a_bad_name_is_refused_before_the_first_exam():
    with pytest.raises(ValueError, match="geography"):
        evaluate(None, None, ["told", "geography"], n=1)
    with pytest.raises(ValueError, match="give a list"):
        evaluate(None, None, "told")


def test_a_note_that_is_longer_than_the_context_is_read_from_its_end(saved):
    "So that every model can sit every exam."
    model, tokenizer = load_model(saved)
    items = exam("absent", 2)
    assert any(len(tokenizer.prompt_ids(q.prompt)) > model.cfg.context_length for q in items)
    assert len(sit(model, tokenizer, items)) == 2


# --- the command

@pytest.fixture
def run(capsys):
    "Runs a command in this process and gives its exit code, its output and its error lines."
    def run(*argv):
        capsys.readouterr()
        code = main(["eval", *map(str, argv)])
        out, err = capsys.readouterr()
        return code, out, err.splitlines()
    return run


def test_the_command_says_what_the_function_finds(run, shipped, tmp_path):
    out = tmp_path / "scores.json"
    code, said, errors = run("--tasks", "residents,sums", "--n", 5, "--seed", 2, "--out", out)
    rows = evaluate(*shipped, ["residents", "sums"], n=5, seed=2)
    assert (code, errors) == (0, [])
    assert json.loads(out.read_text("utf-8")) == {"checkpoint": None, "seed": 2, "exams": rows}
    assert [p.name for p in tmp_path.iterdir()] == ["scores.json"]
    head, *table = [line.split() for line in said.splitlines()]
    assert head == ["exam", "n", "right", "share", "95%", "interval"]
    assert table == [[row["exam"], "5", str(row["right"]), f"{row['share']:.1%}",
                      f"{row['low']:.1%}", "to", f"{row['high']:.1%}"] for row in rows]


def test_any_model_sits_every_exam(run, saved, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "Q: Why?\\nA:", "answer": ["because", "so"]}\n')
    code, said, errors = run("--checkpoint", saved, "--n", 2)
    assert (code, errors) == (0, [])
    assert [line.split()[0] for line in said.splitlines()[1:]] == list(EXAMS)
    code, said, errors = run("--checkpoint", saved, "--tasks", path)
    assert (code, errors) == (0, []) and said.splitlines()[1].split()[:2] == [str(path), "1"]


@pytest.mark.parametrize("options, named", [
    (["--tasks", "geography"], "geography"), (["--tasks", "told,"], "''"), (["--n", "0"], "n=0"),
    (["--tasks", "none.jsonl"], "none.jsonl"),
    (["--tasks", "{}/bad.jsonl"], "{}/bad.jsonl, line 2"),
    (["--out", "{}/no/a.json"], "{}/no/a.json"), (["--out", "{}"], "--out {}"),
    (["--checkpoint", "{}/nowhere"], "{}/nowhere")], ids=str)
def test_bad_orders_get_one_line(run, tmp_path, options, named):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "answer": "b"}\nnonsense\n')
    code, out, errors = run(*(o.format(tmp_path) for o in options))
    assert code == 2 and out == "" and len(errors) == 1 and named.format(tmp_path) in errors[0]


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process alone")
def test_ctrl_c_ends_an_exam_with_one_line(tmp_path):
    command = [sys.executable, "-c", "import sys; from minigpt.cli import main; sys.exit(main())",
               "eval", "--n", "2000", "--tasks", "sums", "--out", tmp_path / "scores.json"]
    exams = subprocess.Popen(command, cwd=Path(minigpt.__file__).parents[1], text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    assert exams.stdout.readline().split()[0] == "exam"            # it has begun
    time.sleep(0.2)
    exams.send_signal(signal.SIGINT)
    _, err = exams.communicate(timeout=60)
    assert exams.returncode == 130 and len(err.splitlines()) == 1 and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
