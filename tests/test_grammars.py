"Grammars and other people's tokenizers: masks as llguidance's adapter has them, texts that fit."
import json
import random
import re

import jsonschema
import llguidance.hf
import pytest
import tokenizers
import torch
import transformers
from test_families import TEXTS, build_tokenizer, byte_level, sentence_piece
from tokenizers import models, pre_tokenizers

from minigpt.config import ModelConfig
from minigpt.constrained import fits_regex, fits_schema, is_one_of
from minigpt.inference import complete
from minigpt.model import GPT
from minigpt.tokenizer import END_OF_TEXT, train_tokenizer
from minigpt.weights import HuggingFaceTokenizer, from_huggingface, to_huggingface

SCHEMA = {"type": "object", "properties": {
    "name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"},
    "likes": {"type": "array", "items": {"enum": ["the cat", "dogs", "¿día?", "日本"]}}},
    "required": ["name", "age"]}
GRAMMARS = {"choice": ("regex", "yes|no| the cat|日本|a\n"), "digits": ("regex", r"[0-9]{2}:\d\d?"),
            "anything": ("regex", r"(?s:.){1,6}"), "words": ("regex", r"( ?the cat)+\."),
            "schema": ("json_schema", SCHEMA)}


def metaspace():
    "As newer files of LLaMA 2 and Mistral say the same: a pre-tokenizer instead of a normalizer."
    spec = json.loads(sentence_piece().to_str())
    spec["normalizer"], spec["post_processor"] = None, None
    engine = tokenizers.Tokenizer.from_str(json.dumps(spec))
    engine.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", "first", split=False)
    return engine


def with_more(engine):
    "Words and markers that somebody added later."
    engine.add_tokens(["the cat", "zz"])
    engine.add_special_tokens(["<tool>", "<tool>x"])
    return engine


def with_gaps(engine):
    "A vocabulary whose ids leave some numbers out."
    spec = json.loads(engine.to_str())
    spec["model"]["vocab"] = {t: i + 7 * (i > 280) for t, i in spec["model"]["vocab"].items()}
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


ENGINES = {
    "GPT-2": byte_level, "LLaMA 2": sentence_piece, "metaspace": metaspace,
    "LLaMA 3": lambda: build_tokenizer("LLaMA 3").backend_tokenizer,
    "Qwen": lambda: build_tokenizer("Qwen 3").backend_tokenizer,
    "GPT-2 with more": lambda: with_more(byte_level()),
    "LLaMA 2 with more": lambda: with_more(sentence_piece()),
    "GPT-2 with gaps": lambda: with_gaps(byte_level()),
}


@pytest.fixture(params=ENGINES)
def pair(request, tmp_path):
    "A tokenizer as we open it, and as the grammar library's own adapter does."
    engine = ENGINES[request.param]()
    engine.save(str(tmp_path / "tokenizer.json"))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=engine, eos_token=END_OF_TEXT)
    return HuggingFaceTokenizer(tmp_path / "tokenizer.json", [2]), theirs


def bits(matcher):
    mask = torch.frombuffer(bytearray(matcher.compute_bitmask()), dtype=torch.uint8)
    return ((mask[:, None] >> torch.arange(8)) & 1).flatten().bool()


@pytest.mark.parametrize("name", GRAMMARS)
def test_masks_equal_those_of_the_library_s_own_adapter(pair, name):
    ours, theirs = pair
    kind, grammar = GRAMMARS[name]
    maker = {"regex": fits_regex, "json_schema": fits_schema}[kind]
    adapter = llguidance.hf.from_tokenizer(theirs)
    if kind == "regex":
        text = llguidance.LLMatcher.grammar_from_regex(grammar)
    else:
        text = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(grammar), overrides={
            "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "})
    constraint, rng = maker(ours, grammar), random.Random(0)
    n = adapter.vocab_size                     # where ids have gaps, it leaves out the last
    assert n == len(constraint([])) or n == ours.vocab_size < ours.n_ids
    for _ in range(5):
        matcher, ids = llguidance.LLMatcher(adapter, text), []
        for _ in range(20):
            mask, expected = constraint(ids), bits(matcher)
            assert torch.equal(mask[:n], expected[:n]), ids
            allowed = [i for i in mask[:n].nonzero().flatten().tolist() if i not in ours.stop_ids]
            if not allowed:
                break
            ids.append(rng.choice(allowed))
            assert matcher.consume_token(ids[-1])


ODD = ["yes", "no", " yes", "the cat", "a.b*c", "#- &~", "línea\n2", "日本", "\\d", "🐕", "'\"",
       "/x/"]


def test_the_tokens_of_a_choice_fit(pair):
    tokenizer = pair[0]
    allowed = is_one_of(tokenizer, ODD)
    for choice in ODD:
        ids = tokenizer.encode(choice)
        if tokenizer.decode(ids) != choice:                # its spelling of signs is its own
            continue
        for n in range(len(ids)):
            assert allowed(ids[:n]).any()
        assert allowed(ids)[2], choice
    for other in ("maybe", "yess", "no no", "nöt"):
        with pytest.raises(ValueError, match="do not fit the grammar"):
            allowed(tokenizer.encode(other))


def drawn(tokenizer, constraint, rng, most=60):
    "A text drawn at random among all that may follow; None if it does not end."
    ids = []
    for _ in range(most):
        allowed = constraint(ids).nonzero().flatten().tolist()
        token = rng.choice(allowed)
        if token in tokenizer.stop_ids or set(allowed) & tokenizer.stop_ids and rng.random() < 0.3:
            return tokenizer.decode_bytes(ids).decode()
        ids.append(token)
    return None


def test_drawn_choices_are_choices(pair):
    rng, tokenizer = random.Random(0), pair[0]
    constraint = is_one_of(tokenizer, ODD)
    assert {drawn(tokenizer, constraint, rng) for _ in range(60)} <= {*ODD}


def random_schema(rng, depth=2):
    "A schema of the kinds that people write."
    low = rng.randint(-3, 3)
    simple = [
        {"type": "string", "minLength": 1, "maxLength": 4},
        {"type": "string", "pattern": "^[ab]{2}$"},
        {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 30)},
        {"type": "number", "exclusiveMinimum": low, "maximum": low + 2.5}, {"type": "boolean"},
        {"type": "null"}, {"enum": [1, "two", None, [3], {"four": 4.5}]}, {"const": {"a": ["b"]}},
        {"type": "integer", "minimum": 0, "maximum": 40, "multipleOf": rng.randint(1, 9)},
        {"type": "string", "format": rng.choice(["date", "time", "ipv4", "uuid"])},
        {"type": ["boolean", "null"]}]
    if depth == 0 or rng.random() < 0.4:
        return rng.choice(simple)
    inner = [random_schema(rng, depth - 1) for _ in range(3)]
    return rng.choice([
        {"type": "array", "items": inner[0], "minItems": 1, "maxItems": 3},
        {"type": "array", "prefixItems": inner[:2], "items": False, "minItems": 2},
        {"type": "object", "properties": dict(zip("abc", inner)), "required": ["a", "c"],
         "additionalProperties": False},
        {"type": "object", "additionalProperties": inner[0], "minProperties": 1,
         "maxProperties": 2},
        {"anyOf": inner}, {"allOf": [inner[0]]},
        {"$defs": {"x": inner[0]}, "type": "array", "items": {"$ref": "#/$defs/x"}, "maxItems": 2}])


@pytest.mark.parametrize("name", ["GPT-2", "LLaMA 2", "ours"])
def test_finished_texts_parse_and_fit_their_schema(name, tokenizer, tmp_path):
    if name != "ours":
        ENGINES[name]().save(str(tmp_path / "tokenizer.json"))
        tokenizer = HuggingFaceTokenizer(tmp_path / "tokenizer.json", [2])
    rng, finished = random.Random(0), 0
    for _ in range(80):
        schema = random_schema(rng)
        try:
            constraint = fits_schema(tokenizer, schema)
        except ValueError as e:
            assert "\n" not in str(e)
            continue
        for _ in range(3):
            if (text := drawn(tokenizer, constraint, rng)) is not None:
                jsonschema.validate(json.loads(text), schema)
                finished += 1
    assert finished > 60


@pytest.mark.parametrize("pattern, reason", [
    ("(", "unclosed group"), ("a(?=b)", "look-around"), (r"(a)\1", "backreferences"),
    ("[z-a]", "invalid character class range"), ("a{3,2}", "invalid repetition")])
def test_a_refused_pattern_keeps_its_reason(tokenizer, pattern, reason):
    for make in (lambda: fits_regex(tokenizer, pattern),
                 lambda: fits_schema(tokenizer, {"type": "string", "pattern": pattern})):
        with pytest.raises(ValueError, match=reason) as error:
            make()
        assert "\n" not in str(error.value)


# --- ids of other tokenizers

def test_ids_equal_those_of_the_file_on_fuzzed_text(pair, tmp_path):
    ours, theirs = pair
    engine, rng = theirs.backend_tokenizer, random.Random(0)
    pieces = [*" ".join(TEXTS).split(" "), END_OF_TEXT, "<s>", "<tool>", "x", " ", "  ", "\n",
              "\x00"]
    for _ in range(300):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 12)))
        for allow in (True, False):
            engine.encode_special_tokens = not allow
            assert ours.encode(text, allow) == engine.encode(text, add_special_tokens=False).ids


def test_two_surrogates_are_one_letter_there_too(pair):
    ours = pair[0]
    assert ours.encode("a \ud83d\udc15") == ours.encode("a 🐕")
    assert ours.prompt_ids("a \ud83d\udc15") == ours.prompt_ids("a 🐕")
    assert ours.encode("a \ud83d") == ours.encode("a ?")


def test_a_file_that_draws_lots_is_refused(tmp_path):
    engine = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], dropout=0.5))
    engine.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="dropout"):
        HuggingFaceTokenizer(tmp_path / "tokenizer.json")


# --- a tokenizer with more tokens than the model has rows

@pytest.fixture
def small(tmp_path):
    "A model that has no row for the words added later, nor for the last of the others."
    ENGINES["GPT-2 with more"]().save(str(tmp_path / "tokenizer.json"))
    before = len(byte_level().get_vocab()) - 1
    torch.manual_seed(0)
    to_huggingface(tmp_path, GPT(ModelConfig(vocab_size=before, context_length=64, n_layer=1,
                                             d_model=16, n_head=2, d_ff=16)))
    return tmp_path


def end_at(folder, i):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": i}))
    return from_huggingface(folder)


def test_a_token_without_a_row_is_named(small):
    model, tokenizer = end_at(small, 2)
    for ask in (lambda: tokenizer.encode("I zz"), lambda: tokenizer.prompt_ids("I zz"),
                lambda: list(complete(model, tokenizer, "I zz", 3))):
        with pytest.raises(ValueError, match="the token 'zz' has the id .* the model knows only"):
            ask()
    assert isinstance("".join(complete(model, tokenizer, "The", 5)), str)
    allowed = is_one_of(tokenizer, ["zz", "dog"])
    text = "".join(complete(model, tokenizer, "The", 40, allowed=allowed))
    assert text in ("zz", "dog")


def test_an_end_without_a_row_is_named(small):
    model, tokenizer = end_at(small, model_end := 10_000)
    assert tokenizer.stop_ids == {model_end}
    with pytest.raises(ValueError, match="could never finish"):
        is_one_of(tokenizer, ["a"])
    assert len(list(complete(model, tokenizer, "The", 5))) <= 5


def test_our_own_tokenizer_with_more_tokens_than_rows_is_read_the_same_way(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 300)
    to_huggingface(tmp_path, GPT(ModelConfig(vocab_size=299, n_layer=1, d_model=16, n_head=2,
                                             d_ff=16)), tokenizer)
    opened = from_huggingface(tmp_path)[1]
    assert opened.encode("The cat") == tokenizer.encode("The cat")
    with pytest.raises(ValueError, match=re.escape(repr(END_OF_TEXT))):
        opened.encode(END_OF_TEXT, allow_special=True)
