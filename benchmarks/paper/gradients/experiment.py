"""``python -m benchmarks.paper gradients``: full and partial gradient of the Fisher divergence along the training."""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import table
from benchmarks.paper import neural, page
from benchmarks.paper.discrepancy import Yardstick
from benchmarks.paper.gradients import picture
from benchmarks.paper.gradients.curves import Curves
from benchmarks.paper.neural import QUICK, RECIPES, SHARED, Size
from benchmarks.paper.targets import TOYS, Toy
from benchmarks.paper.toy2d.methods import mean_and_error, measure

TITLE = "Full and partial gradient of the Fisher divergence"
QUICK_TOYS = ("donut",)
GRADIENTS = {"dft-ns": "full", "fisher-ns": "partial"}
FLOOR_SEED, FLOOR_SETS = 11, 30
# Looks at the end of the training that the final figure averages over.
LAST = 3
ERRORS = 2.0
COLUMNS: table.Columns = (
    ("density", "density", "{}"),
    *((f"{what}, {name}", f"{field}_{key}{end}", form)
      for what, field, form in (("KSD^2, V", "ksd_v", "{:.3f}"), ("sliced W2", "sw2", "{:.3f}"))
      for name, key in (("full", "full"), ("partial", "partial"), ("exact draws", "exact"))
      for name, end in ((name, ""), ("± se", "_se"))),
    ("Fisher gap, full", "gap_full", "{:.2f}"),
    ("Fisher gap, partial", "gap_partial", "{:.2f}"),
    ("full lower", "verdict", "{}"),
    ("full lower, of log KSD^2", "verdict_log", "{}"),
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Train what is missing, then write table, page and picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper gradients", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one density, short trainings, few draws")
    parser.add_argument("--fresh", action="store_true", help="run again what has been run")
    parser.add_argument("--densities", help=f"with commas between; of {', '.join(TOYS)}")
    asked = parser.parse_args(arguments)
    size = QUICK if asked.quick else Size()
    found = []
    for density in neural.names(asked.densities, QUICK_TOYS if asked.quick else tuple(TOYS)):
        found.append(curves(TOYS[density], size, asked.fresh))
        print(table.line(row(found[-1]), COLUMNS), flush=True)
    write(found, asked.quick, size)


def curves(toy: Toy, size: Size, fresh: bool = False) -> Curves:
    """Measures along both trainings, from the disk where they are there."""
    yardstick = Yardstick.of(toy)
    values: dict[tuple[str, str], np.ndarray] = {}
    gap, steps = {}, np.empty(0)
    for recipe, name in GRADIENTS.items():
        done = neural.trained(toy, recipe, size, fresh=fresh)
        what = {"formula": toy.formula, "settings": size.settings(RECIPES[recipe]), "size": size.__dict__}
        where = neural.cell(f"curve-{recipe}", toy.name, what)
        if fresh:
            shutil.rmtree(where, ignore_errors=True)
        # Looks as groups, seeds as sets.
        own = neural.measured(where / "curve.json", lambda done=done: measure(toy, yardstick, done.curve))
        values |= {(name, m): np.array(v) for m, v in own.items()}
        gap[name], steps = done.gap, done.steps
    exact = toy.target.exact(FLOOR_SETS * size.curve_draws, FLOOR_SEED).reshape(1, FLOOR_SETS, -1, 2)
    floor = {m: np.array(v[0]) for m, v in measure(toy, yardstick, exact).items()}
    return Curves(toy.name, steps, values, gap, floor)


def last(own: Curves, gradient: str, measure_name: str) -> np.ndarray:
    """Mean over the last looks, for each seed."""
    return own.values[gradient, measure_name][-LAST:].mean(0)


def row(own: Curves) -> table.Row:
    """The end of both trainings, and the verdicts."""
    out: table.Row = {"density": own.density}

    def put(name: str, ends: dict[str, np.ndarray], floor: np.ndarray) -> None:
        for gradient, seeds in ends.items():
            out[f"{name}_{gradient}"], out[f"{name}_{gradient}_se"] = mean_and_error(seeds[:, None].tolist())
        out[f"{name}_exact"], out[f"{name}_exact_se"] = mean_and_error([floor.tolist()])

    for m in ("ksd_v", "ksd_u", "sw2"):
        put(m, {g: last(own, g, m) for g in GRADIENTS.values()}, own.floor[m])
    put(
        "log_ksd_v",
        {g: np.log(last(own, g, "ksd_v")) for g in GRADIENTS.values()},
        np.log(own.floor["ksd_v"]),
    )
    for gradient in GRADIENTS.values():
        out[f"gap_{gradient}"] = float(np.nanmean(own.gap[gradient][-LAST:]))
    return {**out, "verdict": verdict(out), "verdict_log": verdict(out, "log_ksd_v")}


def verdict(found: table.Row, measure_name: str = "ksd_v") -> str:
    """Whether the full gradient ends lower, by more than two standard errors; or both are at the floor.

    At the floor: above exact draws by no more than two standard errors, and no more than twice as high, since runaway seeds have
    standard errors that would excuse anything.
    """
    twice = math.log(2) if measure_name.startswith("log") else found[f"{measure_name}_exact"]

    def lower(a: str, b: str) -> bool:
        error = math.hypot(found[f"{measure_name}_{a}_se"], found[f"{measure_name}_{b}_se"])
        return bool(found[f"{measure_name}_{b}"] - found[f"{measure_name}_{a}"] > ERRORS * error)

    if lower("full", "partial"):
        return "pass: full is lower"
    high = [found[f"{measure_name}_{g}"] - found[f"{measure_name}_exact"] > twice for g in GRADIENTS.values()]
    if not any(high) and not any(lower("exact", gradient) for gradient in GRADIENTS.values()):
        return "pass: both at the floor"
    return "FAIL: partial is lower" if lower("partial", "full") else "FAIL: no difference"


def passed(rows: Sequence[table.Row], name: str) -> str:
    """How many densities pass, and which do not."""
    failed = [f"{r['density']} ({r[name][6:]})" for r in rows if not r[name].startswith("pass")]
    return f"{len(rows) - len(failed)} of {len(rows)} densities (not on: {', '.join(failed) or 'none'})"


def write(found: Sequence[Curves], quick: bool, size: Size) -> None:
    """The page, the CSV file and the picture."""
    stem = page.folder(quick) / "gradients"
    picture.draw(found, stem.with_suffix(".png"))
    rows = [row(c) for c in found]
    with open(stem.parent / "gradients_curves.csv", "w", encoding="utf-8") as f:
        f.write("density,gradient,seed,step,ksd_u,ksd_v,sw2\n")
        f.writelines(_curve_lines(found))
    words = ", ".join(f"{k} {v}" for k, v in {**SHARED, **size.settings(RECIPES["dft-ns"])}.items())
    notes = [
        "the full gradient ends lower by more than two standard errors, or both are at the floor, on "
        f"{passed(rows, 'verdict')}",
        "the same for the logarithm of KSD^2, since it spreads over decades where the partial gradient runs away: "
        f"{passed(rows, 'verdict_log')}",
        f"both trainings: {words}; same first weights, random numbers, batches, learning rates and score steps: the gradient is "
        "the whole difference. Full: Theorem 1 of the paper. Partial: its first term alone, E 1/2 |s_phi - s_q|^2, with the "
        "gradient through the draws.",
        f"KSD^2: squared kernel Stein discrepancy, V-statistic of {size.curve_draws} one-step draws, kernel "
        f"(1 + |x - y|^2)^(-1/2). The figures are means over the last {LAST} looks (every {size.every} steps) and "
        f"{len(size.seeds)} seeds, with the standard error over seeds. The floor is what as many exact draws have.",
        "sliced W2: as in [toy2d](toy2d.md), which states the densities too.",
        "Fisher gap: J(s_q) - J(s_phi), the library's lower bound of the Fisher divergence, over the last steps. It is negative "
        "where the score network is behind.",
    ]
    command = "python -m benchmarks.paper gradients" + (" --quick" if quick else "")
    caption = "KSD² of one-step draws against training steps: mean and range of the seeds, and exact draws"
    page.write(
        stem, TITLE, rows, COLUMNS, [*notes, *page.provenance(command, size.seeds)],
        [(stem.with_suffix(".png").name, caption)],
    )  # fmt: skip
    print("\n".join(notes[:2]))


def _curve_lines(found: Sequence[Curves]) -> list[str]:
    lines: list[str] = []
    for own in found:
        for gradient in GRADIENTS.values():
            measures: list[Any] = [own.values[gradient, m] for m in ("ksd_u", "ksd_v", "sw2")]
            for i, step in enumerate(own.steps):
                for seed in range(measures[0].shape[1]):
                    cells = ",".join(f"{m[i, seed]:.6g}" for m in measures)
                    lines.append(f"{own.density},{gradient},{seed},{step:.0f},{cells}\n")
    return lines
