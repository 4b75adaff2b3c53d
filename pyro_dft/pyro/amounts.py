"""How far each site should be non-centred: fitted together with a Gaussian of independent coordinates.

Variationally inferred parametrisation (Gorinova, Moore and Hoffman 2020): the evidence bound of such a Gaussian depends on the
coordinates that it is independent in, and rises where a site is moved from the model's own coordinates towards the non-centred
ones, or back. The bound is climbed in the Gaussian and in the amounts at once. It need not converge: the Gaussian phase fits
the coordinates that come out beside others, and takes them only where they are better.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyro_dft.engine_torch.branches import Answers, Disagreement
from pyro_dft.models.amounts import DRAWS, RATE, SCALE, STEPS, rounded

from .noncentering import NonCentered

if TYPE_CHECKING:
    from .model import PyroProblem


def fitted(problem: PyroProblem, names: Sequence[str]) -> dict[str, float]:
    """An amount from 0 to 1 for each site; it costs ``STEPS * DRAWS`` gradients.

    Args:
        problem: The posterior in the model's own coordinates.
        names: Sites that can be non-centred.
    """
    rng = np.random.default_rng(0)
    start = problem._centre.detach()
    mean, log_sd = start.clone(), torch.full_like(start, math.log(SCALE))
    logits = torch.zeros(len(names), dtype=start.dtype, device=start.device)
    state = [part.requires_grad_() for part in (mean, log_sd, logits)]
    adam = torch.optim.Adam(state, lr=RATE, betas=(0.9, 0.99))
    with problem.context():
        for t in range(STEPS):
            eps = torch.as_tensor(rng.normal(size=(DRAWS // 2, problem.dim)), dtype=start.dtype).to(
                start.device
            )
            with torch.enable_grad():
                loss = _minus_bound(problem, names, state, torch.cat([eps, -eps]))
            gradient = torch.autograd.grad(loss, state)
            for part, own in zip(state, gradient, strict=True):
                part.grad = own.where(own.isfinite(), torch.zeros_like(own))
            adam.param_groups[0]["lr"] = RATE * (1 - t / STEPS)
            adam.step()
    return rounded(names, logits.detach().sigmoid().double().cpu().numpy())


def _minus_bound(problem: PyroProblem, names: Sequence[str], state: list[Tensor], eps: Tensor) -> Tensor:
    mean, log_sd, logits = state
    amounts = logits.sigmoid()
    moved = copy.copy(problem)
    moved._maps = problem._maps | {name: NonCentered(amounts[i]) for i, name in enumerate(names)}
    return _energies(moved, mean + log_sd.exp() * eps).mean() - log_sd.sum()


def _energies(problem: PyroProblem, points: Tensor) -> Tensor:
    """Potentials (n,) at points (n, d)."""

    def answered(point: Tensor) -> Tensor:
        with Answers(point):
            return problem.potential(point)

    # The first fails where a model asks for values of its point, the second where points answer differently.
    for potential in (problem.potential, answered):
        try:
            return torch.func.vmap(potential, randomness="same")(points)
        except (Exception, Disagreement):
            continue
    return torch.stack([problem.potential(point) for point in points])
