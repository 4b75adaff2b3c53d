"""R-hat and effective sample size of draws grouped in chains, in NumPy.

The formulas are those of Vehtari, Gelman, Simpson, Carpenter and Buerkner, "Rank-normalization, folding, and
localization: an improved R-hat for assessing convergence of MCMC", Bayesian Analysis 16(2), 2021
(arXiv 1903.08008), but chains are *not* split in halves: draws within a chain of this library are
independent, so there is no slow drift along a chain to look for. What R-hat can show is that chains, each
with its own training run, disagree. It says nothing of an error that all chains share.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.floating[Any]]

_MIN_DRAWS = 4  # as in ArviZ: below this neither number means anything
_BLOCK_SIZE = 2**21  # elements of one block of columns: bounds memory at some 16 MB per temporary


def rhat(draws: ArrayLike) -> Array:
    """Rank-normalised R-hat, the larger of the bulk and the folded (scale) version.

    Args:
        draws: array of shape (C, n, *site): C chains of n draws each. Chains are compared as given, not
            split.

    Returns:
        Array of shape (*site). NaN where there is one chain, fewer than four draws, a draw that is not
        finite, or an element that never changes (a structural zero of a Cholesky factor); ``inf`` where each
        chain is constant at its own value.

    Raises:
        ValueError: `draws` has fewer than two dimensions.
    """

    def block(columns: Array) -> Array:
        folded = np.abs(columns - np.median(columns, axis=(0, 1)))
        return np.fmax(_rhat(_rank_normalise(columns)), _rhat(_rank_normalise(folded)))

    return _by_column(draws, block, min_chains=2)


def ess(draws: ArrayLike, kind: Literal["bulk", "mean"] = "bulk") -> Array:
    """Effective sample size, from within-chain autocorrelation and between-chain disagreement.

    Geyer's initial monotone sequence on the combined autocorrelation (section 3.2 of the paper named above).
    For independent draws it scatters around C * n; where chains disagree it falls towards the number of
    chains.

    Args:
        draws: array of shape (C, n, *site).
        kind: "bulk" for the rank-normalised draws (robust, for reporting); "mean" for the draws themselves
            (the size that belongs in the Monte Carlo standard error of a mean, ``sd / sqrt(ess)``).

    Returns:
        Array of shape (*site); NaN where an element is constant or not finite, or n < 4.

    Raises:
        ValueError: `draws` has fewer than two dimensions, or `kind` is unknown.
    """
    if kind not in ("bulk", "mean"):
        raise ValueError(f"kind must be 'bulk' or 'mean', got {kind!r}")

    def block(columns: Array) -> Array:
        return _ess(_rank_normalise(columns) if kind == "bulk" else columns)

    return _by_column(draws, block, min_chains=1)


def _by_column(draws: ArrayLike, statistic: Callable[[Array], Array], *, min_chains: int) -> Array:
    """Apply `statistic` to blocks of varying, finite columns of (C, n, *site); NaN elsewhere."""
    draws = np.asarray(draws)
    if draws.ndim < 2:
        raise ValueError(f"draws must have shape (chains, draws, ...), got {draws.shape}")
    chains, n, *site = draws.shape
    flat = draws.reshape(chains, n, -1)
    result = np.full(flat.shape[2], np.nan)
    if chains >= min_chains and n >= _MIN_DRAWS:
        width = max(1, _BLOCK_SIZE // (chains * n))
        for start in range(0, flat.shape[2], width):
            columns = flat[:, :, start : start + width].astype(np.float64)
            usable = np.isfinite(columns).all(axis=(0, 1)) & (columns != columns[:1, :1]).any(axis=(0, 1))
            if usable.any():
                result[start : start + width][usable] = statistic(columns[:, :, usable])
    return result.reshape(site)


@lru_cache(maxsize=4)
def _normal_scores(size: int) -> Array:
    """Normal scores of the ranks 1..size (Blom's offset, as in the paper)."""
    return _inverse_normal((np.arange(1, size + 1) - 0.375) / (size + 0.25))


def _inverse_normal(probabilities: Array) -> Array:
    inverse = NormalDist().inv_cdf
    return np.array([inverse(p) for p in probabilities.tolist()])


def _rank_normalise(columns: Array) -> Array:
    """Replace the values of each column of (C, n, k), pooled over chains, by normal scores of their ranks."""
    chains, n, width = columns.shape
    size = chains * n
    flat = columns.reshape(size, width)
    order = np.argsort(flat, axis=0, kind="stable")
    scores = np.empty_like(flat)
    np.put_along_axis(scores, order, _normal_scores(size)[:, None], axis=0)
    ordered = np.take_along_axis(flat, order, axis=0)
    for column in np.flatnonzero((ordered[1:] == ordered[:-1]).any(axis=0)):
        # Equal values (discrete sites, float32) share the score of their average rank.
        _, inverse, counts = np.unique(flat[:, column], return_inverse=True, return_counts=True)
        average_rank = np.cumsum(counts) - 0.5 * (counts - 1)
        scores[:, column] = _inverse_normal((average_rank - 0.375) / (size + 0.25))[inverse]
    return scores.reshape(chains, n, width)


def _rhat(columns: Array) -> Array:
    """Gelman and Rubin's R-hat of each column of (C, n, k)."""
    n = columns.shape[1]
    between = columns.mean(axis=1).var(axis=0, ddof=1)
    within = columns.var(axis=1, ddof=1).mean(axis=0)
    within[(columns == columns[:, :1]).all(axis=(0, 1))] = 0.0  # rounding of the chain's mean leaves 1e-32
    with np.errstate(divide="ignore", invalid="ignore"):  # constant columns: 0/0 is NaN, x/0 is inf
        return np.sqrt(between / within + (n - 1) / n)


def _ess(columns: Array) -> Array:
    """Effective sample size of each column of (C, n, k), none of them constant."""
    chains, n, _ = columns.shape
    autocovariance = _autocovariance(columns).mean(axis=0)
    within = autocovariance[0] * n / (n - 1)
    total = autocovariance[0]
    if chains > 1:
        total = total + columns.mean(axis=1).var(axis=0, ddof=1)
    correlation = 1.0 - (within - autocovariance) / total
    correlation[0] = 1.0

    # Sums of neighbouring lags (2k, 2k + 1) are positive and decreasing for a reversible chain; the first
    # that is not ends the sum, and of it only a positive even term is kept.
    n_pairs = (n - 3) // 2 + 1
    even = correlation[0 : 2 * n_pairs : 2]
    pairs = even + correlation[1 : 2 * n_pairs : 2]
    ended = pairs <= 0.0
    ended[-1] = True
    stop = ended.argmax(axis=0)
    monotone = np.minimum.accumulate(pairs, axis=0)
    kept = np.where(np.arange(n_pairs)[:, None] < stop, monotone, 0.0).sum(axis=0)
    last_even = np.maximum(np.take_along_axis(even, stop[None], axis=0)[0], 0.0)
    size = chains * n
    # The floor keeps antithetic draws from claiming more than size * log10(size).
    tau = np.maximum(-1.0 + 2.0 * kept + last_even, 1.0 / np.log10(size))
    return size / tau


def _autocovariance(columns: Array) -> Array:
    """Biased autocovariance of every chain at all lags, shape (C, n, k), by FFT."""
    n = columns.shape[1]
    centred = columns - columns.mean(axis=1, keepdims=True)
    padded = 2 ** int(np.ceil(np.log2(2 * n)))
    spectrum = np.fft.rfft(centred, n=padded, axis=1)
    return np.fft.irfft(np.abs(spectrum) ** 2, n=padded, axis=1)[:, :n] / n
