"""``python -m benchmarks.paper.toy2d.tuning``: what was tried for each method before one setting was taken for all densities.

Three of the ten densities are used: a thin ring, a long curved valley, and a ridge in two parts. The score of a setting is
the mean over them of log(KSD^2, V-statistic) and log(sliced W2); of settings with the comparison's number of steps the
lowest one of each method was taken. DFT-NS with three times the steps is there to see what length gains.
"""

from __future__ import annotations

from benchmarks import one_thread as one_thread

# isort: split
import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import table
from benchmarks.paper import neural, page, rivals
from benchmarks.paper.discrepancy import Yardstick
from benchmarks.paper.neural import RECIPES, SHARED, Size
from benchmarks.paper.targets import TOYS
from benchmarks.paper.toy2d.methods import STEP, STEPS, SVGD_STEPS, measure

DENSITIES = ("donut", "rosenbrock", "planar3")
SIZE = Size(sets=2, every=3000, curve_draws=1)
DFT, KL = ({**RECIPES[name].settings} for name in ("dft-ns", "kl-ns"))
# Fisher-NS has the settings of DFT-NS: the two are to differ in the gradient alone.
TRIED: dict[str, list[dict[str, Any]]] = {
    "dft-ns": [
        {**DFT, "noise": 0.05, "dft_learning_rate": 3e-4},
        {**DFT, "score_steps": 5, "dft_learning_rate": 3e-4},
        *({**DFT, "dft_learning_rate": rate} for rate in (1e-4, 3e-4, 1e-3)),
        {**DFT, "noise_mode": "annealed", "noise_start": 1.0, "dft_learning_rate": 3e-4},
        {**DFT, "num_steps": 9000},
        {**DFT, "num_steps": 9000, "noise_mode": "annealed", "noise_start": 3.0, "noise": 0.05},
    ],
    "kl-ns": [{**KL, "learning_rate": rate} for rate in (1e-3, 3e-3)],
}
COLUMNS: table.Columns = (
    ("method", "method", "{}"),
    ("setting", "setting", "{}"),
    *((f"{name}: {what}", f"{name}_{field}", form) for name in DENSITIES
      for what, field, form in (("KSD^2, V", "ksd_v", "{:.3g}"), ("sliced W2", "sw2", "{:.3g}"))),
    ("score", "score", "{:.2f}"),
    ("taken", "taken", "{}"),
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", help="with commas between")
    parser.add_argument("--finished", action="store_true", help="run nothing; write what has been run")
    asked = parser.parse_args(arguments)
    known = (*rivals.RATES, *TRIED)
    rows = []
    for method in neural.names(asked.methods, known):
        settings: Sequence[Any] = TRIED[method] if method in TRIED else rivals.RATES[method]
        taken: Any = RECIPES[method].settings if method in TRIED else STEP[method]
        for setting in settings:
            if asked.finished and not all(_path(method, setting, d).exists() for d in DENSITIES):
                continue
            rows.append(tried(method, setting) | {"taken": setting == taken})
    stem = page.folder(False) / "toy2d_tuning"
    notes = page.provenance("python -m benchmarks.paper.toy2d.tuning", SIZE.seeds)
    if asked.finished:
        notes.insert(0, "settings that this command has not run to the end are missing")
    page.write(
        stem, "What was tried for the methods of toy2d", rows, COLUMNS, [" ".join(__doc__.split()), *notes]
    )
    print(table.plain(rows, COLUMNS))


def tried(method: str, setting: Any) -> table.Row:
    """Measures of one setting on the three densities."""
    row: table.Row = {"method": method, "setting": described(setting)}
    scores = []
    for density in DENSITIES:
        path = _path(method, setting, density)
        found = neural.measured(path, lambda density=density: _measured(method, setting, density))
        row |= {f"{density}_{k}": v for k, v in found.items()}
        scores.append(np.log(found["ksd_v"]) + np.log(found["sw2"]))
        print(method, row["setting"], density, found, flush=True)
    return {**row, "score": float(np.mean(scores) / 2)}


def _path(method: str, setting: Any, density: str) -> Path:
    what = {"formula": TOYS[density].formula, "setting": setting, "size": SIZE.__dict__}
    return neural.cell(f"tried-{method}", density, what) / "measured.json"


def described(setting: Any) -> str:
    """What is special about a setting."""
    if not isinstance(setting, dict):
        return f"step {setting:g}"
    return ", ".join(f"{k} {v}" for k, v in setting.items() if k != "objective" and SHARED.get(k) != v)


def _measured(method: str, setting: Any, density: str) -> dict[str, float]:
    toy = TOYS[density]
    if method in TRIED and setting == RECIPES[method].settings:
        # What the comparison itself trains.
        draws = neural.trained(toy, method, Size()).raw
    elif method in TRIED:
        recipe = replace(RECIPES[method], settings=setting)
        draws = neural.by_steps(toy, recipe, SIZE)["raw"]
    elif method == "svgd":
        # The longer run is the one that counts.
        draws = rivals.svgd(toy, rivals.starts(1, SIZE.draws, seed=5), setting, SVGD_STEPS)[-1][:, None]
    else:
        points = rivals.starts(4, SIZE.draws, seed=5)
        draws = getattr(rivals, method)(toy, points, setting, STEPS)[:, None]
    found = measure(toy, Yardstick.of(toy), draws)
    # A step that is too long ends in numbers that are not finite, or gigantic.
    return {k: float(min(np.mean(found[k]), 1e12)) for k in ("ksd_v", "sw2")}


if __name__ == "__main__":
    main()
