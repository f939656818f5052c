"""Measure, print a table, write JSON."""
import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from .measure import Options, table

SECTIONS = {
    "tokenizer": "Tokenizer",
    "training": "Training",
    "quality": "Time to a validation loss",
    "decoding": "Decoding, greedy, float32",
    "quantization": "Quantized, 124 M, one text",
    "real": "SmolLM2, 135 M, one text, greedy",
    "page": "In a web page",
}


def sections(names: str) -> list[str]:
    "The sections that --only names; argparse reports an unknown one."
    chosen = [n.strip() for n in names.split(",") if n.strip()]
    unknown = sorted(set(chosen) - set(SECTIONS))
    if unknown or not chosen:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown) or 'nothing'} is no section; "
                                         f"choose from {', '.join(SECTIONS)}")
    return chosen


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    "Read the command line."
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--only", type=sections, default=list(SECTIONS), metavar="A,B",
                        help=f"sections to measure: {', '.join(SECTIONS)}")
    parser.add_argument("--quick", action="store_true",
                        help="only see that everything runs; the figures mean nothing")
    parser.add_argument("--device", default="cpu", help="where the training rows run (cpu, cuda)")
    parser.add_argument("--out", type=Path, help="the JSON file; results/<date>.json if not given")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    "Run the sections one after another; a section is imported when its turn comes."
    args = parse(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")            # nothing here needs a network
    from .machine import describe
    options = Options(args.quick, args.device)
    result = {"machine": describe(options), "quick": args.quick, "sections": {}}
    print("\n".join(f"{key:<13} {value}" for key, value in result["machine"].items()))
    for name in args.only:
        start = time.perf_counter()
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        rows = import_module(f"benchmarks.{name}").measure(options)
        result["sections"][name] = [asdict(row) for row in rows]
        print(f"\n{table(SECTIONS[name], rows)}", flush=True)
        print(f"measured {name} in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    out = args.out or Path(__file__).parent / "results" / time.strftime("%Y-%m-%d-%H%M.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\nwrote {out}")


if __name__ == "__main__":
    main()
