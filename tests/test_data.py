"Laws of the data: nothing lost, nothing shared, every window once an epoch, whole files only."
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.data import (
    Batches,
    dataset_documents,
    encode_documents,
    load_tokens,
    read_documents,
    read_pieces,
    read_text,
    save_tokens,
    shuffled_places,
    split_documents,
    split_stream,
    stdlib_text,
    write_tokens,
)
from minigpt.loss import shift
from minigpt.tokenizer import Tokenizer, train_tokenizer

seeds = st.integers(-2**40, 2**40)


# --- windows

@given(st.integers(1, 3_000), seeds)
def test_a_shuffle_loses_nothing(size, seed):
    order = shuffled_places(np.arange(size), size, seed)
    assert np.array_equal(np.sort(order), np.arange(size))


@settings(max_examples=50)
@given(st.integers(2, 400), st.integers(1, 40), st.integers(1, 8), seeds)
def test_every_window_comes_once_an_epoch_and_lies_inside(n_tokens, T, B, seed):
    if n_tokens <= T:
        return
    batches = Batches(np.arange(n_tokens), B, T, seed)
    n = batches.n_windows
    for epoch in (0, 1, 5):
        slots = range(epoch * n, (epoch + 1) * n)
        starts = [batches.starts(slot // B)[slot % B] for slot in slots]
        assert len(set(starts)) == n and min(starts) >= 0 and max(starts) + T < n_tokens
    ids = batches[10**6]
    assert ids.shape == (B, T + 1) and ids.dtype == torch.int64
    inputs, targets = shift(ids)
    assert torch.equal(targets, inputs + 1)                 # the text here counts up: no gaps


@given(st.integers(0, 1_000), seeds)
def test_a_batch_depends_on_its_number_and_the_seed_alone(n, seed):
    tokens = np.arange(500)
    used = Batches(tokens, 4, 16, seed)
    for other in range(5):
        used[other]
    assert torch.equal(used[n], Batches(tokens, 4, 16, seed)[n])


def asked(batches, epoch=0):
    "How often each token of a text that counts up is a target in an epoch."
    n = batches.n_windows
    rows = torch.cat([batches[i][:, 1:] for i in range(epoch * n, (epoch + 1) * n)])
    return np.bincount(rows.flatten().numpy(), minlength=len(batches.tokens))


@settings(max_examples=150)
@given(st.integers(2, 300), st.integers(1, 40), seeds)
def test_each_epoch_asks_for_every_target(n_tokens, T, seed):
    "Once, but for an overlap shorter than a window where T does not divide their number."
    if n_tokens <= T:
        return
    batches = Batches(np.arange(n_tokens), 1, T, seed)
    for epoch in (0, 1, 7):
        counts = asked(batches, epoch)
        assert counts[0] == 0 and counts[1:].min() == 1
        assert (counts[1:] - 1).sum() == -(n_tokens - 1) % T


@pytest.mark.parametrize("n_tokens", [48, 49, 50, 33, 17])
def test_the_end_of_a_row_is_learned(n_tokens):
    "Of a row of three windows' length a third was in no window of any epoch."
    batches = Batches(np.arange(n_tokens), 1, 16)
    assert all(asked(batches, epoch)[-1] == 1 for epoch in range(10))


def test_other_epochs_have_other_borders():
    batches = Batches(np.arange(1_010), 1, 50)
    n = batches.n_windows
    borders = {tuple(sorted(batches.starts(epoch * n + i)[0] for i in range(n)))
               for epoch in range(100)}
    assert len(borders) > 20


@settings(max_examples=200)
@given(st.lists(st.integers(0, 30), min_size=3, max_size=40), st.integers(1, 24), seeds,
       st.integers(0, 20), st.integers(0, 20))
def test_short_documents_begin_their_windows_and_nothing_is_lost(sizes, T, seed, cut, end):
    "Whatever the documents, and wherever the row begins and ends."
    marks = np.cumsum([0, *(size + 1 for size in sizes)]) - cut
    tokens = np.arange(1, marks[-1] + 2 - end)
    tokens[[m for m in marks if 0 <= m < len(tokens)]] = 0             # 0 marks the borders
    if len(tokens) <= T:
        return
    marks = np.flatnonzero(tokens == 0)
    fits = {m for m, after in zip(marks, marks[1:]) if after - m <= T < len(tokens) - m}
    batches = Batches(tokens, 1, T, seed, end_of_text=0)
    seen = set()
    for n in range(batches.n_windows):
        [start] = batches.starts(n)
        assert np.array_equal(batches[n][0].numpy(), tokens[start:start + T + 1])
        seen.update(range(start + 1, start + T + 1))
        before, after = marks[marks <= start][-1:], marks[marks > start][:1]
        short = fits >= {*before, *after} and len(before)              # on both sides
        assert start in marks or not short
    assert seen == set(range(1, len(tokens)))


def test_nobody_walks_through_endless_batches():
    with pytest.raises(TypeError):
        list(Batches(np.arange(100), 2, 8))


# --- splitting

@given(st.lists(st.text(min_size=1), min_size=2, max_size=60, unique=True), st.floats(0.01, 0.99))
def test_a_split_loses_nothing_and_shares_nothing(documents, validation):
    training, held_out = split_documents(documents, validation)
    assert sorted(training + held_out) == sorted(documents) and training and held_out


@given(st.lists(st.sampled_from(["word ", "line\n", "🍓"]), min_size=20).map("".join))
def test_one_document_is_cut_in_two_and_both_parts_hold_something(text):
    [before], [after] = split_documents([text])
    assert before + after == text and before and after


def test_a_text_of_one_long_line_keeps_a_tenth_for_validation():
    [before], [after] = split_documents(["word " * 1_000 + "\n"])
    assert 300 < len(after) < 1_000


def test_no_documents_get_one_clear_sentence():
    with pytest.raises(ValueError):
        split_documents([])


@pytest.mark.parametrize("validation", [0, 1, -0.1, 1.5, float("nan")])
def test_an_impossible_share_is_named(validation):
    with pytest.raises(ValueError, match=f"validation={validation}"):
        split_documents(["a", "b"], validation)


# --- files

def test_documents_come_in_the_same_order_everywhere(tmp_path):
    for name in ("b.txt", "a/z.md", "a.txt", "a/b/c.py", "picture.png", "void.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("" if name == "void.txt" else name, encoding="utf-8")
    found = list(read_documents(tmp_path))
    assert found == [p.relative_to(tmp_path).as_posix() for p in sorted(
        tmp_path / n for n in ("b.txt", "a/z.md", "a.txt", "a/b/c.py"))]


@pytest.mark.parametrize("content, place", [
    (b"caf\xe9 au lait", "byte 3 is 0xe9"), (b"\xff\xfeh\x00i\x00", "byte 0 is 0xff"),
    (b"abc\xf0\x9f", "byte 3 is 0xf0"), (b"", "empty"), (b" \n\t ", "empty")])
def test_a_bad_file_is_named_with_its_byte(tmp_path, content, place):
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    readers = [lambda: list(read_documents(path))]
    if "byte" in place:
        readers += [lambda: read_text(path), lambda: list(read_documents(tmp_path))]
    for read in readers:
        with pytest.raises(ValueError) as error:
            read()
        assert place in str(error.value) and str(path) in str(error.value)


def test_a_byte_order_mark_is_no_letter(tmp_path):
    (tmp_path / "mine.TXT").write_bytes("\ufeffRosa".encode())
    assert list(read_documents(tmp_path)) == ["Rosa"]


def test_a_folder_of_blank_files_is_named(tmp_path):
    (tmp_path / "blank.txt").write_text(" \n")
    with pytest.raises(ValueError, match="holds no text in files named") as error:
        list(read_documents(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_a_blank_file_does_not_spoil_its_folder(tmp_path):
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "good.txt").write_text("some words")
    assert list(read_documents(tmp_path)) == ["some words"]


def test_the_standard_library_stops_where_it_is_told():
    n = sum(len(t.encode()) for t in stdlib_text(300_000))
    assert 300_000 <= n < 1_500_000


# --- token files

@given(st.lists(st.text(), max_size=5))
def test_documents_come_back_from_tokens(tokenizer, documents):
    tokens = encode_documents(tokenizer, documents)
    ends = np.flatnonzero(tokens == tokenizer.end_of_text)
    assert tokens[0] == tokens[-1] == tokenizer.end_of_text
    back = [tokenizer.decode(tokens[a + 1:b]) for a, b in zip(ends, ends[1:])]
    assert back == documents


def test_a_large_vocabulary_takes_wider_numbers():
    pairs = [bytes([a, b]) for a in range(256) for b in range(256)]
    large = Tokenizer([bytes([b]) for b in range(256)] + pairs)
    assert encode_documents(large, ["hello"]).dtype == np.uint32


def test_a_token_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "tokens.npy"
    save_tokens(path, np.arange(50, dtype=np.uint16))
    whole = path.read_bytes()
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(ValueError, match="is not a whole token file"):
            load_tokens(path)
    path.write_bytes(whole)
    assert np.array_equal(load_tokens(path), np.arange(50))


def test_a_token_file_never_unpickles(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}, []], object), allow_pickle=True)
    with pytest.raises(ValueError, match="is not a whole token file"):
        load_tokens(tmp_path / "objects.npy")


@pytest.mark.parametrize("n_tokens", [0, 1, 16])
def test_a_text_shorter_than_a_context_is_named(n_tokens):
    with pytest.raises(ValueError, match=f"has {n_tokens} tokens.*context_length=16"):
        Batches(np.zeros(n_tokens, np.uint16), 4, 16)
    assert Batches(np.zeros(17, np.uint16), 4, 16)[3].shape == (4, 17)

# --- more text than memory

@pytest.mark.parametrize("end", ["\n\n", "\n", ""])
def test_a_large_file_comes_in_pieces_that_are_the_file(tmp_path, end, monkeypatch):
    monkeypatch.setattr("minigpt.data.PIECE", 1000)
    path, text = tmp_path / "big.txt", ("café 🦊 и" + end) * 5000
    path.write_text(text, encoding="utf-8")
    pieces = list(read_pieces(path))
    assert "".join(pieces) == text and max(map(len, pieces)) <= 17 * 1000
    assert end == "" or all(piece.endswith(end) for piece in pieces)
    assert list(read_documents(path)) == pieces                  # larger than 64 pieces
    raw, place = text.encode(), 3000 * len(("café 🦊 и" + end).encode())
    path.write_bytes(raw[:place] + b"\xff" + raw[place:])
    with pytest.raises(ValueError, match=f"byte {place} is 0xff"):
        list(read_pieces(path))


def test_a_jsonl_file_has_a_document_on_each_line(tmp_path):
    path = tmp_path / "notes.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two", "id": 2}\n', encoding="utf-8")
    assert list(read_documents(path)) == ["one", "two"] == list(read_documents(tmp_path))
    for line in ('{"text": 3', '{"words": "x"}', '["text"]'):
        path.write_text('{"text": "one"}\n' + line, encoding="utf-8")
        with pytest.raises(ValueError, match=r"notes\.jsonl, line 2 is no JSON object"):
            list(read_documents(path))


@pytest.mark.parametrize("n", [1, 2, 9, 10, 11, 57])
def test_a_streamed_split_is_the_split_of_the_list(n):
    documents = [f"document {i}\nand a line" for i in range(n)]
    parts = [list(split_stream(lambda: iter(documents), held_out)) for held_out in (False, True)]
    assert tuple(parts) == split_documents(documents)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_streamed_token_file_is_the_list_s(tmp_path, tokenizer, threads):
    documents = [f"a bee {i} sees" * (i % 7) for i in range(300)]
    n = write_tokens(tmp_path / "t.npy", tokenizer, iter(documents), threads)
    expected = encode_documents(tokenizer, documents)
    assert n == len(expected) and np.array_equal(load_tokens(tmp_path / "t.npy"), expected)
    assert [p.name for p in tmp_path.iterdir()] == ["t.npy"]


class Unplugged(Exception):
    pass


def stops(documents, at):
    for i, document in enumerate(documents):
        if i == at:
            raise Unplugged
        yield document


@pytest.mark.parametrize("at", [0, 1, 5, 20, 39])
def test_a_stopped_token_file_goes_on_where_it_was(tmp_path, tokenizer, monkeypatch, at):
    monkeypatch.setattr("minigpt.data.batches_of", lambda d: ([x] for x in d))
    documents, path = [f"a bee {i} sees" for i in range(40)], tmp_path / "t.npy"
    with pytest.raises(Unplugged):
        write_tokens(path, tokenizer, stops(documents, at), save_every=30)
    assert not path.exists()
    read = []
    write_tokens(path, tokenizer, (read.append(d) or d for d in documents), save_every=30)
    assert np.array_equal(load_tokens(path), encode_documents(tokenizer, documents))
    assert [p.name for p in tmp_path.iterdir()] == ["t.npy"]


def test_another_tokenizer_does_not_go_on_with_the_old_ids(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("minigpt.data.batches_of", lambda d: ([x] for x in d))
    documents, other = ["a bee sees"] * 9, train_tokenizer(["quite another text"] * 3, 270)
    with pytest.raises(Unplugged):
        write_tokens(tmp_path / "t.npy", tokenizer, stops(documents, 5), save_every=1)
    write_tokens(tmp_path / "t.npy", other, documents, save_every=1)
    assert np.array_equal(load_tokens(tmp_path / "t.npy"), encode_documents(other, documents))


MEMORY = """
import re, sys, numpy as np
from minigpt.data import Batches, load_tokens
batches = Batches(load_tokens(sys.argv[1]), 8, 256)
def memory(): return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1])
for n in range(20): batches[n]
before = memory()
for n in range(3000): batches[n]
print(memory() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_file_of_four_gigabytes_takes_no_more_memory_than_a_small_one(tmp_path):
    grown = {}
    for name, n in (("small", 2_000_000), ("large", 2_000_000_000)):       # 4 MB; 4 GB of holes
        with open(tmp_path / name, "wb") as f:
            np.lib.format.write_array_header_1_0(
                f, {"descr": "<u2", "fortran_order": False, "shape": (n,)})
            f.truncate(f.tell() + 2 * n)
        done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path / name)], check=True,
                              capture_output=True, text=True)
        grown[name] = int(done.stdout) / 1000                                # MB
    assert abs(grown["large"] - grown["small"]) < 4, grown


def test_a_data_set_streams_by_name(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="the datasets library is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / "notes.jsonl"
    path.write_text('{"text": "one"}\n{"text": " "}\n{"text": "two"}\n')
    assert list(dataset_documents(f"json:{path}")) == ["one", "two"]
    with pytest.raises(ValueError, match="has no column 'body', but text"):
        list(dataset_documents(f"json:{path}", "body"))


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        list(dataset_documents("roneneldan/TinyStories"))
