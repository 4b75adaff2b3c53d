"""Is this fit good? NumPy in, NumPy out.

Two tests live here: the kernel Stein discrepancy (draws against the target's score) and the drift test (draws
before against draws after MCMC steps that leave the target as it is). What concerns several restarts or modes
is in :mod:`pyro_dft.optima`, importance weights in :mod:`pyro_dft.psis`, chains in
:mod:`pyro_dft.convergence`; their names can be imported from here too.

All of them are blind to a mode that no draw has visited. Only disagreement between restarts or chains shows
that.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_dft.convergence import ess, rhat
from pyro_dft.optima import ModeCoverage, Optima, distinct_optima, mode_coverage
from pyro_dft.psis import PSIS, khat_threshold, psis

__all__ = [
    "KSD",
    "PSIS",
    "Drift",
    "ModeCoverage",
    "Optima",
    "distinct_optima",
    "drift",
    "ess",
    "khat_threshold",
    "ksd",
    "mode_coverage",
    "psis",
    "rhat",
]

Array = NDArray[np.floating[Any]]

_BLOCK_ROWS = 512  # rows of the n x n Stein kernel held at a time
_LEAST_FORGOTTEN = 1e-3  # steps that forget less than this of where they started say nothing about a gap


@dataclass(frozen=True)
class KSD:
    """Squared kernel Stein discrepancy and its test.

    Attributes:
        statistic_u: U-statistic, unbiased for the squared discrepancy; may be below zero.
        statistic_v: V-statistic, the squared discrepancy of the empirical distribution; never below zero.
        p_value: bootstrap p-value of `statistic_u` for "the draws come from the target".
        null_quantile_95: 95 % quantile of `statistic_u` under that hypothesis.
        n: number of draws used.
    """

    statistic_u: float
    statistic_v: float
    p_value: float
    null_quantile_95: float
    n: int


def ksd(
    draws: ArrayLike,
    scores: ArrayLike,
    *,
    max_draws: int = 1000,
    n_boot: int = 500,
    seed: int = 0,
) -> KSD:
    """Kernel Stein discrepancy with the inverse multiquadric kernel ``(1 + |x - y|^2)^(-1/2)``.

    The test of Liu, Lee and Jordan (ICML 2016, arXiv 1602.03253) with the kernel of Gorham and Mackey (ICML
    2017, arXiv 1703.01717). The null distribution of the degenerate U-statistic comes from a wild bootstrap
    with independent random signs, valid for independent draws only.

    A small p-value is an alarm; a large one means little, above all in high dimension: with some hundred
    draws the test misses misfits that :func:`drift` shows.

    Args:
        draws: independent draws, shape (n, d), whitened by the caller so that one length scale fits.
        scores: gradient of the target's log density at the draws, in the same coordinates, shape (n, d).
        max_draws: at most so many draws are used, chosen at random; cost grows with their square.
        n_boot: number of bootstrap replicates.
        seed: seed of the choice of draws and of the bootstrap.

    Raises:
        ValueError: shapes differ or are not (n, d), fewer than two draws, or a value is not finite.
    """
    x, s = np.asarray(draws, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if x.ndim != 2 or x.shape != s.shape:
        raise ValueError(f"draws and scores must share a shape (n, d), got {x.shape} and {s.shape}")
    bad = ~(np.isfinite(x).all(axis=1) & np.isfinite(s).all(axis=1))
    if bad.any():
        raise ValueError(f"{int(bad.sum())} of {len(x)} draws or scores are not finite")
    rng = np.random.default_rng(seed)
    if len(x) > max_draws:
        chosen = rng.choice(len(x), size=max_draws, replace=False)
        x, s = x[chosen], s[chosen]
    n = len(x)
    if n < 2:
        raise ValueError(f"at least two draws are needed, got {n}")

    x = x - x.mean(axis=0)  # distances do not change, and their rounding error shrinks
    signs = rng.choice([-1.0, 1.0], size=(n, n_boot))
    total = diagonal = 0.0
    replicates = np.zeros(n_boot)
    for start in range(0, n, _BLOCK_ROWS):
        rows = slice(start, min(start + _BLOCK_ROWS, n))
        kernel = _stein_kernel(x[rows], s[rows], x, s)
        own = (np.arange(rows.stop - start), np.arange(start, rows.stop))
        diagonal += kernel[own].sum()
        kernel[own] = 0.0
        total += kernel.sum()
        replicates += np.einsum("ib,ib->b", signs[rows], kernel @ signs)
    pairs = n * (n - 1)
    statistic = total / pairs
    replicates /= pairs
    return KSD(
        statistic_u=float(statistic),
        statistic_v=float((total + diagonal) / n**2),
        p_value=float((1 + (replicates >= statistic).sum()) / (n_boot + 1)),
        null_quantile_95=float(np.quantile(replicates, 0.95)),
        n=n,
    )


def _stein_kernel(x: Array, sx: Array, y: Array, sy: Array) -> Array:
    """Stein kernel of k = q^(-1/2), q = 1 + |x - y|^2, for all pairs: shape (len(x), len(y)).

    s(x).s(y) k + s(x).grad_y k + s(y).grad_x k + tr grad_x grad_y k, where grad_x k = -(x - y) q^(-3/2) and
    tr grad_x grad_y k = d q^(-3/2) - 3 |x - y|^2 q^(-5/2).
    """
    squared = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2.0 * x @ y.T
    np.maximum(squared, 0.0, out=squared)
    k = 1.0 / np.sqrt(1.0 + squared)
    k3 = k**3
    # (s(x) - s(y)) . (x - y)
    cross = (sx * x).sum(1)[:, None] + (sy * y).sum(1) - sx @ y.T - x @ sy.T
    return (sx @ sy.T) * k + (cross + x.shape[1]) * k3 - 3.0 * squared * k3 * k * k


# Refined draws count as still when no effect surely passes the first figure, nor their root mean square the second.
STILL_WORST = 0.03
STILL_RMS = 0.025
# Nor may a gap surely pass this, nor a coordinate or its square be remembered by more than this. With 4,000 draws and a
# memory of 0.3 the gap of a mean is known to about 0.02 sd; tails are entered as slowly as squares are forgotten.
STILL_GAP = 0.05
STILL_MEMORY = 0.3


@dataclass(frozen=True)
class Drift:
    """How far MCMC steps moved the draws: effect sizes in posterior standard deviations.

    A sampler of the exact posterior does not move, up to standard error. Effects are signed "after minus
    before".

    A few steps close only a part of the gap between the draws and where the steps lead in the end. How large
    a part is in the data too: a draw forgets where it started. With `memory`, the slope of the regression of
    x after on x before, the steps close the share ``1 - memory`` of a gap, so that the gap was ``shift / (1 -
    memory)``: exact where the conditional mean is linear, as in a first-order autoregression, and an
    extrapolation elsewhere. For the scale the same is done with squares.

    Attributes:
        mean_shift: change of the mean over the standard deviation after, shape (d,).
        mean_se: its standard error.
        log_sd_shift: change of the log standard deviation, shape (d,).
        log_sd_se: its standard error.
        n: number of paired draws.
        gap: how far the draws before were from where the steps lead: means in standard deviations, then half
            the relative error of variances (that of log sds where it is small), shape (2, d).
        gap_se: its standard error, infinite where the steps hardly move anything; shape (2, d).
        memory: 1 where the steps do not move a coordinate (first row) or its square (second), 0 where they
            forget it; shape (2, d).
    """

    mean_shift: Array
    mean_se: Array
    log_sd_shift: Array
    log_sd_se: Array
    n: int
    gap: Array
    gap_se: Array
    memory: Array

    @property
    def effects(self) -> Array:
        """Mean shifts, then log sd shifts, shape (2, d)."""
        return np.stack([self.mean_shift, self.log_sd_shift])

    @property
    def standard_errors(self) -> Array:
        """Standard errors of `effects`, shape (2, d)."""
        return np.stack([self.mean_se, self.log_sd_se])

    @property
    def worst(self) -> float:
        """Largest absolute effect."""
        return float(np.abs(self.effects).max())

    @property
    def still(self) -> bool:
        """Whether the draws hardly moved although they could, so that as many steps as these were enough."""
        quiet = self.worst_lower <= STILL_WORST and self.rms <= STILL_RMS
        return quiet and self.gap_lower <= STILL_GAP and float(self.memory.max()) <= STILL_MEMORY

    @property
    def worst_lower(self) -> float:
        """Largest lower 95 % limit, ``|effect| - 1.96 se``: what the draws prove, below zero if nothing."""
        return float((np.abs(self.effects) - 1.96 * self.standard_errors).max())

    @property
    def coordinate(self) -> int:
        """Index of the coordinate with the largest absolute effect."""
        return int(np.abs(self.effects).max(axis=0).argmax())

    @property
    def moment(self) -> Literal["mean", "sd"]:
        """Which moment has the largest absolute effect."""
        return "mean" if np.abs(self.mean_shift).max() >= np.abs(self.log_sd_shift).max() else "sd"

    @property
    def rms(self) -> float:
        """Root mean square effect over coordinates and both moments, with the sampling noise taken out."""
        return float(np.sqrt(max(0.0, float(np.mean(self.effects**2 - self.standard_errors**2)))))

    def flagged(self, threshold: float = 0.1) -> bool:
        """Whether some effect is surely (lower 95 % limit) above `threshold` posterior standard deviations.

        An effect size, not a significance test: with enough draws a test would flag every fit.
        """
        return self.worst_lower > threshold

    @property
    def gap_limits(self) -> tuple[Array, Array]:
        """Lower and upper limits of all gaps, shape (2, d) each, that hold together with 95 % (Bonferroni)."""
        margin = NormalDist().inv_cdf(1.0 - 0.025 / self.gap.size) * self.gap_se
        return self.gap - margin, self.gap + margin

    @property
    def gap_lower(self) -> float:
        """Largest size of a gap that is sure, by the simultaneous limits; -inf if the steps moved nothing."""
        low, high = self.gap_limits
        return float(np.maximum(low, -high).max())

    @property
    def resolution(self) -> float:
        """Largest standard error of a mean's gap. Errors of that size can be there and not be seen."""
        return float(self.gap_se[0].max())


def drift(before: ArrayLike, after: ArrayLike, groups: ArrayLike | None = None) -> Drift:
    """Compare draws before and after MCMC steps that leave the target invariant.

    Row i of `after` must be row i of `before` after the steps, and rows must be independent of each other.
    Standard errors come from paired influence functions, so the noise that both sides share cancels: the
    fewer steps, the smaller the effects *and* their errors. A quiet drift test is necessary, not sufficient:
    what the steps cannot reach (a mode that was never visited, a neck too narrow for them) does not show.
    Slow directions show in `gap`, unless its standard error says that nothing can be seen.

    Args:
        before: draws of the sampler, shape (n, d).
        after: the same draws after the steps, shape (n, d).
        groups: which of several separate modes each draw started in, integers of shape (n,). What a draw remembers of
            that does not count as memory: a gap then is that within the modes.

    Returns:
        :class:`Drift`. A coordinate with a draw that is not finite on either side, or that had no spread and
        moved, has an infinite effect with zero standard error; one that had no spread and stayed has effect
        zero.

    Raises:
        ValueError: shapes differ or are not (n, d), or fewer than three draws.
    """
    b, a = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if b.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"before and after must share a shape (n, d), got {b.shape} and {a.shape}")
    n, d = b.shape
    if n < 3 or d < 1:
        raise ValueError(f"at least three draws of one coordinate are needed, got shape {b.shape}")
    effects, errors = np.full((2, d), np.inf), np.zeros((2, d))
    finite = np.isfinite(b).all(axis=0) & np.isfinite(a).all(axis=0)
    stuck = finite & (b == b[0]).all(axis=0) & (a == b[0]).all(axis=0)
    effects[:, stuck] = 0.0
    usable = finite & (b != b[0]).any(axis=0) & (a != a[0]).any(axis=0)
    effects[:, usable], errors[:, usable] = _paired_effects(b[:, usable], a[:, usable])
    gap, gap_se, memory = effects.copy(), errors.copy(), np.zeros((2, d))
    gap_se[:, stuck], memory[:, stuck] = np.inf, 1.0
    start = np.zeros(n, np.intp) if groups is None else np.unique(groups, return_inverse=True)[1]
    gap[:, usable], gap_se[:, usable], memory[:, usable] = _gaps(b[:, usable], a[:, usable], start)
    return Drift(effects[0], errors[0], effects[1], errors[1], n, gap, gap_se, memory)


def _paired_effects(b: Array, a: Array) -> tuple[Array, Array]:
    """Mean and log sd shifts with standard errors, each (2, d), for coordinates that vary on both sides."""
    zb, sd_b = _standardise(b)
    za, sd_a = _standardise(a)
    mean_shift = (a.mean(axis=0) - b.mean(axis=0)) / sd_a
    log_sd_shift = np.log(sd_a / sd_b)
    # Influence of a draw x: x - m on the mean m, ((x - m)^2 / s^2 - 1) / 2 on log s. The mean shift is
    # divided by sd_a, which is estimated too: the last term of its influence (delta method).
    on_log_sd_a, on_log_sd_b = (za**2 - 1.0) / 2.0, (zb**2 - 1.0) / 2.0
    on_mean_shift = za - zb * (sd_b / sd_a) - mean_shift * on_log_sd_a
    influences = np.stack([on_mean_shift, on_log_sd_a - on_log_sd_b])
    return np.stack([mean_shift, log_sd_shift]), influences.std(axis=1, ddof=1) / np.sqrt(len(a))


def _gaps(b: Array, a: Array, groups: NDArray[np.intp]) -> tuple[Array, Array, Array]:
    """Gaps, their standard errors and the memories, each (2, d), for coordinates that vary on both sides."""
    centre, sd = a.mean(axis=0), a.std(axis=0, ddof=1)
    zb, za = (b - centre) / sd, (a - centre) / sd
    before, after = np.stack([zb, zb**2 / 2.0]), np.stack([za, za**2 / 2.0])
    shift = after.mean(axis=1) - before.mean(axis=1)
    for group in range(groups.max() + 1):
        own = groups == group
        before[:, own] -= before[:, own].mean(axis=1, keepdims=True)
        after[:, own] -= after[:, own].mean(axis=1, keepdims=True)
    variance = (before**2).mean(axis=1)
    memory = (before * after).mean(axis=1) / variance
    forgotten = 1.0 - memory
    moves = forgotten > _LEAST_FORGOTTEN
    forgotten = np.where(moves, forgotten, 1.0)
    gap = shift / forgotten
    # Influence of a pair on shift / (1 - memory) (delta method).
    on_memory = before * (after - memory[:, None] * before) / variance[:, None]
    influences = (after - before + gap[:, None] * on_memory) / forgotten[:, None]
    errors = influences.std(axis=1, ddof=1) / np.sqrt(len(a))
    return gap, np.where(moves, errors, np.inf), memory


def _standardise(x: Array) -> tuple[Array, Array]:
    sd = x.std(axis=0, ddof=1)
    return (x - x.mean(axis=0)) / sd, sd
