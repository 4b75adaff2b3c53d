"""``python -m benchmarks.paper toy2d``: one-step samplers and their rivals on ten densities in the plane."""

from __future__ import annotations

import argparse
import json
import shutil
from typing import Any

import numpy as np

from benchmarks import table
from benchmarks.paper import neural
from benchmarks.paper.discrepancy import Yardstick
from benchmarks.paper.neural import QUICK, RECIPES, Size
from benchmarks.paper.targets import TOYS
from benchmarks.paper.toy2d import report
from benchmarks.paper.toy2d.methods import METHODS, STEP, make, mean_and_error, measure

QUICK_TOYS, QUICK_METHODS = (
    ("donut",),
    ("exact", "dft-ns", "kl-ns", "default", "default-refined", "langevin", "svgd-200"),
)


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, then write table, page and picture."""
    asked = parse(arguments)
    size = QUICK if asked.quick else Size()
    densities = neural.names(asked.densities, QUICK_TOYS if asked.quick else tuple(TOYS))
    methods = neural.names(asked.methods, tuple(METHODS), QUICK_METHODS if asked.quick else None)
    rows, draws = [], {}
    # Method by method, so that an unfinished run already compares something on every density.
    for source in dict.fromkeys(METHODS[m].source for m in methods):
        for density in densities:
            found, shown = cells(density, source, size, asked)
            rows += [r for r in found if r["key"] in methods]
            draws.update(shown)
            for r in found:
                print(f"{density:12} {r['method']:30} {table.line(r, report.COLUMNS[3:])}", flush=True)
    kept = report.others(rows, report.stem(asked)) if asked.add else []
    order = list(METHODS)
    rows = sorted([*rows, *kept], key=lambda r: (list(TOYS).index(r["density"]), order.index(r["key"])))
    report.write(rows, draws, list(dict.fromkeys(r["density"] for r in rows)), asked, size)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper toy2d", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one density, short trainings, few draws")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--fresh", action="store_true", help="run again what has been run")
    again.add_argument("--finished", action="store_true", help="run nothing; write what has been run")
    parser.add_argument(
        "--add", action="store_true", help="put the rows into the table that is there; its picture stays"
    )
    parser.add_argument("--densities", help=f"with commas between; of {', '.join(TOYS)}")
    parser.add_argument("--methods", help=f"with commas between; of {', '.join(METHODS)}")
    parser.add_argument(
        "--backend", choices=("numpyro", "pyro"), default="numpyro", help="of the neural samplers"
    )
    return parser.parse_args(arguments)


def cells(density: str, source: str, size: Size, asked: argparse.Namespace) -> tuple[list[table.Row], Any]:
    """Rows of the methods of one source, and the draws that the picture shows; from the disk where they are there."""
    toy = TOYS[density]
    settings = size.settings(RECIPES[source]) if source in RECIPES else STEP.get(source)
    what = {"formula": toy.formula, "settings": settings, "size": size.__dict__, "backend": asked.backend}
    where = neural.cell(f"measured-{source}", density, what)
    if asked.fresh:
        shutil.rmtree(where, ignore_errors=True)
    if not (where / "rows.json").exists():
        if asked.finished:
            return [], {}
        draws, cost = make(toy, source, size, asked.backend, asked.fresh)
        yardstick = Yardstick.of(toy)
        rows = [row(density, key, measure(toy, yardstick, d), cost) for key, d in draws.items()]
        where.mkdir(parents=True, exist_ok=True)
        np.savez(where / "shown.npz", **{k: d[0, 0] for k, d in draws.items()})
        (where / "rows.json").write_text(json.dumps(rows))
    with np.load(where / "shown.npz") as f:
        shown = {(density, k): f[k] for k in f.files}
    return json.loads((where / "rows.json").read_text()), shown


def row(density: str, key: str, found: Any, cost: Any) -> table.Row:
    """One row, means and standard errors."""
    method = METHODS[key]
    out: table.Row = {
        "density": density,
        "method": method.label,
        "preconditioner": method.preconditioner,
        "key": key,
    }
    for name, values in found.items():
        out[name], out[f"{name}_se"] = mean_and_error(values)
    return {**out, **cost}
