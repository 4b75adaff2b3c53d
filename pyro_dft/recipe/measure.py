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
from pyro_dft.recipe.budget import Budget
from pyro_dft.recipe.constants import FIRST_STEPS
from pyro_dft.recipe.engine import Engine, Refined
from pyro_dft.recipe.ensemble import Ensemble
from pyro_dft.recipe.modes import Modes
from pyro_dft.settings import Settings

# A larger share of diverging transitions is looked at again, with leapfrog steps that are smaller by this factor, and as many
# more of them; on so many draws over all chains at least, and on as many as cost twice what the measurement did. One in a
# thousand is enough of a sign: where a neck is too narrow for the usual steps, draws seldom come near it, and no drift shows.
SOME_DIVERGENCES = 0.001
CAREFUL_DRAWS, CAREFUL = 1000, 4
# Transitions of that look, at least: small steps go round a ring slowly.
CAREFUL_STEPS = 16
# Where the full data are costly, the search ends before fewer draws than this would be left (over all chains).
LEAST_DRAWS = 500
# With fewer than these an error of half an sd would not be seen: they may cost so many times the budget.
FEWEST_DRAWS, OVER_BUDGET = 200, 5


@dataclass
class Measurement:
    """Draws before and after refinement, and what moved (drifts in the model's own unconstrained coordinates).

    Attributes:
        steps: Transitions S that the draws need.
        raw: (C, n, d) draws of the sampler.
        halfway: (C, n, d) the same after S transitions.
        refined: (C, n, d) the same after 2 S transitions. Where there is an ensemble, these are states of its chains, and
            `halfway` the states half a window before those of its second half.
        log_density: (C, n) at `refined`.
        drift_raw: From `raw` to S transitions, all chains together.
        drift_refined: From S to 2 S transitions.
        drift_raw_by_chain: The first for each chain.
        scale: (C, d, d) or (C, d), whitening of the kernel.
        step_size: (C,) its adapted leapfrog step.
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
        at_limit: Whether no more transitions were allowed.
        statistics: Numbers of the transitions that each of `refined` comes from, (C, n) each; see
            `pyro_dft.recipe.chains.STATISTICS`. None of a file.
        gradients_each: Gradient steps between `raw`, or the state before, and a draw of `refined`.
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
    at_limit: bool = False
    statistics: dict[str, Any] = field(default_factory=dict)
    gradients_each: int = 0

    @property
    def trusted(self) -> bool:
        """Whether there are chains that have forgotten where they started."""
        return self.ensemble is not None and not self.ensemble.judged.restless

    @property
    def complete(self) -> bool:
        """Whether there are chains whose states can be served."""
        return self.ensemble is not None and self.ensemble.judged.complete

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
        least: So many may cost up to `OVER_BUDGET` budgets.
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


def _noise(engine: Engine, first: Any, again: Any) -> float:
    """Of one evaluation, from two at the same draws; a shift that all draws share does no harm."""
    if again is None:
        return 0.0
    difference = engine.numpy(again - first)
    difference = difference[np.isfinite(difference)]
    return float(difference.std(ddof=1) / 2**0.5) if len(difference) > 1 else 0.0


def measure(
    engine: Engine,
    target: Any,
    sampler: Any,
    draws: int,
    settings: Settings,
    rng: Any,
    original: Callable[[Any], Any],
    modes: Modes | None = None,
    budget: Budget | None = None,
    most_steps: int | None = None,
) -> Measurement:
    """Refines a fixed number of draws and compares them before, after, and after twice as many transitions.

    Args:
        engine: Of the target.
        target: The posterior (full data is used).
        sampler: Where the draws come from.
        draws: Draws over all chains (and all modes of each).
        settings: `refine_steps` fixes S; when it is None, S doubles from 2 to `max_refine_steps` until nothing moves.
        rng: The engine's random number generator.
        original: Maps (n, d) points of the target's coordinates to the model's own unconstrained ones.
        modes: Which of several samplers serve each chain, or None.
        budget: What the fit may cost: fewer draws are refined, and S doubles no more, where it is short.
        most_steps: In place of `max_refine_steps`, where that is larger.
    """
    fixed, most = settings.refine_steps or 0, settings.max_refine_steps
    most = most if most_steps is None else min(most, most_steps)
    steps = fixed or min(FIRST_STEPS, most)
    n = max(10, affordable_draws(draws, 4 * steps, settings, target, FEWEST_DRAWS) // sampler.chains)
    each = (
        sampler.chains * settings.fixed_leapfrog_steps
    )  # gradients of a transition of one draw of every sampler
    if budget is not None:
        n = budget.most(n, 2 * steps * each, 10)
    raw = sampler.draw(n, rng)
    scale = engine.whitening(raw, sampler.scale)

    def go(x: Any) -> Refined:
        return engine.refine(
            target, x, scale, step_size, steps=steps, leapfrog_steps=settings.fixed_leapfrog_steps, rng=rng
        )

    def tune(x: Any) -> Any:
        return engine.tune_step_size(target, x, scale, leapfrog_steps=settings.fixed_leapfrog_steps, rng=rng)

    step_size = tune(raw)
    first = go(raw)
    diverged = first.diverged
    while True:
        second = go(first.draws)
        diverged = diverged | second.diverged
        moved = compare(engine, first.draws, second.draws, original, modes)[0]
        if fixed or moved.still or 2 * steps > most:
            break
        # Twice the transitions for fewer draws, where the data are many; too few of them would show nothing.
        fewer = affordable_draws(draws, 8 * steps, settings, target) // sampler.chains
        if fewer < min(raw.shape[1], LEAST_DRAWS // sampler.chains):
            break
        if budget is not None and not budget.affords(2 * steps * fewer * each):
            break
        raw, second, diverged = raw[:, :fewer], second.first(fewer), diverged[:, :fewer]
        # Raw draws that were far off must not decide the kernel that repairs them.
        scale = engine.whitening(second.draws, sampler.scale)
        step_size = tune(second.draws)
        first, steps = second, 2 * steps
    drifts = compare(engine, raw, first.draws, original, modes)
    again = CAREFUL_DRAWS // sampler.chains
    if budget is not None and second.divergence_rate > SOME_DIVERGENCES:
        again = budget.most(again, CAREFUL * max(steps, CAREFUL_STEPS) * each, 0)
    careful = carefully(
        engine, target, second, again, scale, step_size, settings, rng, original, modes, steps=steps
    )
    return Measurement(
        steps, raw, first.draws, second.draws, second.log_density, drifts[0], moved, drifts[1:], scale, step_size,
        second.acceptance, second.divergence_rate, second.stuck, diverged, settings.fixed_leapfrog_steps,
        _noise(engine, first.log_density, second.log_density_before), *careful, at_limit=not fixed and 2 * steps > most,
        statistics=second.statistics, gradients_each=2 * steps * settings.fixed_leapfrog_steps,
    )  # fmt: skip


def carefully(
    engine: Engine,
    target: Any,
    refined: Refined,
    count: int,
    scale: Any,
    step_size: Any,
    settings: Settings,
    rng: Any,
    original: Callable[[Any], Any],
    modes: Modes | None,
    *,
    steps: int,
) -> tuple[float, Drift | None]:
    """Some refined draws again, with smaller leapfrog steps and as many more of them.

    Curved posteriors make a few transitions diverge although the draws are right. There smaller steps diverge no more, and
    the draws stay where they are; in a neck that is too narrow they go on diverging, or the draws enter it and so move.

    Args:
        engine: Of the target.
        target: The posterior (full data is used).
        refined: Draws after their refinement.
        count: Draws of each sampler that are looked at.
        scale: Whitening of the kernel.
        step_size: Its leapfrog step.
        settings: Leapfrog steps of the refinement.
        rng: The engine's random number generator.
        original: Maps (n, d) points of the target's coordinates to the model's own unconstrained ones.
        modes: Which of several samplers serve each chain, or None.
        steps: Transitions.

    Returns:
        The divergence rate, at most that of the refinement, and how far the draws moved; that of the refinement and None where
        that is small, and where the full data are many.
    """
    if not refined.divergence_rate > SOME_DIVERGENCES or target.minibatch or count < 10:
        return refined.divergence_rate, None
    draws = refined.first(count).draws
    after = engine.refine(
        target,
        draws,
        scale,
        step_size / CAREFUL,
        steps=max(steps, CAREFUL_STEPS),
        leapfrog_steps=CAREFUL * settings.fixed_leapfrog_steps,
        rng=rng,
    )
    moved = compare(engine, draws, after.draws, original, modes)[0]
    return min(after.divergence_rate, refined.divergence_rate), moved
