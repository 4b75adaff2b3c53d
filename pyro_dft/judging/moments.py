"""Moments that the drift test compares: mean, log sd, and the 5 % and 95 % points, with the influence of each draw on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

TAIL = 0.05
# The density at the 5 % point is taken from the distance of these quantiles; for a normal distribution the error is 2 %.
AROUND = (0.03, 0.08)
DENSITIES = (0.02, 1.0)  # limits of that density, in 1 / sd: an atom has none
NEAR = 0.2  # sds by which an effect on a point may differ from how far the point itself has moved
COLUMNS = 32  # coordinates that are handled at once
LEAST_FORGOTTEN = 1e-3  # with less than this share forgotten, steps say nothing about a gap


def quantiles(x: Array, levels: Sequence[float]) -> Array:
    """As `numpy.quantile` over the first axis of (n, k), (levels, k); much faster for many coordinates.

    Sorted as a whole: with vector instructions that takes less than half the time of a partition.
    """
    place = np.asarray(levels) * (len(x) - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, len(x) - 1)
    ordered = np.sort(np.ascontiguousarray(x.T), axis=1)
    with np.errstate(invalid="ignore"):  # infinities
        return np.ascontiguousarray(
            (ordered[:, low] + (place - low) * (ordered[:, high] - ordered[:, low])).T
        )


@dataclass(frozen=True)
class Tails:
    """The 5 % and 95 % points of draws before and after together, and the densities there.

    Attributes:
        low, high: The points, (k,).
        low_density, high_density: Times the sd after, (k,).
    """

    low: Array
    high: Array
    low_density: Array
    high_density: Array

    @classmethod
    def of(cls, b: Array, a: Array) -> Tails:
        """The tails of draws before, b (n, k), and after, a (m, k)."""
        outer, inner = AROUND
        q = quantiles(np.concatenate([b, a]), (outer, TAIL, inner, 1 - inner, 1 - TAIL, 1 - outer))
        sd = a.std(axis=0, ddof=1)
        low, high = q[1], q[4]
        # Points that moved far have left the region of that density: an effect is limited to how far they moved, plus NEAR.
        before, after = (quantiles(x, (TAIL, 1 - TAIL)) for x in (b, a))
        moved = [
            ((a < low).mean(axis=0) - (b < low).mean(axis=0)),
            (a > high).mean(axis=0) - (b > high).mean(axis=0),
        ]
        densities = []
        for width, share, distance in zip((q[2] - q[0], q[5] - q[3]), moved, after - before, strict=True):
            with np.errstate(divide="ignore", invalid="ignore"):
                local = (inner - outer) * sd / width
            between = np.abs(share) / (np.abs(distance) / sd + NEAR)
            densities.append(np.maximum(np.clip(local, *DENSITIES), between))
        return cls(low, high, densities[0], densities[1])

    def shares(self, x: Array) -> tuple[Array, Array]:
        """For each point, numbers of draws (n, k) whose mean changes by as much as the point does, in sds."""
        return (x < self.low) / -self.low_density, (x > self.high) / self.high_density


def column_blocks(usable: NDArray[np.bool_]) -> Iterator[NDArray[np.intp]]:
    """Indices of the usable coordinates, some at a time: their draws then stay in the processor's cache."""
    index = np.flatnonzero(usable)
    for start in range(0, len(index), COLUMNS):
        yield index[start : start + COLUMNS]


def averaged(x: Array, together: int) -> Array:
    """Means (n / together, k) of so many consecutive rows of (n, k)."""
    return x if together == 1 else x.reshape(-1, together, x.shape[1]).mean(axis=1)


def paired_effects(b: Array, a: Array, tails: Tails, together: int) -> tuple[Array, Array, Array]:
    """Effects, standard errors and significance, each (4, k), for coordinates that vary on both sides."""
    n = len(a) // together
    zb, sd_b = standardise(b)
    za, sd_a = standardise(a)
    mean_shift = (a.mean(axis=0) - b.mean(axis=0)) / sd_a
    log_sd_shift = np.log(sd_a / sd_b)
    # Influence of a draw x: x - m on the mean m, ((x - m)^2 / s^2 - 1) / 2 on log s. The mean shift is
    # divided by sd_a, which is estimated too: the last term of its influence (delta method).
    on_log_sd_a, on_log_sd_b = (za**2 - 1.0) / 2.0, (zb**2 - 1.0) / 2.0
    on_mean_shift = za - zb * (sd_b / sd_a) - mean_shift * on_log_sd_a
    beyond = [after - before for before, after in zip(tails.shares(b), tails.shares(a), strict=True)]
    effects = np.stack([mean_shift, log_sd_shift, *(x.mean(axis=0) for x in beyond)])
    influences = (on_mean_shift, on_log_sd_a - on_log_sd_b, *beyond)
    errors = np.stack([averaged(x, together).std(axis=0, ddof=1) for x in influences]) / np.sqrt(n)
    paired = ((a - b) / sd_a, za**2 - (zb * (sd_b / sd_a)) ** 2, *beyond)
    differences = [averaged(x, together) for x in paired]
    with np.errstate(invalid="ignore"):  # 0 / 0 where no draw crosses a point
        significance = np.stack([x.sum(axis=0) / np.sqrt((x**2).sum(axis=0)) for x in differences])
    return effects, errors, np.nan_to_num(significance)


def gaps(
    b: Array, a: Array, tails: Tails, groups: NDArray[np.intp], z: float, together: int
) -> tuple[Array, ...]:
    """Gaps, standard errors, limits at `z`, memories and their standard errors, each (4, k)."""
    centre, sd = a.mean(axis=0), a.std(axis=0, ddof=1)
    zb, za = (b - centre) / sd, (a - centre) / sd
    pairs = [(zb, za), (zb**2 / 2.0, za**2 / 2.0), *zip(tails.shares(b), tails.shares(a), strict=True)]
    found = [_gap(before, after, groups, z, together) for before, after in pairs]
    return tuple(np.stack(rows) for rows in zip(*found, strict=True))


def _gap(before: Array, after: Array, groups: NDArray[np.intp], z: float, together: int) -> tuple[Array, ...]:
    """Gap of one feature (n, k), its standard error, limits at `z` standard errors, memory and its error; each (k,)."""
    n = len(after) // together
    difference: Array = after - before
    shift = difference.mean(axis=0)
    before, after = np.array(before), np.array(after)
    for group in range(groups.max() + 1):
        own = groups == group
        before[own] -= before[own].mean(axis=0)
        after[own] -= after[own].mean(axis=0)
    variance = (before**2).mean(axis=0)
    varies = variance > 0.0  # else no draw was beyond a point
    variance = np.where(varies, variance, 1.0)
    memory = np.where(varies, (before * after).mean(axis=0) / variance, 0.0)
    forgotten = 1.0 - memory
    moves = forgotten > LEAST_FORGOTTEN
    forgotten = np.where(moves, forgotten, 1.0)
    gap = shift / forgotten
    # Influence of a pair on shift / (1 - memory) (delta method).
    on_memory = before * (after - memory * before) / variance
    of_difference, of_slope = averaged(difference, together), averaged(on_memory, together)
    errors = (of_difference + gap * of_slope).std(axis=0, ddof=1) / forgotten / np.sqrt(n)
    memory_error = of_slope.std(axis=0, ddof=1) / np.sqrt(n)
    # Fieller's limits of a ratio: all g for which shift - g (1 - memory) may be zero. They stay honest where little
    # is forgotten, and this little is known badly.
    centred = of_difference - shift
    of_shift, of_memory = (centred**2).sum(axis=0), (of_slope**2).sum(axis=0)
    of_both = -(centred * of_slope).sum(axis=0)
    scale = z**2 / (n * (n - 1.0))
    square, linear = forgotten**2 - scale * of_memory, shift * forgotten - scale * of_both
    sure = moves & (square > 0.0)
    square = np.where(sure, square, 1.0)
    root = np.sqrt(np.maximum(linear**2 - square * (shift**2 - scale * of_shift), 0.0))
    low = np.where(sure, (linear - root) / square, -np.inf)
    high = np.where(sure, (linear + root) / square, np.inf)
    return gap, np.where(moves, errors, np.inf), low, high, memory, memory_error


def standardise(x: Array) -> tuple[Array, Array]:
    """Draws (n, k) in sds from their mean, and the sds (k,)."""
    sd = x.std(axis=0, ddof=1)
    return (x - x.mean(axis=0)) / sd, sd


def two_samples(b: Array, a: Array, tails: Tails, together: int) -> tuple[Array, Array]:
    """Effects and standard errors, (4, k) each, of independent draws b (n, k) against particles a (m, k)."""
    zb, sd_b = standardise(b)
    za, sd_a = standardise(a)
    shift = (a.mean(axis=0) - b.mean(axis=0)) / sd_a
    on_log_sd_a = (za**2 - 1.0) / 2.0
    of_b = (zb * (sd_b / sd_a), (zb**2 - 1.0) / 2.0, *tails.shares(b))
    of_a = (za - shift * on_log_sd_a, on_log_sd_a, *tails.shares(a))
    beyond = [y.mean(axis=0) - x.mean(axis=0) for x, y in zip(of_b[2:], of_a[2:], strict=True)]
    effects = np.stack([shift, np.log(sd_a / sd_b), *beyond])
    units = len(a) // together
    errors = [
        np.sqrt(x.var(axis=0, ddof=1) / len(b) + averaged(y, together).var(axis=0, ddof=1) / units)
        for x, y in zip(of_b, of_a, strict=True)
    ]
    return effects, np.stack(errors)
