"Laws of the models of letters: counting is the optimum of learning; slopes equal PyTorch's."
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.autograd import Value, value
from minigpt.bigram import (
    LETTERS,
    Bigram,
    count_pairs,
    fingerprint,
    function_names,
    is_held_out,
    letter_ids,
)
from minigpt.neural_letters import (
    LetterMLP,
    bits_per_letter,
    invent,
    letter_windows,
    names_in_code,
    three_piles,
    train_letters,
)
from minigpt.recurrent import (
    Recurrent,
    gru_step,
    invent_name,
    lstm_step,
    name_bits,
    name_rows,
    rnn_step,
    row_loss,
    train_names,
)

NAMES = ["ab", "ab", "ba", "b"]                      # the chapter's four, counted by hand
FIXED = ["bell", "build", "close", "dumps", "join", "loads", "split"]
HELD = ["bell", "build", "close"]                    # by their hashes, for ever and everywhere
a_name = st.text(LETTERS[1:], min_size=1, max_size=12)


# ---- bigram ------------------------------------------------------------------------------------
def test_pairs_are_those_counted_by_hand():
    counts = count_pairs(NAMES)
    dot, a, b = (LETTERS.index(letter) for letter in ".ab")
    table = {(dot, a): 2, (dot, b): 2, (a, dot): 1, (a, b): 2, (b, dot): 3, (b, a): 1}
    assert {pair: int(counts[pair]) for pair in table} == table
    assert counts.sum() == sum(table.values()) and counts[dot, dot] == 0


@given(st.lists(a_name, max_size=8))
def test_every_letter_and_every_end_is_counted_once(names):
    counts = count_pairs(names)
    assert counts.sum() == sum(len(name) + 1 for name in names)
    assert counts[0].sum() == counts[:, 0].sum() == len(names)


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_no_table_beats_the_counts_on_what_was_counted(seed):
    counted = Bigram.counted(NAMES, smoothing=1e-9)
    other = Bigram()
    noise = torch.randn(counted.logits.shape, generator=torch.Generator().manual_seed(seed))
    other.logits.data = counted.logits.data + noise
    assert counted.bits_per_letter(NAMES) <= other.bits_per_letter(NAMES) + 1e-6


def test_bits_are_those_of_the_chapter():
    model = Bigram.counted(NAMES, smoothing=1e-9)
    assert model.bits_per_letter(["ab"]) == pytest.approx(2 / 3, abs=1e-4)
    assert Bigram().bits_per_letter(NAMES) == pytest.approx(math.log2(28), abs=1e-4)


def test_learning_by_torch_ends_where_counting_ends():
    model, counts = Bigram(), count_pairs(NAMES).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(1500):
        optimizer.zero_grad()
        loss = -(counts * model.logits.log_softmax(dim=1)).sum() / counts.sum()
        loss.backward()
        optimizer.step()
    best = Bigram.counted(NAMES, smoothing=1e-9).bits_per_letter(NAMES)
    assert 0 <= model.bits_per_letter(NAMES) - best < 1e-2


def test_names_are_split_alike_on_every_machine():
    assert [name for name in FIXED if is_held_out(name)] == HELD
    names = function_names()
    assert names == sorted(set(names)) and len(names) > 2_000
    assert {"dumps", "loads", "join", "split"} <= set(names)
    assert 0.08 < sum(map(is_held_out, names)) / len(names) < 0.12


def test_inventing_follows_the_seed_and_ends():
    model = Bigram.counted(NAMES, 0.1)
    write = lambda seed: model.invent(torch.Generator().manual_seed(seed))
    assert write(3) == write(3) and len({write(seed) for seed in range(20)}) > 3
    assert all(set(write(seed)) <= set(LETTERS[1:]) for seed in range(20))
    endless = Bigram()
    endless.logits.data[:, 0] = -torch.inf
    assert len(endless.invent(torch.Generator(), longest=9)) == 9


@pytest.mark.parametrize("wrong, message", [
    (lambda: letter_ids("aB"), "'aB' has 'B'; only a to z and _ are known"),
    (lambda: Bigram.counted(NAMES, 0), "smoothing=0 must be above 0")])
def test_what_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


# ---- autograd ----------------------------------------------------------------------------------
OPS = [lambda v, w: v + w, lambda v, w: v * w, lambda v, w: v - w, lambda v, w: w - 2 * v,
       lambda v, w: v.tanh(), lambda v, w: (0.3 * v).tanh().exp(), lambda v, w: v.relu(),
       lambda v, w: (v * v + 1).log(), lambda v, w: v / (w * w + 1), lambda v, w: 1 / (v * v + 1),
       lambda v, w: (v * v + 1) ** 0.5, lambda v, w: v ** 3 * 0.1, lambda v, w: -v]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(-2, 2).filter(lambda x: abs(x) > 1e-3), min_size=2, max_size=4),
       st.lists(st.tuples(st.integers(0, len(OPS) - 1), st.integers(0, 99), st.integers(0, 99)),
                min_size=1, max_size=30))
def test_every_slope_equals_pytorchs(numbers, steps):
    ours = [Value(x) for x in numbers]
    theirs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in numbers]
    leaves = list(zip(ours, theirs))
    for op, i, j in steps:
        ours.append(OPS[op](ours[i % len(ours)], ours[j % len(ours)]).tanh())
        theirs.append(OPS[op](theirs[i % len(theirs)], theirs[j % len(theirs)]).tanh())
    ours[-1].backward()
    theirs[-1].backward()
    assert ours[-1].data == pytest.approx(theirs[-1].item(), abs=1e-12)
    for v, t in leaves:
        assert v.grad == pytest.approx(0.0 if t.grad is None else t.grad.item(), abs=1e-9)


def test_leaves_add_up_and_nothing_else_does():
    a = Value(3.0)
    c = a * a
    c.backward()
    c.backward()
    assert (a.grad, c.grad) == (12, 1)               # two walks of 6 each


def test_a_value_used_twice_gets_both_slopes():
    a = Value(1.0)
    b = a + a
    (b + b).backward()
    assert a.grad == 4


def test_a_long_chain_is_walked_without_recursion():
    x = total = Value(1.0)
    for _ in range(50_000):
        total = total + 1
    total.backward()
    assert x.grad == 1


def test_plain_numbers_may_stand_on_either_side():
    x = Value(2.0)
    for made, wanted in ((1 + x, 3), (1 - x, -1), (x - 1, 1), (3 * x, 6), (1 / x, 0.5),
                         (x / 4, 0.5)):
        assert made.data == wanted
    assert value(x) is x and value(5).data == 5 and repr(x) == "Value(2, grad=0)"


@pytest.mark.parametrize("wrong, error, message", [
    (lambda: Value(0.0).log(), ValueError, "the logarithm of 0 is no number"),
    (lambda: Value(-1.0) ** 0.5, ValueError, "-1 .. 0.5 is no number"),
    (lambda: 1 / Value(0.0), ValueError, "0 .. -1 is no number"),
    (lambda: Value(2.0) ** Value(2.0), TypeError, "the exponent must be a plain number")])
def test_what_has_no_slope_is_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()


# ---- neural letters ----------------------------------------------------------------------------
def small(seed: int = 0, n_letters: int = 3, d_hidden: int = 12) -> LetterMLP:
    return LetterMLP(n_letters, 4, d_hidden, torch.Generator().manual_seed(seed))


@given(st.lists(a_name, min_size=1, max_size=6), st.integers(1, 9))
def test_windows_hold_every_letter_once_with_what_stood_before_it(names, n):
    contexts, after = letter_windows(names, n)
    assert contexts.shape == (sum(len(name) + 1 for name in names), n)
    row = 0
    for name in names:
        padded = [0] * n + letter_ids(name)[1:]
        for i in range(n, len(padded)):
            assert contexts[row].tolist() == padded[i - n:i] and after[row] == padded[i]
            row += 1


def test_the_net_equals_pytorchs_layers():
    ours = small()
    theirs = torch.nn.Sequential(torch.nn.Embedding(28, 4), torch.nn.Flatten(),
                                 torch.nn.Linear(12, 12), torch.nn.Tanh(), torch.nn.Linear(12, 28))
    with torch.no_grad():
        for p, q in zip(theirs.parameters(), ours.parameters()):
            p.copy_(q.T if q.ndim > 1 and q is not ours.letters else q)
    contexts, after = letter_windows(NAMES, 3)
    torch.testing.assert_close(ours(contexts), theirs(contexts))
    loss = torch.nn.functional.cross_entropy(theirs(contexts), after).item()
    assert bits_per_letter(ours, NAMES) == pytest.approx(loss / math.log(2))


@pytest.mark.parametrize("seed", range(3))
def test_one_letter_of_context_learns_what_counting_finds(seed):
    model = small(seed, n_letters=1, d_hidden=30)
    assert bits_per_letter(model, NAMES) == pytest.approx(math.log2(28), abs=0.2)
    for _ in train_letters(model, NAMES, steps=800, lr=0.5, batch_size=64, seed=seed):
        pass
    best = Bigram.counted(NAMES, smoothing=1e-9).bits_per_letter(NAMES)
    assert best <= bits_per_letter(model, NAMES) < best + 0.1


def test_training_is_the_same_for_the_same_seeds_and_takes_each_step_as_told():
    runs = []
    for seed in (0, 0, 1):
        model = small()
        before = [p.detach().clone() for p in model.parameters()]
        loss = next(train_letters(model, NAMES, steps=1, lr=0.25, batch_size=8, weight_decay=0.1,
                                  seed=seed))
        for p, old in zip(model.parameters(), before):
            torch.testing.assert_close(p.detach(), old - 0.25 * (p.grad + 0.1 * old))
        runs.append(loss)
    assert runs[0] == runs[1] != runs[2]
    losses = list(train_letters(small(), NAMES, steps=20, lr=0.1))
    assert len(losses) == 20 and losses == list(train_letters(small(), NAMES, steps=20, lr=0.1))


def test_the_three_piles_share_no_name_and_are_cut_by_the_name_alone():
    train, validation, test = three_piles()
    assert not set(train) & set(validation) and not set(train) & set(test)
    assert not set(validation) & set(test) and all(map(is_held_out, test))
    names = names_in_code()
    assert list(names) == sorted(set(names)) and len(names) > len(function_names())
    assert set(function_names()) <= set(train) | set(validation) | set(test)
    tenth = [fingerprint(name) % 10 for name in names]
    assert train == [name for name, n in zip(names, tenth) if n > 1]
    assert three_piles(FIXED) == ([name for name in FIXED if fingerprint(name) % 10 > 1],
                                  validation, test)


def test_the_net_writes_by_its_seed_and_ends():
    model = small()
    write = lambda seed, **more: invent(model, torch.Generator().manual_seed(seed), **more)
    assert write(1) == write(1) and len({write(seed) for seed in range(9)}) > 3
    with torch.no_grad():
        model.b2[0] = -1e9                            # never a dot
    assert len(write(0, longest=7)) == 7


@pytest.mark.parametrize("wrong, message", [
    (lambda: letter_windows(NAMES, 0), "n_letters=0 must be at least 1"),
    (lambda: letter_windows([], 3), "there are no names to learn from"),
    (lambda: letter_windows(["Ab"], 3), "'Ab' has 'A'"),
    (lambda: next(train_letters(small(), NAMES, 5, lr=-1.0)), "lr=-1.0 must be a number above 0"),
    (lambda: next(train_letters(small(), NAMES, 5, lr=math.nan)), "lr=nan must be"),
    (lambda: next(train_letters(small(), NAMES, 0)), "steps=0 and batch_size=128 must be"),
])
def test_a_net_of_letters_refuses_what_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


# ---- recurrent ---------------------------------------------------------------------------------
def reader(kind: str, seed: int = 0) -> Recurrent:
    return Recurrent(kind, d_letter=5, d_hidden=7, rng=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind, theirs", [
    ("rnn", torch.nn.RNN), ("gru", torch.nn.GRU), ("lstm", torch.nn.LSTM)])
@pytest.mark.parametrize("seed", range(3))
def test_each_recurrent_net_equals_pytorchs_in_states_and_slopes(kind, theirs, seed):
    model, layer = reader(kind, seed).double(), theirs(5, 7, batch_first=True).double()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for bias in model.biases:
            bias += torch.randn(bias.shape, generator=rng, dtype=torch.float64)
        first, second = model.biases if kind == "gru" else (*model.biases, None)
        for p, mine in zip(layer.parameters(), (model.w_x.T, model.w_h.T, first, second)):
            p.copy_(torch.zeros_like(p) if mine is None else mine)
    ids = torch.randint(28, (3, 11), generator=rng)
    scores, state = model(ids)
    states, last = layer(model.letters[ids])
    torch.testing.assert_close(scores, states @ model.out)
    pairs = zip(state, last) if kind == "lstm" else [(state, last)]
    for ours, their in pairs:
        torch.testing.assert_close(ours, their[0])
    weigh = torch.randn(scores.shape, generator=rng, dtype=torch.float64)
    mine, = torch.autograd.grad((scores * weigh).sum(), model.w_h)
    other, = torch.autograd.grad((states @ model.out * weigh).sum(), layer.weight_hh_l0)
    torch.testing.assert_close(mine, other.T)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(["rnn", "gru", "lstm"]), st.integers(1, 11), st.integers(0, 99))
def test_reading_in_two_parts_is_reading_at_once(kind, cut, seed):
    model = reader(kind)
    ids = torch.randint(28, (2, 12), generator=torch.Generator().manual_seed(seed))
    whole, end = model(ids)
    first, state = model(ids[:, :cut])
    second, same_end = model(ids[:, cut:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(same_end, end)


def test_the_future_does_not_touch_the_past():
    for kind in Recurrent.GATES:
        model, ids = reader(kind), torch.randint(28, (2, 9))
        changed = ids.clone()
        changed[:, 5:] = (changed[:, 5:] + 1) % 28
        before, after = model(ids)[0], model(changed)[0]
        assert torch.equal(before[:, :5], after[:, :5]) and not torch.equal(before, after)


def test_open_gates_keep_a_cell_and_closed_ones_replace_it():
    x, h, cell = torch.zeros(1, 1), torch.zeros(1, 1), torch.full((1, 1), 5.0)
    w_x, w_h = torch.zeros(1, 4), torch.zeros(1, 4)
    keep = lstm_step(x, (h, cell), w_x, w_h, torch.tensor([-99.0, 99.0, -99.0, 99.0]))
    swap = lstm_step(x, (h, cell), w_x, w_h, torch.tensor([99.0, -99.0, -99.0, 99.0]))
    assert keep[1].item() == 5 and swap[1].item() == -1
    stay = gru_step(x, cell, torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([0, 99.0, 0]),
                    torch.zeros(3))
    assert stay.item() == 5
    assert rnn_step(x, h, torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1)).item() == 0


@given(st.lists(a_name, min_size=1, max_size=6))
def test_rows_hold_every_letter_once_and_padding_costs_nothing(names):
    read, after = name_rows(names)
    assert int((after >= 0).sum()) == sum(len(name) + 1 for name in names)
    for name, row, target in zip(names, read, after):
        n, ids = len(name) + 1, letter_ids(name)
        assert row[:n].tolist() == ids[:-1] and target[:n].tolist() == ids[1:]
        assert (target[n:] == -100).all()
    model = reader("rnn")
    alone = [row_loss(model(r)[0], a).item() * (len(name) + 1)
             for name in names for r, a in [name_rows([name])]]
    total = sum(len(name) + 1 for name in names)
    assert row_loss(model(read)[0], after).item() == pytest.approx(sum(alone) / total, rel=1e-4)


@pytest.mark.parametrize("kind", Recurrent.GATES)
def test_training_on_names_learns_them_and_follows_its_seed(kind):
    runs = []
    for seed in (0, 0, 1):
        model = reader(kind)
        before = name_bits(model, NAMES)
        losses = list(train_names(model, NAMES, 60, lr=0.02, batch_size=8, seed=seed))
        assert len(losses) == 60 and name_bits(model, NAMES) < before - 1
        runs.append(losses)
    assert runs[0] == runs[1] != runs[2]


def test_bits_of_names_are_the_mean_over_every_letter():
    model = reader("gru")
    total = sum(name_bits(model, [name]) * (len(name) + 1) for name in NAMES)
    assert name_bits(model, NAMES) == pytest.approx(
        total / sum(len(name) + 1 for name in NAMES), rel=1e-4)


def test_a_recurrent_net_writes_by_its_seed_and_ends():
    model = reader("gru")
    write = lambda seed, **more: invent_name(model, torch.Generator().manual_seed(seed), **more)
    assert write(1) == write(1) and len({write(seed) for seed in range(9)}) > 3
    assert all(len(write(seed, longest=3)) <= 3 for seed in range(9))


@pytest.mark.parametrize("wrong, message", [
    (lambda: Recurrent("elman"), "kind='elman' is unknown; choose one of rnn, gru, lstm"),
    (lambda: name_rows([]), "there are no names; give at least one"),
    (lambda: next(train_names(reader("rnn"), NAMES, 0)), "steps=0 and batch_size=64 must be"),
    (lambda: next(train_names(reader("rnn"), NAMES, 5, lr=math.inf)), "lr=inf must be"),
    (lambda: name_rows(["a b"]), "'a b' has ' '")])
def test_a_recurrent_net_refuses_what_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
