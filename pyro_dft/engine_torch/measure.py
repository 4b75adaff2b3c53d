"""How good are the sampler's draws, and how many transitions of refinement do they need? The drift test answers both.

A fixed number of draws is refined by S transitions and by S more. If the second half moves nothing, S was enough; else S
doubles. What the first half moved says how far the raw draws were off, what the second half moved how far the refined ones.
Transitions that hardly move the draws would call anything still, so S also doubles until they have forgotten most of
where each draw started, and until the gap that this extrapolates to is small (see `pyro_dft.diagnostics.Drift`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_dft.diagnostics import Drift, drift
from pyro_dft.engine_torch.refine import Refined, refine, tune_step_size, whitening
from pyro_dft.engine_torch.sampler import Sampler
from pyro_dft.engine_torch.target import Target
from pyro_dft.modes import Modes
from pyro_dft.settings import Settings

FIRST_STEPS = 2
# Where the full data are costly, the search ends before fewer draws than this would be left (over all chains).
LEAST_DRAWS = 500


@dataclass
class Measurement:
    """Draws before and after refinement, and what moved (drifts in the model's own unconstrained coordinates).

    Attributes:
        steps: Transitions S that the draws need.
        raw: (C, n, d) draws of the sampler.
        halfway: (C, n, d) the same after S transitions.
        refined: (C, n, d) the same after 2 S transitions.
        log_density: (C, n) at `refined`.
        drift_raw: From `raw` to S transitions, all chains together.
        drift_refined: From S to 2 S transitions.
        drift_raw_by_chain: The first for each chain.
        scale: (C, d, d) whitening of the kernel.
        step_size: (C,) its adapted leapfrog step.
        acceptance: (C,) mean acceptance probability.
        divergence_rate: Share of transitions with an energy error over 1000.
        stuck: Share of draws that never moved in the second half.
        noise: Standard deviation of the log density between two evaluations at the same points (nats): zero, unless
            the potential draws random numbers of its own.
    """

    steps: int
    raw: Tensor
    halfway: Tensor
    refined: Tensor
    log_density: Tensor
    drift_raw: Drift
    drift_refined: Drift
    drift_raw_by_chain: list[Drift]
    scale: Tensor
    step_size: Tensor
    acceptance: Tensor
    divergence_rate: float
    stuck: float
    noise: float = 0.0

    @property
    def chain_movement(self) -> list[float]:
        """Root mean square movement of the raw draws of each chain."""
        return [d.rms for d in self.drift_raw_by_chain]


def affordable_draws(draws: int, steps: int, settings: Settings, target: Target) -> int:
    """How many draws can be refined within `full_data_budget`, where the model subsamples its data."""
    if not target.minibatch:
        return draws
    each = max(steps, 1) * settings.leapfrog_steps * target.data_size
    return int(min(draws, max(40, settings.full_data_budget / each)))


def compare(
    before: Tensor, after: Tensor, original: Callable[[Tensor], Tensor], modes: Modes | None = None
) -> list[Drift]:
    """Drift of all chains together, then of each chain, in the model's own unconstrained coordinates.

    Args:
        before: (C, n, d); where there are modes, draws of the samplers of all modes, (C K, n, d).
        after: The same draws after transitions.
        original: Maps (n, d) points to the model's own unconstrained coordinates.
        modes: Which of the draws the chains keep, or None.
    """
    groups = None
    if modes is not None:
        before, after, groups = modes.kept(before), modes.kept(after), modes.kept_modes(before.shape[1])
    c, n, d = before.shape
    b = original(before.reshape(-1, d)).double().cpu().numpy().reshape(c, n, d)
    a = original(after.reshape(-1, d)).double().cpu().numpy().reshape(c, n, d)
    pooled = drift(b.reshape(-1, d), a.reshape(-1, d), None if groups is None else groups.reshape(-1))
    if c == 1:
        return [pooled, pooled]
    return [pooled, *(drift(b[i], a[i], None if groups is None else groups[i]) for i in range(c))]


def _noise(first: Tensor, again: Tensor) -> float:
    """Of one evaluation, from two at the same draws; a shift that all draws share does no harm."""
    difference = (again - first)[torch.isfinite(first) & torch.isfinite(again)].double()
    return float(difference.std() / 2**0.5) if len(difference) > 1 else 0.0


def measure(
    target: Target,
    sampler: Sampler,
    draws: int,
    settings: Settings,
    rng: torch.Generator,
    original: Callable[[Tensor], Tensor],
    modes: Modes | None = None,
) -> Measurement:
    """Refines a fixed number of draws and compares them before, after, and after twice as many transitions.

    Args:
        target: The posterior (full data is used).
        sampler: Where the draws come from.
        draws: Draws over all chains (and all modes of each).
        settings: `refine_steps` fixes S; when it is None, S doubles from 2 to `max_refine_steps` until nothing moves.
        rng: Generator on the target's device.
        original: Maps (n, d) points of the target's coordinates to the model's own unconstrained ones.
        modes: Which of several samplers serve each chain, or None.
    """
    fixed = settings.refine_steps or 0
    steps = fixed or min(FIRST_STEPS, settings.max_refine_steps)
    n = max(10, affordable_draws(draws, 4 * steps, settings, target) // sampler.chains)
    raw = sampler.draw(n, rng)
    scale = whitening(raw, sampler.scale)

    def go(x: Tensor) -> Refined:
        return refine(
            target, x, scale, step_size, steps=steps, leapfrog_steps=settings.leapfrog_steps, rng=rng
        )

    def tune(x: Tensor) -> Tensor:
        return tune_step_size(target, x, scale, leapfrog_steps=settings.leapfrog_steps, rng=rng)

    step_size = tune(raw)
    first = go(raw)
    while True:
        second = go(first.draws)
        moved = compare(first.draws, second.draws, original, modes)[0]
        if fixed or moved.still or 2 * steps > settings.max_refine_steps:
            break
        # Twice the transitions for fewer draws, where the data are many; too few of them would show nothing.
        fewer = affordable_draws(draws, 8 * steps, settings, target) // sampler.chains
        if fewer < min(raw.shape[1], LEAST_DRAWS // sampler.chains):
            break
        raw, second = raw[:, :fewer], second.first(fewer)
        # Raw draws that were far off must not decide the kernel that repairs them.
        scale = whitening(second.draws, sampler.scale)
        step_size = tune(second.draws)
        first, steps = second, 2 * steps
    drifts = compare(raw, first.draws, original, modes)
    return Measurement(
        steps, raw, first.draws, second.draws, second.log_density, drifts[0], moved, drifts[1:], scale, step_size,
        second.acceptance, second.divergence_rate, second.stuck, _noise(first.log_density, second.log_density_before),
    )  # fmt: skip
