"Laws of generation: batches, guesses, beams and grammars change nothing but what they say."
import itertools
import json
import math
import re
from dataclasses import replace

import pytest
import torch
import transformers
from conftest import near

from minigpt.beam_search import beam_search
from minigpt.cache import KVCache
from minigpt.checkpoint import load_model
from minigpt.config import ModelConfig
from minigpt.constrained import fits_regex, fits_schema, is_one_of
from minigpt.inference import Writing, complete, complete_batch, generate_ids, write
from minigpt.model import GPT
from minigpt.sampling import (
    banned,
    frequency_penalty,
    logit_bias,
    presence_penalty,
    repetition_penalty,
    sample,
    temperature,
    top_k,
    top_p,
    typical,
)
from minigpt.speculative import Tally, accept, speculative_generate

SMALL = ModelConfig(vocab_size=8, context_length=16, n_layer=2, n_head=2, n_kv_head=1, d_model=16,
                    d_ff=24)


def loud_model(seed=0, **changes):
    "A small model whose distributions are far from even."
    torch.manual_seed(seed)
    model = GPT(replace(SMALL, **changes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.4 * torch.randn_like(p))
    return model


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def shipped():
    return load_model()


# Batches ------------------------------------------------------------------------------------------

PROMPTS = ["Once upon a time", "Q: Where does Abel live?\nA:", "", "One snowy morning in January"]


def test_a_text_does_not_depend_on_its_batch(shipped):
    rules = [repetition_penalty(1.1), top_p(0.95), temperature(0.9)]
    alone = ["".join(complete(*shipped, p, 40, rules, seed=i, stop=["\n"]))
             for i, p in enumerate(PROMPTS)]
    together = complete_batch(*shipped, PROMPTS, 40, rules, range(4), stop=["\n"])
    assert [c.text for c in together] == alone
    backwards = complete_batch(*shipped, PROMPTS[::-1], 40, rules, range(3, -1, -1), stop=["\n"])
    assert [c.text for c in backwards] == alone[::-1]


def test_log_probabilities_are_the_model_s_own(shipped):
    model, tokenizer = shipped
    for done in complete_batch(model, tokenizer, PROMPTS, 12, [temperature(0.5), top_k(3)]):
        assert len(done.logprobs) == len(done.ids)
    prompt = tokenizer.prompt_ids(PROMPTS[0])
    first = complete_batch(model, tokenizer, PROMPTS[:1], 12, [temperature(0.5), top_k(3)])[0]
    ids = torch.tensor([[*prompt, *first.ids]])
    with torch.no_grad():
        logprobs = model(ids)[0].log_softmax(-1)[len(prompt) - 1:-1]
    expected = logprobs.gather(1, torch.tensor(first.ids)[:, None]).squeeze(1)
    torch.testing.assert_close(torch.tensor(first.logprobs), expected, atol=1e-4, rtol=1e-4)


def test_a_text_ends_before_its_stop_token_and_its_stop_string(shipped):
    model, tokenizer = shipped
    prompt, greedy = PROMPTS[1], [temperature(0)]
    ids = list(generate_ids(model, tokenizer.prompt_ids(prompt), 12, greedy))
    whole = "".join(complete(model, tokenizer, prompt, 12, greedy))
    for i in dict.fromkeys(ids):
        assert list(generate_ids(model, tokenizer.prompt_ids(prompt), 12, greedy, stop_ids=[i])) \
            == ids[:ids.index(i)]
    for a, b in itertools.product(range(1, 12, 3), (1, 4, 9)):
        stop = whole[a:a + b]
        assert "".join(complete(model, tokenizer, prompt, 12, greedy, stop=["no", stop])) \
            == whole[:whole.index(stop)]


def test_log_probabilities_are_the_model_s_own_under_a_grammar():
    model, allowed = loud_model(), torch.tensor([False, True, True] + [False] * 5)
    text = Writing([1, 2, 3], seeded(), 3, logprobs=[])
    for _ in write(model, [text], 6, [temperature(0.5)], allowed=lambda ids: allowed):
        pass
    with torch.no_grad():
        own = model(torch.tensor([text.ids]))[0].log_softmax(-1)[2:-1]
    assert set(text.new) <= {1, 2}
    torch.testing.assert_close(torch.tensor(text.logprobs),
                               own.gather(1, torch.tensor(text.new)[:, None])[:, 0])


def test_penalties_count_no_marker():
    "A rule sees the texts with -1 where a marker stands, and before a shorter one."
    seen, model = [], loud_model()
    texts = [Writing([0, 3, 4], seeded(), 3), Writing([0, 5], seeded(), 2)]
    look = lambda logits, past: seen.append(past.clone()) or logits
    for _ in write(model, texts, 2, [look, banned([0])], [0]):
        pass
    assert seen[0].tolist() == [[-1, 3, 4], [-1, -1, 5]]
    assert seen[1][:, -1].tolist() == [text.new[0] for text in texts]


def test_finish_says_why(shipped):
    ends = complete_batch(*shipped, [PROMPTS[1], PROMPTS[0]], 20, [temperature(0)], stop=["\n"])
    assert [c.finish for c in ends] == ["stop", "length"]
    assert ends[0].text == " Abel lives on Bridge Road." and len(ends[1].ids) == 20
    limit = shipped[0].cfg.context_length
    prompt = "a b " * (limit // 2 - 4)
    endless = [temperature(0), banned([shipped[1].end_of_text])]
    full = complete_batch(*shipped, [prompt, "Tom"], 40, endless)
    assert full[0].finish == "context" and full[1].finish == "length"


def batch_ids(model, prompts, n, overflow):
    texts = [Writing(list(p), seeded(i), len(p)) for i, p in enumerate(prompts)]
    for _ in write(model, texts, n, [temperature(1.0)], (), overflow):
        pass
    return [text.new for text in texts]


@pytest.mark.parametrize("overflow", ["stop", "slide"])
@pytest.mark.parametrize("changes", [{}, {"position": "learned"}, {"position": "alibi"},
                                     {"window": 5}, {"attention": "latent", "d_latent": 8,
                                                     "d_rope": 4}, {"n_expert": 3}], ids=str)
def test_batches_equal_single_texts_beyond_the_end_of_the_context(overflow, changes):
    model = loud_model(**changes)
    prompts = [[1], [2] * 14, [3, 4, 5, 6, 7], [5] * 16, [1, 2]]
    alone = [list(generate_ids(model, p, 30, [temperature(1.0)], seeded(i), (), overflow))
             for i, p in enumerate(prompts)]
    assert batch_ids(model, prompts, 30, overflow) == alone
    lengths = [30] * 5 if overflow == "slide" else [16, 3, 12, 1, 15]
    assert [len(ids) for ids in alone] == lengths


def test_refuse_refuses_before_it_begins(shipped):
    with pytest.raises(ValueError, match="260 new ones do not fit context_length=256"):
        complete_batch(*shipped, ["Once upon a time there was"], 260, overflow="refuse")
    assert complete_batch(*shipped, ["Once"], 5, overflow="refuse")[0].finish == "length"


@pytest.mark.parametrize("arguments, message", [
    (("one text", 5), "is one text; give a list"),
    ((["a", "b"], 5, (), [1]), "2 prompts and 1 seeds")])
def test_a_batch_that_cannot_be_is_refused(shipped, arguments, message):
    with pytest.raises(ValueError, match=message):
        complete_batch(*shipped, *arguments)


def test_a_cache_keeps_the_rows_that_are_asked_for():
    model, ids = loud_model(), torch.tensor([[1, 2, 3], [4, 5, 6], [7, 1, 2]])
    cache = KVCache(model.cfg, batch_size=3)
    with torch.no_grad():
        model(ids, cache)
        cache.select(torch.tensor([2, 0, 2]))
        more = model(torch.tensor([[3], [3], [3]]), cache)
        whole = model(torch.cat((ids[[2, 0, 2]], torch.full((3, 1), 3)), dim=1))[:, -1:]
    torch.testing.assert_close(more, whole, atol=1e-5, rtol=1e-4)


# Rules --------------------------------------------------------------------------------------------

def test_rules_equal_those_of_transformers():
    from transformers import NoBadWordsLogitsProcessor, TypicalLogitsWarper
    torch.manual_seed(0)
    logits, past = torch.randn(200, 60) * 3, torch.randint(60, (200, 20))
    for p in (0.1, 0.5, 0.9, 0.99):
        torch.testing.assert_close(typical(p)(logits, past),
                                   TypicalLogitsWarper(p)(past, logits.clone()))
    ban = NoBadWordsLogitsProcessor([[3], [17]], eos_token_id=59)
    torch.testing.assert_close(banned([3, 17])(logits, past), ban(past, logits.clone()))
    bias = transformers.SequenceBiasLogitsProcessor({(5,): 2.5, (9,): -1.0})
    torch.testing.assert_close(logit_bias({5: 2.5, 9: -1.0})(logits, past),
                               bias(past, logits.clone()))


def test_penalties_count_each_text_and_not_its_padding():
    logits = torch.zeros(2, 5)
    past = torch.tensor([[-1, -1, 3], [1, 1, 4]])
    assert frequency_penalty(0.5)(logits, past).tolist() == [[0, 0, 0, -0.5, 0],
                                                             [0, -1, 0, 0, -0.5]]
    assert presence_penalty(0.5)(logits, past).tolist() == [[0, 0, 0, -0.5, 0],
                                                            [0, -0.5, 0, 0, -0.5]]
    ones = torch.ones(2, 5)
    assert repetition_penalty(2.0)(ones, past).tolist() == [[1, 1, 1, 0.5, 1], [1, 0.5, 1, 1, 0.5]]
    for rule in (frequency_penalty(1.0), presence_penalty(1.0), repetition_penalty(2.0)):
        assert torch.equal(rule(logits, None), logits)


@pytest.mark.parametrize("make, message", [
    (lambda: typical(0), "typical=0"), (lambda: typical(1.5), "typical=1.5"),
    (lambda: frequency_penalty(math.nan), "frequency_penalty=nan"),
    (lambda: presence_penalty(math.inf), "presence_penalty=inf"),
    (lambda: logit_bias({3: math.inf}), "token 3 is inf"),
    (lambda: logit_bias({-1: 1.0}), "token -1"),
    (lambda: logit_bias({99: 1.0})(torch.zeros(1, 5), None), "names token 99"),
    (lambda: sample(torch.zeros(1, 3), [banned([0, 1, 2])]), "forbid all of them")])
def test_a_rule_that_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_row_draws_from_its_own_source():
    logits = torch.randn(4, 50, generator=seeded(9))
    together = [sample(logits, (), [seeded(i) for i in range(4)])[i].item() for i in range(4)]
    assert together == [sample(logits[i:i + 1], (), [seeded(i)]).item() for i in range(4)]


# Speculation --------------------------------------------------------------------------------------

@pytest.mark.parametrize("k", [1, 3, 7])
def test_greedy_speculation_is_greedy(k):
    model, draft = loud_model(0), loud_model(1)
    for prompt in ([1], [2, 3, 4], [7] * 16):
        expected = list(generate_ids(model, prompt, 30, [temperature(0)]))
        tally = Tally()
        got = list(speculative_generate(model, draft, prompt, 30, k, [temperature(0)], None, (),
                                        tally))
        assert got == expected and tally.accepted <= tally.proposed <= k * tally.rounds
    same = Tally()
    list(speculative_generate(model, model, [1], 12, 3, [temperature(0)], None, (), same))
    assert same.accepted == same.proposed > 0


def chi_square(counts, expected):
    "How far counts are from what is expected, in standard deviations of a chi-square."
    keep = expected > 5
    counts = torch.cat((counts[keep], counts[~keep].sum()[None]))
    expected = torch.cat((expected[keep], expected[~keep].sum()[None]))
    keep = expected > 0
    assert counts[~keep].sum() == 0                    # nothing impossible was drawn
    statistic = ((counts - expected)[keep] ** 2 / expected[keep]).sum().item()
    degrees = keep.sum().item() - 1
    return (statistic - degrees) / math.sqrt(2 * degrees)


@pytest.mark.parametrize("rules", [(), (top_p(0.8), temperature(0.7)), (repetition_penalty(1.5),)],
                         ids=["plain", "top-p", "repetition"])
@torch.no_grad()
def test_speculation_draws_from_the_large_model_s_distribution(rules):
    "The joint distribution of three tokens, against the exact one, and a wrong one for contrast."
    model, draft, n = loud_model(0, n_layer=1), loud_model(1, n_layer=1), 3000
    exact = torch.zeros(8, 8, 8, dtype=torch.float64)
    for a, b in itertools.product(range(8), repeat=2):
        text, chance = [1], 1.0
        rows = []
        for token in (a, b, None):
            row = model(torch.tensor([text]))[0, -1:]
            for rule in rules:
                row = rule(row, torch.tensor([text]))
            rows.append(row.double().softmax(-1)[0])
            if token is not None:
                chance *= rows[-1][token].item()
                text.append(token)
        exact[a, b] = chance * rows[-1]
    rng, counts = seeded(), torch.zeros(8, 8, 8, dtype=torch.float64)
    for _ in range(n):
        counts[tuple(speculative_generate(model, draft, [1], 3, 2, rules, rng))] += 1
    assert chi_square(counts.flatten(), n * exact.flatten()) < 4
    wrong = torch.zeros(8, 8, 8, dtype=torch.float64)
    for _ in range(n // 4):
        wrong[tuple(generate_ids(draft, [1], 3, rules, rng))] += 1
    wrong_expected = n / 4 * exact.flatten()
    possible = wrong_expected > 0
    assert (wrong.flatten()[~possible].sum() > 0
            or chi_square(wrong.flatten(), wrong_expected) > 10)


def test_a_fallen_proposal_is_redrawn_from_what_is_left():
    "p and q do not overlap: every proposal falls, and what comes out is p."
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 0, 0, 0]], dtype=torch.float64)
    q = torch.tensor([[0.0, 0.0, 0.5, 0.5]], dtype=torch.float64)
    rng = seeded()
    drawn = [accept(p, q, [2], rng) for _ in range(2000)]
    assert all(len(d) == 1 and d[0] in (0, 1) for d in drawn)
    assert 900 < sum(d[0] for d in drawn) < 1100


def test_accepted_or_redrawn_a_token_comes_as_often_as_p_says():
    "Where the two overlap: the proposal is drawn from q, and what stands in its place from p."
    p = torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.0, 0, 0, 1]], dtype=torch.float64)
    q = torch.tensor([[0.1, 0.6, 0.2, 0.1]], dtype=torch.float64)
    rng, n = seeded(), 4000
    proposed = torch.multinomial(q[0], n, replacement=True, generator=rng).tolist()
    drawn = [accept(p, q, [token], rng) for token in proposed]
    assert chi_square(torch.tensor([d[0] for d in drawn]).bincount(minlength=4), n * p[0]) < 4
    assert all(d[1:] in ([], [3]) for d in drawn)
    assert near(sum(len(d) == 2 for d in drawn), 0.1 + 0.2 + 0.2 + 0.1, n)       # min(p, q)


def test_speculation_refuses_strangers():
    with pytest.raises(ValueError, match="vocab_size=9"):
        list(speculative_generate(loud_model(), loud_model(vocab_size=9), [1]))
    with pytest.raises(ValueError, match="0 prompt tokens"):
        list(speculative_generate(loud_model(), loud_model(), []))


# Beams --------------------------------------------------------------------------------------------

@torch.no_grad()
def everything(model, prompt, n, stop, length_penalty):
    "Every continuation of at most n tokens, with its score, by exhaustive search."
    found = []
    def walk(ids, total):
        row = model(torch.tensor([[*prompt, *ids]]))[0, -1].double().log_softmax(-1)
        for token, logprob in enumerate(row.tolist()):
            new, value = (*ids, token), total + logprob
            if token == stop or len(new) == n:
                found.append((value / len(new) ** length_penalty, new, value))
            else:
                walk(new, value)
    walk((), 0.0)
    return sorted(found, reverse=True)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0])
def test_a_wide_beam_finds_what_exhaustive_search_finds(length_penalty):
    model = loud_model(vocab_size=5)
    expected = everything(model, [1, 2], 4, 0, length_penalty)
    found = beam_search(model, [1, 2], 4, 5 ** 4, {0}, length_penalty)
    assert len(found) == len(expected)
    for hypothesis, (score, ids, logprob) in zip(found[:50], expected):
        assert hypothesis.ids == ids
        assert hypothesis.score == pytest.approx(score, abs=1e-5)
        assert hypothesis.logprob == pytest.approx(logprob, abs=1e-5)


def test_one_beam_is_greedy():
    for seed in range(5):
        model = loud_model(seed)
        greedy = list(generate_ids(model, [1], 8, [temperature(0)]))
        assert list(beam_search(model, [1], 8, 1)[0].ids) == greedy


def test_beams_equal_those_of_transformers(tmp_path):
    from minigpt.weights import to_huggingface
    model = loud_model(3, vocab_size=30, d_model=32)
    to_huggingface(tmp_path, model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    for prompt, penalty in itertools.product(([1], [4, 9, 20]), (0.0, 1.0, 2.0)):
        out = theirs.generate(torch.tensor([prompt]), max_new_tokens=8, num_beams=4,
                              num_return_sequences=4, do_sample=False, length_penalty=penalty,
                              eos_token_id=None, pad_token_id=0, return_dict_in_generate=True,
                              output_scores=True)
        ours = beam_search(model, prompt, 8, 4, (), penalty)
        assert [list(h.ids) for h in ours] == out.sequences[:, len(prompt):].tolist()
        torch.testing.assert_close(torch.tensor([h.score for h in ours]), out.sequences_scores,
                                   atol=1e-4, rtol=1e-4)


def test_a_search_that_cannot_be_is_refused():
    for arguments, message in ((([1], 4, 0), "n_beams=0"), (([], 4, 2), "0 prompt tokens"),
                               (([1], 40, 2), "40 new ones do not fit context_length=16")):
        with pytest.raises(ValueError, match=message):
            beam_search(loud_model(), *arguments)


# Grammars -----------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "additionalProperties": False, "required": ["name", "age", "pets"],
          "properties": {"name": {"type": "string", "maxLength": 12},
                         "age": {"type": "integer", "minimum": 0, "maximum": 99},
                         "pets": {"type": "array", "maxItems": 2,
                                  "items": {"enum": ["cat", "dog", "owl"]}}}}


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_drawn_parses_and_fits(shipped, seed):
    model, tokenizer = shipped
    rules = [temperature(1.5)]
    text = "".join(complete(model, tokenizer, "Note: ", 120, rules, seed,
                            allowed=fits_schema(tokenizer, SCHEMA)))
    note = json.loads(text)
    assert set(note) == {"name", "age", "pets"} and isinstance(note["name"], str)
    assert 0 <= note["age"] <= 99 and len(note["pets"]) <= 2
    assert set(note["pets"]) <= {"cat", "dog", "owl"}
    pattern = r"[A-Z][a-z]{2,5} has (one|two|three) (cats|owls)\."
    text = "".join(complete(model, tokenizer, "", 60, rules, seed,
                            allowed=fits_regex(tokenizer, pattern)))
    assert re.fullmatch(pattern, text)


def test_a_choice_keeps_the_model_s_chances(shipped):
    "Among whole texts: the chance of a choice is that of its tokens, renormalised at each step."
    model, tokenizer = shipped
    allowed = is_one_of(tokenizer, [" Bridge Road", " Mill Lane", " Barley Street"])
    prompt = "Q: Where does Abel live?\nA: Abel lives on"
    ids = tokenizer.prompt_ids(prompt)
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0, -1]
    mask = allowed([])
    expected = logits.masked_fill(~mask, -torch.inf).softmax(-1)
    torch.testing.assert_close(expected[mask], logits.softmax(-1)[mask]
                               / logits.softmax(-1)[mask].sum(), atol=1e-6, rtol=1e-4)
    drawn = complete_batch(model, tokenizer, [prompt] * 4, 20, [temperature(2.0)], range(4),
                           allowed=allowed)
    assert {c.text for c in drawn} <= {" Bridge Road", " Mill Lane", " Barley Street"}
    assert complete_batch(model, tokenizer, [prompt], 20, [temperature(0)],
                          allowed=allowed)[0].text == " Bridge Road"


def test_a_text_ends_where_its_grammar_does_and_nowhere_before(shipped):
    tokenizer = shipped[1]
    allowed, stops = is_one_of(tokenizer, ["Mill", "Mill Lane"]), sorted(tokenizer.stop_ids)
    for text, may_end in (("", False), ("Mi", False), ("Mill", True), ("Mill La", False),
                          ("Mill Lane", True)):
        mask = allowed(tokenizer.encode(text))
        assert mask[stops].tolist() == [may_end] * len(stops), text
        assert mask.any()


def test_a_grammar_that_cannot_be_is_named(shipped):
    tokenizer = shipped[1]
    with pytest.raises(ValueError, match="the grammar does not work"):
        fits_regex(tokenizer, "(")
    slashed = fits_regex(tokenizer, r'a/b\n"c"')
    open_ids = slashed(tokenizer.encode('a/b\n"c"')).nonzero().flatten().tolist()
    assert open_ids == [tokenizer.end_of_text]
    with pytest.raises(ValueError, match="the grammar does not work"):
        fits_schema(tokenizer, {"type": "nonsense"})
    with pytest.raises(ValueError, match="choices=\\[\\]"):
        is_one_of(tokenizer, [])
    with pytest.raises(ValueError, match="do not fit the grammar"):
        fits_regex(tokenizer, "a+")(tokenizer.encode("b"))
