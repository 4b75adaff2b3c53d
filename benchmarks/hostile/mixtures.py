"""Mixtures of two to five components, Gaussian or Student-t, with random covariances and weights, apart or overlapping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.hostile.arrays import Array
from benchmarks.hostile.posterior import Draw, Posterior, linear_map

DIMS = (2, 4, 8, 16)
STYLES = ("apart", "overlapping", "apart, Student-t", "overlapping, Student-t")
MOST = 5


def make(rng: np.random.Generator, d: int, style: str) -> Posterior:
    """A random mixture in d coordinates; styles: see `STYLES`."""
    count = int(rng.integers(2, MOST + 1))
    weights = rng.dirichlet(np.full(count, 2.0))
    # Centres are about so far from each other; widths are between 0.6 and 1.7.
    distance = rng.uniform(5.0, 9.0) if style.startswith("apart") else rng.uniform(0.5, 3.5)
    centres = distance / math.sqrt(2 * d) * rng.normal(size=(count, d))
    factors = np.stack([linear_map(rng, d, 10 ** rng.uniform(0, 0.9), True) for _ in range(count)])
    degrees = float(rng.integers(3, 9)) if "Student" in style else 0.0
    p = {
        # Programs are shared: components that are not there have no weight.
        "log_weights": np.append(np.log(weights), np.full(MOST - count, -1e9)),
        "centres": np.concatenate([centres, np.zeros((MOST - count, d))]),
        "inverses": np.concatenate([np.linalg.inv(factors), np.stack([np.eye(d)] * MOST)[count:]]),
        "log_volumes": np.append(np.linalg.slogdet(factors)[1], np.zeros(MOST - count)),
        "degrees": np.array(degrees or 1.0),
        "student": np.array(float(degrees > 0)),
    }
    named = f", {degrees:.0f} d.f." if degrees else ""
    shown = "/".join(f"{w:.2f}" for w in np.sort(weights)[::-1])
    words = f"{style}{named}, weights {shown}, distance {distance:.1f}"
    return Posterior(words, d, _draws(weights, centres, factors, degrees), potential, p)


def components(m: Any, x: Any, p: Mapping[str, Any]) -> Any:
    """Log densities (..., K) of the components with their weights at x (..., d), up to one constant."""
    z = m.einsum("kij,...kj->...ki", p["inverses"], x[..., None, :] - p["centres"])
    q = (z * z).sum(-1)
    degrees = p["degrees"]
    tails = 0.5 * (degrees + x.shape[-1]) * m.log1p(q / degrees)
    return p["log_weights"] - p["log_volumes"] - m.where(p["student"] > 0.5, tails, 0.5 * q)


def potential(m: Any, x: Any, p: Mapping[str, Any]) -> Any:
    """Minus the log density."""
    return -m.logsumexp(components(m, x, p))


def _draws(weights: Array, centres: Array, factors: Array, degrees: float) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> Array:
        k = rng.choice(len(weights), n, p=weights)
        z = rng.normal(size=(n, centres.shape[1]))
        if degrees:
            z /= np.sqrt(rng.chisquare(degrees, size=(n, 1)) / degrees)
        x = np.empty_like(z)
        for j in range(len(weights)):
            x[k == j] = centres[j] + z[k == j] @ factors[j].T
        return x

    return draw
