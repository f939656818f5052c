"""Laws of Tinytown: it is deterministic, truthful, grammatical, and knows its own entropy."""
import hashlib
import json
import math
import random
import re
from collections import Counter, defaultdict

import pytest

from minigpt import tinytown as tt
from minigpt.tinytown import KINDS, QUESTIONS, SHARES, Chooser, Question, Scene, Tinytown

SHA256 = "a8fdc61996459b15847fe361f76504f708cc326b82753fdb5aa3b608517fd574"
WORD = re.compile(r"[A-Za-z]+(?:[-'][a-z]+)*")


@pytest.fixture(scope="module")
def town():
    return Tinytown(0)


@pytest.fixture(scope="module")
def corpus(town):
    return list(town.corpus(7_000_000))


@pytest.fixture(scope="module")
def notes(town):
    return [town.document(random.Random(seed), "newcomers") for seed in range(4_000)]


@pytest.fixture(scope="module")
def truths(corpus):
    "What is told as true of the town: newcomers are told of once, and some notes pretend."
    return "\n".join(d.text for d in corpus if d.kind not in ("note", "newcomers"))


@pytest.fixture(scope="module")
def prose(truths, notes):
    return "\n".join([truths, *(d.text for d in notes)])


def slots():
    "Every list of patterns of which a document chooses one."
    yield from (tt.PORTRAIT_OPENINGS, tt.PORTRAIT_CLOSINGS, tt.TALE_ONCE, tt.TALE_ONE_DAY,
                tt.TALE_TODAY, tt.ASIDES, tt.DIALOGUE_OPENINGS, tt.DIALOGUE_GOODBYES, tt.SUMS,
                tt.MESSAGES, tt.ARRIVALS, tt.PRETENCES, *tt.PORTRAIT_FACTS.values(),
                *tt.NOTE_FACTS.values())
    for sections in (tt.TALES, tt.DIALOGUES):
        for section in sections.values():
            yield from section
    for relation in QUESTIONS.values():
        yield from relation[:2]


def named_scene(town, name):
    "A scene about one person, with every hole fillable."
    scene = Scene(Chooser(random.Random(0)), town._facts[name], town._facts)
    other = next(n for n in town._facts if n not in (name, town._facts[name]["friend"]))
    scene.cast["other"] = town._facts[other]
    scene.cast[""] |= {"who": name, "whom": name, "whose": name + "'s", "a": "1", "b": "2",
                       "c": "3", "first": "1 egg", "all": "3 eggs"}
    return scene


# --- determinism

def test_the_same_town_writes_the_same_text_everywhere():
    text = "\n\n".join(d.text for d in Tinytown(0).corpus(200_000, seed=0))
    assert hashlib.sha256(text.encode()).hexdigest() == SHA256


def test_seeds_make_other_towns_and_other_documents(town):
    assert Tinytown(1).people != town.people
    first = [d.text for d in town.corpus(5_000, seed=0)]
    assert first == [d.text for d in town.corpus(5_000, seed=0)]
    assert first != [d.text for d in town.corpus(5_000, seed=1)]


# --- size

def test_the_world_is_large_enough(town, truths):
    assert len(town.people) == len({p.name for p in town.people}) == 64
    assert len({p.pet_name for p in town.people}) == 64
    assert len({pattern for slot in slots() for pattern in slot}) >= 300
    assert len({w.lower() for w in WORD.findall(truths)}) >= 1_000
    assert len(tt.TALES) >= 10
    assert all(len(train) >= 8 and len(held) >= 3 for train, held, _ in QUESTIONS.values())
    assert all(12 <= len(values) <= 100 for relation, values in tt.CANDIDATES.items()
               if relation not in ("friend", "owner"))            # anybody, newcomers too
    assert tt.CANDIDATES["friend"] == tt.CANDIDATES["owner"] == tt.EVERYBODY


def test_the_corpus_stops_at_its_size(town, corpus):
    sizes = [len(d.text.encode()) for d in corpus]
    assert sum(sizes) >= 7_000_000 > sum(sizes[:-1])
    assert list(town.corpus(0)) == []


def test_kinds_come_in_their_shares(corpus):
    counts = Counter(d.kind for d in corpus)
    assert set(counts) == set(SHARES) == set(KINDS) and sum(SHARES.values()) == pytest.approx(1)
    for kind, share in SHARES.items():
        assert counts[kind] / len(corpus) == pytest.approx(share, abs=0.02)


def test_documents_are_short(corpus, notes):
    assert all(80 <= len(d.text) <= 900 for d in corpus if d.kind != "newcomers")
    assert all(80 <= len(d.text) <= 1_100 for d in notes)
    tales = [d.text for d in corpus if d.kind == "tale"]
    once = sum(t.startswith("Once upon a time") for t in tales) / len(tales)
    assert once == pytest.approx(0.2, abs=0.03)


# --- entropy

def test_bits_are_the_cost_of_the_path(town):
    for seed in range(300):
        chooser = Chooser(random.Random(seed))
        document = town.compose(chooser)
        assert document.bits == pytest.approx(-math.log2(math.prod(p for _, p in chooser.path)))


def test_a_given_kind_saves_the_bits_of_choosing_it(town):
    for kind, share in SHARES.items():
        rng = random.Random(3)
        rng.random()                                       # the draw of the kind
        given = town.document(rng, kind)
        seed = next(s for s in range(10_000) if town.document(random.Random(s)).kind == kind)
        chooser = Chooser(random.Random(seed))
        drawn = town.compose(chooser)
        assert given.kind == drawn.kind == kind
        assert chooser.path[0][1] == share


def test_a_choice_costs_what_it_should():
    chooser = Chooser(random.Random(0))
    chooser.choose(range(8))
    assert chooser.bits == 3
    chooser.choose(["only"])
    assert chooser.bits == 3
    chooser.choose("ab", (0.25, 0.75))
    assert chooser.bits - 3 in (2, pytest.approx(-math.log2(0.75)))


def test_two_paths_never_write_one_sentence(town):
    "Else a text would be less surprising than the path that made it."
    for slot in slots():
        assert len(set(slot)) == len(slot)
        source = {}
        for pattern in slot:
            for _ in range(40):
                scene = named_scene(town, "Zelda" if "Zelda" in town._facts else "Rosa")
                scene.chooser.rng = random.Random(len(source))
                assert source.setdefault(scene.say(pattern), pattern) == pattern
    for name, words in tt.WORDS.items():
        assert len(set(words)) == len(words), name
    for slot in slots():
        for pattern in slot:
            for inline in re.findall(r"\[([^]]*)]", pattern):
                assert len(set(inline.split("|"))) == inline.count("|") + 1


def test_the_same_text_always_has_the_same_bits(corpus):
    bits = {}
    for d in corpus:
        assert bits.setdefault(d.text, d.bits) == pytest.approx(d.bits)


def test_entropy_is_that_of_a_language_worth_learning(corpus):
    rate = sum(d.bits for d in corpus) / sum(len(d.text) for d in corpus)
    assert 0.15 < rate < 0.45


# --- truth

def test_no_document_contradicts_the_facts(town, truths):
    people = {p.name: p for p in town.people}
    pets = {p.pet_name: p for p in town.people}
    names, jobs = "|".join(people), "|".join(tt.JOBS)
    kinds, calls = "|".join(tt.PETS), "|".join(pets)
    def claims(pattern): return re.findall(pattern, truths)
    checks = {
        "job": [people[n].job == j for n, j in
                claims(rf"\b({names})(?:,| is an?| the) ({jobs})\b")],
        "home": [people[n].home == h for n, h in
                 claims(rf"\b({names}) lives on ({'|'.join(tt.FACTS['home'])})")],
        "pet": [pets[n].pet == k for n, k in claims(rf"\b({calls}) the ({kinds})\b")],
        "pet name": [people[n].pet_name == c and people[n].pet == k for n, k, c in
                     claims(rf"\b({names})'s ({kinds}) is called (\w+)")],
        "owner": [pets[c].name == n for c, n in
                  claims(rf"\b({calls}) belong(?:s|ed) to ({names})\b")],
        "friend": [people[n].friend == f for n, f in
                   claims(rf"\b({names})'s best friend (?:is )?({names})\b")],
        "age": [people[n].age == int(a) for n, a in
                claims(rf"\b({names}) (?:is|turned|was) (\d+)\b")],
        "colour": [people[n].colour == c for n, c in
                   claims(rf"\b({names})'s favourite colour is (\w+)")],
        "food": [people[n].food == f for n, f in
                 claims(rf"\b({names}) likes (?:to eat )?({'|'.join(tt.FACTS['food'])})")],
        "place": [people[n].place == p for n, p in
                  claims(rf"\b({names}) likes to go to ({'|'.join(tt.FACTS['place'])})")],
        "hobby": [people[n].hobby == h for n, h in
                  claims(rf"\b({names}) enjoys ({'|'.join(tt.FACTS['hobby'])})")],
        "pronoun": [people[n].pronoun == p for n, p in
                    claims(rf"If you hear .* it is probably ({names})\. .*? (he|she)\b")],
    }
    for relation, results in checks.items():
        assert results and all(results), relation


def test_friendship_is_mutual(town):
    people = {p.name: p for p in town.people}
    assert all(people[p.friend].friend == p.name != p.friend for p in town.people)


def test_answers_in_the_corpus_are_true(town, corpus):
    "Read every question document as a reader would, and grade it."
    asked = {q.text: q for q in town.questions()}
    seen = set()
    for d in corpus:
        if d.kind == "questions":
            pairs = re.findall(r"Q: (.*)\nA: (.*)", d.text)
            assert 3 <= len(pairs) <= 5
            for text, answer in pairs:
                assert asked[text].is_correct(answer)
                seen.add(text)
    assert len(seen) > 0.9 * len(asked)


def test_truth_agrees_with_the_questions(town):
    for held_out in (False, True):
        for q in town.questions(held_out):
            assert q.answer == town.truth(q.subject, q.relation)


def test_truth_refuses_what_it_does_not_know(town):
    with pytest.raises(ValueError, match="nobody in this town is called 'Nobody'"):
        town.truth("Nobody", "job")
    with pytest.raises(ValueError, match="relation='shoe size' is unknown"):
        town.truth(town.people[0].name, "shoe size")
    with pytest.raises(ValueError, match="kind='poem' is not a kind of document"):
        town.document(random.Random(0), "poem")


# --- grammar

def test_articles(prose):
    wrong = re.findall(r"\b[Aa] (?!one\b)[aeiouAEIOU]\w*|\b[Aa]n (?!honest)[^aeiou\W]\w*", prose)
    assert not wrong, Counter(wrong).most_common(5)
    assert re.search(r"\b[Aa]n honest\b", prose) and "a honest" not in prose


def test_capitals_and_spaces(prose):
    assert not re.findall(r"[{}<>\[\]|]|  | [.,!?;:]", prose)
    assert not re.findall(r"[.!?] [a-z]", re.sub(r'[!?.,]" [a-z]', '"', prose))
    assert not re.findall(r'(?m)^[^A-Z"]', prose)
    assert all(line.count('"') % 2 == 0 for line in prose.splitlines())


def test_no_word_is_doubled(prose):
    assert set(re.findall(r"\b(\w+) \1\b", prose)) <= {"that"}


@pytest.mark.parametrize("verb, s, ing", [
    ("bake bread", "bakes bread", "baking bread"), ("carry letters", "carries letters",
    "carrying letters"), ("stir the soup", "stirs the soup", "stirring the soup"),
    ("teach spelling", "teaches spelling", "teaching spelling"), ("sew", "sews", "sewing"),
    ("put out fires", "puts out fires", "putting out fires"), ("press", "presses", "pressing"),
    ("gather honey", "gathers honey", "gathering honey"), ("see", "sees", "seeing")])
def test_verbs(verb, s, ing):
    assert tt.s_form(verb) == s
    assert tt.ing_form(verb) == ing


@pytest.mark.parametrize("n, noun, text", [
    (1, "egg", "1 egg"), (2, "egg", "2 eggs"), (3, "peach", "3 peaches"), (2, "box", "2 boxes"),
    (4, "cherry", "4 cherries"), (5, "loaf", "5 loaves"), (6, "leaf", "6 leaves"),
    (0, "coin", "0 coins")])
def test_plurals(n, noun, text):
    assert tt.count(n, noun) == text


# --- kinds

def test_notes_are_json(town, corpus):
    people = {p.name: p for p in town.people}
    for d in corpus:
        if d.kind == "note":
            note = json.loads(d.text)
            if "name" in note:
                person = people[note.pop("name")]
                pet = note.pop("pet", None)
                assert pet in (None, {"kind": person.pet, "name": person.pet_name})
                assert all(getattr(person, key) == value for key, value in note.items())
            else:
                assert people[note["from"]].friend == note["to"]


def test_sums_are_right(corpus):
    n = 0
    for d in corpus:
        if d.kind == "sums":
            for a, sign, b, c in re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", d.text):
                assert int(a) + (int(b) if sign == "+" else -int(b)) == int(c) <= 20
                n += 1
            assert not re.findall(r"\b1 [a-z]+s\b(?!tamps)", d.text)
    assert n > 1_000


# --- what is held out

def test_strangers_are_never_mentioned(town, corpus):
    words = {w for d in corpus for w in re.findall(r"\w+", d.text)}
    told = {w for d in corpus if d.kind != "newcomers" for w in re.findall(r"\w+", d.text)}
    rng = random.Random(0)
    strangers = [town.stranger(rng) for _ in range(500)]
    assert len({s.name for s in strangers}) == 32
    assert not words & {s.name for s in strangers}
    assert not told & {s.pet_name for s in strangers}    # though a newcomer's pet may be called so
    assert words >= {p.name for p in town.people} | {p.pet_name for p in town.people}


def test_held_out_phrasings_never_appear(town, corpus):
    held = {q.text for q in town.questions(held_out=True)}
    trained = {q.text for q in town.questions()}
    assert not held & trained
    lines = [(d.kind, line[3:]) for d in corpus for line in d.text.splitlines()
             if line.startswith("Q: ")]
    assert {text for kind, text in lines if kind != "newcomers"} <= trained
    assert not {text for _, text in lines} & held
    text = "\n".join(d.text for d in corpus)
    for _, phrasings, _ in QUESTIONS.values():
        for pattern in phrasings:
            shape = re.sub(r"\\{\w+\\}", r"\\w+", re.escape(pattern))
            assert not re.search(shape, text), pattern


def test_held_out_questions_use_known_words(truths):
    known = set(WORD.findall(truths))
    for _, phrasings, _ in QUESTIONS.values():
        for pattern in phrasings:
            assert set(WORD.findall(re.sub(r"\{\w+\}('s)?", "", pattern))) <= known, pattern


# --- newcomers

def test_newcomers_live_in_one_document_only(town, notes):
    "Their names are made up, and belong to nobody in town and to no stranger."
    arrival = re.compile(r"(?:called|name:|hello to|welcome) ([A-Z]\w+)")
    named = [arrival.findall(d.text.split("\nQ:")[0])
             for d in notes if not any(p.split("{")[0] in d.text for p in tt.PRETENCES)]
    names = Counter(name for found in named for name in found)
    assert len(names) > 1_000
    assert not (set(names) - set(tt.NAMES["pet"])) & set(tt.EVERYBODY)


@pytest.mark.parametrize("kind", ["told", "untold", "absent", "pretend"])
def test_a_note_is_asked_what_it_says_and_what_it_does_not(town, kind):
    for q in town.newcomers(400, kind, seed=3):
        note = q.note
        assert q.prompt == f"{note}\nQ: {q.text}\nA:" and note.startswith("Note: ")
        told = kind in ("told", "pretend")
        assert (tt.DOES_NOT_SAY in q.answer) != told
        value = re.sub(r"^an? ", "", q.answer)
        assert (re.search(rf"\b{re.escape(value)}\b", note, re.I) is not None) == told
        assert (q.subject in note) == (kind != "absent")
        assert q.is_correct(f"{q.subject}: {q.answer}." if told else q.answer)
        assert not q.is_correct(f"{tt.DOES_NOT_SAY} that." if told else f"{q.subject} is a baker.")


def test_what_a_note_pretends_is_not_true(town):
    for q in town.newcomers(300, "pretend", seed=4):
        if q.relation != "owner":
            assert q.subject in {p.name for p in town.people}
            assert town.truth(q.subject, q.relation) != q.answer


def test_exams_use_words_and_people_that_the_corpus_never_uses(town, corpus):
    said = {line[3:] for d in corpus for line in d.text.splitlines() if line.startswith("Q: ")}
    exam = town.newcomers(300, "told", seed=5)
    assert not said & {q.text for q in exam}
    assert {q.subject for q in exam if q.relation != "owner"} <= set(town.strangers)
    practice = town.newcomers(300, "told", seed=5, held_out=False)
    assert not {q.subject for q in practice} & set(town.strangers)
    with pytest.raises(ValueError, match="kind='false' is not a kind of question"):
        town.newcomers(1, "false")


def test_answers_about_newcomers_follow_from_their_note(notes):
    "Every answer that is not a refusal repeats words of the note."
    n = 0
    for d in notes:
        note, *pairs = re.split(r"\nQ: ", d.text)
        for pair in pairs:
            answer = pair.split("\nA: ")[1]
            if tt.DOES_NOT_SAY not in answer:
                value = re.search(r"\b(?:is called|is an?|lives on|has an?|likes to eat|friend is|"
                                  r"likes to go to|enjoys|is|belongs to) "
                                  r"([\w' -]+?)(?: years old)?\.$", answer)[1]
                assert re.search(rf"\b{re.escape(value)}\b", note, re.I), d.text
                n += 1
    assert n > 8_000


def test_a_name_comes_apart_in_one_way_only():
    "Else two paths would write one name."
    made = Counter(head + tail for head in tt.HEADS for tail in tt.TAIL_SHARES)
    assert max(made.values()) == 1 and sum(tt.TAIL_SHARES.values()) == pytest.approx(1)
    assert {tt.pronoun_for(name) for name in tt.NAMES["she"]} == {"she"}
    assert tt.pronoun_for("Rosina") == "she"


def test_blended_text_has_no_frequent_name(town, corpus):
    "So that a tokenizer spells everybody, and gives each pet's name the same chance."
    rng = random.Random(0)
    def words(texts): return Counter(w for text in texts for w in re.findall(r"\w+", text))
    texts = [d.text for d in corpus[:3000]]
    plain, blended = words(texts), words(tt.blend(text, rng) for text in texts)
    assert 4 * max(blended[p.name] for p in town.people) < min(plain[p.name] for p in town.people)
    assert max(blended[n] for n in tt.NAMES["pet"]) < 4 * min(blended[n] for n in tt.NAMES["pet"])


# --- grading

def test_is_correct():
    q = Question("What is Rosa's job?", "a baker", "Rosa", "job")
    assert q.prompt == "Q: What is Rosa's job?\nA:"
    assert q.is_correct(" Rosa is a baker.")
    assert q.is_correct("Rosa is a baker.\nQ: What is Tom's job?\nA: Tom is a potter.")
    assert not q.is_correct(" Rosa is a potter.")
    assert not q.is_correct("Rosa is a baker and a potter.")
    assert not q.is_correct("Rosa is a bakery.")
    assert not q.is_correct("")


def test_is_correct_knows_the_subject_from_the_answer():
    q = Question("Who is Rosa's best friend?", "Tom", "Rosa", "friend")
    assert q.is_correct("Rosa's best friend is Tom.")
    assert not q.is_correct("Rosa's best friend is Theo.")
    assert not q.is_correct("Rosa's best friend is Tom or Theo.")
    age = Question("How old is Rosa?", "34", "Rosa", "age")
    assert age.is_correct("Rosa is 34 years old.")
    assert not age.is_correct("Rosa is 3 years old.") and not age.is_correct("Rosa is 43.")


def test_every_answer_is_right_and_every_swapped_answer_is_wrong(town):
    facts = {p.name: town._facts[p.name] for p in town.people}
    for q in town.questions(held_out=True):
        others = [c for c in tt.CANDIDATES[q.relation] if c not in (q.answer.split(" ", 1)[-1],
                                                                   q.answer, q.subject)]
        assert q.is_correct(f"{q.subject}: {q.answer}.")
        assert not q.is_correct(f"{q.subject}: {others[len(q.text) % len(others)]}.")
    assert len(facts) == 64


def test_questions_cover_every_person_and_relation(town):
    by = defaultdict(set)
    for q in town.questions(held_out=True):
        by[q.relation].add(q.subject)
    assert set(by) == set(QUESTIONS) and all(len(s) == 64 for s in by.values())
    rng = random.Random(0)
    assert {town.question(rng).relation for _ in range(300)} == set(QUESTIONS)
    assert all(town.question(rng, held_out=True) in town.questions(True) for _ in range(5))
