"""Angles as real coordinates: one copy of a density that repeats itself every 2 pi.

On the real line such a density has no end of copies, and no integral. Here an angle's coordinate x is any real number, its
value is x modulo 2 pi, and the density of x is that of the value times the share that this copy gets,

    share(x) = h(x - m) / sum_k h(x - m + 2 pi k),    h(t) = exp(-t^2 / (2 SPREAD^2)),

with m near the posterior's mode. Shares of all copies of a value add up to one, so values of draws of x are exact draws of
the angle, whatever m is; and where m is near the mode, next to all of it is in one copy, without a cut at pi. This file
holds what both backends share; the transforms are in their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Evaluate = Callable[[Array], tuple[Array, Array]]  # points (n, d) -> log densities (n,), scores (n, d)

# With m at a narrow mode the copies beside it get a share of 0.0005 each, and at most 0.01 where m is off by 1.2.
SPREAD = 1.6
# Copies to either side that count: the next one has h below 1e-50.
COPIES = 3
# Points from which the mode is looked for, and steps.
POINTS, STEPS = 16, 60
# Name of the transform in a layout.
NAME = "wrapped"


def wrapped(x: Array) -> Array:
    """Angles in [-pi, pi)."""
    return np.remainder(x + math.pi, 2 * math.pi) - math.pi


def folded(x: Array, where: NDArray[np.bool_], centre: Array) -> Array:
    """Points (..., d) with angles moved by full turns to within pi of the centre (d,)."""
    return np.where(where, centre + wrapped(x - centre), x)


def repeats(evaluate: Evaluate, where: NDArray[np.bool_], *, may_be_flat: bool) -> bool:
    """Whether full turns of some coordinates leave the log density alone, at some random points.

    Args:
        evaluate: The density.
        where: The coordinates, (d,).
        may_be_flat: Whether a density that does not depend on them at all counts.
    """
    points = _points(len(where))
    # Not the same for all, so that what depends on differences alone moves.
    turns = np.random.default_rng(1).permutation(np.arange(where.sum()) % 7) + 1
    moved, shifted = points.copy(), points.copy()
    moved[:, where] += 2 * math.pi * turns
    shifted[:, where] += 1.0 + 0.1 * turns
    if not _same(evaluate, points, moved, where):
        return False
    return may_be_flat or not _same(evaluate, points, shifted, where)


def joins(evaluate: Evaluate, where: NDArray[np.bool_]) -> bool:
    """Whether the log density is the same on either side of pi, at some random points, for coordinates (d,) on [-pi, pi)."""
    below, above = _points(len(where)), _points(len(where))
    below[:, where], above[:, where] = math.pi - 1e-5, 1e-5 - math.pi
    return _same(evaluate, below, above, where)


def centres(evaluate: Evaluate, where: NDArray[np.bool_]) -> Array:
    """A mode's angles at the coordinates that are angles, zeros elsewhere, (d,): by ascent from fixed points.

    It depends on nothing but the density, so that a model that is read again gets the same; rounded to a 32nd of a turn.

    Args:
        evaluate: The density.
        where: Which coordinates are angles, (d,).
    """
    x = _points(len(where))
    first, second = np.zeros_like(x), np.zeros_like(x)
    for k in range(STEPS):
        _, score = evaluate(x)
        score = np.nan_to_num(score, nan=0.0, posinf=0.0, neginf=0.0)
        # Adam (Kingma and Ba 2015), with steps that shrink.
        first, second = 0.8 * first + 0.2 * score, 0.9 * second + 0.1 * np.square(score)
        size = np.sqrt(second / (1 - 0.9 ** (k + 1))) + 1e-12
        x = x + 0.3 * (1 - k / STEPS) * first / (1 - 0.8 ** (k + 1)) / size
    log_p = evaluate(x)[0]
    log_p = np.where(np.isfinite(log_p), log_p, -np.inf)
    angles = wrapped(x[log_p.argmax()]) if np.isfinite(log_p).any() else np.zeros(len(where))
    return np.where(where, wrapped(np.round(angles * 16 / math.pi) * math.pi / 16), 0.0)


def _points(dim: int) -> Array:
    return np.random.default_rng(0).uniform(-2.0, 2.0, (POINTS, dim))


def _same(evaluate: Evaluate, a: Array, b: Array, where: NDArray[np.bool_]) -> bool:
    """Whether log densities agree up to rounding, also of the coordinates themselves, where both are finite."""
    (first, score), (second, _) = evaluate(a), evaluate(b)
    both = np.isfinite(first) & np.isfinite(second) & np.isfinite(score).all(1)
    if not both.any() or (np.isfinite(first) != np.isfinite(second)).any():
        return False
    rounding = 1e-3 + 1e-5 * np.abs(first) + 1e-4 * np.abs(score[:, where]).sum(1)
    return bool((np.abs(first - second) <= rounding)[both].all())
