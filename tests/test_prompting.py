"Laws of prompts: templates are filled once, examples never give the answer away, pairs are fair."
import json
import random
import re
import string
from types import SimpleNamespace

import pytest
import torch
from conftest import refused
from hypothesis import given
from hypothesis import strategies as st

from minigpt import evaluation, prompting
from minigpt.checkpoint import load_model
from minigpt.cli import main
from minigpt.config import ModelConfig
from minigpt.evaluation import (
    EXAMS,
    Comparison,
    Interval,
    ShortAnswer,
    answer,
    compare,
    exam,
    harness_model,
    sit,
    wilson,
)
from minigpt.inference import Completion
from minigpt.model import GPT
from minigpt.prompting import (
    SHOT,
    Shot,
    Template,
    choose_shots,
    compare_prompts,
    few_shot,
    is_shown,
    likeness,
    question_of,
    read_template,
)
from minigpt.sampling import temperature
from minigpt.tinytown import Question

PLAIN = Template("{note}\nQ: {question}\nA:")
HOLES = ("question", "note", "examples")
TEXTS = st.text("ab {}\n", min_size=1).filter(lambda text: not text.endswith("\n"))
PIECES = st.lists(st.sampled_from(["{question}", "{note}", "{examples}", "{{", "}}", "\n", "b"]))
BROKEN = st.lists(st.sampled_from([*"{}ab\n", "question", "{question}", "{note}\n", "{{"]))
POOL = [Shot("Where does Rosa live?", "Mill Lane"), Shot("Who is Tom?", "a baker"),
        Shot("Where does Tom live?", "Gravel Lane"), Shot("where does  Rosa live ?", "Hill Road"),
        Shot("Where does Rosa live?", "Sea Street", "Note: Rosa moved.")]


# --- templates

@given(PIECES, TEXTS, TEXTS, TEXTS)
def test_filling_is_python_s_format(pieces, question, note, examples):
    "Where nothing is empty; what was filled in is not read again, whatever braces it has."
    values = {"question": question, "note": note, "examples": examples}
    text = "".join([*pieces, "{question}"])
    assert Template(text).fill(**values) == text.format(**values)


@given(BROKEN)
def test_what_python_s_format_could_fill_is_taken_and_all_else_refused(pieces):
    text = "".join(pieces)
    try:
        holes = [name for _, name, *_ in string.Formatter().parse(text) if name is not None]
    except ValueError:
        holes = [""]
    if "question" in holes and set(holes) <= set(HOLES):
        assert Template(text).holes == set(holes)
        return
    with pytest.raises(ValueError) as error:
        Template(text, "p.txt")
    assert str(error.value).startswith("p.txt") and "\n" not in str(error.value)


@given(TEXTS)
def test_a_line_without_its_note_is_no_line(question):
    "A line of examples ends as they do, since they bring their ends with them."
    assert Template("a\n{note}\n{question}").fill(question) == f"a\n{question}"
    assert Template("{examples}\n{note}\n{question}").fill(question) == question
    assert Template("{examples}\n{question}").fill(question, examples="x\n\n") == f"x\n\n{question}"
    assert Template("{examples}\n{question}").fill(question, examples="x") == f"x\n{question}"
    assert Template("a {note}\n{question}").fill(question) == f"a \n{question}"
    assert Template("{question}\n{note}").fill(question) == f"{question}\n"


def test_what_has_no_hole_is_left_out():
    assert Template("{question}").fill("a", "note", "examples") == "a"


@pytest.mark.parametrize("name", EXAMS)
def test_a_template_can_say_what_tinytown_says(name):
    whole = Template("{examples}\n{note}\nQ: {question}\nA:")
    for item in exam(name, 20):
        template = whole if isinstance(item, Question) else Template("{question}")
        assert template.fill(*question_of(item)) == item.prompt


@pytest.mark.parametrize("raw, text", [
    (b"\xef\xbb\xbf{question}\n", "{question}"), (b"{question}\n\n", "{question}\n"),
    (b" \n{question} ", " \n{question} "), (b"{question}\r\nA:\r\n", "{question}\nA:"),
    ("é {question}\u2028\n".encode(), "é {question}\u2028")])
def test_a_file_is_read_as_it_is_but_for_its_last_newline(tmp_path, raw, text):
    path = tmp_path / "p.txt"
    path.write_bytes(raw)
    assert read_template(path) == Template(text) and read_template(str(path)).name == str(path)


BRACE = "for a brace that is no hole write {{ or }}"
KNOWN = "and the holes are {question}, {note}, {examples}; " + BRACE


@pytest.mark.parametrize("raw, said", [
    (b"", " is empty; write a prompt with {question} in it"),
    (b" \n\n", " is empty; write a prompt with {question} in it"),
    (b"Q: question?\nA:", " has no {question}; write it where the question belongs"),
    (b"{{question}}", " has no {question}; write it where the question belongs"),
    (b"{question} {topic} {Note} {topic}", " has {topic}, {Note}, " + KNOWN),
    (b"{question!r} {}", " has {question!r}, {}, " + KNOWN),
    (b'{question} {"a": 1}', ' has {"a": 1}, ' + KNOWN),
    (b"{question} {answer}", " has {answer}, " + KNOWN),
    (b"a\n{question} {", ", line 2: { stands alone; " + BRACE),
    (b"a\n\n{question}}", ", line 3: } stands alone; " + BRACE),
    (b'{question}\n{"a":\n 1}', ", line 2: { stands alone; " + BRACE),
    (b"{question}\0", " cannot be read (it is binary); give a text file"),
    ("{question}".encode("utf-16"), " cannot be read (it is not UTF-8); give a text file"),
    (b"{question} \xe9", " cannot be read (it is not UTF-8); give a text file")])
def test_a_file_that_is_no_template_is_refused_by_name(tmp_path, raw, said):
    path = tmp_path / "p.txt"
    path.write_bytes(raw)
    with pytest.raises(ValueError) as error:
        read_template(path)
    assert str(error.value) == f"{path}{said}"


def test_what_is_no_file_is_refused_by_name(tmp_path):
    with refused(f"{tmp_path / 'none.txt'} cannot be read (No such file"):
        read_template(tmp_path / "none.txt")
    with refused(f"{tmp_path} cannot be read ("):
        read_template(tmp_path)
    with refused("the template has no {question}"):
        Template("Why?")


# --- worked examples

def test_words_in_common_by_hand():
    assert likeness("Where does Rosa live?", "where does TOM live") == 3 / 5
    assert likeness("", "") == likeness("a", "") == 0 and likeness("a b", "b, a!") == 1


@given(TEXTS, TEXTS)
def test_likeness_has_no_order(a, b):
    assert likeness(a, b) == likeness(b, a) and 0 <= likeness(a, b) <= 1


@given(st.lists(st.sampled_from(POOL), max_size=8), st.sampled_from(POOL), st.integers(0, 8),
       st.sampled_from(["first", "random", "similar"]), st.integers(0, 9))
def test_the_question_itself_is_never_an_example(pool, asked, n, how, seed):
    "Whatever its case, blanks and outer signs; the same words about another note are another one."
    def words(shot): return re.findall(r"\w+", shot.question.casefold()), shot.note
    others = [shot for shot in pool if words(shot) != words(asked)]
    if n > len(others):
        with refused(f"n={n} worked examples cannot be chosen from {len(others)} beside"):
            choose_shots(pool, asked.question, n, how, random.Random(seed), asked.note)
        return
    found = choose_shots(pool, asked.question, n, how, random.Random(seed), asked.note)
    assert len(found) == n and all(found.count(shot) <= others.count(shot) for shot in found)
    if how == "first":
        assert found == others[:n]
    if how == "random":
        assert found == choose_shots(pool, asked.question, n, how, random.Random(seed), asked.note)
    if how == "similar":
        marks = [likeness(shot.question, asked.question) for shot in found]
        best = sorted((likeness(shot.question, asked.question) for shot in others), reverse=True)
        assert marks == best[:n]


def test_of_equally_like_ones_the_first_is_taken():
    pool = [Shot("b", "1"), Shot("a c", "2"), Shot("a d", "3"), Shot("a e", "4"), Shot("a", "5")]
    assert [shot.answer for shot in choose_shots(pool, "a f", 4, "similar")] == ["5", "2", "3", "4"]


def test_chance_reaches_every_example_and_every_order():
    rng = random.Random(0)
    found = {tuple(choose_shots(POOL[:3], "?", 2, "random", rng)) for _ in range(200)}
    assert len(found) == 6


def test_a_choice_that_cannot_be_is_refused():
    with refused("how='best' is unknown; choose from first, random, similar"):
        choose_shots(POOL, "?", 1, "best")
    with refused('how="random" needs a source of chance; give rng=random.Random(0)'):
        choose_shots(POOL, "?", 1, "random")
    with refused("n=-1 worked examples cannot be chosen from 5 beside the question itself; "
                 "ask for fewer, or give more"):
        choose_shots(POOL, "?", -1)


def test_examples_are_written_out():
    shots = [Shot("{note}?", "x"), Shot("b", "{{y}}", "N")]
    assert few_shot(shots) == "Q: {note}?\nA: x\n\nN\nQ: b\nA: {{y}}\n\n"
    assert few_shot(shots, "{question}={answer};", "|", reverse=True) == "b={{y}};|{note}?=x;|"
    assert few_shot([]) == ""


@pytest.mark.parametrize("template, said", [
    ("{question}", "the shot's template has no {answer}; write it where the answer belongs"),
    ("{answer}", "the shot's template has no {question}; write it where the question belongs"),
    ("", "the shot's template is empty"),
    ("{question}{answer}{examples}", "the shot's template has {examples}, and the holes are "
                                     "{question}, {answer}, {note}; ")])
def test_a_shot_s_template_that_cannot_be_is_refused(template, said):
    with refused(said):
        few_shot(POOL, template)


def test_an_example_without_an_answer_is_refused():
    with refused("the worked example 'Why?' has no answer; write one"):
        few_shot([POOL[0], Shot("Why?", " ")])


@pytest.mark.parametrize("text, shot", [
    ("Be brief.\n{examples}\n{note}\nQ: {question}\nA:", SHOT),
    ("{examples}{question} =", "{question} = {answer}"),
    ("{examples}\n{{{question}}}\n", "{{{question}}}\n{answer}"),
    ("{question} {examples}", SHOT), ("{question}", "{question} {answer}")])
def test_examples_are_in_the_form_of_the_question(text, shot):
    assert Template(text).shot == shot


# --- the harness writes the same

SHOTS = """
task: town_shots
dataset_path: json
dataset_kwargs: {{data_files: {{train: "{path}/train.json", test: "{path}/test.json"}},
                 cache_dir: "{path}/cache"}}
training_split: train
test_split: test
fewshot_split: train
fewshot_config: {{sampler: {sampler}}}
num_fewshot: 3
output_type: generate_until
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 1}}
metric_list:
  - {{metric: exact_match}}
"""


@pytest.mark.parametrize("sampler, how", [("first_n", "first"), ("default", "random")])
def test_the_harness_writes_the_same_examples(tiny_model, tokenizer, tmp_path, monkeypatch, sampler,
                                              how):
    lm_eval = pytest.importorskip(
        "lm_eval", reason="the harness is not installed: pip install minigpt[harness]")
    from lm_eval.tasks import TaskManager
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    items = exam("residents", 20)
    pool, asked = [Shot(q.text, q.answer) for q in items[:12]], items[12:]
    for name, rows in (("train", items[:12]), ("test", asked)):
        (tmp_path / f"{name}.json").write_text("".join(
            json.dumps({"question": q.text, "answer": q.answer}) + "\n" for q in rows))
    (tmp_path / "shots.yaml").write_text(SHOTS.format(path=tmp_path.as_posix(), sampler=sampler))
    found = lm_eval.simple_evaluate(
        harness_model(tiny_model, tokenizer), tasks=["town_shots"], bootstrap_iters=0,
        log_samples=True, fewshot_random_seed=7,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False))
    samples = sorted(found["samples"]["town_shots"], key=lambda sample: sample["doc_id"])
    rng, template = random.Random(7), Template("{examples}\nQ: {question}\nA:")
    shots = [choose_shots(pool, q.text, 3, how, rng) for q in asked]
    ours = [template.fill(q.text, examples=few_shot(some)) for q, some in zip(asked, shots)]
    assert [sample["arguments"][0][0] for sample in samples] == ours
    assert ours == prompting.prompts_of(template, asked, shots)


# --- comparisons

class Letters:
    "A tokenizer whose tokens are letters, behind a marker."

    def prompt_ids(self, text):
        return [0, *map(ord, text)]


@pytest.fixture
def scripted(monkeypatch):
    "A model that says what a function of the prompt gives; its context holds forty tokens."
    def scripted(say, finish="stop"):
        def complete_batch(model, tokenizer, prompts, max_tokens, rules, seeds, stop, overflow):
            assert overflow == "slide" and 1 <= len(prompts) <= 32 == max(32, len(seeds))
            return [Completion(say(p), tuple(map(ord, say(p))), (), finish) for p in prompts]
        monkeypatch.setattr(evaluation, "complete_batch", complete_batch)
        return SimpleNamespace(cfg=SimpleNamespace(context_length=40)), Letters()
    return scripted


SUMS = [ShortAnswer(f"{a} + {b}", (str(a + b),)) for a in range(7) for b in range(7)]


def test_a_trial_is_what_was_said_and_marked(scripted):
    "The second template gets sums of even numbers right, the first those below six, of 49."
    def say(prompt):
        a, _, b = prompt.split()[1:]
        good = int(a) + int(b) < 6 if prompt[0] == "L" else not (int(a) % 2 or int(b) % 2)
        return str(int(a) + int(b)) if good else "99"
    found = compare_prompts(*scripted(say), {"low": Template("L {question}"),
                                             "even": Template("Even {question}"),
                                             "same": Template("L {question}")}, SUMS)
    assert list(found) == ["low", "even", "same"]
    low, even, same = found.values()
    assert (sum(low.marks), sum(even.marks)) == (21, 16) and low.gain is None
    assert low.marks == tuple(sum(map(int, s.prompt.split(" + "))) < 6 for s in SUMS)
    assert low.replies == tuple(s.answers[0] if m else "99" for s, m in zip(SUMS, low.marks))
    assert set(low.tokens) == {8} and set(even.tokens) == {11}
    assert low.share == wilson(21, 49)
    assert even.gain == compare(even.marks, low.marks)
    assert even.gain.difference.mean == pytest.approx(-5 / 49)
    assert (even.gain.only_first, even.gain.only_second) == (10, 15)
    assert same == low._replace(gain=compare(low.marks, low.marks)) and same.gain.p == 1


@pytest.mark.parametrize("reply, cut", [("12345", 0), ("123456", 49)])
def test_what_does_not_fit_with_its_reply_is_counted(scripted, reply, cut):
    template = Template(" " * 29 + "{question}")                 # 1 + 29 + 5 letters
    trial, = compare_prompts(*scripted(lambda prompt: reply), {"a": template}, SUMS).values()
    assert set(trial.tokens) == {35} and trial.cut == cut and trial.unfinished == 0
    trial, = compare_prompts(*scripted(lambda prompt: reply, "length"), {"a": template},
                             SUMS).values()
    assert trial.unfinished == 49


def test_notes_that_were_left_out_are_counted(scripted):
    items = [*exam("told", 3), *exam("residents", 2)]
    found = compare_prompts(*scripted(lambda prompt: ""), {"a": PLAIN, "b": Template("{question}")},
                            items)
    assert [trial.without_note for trial in found.values()] == [0, 3]


def test_every_template_writes_the_examples_in_its_own_form(scripted, monkeypatch):
    seen = []
    model, letters = scripted(lambda prompt: seen.append(prompt) or "")
    compare_prompts(model, letters, {"a": Template("{examples}{question} is"),
                                     "b": Template("Q: {question}")}, SUMS[8:9],
                    [[Shot("2 + 2", "4"), Shot("2 + 3", "5")]])
    assert list(dict.fromkeys(seen)) == ["2 + 2 is 4\n\n2 + 3 is 5\n\n1 + 1 is", "Q: 1 + 1"]


@pytest.mark.parametrize("more, said", [
    ({"templates": {}}, "0 templates and 49 questions: give at least one of each"),
    ({"items": []}, "1 templates and 0 questions"),
    ({"shots": [[]]}, "49 questions and worked examples for 1; give a list for each question"),
    ({"max_tokens": 0}, "max_tokens=0 must be at least 1")])
def test_a_comparison_that_cannot_be_is_refused(scripted, more, said):
    orders = {"templates": {"a": PLAIN}, "items": SUMS} | more
    with refused(said):
        compare_prompts(*scripted(lambda prompt: ""), **orders)


@pytest.mark.parametrize("low, high, p, n_pairs, shown", [
    (0.01, 0.1, 0.04, 1, True), (-0.1, -0.01, 0.04, 1, True), (0.0, 0.1, 0.04, 1, False),
    (-0.1, 0.0, 0.04, 1, False), (0.01, 0.1, 0.05, 1, False), (0.01, 0.1, 0.04, 2, False),
    (0.01, 0.1, 0.02, 2, True), (-0.1, 0.1, 0.001, 1, False)])
def test_a_difference_is_shown_by_both_measures_or_not_at_all(low, high, p, n_pairs, shown):
    gain = Comparison(Interval((low + high) / 2, low, high), 1, 1, p)
    assert is_shown(gain, n_pairs) is shown


def test_four_differences_are_not_shown_whatever_the_interval_says():
    gain = compare([True] * 100, [True] * 96 + [False] * 4)
    assert gain.difference.low > 0 and gain.p == 1 / 8 and not is_shown(gain)


@pytest.fixture(scope="module")
def shipped():
    return load_model()


@pytest.fixture(scope="module")
def unlearned(shipped):
    torch.manual_seed(0)
    cfg = ModelConfig(vocab_size=shipped[1].vocab_size, n_layer=1, n_head=2, n_kv_head=2,
                      d_model=16, d_ff=32, context_length=64)
    return GPT(cfg).eval(), shipped[1]


def test_replies_are_those_of_an_exam(unlearned):
    "Over several batches; of a prompt that is too long the end is read, and that is counted."
    items = [*exam("residents", 20), *exam("told", 15)]
    trial, = compare_prompts(*unlearned, {"a": PLAIN}, items, max_tokens=5).values()
    assert list(trial.replies) == answer(*unlearned, [item.prompt for item in items], 5)
    tokens = [len(unlearned[1].prompt_ids(item.prompt)) for item in items]
    assert trial.tokens == tuple(tokens) and any(n > 64 for n in tokens)
    assert sum(n > 64 for n in tokens) <= trial.cut < 35


def test_every_template_has_the_same_luck_and_every_question_its_own(unlearned):
    items = [ShortAnswer("Once upon a time", ("x",))] * 35
    trials = {"a": Template("{question}"), "b": Template("{question}")}
    found = compare_prompts(*unlearned, trials, items, max_tokens=5, rules=[temperature(1.0)],
                            seed=3)
    assert found["a"].replies == found["b"].replies and len(set(found["a"].replies)) > 20
    assert list(found["a"].replies) == answer(*unlearned, ["Once upon a time"] * 35, 5,
                                              [temperature(1.0)], 3)


def test_a_reply_ends_where_it_should(shipped):
    items = exam("residents", 3)
    ask = {"a": PLAIN}
    line, = compare_prompts(*shipped, ask, items).values()
    word, = compare_prompts(*shipped, ask, items, stop=[" is", " has", " lives"]).values()
    long, = compare_prompts(*shipped, ask, items, stop=[], max_tokens=30).values()
    for one, few, more in zip(line.replies, word.replies, long.replies):
        assert one.startswith(few) and more.startswith(one) and len(few) < len(one) < len(more)
    assert long.unfinished == 3 and line.unfinished == 0
    with refused("stop='x' is one string"):
        compare_prompts(*shipped, ask, items, stop="x")


def test_the_shipped_model_needs_the_note_and_its_form(shipped):
    items = exam("told", 24, seed=5)
    found = compare_prompts(*shipped, {"a": PLAIN, "bare": Template("{question}")}, items)
    assert list(found["a"].marks) == sit(*shipped, items)
    assert found["bare"].without_note == 24 and found["a"].cut == 0
    assert found["bare"].gain.difference.high < -0.5 and is_shown(found["bare"].gain)


# --- the command

@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    "Runs `prompts compare` beside some files, and gives its exit code, output and error lines."
    monkeypatch.chdir(tmp_path)
    for name, text in (("a.txt", "{note}\nQ: {question}\nA:\n"), ("bare.txt", "{question}\n"),
                       ("please.txt", "Please.\n{note}\nQ: {question}\nA:\n"),
                       ("shots.txt", "{examples}\n{note}\nQ: {question}\nA:\n"),
                       ("hole.txt", "{question} {topic}"), ("none.txt", "Why?"),
                       ("mine.jsonl", '{"prompt": "Where does Abel live?", "answer": ["x"]}\n'),
                       ("ex.jsonl", "".join(json.dumps({"prompt": q, "answer": a}) + "\n"
                                            for q, a, _ in POOL[:3]))):
        (tmp_path / name).write_text(text, encoding="utf-8")

    def run(*argv):
        capsys.readouterr()
        try:
            code = main(["prompts", "compare", *map(str, argv)])
        except SystemExit as e:
            code = e.code
        out, err = capsys.readouterr()
        return code, out, err.splitlines()
    return run


def test_the_command_says_what_the_function_finds(run, shipped):
    code, said, errors = run("a.txt", "bare.txt", "--questions", "told", "--n", 12, "--seed", 3,
                             "--out", "o.json", "--show", 2)
    items = exam("told", 12, 3)
    found = compare_prompts(*shipped, {name: read_template(name) for name in ("a.txt", "bare.txt")},
                            items)
    a, bare = found.values()
    assert (code, errors) == (0, [])
    lines = said.splitlines()
    assert lines[0].split() == ["prompt", "n", "right", "share", "95%", "interval", "tokens"]
    for line, (name, trial) in zip(lines[1:3], found.items()):
        share = trial.share
        assert line.split() == [name, "12", str(sum(trial.marks)), f"{share.mean:.1%}",
                                f"{share.low:.1%}", "to", f"{share.high:.1%}",
                                f"{sum(trial.tokens) / 12:.1f}"]
    assert "bare.txt: 12 of 12 were asked without their note; write {note}" in lines[3]
    mean, low, high = (f"{100 * x:+.1f}" for x in bare.gain.difference)
    row = lines[lines.index("") + 2]
    assert row.split() == ["bare.txt", mean, low, "to", high, str(bare.gain.only_first),
                           str(bare.gain.only_second), f"{bare.gain.p:.2g}"]
    assert "bare.txt is worse than a.txt on questions like these" in lines
    differ = [i for i in range(12) if a.marks[i] != bare.marks[i]]
    at = lines.index(f"a.txt and bare.txt differ on {len(differ)} questions; 2 of them:")
    shown = []
    for i in differ[:2]:
        shown += [items[i].text, f"  a.txt right: {a.replies[i]!r}",
                  f"  bare.txt wrong: {bare.replies[i]!r}"]
    assert lines[at + 1:] == shown
    report = json.loads(open("o.json", encoding="utf-8").read())
    assert {k: report[k] for k in ("checkpoint", "questions", "seed")} == {
        "checkpoint": None, "questions": "told", "seed": 3}
    assert report["asked"] == [item.text for item in items]
    first, second = report["prompts"]
    assert first["gain"] is None and first["marks"] == list(a.marks)
    assert first["right"] == sum(a.marks)
    assert second["replies"] == list(bare.replies) and second["without_note"] == 12
    assert second["gain"]["p"] == bare.gain.p
    assert second["gain"]["difference"] == bare.gain.difference._asdict()


def test_no_difference_is_not_called_equality(run):
    code, said, errors = run("a.txt", "please.txt", "--questions", "residents", "--n", 10)
    assert (code, errors) == (0, [])
    assert said.splitlines()[-1].startswith(
        "please.txt: no difference was shown, and none could be: of 10 questions they differ on ")


def test_several_comparisons_share_the_chance_to_err(run, saved):
    code, said, errors = run("a.txt", "please.txt", "bare.txt", "--questions", "mine.jsonl",
                             "--checkpoint", saved, "--max-tokens", 2, "--stop", "\\n", "--show", 1)
    assert (code, errors) == (0, [])
    assert "2 comparisons were made, so p must be below 0.025" in said
    assert "a.txt and bare.txt differ on 0 questions\n" in said


@pytest.mark.parametrize("choose", ["first", "random", "similar"])
def test_examples_are_chosen_for_each_question(run, saved, monkeypatch, choose):
    seen, ask = [], prompting.compare_prompts

    def spy(model, tokenizer, templates, items, shots, *more):
        seen.append((items, shots, more))
        return ask(model, tokenizer, templates, items, shots, *more)
    monkeypatch.setattr(prompting, "compare_prompts", spy)
    code, said, errors = run("a.txt", "shots.txt", "--questions", "residents", "--n", 4,
                             "--examples", "ex.jsonl", "--shots", 2, "--choose", choose, "--seed",
                             5, "--checkpoint", saved, "--max-tokens", 1, "--stop", "\\n",
                             "--stop", "Q:")
    assert (code, errors) == (0, [])
    assert "shots.txt: 4 of 4 did not fit into the context with the reply" in said
    (items, shots, more), rng = seen[0], random.Random(5)
    assert more == (1, ["\n", "Q:"])
    by_hand = [choose_shots(POOL[:3], q.text, 2, choose, rng) for q in items]
    assert shots == [some[::-1] if choose == "similar" else some for some in by_hand]


@pytest.mark.parametrize("options, said", [
    ("a.txt", "a.txt: a comparison takes two files or more, and none of them twice"),
    ("a.txt bare.txt a.txt", "none of them twice"),
    ("a.txt hole.txt", "hole.txt has {topic}, and the holes are"),
    ("a.txt none.txt", "none.txt has no {question}"),
    ("a.txt nowhere.txt", "nowhere.txt cannot be read (No such file"),
    ("a.txt shots.txt", "shots.txt has {examples}, and there are none; give some with --examples"),
    ("a.txt bare.txt --examples ex.jsonl", "--examples ex.jsonl has no effect"),
    ("a.txt shots.txt --examples nowhere.jsonl", "nowhere.jsonl cannot be read"),
    ("a.txt shots.txt --examples ex.jsonl --shots 0", "--shots 0 must be at least 1"),
    ("a.txt shots.txt --examples ex.jsonl --shots 4", "n=4 worked examples cannot"),
    ("a.txt shots.txt --examples ex.jsonl --choose best", "best"),
    ("a.txt bare.txt --questions geography", "'geography' is unknown"),
    ("a.txt bare.txt --n 0", "n=0"), ("a.txt bare.txt --max-tokens 0", "--max-tokens 0"),
    ("a.txt bare.txt --show -1", "--show -1"), ("a.txt bare.txt --out none/o.json", "--out none"),
    ("a.txt bare.txt --checkpoint nowhere", "nowhere")])
def test_bad_orders_get_one_line(run, options, said):
    words = options.split()
    code, out, errors = run(*words, *([] if "--questions" in words else ["--questions", "told"]))
    assert code == 2 and out == "" and len(errors) == 1 and said in errors[0]
    assert "Traceback" not in errors[0]
