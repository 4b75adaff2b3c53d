"""Chains of Hamiltonian Monte Carlo that go on from block to block, many particles at once, with every state recorded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_dft.engine_torch.refine import Kernel
from pyro_dft.engine_torch.target import Target
from pyro_dft.recipe.chains import Block, Dynamics
from pyro_dft.recipe.constants import FINE, MAX_ENERGY_ERROR


@torch.no_grad()
def run_block(
    target: Target,
    start: Any,
    dynamics: Dynamics,
    *,
    steps: int,
    rng: torch.Generator,
) -> Block:
    """Some HMC transitions of every particle: see `pyro_dft.recipe.engine.Engine.run_block`."""
    position = start if isinstance(start, tuple) else (start, *target.evaluate(start))
    kernel = Kernel(target, position, dynamics.scale, dynamics.leapfrog_steps, rng)
    log_step, goal = dynamics.step_size.log(), dynamics.acceptance
    states, densities, scores, probabilities, moved, diverged, kinetic = [], [], [], [], [], [], []
    for k in range(steps):
        take, probability, error = kernel.transition(log_step.exp())
        # Robbins and Monro: large changes at first.
        rate = dynamics.tune / (1.3 + 0.3 * k)
        log_step = log_step + rate * (felt_acceptance(probability, error, goal) - goal)
        states.append(kernel.x)
        densities.append(kernel.log_q)
        scores.append(kernel.score)
        probabilities.append(probability)
        moved.append(take)
        diverged.append(error > MAX_ENERGY_ERROR)
        kinetic.append(kernel.kinetic)

    def recorded(values: list[Tensor]) -> Tensor:
        return torch.stack(values, 2)

    return Block(
        (kernel.x, kernel.log_q, kernel.score), recorded(states), recorded(densities), recorded(scores), recorded(probabilities),
        recorded(moved), recorded(diverged), recorded(kinetic), log_step.exp(),
    )  # fmt: skip


def felt_acceptance(probability: Tensor, error: Tensor, goal: float) -> Tensor:
    """Mean acceptance (G,) as the adaptation takes it: see `pyro_dft.recipe.constants.FINE`."""
    finite = torch.isfinite(error)
    total = torch.where(finite, probability, 0.0).sum(1)
    fine = total / finite.sum(1).clamp(min=1) > FINE
    return torch.where(finite, probability, torch.where(fine, goal, 0.0)[:, None]).mean(1)
