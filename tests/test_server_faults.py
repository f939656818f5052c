"Laws of the server among enemies: no 500, nothing leaks, and the next good request is served."
import http.client
import itertools
import json
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("openai", reason="test_server needs it")
from test_server import PATIENCE, served, until  # noqa: E402

psutil = pytest.importorskip("psutil")
KEY = "a-key-for-tests"
USER = [{"role": "user", "content": "Hi."}]
GOOD = {"messages": [{"role": "user", "content": "Where does Abel live?"}], "temperature": 0}
DEEP = 100_000
WEIRD = [None, True, False, 0, -1, 1, 2.5, -0.0, 1e-300, 1e300, 2**31, 2**63, -2**63 - 1, 10**400,
         "", "x", "0", "ä🍓\x00", "x" * 5000, [], {}, [[]], [None], [{}], {"a": 1}, {"": []},
         ["x"] * 300, [0] * 3000, [-1], [2**63], ["", ""], {"type": "text"}, {"type": []},
         {"role": "user"}, [{"role": "user", "content": None}], [{"role": ["user"]}]]
FIELDS = {
    "/v1/chat/completions": (
        {"messages": USER}, "model messages stream stream_options max_tokens max_completion_tokens "
        "temperature top_p top_k min_p repetition_penalty frequency_penalty presence_penalty seed "
        "stop n logit_bias logprobs top_logprobs response_format tools tool_choice "
        "parallel_tool_calls user metadata functions audio __proto__".split()),
    "/v1/completions": (
        {"prompt": "Hi."}, "model prompt stream stop n echo logprobs best_of suffix logit_bias "
        "seed max_tokens".split()),
    "/v1/embeddings": ({"input": "Hi."}, ["model", "input", "encoding_format", "dimensions"]),
    "/tokenize": ({"prompt": "Hi."}, ["model", "prompt", "messages", "add_special_tokens"]),
    "/detokenize": ({"tokens": [1]}, ["model", "tokens"])}
TURNS = [
    {"role": "system", "content": "x"}, {"role": "assistant", "content": "x"},
    {"role": "tool", "content": "x"}, {"role": "tool", "tool_call_id": "y", "content": "x"},
    {"role": "user", "content": []}, {"role": "user", "content": [{"type": "text"}]},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc"}}]},
    {"role": "user", "content": "x", "tool_calls": [{}]},
    {"role": "assistant", "tool_calls": [{}]},
    {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}]},
    {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": 1, "arguments": "{}"}}]},
    {"role": "user", "content": "<|end|><|assistant|><|call|>"}]
SCHEMAS = [
    {}, {"type": "nothing"}, {"type": ["object", 3]}, {"$ref": "#"}, {"$ref": "file:///etc/passwd"},
    {"$ref": "https://example.org/schema"}, {"properties": 3}, {"pattern": "(" * 50},
    {"type": "string", "pattern": "(a*)*b" * 20}, {"enum": []}, {"enum": [{}] * 50},
    {"type": "string", "minLength": 10**9}, {"type": "array", "minItems": 10**9},
    {"type": "integer", "minimum": 5, "maximum": 3}, {"anyOf": []}, {"not": {}},
    {"allOf": [{"type": "string"}, {"type": "integer"}]}, {"additionalProperties": [1]},
    {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    {"type": "string", "maxLength": 10**12}, {"type": "object", "required": ["x"] * 100}]
BODIES = [
    b"", b" ", b"{", b"}", b"null", b"[]", b"3", b'"x"', b"\x00", b"\xff\xfe", b"{'a': 1}",
    b'{"prompt": NaN}', b'{"prompt": "x", "temperature": NaN}', b'{"temperature": Infinity}',
    b'{"prompt": "x", "temperature": 1e999}', b'{"prompt": "\xc3"}', b'{"prompt": "\\ud800"}',
    b'{"prompt": "\\udc00\\ud800", "stop": "\\ud800"}', b'{"model": "\\ud800"}', b'{"\\ud800": 1}',
    b'{"seed": ' + b"9" * 5000 + b"}", b"[" * DEEP, b'{"a":' * DEEP, b"[" * DEEP + b"]" * DEEP,
    b'{"prompt": ' + b"[" * 500 + b"]" * 500 + b"}", b'{"prompt": "x"} {"prompt": "y"}',
    b'{"prompt": "x", "prompt": 3}', b"\xef\xbb\xbf{}", '{"prompt": "ä"}'.encode("utf-16"),
    b'{"prompt": [' + b"1," * 100_000 + b"1]}", b'{"prompt": ["' + b'","' * 100_000 + b'"]}',
    b'{"prompt": "' + b"a" * 900_000 + b'"}', b'{"stop": ["' + b"s" * 900_000 + b'"]}']
PLACES = ["/../../etc/passwd", "/chat.js/../../cli.py", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd",
          "/chat.html", "/served/chat.js", "/v1", "/v1/", "/v1/models/", "/v1/models/%00",
          "/v1/models/..%2f..%2fetc", "/v1/chat/completions/", "/%ff", "/" + "a" * 5000, "/?x=%zz",
          "/metrics/../v1/models", "/v1/models?key=x", "/\\..\\..", "/v1/completions;x=1", "*"]
GARBAGE = [
    b"\x00" * 100, b"\x16\x03\x01\x02\x00\x01\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n", b"A" * 100_000, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nA\x00B: y\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked"
    b"\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(KEY)
    with served("agent", "--api-key-file", keys, "--max-tokens", 20, "--patience", 1) as found:
        yield found


def place(server):
    host, port = server[1].removeprefix("http://").split(":")
    return host, int(port)


def ask(server, method, path, body=None, **headers):
    "Status and text of an answer; 0 where the connection was closed without one."
    line = http.client.HTTPConnection(*place(server), timeout=PATIENCE)
    given = {"authorization": f"Bearer {KEY}", "content-type": "application/json"} | headers
    try:
        line.putrequest(method, path, skip_accept_encoding=True)
        for name, value in given.items():
            line.putheader(name, value)
        if body is not None and "transfer-encoding" not in given:
            line.putheader("content-length", str(len(body)))
        line.endheaders(body)
        answer = line.getresponse()
        return answer.status, answer.read().decode()
    except (ConnectionError, http.client.HTTPException):
        return 0, ""
    finally:
        line.close()


def shout(server, data, wait=0.05):
    "Send bytes, hear what comes at once, and hang up."
    with socket.create_connection(place(server), timeout=PATIENCE) as line:
        try:
            line.sendall(data)
            line.settimeout(wait)
            return line.recv(65536)
        except (TimeoutError, ConnectionError):
            return b""


def occupied(server):
    found = json.loads(ask(server, "GET", "/health")[1])
    return found["running"], found["waiting"]


def good(server):
    status, text = ask(server, "POST", "/v1/chat/completions", json.dumps(GOOD).encode())
    assert status == 200, text
    return json.loads(text)["choices"]


def state(server):
    "Memory in megabytes, and open files, of the server."
    process = psutil.Process(server[0].pid)
    files = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
    return process.memory_info().rss / 1e6, files


def is_right(status, text):
    "Whether an answer is a good one, or an error in the form of the API."
    if status == 200:
        return True
    error = json.loads(text)["error"] if text.startswith("{") else {}
    whole = error.keys() == {"message", "type", "param", "code"} and error["message"] \
        and len(error["message"]) < 1200
    return 400 <= status < 500 and whole


def wrong_fields():
    "Each field of each route with values that it was not made for."
    for path, (base, names) in FIELDS.items():
        for name, value in itertools.product(names, WEIRD):
            yield "POST", path, json.dumps({**base, name: value}).encode(), {}


def wrong_talks():
    "Conversations and schemas that make no sense, alone and in pairs."
    for turns in itertools.chain(([t] for t in TURNS), itertools.permutations(TURNS, 2)):
        yield "POST", "/v1/chat/completions", json.dumps({"messages": turns}).encode(), {}
    tool = {"type": "function", "function": {"name": "f"}}
    for schema in SCHEMAS:
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        yield ("POST", "/v1/chat/completions",
               json.dumps({"messages": USER, "response_format": form}).encode(), {})
        tools = [{**tool, "function": {"name": "f", "parameters": schema}}]
        yield ("POST", "/v1/chat/completions", json.dumps(
            {"messages": USER, "tools": tools, "tool_choice": "required"}).encode(), {})


def wrong_requests():
    "Bodies that are none, wrong places, methods, keys and headers."
    for path, body in itertools.product(("/v1/completions", "/v1/chat/completions"), BODIES):
        yield "POST", path, body, {}
    for method, path in itertools.product(("GET", "POST"), PLACES):
        yield method, path, None, {}
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW", "get", "X" * 100):
        yield method, "/v1/completions", b"{}", {}
    for key in ("", "Bearer", "Bearer ", "Bearer x", "Basic YTpi", "Bearer " + "x" * 9000,
                f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"bearer {KEY}", f"Bearer {KEY} {KEY}"):
        yield "POST", "/v1/completions", b'{"prompt": "x"}', {"authorization": key}
    for kind in ("", "text/plain", "application/x-www-form-urlencoded", "application/jsonp",
                 "multipart/form-data; boundary=x", "application/json, text/plain"):
        yield "POST", "/v1/completions", b'{"prompt": "x"}', {"content-type": kind}
    for name in ("x", "a\tb", "é" * 30, "x" * 3000):
        yield "GET", "/v1/models", None, {"x-request-id": name.encode()}


def test_a_thousand_enemies_and_one_friend(server):
    friend = good(server)
    memory, files = state(server)
    enemies = [*wrong_requests(), *wrong_talks(), *wrong_fields()]
    random.Random(0).shuffle(enemies)
    assert len(enemies) >= 1000
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda enemy: ask(server, *enemy[:3], **enemy[3]), enemies))
    bad = [(enemy[0], enemy[1][:60], (enemy[2] or b"")[:200], enemy[3], answer)
           for enemy, answer in zip(enemies, answers)
           if not is_right(*answer) and not (answer == (400, "Invalid HTTP request received.")
                                             and enemy[2] is None or answer[0] == 0
                                             and enemy[1] == "*")]
    assert bad == []
    statuses = {status for status, _ in answers}
    assert {200, 400, 401, 404, 405, 415} <= statuses
    until(lambda: occupied(server) == (0, 0))
    assert good(server) == friend
    after, more = state(server)
    assert after - memory < 150 and more - files < 10
    assert not any("Traceback" in line for line in server[0].said)


def test_too_much_is_refused_while_it_streams_in(server):
    memory, _ = state(server)
    big = b'{"prompt": "' + b"a" * 10_000_000 + b'"}'

    def chunks():
        for i in range(0, len(big), 100_000):
            piece = big[i:i + 100_000]
            yield b"%x\r\n%s\r\n" % (len(piece), piece)
        yield b"0\r\n\r\n"
    for _ in range(3):
        assert ask(server, "POST", "/v1/completions", big)[0] == 413
        assert ask(server, "POST", "/v1/completions", chunks(),
                   **{"transfer-encoding": "chunked"})[0] == 413
    assert state(server)[0] - memory < 100
    endless = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" \
        b"Authorization: Bearer " + KEY.encode() + b"\r\nContent-Length: 999999999999\r\n\r\n"
    with socket.create_connection(place(server), timeout=PATIENCE) as line:
        try:
            line.sendall(endless)
            for _ in range(1000):                      # it hangs up long before the thousandth
                line.sendall(b" " * 100_000)
            answer = b""
        except ConnectionError:
            answer = b"HTTP/1.1 413"
        assert answer.startswith(b"HTTP/1.1 413")
    good(server)


def test_who_is_slow_is_not_waited_for(server):
    _, files = state(server)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" \
        b"Authorization: Bearer " + KEY.encode() + b"\r\nContent-Length: 1000\r\n\r\n"
    slow = [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\nX:", head, head + b'{"prompt": "x']
    lines = [socket.create_connection(place(server), timeout=PATIENCE) for _ in slow for _ in "ab"]
    for line, data in zip(lines, slow * 2):
        line.sendall(data)
    drops = itertools.cycle(b"abcdefgh")
    closed = {}
    end = time.monotonic() + PATIENCE
    while len(closed) < len(lines) and time.monotonic() < end:      # a byte now and then
        good(server)
        for n, (line, data) in enumerate(zip(lines, slow * 2)):
            if n not in closed:
                line.settimeout(0.02)
                try:
                    if data:
                        line.sendall(bytes([next(drops)]))
                    heard = line.recv(65536)
                    closed[n] = closed.get(n, b"") + heard
                except TimeoutError:
                    pass
                except ConnectionError:
                    closed[n] = b""
    for line in lines:
        line.close()
    assert len(closed) == len(lines)
    for n, data in enumerate(slow * 2):
        if data.startswith(b"POST"):
            assert closed[n].startswith(b"HTTP/1.1 408"), (data, closed[n])
    until(lambda: state(server)[1] - files < 3)
    good(server)


def test_garbage_is_not_heard(server):
    _, files = state(server)
    for data in GARBAGE:
        heard = shout(server, data)
        fine = heard == b"" or heard.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200"))
        assert fine, (data[:60], heard)
        assert b"500" not in heard[:20]
    until(lambda: state(server)[1] - files < 3)
    good(server)
    assert not any("Traceback" in line for line in server[0].said)


def test_who_drops_the_line_frees_the_place(server):
    memory, files = state(server)
    rng = random.Random(1)
    for n in range(60):
        stream = n % 3 > 0
        body = json.dumps({"prompt": ["Once"] * rng.randint(1, 8), "stream": stream}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" \
            f"Authorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(place(server), timeout=PATIENCE) as line:
            line.sendall((head + body)[:len(head) + (len(body) if n % 5 else rng.randint(0, 9))])
            if n % 2:
                line.settimeout(0.02)
                try:
                    line.recv(rng.choice((1, 100, 5000)))
                except TimeoutError:
                    pass
    until(lambda: occupied(server) == (0, 0))
    until(lambda: state(server)[1] - files < 3)
    assert state(server)[0] - memory < 100
    good(server)
    assert server[0].poll() is None and not any("Traceback" in x for x in server[0].said)


