"""How far draws are from the exact posterior, what of it their number explains, and what that makes the fit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
from scipy.stats import binom

from benchmarks.geometry.target import NORMAL_WIDTH
from benchmarks.hostile.arrays import Array
from benchmarks.posteriordb.bars import REFINED
from benchmarks.references import QUANTILES
from benchmarks.table import Row

EXACT_DRAWS = 200_000
# Noise is what errors pass by chance in one of so many fits, all coordinates and statistics of the fit together.
CHANCE = 0.05
# Of this many draws an sd says little where the kurtosis is larger (its own error is over 3 % with 4,000 draws, or does not
# exist): the width between the 5 and 95 % points, and the median, stand in for the sd and the mean.
KURTOSIS = 15.0
# Where so small a change of probability moves a true point by so many bars, and by less on either side, it lies in a gap between
# modes: any error of their weights, however small, moves it by much. It is left out; means and sds see the weights.
GAP_SHARE, GAP_BARS, GAP_BESIDE = 0.01, 4.0, 0.03
STATISTICS = ("mean", "sd", "5 %", "50 %", "95 %")
# In the keys of the fits: under other rules they are made again.
RULES = (EXACT_DRAWS, CHANCE, KURTOSIS, GAP_SHARE, GAP_BARS, GAP_BESIDE)
BARS = (REFINED.mean, REFINED.sd, REFINED.quantile, REFINED.quantile, REFINED.quantile)


@dataclass(frozen=True)
class Truth:
    """Many exact draws, and what is compared of them.

    Attributes:
        draws: (N, d).
    """

    draws: Array

    @cached_property
    def moments(self) -> tuple[Array, Array, Array]:
        """Means, sds and kurtoses, (d,) each."""
        return _moments(self.draws)

    @cached_property
    def heavy(self) -> Array:
        """Coordinates (d,) whose sd is no use."""
        return self.moments[2] > KURTOSIS

    @cached_property
    def quantiles(self) -> Array:
        """(3, d)."""
        return np.quantile(self.draws, QUANTILES, axis=0)

    @cached_property
    def unit(self) -> Array:
        """What errors are measured in, (d,): the sd, or that of a normal distribution of the same width."""
        width = (self.quantiles[2] - self.quantiles[0]) / NORMAL_WIDTH
        return np.where(self.heavy, width, self.moments[1])

    @cached_property
    def gaps(self) -> Array:
        """Which of the points lie in a gap, (3, d)."""
        beside, here, beyond = (self._spacing(np.add(QUANTILES, s * GAP_BESIDE)) for s in (-1, 0, 1))
        # In a heavy tail points are far apart as well, but the farther out the more.
        return (here > GAP_BARS * REFINED.quantile) & (here > 2 * np.maximum(beside, beyond))

    def _spacing(self, p: Array) -> Array:
        """How far so small a share of probability moves the points at p (3,), (3, d)."""
        below, above = (np.quantile(self.draws, p + s * GAP_SHARE, axis=0) for s in (-1, 1))
        return (above - below) / self.unit


@dataclass(frozen=True)
class Comparison:
    """Errors of draws.

    Attributes:
        error: (5, d): of the location and of the width (ratio minus one), then of the 5, 50 and 95 % points; in `Truth.unit`.
            Zero for what is left out.
        noise: (5, d): what chance makes of them; in the order of `STATISTICS`.
        non_finite: Draws that were left out.
    """

    error: Array
    noise: Array
    non_finite: int

    def row(self, net: bool = False) -> Row:
        """The worst errors under the names that `benchmarks.posteriordb.bars` reads.

        Args:
            net: Whether to take the noise off, towards no error.
        """
        e = self.error
        if net:
            e = np.sign(e) * np.maximum(0.0, np.abs(e) - self.noise)
        return {
            "worst_mean": float(np.abs(e[0]).max()),
            "sd_low": float(1 + e[1].min()),
            "sd_high": float(1 + e[1].max()),
            "worst_quantile": float(np.abs(e[2:]).max()),
        }

    @property
    def quality(self) -> str:
        """`good`, `off` by more than a bar or `bad`: by more than two, beyond what noise explains."""
        net = self.row(net=True)
        if self.non_finite or not REFINED.holds(net, 2.0):
            return "bad"
        return "good" if REFINED.holds(net) else "off"

    @property
    def undecided(self) -> bool:
        """Whether more draws could change the quality: an error passes a bar, and none passes two for sure."""
        return not REFINED.holds(self.row()) and self.quality != "bad"

    def worst(self) -> dict[str, Any]:
        """The error that is largest in units of its bar, net of noise where it passes that: where it is, and its sizes."""
        size = np.abs(self.error) / np.array(BARS)[:, None]
        net = size - self.noise / np.array(BARS)[:, None]
        largest = net if net.max() > 0 else size
        i, j = np.unravel_index(int(largest.argmax()), largest.shape)
        return {
            "where": f"{STATISTICS[i]} of {j}",
            "bars": float(abs(self.error[i, j]) / BARS[i]),
            "sure_bars": float(max(0.0, net[i, j])),
        }


def compare(draws: Array, truth: Truth) -> Comparison:
    """Errors of independent draws (n, d) against exact ones."""
    finite = np.isfinite(draws).all(1)
    x = draws[finite]
    d = truth.draws.shape[1]
    if len(x) < 100:
        return Comparison(np.full((5, d), np.inf), np.zeros((5, d)), int((~finite).sum()))
    heavy, unit, q = truth.heavy, truth.unit, truth.quantiles
    z = NormalDist().inv_cdf(1 - CHANCE / (2 * len(STATISTICS) * d))
    moments, found = _moments(x), np.quantile(x, QUANTILES, axis=0)
    points = np.where(truth.gaps, 0.0, (found - q) / unit)
    points_noise = _point_noise(x, found, truth, z) / unit
    width = (points[2] - points[0]) * unit / (q[2] - q[0])
    location = np.where(heavy, points[1], (moments[0] - truth.moments[0]) / unit)
    ratio = np.where(heavy, width, moments[1] / truth.moments[1] - 1)
    moment_noise = z * _moment_errors(moments, len(x), truth)
    # A width is off by chance where one of its ends is, or both are.
    width_noise = np.hypot(points_noise[0], points_noise[2]) * unit / (q[2] - q[0])
    noise = [
        np.where(heavy, points_noise[1], moment_noise[0]), np.where(heavy, width_noise, moment_noise[1]), *points_noise,
    ]  # fmt: skip
    return Comparison(np.array([location, ratio, *points]), np.array(noise), int((~finite).sum()))


def _moments(x: Array) -> tuple[Array, Array, Array]:
    mean, sd = x.mean(0), x.std(0)
    z = (x - mean) / np.where(sd > 0, sd, 1.0)
    return mean, sd, (z * z * z * z).mean(0)


def _moment_errors(moments: tuple[Array, Array, Array], n: int, truth: Truth) -> Array:
    """Standard errors (2, d) of the mean in exact sds, and of the ratio of sds, from both samples."""
    total = np.zeros((2, truth.draws.shape[1]))
    for (_, sd, kurtosis), count in ((moments, n), (truth.moments, len(truth.draws))):
        size = (sd / truth.moments[1]) ** 2
        total += np.array([size, size * np.maximum(kurtosis - 1, 0.0) / 4]) / count
    return np.sqrt(total)


def _point_noise(x: Array, found: Array, truth: Truth, z: float) -> Array:
    """Noise (3, d) of the 5, 50 and 95 % points: between draws whose ranks the true points could have by chance.

    The number of draws below a true point is binomial, whatever the density is. The exact draws are taken to have their points
    from fewer draws than there are in x alone, so that their own noise is in it too.
    """
    n = 1 / (1 / len(x) + 1 / len(truth.draws))
    tail = NormalDist().cdf(-z)
    ordered = np.sort(x, axis=0)
    noise = np.empty_like(found)
    for i, p in enumerate(QUANTILES):
        low, high = (float(binom.ppf(t, int(n), p)) / int(n) for t in (tail, 1 - tail))
        last = len(x) - 1
        below = ordered[max(0, math.floor(low * last))]
        above = ordered[min(last, math.ceil(high * last))]
        # Only the side toward the true point matters.
        noise[i] = np.where(found[i] > truth.quantiles[i], found[i] - below, above - found[i])
    return noise
