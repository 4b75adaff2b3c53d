"""Every method of the comparison as a function from a density to sets of draws."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.paper import neural, rivals
from benchmarks.paper.discrepancy import Yardstick, kernel_stein
from benchmarks.paper.neural import RECIPES, Size
from benchmarks.paper.targets import Toy

# Chosen once for all densities by `python -m benchmarks.paper.toy2d.tuning`.
STEP = {"svgd": 0.3, "langevin": 0.003, "hmc": 0.1}
SVGD_STEPS, STEPS = (200, 500), 500
EXACT_SEED = 3


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        label: Its name there.
        source: What makes its draws: a recipe, a rival or "exact". Methods of one source are made together.
        preconditioner: "yes", "no", or "-" for methods that have none to speak of.
    """

    label: str
    source: str
    preconditioner: str = "-"


def _neural(name: str) -> Method:
    recipe = RECIPES[name]
    end = ", one step" if recipe.refined else ""
    return Method(recipe.label + end, name, "yes" if recipe.preconditioner else "no")


METHODS: dict[str, Method] = {
    "exact": Method("exact draws", "exact"),
    "dft-ns": _neural("dft-ns"),
    "kl-ns": _neural("kl-ns"),
    "kl-ns-long": _neural("kl-ns-long"),
    "fisher-ns": _neural("fisher-ns"),
    "default": _neural("default"),
    "default-refined": Method("DFT, default recipe, refined", "default", "yes"),
    "default-long": _neural("default-long"),
    "default-long-refined": Method("DFT, default recipe, 5,000 steps, refined", "default-long", "yes"),
    "kl-then-dft": _neural("kl-then-dft"),
    "svgd-200": Method("SVGD, 200 steps", "svgd"),
    "svgd-500": Method("SVGD, 500 steps", "svgd"),
    "langevin": Method("Langevin, 500 steps", "langevin"),
    "hmc": Method("HMC, 500 steps", "hmc"),
    "nuts": Method("NUTS", "nuts"),
}

# Draws (groups, sets, n, 2): sets of one group may share what made them (a trained sampler), groups share nothing.
Draws = dict[str, np.ndarray]


def make(toy: Toy, source: str, size: Size, backend: str, fresh: bool) -> tuple[Draws, Mapping[str, Any]]:
    """Draws of all methods of one source; CPU seconds for each group, and what a fit says of itself."""
    start = time.process_time()
    if source in RECIPES:
        done = neural.trained(toy, source, size, backend, fresh)
        draws = {source: done.raw}
        if done.refined.size:
            draws[f"{source}-refined"] = done.refined
        return draws, {"seconds": done.seconds, "said": done.said}
    draws = _others(toy, source, size)
    return draws, {"seconds": (time.process_time() - start) / len(size.seeds), "said": "-"}


def _others(toy: Toy, source: str, size: Size) -> Draws:
    groups, sets, n = len(size.seeds), size.sets, size.draws
    shape = (groups, sets, n, 2)
    if source == "exact":
        return {source: toy.target.exact(groups * sets * n, EXACT_SEED).reshape(shape)}
    if source == "svgd":
        # Particles of one run depend on each other: every set is a run, and every group has one.
        found = rivals.svgd(toy, rivals.starts(groups, n), STEP["svgd"], SVGD_STEPS)
        return {f"svgd-{steps}": d[:, None] for steps, d in zip(SVGD_STEPS, found, strict=True)}
    if source == "nuts":
        return {source: rivals.nuts(toy, sets, n, size.seeds)}
    move: Callable[..., np.ndarray] = getattr(rivals, source)
    return {source: move(toy, rivals.starts(groups * sets, n), STEP[source], STEPS).reshape(shape)}


def measure(toy: Toy, yardstick: Yardstick, draws: np.ndarray) -> dict[str, list[list[float]]]:
    """Squared KSD (U and V) and sliced W2 of each set, as lists of groups."""
    found: dict[str, list[list[float]]] = {"ksd_u": [], "ksd_v": [], "sw2": []}
    draws = draws.astype(np.float64)
    for group, scores in zip(draws, toy.scores(draws), strict=True):
        own = [kernel_stein(x, s) for x, s in zip(group, scores, strict=True)]
        found["ksd_u"].append([k.u for k in own])
        found["ksd_v"].append([k.v for k in own])
        found["sw2"].append([yardstick.sliced_w2(x) for x in group])
    return found


def mean_and_error(values: list[list[float]]) -> tuple[float, float]:
    """Mean over all sets, and its standard error.

    The larger of two estimates: from the means of the groups, and from the sets within groups.
    """
    x = np.array(values, np.float64)
    if not np.isfinite(x).all():
        return float("inf"), float("inf")
    groups, sets = x.shape
    between = x.mean(1).var(ddof=1) / groups if groups > 1 else 0.0
    within = x.var(1, ddof=1).mean() / (groups * sets) if sets > 1 else 0.0
    return float(x.mean()), float(np.sqrt(max(between, within)))
