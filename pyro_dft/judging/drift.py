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

from pyro_dft.judging.moments import Tails, column_blocks, gaps, paired_effects, two_samples

Array = NDArray[np.floating[Any]]
Moment = Literal["mean", "sd", "5 % point", "95 % point"]

MOMENTS: tuple[Moment, ...] = ("mean", "sd", "5 % point", "95 % point")
# Effects and gaps that are surely larger than this (posterior sds) are flagged: of mean, log sd, 5 % and 95 % point.
LIMITS = np.array([0.1, 0.1, 0.15, 0.15])[:, None]
# How often, over all coordinates and moments together, chance alone may make an effect count where draws are right.
FALSE_ALARMS = 0.01

# Refined draws are at rest when no effect is surely above the first figure, and their root mean square is below the second.
STILL_WORST = 0.03
STILL_RMS = 0.025
# And when no gap is surely above this, and no memory (of a coordinate, its square, its tails) above the second figure. With 4,000
# draws and a memory of 0.3 the gap of a mean is known to about 0.02 sd; tails are entered as slowly as they are forgotten.
STILL_GAP = 0.05
STILL_MEMORY = 0.3


def normal_limit(false_alarms: float, comparisons: int) -> float:
    """A limit that the largest of so many standard normal numbers passes in size in at most this share of cases (Bonferroni)."""
    return NormalDist().inv_cdf(1.0 - false_alarms / (2.0 * comparisons))


def still_limit(coordinates: int) -> float:
    """How many standard errors an effect on a mean or log sd may have without counting as a movement.

    Of many coordinates some always seem to move: in half of the cases the largest effect stays below this limit.
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
        memory_se: its standard error, shape (4, d).
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
    memory_se: Array

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
        """The same for each gap, by the limits that hold jointly; -inf where the steps moved nothing; shape (4, d)."""
        low = np.maximum(self.gap_low, -self.gap_high)
        return np.where(self.significant, low, np.minimum(low, 0.0))

    @property
    def worst(self) -> float:
        """Largest absolute effect on a mean or log sd."""
        return float(np.abs(self.effects[:2]).max())

    @property
    def worst_lower(self) -> float:
        """Largest lower limit of an effect's size; zero or below where no effect is sure."""
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
    def distance(self) -> float:
        """The same over all four moments, each in units of its limit over that of means."""
        squared = (self.effects**2 - self.standard_errors**2) / (LIMITS / LIMITS[0]) ** 2
        return float(np.sqrt(max(0.0, float(np.mean(squared)))))

    @property
    def still(self) -> bool:
        """Whether the draws hardly moved although they could, so that as many steps as these were enough."""
        z = still_limit(self.effects.shape[1])
        worst = float((np.abs(self.effects[:2]) - z * self.standard_errors[:2]).max())
        quiet = worst <= STILL_WORST and self.rms <= STILL_RMS
        return quiet and self.gap_lower <= STILL_GAP and float(self.memory.max()) <= STILL_MEMORY

    def near(self, gate: float) -> bool:
        """Whether no effect is surely above the gate, which is wider for 5 % and 95 % points, in proportion to their limits."""
        limits = gate * LIMITS / LIMITS[0]
        rows = 4 if self.memory.max() == 0 else 2
        chance = still_limit(self.effects.shape[1]) if rows == 4 else 1.0
        return bool((np.abs(self.effects) - chance * self.standard_errors < limits)[:rows].all())

    @property
    def sure_memory(self) -> float:
        """Largest memory, less what chance makes of one where nothing is remembered, over all of them."""
        chance = normal_limit(FALSE_ALARMS, self.memory.size) * self.memory_se
        return float((self.memory - chance).max())

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


def drift(before: ArrayLike, after: ArrayLike, groups: ArrayLike | None = None, together: int = 1) -> Drift:
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
        together: so many consecutive rows are states of one chain, and only chains are independent. As when `before` is the
            first half of several chains and `after` the second half.

    Returns:
        :class:`Drift`. A coordinate with a draw that is not finite on either side, or that had no spread and
        moved, has an infinite effect with zero standard error; one that had no spread and stayed has effect
        zero.

    Raises:
        ValueError: shapes differ or are not (n, d), or fewer than three independent rows.
    """
    b, a = _numbers(before), _numbers(after)
    if b.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"before and after must share a shape (n, d), got {b.shape} and {a.shape}")
    n, d = b.shape
    if n < 3 * together or d < 1:
        raise ValueError(f"at least three draws of one coordinate are needed, got shape {b.shape}")
    empty = _Empty.of(b, a)
    usable = empty.usable
    effects, errors, significance = empty.effects.copy(), np.zeros((4, d)), empty.effects.copy()
    gap, gap_se, low, high = empty.gap, empty.gap_se, empty.low, empty.high
    memory = np.where(empty.stuck, 1.0, np.zeros((4, d)))
    memory_se = np.zeros((4, d))
    start = np.zeros(n, np.intp) if groups is None else np.unique(groups, return_inverse=True)[1]
    z = normal_limit(0.05, 4 * d)
    for some in column_blocks(usable):
        x, y = _double(b, some), _double(a, some)
        tails = Tails.of(x, y)
        effects[:, some], errors[:, some], significance[:, some] = paired_effects(x, y, tails, together)
        found = gaps(x, y, tails, start, z, together)
        for whole, part in zip((gap, gap_se, low, high, memory, memory_se), found, strict=True):
            whole[:, some] = part
    if together == 1 and usable.any():  # where nothing is remembered
        memory_se[:] = n**-0.5
    return Drift(effects, errors, significance, n, gap, gap_se, low, high, memory, memory_se)


def difference(draws: ArrayLike, particles: ArrayLike, together: int = 1) -> Drift:
    """Compare a sampler's draws with states of chains that have forgotten where they started.

    Args:
        draws: independent draws of the sampler, shape (n, d).
        particles: states of the chains, shape (m, d).
        together: so many consecutive rows of `particles` are states of one chain; only chains are independent.

    Returns:
        :class:`Drift` from the draws to the particles. Chains lead to where they are, so gaps are effects, with memory zero.

    Raises:
        ValueError: the numbers of coordinates differ, or fewer than three independent rows.
    """
    b, a = _numbers(draws), _numbers(particles)
    if b.ndim != 2 or a.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"draws and particles must have the same coordinates, got {b.shape} and {a.shape}")
    n, d = b.shape
    if n < 3 or len(a) < 3 * together:
        raise ValueError(f"at least three draws and chains are needed, got shapes {b.shape} and {a.shape}")
    empty = _Empty.of(b, a)
    usable = empty.usable
    effects, errors = empty.effects.copy(), np.zeros((4, d))
    for some in column_blocks(usable):
        x, y = _double(b, some), _double(a, some)
        effects[:, some], errors[:, some] = two_samples(x, y, Tails.of(x, y), together)
    with np.errstate(divide="ignore", invalid="ignore"):
        significance = np.where(effects == 0.0, 0.0, effects / errors)
    margin = normal_limit(0.05, 4 * d) * errors
    return Drift(
        effects, errors, significance, n, effects, errors, effects - margin, effects + margin,
        np.zeros((4, d)), np.zeros((4, d)),
    )  # fmt: skip


def _numbers(values: ArrayLike) -> Array:
    """As an array of floating numbers, single ones as they are: all of them are not converted at once."""
    found = np.asarray(values)
    return found if found.dtype in (np.float32, np.float64) else found.astype(np.float64)


def _double(values: Array, some: Any) -> Array:
    """Some columns in double precision."""
    return np.ascontiguousarray(values[:, some], dtype=np.float64)


@dataclass(frozen=True)
class _Empty:
    """Which coordinates can be compared, (d,), and the values for the others, (4, d)."""

    usable: NDArray[np.bool_]
    stuck: NDArray[np.bool_]
    effects: Array
    gap: Array
    gap_se: Array
    low: Array
    high: Array

    @classmethod
    def of(cls, b: Array, a: Array) -> _Empty:
        usable, stuck = np.empty(b.shape[1], bool), np.empty(b.shape[1], bool)
        for some in column_blocks(np.ones(b.shape[1], bool)):
            x, y = _double(b, some), _double(a, some)
            finite = np.isfinite(x).all(axis=0) & np.isfinite(y).all(axis=0)
            stuck[some] = finite & (x == x[0]).all(axis=0) & (y == x[0]).all(axis=0)
            usable[some] = finite & (x != x[0]).any(axis=0) & (y != y[0]).any(axis=0)
        effects = np.where(stuck, 0.0, np.full((4, b.shape[1]), np.inf))
        return cls(
            usable, stuck, effects, effects.copy(), np.where(stuck, np.inf, np.zeros(effects.shape)),
            np.where(stuck, -np.inf, effects), np.where(stuck, np.inf, effects),
        )  # fmt: skip
