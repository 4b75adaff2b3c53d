"""The drift test: draws before against draws after MCMC steps that leave the target as it is, in NumPy.

Four numbers of each coordinate are compared: mean, log sd, and the 5 % and 95 % points. What the steps moved is an
effect, where they would lead in the end a gap. Both are effect sizes in posterior standard deviations with intervals,
and count only where chance would hardly make so large a one in *any* coordinate.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.floating[Any]]
Moment = Literal["mean", "sd", "5 % point", "95 % point"]

MOMENTS: tuple[Moment, ...] = ("mean", "sd", "5 % point", "95 % point")
# Effects and gaps in posterior sds that are errors, where they are sure: of means and log sds, then of the two points.
LIMITS = np.array([0.1, 0.1, 0.15, 0.15])[:, None]
# How often chance alone may make some effect of draws that are right count: over all coordinates and moments.
FALSE_ALARMS = 0.01

TAIL = 0.05
# A density at the 5 % point comes from how far these quantiles are apart, in sds; a normal distribution's has 2 % error.
AROUND = (0.03, 0.08)
DENSITIES = (0.02, 1.0)  # and is held within these: an atom has no density
NEAR = 0.2  # sds by which an effect on a point may differ from how far the point itself has moved
LEAST_FORGOTTEN = 1e-3  # steps that forget less than this of where they started say nothing about a gap

# Refined draws count as still when no effect surely passes the first figure, nor their root mean square the second.
STILL_WORST = 0.03
STILL_RMS = 0.025
# Nor may a gap surely pass this, nor a coordinate, its square or its tails be remembered by more than this. With 4,000
# draws and a memory of 0.3 the gap of a mean is known to about 0.02 sd; tails are entered as slowly as they are forgotten.
STILL_GAP = 0.05
STILL_MEMORY = 0.3


def normal_limit(false_alarms: float, comparisons: int) -> float:
    """What the largest of so many standard normal sizes passes in at most this share of cases (Bonferroni)."""
    return NormalDist().inv_cdf(1.0 - false_alarms / (2.0 * comparisons))


def still_limit(coordinates: int) -> float:
    """Standard errors that an effect on a mean or log sd may pass without counting as a movement.

    Some coordinate of many always seems to move: half of the time the largest of all stays below this.
    """
    return max(1.96, normal_limit(0.5, 2 * coordinates))


@dataclass(frozen=True)
class Drift:
    """How far MCMC steps moved the draws: effect sizes in posterior standard deviations.

    A sampler of the exact posterior does not move, up to standard error. Effects are signed "after minus
    before". Rows are mean, log sd, 5 % point and 95 % point. The last two come from shares: how many more draws are
    beyond the point after than before, over the density there.

    A few steps close only a part of the gap between the draws and where the steps lead in the end. How large
    a part is in the data too: a draw forgets where it started. With `memory`, the slope of the regression of
    x after on x before, the steps close the share ``1 - memory`` of a gap, so that the gap was ``shift / (1 -
    memory)``: exact where the conditional mean is linear, as in a first-order autoregression, and an
    extrapolation elsewhere. For the scale the same is done with squares, for the points with being beyond them.

    Attributes:
        effects: changes of mean, log sd, 5 % point and 95 % point, shape (4, d).
        standard_errors: of `effects`, shape (4, d).
        significance: effects over what chance makes of them where before and after are exchangeable, shape (4, d):
            sums of paired differences over the root of the sum of their squares.
        n: number of paired draws.
        gap: how far the draws before were from where the steps lead: means in standard deviations, then half
            the relative error of variances (that of log sds where it is small), then the points; shape (4, d).
        gap_se: its standard error, infinite where the steps hardly move anything; shape (4, d).
        gap_low, gap_high: limits of all gaps that hold together with 95 %, shape (4, d) each.
        memory: 1 where the steps do not move a coordinate (first row), its square (second) or whether it is beyond a
            point (third and fourth), 0 where they forget it; shape (4, d).
    """

    effects: Array
    standard_errors: Array
    significance: Array
    n: int
    gap: Array
    gap_se: Array
    gap_low: Array
    gap_high: Array
    memory: Array

    @property
    def mean_shift(self) -> Array:
        """Change of the mean over the standard deviation after, shape (d,)."""
        return self.effects[0]

    @property
    def mean_se(self) -> Array:
        """Standard error of `mean_shift`, shape (d,)."""
        return self.standard_errors[0]

    @property
    def log_sd_shift(self) -> Array:
        """Change of the log standard deviation, shape (d,)."""
        return self.effects[1]

    @property
    def log_sd_se(self) -> Array:
        """Standard error of `log_sd_shift`, shape (d,)."""
        return self.standard_errors[1]

    @property
    def significant(self) -> NDArray[np.bool_]:
        """Which effects chance hardly makes, in any coordinate, where draws are right; booleans of shape (4, d).

        Before and after are exchangeable then, and the signs of paired differences random: whatever their
        distribution, the normal limit holds for `significance` even with few draws (Efron 1969, "Student's t-test
        under symmetry conditions", JASA 64).
        """
        limit = normal_limit(FALSE_ALARMS, self.effects.size)
        return np.asarray(np.abs(self.significance) > limit)

    @property
    def sure(self) -> Array:
        """Lower 95 % limit of each size, ``|effect| - 1.96 se``, at most 0 without significance; shape (4, d)."""
        low = np.abs(self.effects) - 1.96 * self.standard_errors
        return np.where(self.significant, low, np.minimum(low, 0.0))

    @property
    def sure_gap(self) -> Array:
        """The same of each gap, by the limits that hold together; -inf where the steps moved nothing; shape (4, d)."""
        low = np.maximum(self.gap_low, -self.gap_high)
        return np.where(self.significant, low, np.minimum(low, 0.0))

    @property
    def worst(self) -> float:
        """Largest absolute effect on a mean or log sd."""
        return float(np.abs(self.effects[:2]).max())

    @property
    def worst_lower(self) -> float:
        """Largest size that the draws prove; zero or below if none."""
        return float(self.sure.max())

    @property
    def surest(self) -> tuple[int, int]:
        """Row and column of the effect that passes its limit by most, or comes nearest to it."""
        return _largest(self.sure - LIMITS)

    @property
    def surest_gap(self) -> tuple[int, int]:
        """The same of the gaps."""
        return _largest(self.sure_gap - LIMITS)

    @property
    def coordinate(self) -> int:
        """Index of the coordinate with the surest effect."""
        return self.surest[1]

    @property
    def moment(self) -> Moment:
        """What the surest effect is of."""
        return MOMENTS[self.surest[0]]

    @property
    def rms(self) -> float:
        """Root mean square effect over coordinates, on means and log sds, with the sampling noise taken out."""
        squared = self.effects[:2] ** 2 - self.standard_errors[:2] ** 2
        return float(np.sqrt(max(0.0, float(np.mean(squared)))))

    @property
    def still(self) -> bool:
        """Whether the draws hardly moved although they could, so that as many steps as these were enough."""
        z = still_limit(self.effects.shape[1])
        worst = float((np.abs(self.effects[:2]) - z * self.standard_errors[:2]).max())
        quiet = worst <= STILL_WORST and self.rms <= STILL_RMS
        return quiet and self.gap_lower <= STILL_GAP and float(self.memory.max()) <= STILL_MEMORY

    @property
    def sure_memory(self) -> float:
        """Largest memory, less what chance makes of one where nothing is remembered, over all of them."""
        return float(self.memory.max()) - normal_limit(FALSE_ALARMS, self.memory.size) / self.n**0.5

    @property
    def restless(self) -> bool:
        """Whether more than chance says that the draws moved, or could not; much less strict than not `still`."""
        moved = self.worst_lower > STILL_WORST or self.gap_lower > STILL_GAP
        return moved or self.sure_memory > STILL_MEMORY

    def flagged(self, threshold: float | None = None) -> bool:
        """Whether some effect is surely above a limit, in posterior standard deviations.

        An effect size, not a significance test: with enough draws a test would flag every fit.

        Args:
            threshold: Of all moments alike; None for `LIMITS`.
        """
        return bool((self.sure > (LIMITS if threshold is None else threshold)).any())

    @property
    def gap_flagged(self) -> bool:
        """Whether some gap is surely above its limit."""
        return bool((self.sure_gap > LIMITS).any())

    @property
    def gap_lower(self) -> float:
        """Largest size of a gap that is sure, by the simultaneous limits; -inf if the steps moved nothing."""
        return float(self.sure_gap.max())

    @property
    def resolution(self) -> float:
        """Largest standard error of a mean's gap. Errors of that size can be there and not be seen."""
        return float(self.gap_se[0].max())


def _largest(values: Array) -> tuple[int, int]:
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return int(row), int(column)


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
    finite = np.isfinite(b).all(axis=0) & np.isfinite(a).all(axis=0)
    stuck = finite & (b == b[0]).all(axis=0) & (a == b[0]).all(axis=0)
    usable = finite & (b != b[0]).any(axis=0) & (a != a[0]).any(axis=0)
    effects = np.where(stuck, 0.0, np.full((4, d), np.inf))
    errors, significance = np.zeros((4, d)), effects.copy()
    gap, gap_se = effects.copy(), np.where(stuck, np.inf, np.zeros((4, d)))
    low, high = np.where(stuck, -np.inf, effects), np.where(stuck, np.inf, effects)
    memory = np.where(stuck, 1.0, np.zeros((4, d)))
    if usable.any():
        b, a = b[:, usable], a[:, usable]
        start = np.zeros(n, np.intp) if groups is None else np.unique(groups, return_inverse=True)[1]
        tails = _Tails.of(b, a)
        effects[:, usable], errors[:, usable], significance[:, usable] = _effects(b, a, tails)
        z = normal_limit(0.05, 4 * d)
        gap[:, usable], gap_se[:, usable], low[:, usable], high[:, usable], memory[:, usable] = _gaps(
            b, a, tails, start, z
        )
    return Drift(effects, errors, significance, n, gap, gap_se, low, high, memory)


@dataclass(frozen=True)
class _Tails:
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
    def of(cls, b: Array, a: Array) -> _Tails:
        outer, inner = AROUND
        q = np.quantile(np.concatenate([b, a]), [outer, TAIL, inner, 1 - inner, 1 - TAIL, 1 - outer], axis=0)
        sd = a.std(axis=0, ddof=1)
        low, high = q[1], q[4]
        # Far points are not where their density says: no effect is larger than how far they are apart, by more than NEAR.
        before, after = (np.quantile(x, [TAIL, 1 - TAIL], axis=0) for x in (b, a))
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
        """What, averaged over draws (n, k), moves as the points do, in sds; for each point."""
        return (x < self.low) / -self.low_density, (x > self.high) / self.high_density


def _effects(b: Array, a: Array, tails: _Tails) -> tuple[Array, Array, Array]:
    """Effects, standard errors and significance, each (4, k), for coordinates that vary on both sides."""
    n = len(a)
    zb, sd_b = _standardise(b)
    za, sd_a = _standardise(a)
    mean_shift = (a.mean(axis=0) - b.mean(axis=0)) / sd_a
    log_sd_shift = np.log(sd_a / sd_b)
    # Influence of a draw x: x - m on the mean m, ((x - m)^2 / s^2 - 1) / 2 on log s. The mean shift is
    # divided by sd_a, which is estimated too: the last term of its influence (delta method).
    on_log_sd_a, on_log_sd_b = (za**2 - 1.0) / 2.0, (zb**2 - 1.0) / 2.0
    on_mean_shift = za - zb * (sd_b / sd_a) - mean_shift * on_log_sd_a
    beyond = [after - before for before, after in zip(tails.shares(b), tails.shares(a), strict=True)]
    effects = np.stack([mean_shift, log_sd_shift, *(x.mean(axis=0) for x in beyond)])
    influences = (on_mean_shift, on_log_sd_a - on_log_sd_b, *beyond)
    errors = np.stack([x.std(axis=0, ddof=1) for x in influences]) / np.sqrt(n)
    differences = ((a - b) / sd_a, za**2 - (zb * (sd_b / sd_a)) ** 2, *beyond)
    with np.errstate(invalid="ignore"):  # 0 / 0 where no draw crosses a point
        significance = np.stack([x.sum(axis=0) / np.sqrt((x**2).sum(axis=0)) for x in differences])
    return effects, errors, np.nan_to_num(significance)


def _gaps(
    b: Array, a: Array, tails: _Tails, groups: NDArray[np.intp], z: float
) -> tuple[Array, Array, Array, Array, Array]:
    """Gaps, standard errors, limits at `z` and memories, each (4, k), for coordinates that vary on both sides."""
    centre, sd = a.mean(axis=0), a.std(axis=0, ddof=1)
    zb, za = (b - centre) / sd, (a - centre) / sd
    pairs = [(zb, za), (zb**2 / 2.0, za**2 / 2.0), *zip(tails.shares(b), tails.shares(a), strict=True)]
    found = [_gap(before, after, groups, z) for before, after in pairs]
    gap, errors, low, high, memory = (np.stack(rows) for rows in zip(*found, strict=True))
    return gap, errors, low, high, memory


def _gap(
    before: Array, after: Array, groups: NDArray[np.intp], z: float
) -> tuple[Array, Array, Array, Array, Array]:
    """Gap of one feature (n, k), its standard error, limits at `z` standard errors, memory; each (k,)."""
    n = len(after)
    difference = after - before
    shift = difference.mean(axis=0)
    before, after = before.copy(), after.copy()
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
    errors = (difference + gap * on_memory).std(axis=0, ddof=1) / forgotten / np.sqrt(n)
    # Fieller's limits of a ratio: all g for which shift - g (1 - memory) may be zero. They stay honest where little
    # is forgotten, and this little is known badly.
    centred = difference - shift
    of_shift, of_memory = (centred**2).sum(axis=0), (on_memory**2).sum(axis=0)
    of_both = -(centred * on_memory).sum(axis=0)
    scale = z**2 / (n * (n - 1.0))
    square, linear = forgotten**2 - scale * of_memory, shift * forgotten - scale * of_both
    sure = moves & (square > 0.0)
    square = np.where(sure, square, 1.0)
    root = np.sqrt(np.maximum(linear**2 - square * (shift**2 - scale * of_shift), 0.0))
    low = np.where(sure, (linear - root) / square, -np.inf)
    high = np.where(sure, (linear + root) / square, np.inf)
    return gap, np.where(moves, errors, np.inf), low, high, memory


def _standardise(x: Array) -> tuple[Array, Array]:
    sd = x.std(axis=0, ddof=1)
    return (x - x.mean(axis=0)) / sd, sd
