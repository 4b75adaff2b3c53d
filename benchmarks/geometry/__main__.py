"""DFT and NUTS on hard geometry: ``python -m benchmarks.geometry [names] [--methods x,y]``.

Writes ``benchmarks/results/geometry.md``, ``.csv`` and ``.json``: one row for each target and method, against exact draws.
Finished cells are kept below ``benchmarks/.cache`` and not run again; ``--fresh`` runs them again, ``--table`` only
prints. Every fit has default settings and float32; the cells start from a cold cache and include compilation.

Methods: `reference` (other exact draws: the floor), `nuts` (4 chains x (1000 + 1000)), `dft` (default settings) and `gaussian`
(the Gaussian alone, and with the same refinement), both raw and refined.
"""

from __future__ import annotations

from benchmarks import one_thread as one_thread

# isort: split
import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import methods, metrics, table
from benchmarks.command_line import check_known, chosen
from benchmarks.geometry import report
from benchmarks.geometry.target import Target
from benchmarks.geometry.targets import TARGETS
from benchmarks.references import Reference

RESULTS = Path(__file__).resolve().parents[1] / "results"
METHODS = ("reference", "nuts", "dft-raw", "dft-refined", "gaussian-raw", "gaussian-refined")
MORE_METHODS = (
    "kl-raw", "kl-refined", "always-raw", "always-refined", "hasty-raw", "hasty-refined", "shallow-raw", "shallow-refined",
)  # fmt: skip


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.geometry", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="targets; default all")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--seed", type=int, default=0, help="of the DFT fits")
    parser.add_argument("--fresh", action="store_true", help="run cells again although they are cached")
    parser.add_argument("--table", action="store_true", help="print what is there and run nothing")
    options = parser.parse_args(arguments)
    options.methods = chosen(parser, options.methods, METHODS + MORE_METHODS)
    options.names = options.names or list(TARGETS)
    check_known(parser, options.names, TARGETS)
    return options


def measured(target: Target, draws: np.ndarray, truth: Reference) -> table.Row:
    """Errors of unconstrained draws (n, d); those that do not exist are left out."""
    row: table.Row = metrics.errors(target.seen(draws), truth).to_dict()
    if not target.moments:
        for name in ("worst_mean", "average_mean", "sd_low", "sd_high", "sliced_w2", "worst_coordinate"):
            row[name] = None
    if target.components is not None:
        found, right = target.shares(draws), target.shares(target.exact(100_000, 2))
        row["shares"] = " / ".join(f"{share:.2f}" for share in found)
        row["share_error"] = float(np.abs(found - right).max())
    return row


def make_row(target: Target, truth: Reference, method: str, seed: int, fresh: bool) -> table.Row:
    """Run one cell and measure it."""
    row: table.Row = {"model": target.name, "kind": target.kind, "d": target.dim, "method": method}
    if method == "reference":
        return row | {"said": "exact draws", "flagged": False} | measured(target, target.floor(), truth)
    outcome = methods.run(target, method, seed, fresh, "numpyro")
    row |= {
        "seed": seed,
        "key": methods.key(target, method, seed, "numpyro").name,
        "seconds": outcome.seconds,
        "compile_share": outcome.compile_share,
        "more_seconds": outcome.more_seconds,
        "gradients": outcome.gradients,
        "said": outcome.said,
        "flagged": outcome.flagged,
        "code": outcome.notes.get("code"),
        "warnings": outcome.notes.get("warnings", []),
        "facts": outcome.notes.get("facts"),
    }
    return row | measured(target, outcome.draws, truth) if len(outcome.draws) else row


def run(options: argparse.Namespace, store: Path) -> None:
    """Run the cells that are missing, and keep their rows."""
    for target in (TARGETS[name] for name in options.names):
        fitted: set[str] = set()
        truth: Any = None
        for method in options.methods:
            label, fit = f"{target.name}/{method}", method.split("-")[0]
            again = options.fresh and method != "reference"
            key = None if method == "reference" else methods.key(target, method, options.seed, "numpyro").name
            before = table.stored(store).get(label)
            if before is not None and before.get("key") == key and not again:
                continue
            truth = truth or target.reference()
            # raw and refined rows share a fit: --fresh makes it once
            row = make_row(target, truth, method, options.seed, again and fit not in fitted)
            fitted.add(fit)
            # read again: a second command may have added rows in the meantime
            rows = table.stored(store) | {label: row}
            table.keep(store, rows)
            print(report.line(row), flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Run what is asked for and print the table."""
    options = parse(arguments)
    methods.prepare_process()
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / (f"geometry_seed{options.seed}" if options.seed else "geometry")
    store = stem.with_suffix(".json")
    if not options.table:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a fit warns of is in its row
            run(options, store)
    rows = table.stored(store)
    everything = report.judged(
        [rows[k] for t in TARGETS for m in METHODS + MORE_METHODS if (k := f"{t}/{m}") in rows]
    )
    chosen = [r for r in everything if r["model"] in options.names and r["method"] in options.methods]
    print(table.plain(chosen, report.MODES))
    notes = report.summary(everything)
    old = sorted({r["model"] for r in everything if r.get("code") not in (None, methods.code_hash())})
    if old:
        notes.append(f"made by an earlier state of the package (--fresh runs them again): {', '.join(old)}")
    print("\n".join(notes))
    report.write(everything, notes, stem)


if __name__ == "__main__":
    main()
