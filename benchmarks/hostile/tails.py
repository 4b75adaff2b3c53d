"""Independent coordinates with heavy, skewed or flat tails, then turned and scaled at random."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.hostile.arrays import Array
from benchmarks.hostile.posterior import Draw, Posterior, linear_map, moved

DIMS = (2, 5, 10, 16)
STYLES = ("Student-t", "log gamma", "exponential power", "mixed")
STUDENT, LOG_GAMMA, POWER = range(3)


def make(rng: np.random.Generator, d: int, style: str) -> Posterior:
    """A random product of one-dimensional densities, seen through a linear map; styles: see `STYLES`."""
    kinds = np.full(d, STYLES.index(style)) if style != "mixed" else rng.integers(0, 3, d)
    p = {
        "kinds": kinds.astype(float),
        "degrees": rng.integers(2, 9, d).astype(float),
        "shapes": np.exp(rng.uniform(math.log(0.5), math.log(5.0), d)),
        "powers": np.exp(rng.uniform(math.log(1.2), math.log(6.0), d)),
    }
    condition, rotate = 10 ** rng.uniform(0, 3), bool(rng.integers(2))
    factor, centre = linear_map(rng, d, condition, rotate), rng.normal(size=d)
    named = f", d.f. from {p['degrees'].min():.0f}" if style == "Student-t" else ""
    words = f"{style}{named}, condition {condition:.0f}{', rotated' if rotate else ''}"
    return moved(words, _draws(kinds, p), potential, p, factor, centre)


def potential(m: Any, t: Any, p: Mapping[str, Any]) -> Any:
    """Student-t(degrees), the logarithm of Gamma(shape, 1), or exp(-|t|^power), in each coordinate by its kind."""
    heavy, skewed = p["kinds"] < 0.5, p["kinds"] > 1.5
    student = 0.5 * (p["degrees"] + 1) * m.log1p(t * t / p["degrees"])
    # Where another kind holds, exp and a power must not overflow: their gradients would be 0 times infinity.
    gamma = p["shapes"] * t
    inner = m.where(heavy | skewed, 0.0 * t, t)
    size = m.where(skewed, m.abs(t), 1.0 + 0.0 * t)
    terms = m.where(heavy, student, m.where(skewed, size ** p["powers"], m.exp(inner) - gamma))
    return terms.sum(-1)


def _draws(kinds: Array, p: Mapping[str, Array]) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> Array:
        t = np.empty((n, len(kinds)))
        for i, kind in enumerate(kinds):
            if kind == STUDENT:
                t[:, i] = rng.standard_t(p["degrees"][i], n)
            elif kind == LOG_GAMMA:
                t[:, i] = np.log(rng.standard_gamma(p["shapes"][i], n))
            else:  # |t|^power is Gamma(1 / power, 1)
                size = rng.standard_gamma(1 / p["powers"][i], n) ** (1 / p["powers"][i])
                t[:, i] = np.where(rng.uniform(size=n) < 0.5, -size, size)
        return t

    return draw
