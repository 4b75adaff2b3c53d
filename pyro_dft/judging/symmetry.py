"""Modes that are copies of each other: labels that can be exchanged, signs that can be flipped.

Where the posterior has such a symmetry, exactly, each mode says the same as its copies, and draws that cover one of them
have missed nothing but names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_dft import roots

Array = NDArray[np.floating[Any]]

# Points at which the densities of a mode and its copy are compared.
POINTS = 16
# Coordinates that are paired each with each; where more of them differ between the modes, by the order of their |means|.
MOST_PAIRED = 300


def is_copy(
    mean: Array, factor: Array, other: Array, other_factor: Array, log_density: Callable[[Array], Array]
) -> bool:
    """Whether one mode becomes another when coordinates are exchanged and signs flipped, with the same density everywhere.

    Which coordinates is read off means and sds; the density then decides, at points drawn around the first mode.

    Args:
        mean: Of the Gaussian at the first mode, (d,).
        factor: A square root of its covariance, (d, d), or standard deviations (d,).
        other: Mean at the second one.
        other_factor: The same of that one.
        log_density: Points (n, d) -> (n,).
    """
    sds, other_sds = (np.sqrt(roots.variances(root, mean)) for root in (factor, other_factor))
    target, sign = _matched(mean, sds, other, other_sds)
    x = mean + roots.coloured(factor, np.random.default_rng(0).normal(size=(POINTS, len(mean))))
    copy = np.empty_like(x)
    copy[:, target] = sign * x
    before, after = log_density(x), log_density(copy)
    good = np.isfinite(before)
    rounding = 1e-3 + 1e-5 * np.abs(before[good])
    return bool(good.any() and (np.abs(after[good] - before[good]) <= rounding).all())


def _matched(mean: Array, sds: Array, other: Array, other_sds: Array) -> tuple[NDArray[np.intp], Array]:
    """For each coordinate of one mode, the coordinate of the other with the nearest |mean| and sd, and whether its sign flips."""
    target = np.arange(len(mean))
    if len(mean) <= MOST_PAIRED:
        target = _paired(mean, sds, other, other_sds)
    else:
        moved = np.flatnonzero(np.abs(mean - other) >= 0.5 * (sds + other_sds))
        target[moved[np.argsort(np.abs(mean[moved]))]] = moved[np.argsort(np.abs(other[moved]))]
    near_zero = np.abs(mean) < 0.5 * sds
    sign = np.where(near_zero | (mean * other[target] >= 0), 1.0, -1.0)
    return target, sign


def _paired(mean: Array, sds: Array, other: Array, other_sds: Array) -> NDArray[np.intp]:
    """Pairs of coordinates, the nearest ones first."""
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
    return target
