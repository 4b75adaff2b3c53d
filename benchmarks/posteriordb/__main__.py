"""DFT and NUTS on published posteriors: ``python -m benchmarks.posteriordb [--backend pyro] [names]``.

Writes ``benchmarks/results/posteriordb_numpyro.md``, ``.csv`` and ``.json``: one row for each posterior and method.
Finished cells are kept below ``benchmarks/.cache`` and not run again; ``--fresh`` runs them again, ``--table``
only prints. NumPyro's cells start from a cold cache and include compilation.

Methods: `reference` (five published chains against the other five: the floor), `nuts` (4 chains x (1000 + 1000)), `dft`
(default settings), `gaussian` (the full-rank Gaussian alone, and with the same refinement), `kl` (KL training alone, the
network always trained), `always` (the default recipe, the network always trained), and `hasty` and `shallow` (crippled on
purpose).
"""

from __future__ import annotations

from benchmarks import one_thread as one_thread

# isort: split
import argparse
import warnings
from pathlib import Path

from benchmarks import methods, metrics, table
from benchmarks.command_line import chosen
from benchmarks.posteriordb import bars, case
from benchmarks.posteriordb.posteriors import POSTERIORS

RESULTS = Path(__file__).resolve().parents[1] / "results"
METHODS = (
    "reference", "nuts", "dft-raw", "dft-refined", "gaussian-raw", "gaussian-refined", "kl-raw", "kl-refined",
)  # fmt: skip
MORE_METHODS = (
    "always-raw", "always-refined", "hasty-raw", "hasty-refined", "shallow-raw", "shallow-refined",
)  # fmt: skip
COLUMNS: table.Columns = (
    ("posterior", "model", "{}"),
    ("d", "d", "{}"),
    ("method", "method", "{}"),
    ("worst mean", "worst_mean", "{:.3f}"),
    ("avg mean", "average_mean", "{:.3f}"),
    ("sd min", "sd_low", "{:.2f}"),
    ("sd max", "sd_high", "{:.2f}"),
    ("worst q", "worst_quantile", "{:.3f}"),
    ("SW2", "sliced_w2", "{:.3f}"),
    ("gradients", "gradients", "{:.1e}"),
    ("CPU s", "seconds", "{:.1f}"),
    ("without compiling", "running", "{:.1f}"),
    ("s / NUTS s", "ratio", "{:.2f}"),
    ("in the bar", "bar", "{}"),
    ("its own diagnostics", "said", "{}"),
)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.posteriordb", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="posteriors, or parts of their names; default all")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--backend", default="numpyro", choices=("numpyro", "pyro"))
    parser.add_argument("--seed", type=int, default=0, help="of the DFT fits")
    parser.add_argument("--fresh", action="store_true", help="run cells again although they are cached")
    parser.add_argument("--table", action="store_true", help="print what is there and run nothing")
    options = parser.parse_args(arguments)
    options.methods = chosen(parser, options.methods, METHODS + MORE_METHODS)
    known = [n for n, p in POSTERIORS.items() if options.backend == "numpyro" or p.pyro]
    options.names = [n for n in known if not options.names or any(part in n for part in options.names)]
    if not options.names:
        parser.error(f"no posterior of that name; known: {', '.join(known)}")
    return options


def make_row(name: str, method: str, seed: int, fresh: bool, framework: str) -> table.Row:
    """Run one cell and measure it."""
    posterior = POSTERIORS[name]
    one, truth = case.PosteriorCase(posterior), case.reference(posterior)
    row: table.Row = {"model": name, "d": len(truth.mean), "method": method}
    if method == "reference":
        return row | {"said": "five chains against five", "flagged": False} | case.floor(posterior).to_dict()
    outcome = methods.run(one, method, seed, fresh, framework)
    row |= {
        "seed": seed,
        "key": methods.key(one, method, seed, framework).name,
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
    if len(outcome.draws):
        row |= metrics.errors(outcome.draws, truth).to_dict()
    return row


def set_precision(name: str, framework: str) -> None:
    """The framework's own default, unless the posterior cannot be evaluated in it."""
    double = POSTERIORS[name].float64
    if framework == "numpyro":
        import numpyro

        numpyro.enable_x64(double)
    else:
        import torch

        torch.set_default_dtype(torch.float64 if double else torch.float32)


def main(arguments: list[str] | None = None) -> None:
    """Run what is asked for and print the table."""
    options = parse(arguments)
    methods.prepare_process()
    RESULTS.mkdir(exist_ok=True)
    suffix = f"_seed{options.seed}" if options.seed else ""
    stem = RESULTS / f"posteriordb_{options.backend}{suffix}"
    store = stem.with_suffix(".json")
    rows = table.stored(store)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a fit warns of is in its row
        for name in [] if options.table else options.names:
            fitted: set[str] = set()
            set_precision(name, options.backend)
            for method in options.methods:
                label, fit = f"{name}/{method}", method.split("-")[0]
                again = options.fresh and method != "reference"
                one = case.PosteriorCase(POSTERIORS[name])
                key = (
                    None
                    if method == "reference"
                    else methods.key(one, method, options.seed, options.backend).name
                )
                if again or label not in rows or rows[label].get("key") != key:
                    # raw and refined rows share a fit: --fresh makes it once
                    row = make_row(name, method, options.seed, again and fit not in fitted, options.backend)
                    rows = table.stored(store) | {
                        label: row
                    }  # a second command may have added rows in the meantime
                    fitted.add(fit)
                    table.keep(store, rows)
                    print(
                        f"{label}: {line(bars.judged([r for r in rows.values() if r['model'] == name]), method)}",
                        flush=True,
                    )
    order = [f"{n}/{m}" for n in POSTERIORS for m in METHODS + MORE_METHODS]
    everything = bars.judged([rows[k] for k in order if k in rows])
    print(
        table.plain(
            [r for r in everything if r["model"] in options.names and r["method"] in options.methods], COLUMNS
        )
    )
    summary = bars.summary(everything)
    old = sorted({r["model"] for r in everything if r.get("code") not in (None, methods.code_hash())})
    if old:
        summary.append(f"made by an earlier state of the package (--fresh runs them again): {', '.join(old)}")
    print("\n".join(summary))
    flat = [{k: v for k, v in r.items() if k != "facts"} for r in everything]
    table.write(flat, summary, stem, COLUMNS)


def line(rows: list[table.Row], method: str) -> str:
    """One printed row."""
    row = next(r for r in rows if r["method"] == method)
    return "  ".join(
        f"{h}={table.text(row, f, form)}" for h, f, form in COLUMNS[3:] if row.get(f) is not None
    )


if __name__ == "__main__":
    main()
