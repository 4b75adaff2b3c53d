"""Swap NUTS for DFT on real models: ``python -m benchmarks.swap [--backend numpyro] [--models a,b] [--methods x,y]``.

Prints one row for each (model, method), then the counts against the targets, and writes
``benchmarks/results/swap_pyro.md`` (or ``swap_numpyro.md``), ``.csv`` and ``.json``. A finished cell is not run
again: rows are kept in the JSON file and draws below ``benchmarks/.cache``, under a key made of model, data, method
and settings. ``--fresh`` runs them again (after a change of the package), ``--table`` only prints,
``--make-references`` makes the missing reference files. NumPyro's cells start from a cold cache and include
compilation.
"""

from __future__ import annotations

from benchmarks import one_thread as one_thread

# isort: split
import argparse
import warnings
from pathlib import Path

from benchmarks import methods, metrics, references, table
from benchmarks.command_line import chosen
from benchmarks.models.registry import BENCHMARKS

# Shares of NUTS' CPU seconds: on the logistic regressions, and the median over all models.
TARGETS = {"pyro": (0.1, 0.2), "numpyro": (1.0, None)}
RESULTS = Path(__file__).resolve().parent / "results"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.swap", description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(BENCHMARKS), help="comma-separated, default all")
    parser.add_argument("--methods", default=",".join(methods.METHODS), help="comma-separated, default all")
    parser.add_argument("--backend", default="pyro", choices=("pyro", "numpyro"))
    parser.add_argument("--seed", type=int, default=0, help="of the DFT fits")
    parser.add_argument("--fresh", action="store_true", help="run cells again although they are cached")
    parser.add_argument("--table", action="store_true", help="print what is there and run nothing")
    parser.add_argument("--brief", action="store_true", help="with --table: one line for each model")
    parser.add_argument("--readme", action="store_true", help="with --table: put it into the README")
    parser.add_argument(
        "--make-references", action="store_true", help="make the missing reference files and stop"
    )
    options = parser.parse_args(arguments)
    options.models = chosen(parser, options.models, BENCHMARKS)
    options.methods = chosen(parser, options.methods, methods.METHODS)
    return options


def make_row(model: str, method: str, seed: int, fresh: bool, framework: str = "pyro") -> table.Row:
    """Run one cell and measure it."""
    benchmark, reference = BENCHMARKS[model], references.load(model)
    outcome = methods.run(benchmark, method, seed, fresh, framework)
    row: table.Row = {
        "model": model,
        "kind": benchmark.kind,
        "d": len(reference.mean),
        "method": method,
        "key": methods.key(benchmark, method, seed, framework).name,
        "seconds": outcome.seconds,
        "more_seconds": outcome.more_seconds,
        "gradients": outcome.gradients,
        "said": outcome.said,
        "flagged": outcome.flagged,
        "code": outcome.notes.get("code"),
        "warnings": outcome.notes.get("warnings", []),
    }
    if len(outcome.draws):
        row |= metrics.errors(outcome.draws, reference).to_dict()
    return row


def main(arguments: list[str] | None = None) -> None:
    """Run what is asked for and print the table."""
    options = parse(arguments)
    methods.prepare_process()
    if options.make_references:
        for model in options.models:
            if not (references.FOLDER / f"{model}.npz").exists():
                print(references.make(BENCHMARKS[model]), flush=True)
        return
    RESULTS.mkdir(exist_ok=True)
    store = RESULTS / f"swap_{options.backend}.json"
    rows = table.stored(store)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a fit warns of is in its row
        for model in options.models:
            fitted: set[str] = set()
            for method in options.methods:
                name, fit = f"{model}/{method}", method.split("-")[0]
                again = options.fresh and method != "reference"
                key = methods.key(BENCHMARKS[model], method, options.seed, options.backend)
                stale = rows.get(name, {}).get("key") != key.name
                if not options.table and (again or stale):
                    # raw and refined rows share a fit: --fresh makes it once
                    again = again and fit not in fitted
                    row = make_row(model, method, options.seed, again, options.backend)
                    # read again: a second command may have added rows in the meantime
                    rows = table.stored(store) | {name: row}
                    fitted.add(fit)
                    table.keep(store, rows)
                    print(f"{name}: {table.line(table.complete([rows[name]])[0])}", flush=True)
    order = [f"{m}/{k}" for m in BENCHMARKS for k in methods.METHODS]
    everything = table.complete([rows[n] for n in order if n in rows])
    chosen = [r for r in everything if r["model"] in options.models and r["method"] in options.methods]
    if options.table and options.readme:
        table.into_readme(chosen, RESULTS.parents[1] / "README.md")
        return
    if options.table and options.brief:
        print(table.brief(chosen))
        return
    print(table.plain(chosen))
    summary = table.summarise(everything, *TARGETS[options.backend])
    old = sorted({r["model"] for r in everything if r["code"] not in (None, methods.code_hash())})
    if old:
        summary.append(f"made by an earlier state of the package (--fresh runs them again): {', '.join(old)}")
    print("\n".join(summary))
    table.write(everything, summary, RESULTS / f"swap_{options.backend}")


if __name__ == "__main__":
    main()
