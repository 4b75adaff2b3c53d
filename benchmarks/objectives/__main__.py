"""Does the DFT phase earn its place? ``python -m benchmarks.objectives [--targets a,b] [--variants x,y]``.

Every variant trains five samplers (seeds) on the same Gaussians and with the same random numbers; their raw one-step draws
are held against exact or reference draws. Writes ``benchmarks/results/objectives.md``, ``.csv`` and ``.json``; finished rows
are kept in the JSON file and not run again. ``--replicate N`` trains N other seeds and writes ``objectives_again``.
"""

from __future__ import annotations

from benchmarks import one_thread as one_thread

# isort: split
import argparse
import warnings
from pathlib import Path

from benchmarks.cache import model_hash
from benchmarks.command_line import chosen
from benchmarks.methods import code_hash, prepare_process
from benchmarks.objectives import report
from benchmarks.objectives.targets import SUBJECTS
from benchmarks.objectives.train import DRAWS, Bench
from benchmarks.objectives.variants import VARIANTS
from benchmarks.table import keep, stored

RESULTS = Path(__file__).resolve().parents[1] / "results"
SEEDS = 5


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.objectives", description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default=",".join(SUBJECTS), help="comma-separated, default all")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated, default all")
    parser.add_argument("--replicate", type=int, default=0, help="other seeds, that many of them")
    parser.add_argument("--table", action="store_true", help="print what is there and run nothing")
    options = parser.parse_args(arguments)
    options.targets = chosen(parser, options.targets, SUBJECTS)
    options.variants = chosen(parser, options.variants, VARIANTS)
    return options


def main(arguments: list[str] | None = None) -> None:
    """Run what is asked for and print the table."""
    options = parse(arguments)
    prepare_process()
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / ("objectives_again" if options.replicate else "objectives")
    store, seeds = stem.with_suffix(".json"), options.replicate or SEEDS
    for name in [] if options.table else options.targets:
        subject, bench = SUBJECTS[name], None
        for variant in (VARIANTS[v] for v in options.variants):
            label = f"{name}/{variant.name}"
            key = f"{model_hash(subject.case, 'numpyro')} {seeds} {DRAWS} {variant.stages} {variant.settings}"
            if stored(store).get(label, {}).get("key") == key:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the Gaussian alone is bad on purpose
                bench = bench or Bench(subject, seeds, 1 if options.replicate else 0)
                row = bench.row(variant)
            row |= {"target": name, "family": subject.family, "variant": variant.name, "what": variant.what}
            row |= {"d": bench.problem.target.dim, "key": key, "code": code_hash()}
            keep(store, stored(store) | {label: row})
            print(report.line(row), flush=True)
    rows = stored(store)
    ordered = [rows[k] for t in SUBJECTS for v in VARIANTS if (k := f"{t}/{v}") in rows]
    print(report.write(ordered, stem))


if __name__ == "__main__":
    main()
