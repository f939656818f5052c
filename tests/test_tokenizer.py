"Laws of the tokenizer: nothing is lost, every encoder agrees, no text reaches a special token."
import json
import os
import random
from pathlib import Path

import pytest
import regex
import tiktoken
import tiktoken.load
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from minigpt.tokenizer import END_OF_TEXT, Tokenizer, encode_chunk, split_chunks, train_tokenizer

SHARED = Path(__file__).parents[2] / "shared" / "data"         # optional, beside the checkout
MIXED = ("Rosa's 3 hens can't read  this,\r\ncan THEY?\n\n\t naïve café 漢字かな 🍓 1234567 ½ Ⅷ "
         "👩\u200d🚀 he'll I'VE x=[1,2];\n    return _a__b  \n सुप्रभात мир שלום "
         "\u00a0\u2003 \x00\x7f ﷺ ǅ e\u0301")
letters = st.text(alphabet="ab ", max_size=60)                 # few letters, many merges
texts = st.one_of(st.text(), letters, st.lists(st.sampled_from(MIXED.split(" "))).map(" ".join))


@pytest.fixture(scope="module")
def greedy():
    "A vocabulary of two letters, where most tokens can be reached by several roads."
    rng = random.Random(0)
    return train_tokenizer(["".join(rng.choice("aaab ") for _ in range(20_000))], 400)


@pytest.fixture(scope="module", params=["of words", "of two letters"])
def trio(request, tokenizer, greedy, tmp_path_factory):
    "A tokenizer, itself saved and loaded, and Hugging Face's reading of the same file."
    ours = {"of words": tokenizer, "of two letters": greedy}[request.param]
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    ours.save(path)
    return ours, Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))


@given(texts)
def test_no_text_is_lost(tokenizer, greedy, text):
    assert "".join(split_chunks(text)) == text
    for t in (tokenizer, greedy):
        assert t.decode(t.encode(text)) == text


@given(text=texts)
def test_four_encoders_agree(trio, text):
    ours, again, theirs = trio
    ids = ours.encode(text)
    assert ids == [i for c in split_chunks(text) for i in encode_chunk(c.encode(), ours.ranks)]
    assert ids == again.encode(text)
    assert ids == theirs.encode(text).ids
    assert theirs.decode(ids) == text


@given(st.lists(st.sampled_from([END_OF_TEXT, "<|", "endoftext", "|>", "a", " "])).map("".join))
def test_special_tokens_never_come_from_text(tokenizer, text):
    assert tokenizer.end_of_text not in tokenizer.encode(text)
    allowed = tokenizer.encode(text, allow_special=True)
    assert allowed.count(tokenizer.end_of_text) == text.count(END_OF_TEXT)
    assert tokenizer.decode(tokenizer.encode(text)) == tokenizer.decode(allowed) == text


@given(st.text(st.one_of(st.characters(categories=["Cs"]), st.sampled_from("a 🍓"))))
def test_a_lone_surrogate_becomes_a_replacement_character(tokenizer, text):
    "A pair of surrogates is one letter; half a pair is not text, and never stops anything."
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert tokenizer.decode(tokenizer.encode(text)) == whole
    if text:
        assert train_tokenizer([text], 260).vocab_size >= 257


@given(st.lists(st.integers(0, 256), max_size=30))
def test_any_ids_decode_to_some_text(tokenizer, ids):
    raw = b"".join(tokenizer.decode_bytes([i]) for i in ids)
    assert tokenizer.decode_bytes(ids) == raw
    assert tokenizer.decode(ids) == raw.decode("utf-8", "replace")


@pytest.mark.parametrize("unit", ["a", " ", "\n", "\t ", "1", "!", "é", "🍓", "ab", "'s", "\u0301"])
def test_100_kb_of_one_letter_is_no_trap(greedy, unit):
    text = unit * (100_000 // len(unit.encode()))
    assert greedy.decode(greedy.encode(text)) == text
    learned = train_tokenizer([text], 300)
    assert len(learned.encode(text)) <= max(10_000, len(split_chunks(text)))


def test_a_token_as_long_as_the_text_can_be_saved(tmp_path):
    learned = train_tokenizer(["a" * 10_000], 300)
    assert max(map(len, learned.tokens)) > 1_000
    learned.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json").tokens == learned.tokens


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5), st.integers(257, 280))
def test_vocabularies_are_the_same_for_any_order_of_documents(docs, size):
    learned = train_tokenizer(docs, size)
    assert learned.tokens == train_tokenizer(docs[::-1], size).tokens
    assert 257 <= learned.vocab_size <= size and len(set(learned.tokens)) == len(learned.tokens)


# --- broken files

def edit(good, change):
    "The file with its JSON changed in place."
    spec = json.loads(good)
    change(spec)
    return json.dumps(spec).encode()


def revocab(good, change):
    "The file with another vocabulary."
    spec = json.loads(good)
    spec["model"]["vocab"] = change(spec["model"]["vocab"])
    return json.dumps(spec).encode()


FAULTS = {
    **{f"cut to {share:.0%}": lambda good, share=share: good[:int(len(good) * share)]
       for share in (0, 0.01, 0.3, 0.9, 0.9999)},
    **{f"only {text[:6]}": lambda good, text=text: text.encode()
       for text in ("null", "3", "[]", "{}", '"text"', "[" * 100_000)},
    "latin-1": lambda good: "é".encode("latin-1") + good,
    "no model": lambda good: edit(good, lambda s: s.pop("model")),
    "no pattern": lambda good: edit(
        good, lambda s: s["pre_tokenizer"]["pretokenizers"][0].pop("pattern")),
    "other pattern": lambda good: good.replace(b"sdmt", b"sdmx"),
    "GPT-2's splitter": lambda good: edit(
        good, lambda s: s.update(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False})),
    "gap": lambda good: revocab(good, lambda v: {t: i + (i > 270) for t, i in v.items()}),
    "same id twice": lambda good: revocab(good, lambda v: {t: min(i, 270) for t, i in v.items()}),
    "id as text": lambda good: revocab(good, lambda v: {t: str(i) for t, i in v.items()}),
    "id as fraction": lambda good: revocab(good, lambda v: {t: i + 0.5 for t, i in v.items()}),
    "list of scores": lambda good: revocab(good, lambda v: [[t, 0.0] for t in v]),
    "fewer than bytes": lambda good: revocab(
        good, lambda v: {t: i for t, i in v.items() if i < 99}),
    "letter of no byte": lambda good: revocab(
        good, lambda v: {("漢" if i == 280 else t): i for t, i in v.items()}),
    "a byte is missing": lambda good: revocab(
        good, lambda v: {("zzz" if i == 65 else t): i for t, i in v.items()}),
    "an empty token": lambda good: revocab(
        good, lambda v: {("" if i == 280 else t): i for t, i in v.items()}),
    "no end-of-text": lambda good: edit(good, lambda s: s.update(added_tokens=[])),
    "special elsewhere": lambda good: edit(good, lambda s: s["added_tokens"][0].update(id=5_000)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_file_gets_one_clear_sentence(tokenizer, tmp_path, name):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    path.write_bytes(FAULTS[name](path.read_bytes()))
    with pytest.raises(ValueError) as error:
        Tokenizer.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("wrong, value", [
    (lambda t: t.decode([300]), "300"), (lambda t: t.decode([0, -1]), "-1"),
    (lambda t: train_tokenizer(["x"], 256), "256"),
    (lambda t: train_tokenizer([""], 300), "empty")])
def test_a_wrong_value_is_named(tokenizer, wrong, value):
    with pytest.raises(ValueError, match=value):
        wrong(tokenizer)


# --- the real thing

FILES = {  # what tiktoken names its downloads
    "gpt2": ("6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
             "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"),
    "cl100k_base": ("9b5ad71b2ce5302211f9c61530b329a4922fc6a4",),
    "o200k_base": ("fb374d419588a4632f3f557e76b4b70aebbca790",),
}


@pytest.mark.parametrize("name", FILES)
def test_our_encoder_equals_tiktoken_on_the_real_vocabularies(name, monkeypatch):
    folder = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or SHARED / "tiktoken")
    if not all((folder / f).is_file() for f in FILES[name]):
        pytest.skip(f"{name}'s vocabulary is not in {folder}; set TIKTOKEN_CACHE_DIR to its folder")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    monkeypatch.setattr(tiktoken.load, "read_file", lambda path: pytest.fail(f"asked for {path}"))
    theirs = tiktoken.get_encoding(name)
    text = MIXED + " strawberry" * 3 + " " * 50 + "a" * 200 + Path(__file__).read_text("utf-8")
    ids = [i for c in regex.findall(theirs._pat_str, text)
           for i in encode_chunk(c.encode(), theirs._mergeable_ranks)]
    assert ids == theirs.encode(text, disallowed_special=())


def test_1_mb_of_shakespeare_round_trips():
    path = SHARED / "tinyshakespeare.txt"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    text = path.read_text("utf-8")
    learned = train_tokenizer([text], 1024)
    ids = learned.encode(text)
    assert learned.vocab_size == 1024 and learned.decode(ids) == text
    assert 2 < len(text) / len(ids) < 4
