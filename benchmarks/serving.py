"""Serving: many clients at once, what each of them feels, and where the engine stops keeping up.

    python -m benchmarks.serving                    # 124 M parameters: some minutes
    python -m benchmarks.serving --model tinytown   # the model that comes with the library
    python -m benchmarks.serving --processor        # where other programs share the cores

With --processor the seconds are those of this process on one core, and nobody sleeps: the time
between two arrivals is skipped. The engine and its clients run in one process here; other servers
are compared where requests come over HTTP, with the same `Trace`.
"""
import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from minigpt import load
from minigpt.cache import KVCache
from minigpt.inference import AnyTokenizer, Passes, Writing, one_thread, write
from minigpt.model import GPT
from minigpt.sampling import Rule, banned, sample, temperature
from minigpt.serve import Engine, Output, Request

from .decoding import LARGE, SMALL, prompt_of, random_model
from .measure import Options, Row, table

RULES: list[Rule] = [temperature(0.8)]


class Clock:
    "Seconds of the wall, or of this process with the waits skipped."

    def __init__(self, processor: bool):
        self.now, self.skipped, self.processor = (
            time.process_time if processor else time.perf_counter), 0.0, processor

    def __call__(self) -> float:
        return self.now() + self.skipped

    def wait_until(self, when: float) -> None:
        "Sleep, or turn the clock forward."
        left = max(0.0, when - self())
        if self.processor:
            self.skipped += left
        else:
            time.sleep(left)


class AnyWord:
    "A tokenizer for random weights: each token is a word, and no text ends by itself."
    stop_ids: frozenset[int] = frozenset()

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b" word" * len(list(ids))


@dataclass
class Trace:
    "When one request's tokens came."
    sent: float                                          # seconds
    tokens: list[float] = field(default_factory=list)    # seconds, when each token came
    ended: float | None = None

    @property
    def first(self) -> float:      # seconds
        "How long the first token took."
        return self.tokens[0] - self.sent

    @property
    def gaps(self) -> list[float]:      # seconds
        "How long each of the others took."
        return [b - a for a, b in zip(self.tokens, self.tokens[1:])]


class Crowd:
    "Sends requests to an engine, and keeps their times."

    def __init__(self, engine: Engine, clock: Clock):
        self.engine, self.clock, self.traces = engine, clock, []

    def send(self, request: Request, sent: float | None = None,
             then: Callable[[], None] = lambda: None) -> None:
        trace = Trace(self.clock() if sent is None else sent)
        self.traces.append(trace)

        def listener(output: Output) -> None:
            trace.tokens += [self.clock()] * len(output.ids)
            if output.finish:
                trace.ended = self.clock()
                then()
        self.engine.add(request, listener)

    def closed(self, requests: Sequence[Request], n_clients: int) -> float:      # seconds
        "Each client sends its next request when it has its answer."
        start, coming = self.clock(), iter(requests)

        def next_one() -> None:
            if (request := next(coming, None)) is not None:
                self.send(request, then=next_one)
        for _ in range(n_clients):
            next_one()
        while self.engine.step():
            pass
        return self.clock() - start

    def open(self, requests: Sequence[Request], rate: float, seed: int = 0) -> float:   # seconds
        "Requests come when they come: so many a second, at random (Poisson)."
        rng, start = random.Random(seed), self.clock()
        due = start + np.cumsum([rng.expovariate(rate) for _ in requests])
        coming = list(zip(due.tolist(), requests))
        while coming or self.engine.jobs:
            if not self.engine.jobs:
                self.clock.wait_until(coming[0][0])
            while coming and coming[0][0] <= self.clock():
                sent, request = coming.pop(0)
                self.send(request, sent)
            self.engine.step()
        return self.clock() - start

    @property
    def n_tokens(self) -> int:
        return sum(len(trace.tokens) for trace in self.traces)

    def felt(self) -> str:
        "What the clients felt, in words."
        firsts, gaps = [t.first for t in self.traces], [g for t in self.traces for g in t.gaps]
        (a, b), (c, d) = (np.percentile(x, (50, 95)) * 1000 for x in (firsts, gaps))
        return f"first token {a:.0f} ms (p95 {b:.0f}), then every {c:.1f} ms (p95 {d:.1f})"


@dataclass(frozen=True)
class Bench:
    "One model, one clock, and how much is asked."
    model: GPT
    tokenizer: AnyTokenizer
    clock: Clock
    n_prompt: int = 32      # tokens of a prompt
    n_new: int = 64         # tokens of an answer
    rounds: int = 3
    rows: int = 16          # of a batch, but for more clients

    def crowd(self, n_rows: int | None = None, prefix_tokens: int = 0, **options) -> Crowd:
        "In front of a new engine."
        return Crowd(Engine(self.model, self.tokenizer, n_rows or self.rows, 10**6,
                            prefix_tokens=prefix_tokens, clock=self.clock, **options), self.clock)

    def prompt(self, n: int, length: int | None = None) -> list[int]:
        "Any tokens."
        return [1 + i % (self.model.cfg.vocab_size - 2)
                for i in prompt_of(length or self.n_prompt, n)]

    def request(self, n: int, n_new: int | None = None, opening: Sequence[int] = ()) -> Request:
        "One that gets as many tokens as it asks for."
        return Request([*opening, *self.prompt(n)], n_new or self.n_new,
                       [*endless(self.tokenizer), *RULES], n)


def endless(tokenizer: AnyTokenizer) -> list[Rule]:
    "No text may end by itself."
    return [banned(tokenizer.stop_ids)] if tokenizer.stop_ids else []


def clients(bench: Bench, counts: Sequence[int]) -> list[Row]:
    "Closed loop: so many clients, each always with one request."
    speeds: dict[int, list[float]] = {n: [] for n in counts}
    felt = {}
    for _ in range(bench.rounds):
        for n in counts:
            crowd = bench.crowd(n)
            seconds = crowd.closed([bench.request(i) for i in range(2 * n)], n)
            speeds[n].append(crowd.n_tokens / seconds)
            felt[n] = crowd.felt()
    rows = []
    for n, found in speeds.items():
        gain = statistics.median(b / a for a, b in zip(speeds[counts[0]], found))
        rows.append(Row(f"{n} client{'s' * (n > 1)}", statistics.median(found), "tokens/s",
                        note=f"{gain:.1f} times one client; {felt[n]}",
                        detail={"tokens/s": found}))
    return rows


def overhead(bench: Bench, n_steps: int) -> list[Row]:
    "A step of a full batch: the decoder alone, with a draw, and the engine around both."
    B, room, prompts = bench.rows, bench.n_prompt + n_steps + 2, range(bench.rows)
    rules = [*endless(bench.tokenizer), *RULES]

    @torch.no_grad()
    def bare(draws: bool) -> float:      # seconds a step
        passes, cache = Passes(bench.model, B), KVCache(bench.model.cfg, B, room)
        rngs = [torch.Generator().manual_seed(i) for i in prompts]
        logits = passes.read(torch.tensor([bench.prompt(i) for i in prompts]), cache)
        start = bench.clock()
        with passes.threads():
            for _ in range(n_steps):
                tokens = sample(logits, rules, rngs) if draws else logits.argmax(dim=-1)
                logits = passes.step(tokens.tolist(), cache)
        return (bench.clock() - start) / n_steps

    def served() -> float:      # seconds a step
        crowd = bench.crowd(prefill_chunk=10**6)
        for i in prompts:
            crowd.send(bench.request(i, n_steps + 2))
        crowd.engine.step()
        start = bench.clock()
        for _ in range(n_steps):
            crowd.engine.step()
        return (bench.clock() - start) / n_steps
    names = [f"a step of {B} rows, {what}" for what in ("decoder", "decoder and draw", "engine")]
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(2 * bench.rounds):
        for name, seconds in zip(names, (bare(False), bare(True), served())):
            times[name].append(seconds * 1000)
    share = [statistics.median(e / x - 1 for x, e in zip(times[name], times[names[2]]))
             for name in names]
    notes = ["", "", f"{share[0]:+.1%} over the decoder, {share[1]:+.1%} over decoder and draw"]
    return [Row(name, statistics.median(times[name]), "ms", note=note,
                detail={"ms": times[name]}) for name, note in zip(names, notes)]


def prefixes(bench: Bench, length: int) -> list[Row]:
    "Prompts that begin alike, as with one system prompt, with a cache for beginnings and without."
    opening, rows = bench.prompt(99, length), []
    requests = [bench.request(i, 16, opening) for i in range(bench.rows)]
    for what, tokens in (("no prefix cache", 0), ("prefix cache", 4096)):
        crowd = bench.crowd(prefix_tokens=tokens)
        seconds, stats = crowd.closed(requests, bench.rows), crowd.engine.stats
        rows.append(Row(f"{length} shared tokens, {what}", len(requests) / seconds, "requests/s",
                        note=f"{stats.tokens_in} tokens read, {stats.tokens_cached} spared, "
                             f"{stats.prefix_bytes / 1e6:.0f} MB; {crowd.felt()}"))
    gain = rows[1].value / rows[0].value
    return [rows[0], replace(rows[1], note=f"{gain:.1f} times as many; {rows[1].note}")]


def loads(bench: Bench, n_requests: int, shares: Sequence[float]) -> list[Row]:
    "Open loop: requests come at random, up to more than the engine can do."
    requests = [bench.request(i) for i in range(n_requests)]
    crowd = bench.crowd()
    most = n_requests / crowd.closed(requests, bench.rows)
    rows = []
    for share in shares:
        crowd = bench.crowd()
        seconds, stats = crowd.open(requests, share * most), crowd.engine.stats
        waited = 1000 * stats.seconds_queued / stats.admitted
        rows.append(Row(f"{share * most:.3g} requests/s ({share:.0%}): one takes",
                        statistics.median(t.ended - t.sent for t in crowd.traces), "s",
                        note=f"{n_requests / seconds:.3g} requests/s done; {waited:.0f} ms in the "
                             f"queue; {crowd.felt()}"))
    return rows


@torch.no_grad()
def static(bench: Bench, requests: Sequence[Request]) -> float:      # tokens/s
    "Batches that begin and end together: the next one waits for the longest answer."
    start, n_tokens = bench.clock(), 0
    for a in range(0, len(requests), bench.rows):
        some = requests[a:a + bench.rows]
        texts = [Writing(list(r.ids), torch.Generator().manual_seed(r.seed), len(r.ids))
                 for r in some]
        for _ in write(bench.model, texts, max(r.max_tokens for r in some), some[0].rules):
            for text, request in zip(texts, some):
                if len(text.new) == request.max_tokens:
                    text.done = "length"
        n_tokens += sum(len(text.new) for text in texts)
    return n_tokens / (bench.clock() - start)


def static_or_continuous(bench: Bench, n_requests: int) -> list[Row]:
    "The same requests, with answers of very different lengths."
    rng = random.Random(0)
    requests = [bench.request(i, min(2 * bench.n_new, 1 + int(rng.expovariate(2 / bench.n_new))))
                for i in range(n_requests)]
    times: dict[str, list[float]] = {"static batches": [], "continuous batching": []}
    for _ in range(bench.rounds):
        times["static batches"].append(static(bench, requests))
        crowd = bench.crowd()
        seconds = crowd.closed(requests, n_requests)
        times["continuous batching"].append(crowd.n_tokens / seconds)
    a, b = times.values()
    notes = [f"answers of 1 to {max(r.max_tokens for r in requests)} tokens, "
             f"{statistics.mean(r.max_tokens for r in requests):.0f} on average",
             f"{statistics.median(y / x for x, y in zip(a, b)):.2f} times static batches"]
    return [Row(name, statistics.median(speeds), "tokens/s", note=note,
                detail={"tokens/s": speeds}) for (name, speeds), note in zip(times.items(), notes)]


def sections(bench: Bench, quick: bool = False) -> dict[str, Callable[[], list[Row]]]:
    "What is measured, by its title."
    if quick:
        return {"Clients": lambda: clients(bench, (1, 4)), "Overhead": lambda: overhead(bench, 2),
                "Shared beginnings": lambda: prefixes(bench, 32),
                "Load": lambda: loads(bench, 6, (0.5, 1.0)),
                "Batches": lambda: static_or_continuous(bench, 6)}
    opening = min(256, bench.model.cfg.context_length - bench.n_prompt - 16)
    return {"Clients, each with one request at a time": lambda: clients(bench, (1, 4, 16, 64)),
            "The engine's own time": lambda: overhead(bench, 24),
            "Shared beginnings": lambda: prefixes(bench, opening),
            "Requests that come at random": lambda: loads(
                bench, 16 * bench.rounds, (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)),
            "Answers of different lengths": lambda: static_or_continuous(bench, 48)}


def bench_of(name: str, processor: bool, quick: bool = False) -> Bench:
    "A model by its name; any but the 124 M comes with the library."
    if quick or name == "124M":
        model = random_model(SMALL if quick else LARGE)
        bench = Bench(model, AnyWord(model.cfg.vocab_size), Clock(processor))
        return replace(bench, n_prompt=8, n_new=4, rounds=1, rows=4) if quick else bench
    return Bench(*load(name), Clock(processor), rounds=9)


def measure(options: Options) -> list[Row]:
    "All rows of the 124 M, or with `quick` a few small ones."
    bench = bench_of("124M", False, options.quick)
    return [row for section in sections(bench, options.quick).values() for row in section()]


def main(arguments: list[str] | None = None) -> None:
    "Measure, and print a table for each section."
    parser = argparse.ArgumentParser("python -m benchmarks.serving", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="124M", help="124M (random weights), or a model's name")
    parser.add_argument("--processor", action="store_true", help="seconds of one core, no waits")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--quick", action="store_true", help="only see that everything runs")
    args = parser.parse_args(arguments)
    if args.processor:
        torch.set_num_threads(1)
    print(f"{args.model}, seconds of {'one core' if args.processor else 'the wall'}", flush=True)
    bench = bench_of(args.model, args.processor, args.quick)
    if not args.quick:
        bench = replace(bench, n_prompt=args.prompt, n_new=args.new)
    with one_thread(False, args.processor):
        for title, section in sections(bench, args.quick).items():
            print(table(title, section()), flush=True)


if __name__ == "__main__":
    main()
