"""Modes that are copies of each other: labels that can be exchanged, signs that can be flipped.

Where the posterior has such a symmetry, exactly, each mode says the same as its copies, and draws that cover one of them
have missed nothing but names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

# Points at which the densities of a mode and its copy are compared.
POINTS = 16


def is_copy(
    mean: Array, factor: Array, other: Array, other_factor: Array, log_density: Callable[[Array], Array]
) -> bool:
    """Whether one mode becomes another when coordinates are exchanged and signs flipped, with the same density everywhere.

    Which coordinates is read off means and sds; the density then decides, at points drawn around the first mode.

    Args:
        mean: Of the Gaussian at the first mode, (d,).
        factor: A square root of its covariance, (d, d).
        other: Mean at the second one.
        other_factor: A square root of that covariance.
        log_density: Points (n, d) -> (n,).
    """
    target, sign = _matched(mean, _sds(factor), other, _sds(other_factor))
    x = mean + np.random.default_rng(0).normal(size=(POINTS, len(mean))) @ factor.T
    copy = np.empty_like(x)
    copy[:, target] = sign * x
    before, after = log_density(x), log_density(copy)
    good = np.isfinite(before)
    rounding = 1e-3 + 1e-5 * np.abs(before[good])
    return bool(good.any() and (np.abs(after[good] - before[good]) <= rounding).all())


def _sds(factor: Array) -> Array:
    return np.sqrt(np.square(factor).sum(-1))


def _matched(mean: Array, sds: Array, other: Array, other_sds: Array) -> tuple[NDArray[np.intp], Array]:
    """For each coordinate of one mode, the coordinate of the other with the nearest |mean| and sd, and whether its sign flips."""
    d = len(mean)
    scale = 0.5 * (sds[:, None] + other_sds)
    cost = np.square((np.abs(mean)[:, None] - np.abs(other)) / scale) + np.square(
        np.log(sds[:, None] / other_sds)
    )
    # Where there is a choice, a coordinate that is the same in both modes is not exchanged.
    stays = np.square((mean - other) / np.diagonal(scale)) < 1.0
    cost[np.arange(d)[stays], np.arange(d)[stays]] -= 1.0
    target = np.full(d, -1, np.intp)
    free = np.ones(d, bool)
    for flat in np.argsort(cost, axis=None, kind="stable"):
        i, j = divmod(int(flat), d)
        if target[i] < 0 and free[j]:
            target[i], free[j] = j, False
    near_zero = np.abs(mean) < 0.5 * sds
    sign = np.where(near_zero | (mean * other[target] >= 0), 1.0, -1.0)
    return target, sign
