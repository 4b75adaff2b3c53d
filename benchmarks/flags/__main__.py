"""Which bad fits are flagged, and which good ones are: ``python -m benchmarks.flags [--cases a,b]``.

Fits good and deliberately spoiled samplers, measures the true errors of each and holds them against what
`diagnostics()` says. Prints a table and writes ``benchmarks/results/flags.md`` and ``.csv``. Finished rows
are kept in ``flags.json`` beside them and are not run again, unless ``--fresh`` asks for it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks.command_line import chosen
from benchmarks.flags import table
from benchmarks.flags.cases import CASES
from benchmarks.flags.judge import make_row
from benchmarks.table import stored

RESULTS = Path(__file__).resolve().parents[1] / "results" / "flags"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.flags", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated, default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="run cases again that are in the results")
    options = parser.parse_args(arguments)
    options.cases = chosen(parser, options.cases, CASES)
    return options


def main(arguments: list[str] | None = None, results: Path = RESULTS) -> None:
    """Run what is asked for and print the table."""
    options = parse(arguments)
    torch.set_num_threads(1)
    store = results.with_suffix(".json")
    rows = stored(store)
    for name in options.cases:
        if options.fresh or rows.get(name, {}).get("seed") != options.seed:
            rows[name] = make_row(CASES[name], options.seed)
            store.parent.mkdir(exist_ok=True)
            store.write_text(json.dumps(rows, indent=1))
            print(f"{name}: {rows[name]['fit']}, {rows[name]['status']}", flush=True)
    everything = [rows[name] for name in CASES if name in rows]
    print(table.plain([row for row in everything if row["case"] in options.cases]))
    print("\n".join(table.summary(everything)))
    table.write(everything, results)


if __name__ == "__main__":
    main()
