"""Random triangular maps of Gaussians: each coordinate is shifted, scaled and bent by those before it.

t_i = mean_i(t_<i) + scale_i(t_<i) y_i with y_i = sinh((arcsinh(z_i) + skew_i) / tail_i), z ~ N(0, I) (the sinh-arcsinh
distribution of Jones and Pewsey, 2009). Means are linear, quadratic in a few first coordinates, or those of a small network with
one hidden layer; scales those of a network. Masks keep the network triangular (Germain et al., MADE, 2015).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.hostile.arrays import Array
from benchmarks.hostile.posterior import Draw, Posterior, linear_map, moved

DIMS = (2, 6, 14, 20)
STYLES = ("polynomial", "sinh-arcsinh", "network scales", "network")
HIDDEN = 16


def make(rng: np.random.Generator, d: int, style: str) -> Posterior:
    """A random map of d coordinates; styles: see `STYLES`."""
    zeros = np.zeros((d, d))
    p = {
        "linear": np.tril(rng.normal(size=(d, d)), -1) * rng.uniform(0, 0.8) / math.sqrt(d),
        "square": zeros,
        "inner": zeros[:1].repeat(HIDDEN, 0),
        "offset": rng.normal(size=HIDDEN),
        "mean": np.zeros((d, HIDDEN)),
        "log_scale": np.zeros((d, HIDDEN)),
        "largest": np.array(rng.uniform(0.4, 1.2)),
        "skew": np.zeros(d),
        "tail": np.ones(d),
    }
    if style == "polynomial":
        roots = max(1, d // 5)
        bends = rng.normal(size=(d, roots)) * (np.arange(d) >= roots)[:, None]
        p["square"] = np.column_stack([bends, zeros[:, roots:]]) * rng.uniform(0.1, 0.6)
    if style == "sinh-arcsinh":
        p["skew"], p["tail"] = rng.uniform(-0.6, 0.6, d), np.exp(rng.uniform(-0.35, 0.35, d))
    if style.startswith("network"):
        degree = rng.integers(1, d, HIDDEN) if d > 1 else np.ones(HIDDEN, int)
        before, after = np.arange(d) < degree[:, None], np.arange(d)[:, None] >= degree
        p["inner"] = rng.normal(size=(HIDDEN, d)) * before
        p["log_scale"] = rng.normal(size=(d, HIDDEN)) * after * rng.uniform(0.3, 1.0)
        if style == "network":
            p["mean"] = rng.normal(size=(d, HIDDEN)) * after * rng.uniform(0.2, 0.8)
    condition, rotate = 10 ** rng.uniform(0, 2), bool(rng.integers(2))
    factor, centre = linear_map(rng, d, condition, rotate), rng.normal(size=d)
    words = f"{style}, condition {condition:.0f}{', rotated' if rotate else ''}"
    return moved(words, _draws(p, d), potential, p, factor, centre)


def _shape(m: Any, t: Any, p: Mapping[str, Any]) -> tuple[Any, Any]:
    """Means and log scales (..., d) at t (..., d); row i reads only the coordinates before i."""
    hidden = m.tanh(t @ p["inner"].T + p["offset"])
    mean = t @ p["linear"].T + (t * t - 1) @ p["square"].T + hidden @ p["mean"].T
    return mean, p["largest"] * m.tanh(hidden @ p["log_scale"].T)


def potential(m: Any, t: Any, p: Mapping[str, Any]) -> Any:
    """Minus the log density of t, by the inverse and its Jacobian."""
    mean, log_scale = _shape(m, t, p)
    y = (t - mean) * m.exp(-log_scale)
    z = m.sinh(p["tail"] * m.arcsinh(y) - p["skew"])
    # dz/dy = tail cosh(arcsinh(z)) / sqrt(1 + y^2), with cosh^2 = 1 + z^2.
    terms = 0.5 * z * z + log_scale - 0.5 * m.log1p(z * z) + 0.5 * m.log1p(y * y)
    return terms.sum(-1)


def _draws(p: Mapping[str, Array], d: int) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> Array:
        y = np.sinh((np.arcsinh(rng.normal(size=(n, d))) + p["skew"]) / p["tail"])
        t = np.zeros((n, d))
        for i in range(d):
            mean, log_scale = _shape(np, t, p)
            t[:, i] = mean[:, i] + np.exp(log_scale[:, i]) * y[:, i]
        return t

    return draw
