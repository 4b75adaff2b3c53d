"""How far draws are from a density: kernel Stein discrepancy and sliced Wasserstein distance.

The kernel is the inverse multiquadric k(x, y) = (c^2 + |x - y|^2)^beta with c = 1, beta = -1/2 (Gorham and Mackey, Measuring
sample quality with kernels, 2017). The Stein kernel k_p has mean zero under the density in each argument, so that the mean
of k_p over pairs is the squared discrepancy: zero for exact draws, and blind to the weights of separate modes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.metrics import projected_quantiles
from benchmarks.paper.targets import Toy

# c^2; the exponent -1/2 is written out as powers of an inverse root, which is several times faster.
C_SQUARED = 1.0
# The yardstick of sliced W2: exact draws other than those of the exact row.
REFERENCE_DRAWS, REFERENCE_SEED = 50_000, 7


@dataclass(frozen=True)
class Discrepancy:
    """Squared kernel Stein discrepancies of one set of draws.

    Attributes:
        u: U-statistic, mean over pairs of different draws: unbiased, below zero by chance where draws are exact.
        v: V-statistic, mean over all pairs: never below zero, and above `u` by the diagonal.
    """

    u: float
    v: float


def stein_kernel(x: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Matrix (n, n) of k_p(x_i, x_j) = s_i.s_j k + s_i.grad_j k + s_j.grad_i k + trace(grad_i grad_j k).

    Args:
        x: Draws (n, d).
        scores: Gradients of the log density there, (n, d).
    """
    d = x.shape[1]
    # Pairwise products about the centre, so that far-off draws lose no digits.
    y = x - x.mean(0)
    inner = y @ y.T
    square = np.maximum(np.add.outer(inner.diagonal(), inner.diagonal()) - 2 * inner, 0)
    root = 1 / np.sqrt(C_SQUARED + square)  # the kernel
    cube = root**3  # grad_j k = cube (x_i - x_j) = -grad_i k
    along = scores @ y.T  # s_i . x_j
    own = along.diagonal()
    # s_i . (x_i - x_j) - s_j . (x_i - x_j)
    cross = own[:, None] - along - along.T + own[None]
    trace = cube * (d - 3 * square * root**2)
    return (scores @ scores.T) * root + cube * cross + trace


def kernel_stein(x: np.ndarray, scores: np.ndarray) -> Discrepancy:
    """U- and V-statistic of draws (n, d) with scores (n, d); infinite where one is not finite."""
    if not (np.isfinite(x).all() and np.isfinite(scores).all()):
        return Discrepancy(np.inf, np.inf)
    k = stein_kernel(np.asarray(x, np.float64), np.asarray(scores, np.float64))
    n, total, trace = len(k), float(k.sum()), float(k.trace())
    return Discrepancy((total - trace) / (n * (n - 1)), total / n**2)


@dataclass(frozen=True)
class Yardstick:
    """What sliced W2 compares with: quantiles and covariance of many exact draws, in the coordinates compared."""

    toy: Toy
    quantiles: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, toy: Toy) -> Yardstick:
        """The yardstick of a density."""
        draws = _seen(toy, toy.target.exact(REFERENCE_DRAWS, REFERENCE_SEED))
        covariance = np.cov(draws.T)
        return cls(toy, projected_quantiles(draws, covariance), covariance)

    def sliced_w2(self, draws: np.ndarray) -> float:
        """`benchmarks.metrics.sliced_wasserstein2` of draws (n, 2) from the exact ones; infinite where one is not finite."""
        if not np.isfinite(draws).all():
            return float("inf")
        own = projected_quantiles(_seen(self.toy, draws), self.covariance)
        return float(np.sqrt(((own - self.quantiles) ** 2).mean()))


def _seen(toy: Toy, draws: np.ndarray) -> np.ndarray:
    # The donut's radius is for tables of moments; here only the plane counts.
    return toy.target.seen(draws)[:, :2]
