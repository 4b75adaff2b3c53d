"""The page, the CSV file and the picture of the comparison in the plane."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import table
from benchmarks.paper import page
from benchmarks.paper.neural import RECIPES, SHARED, Size, names
from benchmarks.paper.targets import TOYS
from benchmarks.paper.toy2d import musts, picture
from benchmarks.paper.toy2d.methods import METHODS, STEP

TITLE = "Ten densities in the plane"
COLUMNS: table.Columns = (
    ("density", "density", "{}"),
    ("method", "method", "{}"),
    ("preconditioner", "preconditioner", "{}"),
    ("KSD^2, U", "ksd_u", "{:.4f}"),
    ("± se", "ksd_u_se", "{:.4f}"),
    ("KSD^2, V", "ksd_v", "{:.4f}"),
    ("± se", "ksd_v_se", "{:.4f}"),
    ("sliced W2", "sw2", "{:.3f}"),
    ("± se", "sw2_se", "{:.3f}"),
    ("CPU s", "seconds", "{:.1f}"),
    ("its own diagnostics", "said", "{}"),
)

FLOOR: table.Columns = (
    ("method", "method", "{}"),
    ("KSD", "ksd_u", "{}"),
    ("sliced W2", "sw2", "{}"),
    ("both", "both", "{}"),
)


def write(
    rows: list[table.Row], draws: Mapping[tuple[str, str], np.ndarray], densities: Sequence[str],
    asked: argparse.Namespace, size: Size,
) -> None:  # fmt: skip
    """All three files, and the verdicts on the terminal.

    Args:
        rows: One for each density and method.
        draws: (density, method) -> draws (n, 2) for the picture.
        densities: In order.
        asked: The command line.
        size: How much was made.
    """
    path = stem(asked)
    if not asked.add:
        picture.draw(draws, densities, path.with_suffix(".png"))
    verdicts = musts.judge(rows)
    print("\n".join(verdicts))
    command = "python -m benchmarks.paper toy2d" + (" --quick" if asked.quick else "")
    command += f" --backend {asked.backend}" if asked.backend != "numpyro" else ""
    added = []
    if asked.add:
        own = ", ".join(dict.fromkeys(METHODS[m].label for m in names(asked.methods, tuple(METHODS))))
        added = [f"added by `{command} --add --methods {asked.methods}` to a table that was there: {own}"]
    caption = f"{size.draws} draws of each method over the contours of the density"
    page.write(
        path, TITLE, rows, COLUMNS,
        [*verdicts, *notes(densities, size), *added, *page.provenance(command, size.seeds)],
        [(path.with_suffix(".png").name, caption)],
        tables=[
            ("Densities on which a method is within two standard errors of exact draws", musts.at_the_floor(rows), FLOOR),
            ("Squared kernel Stein discrepancy, U-statistic", *pivot(rows, "ksd_u", "{:.3f}")),
            ("Sliced Wasserstein-2 distance", *pivot(rows, "sw2", "{:.3f}")),
        ],
    )  # fmt: skip


def stem(asked: argparse.Namespace) -> Path:
    """Path of the three files, without suffix."""
    end = "" if asked.backend == "numpyro" else f"_{asked.backend}"
    return page.folder(asked.quick) / f"toy2d{end}"


def others(rows: Sequence[table.Row], path: Path) -> list[table.Row]:
    """Rows of the table on the disk that are not among ``rows``, as they were written.

    Args:
        rows: New ones.
        path: Without suffix.
    """
    new = {(r["density"], r["key"]) for r in rows}
    numbers = [name for _, name, form in COLUMNS if form != "{}"]
    with open(path.with_suffix(".csv"), encoding="utf-8", newline="") as f:
        there = [{**r, **{name: float(r[name]) for name in numbers}} for r in csv.DictReader(f)]
    return [r for r in there if (r["density"], r["key"]) not in new]


def pivot(rows: Sequence[table.Row], measure: str, form: str) -> tuple[list[table.Row], table.Columns]:
    """One measure with a line for each method and a column for each density, mean ± standard error."""
    densities = list(dict.fromkeys(r["density"] for r in rows))
    lines: dict[str, table.Row] = {}
    for r in rows:
        cell = f"{_short(r[measure], form)} ± {_short(r[measure + '_se'], form)}"
        lines.setdefault(r["key"], {"method": r["method"]})[r["density"]] = cell
    columns = (("method", "method", "{}"), *((d, d, "{}") for d in densities))
    return [lines[k] for k in METHODS if k in lines], columns


def _short(value: float, form: str) -> str:
    return form.format(value) if abs(value) < 100 else f"{value:.2g}"


def _settings(settings: Mapping[str, Any]) -> str:
    """What a recipe changes beside `SHARED`."""
    return ", ".join(f"{k} {v}" for k, v in settings.items() if SHARED.get(k) != v) or "none"


def notes(densities: Sequence[str], size: Size) -> list[str]:
    """What the figures are, in sentences."""
    n, seeds = size.draws, len(size.seeds)
    shared = ", ".join(f"{k} {v}" for k, v in SHARED.items())
    recipes = "; ".join(f"{r.label}: {_settings(r.settings)}" for r in RECIPES.values())
    return [
        f"KSD^2: squared kernel Stein discrepancy of {n} draws, kernel (1 + |x - y|^2)^(-1/2). U has mean zero for exact draws "
        "and can fall below it; V cannot. Neither sees how much weight separate modes have.",
        f"sliced W2: between {n} draws and 50,000 exact ones, 64 directions, after whitening by the exact covariance; of the "
        "funnel in (x1, asinh x2), since a few giant draws would decide its plain variance.",
        f"mean ± standard error over {size.sets} sets of draws of each of {seeds} training seeds. The error is the larger of two "
        "estimates: from the means of the seeds, and from the sets within seeds.",
        "SVGD's particles depend on each other, so that a run is one set of draws. They push each other apart and can lie more "
        "evenly than independent draws: figures below the row of exact draws mean even, not more than exact.",
        f"DFT-NS, KL-NS and Fisher-NS (the paper's objectives) share: {shared}. They have no preconditioner, and the same "
        "networks, noise, batches, random numbers and number of steps. DFT-NS and Fisher-NS differ in the gradient alone "
        "(full, partial).",
        f"other settings that differ from the library's defaults: {recipes}.",
        "The default recipe is KL training behind a Gaussian preconditioner; its DFT phase is off by default "
        "(docs/experiments.md). It is on in `KL, then DFT`, and is not rolled back there.",
        f"SVGD: Pyro's, RBF kernel, Adagrad with rate {STEP['svgd']}, {n} particles. Langevin: unadjusted, step "
        f"{STEP['langevin']}. HMC: NumPyro's, each transition with 5 leapfrog steps of {STEP['hmc']}. All start uniformly on "
        "(-2, 2)^2; each draw of Langevin and HMC is a chain of its own. NUTS: NumPyro's, 4 chains, 1,000 warm-up steps.",
        "tuned once for all densities, on some: step sizes of SVGD, Langevin and HMC ([what was tried](toy2d_tuning.md)); "
        "rate (3e-4, 1e-3), noise (0.1, 0.05, annealed from 1) of DFT-NS, and the rate (1e-3, 3e-3) of KL-NS, in trials that "
        "`python -m benchmarks.paper.toy2d.tuning` makes again. Fisher-NS takes the settings of DFT-NS. The default recipe "
        "and NUTS are as they come; the one with 5,000 steps in place of 1,200 differs in that alone, and is judged by KL-NS "
        "with as many.",
        "CPU s: for one training seed, run or group of sets, compilation included, on a shared machine.",
        *(f"{name}: U = {TOYS[name].formula}" for name in densities),
    ]
