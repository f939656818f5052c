"Laws of word vectors: likeness is an angle, neighbours go both ways, and company makes likeness."
import pytest
import torch

from minigpt.embedding import (
    cosine,
    learn_words,
    nearest,
    one_hot,
    pairs_of,
    search,
    skip_gram,
    text_vector,
    words_of,
)


def test_likeness_is_pytorch_s_and_has_no_length():
    a, b = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cosine(a, b), torch.nn.functional.cosine_similarity(a, b, dim=-1))
    torch.testing.assert_close(cosine(3 * a, b / 7), cosine(a, b))
    assert cosine(torch.zeros(8), b[0]).item() == 0


def test_the_nearest_points_most_the_same_way_and_some_may_be_left_out():
    table = torch.tensor([[9.0, 9], [1, 0], [0, 5], [-1, 0]])
    assert nearest(torch.tensor([1.0, 0.1]), table, 4) == [1, 0, 2, 3]
    assert nearest(torch.tensor([1.0, 0.1]), table, 2, leave_out=[1]) == [0, 2]


def test_one_hot_is_pytorch_s():
    ids = torch.tensor([[0, 3], [2, 1]])
    assert torch.equal(one_hot(ids, 4), torch.nn.functional.one_hot(ids, 4).float())


def test_words_are_counted_whole_and_rare_ones_are_left_out():
    assert words_of("Rosa's cake, 12 cakes.") == ["rosa's", "cake", "12", "cakes"]
    assert learn_words(["b a b", "B c a"], at_least=2) == {"b": 0, "a": 1}
    with pytest.raises(ValueError, match="no word occurs 9 times"):
        learn_words(["a a"], at_least=9)


def test_neighbours_are_those_within_the_window_both_ways_and_in_one_text():
    pairs = pairs_of(["a b c d", "b a"], {w: i for i, w in enumerate("abcd")}, window=2)
    near = {(0, 1), (1, 2), (2, 3), (0, 2), (1, 3)}
    found = sorted(map(tuple, pairs.tolist()))
    assert found == sorted([*near, *((b, a) for a, b in near), (1, 0), (0, 1)])


def test_words_of_the_same_company_become_alike():
    texts = ["the cat purrs here", "the kitten purrs here", "a car rolls there",
             "a bus rolls there"] * 30
    ids = learn_words(texts)
    table, losses = skip_gram(pairs_of(texts, ids, 2), len(ids), 8, steps=150, lr=0.05)
    assert losses[-20:].mean() < 0.75 * losses[0]
    alike = lambda a, b: cosine(table[ids[a]], table[ids[b]]).item()
    assert alike("cat", "kitten") > 0.8 > 0.4 > alike("cat", "car")
    assert search("kitten", ["a bus there", "the cat"], ids, table, 1) == ["the cat"]


def test_a_text_is_the_mean_of_its_words_directions():
    ids, table = {"up": 0, "right": 1}, torch.tensor([[0.0, 9], [2, 0]])
    assert text_vector("Up, right!", ids, table).tolist() == [0.5, 0.5]
    assert text_vector("nothing", ids, table).tolist() == [0, 0]
