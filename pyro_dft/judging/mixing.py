"""How fast the chains of an ensemble mix: effective draws and memory, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_dft.judging.moments import TAIL

Array = NDArray[np.floating[Any]]


def _features(points: Array) -> list[Array]:
    """What must mix: each coordinate, its square, and being beyond its 5 % and 95 % points; (P, T, d) each, centred."""
    flat = points.reshape(-1, points.shape[-1])
    centre, sd = flat.mean(0), flat.std(0)
    sd = np.where(sd > 0, sd, 1.0)
    low, high = np.quantile(flat, [TAIL, 1 - TAIL], axis=0)
    z = (points - centre) / sd
    found = [z, z**2, (points < low).astype(float), (points > high).astype(float)]
    return [x - x.mean((0, 1)) for x in found]


def effective_draws(points: Array, groups: NDArray[np.intp]) -> Array:
    """Numbers of independent draws that tell as much as the states of P chains, the smallest over coordinates.

    Autocorrelations of all chains together are summed up for as long as pairs of them are positive (Geyer, Practical
    Markov chain Monte Carlo, 1992). They are about the mean of all chains, so that chains that disagree remember.

    Args:
        points: States (P, T, d).
        groups: Separate mode that each chain is in, (P,): means are those of the chains in the same.

    Returns:
        Those for coordinates, their squares, and being beyond the 5 % and the 95 % points, (4,).
    """
    p, t, _ = points.shape
    worst = np.full(4, float(p * t))
    if not np.isfinite(points).all():
        return np.zeros(4)
    for i, x in enumerate(_features(points)):
        for group in np.unique(groups):
            x[groups == group] -= x[groups == group].mean((0, 1))
        variance = (x**2).mean((0, 1))
        x = x[..., variance > 0]
        if x.shape[-1]:
            worst[i] = (p * t / _times(x)).min()
    return worst


def _times(x: Array) -> Array:
    """Integrated autocorrelation times, (k,), of centred features (P, T, k); at least one."""
    t, variance = x.shape[1], (x**2).mean((0, 1))
    total, going = np.ones(x.shape[-1]), np.ones(x.shape[-1], bool)
    for lag in range(1, t - 1, 2):
        pair = sum(
            (x[:, :-k, going] * x[:, k:, going]).mean((0, 1)) / variance[going] for k in (lag, lag + 1)
        )
        on = pair > 0
        total[going] += np.where(on, 2 * pair, 0.0)
        going[going] = on
        if not going.any():
            break
    return np.maximum(total, 1.0)


def memory_at(points: Array, lag: int) -> Array:
    """Largest autocorrelation at a lag over the coordinates and their squares, (d,), of chains (P, T, d)."""
    found = []
    for x in _features(points)[:2]:
        variance = np.where((x**2).mean((0, 1)) > 0, (x**2).mean((0, 1)), 1.0)
        found.append(np.abs((x[:, :-lag] * x[:, lag:]).mean((0, 1)) / variance))
    return np.maximum(*found)
