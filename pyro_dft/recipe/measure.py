"""How good are the sampler's draws, and how many transitions of refinement do they need? The drift test answers both.

A fixed number of draws is refined by S transitions and by S more. If the second half moves nothing, S was enough; else S
doubles. What the first half moved says how far the raw draws were off, what the second half moved how far the refined ones.
Transitions that hardly move the draws would call anything still, so S also doubles until they have forgotten most of
where each draw started, and until the gap that this extrapolates to is small (see `pyro_dft.judging.drift.Drift`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyro_dft.judging.drift import Drift, drift
from pyro_dft.judging.joint import Joint
from pyro_dft.recipe.constants import FIRST_STEPS
from pyro_dft.recipe.engine import Engine, Refined
from pyro_dft.recipe.ensemble import Ensemble
from pyro_dft.recipe.modes import Modes
from pyro_dft.recipe.subject import Subject
from pyro_dft.settings import Settings

# Where a larger share of transitions diverges, some draws make further ones with smaller leapfrog steps (by this factor, and as
# many times more of them): at least so many draws over all chains, and as many as cost twice what the measurement did. One in
# a thousand is enough of a sign: draws seldom come near a neck that is too narrow for the usual steps, and no drift shows.
SOME_DIVERGENCES = 0.001
CAREFUL_DRAWS, CAREFUL = 1000, 4
# Least number of those transitions: small steps move slowly, for example along a ring.
CAREFUL_STEPS = 16
# Where evaluations on the full data are costly, the search ends before fewer draws than this (over all chains) could be refined.
LEAST_DRAWS = 500
# With fewer draws than this an error of half an sd would not be seen: that many may cost so many times the budget.
FEWEST_DRAWS, OVER_BUDGET = 200, 5


@dataclass
class Measurement:
    """Draws before and after refinement, and what moved (drifts in the model's own unconstrained coordinates).

    Attributes:
        steps: Transitions S that new draws need.
        raw: (C, n, d) draws of the sampler.
        halfway: (C, n, d) the same after S transitions.
        refined: (C, n, d) the same after 2 S transitions. Where there is an ensemble, these are states of its chains, and
            `halfway` the states half a window before those of its second half.
        log_density: (C, n) at `refined`.
        drift_raw: From `raw` to S transitions, all chains together.
        drift_refined: From S to 2 S transitions.
        drift_raw_by_chain: The first for each chain.
        scale: (C, d, d) or (C, d), whitening of the kernel.
        step_size: (C,) its adapted leapfrog step size.
        acceptance: (C,) mean acceptance probability.
        divergence_rate: Share of transitions with an energy error over 1000.
        careful_divergence_rate: The same with smaller leapfrog steps, where the first was large enough to look again.
        drift_careful: How far these moved the draws; None where nothing was looked at.
        ensemble: The chains whose states `refined` are; None where draws were refined one by one.
        stuck: Share of draws that never moved in the second half.
        diverged: (C, n) draws with such a transition on their whole way from `raw` to `refined`.
        leapfrog_steps: Gradient steps of each transition.
        noise: Standard deviation of the log density between two evaluations at the same points (nats): zero, unless
            the potential draws random numbers of its own, which jax fixes when it traces the model.
        joint: How far log densities at `raw` are from those of the ensemble; None without one.
        at_limit: Whether no more transitions were allowed.
        statistics: Numbers of the transitions that each of `refined` comes from, (C, n) each; see
            `pyro_dft.recipe.chains.STATISTICS`. None of a file.
        gradients_each: Gradient steps between `raw`, or the state before, and a draw of `refined`.
        renewed: Whether new draws start at states of `refined`, and not at draws of the sampler.
    """

    steps: int
    raw: Any
    halfway: Any
    refined: Any
    log_density: Any
    drift_raw: Drift
    drift_refined: Drift
    drift_raw_by_chain: list[Drift]
    scale: Any
    step_size: Any
    acceptance: Any
    divergence_rate: float
    stuck: float
    diverged: Any
    leapfrog_steps: int
    noise: float = 0.0
    careful_divergence_rate: float = 0.0
    drift_careful: Drift | None = None
    ensemble: Ensemble | None = None
    joint: Joint | None = None
    at_limit: bool = False
    statistics: dict[str, Any] = field(default_factory=dict)
    gradients_each: int = 0
    renewed: bool = False

    @property
    def trusted(self) -> bool:
        """Whether there are chains that have forgotten where they started."""
        return self.ensemble is not None and not self.ensemble.judged.restless

    @property
    def complete(self) -> bool:
        """Whether there are chains whose states can be served."""
        return self.ensemble is not None and self.ensemble.judged.complete

    def near(self, gate: float) -> bool:
        """Whether raw draws of no chain are surely further off than this, in a coordinate (sds) or jointly (nats for each)."""
        jointly = self.joint is None or bool((self.joint.sure < gate).all())
        return jointly and all(drift.near(gate) for drift in self.drift_raw_by_chain)

    @property
    def chain_movement(self) -> list[float]:
        """How far the raw draws of each chain moved, or are from the ensemble: root mean square over moments."""
        return [d.rms if self.ensemble is None else d.distance for d in self.drift_raw_by_chain]


def affordable_draws(draws: int, steps: int, settings: Settings, target: Any, least: int = 0) -> int:
    """How many draws can be refined within `full_data_budget`, where the model subsamples its data.

    Args:
        draws: As many as are wanted.
        steps: Transitions of each.
        settings: Their budget and leapfrog steps.
        target: The posterior.
        least: At least so many, at a cost of up to `OVER_BUDGET` budgets.
    """
    if not target.minibatch:
        return draws
    affordable = settings.full_data_budget / (
        max(steps, 1) * settings.fixed_leapfrog_steps * target.data_size
    )
    return int(min(draws, max(40, affordable, min(least, OVER_BUDGET * affordable))))


def compare(
    engine: Engine,
    before: Any,
    after: Any,
    original: Callable[[Any], Any],
    modes: Modes | None = None,
) -> list[Drift]:
    """Drift of all chains together, then of each chain, in the model's own unconstrained coordinates.

    Args:
        engine: Of the draws.
        before: (C, n, d); where there are modes, draws of the samplers of all modes, (C K, n, d).
        after: The same draws after transitions.
        original: Maps (n, d) points to the model's own unconstrained coordinates.
        modes: Which of the draws the chains keep, or None.
    """
    groups = None
    if modes is not None:
        before, after, groups = modes.kept(before), modes.kept(after), modes.kept_modes(before.shape[1])
    c, n, d = before.shape
    b = engine.numpy(original(before.reshape(-1, d))).reshape(c, n, d)
    a = engine.numpy(original(after.reshape(-1, d))).reshape(c, n, d)
    pooled = drift(b.reshape(-1, d), a.reshape(-1, d), None if groups is None else groups.reshape(-1))
    if c == 1:
        return [pooled, pooled]
    return [pooled, *(drift(b[i], a[i], None if groups is None else groups[i]) for i in range(c))]


def noise_between(engine: Engine, first: Any, again: Any) -> float:
    """Standard deviation of one evaluation of the log density (nats), from two at the same draws, without a shift in common."""
    if again is None:
        return 0.0
    difference = engine.numpy(again - first)
    difference = difference[np.isfinite(difference)]
    return float(difference.std(ddof=1) / 2**0.5) if len(difference) > 1 else 0.0


@dataclass
class _Search:
    """Draws and their kernel while the number of transitions is looked for."""

    raw: Any
    first: Refined
    second: Refined
    diverged: Any
    scale: Any
    step_size: Any
    steps: int
    moved: Drift


def measure(subject: Subject, most_steps: int | None = None) -> Measurement:
    """Refines a fixed number of draws and compares them before, after, and after twice as many transitions.

    Args:
        subject: What is measured. `refine_steps` of its settings fixes S; when it is None, S doubles from 2 to
            `max_refine_steps` until nothing moves. Fewer draws are refined, and S doubles no more, where the budget is short.
        most_steps: A further limit of S, beside `max_refine_steps`.
    """
    engine, settings, budget = subject.engine, subject.settings, subject.budget
    most = settings.experimental.max_refine_steps
    most = most if most_steps is None else min(most, most_steps)
    at = _searched(subject, most)
    drifts = compare(engine, at.raw, at.first.draws, subject.original, subject.modes)
    again = CAREFUL_DRAWS // subject.sampler.chains
    if budget is not None and at.second.divergence_rate > SOME_DIVERGENCES:
        again = budget.most(again, CAREFUL * max(at.steps, CAREFUL_STEPS) * _each(subject), 0)
    careful = carefully(subject, at.second, again, at.scale, at.step_size, steps=at.steps)
    second = at.second
    return Measurement(
        at.steps, at.raw, at.first.draws, second.draws, second.log_density, drifts[0], at.moved, drifts[1:], at.scale,
        at.step_size, second.acceptance, second.divergence_rate, second.stuck, at.diverged, subject.leapfrogs,
        noise_between(engine, at.first.log_density, second.log_density_before), *careful,
        at_limit=not settings.refine_steps and 2 * at.steps > most, statistics=second.statistics,
        gradients_each=2 * at.steps * subject.leapfrogs,
    )  # fmt: skip


def _each(subject: Subject) -> int:
    """Gradients that a transition of one draw of each sampler takes."""
    return subject.sampler.chains * subject.leapfrogs


def _searched(subject: Subject, most: int) -> _Search:
    """Draws after as many transitions as they need, at most `most`, and after as many again."""
    s, target, budget, chains = subject.settings, subject.target, subject.budget, subject.sampler.chains
    fixed = s.refine_steps or 0
    steps, each = fixed or min(FIRST_STEPS, most), _each(subject)
    n = max(10, affordable_draws(subject.draws, 4 * steps, s, target, FEWEST_DRAWS) // chains)
    if budget is not None:
        n = budget.most(n, 2 * steps * each, 10)
    raw = subject.sampler.draw(n, subject.rng)
    scale = subject.engine.whitening(raw, subject.sampler.scale)
    step_size = subject.tune(raw, scale)
    first = subject.refine(raw, scale, step_size, steps)
    diverged = first.diverged
    while True:
        second = subject.refine(first.draws, scale, step_size, steps)
        diverged = diverged | second.diverged
        moved = compare(subject.engine, first.draws, second.draws, subject.original, subject.modes)[0]
        # Twice the transitions for fewer draws, where the data are many; too few of them would show nothing.
        fewer = affordable_draws(subject.draws, 8 * steps, s, target) // chains
        if (
            fixed
            or moved.still
            or 2 * steps > most
            or fewer < min(raw.shape[1], LEAST_DRAWS // chains)
            or (budget is not None and not budget.affords(2 * steps * fewer * each))
        ):
            return _Search(raw, first, second, diverged, scale, step_size, steps, moved)
        raw, second, diverged = raw[:, :fewer], second.first(fewer), diverged[:, :fewer]
        # Raw draws that were far off must not decide the kernel that repairs them.
        scale = subject.engine.whitening(second.draws, subject.sampler.scale)
        step_size = subject.tune(second.draws, scale)
        first, steps = second, 2 * steps


def carefully(
    subject: Subject, refined: Refined, count: int, scale: Any, step_size: Any, *, steps: int
) -> tuple[float, Drift | None]:
    """Moves some refined draws further, with smaller leapfrog steps and as many times more of them.

    In curved posteriors a few transitions diverge although the draws are right: with smaller steps none diverge, and the draws
    do not drift. Where a neck is too narrow for the steps, they go on diverging, or the draws enter it and so drift.

    Args:
        subject: What is measured.
        refined: Draws after their refinement.
        count: Draws of each sampler that are looked at.
        scale: Whitening of the kernel.
        step_size: Its leapfrog step size.
        steps: Transitions.

    Returns:
        The divergence rate, at most that of the refinement, and how far the draws moved. Where few of the
        refinement's transitions diverged, or the model subsamples its data, the refinement's own rate and None.
    """
    if not refined.divergence_rate > SOME_DIVERGENCES or subject.target.minibatch or count < 10:
        return refined.divergence_rate, None
    draws = refined.first(count).draws
    after = subject.refine(draws, scale, step_size, max(steps, CAREFUL_STEPS), finer=CAREFUL)
    moved = compare(subject.engine, draws, after.draws, subject.original, subject.modes)[0]
    return min(after.divergence_rate, refined.divergence_rate), moved
