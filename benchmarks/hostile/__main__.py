"""Is a fit that says `converged` ever wrong? ``python -m benchmarks.hostile [--backend pyro] [--fits N] [--kinds a,b]``.

Random posteriors whose exact draws are known, fitted with default settings: triangular maps of Gaussians, mixtures, tails, rings,
bananas, funnels, conjugate models and centred hierarchies. Writes ``benchmarks/results/hostile_numpyro.md`` and ``.json``,
or those of Pyro. Each finished fit is kept in the JSON file and is not made again, so that a killed command resumes and more
fits may be asked for later; the first N are balanced over the kinds, whatever N is. A changed package makes them again, unless
``--keep`` is given. ``--table`` only prints; ``--only maps-3,tails-10`` makes single fits again and prints all their errors.
"""

from __future__ import annotations

from benchmarks import one_thread as one_thread

# isort: split
import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import methods
from benchmarks.command_line import chosen
from benchmarks.hostile import fits, report
from benchmarks.hostile.kinds import KINDS, order
from benchmarks.table import Row, stored

RESULTS = Path(__file__).resolve().parents[1] / "results"
# How many fits by default.
COUNTS = {"numpyro": 320, "pyro": 112}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.hostile", description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="numpyro", choices=("numpyro", "pyro"))
    parser.add_argument(
        "--fits", type=int, help="how many, over all kinds; default 320 with NumPyro, 112 with Pyro"
    )
    parser.add_argument("--kinds", default=",".join(KINDS), help="comma-separated, default all")
    parser.add_argument(
        "--only", help="single fits by name, comma-separated: made again, with all their errors"
    )
    parser.add_argument("--fresh", action="store_true", help="make fits again although they are there")
    parser.add_argument("--keep", action="store_true", help="keep fits of another state of the package")
    parser.add_argument("--table", action="store_true", help="print what is there and run nothing")
    options = parser.parse_args(arguments)
    options.kinds = chosen(parser, options.kinds, KINDS)
    count = COUNTS[options.backend] if options.fits is None else options.fits
    options.chosen = list(order(count, options.kinds))
    if options.only:
        try:
            options.chosen = [_named(name) for name in options.only.split(",")]
        except ValueError as error:
            parser.error(str(error))
    return options


def _named(name: str) -> tuple[str, int]:
    kind, _, seed = name.rpartition("-")
    if kind not in KINDS or not seed.isdigit():
        raise ValueError(
            f"{name!r} is no fit; they are called {', '.join(f'{k}-0' for k in KINDS)} and so on"
        )
    return kind, int(seed)


def store(path: Path, row: Row) -> None:
    """Adds a row, one line for each fit; what a second command has added in the meantime stays."""
    rows = stored(path) | {row["name"]: row}
    by_place = sorted(rows.values(), key=lambda r: (r["seed"], list(KINDS).index(r["kind"])))
    lines = [f"{json.dumps(r['name'])}: {json.dumps(r, separators=(',', ':'))}" for r in by_place]
    # In one step: a killed command leaves no half of a file behind.
    part = path.with_suffix(".part")
    part.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    os.replace(part, path)


def _there(
    row: Row | None, kind: str, seed: int, options: argparse.Namespace, settings: Mapping[str, Any]
) -> bool:
    if row is None or options.fresh or options.only:
        return False
    return row["key"] == fits.key(
        kind, seed, options.backend, settings, row["code"] if options.keep else fits.CODE
    )


def main(
    arguments: list[str] | None = None, results: Path = RESULTS, settings: Mapping[str, Any] | None = None
) -> None:
    """Run what is asked for, print the table and write the files."""
    options = parse(arguments)
    methods.prepare_process()
    results.mkdir(exist_ok=True)
    stem = results / f"hostile_{options.backend}"
    path = stem.with_suffix(".json")
    for kind, seed in [] if options.table else options.chosen:
        if _there(stored(path).get(f"{kind}-{seed}"), kind, seed, options, settings or {}):
            continue
        row = fits.make_row(kind, seed, options.backend, settings)
        store(path, row)
        print(line(row), flush=True)
        if options.only:
            print(fits.details(row))
    rows = list(stored(path).values())
    if rows:
        print(
            report.write(
                rows,
                f"python -m benchmarks.hostile --backend {options.backend} --fits {len(rows)}",
                fits.CODE,
                stem,
            )
        )


def line(row: Row) -> str:
    """One printed row."""
    words = f"{row['name']} ({row['d']}-D {row['what']}): {row['quality']}, {row['status']}"
    if row["status"] == "raised":
        return f"{words}: {row['reason']}"
    said = f" ({', '.join(row['alarms'])})" if row["alarms"] else ""
    return f"{words}{said}; {row['where']} off by {row['bars']:.2f} bars; {row['seconds']:.1f} CPU s"


if __name__ == "__main__":
    main()
