"Laws of the tokenizer: nothing is lost, every encoder agrees, no text reaches a special token."
import json
import os
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import regex
import tiktoken
import tiktoken.load
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from minigpt.tokenizer import (
    END_OF_TEXT,
    Tokenizer,
    count_chunks,
    encode_chunk,
    learn_tokens,
    split_chunks,
    train_tokenizer,
)

SHARED = Path(__file__).parents[2] / "shared" / "data"         # optional, beside the checkout
SOME_TEXT = "Rosa and Tom baked a cake. Tom's cake was larger than Rosa's cake, and it sank.\n" * 20
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


def tokens_by_counting_anew(counts, n_tokens):
    "The same vocabulary the slow way: after each merge every pair is counted again."
    tokens = [bytes([b]) for b in range(256)]
    chunks = [([*chunk], n) for chunk, n in counts.items()]
    while len(tokens) < n_tokens:
        pairs = Counter()
        for ids, n in chunks:
            for pair in zip(ids, ids[1:]):
                pairs[pair] += n * (tokens[pair[0]] + tokens[pair[1]] not in tokens)
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if not pairs[best]:
            break
        tokens.append(tokens[best[0]] + tokens[best[1]])
        for ids, _ in chunks:
            for i in range(len(ids)):
                if tuple(ids[i:i + 2]) == best:
                    ids[i:i + 2] = [len(tokens) - 1]
    return tokens


@given(st.lists(st.text(alphabet="ab c", max_size=60), min_size=1, max_size=3))
def test_the_commonest_pair_is_merged_each_time(docs):
    counts = count_chunks(docs)
    assert learn_tokens(counts, 275) == tokens_by_counting_anew(counts, 275)


# --- long texts and markers: always as the saved file's in `tokenizers`

def reopened(ours, path):
    "The saved file in the Hugging Face library."
    ours.save(path / "tokenizer.json")
    return tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))


LONG = {
    "Chinese": "那只猫睡在炉子旁边，狗在花园里。罗莎烤了一个蛋糕",
    "don't": '"don\'t,"', "words": "a cat sat ",
    "one word": "abcdefgh", "digits": "1234567890", "signs": "!?-", "hash lines": "#####\n\n",
    "code": "\tx[i]+=1;\r\n  \n", "blank lines": " \n\n\t ", "spaces": " ",
    "marks": "e\u0301\u0302",
    "emoji": "🍓👩\u200d🚀", "mixed": MIXED, "marker": "Rosa<|endoftext|>Tom's",
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_text_is_cut_nowhere_that_shows(name, tmp_path):
    unit = LONG[name]
    ours = train_tokenizer([unit * 40, MIXED * 3, SOME_TEXT], 700, (END_OF_TEXT, "<|user|>"))
    theirs = reopened(ours, tmp_path)
    text = (unit * (400_000 // len(unit) + 1)) + "x"
    assert ours.encode(text, allow_special=True) == theirs.encode(text).ids
    theirs.encode_special_tokens = True
    assert ours.encode(text) == theirs.encode(text).ids


def test_a_million_of_one_letter_is_no_trap_either(greedy):
    for unit in (" ", "\t ", "\n", "!", "a", "漢", "\ud800"):
        text = unit * (1_200_000 // len(unit))
        assert greedy.decode(greedy.encode(text)) == text.replace("\ud800", "\ufffd")


def test_the_longest_marker_wins(tmp_path):
    special = (END_OF_TEXT, "<a>", "<a><b>", "<a><b><c>", "><", " <a", "(?:x)|y", "éé")
    ours = train_tokenizer(["<a> and <b> and a"] * 9, 290, special)
    theirs = reopened(ours, tmp_path)
    pieces = [*special, "<", "a", ">", "b", " ", "<b>", "c>", "x", "y", "\n", "e\u0301"]
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 9)))
        assert ours.encode(text, allow_special=True) == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == text
    assert ours.encode("<a><b>", allow_special=True) == [ours.special["<a><b>"]]
    assert train_tokenizer(["x"], 257, ()).encode("<a>", allow_special=True) == [60, 97, 62]


@pytest.mark.parametrize("special", [("",), (END_OF_TEXT, ""), (END_OF_TEXT, "<a>", "<a>")])
def test_a_marker_that_cannot_be_is_refused(special):
    with pytest.raises(ValueError, match="special="):
        train_tokenizer(["some text"], 270, special)


@pytest.mark.parametrize("special, message", [((), "lacks <|endoftext|>"), (("<a>",), "lacks"),
                                              ((END_OF_TEXT, "a"), "'a' is also a token")])
def test_what_could_not_be_opened_is_not_saved(special, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        train_tokenizer(["a text"], 260, special).save(tmp_path / "tokenizer.json")
    assert not (tmp_path / "tokenizer.json").exists()


def test_two_surrogates_are_one_letter(tokenizer):
    text = "a \U0001d49cb 🍓"
    split = text.encode("utf-16", "surrogatepass")
    halves = "".join(chr(int.from_bytes(split[i:i + 2], "little")) for i in range(2, len(split), 2))
    assert len(halves) == len(text) + 2 and tokenizer.encode(halves) == tokenizer.encode(text)
    assert train_tokenizer([halves], 300).tokens == train_tokenizer([text], 300).tokens
    assert tokenizer.encode(halves * 60_000) == tokenizer.encode(text * 60_000)


CHANGES = {                                  # paths of keys, and values that they may have
    ("normalizer",): [{"type": "NFC"}, {"type": "Lowercase"}, {"type": "Prepend", "prepend": "_"}],
    ("truncation",): [{"direction": "Right", "max_length": 3, "strategy": "LongestFirst",
                       "stride": 0}],
    ("padding",): [{"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}],
    ("added_tokens", 0, "lstrip"): [True], ("added_tokens", 0, "rstrip"): [True],
    ("added_tokens", 0, "single_word"): [True], ("added_tokens", 0, "normalized"): [True],
    ("added_tokens", 0, "content"): ["a", "<|other|>", "Rosa"], ("added_tokens", 0, "id"): [5],
    ("added_tokens", 0, "special"): [False],
    ("pre_tokenizer", "pretokenizers", 0, "behavior"): ["Removed", "MergedWithNext"],
    ("pre_tokenizer", "pretokenizers", 0, "invert"): [True],
    ("pre_tokenizer", "pretokenizers", 1, "add_prefix_space"): [True],
    ("pre_tokenizer", "pretokenizers", 1, "use_regex"): [True],
    ("pre_tokenizer", "pretokenizers", 1): [{"type": "Digits", "individual_digits": True}],
    ("pre_tokenizer", "pretokenizers"): [lambda v: [*v, {"type": "Whitespace"}]],
    ("post_processor",): [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                           "use_regex": True}],
    ("model", "dropout"): [0.5], ("model", "unk_token"): ["a"], ("model", "fuse_unk"): [True],
    ("model", "continuing_subword_prefix"): ["##"], ("model", "end_of_word_suffix"): ["b"],
    ("model", "byte_fallback"): [True], ("model", "ignore_merges"): [False],
    ("model", "type"): ["WordPiece", "Unigram"],
    ("model", "merges"): [lambda v: v[::-1], lambda v: v[:-1], lambda v: [], lambda v: v[9:]],
    ("model", "vocab"): [lambda v: v | {"dh": len(v), "dhx": len(v) + 1}],
}


def test_a_file_that_we_open_gives_the_ids_that_it_gives_there(tokenizer, tmp_path):
    path, rng, opened = tmp_path / "tokenizer.json", random.Random(0), 0
    tokenizer.save(path)
    good = path.read_text("utf-8")
    pieces = [*MIXED.split(" "), *SOME_TEXT.split()[:12], " ", "\n", "a", "dh", "dhx", END_OF_TEXT]
    fuzzed = ["".join(rng.choices(pieces, k=rng.randint(1, 12))) for _ in range(100)]
    for keys, values in CHANGES.items():
        for value in values:
            spec = json.loads(good)
            at = spec
            for key in keys[:-1]:
                at = at[key]
            at[keys[-1]] = value(at[keys[-1]]) if callable(value) else value
            path.write_text(json.dumps(spec), encoding="utf-8")
            try:
                ours = Tokenizer.load(path)
            except ValueError as e:
                assert "\n" not in str(e)
                continue
            theirs = tokenizers.Tokenizer.from_file(str(path))
            for text in fuzzed:
                assert ours.encode(text, True) == theirs.encode(text).ids, (keys, value)
            opened += 1
    assert opened


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
