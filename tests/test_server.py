"Laws of the server: OpenAI's own client finds all that it knows, and each answer is `complete`'s."
import asyncio
import base64
import hmac
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from conftest import refused

import minigpt
from minigpt import generate, load
from minigpt.agent import Agent
from minigpt.chat import Chat, add_chat_tokens
from minigpt.inference import complete, complete_batch
from minigpt.server import Gate, Refused, Settings, is_local, read_keys, running_server
from minigpt.tools import Tool, Toolbox

openai = pytest.importorskip("openai", reason="needs the package openai")
ROOT = Path(minigpt.__file__).parents[1]
PATIENCE = 300      # seconds, against a hang
posix = pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGTERM")


@contextmanager
def served(*argv, **environment):
    "`minigpt serve` in a process of its own: it, its address, and the lines of its log."
    process = subprocess.Popen(
        [sys.executable, "-m", "minigpt", "serve", *map(str, argv), "--port", "0"], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment)
    lines, said = [], []
    readers = [threading.Thread(target=lambda s=stream, t=to: t.extend(iter(s.readline, "")),
                                daemon=True)
               for stream, to in ((process.stdout, lines), (process.stderr, said))]
    readers[0].start()
    watch = threading.Timer(PATIENCE, process.kill)
    watch.start()
    try:
        first = ""
        while " at http" not in first:
            first = process.stderr.readline()
            assert first, "the server ended before it served"
            said.append(first)
        readers[1].start()
        process.said, process.lines = said, lines
        yield process, re.search(r"http://\S+(?=;)", first)[0], lines
    finally:
        watch.cancel()
        if process.poll() is None:
            process.kill()
        process.wait()
        for reader in readers:
            reader.join()
        process.stdout.close()
        process.stderr.close()


@pytest.fixture(scope="module")
def models():
    return {name: load(name) for name in ("tinytown", "chat", "agent")}


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    "A server of the agent, with a key."
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text("# mine\na-key-for-tests   # and yours\n\nanother-key-for-tests\n")
    with served("agent", "--api-key-file", keys) as server:
        yield server


@pytest.fixture(scope="module")
def plain():
    "A server of the model that only goes on with texts."
    with served("tinytown") as server:
        yield server


def client(server, key="a-key-for-tests", **more):
    return openai.OpenAI(base_url=f"{server[1]}/v1", api_key=key, max_retries=0, timeout=PATIENCE,
                         **more)


@pytest.fixture(scope="module")
def ask(agent):
    with client(agent) as found:
        yield found


@pytest.fixture(scope="module")
def go_on(plain):
    with client(plain) as found:
        yield found


def user(text):
    return [{"role": "user", "content": text}]


def chat(ask, text="Where does Abel live?", **more):
    messages = user(text) if isinstance(text, str) else text
    return ask.chat.completions.create(model="agent", messages=messages,
                                       **{"temperature": 0, **more})


def raw(server, method, path, body=None, key="a-key-for-tests", **headers):
    "Status, headers and text of an answer, without a client that knows the API."
    line = http.client.HTTPConnection(server[1].removeprefix("http://"), timeout=PATIENCE)
    data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    kind = {} if data is None else {"content-type": "application/json"}
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    line.request(method, path, data, {"authorization": f"Bearer {key}", **kind, **given})
    answer = line.getresponse()
    text = answer.read().decode()
    line.close()
    return answer.status, answer.headers, text


# --- completions

@pytest.mark.parametrize("knobs, rules", [
    ({"temperature": 0}, {"temperature": 0}), ({"seed": 7}, {"seed": 7}),
    ({"seed": -3, "temperature": 0.5, "top_p": 0.9}, {"seed": -3, "temperature": 0.5,
                                                      "top_p": 0.9}),
    ({"seed": 1, "extra_body": {"top_k": 5, "min_p": 0.1}}, {"seed": 1, "top_k": 5, "min_p": 0.1}),
    ({"seed": 2, "stop": ["the", "."]}, {"seed": 2, "stop": ["the", "."]}),
    ({"seed": 2, "stop": "a"}, {"seed": 2, "stop": ["a"]})], ids=str)
def test_a_request_and_a_call_with_one_seed_say_the_same(go_on, models, knobs, rules):
    said = go_on.completions.create(model="tinytown", prompt="Once upon a time", max_tokens=30,
                                    **knobs)
    assert said.choices[0].text == generate(*models["tinytown"], "Once upon a time", max_tokens=30,
                                            **rules)


def test_penalties_and_biases_are_those_of_the_library(go_on, models):
    from minigpt import sampling
    model, tokenizer = models["tinytown"]
    bias = {tokenizer.encode(" time")[0]: -100.0, tokenizer.encode(" the")[0]: 3.0}
    said = go_on.completions.create(
        model="tinytown", prompt="Once upon a time", max_tokens=30, seed=5, presence_penalty=0.5,
        frequency_penalty=-0.25, logit_bias={str(i): b for i, b in bias.items()},
        extra_body={"repetition_penalty": 1.2})
    rules = [sampling.repetition_penalty(1.2), sampling.frequency_penalty(-0.25),
             sampling.presence_penalty(0.5), sampling.logit_bias(bias)]
    expected = "".join(complete(model, tokenizer, "Once upon a time", 30, rules, 5))
    assert said.choices[0].text == expected and " time" not in expected


def test_choices_have_the_next_seeds_and_each_prompt_the_same(go_on, models):
    prompts = ["Once upon a time", "A baker"]
    said = go_on.completions.create(model="tinytown", prompt=prompts, n=3, seed=4, max_tokens=6)
    expected = [complete_batch(*models["tinytown"], [p], 6, seeds=4 + i)[0]
                for p in prompts for i in range(3)]
    assert [c.text for c in said.choices] == [c.text for c in expected]
    assert [c.index for c in said.choices] == list(range(6))
    assert said.usage.completion_tokens == sum(len(c.ids) for c in expected)
    _, tokenizer = models["tinytown"]
    assert said.usage.prompt_tokens == sum(len(tokenizer.prompt_ids(p)) for p in prompts)


@pytest.mark.parametrize("shape", ["text", "ids", "texts", "lists"])
def test_a_prompt_is_a_text_or_ids_or_a_list_of_either(go_on, models, shape):
    _, tokenizer = models["tinytown"]
    ids = tokenizer.prompt_ids("Once upon a time")
    prompt = {"text": "Once upon a time", "ids": ids, "texts": ["Once upon a time"] * 2,
              "lists": [ids, ids]}[shape]
    said = go_on.completions.create(model="tinytown", prompt=prompt, temperature=0, max_tokens=8)
    expected = generate(*models["tinytown"], "Once upon a time", temperature=0, max_tokens=8)
    assert [c.text for c in said.choices] == [expected] * (2 if shape in ("texts", "lists") else 1)


def test_a_stream_says_what_the_whole_answer_says(go_on):
    knobs = dict(model="tinytown", prompt=["Once upon", "Two"], seed=3, n=2, max_tokens=20,
                 logprobs=2, stop=["and"])
    whole = go_on.completions.create(**knobs)
    parts = list(go_on.completions.create(**knobs, stream=True,
                                          stream_options={"include_usage": True}))
    *parts, last = parts
    assert last.choices == [] and last.usage == whole.usage
    for choice in whole.choices:
        mine = [c for part in parts for c in part.choices if c.index == choice.index]
        assert "".join(c.text for c in mine) == choice.text
        assert [c.finish_reason for c in mine] == [None] * (len(mine) - 1) + [choice.finish_reason]
        for field in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
            found = [x for c in mine if c.logprobs for x in getattr(c.logprobs, field)]
            assert found == getattr(choice.logprobs, field)


def test_logprobs_are_those_of_the_library_and_offsets_point_at_their_tokens(go_on, models):
    model, tokenizer = models["tinytown"]
    choice = go_on.completions.create(model="tinytown", prompt="A", seed=1, logprobs=3,
                                      max_tokens=20, temperature=1.3).choices[0]
    from minigpt import sampling
    expected = complete_batch(model, tokenizer, ["A"], 20, [sampling.temperature(1.3)], 1)[0]
    assert choice.text == expected.text
    assert choice.logprobs.token_logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    ids = [*tokenizer.prompt_ids("A"), *expected.ids]
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0].log_softmax(-1)
    n = len(ids) - len(expected.ids)
    for k, (token, at, top) in enumerate(zip(choice.logprobs.tokens, choice.logprobs.text_offset,
                                             choice.logprobs.top_logprobs)):
        assert choice.text[at:at + len(token)] == token == tokenizer.decode([expected.ids[k]])
        best = logits[n - 1 + k].topk(3)
        assert list(top) == [tokenizer.decode([i]) for i in best.indices]
        assert list(top.values()) == pytest.approx(best.values.tolist(), abs=1e-4)


def test_echo_gives_the_prompt_back_and_its_chances(go_on, models):
    model, tokenizer = models["tinytown"]
    for most in (0, 4):
        choice = go_on.completions.create(model="tinytown", prompt="Once upon a time", echo=True,
                                          logprobs=1, max_tokens=most, temperature=0).choices[0]
        assert choice.text.startswith("Once upon a time") and choice.finish_reason == "length"
        assert "".join(choice.logprobs.tokens) == choice.text
        assert choice.logprobs.text_offset[:2] == [0, 4]
    ids = tokenizer.prompt_ids("Once upon a time")
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0].log_softmax(-1)
    right = [logits[k, i].item() for k, i in enumerate(ids[1:])]
    assert choice.logprobs.token_logprobs[:len(right)] == pytest.approx(right, abs=1e-4)
    given = go_on.completions.create(model="tinytown", prompt=ids[1:], echo=True, logprobs=0,
                                     max_tokens=0).choices[0]
    assert given.text == "Once upon a time" and given.logprobs.token_logprobs[0] is None


def test_half_a_letter_is_shown_by_its_bytes(go_on, models):
    _, tokenizer = models["tinytown"]
    half = tokenizer.encode("é")[0]
    assert tokenizer.decode_bytes([half]) == b"\xc3"
    choice = go_on.completions.create(model="tinytown", prompt="A", max_tokens=2, logprobs=1,
                                      logit_bias={str(half): 100}).choices[0]
    assert choice.logprobs.tokens == ["bytes:\\xc3"] * 2 and choice.text == "\ufffd\ufffd"


# --- chat

def test_an_answer_is_what_chat_says(ask, models):
    talk = Chat(*models["agent"])
    turns = []
    for question in ("Where does Abel live?", "And his best friend?", "What is 2 + 2?"):
        turns += user(question)
        said = chat(ask, turns).choices[0]
        assert said.message.content == "".join(talk.say(question))
        assert said.finish_reason == "stop" and said.message.role == "assistant"
        turns.append(said.message)                       # as the client holds it, with all fields


def test_a_chat_streams_as_it_answers(ask):
    knobs = dict(temperature=1.0, seed=9, n=2, logprobs=True, top_logprobs=2)
    whole = chat(ask, "Tell me a story.", max_completion_tokens=30, **knobs)
    parts = list(chat(ask, "Tell me a story.", max_tokens=30, stream=True,
                      stream_options={"include_usage": True}, **knobs))
    assert parts[-1].choices == [] and parts[-1].usage.completion_tokens == 60
    assert parts[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    for choice in whole.choices:
        mine = [c for part in parts[:-1] for c in part.choices if c.index == choice.index]
        assert mine[0].delta.role == "assistant" and not mine[0].delta.content
        assert "".join(c.delta.content or "" for c in mine) == choice.message.content
        assert mine[-1].finish_reason == choice.finish_reason == "length"
        assert [x for c in mine if c.logprobs for x in c.logprobs.content] == \
            choice.logprobs.content
        assert all(len(x.top_logprobs) == 2 for x in choice.logprobs.content)
        raw_text = b"".join(bytes(x.bytes) for x in choice.logprobs.content).decode()
        assert raw_text.removeprefix(" ") == choice.message.content


def test_the_async_client_asks_many_at_once(agent, models):
    "At temperature 0: in other company sums are rounded in another way, and chance might notice."
    questions = [f"Where does {name} live?" for name in ("Abel", "Rita", "Maya", "Tom")] + [
        f"What is {n} + {n + 1}?" for n in range(4)]

    async def many():
        async with openai.AsyncOpenAI(base_url=f"{agent[1]}/v1", api_key="a-key-for-tests",
                                      timeout=PATIENCE) as found:
            async def one(question):
                stream = await found.chat.completions.create(
                    model="agent", messages=user(question), temperature=0, stream=True)
                return "".join([part.choices[0].delta.content or "" async for part in stream])
            return await asyncio.gather(*map(one, questions))
    said = asyncio.run(many())
    assert said == ["".join(Chat(*models["agent"]).say(question)) for question in questions]
    assert len(set(said)) == len(questions)


def test_a_prompt_that_was_read_before_is_counted_as_cached(ask):
    turns = user("Tell me a story about a shy miller and a brave baker, who live in the town.")
    first, again = (chat(ask, turns, max_tokens=2).usage for _ in range(2))
    assert again.prompt_tokens == first.prompt_tokens
    assert 0 < again.prompt_tokens_details.cached_tokens < again.prompt_tokens


def test_system_and_developer_and_parts_are_read(ask, agent):
    told = [{"role": "developer", "content": "Be brief."},
            {"role": "user", "name": "ann", "content": [{"type": "text", "text": "Where does "},
                                                        {"type": "text", "text": "Abel live?"}]}]
    same = [{"role": "system", "content": "Be brief."}, *user("Where does Abel live?")]
    counts = [json.loads(raw(agent, "POST", "/tokenize", {"messages": m})[2]) for m in (told, same)]
    assert counts[0] == counts[1] and counts[0]["count"] == len(counts[0]["tokens"])
    assert chat(ask, told).choices[0].message.content


SCHEMA = {"type": "object", "additionalProperties": False, "required": ["name", "age"],
          "properties": {"name": {"type": "string", "maxLength": 12},
                         "age": {"type": "integer", "minimum": 0, "maximum": 120}}}


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_fits_its_schema(ask, seed):
    from jsonschema import validate
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    said = chat(ask, "Who is Abel?", temperature=1.5, seed=seed, response_format=form).choices[0]
    validate(json.loads(said.message.content), SCHEMA)
    assert said.finish_reason == "stop"


def test_json_object_is_an_object(ask):
    said = chat(ask, "Who is Abel?", seed=1, response_format={"type": "json_object"},
                max_tokens=200)
    if said.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(said.choices[0].message.content), dict)
    else:
        assert said.choices[0].message.content.startswith("{")


# --- tools

def calculate(expression):
    from minigpt.tools import calculate
    return calculate(expression)


TOOLS = [Tool("calculate", "Work a sum out.", {"type": "object", "properties": {
    "expression": {"type": "string"}}, "required": ["expression"]}, calculate),
    Tool("clock", "The time.", {"type": "object", "properties": {}}, lambda: "It is noon.")]
DEFINITIONS = [tool.definition() for tool in TOOLS]


def test_a_client_with_tools_makes_the_run_that_our_agent_makes(ask, models):
    question = "What is 17 * 23?"
    run = Agent(*models["agent"], Toolbox(TOOLS)).run(user(question))
    turns = user(question)
    for _ in range(5):
        said = chat(ask, turns, tools=DEFINITIONS, max_tokens=120).choices[0]
        turns.append(said.message)
        if said.finish_reason != "tool_calls":
            break
        [call] = said.message.tool_calls
        assert call.function.name == "calculate"
        result = calculate(**json.loads(call.function.arguments))
        turns.append({"role": "tool", "tool_call_id": call.id, "content": result})
    assert run.messages[1:2] == user(question) and len(turns) == len(run.messages) - 1
    assert turns[1].tool_calls[0].function.arguments == \
        run.messages[2]["tool_calls"][0]["function"]["arguments"]
    assert turns[-1].content == run.messages[-1]["content"] and "391" in turns[-1].content


def test_a_streamed_call_is_the_same_call(ask):
    whole = chat(ask, "What is 17 * 23?", tools=DEFINITIONS).choices[0]
    with ask.chat.completions.stream(model="agent", messages=user("What is 17 * 23?"),
                                     temperature=0, tools=DEFINITIONS) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == whole.finish_reason == "tool_calls"
    assert [c.model_dump(exclude={"function": {"parsed_arguments"}, "index": True})
            for c in streamed.message.tool_calls] == [
        c.model_dump() for c in whole.message.tool_calls]


@pytest.mark.parametrize("choice, name", [
    ("required", None), ({"type": "function", "function": {"name": "clock"}}, "clock"),
    ({"type": "function", "function": {"name": "calculate"}}, "calculate")], ids=str)
@pytest.mark.parametrize("model", ["agent", "chat"])
def test_a_call_can_be_demanded_of_any_model_that_chats(ask, models, choice, name, model):
    with running_server(*models["chat"], name="chat") as url, \
            openai.OpenAI(base_url=f"{url}/v1", api_key="none") as other:
        said = (ask if model == "agent" else other).chat.completions.create(
            model=model, messages=user("Good morning!"), tools=DEFINITIONS, tool_choice=choice,
            temperature=0, max_tokens=150).choices[0]
    if said.finish_reason == "length":                   # an endless expression: no call, but text
        assert said.message.content and not said.message.tool_calls and name != "clock"
        return
    [call] = said.message.tool_calls
    assert said.finish_reason == "tool_calls" and said.message.content is None
    assert call.function.name == name or name is None
    assert isinstance(json.loads(call.function.arguments), dict)


def test_no_call_comes_where_none_may(ask, models):
    said = chat(ask, "What is 17 * 23?", tools=DEFINITIONS, tool_choice="none").choices[0]
    assert said.message.tool_calls is None and said.finish_reason == "stop"
    with running_server(*models["chat"], name="chat") as url, \
            openai.OpenAI(base_url=f"{url}/v1", api_key="none") as other:
        with pytest.raises(openai.BadRequestError, match="has not learned when to call a tool"):
            other.chat.completions.create(model="chat", messages=user("Hi."), tools=DEFINITIONS)
        called = [*user("What is 2 + 2?"),
                  {"role": "assistant", "tool_calls": [{"id": "call_1", "type": "function",
                   "function": {"name": "calculate", "arguments": '{"expression": "2 + 2"}'}}]},
                  {"role": "tool", "tool_call_id": "call_1", "content": "4"}]
        assert other.chat.completions.create(model="chat", messages=called).choices


# --- the other routes

def test_embeddings_are_the_mean_at_unit_length(ask, models):
    model, tokenizer = models["agent"]
    texts = ["Abel", "Where does Rita live?", ""]
    found = ask.embeddings.create(model="agent", input=texts)              # in base64
    plainly = ask.embeddings.create(model="agent", input=texts, encoding_format="float")
    with torch.no_grad():
        for text, a, b in zip(texts, found.data, plainly.data):
            x = model.hidden(torch.tensor([tokenizer.prompt_ids(text)]))[0].mean(0)
            assert a.embedding == pytest.approx(b.embedding, abs=1e-6)
            assert b.embedding == pytest.approx((x / x.norm()).tolist(), abs=1e-5)
            assert sum(v * v for v in a.embedding) == pytest.approx(1, abs=1e-5)
    assert found.usage.prompt_tokens == sum(len(tokenizer.prompt_ids(t)) for t in texts)
    assert ask.embeddings.create(model="agent", input=tokenizer.prompt_ids("Abel")
                                 ).data[0].embedding == found.data[0].embedding


def test_texts_and_tokens_go_both_ways(agent, models):
    _, tokenizer = models["agent"]
    text = "Abel café 🍓"
    found = json.loads(raw(agent, "POST", "/tokenize", {"prompt": text})[2])
    assert found == {"count": len(found["tokens"]), "max_model_len": 256,
                     "tokens": tokenizer.prompt_ids(text)}
    bare = json.loads(raw(agent, "POST", "/tokenize", {"prompt": text,
                                                       "add_special_tokens": False})[2])["tokens"]
    assert bare == tokenizer.encode(text)
    assert json.loads(raw(agent, "POST", "/detokenize", {"tokens": bare})[2]) == {"prompt": text}


def test_the_models_are_listed(ask):
    [model] = ask.models.list().data
    assert model.id == "agent" and ask.models.retrieve("agent") == model
    with pytest.raises(openai.NotFoundError, match="does not exist here"):
        ask.models.retrieve("gpt-4/../../etc/passwd")


def test_figures_count_what_was_asked(plain, go_on):
    def figures():
        text = raw(plain, "GET", "/metrics")[2]
        return {name: float(value) for name, value in re.findall(r"^(minigpt_\S+) (\S+)$", text,
                                                                 re.M)}
    before = figures()
    used = go_on.completions.create(model="tinytown", prompt="Once upon a time there was a baker "
                                    "who lived in a small town", max_tokens=5, n=2).usage
    after = figures()
    gained = {name: after[name] - before.get(name, 0) for name in after}
    assert gained["minigpt_prompt_tokens_total"] == used.prompt_tokens
    assert gained["minigpt_completion_tokens_total"] == used.completion_tokens == 10
    assert gained["minigpt_time_to_first_token_seconds_count"] == 2
    assert gained["minigpt_time_per_token_seconds_count"] == 2
    assert gained['minigpt_requests_total{route="/v1/completions",status="200"}'] == 1
    assert after["minigpt_running"] == after["minigpt_waiting"] == 0


# --- the form of answers and of errors

def keys_of(value, path=""):
    "Every place of a JSON document, without the numbers of lists."
    if isinstance(value, dict):
        for name, inner in value.items():
            yield f"{path}.{name}"
            yield from keys_of(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from keys_of(inner, f"{path}[]")


@pytest.mark.parametrize("path, body, kind", [
    ("/v1/chat/completions", {"messages": user("Hi."), "logprobs": True, "top_logprobs": 1},
     "chat.ChatCompletion"),
    ("/v1/chat/completions", {"messages": user("What is 17 * 23?"), "tools": DEFINITIONS},
     "chat.ChatCompletion"),
    ("/v1/completions", {"prompt": "Hi.", "max_tokens": 2, "logprobs": 1}, "Completion"),
    ("/v1/embeddings", {"input": "Hi."}, "CreateEmbeddingResponse")], ids=str)
def test_an_answer_has_no_field_that_openai_lacks_and_all_that_it_needs(agent, path, body, kind):
    status, headers, text = raw(agent, "POST", path, {"model": "agent", "temperature": 0, **body}
                                if "input" not in body else {"model": "agent", **body})
    assert status == 200 and headers["content-type"] == "application/json"
    found, made = json.loads(text), openai.types
    for name in kind.split("."):
        made = getattr(made, name)
    strict = made.model_validate(found, strict=False)
    known = set(keys_of(strict.model_dump()))
    assert set(keys_of(found)) <= known
    assert not strict.model_extra

    def extras(value):
        if isinstance(value, openai.BaseModel):
            yield from value.model_extra or {}
            for inner in vars(value).values():
                yield from extras(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from extras(inner)
    assert [name for name in extras(strict)] == []


@pytest.mark.parametrize("change, error, param, words", [
    ({"model": "gpt-4"}, openai.NotFoundError, "model", "does not exist"),
    ({"temperature": 3}, openai.BadRequestError, "temperature", "0 to 2"),
    ({"temperature": "hot"}, openai.BadRequestError, "temperature", '"hot"'),
    ({"n": 0}, openai.BadRequestError, "n", "n=0"),
    ({"n": 100, "max_tokens": 1}, openai.BadRequestError, "n", "places"),
    ({"max_tokens": 0}, openai.BadRequestError, "max_tokens", "max_tokens=0"),
    ({"max_tokens": 10**9}, openai.BadRequestError, "max_tokens", "4096"),
    ({"seed": 2**63}, openai.BadRequestError, "seed", "seed="),
    ({"messages": []}, openai.BadRequestError, "messages", "empty"),
    ({"messages": user("Hi.") * 2}, openai.BadRequestError, "messages", "turn 2"),
    ({"messages": user("many words " * 300)}, openai.BadRequestError, "messages", "256 at most"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, openai.BadRequestError,
     "messages[0].content", "text only"),
    ({"stop": [""]}, openai.BadRequestError, "stop", "1 to 200"),
    ({"top_logprobs": 2}, openai.BadRequestError, "top_logprobs", "logprobs=true"),
    ({"temperatur": 1}, openai.BadRequestError, "temperatur", "did you mean temperature?"),
    ({"functions": []}, openai.BadRequestError, "functions", "send tools"),
    ({"logit_bias": {"99999": 1}}, openai.BadRequestError, "logit_bias", "99999"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "sting"}}}},
     openai.BadRequestError, "response_format", "cannot be followed"),
    ({"tools": DEFINITIONS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
     openai.BadRequestError, "tool_choice", "one of the functions")], ids=str)
def test_a_mistake_is_named_with_its_field_and_a_remedy(ask, change, error, param, words):
    body = {"model": "agent", "messages": user("Hi.")} | change
    with pytest.raises(error, match=re.escape(words)) as caught:
        ask.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.param == param and caught.value.request_id
    assert caught.value.body.keys() == {"message", "type", "param", "code"}


def test_other_mistakes_have_their_own_status(agent, plain, go_on):
    for key in ("wrong-key-for-tests", "", "ä"):
        with pytest.raises(openai.AuthenticationError if key != "ä" else Exception):
            with client(agent, key or "x") as other:
                other.models.list()
    with pytest.raises(openai.BadRequestError, match="no chat template.*minigpt serve chat") as e:
        go_on.chat.completions.create(model="tinytown", messages=user("Hi."))
    assert e.value.code == "no_chat_template"
    for method, path, body, headers, status in (
            ("GET", "/v1/chat/completions", None, {}, 405), ("GET", "/v1/nothing", None, {}, 404),
            ("PUT", "/v1/models", {}, {}, 405), ("POST", "/health", {}, {}, 405),
            ("POST", "/v1/completions", {"prompt": "x"}, {"content_type": "text/plain"}, 415),
            ("POST", "/v1/completions", b" " * 1_000_001, {}, 413),
            ("POST", "/v1/completions", b"{", {}, 400),
            ("POST", "/v1/completions", b"[]", {}, 400)):
        found, answered, text = raw(plain, method, path, body, **headers)
        error = json.loads(text)["error"]
        assert found == status and error["message"] and error["type"] == "invalid_request_error"
        assert status != 405 or "allow" in answered


def test_a_server_on_this_machine_answers_to_its_own_name_alone(plain, agent):
    for host, status in (("evil.example", 403), ("localhost:80", 200), ("[::1]", 200),
                         ("127.0.0.1.evil.example", 403), ("", 403)):
        assert raw(plain, "GET", "/health", host=host)[0] == status
    assert raw(agent, "GET", "/health", host="my.example")[0] == 200       # a key is asked for


def test_every_answer_has_an_id_and_the_client_may_choose_it(plain):
    for asked, kept in (("abc-1.2_3", True), ("a b", False), ("x" * 65, False), ("é", False),
                        ("", False)):
        found = raw(plain, "GET", "/v1/models", x_request_id=asked.encode("latin-1"))[1]
        assert (found["x-request-id"] == asked) == kept and found["x-request-id"]


def test_other_pages_may_ask_only_if_they_were_named(models):
    preflight = {"origin": "https://a.example", "access_control_request_method": "POST",
                 "access_control_request_headers": "content-type"}
    with running_server(*models["tinytown"]) as url:
        assert "access-control-allow-origin" not in raw((0, url), "GET", "/health",
                                                        origin="https://a.example")[1]
        assert raw((0, url), "OPTIONS", "/v1/completions", **preflight)[0] == 405
    with running_server(*models["tinytown"], cors=["https://a.example"]) as url:
        status, headers, _ = raw((0, url), "OPTIONS", "/v1/completions", **preflight)
        assert status == 200 and headers["access-control-allow-origin"] == "https://a.example"
        other = {**preflight, "origin": "https://b.example"}
        assert raw((0, url), "OPTIONS", "/v1/completions", **other)[0] == 400


# --- full, late, gone, stopped

def test_a_full_server_says_when_to_come_back(models):
    with running_server(*models["tinytown"], max_batch_size=1, max_waiting=1) as url:
        with client((0, url)) as found:
            def hold():
                return found.completions.create(model="minigpt", prompt="Once", max_tokens=250,
                                                temperature=0, stream=True)
            one, two = hold(), hold()
            with pytest.raises(openai.RateLimitError) as caught:
                found.completions.create(model="minigpt", prompt="Once", max_tokens=1)
            assert int(caught.value.response.headers["retry-after"]) >= 1
            one.close()
            two.close()
            assert found.with_options(max_retries=20).completions.create(
                model="minigpt", prompt="Once", max_tokens=1).choices


def occupied(url):
    found = json.loads(raw((0, url), "GET", "/health")[2])
    return found["running"], found["waiting"]


def until(says, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not says():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_frees_the_place(models, stream):
    with running_server(*models["tinytown"]) as url:
        line = http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE)
        body = {"prompt": ["Once"] * 16, "max_tokens": 250, "temperature": 0, "stream": stream,
                "logit_bias": {"2559": -100}}
        line.request("POST", "/v1/completions", json.dumps(body),
                     {"content-type": "application/json"})
        until(lambda: occupied(url)[0] == 16)
        line.sock.close() if not stream else line.getresponse().close()
        line.close()
        until(lambda: occupied(url) == (0, 0))
        metrics = raw((0, url), "GET", "/metrics")[2]
        status = re.search(r'route="/v1/completions",status="(\d+)"', metrics)[1]
        assert status == ("200" if stream else "499")


def test_an_answer_that_takes_too_long_is_a_timeout(models):
    with running_server(*models["tinytown"], deadline=0.05) as url, client((0, url)) as found:
        knobs = dict(model="minigpt", prompt=["Once"] * 40, max_tokens=250,
                     logit_bias={"2559": -100})
        with pytest.raises(openai.InternalServerError, match="no answer within 0.05") as caught:
            found.completions.create(**knobs)
        assert caught.value.status_code == 504
        with pytest.raises(openai.APIError, match="no answer within 0.05"):
            for _ in found.completions.create(**knobs, stream=True):
                pass


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_then_the_server_ends_well(number):
    with served("tinytown") as server:
        process, url, _ = server
        with client(server) as found:
            stream = found.completions.create(model="tinytown", prompt=["Once"] * 16,
                                              max_tokens=200, stream=True,
                                              logit_bias={"2559": -100})
            parts = [next(iter(stream))]
            process.send_signal(number)
            until(lambda: json.loads(raw(server, "GET", "/health")[2])["status"] == "draining")
            with pytest.raises(openai.InternalServerError, match="the server stops") as caught:
                found.completions.create(model="tinytown", prompt="Once", max_tokens=1)
            assert caught.value.status_code == 503
            parts += list(stream)
        ends = [c.finish_reason for part in parts for c in part.choices if c.finish_reason]
        assert ends == ["length"] * 16                   # what was begun was finished
        assert process.wait(PATIENCE) == 0


# --- the log, and the command

def test_the_log_tells_enough_to_ask_again_and_no_prompt_unless_it_is_wanted():
    secret = "Rosa has a secret"
    for options in ([], ["--log-prompts"]):
        with served("tinytown", *options) as server, client(server) as found:
            said = found.completions.create(model="tinytown", prompt=secret, max_tokens=8,
                                            extra_headers={"x-request-id": "mine"})
            with pytest.raises(openai.BadRequestError):
                found.completions.create(model="tinytown", prompt=[secret], max_tokens="many")
            until(lambda: len(server[2]) >= 2)
            rows = list(map(json.loads, server[2]))
            row = rows[0]
            assert row["id"] == "mine" and row["status"] == 200 and row["finish"] == ["length"]
            assert row["completion_tokens"] == 8 and row["first_token"] <= row["seconds"]
            assert rows[1]["status"] == 400 and rows[1]["error"] == "max_tokens"
            assert any(secret in line for line in server[2]) == bool(options)
            if options:
                again = found.post("/completions", body={**row["request"], "seed": row["seed"]},
                                   cast_to=openai.types.Completion)
                assert again.choices[0].text == said.choices[0].text
        assert not any(secret in line for line in server[0].said)


def test_keys_come_from_the_environment_and_from_a_file(tmp_path, monkeypatch):
    monkeypatch.delenv("MINIGPT_API_KEY", raising=False)
    (tmp_path / "keys").write_text("# none\nfirst-key-1 # a remark\n  second-key  \n")
    assert read_keys() == [] and read_keys(tmp_path / "keys") == ["first-key-1", "second-key"]
    monkeypatch.setenv("MINIGPT_API_KEY", "from-outside")
    assert read_keys(tmp_path / "keys")[0] == "from-outside"
    (tmp_path / "empty").write_text("# nothing\n")
    for bad in ("empty", "nowhere"):
        with refused(str(tmp_path / bad)):
            read_keys(tmp_path / bad)
    monkeypatch.setenv("MINIGPT_API_KEY", "short")
    with refused("8 to 512"):
        read_keys()


def test_every_key_is_compared_and_in_constant_time(monkeypatch):
    "How long a refusal takes tells neither how much of a key was right nor which one."
    compared, compare = [], hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest",
                        lambda a, b: compared.append((len(a), len(b))) or compare(a, b))
    gate = Gate(None, None, Settings(api_keys=["first-key-1", "second-key"]), None)
    for given, path, welcome in (
            ("Bearer first-key-1", "/v1/models", True), ("Bearer second-key", "/metrics", True),
            ("", "/health", True), ("Bearer first-key-2", "/v1/models", False),
            ("Bearer first-key-", "/metrics", False), ("", "/tokenize", False)):
        compared.clear()
        scope, headers = {"path": path, "method": "GET"}, {b"authorization": given.encode()}
        with nullcontext() if welcome else pytest.raises(Refused, match="missing or wrong"):
            gate.check(scope, headers)
        assert compared == [(32, 32)] * 2


def test_only_loopback_is_local():
    assert all(map(is_local, ("127.0.0.1", "localhost", "::1", "127.1.2.3")))
    assert not any(map(is_local, ("0.0.0.0", "::", "192.168.0.1", "127.0.0.1.example", "")))


def test_other_machines_are_let_in_with_a_warning():
    with served("tinytown", "--host", "0.0.0.0") as server:
        assert any("without a key everybody" in line for line in server[0].said)


# --- templates of other models

def test_another_models_template_is_served(tmp_path, tiny_model, tokenizer):
    from minigpt.weights import to_huggingface
    to_huggingface(tmp_path / "theirs", *add_chat_tokens(tiny_model, tokenizer))
    config = json.loads((tmp_path / "theirs/tokenizer.json").read_text())
    config["model"]["vocab"]["extra"] = 500                # no tokenizer.json of ours any more
    with served(tmp_path / "theirs") as server, client(server) as found:
        said = found.chat.completions.create(model="theirs", messages=user("Hi"), max_tokens=3)
        assert said.usage.completion_tokens <= 3


# --- the page

def test_the_page_works_as_a_reader_uses_it(models, browser, tmp_path):
    answers = {question: "".join(Chat(*models["agent"]).say(question))
               for question in ("Where does Abel live?", "What is 7 + 5?")}
    answers["Once upon a time"] = generate(*models["tinytown"], "Once upon a time", temperature=0,
                                           max_tokens=9)
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    with running_server(*models["agent"], name="agent", api_keys=["a-key-for-tests"]) as chats, \
            running_server(*models["tinytown"], name="tinytown") as goes_on:
        done = subprocess.run(
            [shutil.which("node"), ROOT / "tests/page/served.mjs", chats, goes_on,
             tmp_path / "answers.json"], capture_output=True, encoding="utf-8", timeout=PATIENCE,
            env=os.environ | {"CHROMIUM": browser})
    assert done.returncode == 0 and "the page works" in done.stdout, done.stdout + done.stderr


def test_the_page_asks_no_other_host_and_makes_no_html():
    folder = ROOT / "minigpt" / "served"
    texts = {p.name: p.read_text("utf-8") for p in folder.iterdir()}
    assert texts.keys() == {"chat.html", "chat.js", "chat.css"}
    for text in texts.values():
        assert not re.search(r"https?://|innerHTML|outerHTML|insertAdjacentHTML|document\.write|"
                             r"localStorage|eval\(|style=", text)


def test_base64_is_what_numpy_reads(ask):
    import numpy as np
    body = {"model": "agent", "input": "Abel", "encoding_format": "base64"}
    found = ask.post("/embeddings", body=body, cast_to=object)["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(found), "<f4").shape == (192,)
