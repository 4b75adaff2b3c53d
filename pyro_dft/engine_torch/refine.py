"""Refinement: a few transitions of exact Hamiltonian Monte Carlo from the sampler's draws, all draws at once.

Each draw is a chain of its own, so nothing has to mix beyond repairing what the sampler got slightly wrong; the transitions
leave the posterior invariant, so the draws can only come closer to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pyro_dft.engine_torch.target import Target
from pyro_dft.recipe.constants import MAX_ENERGY_ERROR, TARGET_ACCEPTANCE, TUNING_DRAWS, TUNING_STEPS
from pyro_dft.roots import coloured, has_directions, projected, spread

# The step size is tuned on fewer draws where each reads many rows of data.
FULL_DATA_TUNING_DRAWS = 32


@dataclass
class Refined:
    """The result of some transitions.

    Attributes:
        draws: (C, n, d), unconstrained.
        log_density: (C, n), up to the target's constant.
        log_density_before: The same at the starting points.
        acceptance: Mean acceptance probability, (C,).
        divergence_rate: Share of transitions with an energy error over 1000, or not finite.
        stuck: Share of draws that never moved.
        diverged: Draws with such a transition, (C, n).
        statistics: See `pyro_dft.recipe.chains.STATISTICS`.
    """

    draws: Tensor
    log_density: Tensor
    log_density_before: Tensor
    acceptance: Tensor
    divergence_rate: float
    stuck: float
    diverged: Tensor
    statistics: dict[str, Tensor] = field(default_factory=dict)

    def first(self, count: int) -> Refined:
        """The same for the first `count` draws of each chain only."""
        each = ("draws", "log_density", "log_density_before", "diverged")
        fewer = {name: getattr(self, name)[:, :count] for name in each}
        statistics = {name: value[:, :count] for name, value in self.statistics.items()}
        return replace(self, **fewer, statistics=statistics)


def whitening(draws: Tensor, fallback: Tensor) -> Tensor:
    """Cholesky factors of the covariances of (C, n, d) draws, (C, d, d); `fallback` where n is too small to tell.

    Standard deviations (C, d) where `fallback` holds these alone; `fallback` itself where it has directions (`pyro_dft.roots`).
    """
    n, d = draws.shape[1:]
    if fallback.ndim == 2:
        sd = draws.double().std(1)
        return torch.where(torch.isfinite(sd) & (sd > 0), sd, fallback.double()).to(draws.dtype)
    if n < 4 * d or has_directions(fallback, 3):
        return fallback.to(draws.dtype)
    x = draws.double()
    x = x - x.mean(1, keepdim=True)
    covariance = x.mT @ x / (n - 1)
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt().clamp(min=1e-300)
    correlation = covariance / (sd[..., None] * sd[..., None, :])
    correlation = correlation + 1e-9 * torch.eye(d, dtype=x.dtype, device=x.device)
    factor, info = torch.linalg.cholesky_ex(correlation)
    good = (info == 0) & torch.isfinite(factor).all(-1).all(-1)
    return torch.where(good[:, None, None], sd[..., None] * factor, fallback.double()).to(draws.dtype)


@torch.no_grad()
def refine(
    target: Target,
    draws: Tensor,
    scale: Tensor,
    step_size: Tensor,
    *,
    steps: int,
    leapfrog_steps: int,
    rng: torch.Generator,
) -> Refined:
    """Moves every draw by `steps` HMC transitions.

    Args:
        target: The posterior, on its full data.
        draws: Starting points (C, n, d).
        scale: (C, d, d), or (C, d), maps whitened to unconstrained coordinates; masses are one in whitened ones.
        step_size: Leapfrog step size of each chain in whitened units, (C,).
        steps: Transitions.
        leapfrog_steps: Leapfrog steps in each transition.
        rng: Generator on the target's device.
    """
    kernel = Kernel(target, (draws, *target.evaluate(draws)), scale, leapfrog_steps, rng)
    before = kernel.log_q
    moved = torch.zeros(draws.shape[:2], dtype=torch.bool, device=draws.device)
    diverged = torch.zeros_like(moved)
    probabilities = torch.zeros_like(before)
    acceptance, divergent = (
        torch.zeros_like(step_size),
        torch.zeros((), dtype=torch.float64, device=draws.device),
    )
    for _ in range(steps):
        take, probability, error = kernel.transition(step_size)
        moved |= take
        acceptance = acceptance + probability.mean(1) / steps
        probabilities = probabilities + probability / steps
        beyond = error > MAX_ENERGY_ERROR
        diverged |= beyond
        divergent = divergent + beyond.double().mean() / steps
    stuck = float((~moved).double().mean()) if steps else 0.0
    statistics = {"acceptance_rate": probabilities, "kinetic": kernel.kinetic}
    return Refined(kernel.x, kernel.log_q, before, acceptance, float(divergent), stuck, diverged, statistics)


@torch.no_grad()
def tune_step_size(
    target: Target, draws: Tensor, scale: Tensor, *, leapfrog_steps: int, rng: torch.Generator
) -> Tensor:
    """Leapfrog step sizes (C,) at which a few of the draws (C, n, d) are accepted with probability 0.8."""
    c, n, d = draws.shape
    count = FULL_DATA_TUNING_DRAWS if target.minibatch else TUNING_DRAWS
    some = draws[:, :: max(1, n // count)][:, :count]
    kernel = Kernel(target, (some, *target.evaluate(some)), scale, leapfrog_steps, rng)
    log_step = torch.full((c,), d**-0.25, dtype=draws.dtype, device=draws.device).log()
    average = torch.zeros_like(log_step)
    for k in range(TUNING_STEPS):
        _, probability, _ = kernel.transition(log_step.exp())
        log_step = log_step + 1.5 / (1 + 0.3 * k) * (probability.mean(1) - TARGET_ACCEPTANCE)
        if k >= TUNING_STEPS // 2:
            average = average + log_step / (TUNING_STEPS - TUNING_STEPS // 2)
    return average.exp()


class Kernel:
    """Positions (C, n, d) with their log densities and scores, and one HMC transition of all of them.

    Args:
        target: The posterior, on its full data.
        position: Points, their log densities (C, n) and scores (C, n, d).
        scale: (C, d, d), or (C, d), maps whitened to unconstrained coordinates.
        leapfrog_steps: Leapfrog steps in each transition.
        rng: Generator on the target's device.

    Attributes:
        kinetic: Kinetic energies (C, n) of the momenta that the points end with.
    """

    def __init__(
        self, target: Target, position: tuple[Tensor, Tensor, Tensor], scale: Tensor, leapfrog_steps: int,
        rng: torch.Generator,
    ):  # fmt: skip
        self.target, self.scale, self.leapfrog_steps, self.rng = target, scale, leapfrog_steps, rng
        self.x, self.log_q, self.score = position
        self.kinetic = torch.zeros_like(self.log_q)

    def transition(self, step_size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Moves all; returns who moved, the acceptance probabilities and the energy errors, (C, n) each."""
        x, rng = self.x, self.rng
        # Step sizes differ from draw to draw, so that trajectories of no direction end at the same phase every time.
        eps = (
            step_size[:, None]
            * (0.7 + 0.5 * torch.rand(x.shape[:2], generator=rng, dtype=x.dtype, device=x.device))
        )[..., None]
        p = torch.randn(x.shape, generator=rng, dtype=x.dtype, device=x.device)
        y, log_y, score, total = x, self.log_q, self.score, torch.zeros_like(p)
        # Velocities change by the covariance times the score, so that the root is applied once for each step; whitened momenta
        # follow from the sum of the scores.
        velocity = coloured(self.scale, p) + 0.5 * eps * spread(self.scale, score)
        for _ in range(self.leapfrog_steps):
            y = y + eps * velocity
            log_y, score = self.target.evaluate(y)
            velocity, total = velocity + eps * spread(self.scale, score), total + score
        momentum = p + eps * projected(self.scale, total + 0.5 * (self.score - score))
        at_first, at_last = 0.5 * p.square().sum(-1), 0.5 * momentum.square().sum(-1)
        error = (self.log_q - at_first) - (log_y - at_last)
        error = torch.where(torch.isfinite(log_y) & ~torch.isnan(error), error, torch.inf)
        # A draw outside the support (log density -inf) moves as soon as it finds a way in.
        error = torch.where(torch.isinf(self.log_q) & torch.isfinite(log_y), -torch.inf, error)
        probability = (-error).clamp(max=0.0).exp()
        take = torch.rand(probability.shape, generator=rng, dtype=x.dtype, device=x.device) < probability
        self.x = torch.where(take[..., None], y, x)
        self.score = torch.where(take[..., None], score, self.score)
        self.log_q = torch.where(take, log_y, self.log_q)
        self.kinetic = torch.where(take, at_last, at_first)
        return take, probability, error
