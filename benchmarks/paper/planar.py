"""The four potentials of Rezende and Mohamed's planar flows (arXiv 1505.05770, Table 1), made proper.

As they are printed, U2 to U4 do not depend on z1 in the long run and have no normalising constant. A soft wall
1/2 (max(|z1| - 4, 0) / 0.2)^2 closes all four. The logarithms are true log-sum-exps, without a small number added inside.

The potentials take one point (2,) and a namespace with `sqrt`, `sin`, `exp`, `abs` and `logaddexp`: `jax.numpy` or `torch`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray

WALL, WALL_SD = 4.0, 0.2
RING_SD, END_SD = 0.4, 0.6


def wall(x: Any, m: Any) -> Any:
    """Zero for |x| < 4, and a Gaussian flank of sd 0.2 beyond."""
    outside = m.abs(x) - WALL
    return 0.5 * (0.5 * (outside + m.abs(outside)) / WALL_SD) ** 2


def wave(x: Any, m: Any) -> Any:
    """The ridge w1, a sine of period 4."""
    return m.sin(0.5 * math.pi * x)


def bump(x: Any, m: Any) -> Any:
    """The distance w2 between the ridges of U3: a bell of height 3 at 1."""
    return 3 * m.exp(-0.5 * ((x - 1) / 0.6) ** 2)


def rise(x: Any, m: Any) -> Any:
    """The distance w3 between the ridges of U4: a logistic rise from 0 to 3 at 1."""
    t = (x - 1) / 0.3
    return 3 * m.exp(-m.logaddexp(-t, 0 * t))


def u1(z: Any, m: Any) -> Any:
    """A ring of radius 2 that only its left and right ends are left of."""
    ring = 0.5 * ((m.sqrt((z**2).sum()) - 2) / RING_SD) ** 2
    ends = m.logaddexp(-0.5 * ((z[0] - 2) / END_SD) ** 2, -0.5 * ((z[0] + 2) / END_SD) ** 2)
    return ring - ends + wall(z[0], m)


def u2(z: Any, m: Any) -> Any:
    """One wave."""
    return 0.5 * ((z[1] - wave(z[0], m)) / 0.4) ** 2 + wall(z[0], m)


def u3(z: Any, m: Any) -> Any:
    """A wave that parts in two and joins again."""
    up = z[1] - wave(z[0], m)
    down = up + bump(z[0], m)
    return -m.logaddexp(-0.5 * (up / 0.35) ** 2, -0.5 * (down / 0.35) ** 2) + wall(z[0], m)


def u4(z: Any, m: Any) -> Any:
    """A wave that parts in two for good."""
    up = z[1] - wave(z[0], m)
    down = up + rise(z[0], m)
    return -m.logaddexp(-0.5 * (up / 0.4) ** 2, -0.5 * (down / 0.35) ** 2) + wall(z[0], m)


# Exact draws: in U2 to U4 the integral over z2 is the same for every z1, so that z1 has the density of the wall alone.


def _between_walls(rng: np.random.Generator, n: int) -> Array:
    """Draws of the density proportional to exp(-wall)."""
    flank = WALL_SD * math.sqrt(math.pi / 2)
    x = rng.uniform(-WALL, WALL, n)
    beyond = np.sign(x) * (WALL + WALL_SD * np.abs(rng.normal(size=n)))
    return np.where(rng.uniform(size=n) < flank / (WALL + flank), beyond, x)


def u2_draws(rng: np.random.Generator, n: int) -> Array:
    x = _between_walls(rng, n)
    return np.stack([x, wave(x, np) + 0.4 * rng.normal(size=n)], 1)


def u3_draws(rng: np.random.Generator, n: int) -> Array:
    x = _between_walls(rng, n)
    lower = rng.uniform(size=n) < 0.5
    return np.stack([x, wave(x, np) - lower * bump(x, np) + 0.35 * rng.normal(size=n)], 1)


def u4_draws(rng: np.random.Generator, n: int) -> Array:
    x = _between_walls(rng, n)
    # A ridge weighs as much as its width.
    lower = rng.uniform(size=n) < 0.35 / 0.75
    noise = np.where(lower, 0.35, 0.4) * rng.normal(size=n)
    return np.stack([x, wave(x, np) - lower * rise(x, np) + noise], 1)


def u1_draws(rng: np.random.Generator, n: int) -> Array:
    """By rejection from the whole ring; about one in three is accepted."""
    kept: list[Array] = []
    while sum(map(len, kept)) < n:
        r = 2 + RING_SD * rng.normal(size=8 * n)
        # In the plane the radius has the Gaussian's density times itself.
        r = r[rng.uniform(size=len(r)) * (2 + 8 * RING_SD) < r]
        angle = 2 * math.pi * rng.uniform(size=len(r))
        x = r * np.cos(angle)
        # Both ends together are never above 1 + 2e-7: one is at its top where the other has vanished.
        ends = np.exp(-0.5 * ((x - 2) / END_SD) ** 2) + np.exp(-0.5 * ((x + 2) / END_SD) ** 2)
        keep = rng.uniform(size=len(r)) * (1 + 2e-7) < ends * np.exp(-wall(x, np))
        kept.append(np.stack([x, r * np.sin(angle)], 1)[keep])
    return np.concatenate(kept)[:n]
