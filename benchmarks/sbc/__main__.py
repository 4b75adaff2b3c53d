"""Simulation-based calibration (Talts et al. 2018): ``python -m benchmarks.sbc [--backend pyro] [--models a,b] [--fits x,y]``.

Each replicate draws parameters from the prior and data given them, fits `DFT` with default settings, and ranks the
true values among the draws, raw and refined. Exact draws give uniform ranks. The Gaussian without a network is the control,
whose raw draws must fail. Prints a table and writes ``benchmarks/results/sbc.md``, ``.csv`` and ``.json`` (the ranks) and
``docs/images/sbc.png``. Finished replicates are kept below ``benchmarks/.cache/sbc`` and are not made again: a killed
command resumes, and more replicates may be asked for later. ``--fresh`` makes them again (after a change of the
package), ``--table`` only prints and draws what is there, ``--quick`` makes three with hardly any training and writes nothing.
"""

from __future__ import annotations

from benchmarks import one_thread as one_thread

# isort: split
import argparse
import json
from pathlib import Path

from benchmarks import methods
from benchmarks.command_line import chosen
from benchmarks.sbc import picture, replicates, report
from benchmarks.sbc.models import MODELS
from benchmarks.sbc.replicates import CELLS, FITS, QUICK, Cell, Record
from benchmarks.table import plain, stored

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "sbc"
PICTURE = ROOT / "docs" / "images" / "sbc.png"
# A fit of the schools takes eight times as long with Pyro; simuk compiles NumPyro's MCMC for each replicate.
COUNTS = {"numpyro": 200, "pyro": 50, "simuk": 50, "quick": 3}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.sbc", description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated, default all")
    parser.add_argument("--fits", default=",".join(FITS), help="comma-separated, default all")
    parser.add_argument("--backend", default="numpyro", choices=("numpyro", "pyro"))
    parser.add_argument("--replicates", type=int, help="default 200 with NumPyro, 50 with Pyro and simuk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="make replicates again although they are cached")
    parser.add_argument("--table", action="store_true", help="print and draw what is there and run nothing")
    parser.add_argument("--quick", action="store_true", help="three replicates with hardly any training")
    options = parser.parse_args(arguments)
    options.models = chosen(parser, options.models, MODELS)
    options.fits = chosen(parser, options.fits, FITS)
    return options


def _count(options: argparse.Namespace, cell: Cell) -> int:
    if options.replicates is not None:
        return options.replicates
    return COUNTS["quick" if options.quick else "simuk" if cell.fit == "simuk" else cell.backend]


def store(results: Path, found: dict[str, list[Record]]) -> None:
    """Writes the records, one line for each cell: they are many."""
    lines = [
        f"{json.dumps(name)}: {json.dumps(found[name], separators=(',', ':'))}" for name in sorted(found)
    ]
    results.parent.mkdir(parents=True, exist_ok=True)
    results.with_suffix(".json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main(
    arguments: list[str] | None = None,
    results: Path = RESULTS,
    image: Path = PICTURE,
    folder: Path = replicates.FOLDER,
) -> None:
    """Run what is asked for, print the table, write the files and the picture."""
    options = parse(arguments)
    methods.prepare_process()
    found: dict[str, list[Record]] = {} if options.quick else stored(results.with_suffix(".json"))
    chosen = [
        c for c in CELLS
        if c.backend == options.backend and c.model in options.models and c.fit in options.fits
    ]  # fmt: skip
    for cell in [] if options.table else chosen:
        records: list[Record] = []
        extra = QUICK if options.quick else {}
        for record in replicates.run(cell, _count(options, cell), options.seed, extra, options.fresh, folder):
            records.append(record)
            if len(records) % 10 == 0:
                print(f"{cell.name}: {len(records)} replicates", flush=True)
        if not options.quick:
            # read again: a second command may have added cells in the meantime
            found = stored(results.with_suffix(".json")) | {cell.name: records}
            store(results, found)
        found[cell.name] = records
        print(plain(report.cell_rows(cell, records), report.COLUMNS), flush=True)
    table = report.rows(found)
    if options.quick:
        return
    print(plain(table, report.COLUMNS))
    summary = report.summary(found, table)
    old = [name for name in sorted(found) if any(r["code"] != replicates.CODE for r in found[name])]
    if old:
        summary.append(
            f"made by an earlier state of the package (--fresh makes them again): {', '.join(old)}"
        )
    print("\n".join(summary))
    report.write(table, summary, results)
    if any(c.backend == "numpyro" and c.name in found for c in CELLS):
        picture.draw(found, "numpyro", image)


if __name__ == "__main__":
    main()
