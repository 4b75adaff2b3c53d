"""Pareto-smoothed importance sampling: can importance weights be trusted, and their smoothed version.

Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance sampling", JMLR 25(72), 2024
(arXiv 1507.02646); the generalised Pareto fit is Zhang and Stephens, "A new and efficient estimation method
for the generalized Pareto distribution", Technometrics 51(3), 2009.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.floating[Any]]

_MIN_TAIL = 5  # a generalised Pareto fit to fewer points says nothing


class PSIS(NamedTuple):
    """Pareto-smoothed importance weights.

    Attributes:
        k_hat: shape of the generalised Pareto fitted to the largest weights: the number of finite moments of
            the weights is about ``1 / k_hat``. Trust the weights below :func:`khat_threshold`, never above
            0.7. ``inf`` where there are too few draws (25) or too few distinct weights to fit a tail;
            ``-inf`` where all weights are equal, so that there is no tail at all.
        log_weights: smoothed log weights of shape (n,), normalised so that their exponentials sum to one.
        ess: effective sample size of the smoothed weights, ``1 / sum(w**2)``, in draws. It is meaningless
            where `k_hat` is large.
    """

    k_hat: float
    log_weights: Array
    ess: float


def psis(log_weights: ArrayLike) -> PSIS:
    """Smooth the largest importance weights and estimate how heavy their tail is.

    Args:
        log_weights: unnormalised log weights of independent draws, shape (n,). ``-inf`` is a zero weight.

    Returns:
        :class:`PSIS`, a tuple (k_hat, smoothed normalised log weights, ess).

    Raises:
        ValueError: not one-dimensional, empty, a NaN or ``+inf``, or no weight above zero.
    """
    x = np.array(log_weights, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"log_weights must have shape (n,) with n > 0, got {x.shape}")
    if np.isnan(x).any() or np.isposinf(x).any():
        raise ValueError("log_weights contain NaN or +inf")
    if np.isneginf(x).all():
        raise ValueError("log_weights are all -inf: no draw has a positive weight")
    x -= x.max()
    tail_size = int(np.ceil(min(x.size / 5, 3 * np.sqrt(x.size))))
    order = np.argsort(x, kind="stable")
    k_hat = np.inf if x.min() < 0.0 else -np.inf
    if tail_size < x.size:
        # Below the smallest normal number a weight cannot be told from zero.
        cutoff = max(x[order[-tail_size - 1]], float(np.log(np.finfo(np.float64).tiny)))
        tail = order[x[order] > cutoff]  # in ascending order of weight
        if tail.size >= _MIN_TAIL:
            base = np.exp(cutoff)
            k_hat, scale = _fit_generalised_pareto(np.exp(x[tail]) - base)
            if np.isfinite(k_hat) and scale > 0:
                probabilities = np.arange(0.5, tail.size) / tail.size
                smoothed = _generalised_pareto_quantile(probabilities, k_hat, scale) + base
                # No smoothed weight may exceed the largest raw one.
                x[tail] = np.minimum(np.log(smoothed), 0.0)
    x -= x.max() + np.log(np.exp(x - x.max()).sum())
    return PSIS(float(k_hat), x, float(1.0 / np.exp(2.0 * x).sum()))


def khat_threshold(n: int) -> float:
    """Largest k-hat at which `n` draws still give reliable estimates: ``min(1 - 1 / log10(n), 0.7)``.

    Section 3.2.4 of Vehtari et al. (2024). `n` is the number of draws, at least 2.
    """
    return min(1.0 - 1.0 / float(np.log10(n)), 0.7)


def _fit_generalised_pareto(excess: Array) -> tuple[float, float]:
    """Shape and scale from excesses in ascending order, all positive (Zhang and Stephens 2009).

    The shape is drawn towards 0.5 by a prior worth ten observations, as in the appendix of Vehtari et al.
    (2024).
    """
    n = excess.size
    m = 30 + int(np.sqrt(n))
    quartile = excess[int(n / 4 + 0.5) - 1]
    if quartile <= excess[0]:  # a quarter of the tail has one value: no generalised Pareto
        return np.inf, np.nan
    b = 1.0 / excess[-1] + (1.0 - np.sqrt(m / (np.arange(1, m + 1) - 0.5))) / (3.0 * quartile)
    k = np.log1p(-b[:, None] * excess).mean(axis=1)
    log_likelihood = n * (np.log(-b / k) - k - 1.0)
    weights = np.exp(log_likelihood - log_likelihood.max())
    b_mean = float((b * weights).sum() / weights.sum())
    k_mean = float(np.log1p(-b_mean * excess).mean())
    return (n * k_mean + 10 * 0.5) / (n + 10), -k_mean / b_mean


def _generalised_pareto_quantile(probabilities: Array, k: float, scale: float) -> Array:
    log_survival = np.log1p(-probabilities)
    if abs(k) < np.finfo(np.float64).eps:
        return -scale * log_survival
    return scale * np.expm1(-k * log_survival) / k
