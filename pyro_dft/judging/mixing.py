"""How fast the chains of an ensemble mix: effective draws and memory, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_dft.judging.moments import TAIL, column_blocks, quantiles

Array = NDArray[np.floating[Any]]

# Most numbers in the spectra that are computed at once: bounds memory.
SPECTRA = 2**22


def _features(points: Array, *, tails: bool = True) -> list[Array]:
    """Features of states, (P, T, d) each, centred: each coordinate, its square, whether it is beyond its 5 % and 95 % points."""
    flat = points.reshape(-1, points.shape[-1])
    centre, sd = flat.mean(0), flat.std(0)
    sd = np.where(sd > 0, sd, 1.0)
    z = (points - centre) / sd
    found = [z, z**2]
    if tails:
        low, high = quantiles(flat, (TAIL, 1 - TAIL))
        found += [(points < low).astype(float), (points > high).astype(float)]
    return [x - x.mean((0, 1)) for x in found]


def effective_draws(points: Array, groups: NDArray[np.intp]) -> Array:
    """How many independent draws the states of P chains are worth, the smallest number over coordinates.

    Autocorrelations of all chains together are summed up for as long as pairs of them are positive (Geyer, Practical
    Markov chain Monte Carlo, 1992). They are taken about the mean of all chains: chains that disagree have long memories.

    Args:
        points: States (P, T, d).
        groups: The separate mode that each chain is in, (P,): means are taken over the chains of one mode.

    Returns:
        Effective numbers for coordinates, their squares, and whether they are beyond the 5 % and the 95 % points, (4,).
    """
    p, t, d = points.shape
    worst = np.full(4, float(p * t))
    if not np.isfinite(points).all():
        return np.zeros(4)
    several = len(np.unique(groups)) > 1
    for some in column_blocks(np.ones(d, bool)):
        for i, x in enumerate(_features(points[..., some])):
            if several:
                for group in np.unique(groups):
                    x[groups == group] -= x[groups == group].mean((0, 1))
            x = x[..., np.square(x).any((0, 1))]
            if x.shape[-1]:
                worst[i] = min(worst[i], (p * t / _times(x)).min())
    return worst


def _times(x: Array) -> Array:
    """Integrated autocorrelation times, (k,), of centred features (P, T, k); at least one."""
    t = x.shape[1]
    if t < 3:
        return np.ones(x.shape[-1])
    found = _autocorrelations(x)
    pairs = found[1 : 1 + 2 * ((t - 1) // 2)].reshape(-1, 2, x.shape[-1]).sum(1)
    going = np.cumprod(pairs > 0, axis=0)
    return np.maximum(1.0 + 2.0 * (going * pairs).sum(0), 1.0)


def _autocorrelations(x: Array) -> Array:
    """Autocorrelations (T, k) of centred features (P, T, k) at all lags, by their power spectra."""
    t, k = x.shape[1:]
    size, found = _fast_length(2 * t - 1), np.empty((t, k))
    counts = np.arange(t, 0, -1)
    columns = max(1, SPECTRA // (x.shape[0] * size))
    for start in range(0, k, columns):
        own = np.ascontiguousarray(np.moveaxis(x[..., start : start + columns], -1, 0))
        power = np.square(np.abs(np.fft.rfft(own, size))).mean(1)
        covariance = np.fft.irfft(power, size)[:, :t] / counts
        found[:, start : start + columns] = (covariance / covariance[:, :1]).T
    return found


def _fast_length(least: int) -> int:
    """The smallest length with no prime factor above five that is as long as this: Fourier transforms of it are fast."""
    twos = 1 << (least - 1).bit_length()
    return min(
        (twos >> shift) * factor
        for shift, factor in ((0, 1), (2, 3), (3, 5), (4, 9), (4, 15), (5, 25), (5, 27))
        if (twos >> shift) * factor >= least
    )


def memory_at(points: Array, lag: int) -> Array:
    """Largest autocorrelation at a lag over the coordinates and their squares, (d,), of chains (P, T, d)."""
    found = np.zeros(points.shape[-1])
    for some in column_blocks(np.ones(len(found), bool)):
        for x in _features(points[..., some], tails=False):
            variance = (x**2).mean((0, 1))
            products = (x[:, :-lag] * x[:, lag:]).mean((0, 1)) / np.where(variance > 0, variance, 1.0)
            found[some] = np.maximum(found[some], np.abs(products))
    return found
