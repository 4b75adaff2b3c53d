"""What fits cost, against NUTS and others: ``python -m benchmarks cost [--backend pyro] [names]``.

Writes ``benchmarks/results/cost_numpyro.md``, ``.csv`` and ``.json``: one row for each model and method. Every cell runs in a
fresh process with one thread, from a cold cache, and is stopped at a limit of CPU seconds (``--limit``), which its row then
says. Finished cells are kept below ``benchmarks/.cache`` and not run again; ``--fresh`` runs them again, ``--table`` only
prints. ``--references`` makes the moments and quantiles that rows are compared with, by exact draws or long runs of NUTS.
``--scaling`` runs models of growing size instead, writes ``cost_scaling`` files and the picture in the docs.

Methods: `dft` (defaults, kept draws), `nuts` (4 x (1000 + 1000), the framework's defaults, warm-up gradients counted), and
on NumPyro models `nutpie` (low-rank metric), `mams`, `chees`, `meads` and `laps` (blackjax).
"""

from __future__ import annotations

from benchmarks import one_thread as one_thread

# isort: split
import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import cache, table
from benchmarks.command_line import chosen
from benchmarks.cost import report, rivals, scaling, truth, worker
from benchmarks.cost.accuracy import Summary, errors
from benchmarks.cost.targets import TARGETS, Target

RESULTS = Path(__file__).resolve().parents[1] / "results"
METHODS = tuple(worker.SETTINGS)
DEFAULT_METHODS = ("nuts", "dft")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.cost", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="models, or parts of their names; default all")
    parser.add_argument(
        "--methods", default=",".join(DEFAULT_METHODS), help=f"comma-separated, of {', '.join(METHODS)}"
    )
    parser.add_argument("--backend", default="numpyro", choices=("numpyro", "pyro"))
    parser.add_argument("--limit", type=int, default=600, help="CPU seconds of one cell")
    parser.add_argument("--fresh", action="store_true", help="run cells again although they are there")
    parser.add_argument("--table", action="store_true", help="print what is there and run nothing")
    parser.add_argument(
        "--references", action="store_true", help="make the references that are missing, and stop"
    )
    parser.add_argument("--scaling", action="store_true", help="cost against size: numbers and the picture")
    parser.add_argument("--largest", type=int, default=1_000_000, help="size up to which --scaling runs")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.methods = chosen(parser, options.methods, METHODS)
    known = list(TARGETS) if not options.scaling else scaling.names(options.largest)
    known = [n for n in known if options.backend in worker.find(n).frameworks]
    options.names = [
        n for n in known if not options.names or any(_asked(n, part, known) for part in options.names)
    ]
    if not options.names:
        parser.error(f"no model of that name; known: {', '.join(known)}")
    return options


def _asked(name: str, part: str, known: Sequence[str]) -> bool:
    """A whole name means that model alone, anything else all that contain it."""
    return name == part if part in known else part in name


def folder(target: Target, method: str, framework: str) -> Path:
    """Where a cell is kept; its name changes with model, data and settings."""
    return cache.cell(target, method, worker.SETTINGS[method], framework)


def _done(row: table.Row, key: str, limit: int) -> bool:
    """Whether a row is that of a cell; one that was stopped is tried again under a higher limit."""
    stopped = row.get("seconds") is None and str(row.get("said")).startswith("stopped")
    return row.get("key") == key and not (stopped and limit > row["limit"])


def make_row(target: Target, method: str, framework: str, limit: int) -> table.Row:
    """Run one cell and compare it with the reference."""
    from benchmarks.methods import code_hash  # loads torch

    place = folder(target, method, framework)
    row = {
        "model": target.name, "group": target.group, "d": sum(target.sites(framework).values()), "method": method,
        "key": place.name, "limit": limit,
    }  # fmt: skip
    if method == "dft":
        row["code"] = code_hash()
    return compared(row | worker.run_cell(target.name, method, framework, place, limit), target, place)


def compared(row: table.Row, target: Target, place: Path) -> table.Row:
    """A row with its errors, where there are a reference and the cell's summary of its draws."""
    reference, summary = truth.load(target), place / "summary.npz"
    if reference is None or not summary.exists() or place.name != row["key"]:
        return row
    return row | errors(Summary.load(summary), reference)


def run(options: argparse.Namespace, store: Path) -> None:
    """Run what is not there, one cell at a time, and store each row as soon as it is made."""
    for name in options.names:
        target = worker.find(name)
        for method in options.methods:
            label = f"{name}/{method}"
            if said := rivals.missing(method) if method in rivals.SETTINGS else None:
                print(f"{label}: {said}", flush=True)
                continue
            rows = table.stored(store)
            key = folder(target, method, options.backend).name
            if not options.fresh and _done(rows.get(label, {}), key, options.limit):
                continue
            row = make_row(target, method, options.backend, options.limit)
            rows = table.stored(store) | {label: row}  # a second command may have added rows in the meantime
            table.keep(store, rows)
            done = report.complete([r for r in rows.values() if r["model"] == name])
            print(f"{label}: {report.line(next(r for r in done if r['method'] == method))}", flush=True)


def refreshed(rows: dict[str, table.Row], framework: str) -> dict[str, table.Row]:
    """Rows compared again with the references of today, where the cells' draws are still known."""
    out = {}
    for label, row in rows.items():
        target = worker.find(row["model"])
        place = cache.FOLDER / target.name / row["key"]
        out[label] = compared(row, target, place) if framework in target.frameworks else row
    return out


def older(rows: Sequence[table.Row]) -> list[str]:
    """Models whose row of ours was made by other code than today's."""
    ours = [r for r in rows if r.get("code")]
    if not ours:
        return []
    from benchmarks.methods import code_hash  # loads torch

    return sorted({r["model"] for r in ours if r["code"] != code_hash()})


def make_references(names: Sequence[str], fresh: bool, limit: int) -> None:
    """Make the references that are missing, each in a process of its own."""
    for name in names:
        if fresh or not truth.path(TARGETS[name]).exists():
            row = worker.run_cell(name, "reference", "numpyro", cache.FOLDER / name / "reference", limit)
            print(f"{name}: {row['said']} ({row['process_seconds']:.0f} CPU s)", flush=True)


def notes() -> list[str]:
    """How the table is to be read."""
    out = [
        "every cell ran in a fresh process with one thread; CPU s: from the model to the draws, compilation included, imports "
        "and data not; gradients: of the model, warm-up included",
        "worst b2: squared bias of x and x^2 over their variances, the worst over all coordinates on the model's own scale; "
        "to b2 < 0.01: gradients after which running estimates stay below (of DFT and LAPS only the end is known)",
        "nuts: 4 chains x (1000 + 1000), the framework's defaults, one after the other; "
        + "; ".join(
            f"{m}: {', '.join(f'{k} {v}' for k, v in s.items())}" for m, s in rivals.SETTINGS.items()
        ),
    ]
    out += [f"reference of {n}: {truth.words(truth.load(t))}; data: {t.source}" for n, t in TARGETS.items()]
    return out


def main(arguments: list[str] | None = None) -> None:
    """Run what is asked for and print the table."""
    options = parse(arguments)
    if options.here:
        worker.main(options.here)
        return
    if options.references:
        make_references(options.names, options.fresh, options.limit)
        return
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / ("cost_scaling" if options.scaling else f"cost_{options.backend}")
    store = stem.with_suffix(".json")
    if not options.table:
        run(options, store)
    fresh = refreshed(table.stored(store), options.backend)
    rows = table.stored(store)  # again: a second command may have added rows in the meantime
    rows |= {label: row for label, row in fresh.items() if rows.get(label, {}).get("key") == row["key"]}
    table.keep(store, rows)
    order = [f"{n}/{m}" for n in (scaling.names(10**9) if options.scaling else TARGETS) for m in METHODS]
    everything = report.complete([rows[k] for k in order if k in rows])
    if not everything:
        print("nothing has been run yet")
        return
    print(table.plain([r for r in everything if r["model"] in options.names], report.COLUMNS))
    summary = report.summary(everything)
    if old := older(everything):
        summary.append(f"made by an earlier state of the package (--fresh runs them again): {', '.join(old)}")
    print("\n".join(summary))
    flat = [{k: v for k, v in r.items() if k not in ("facts", "warnings")} for r in everything]
    if options.scaling:
        scaling.draw(everything)
        table.write(flat, summary, stem, report.COLUMNS)
    else:
        table.write(flat, summary + notes(), stem, report.COLUMNS)


if __name__ == "__main__":
    main()
