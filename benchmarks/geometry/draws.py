"""Exact draws in NumPy of densities of many shapes: bananas, rings, funnels, heavy tails, mixtures.

Their potentials are in `benchmarks.geometry.densities`, in jax, and some in `benchmarks.flags.posteriors`, in torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Array = np.ndarray
Draw = Callable[[np.random.Generator, int], Array]  # (rng, n) -> (n, d)
# Of the ring.
RADIUS, VARIANCE = 2.6, 0.033


def banana(d: int, bend: float, spread: float) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> Array:
        z = rng.normal(size=(n, d))
        z[:, 1] += bend * spread * (z[:, 0] ** 2 - 1)
        z[:, 0] *= spread
        return z

    return draw


def rosenbrock(rng: np.random.Generator, n: int) -> Array:
    x0 = 1 + math.sqrt(10) * rng.normal(size=n)
    return np.stack([x0, x0**2 + math.sqrt(0.1) * rng.normal(size=n)], 1)


def double_bend(rng: np.random.Generator, n: int) -> Array:
    x0 = 1.5 * rng.normal(size=n)
    return np.stack([x0, x0**3 / 3 - 1.5 * x0 + 0.5 * rng.normal(size=n)], 1)


def squiggle(rng: np.random.Generator, n: int) -> Array:
    x0 = math.sqrt(5) * rng.normal(size=n)
    return np.stack([x0, 0.5 * rng.normal(size=n) - np.sin(2 * x0)], 1)


def donut(rng: np.random.Generator, n: int) -> Array:
    # The density of the radius is that of N(RADIUS, VARIANCE / 2) times the radius itself.
    r = RADIUS + math.sqrt(VARIANCE / 2) * rng.normal(size=2 * n)
    r = rng.choice(r, n, p=np.abs(r) / np.abs(r).sum())
    angle = 2 * math.pi * rng.uniform(size=n)
    return np.stack([r * np.cos(angle), r * np.sin(angle)], 1)


def funnel(d: int) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> Array:
        v = 3 * rng.normal(size=(n, 1))
        return np.concatenate([v, np.exp(v / 2) * rng.normal(size=(n, d - 1))], 1)

    return draw


def student(d: int, degrees: float) -> Draw:
    return lambda rng, n: rng.standard_t(degrees, (n, d))


def log_gamma(factor: Array) -> Draw:
    return lambda rng, n: np.log(rng.standard_exponential((n, len(factor)))) @ factor.T


def mildly_skewed(factor: Array, shape: float) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> Array:
        gamma = rng.standard_gamma(shape, (n, len(factor))) / shape
        return math.sqrt(shape) * np.log(gamma) @ factor.T

    return draw


def gaussian(factor: Array) -> Draw:
    return lambda rng, n: rng.normal(size=(n, len(factor))) @ factor.T


def mixture(centres: Array, weights: Array, sd: float) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> Array:
        return centres[rng.choice(len(weights), n, p=weights)] + sd * rng.normal(size=(n, centres.shape[1]))

    return draw


def two_bananas(rng: np.random.Generator, n: int) -> Array:
    x0 = 1.5 * rng.normal(size=n)
    sign = np.where(rng.uniform(size=n) < 0.35, 1.0, -1.0)
    return np.stack([x0, sign * (5 + 0.4 * x0**2) + rng.normal(size=n)], 1)
