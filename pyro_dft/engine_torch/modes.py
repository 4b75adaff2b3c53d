"""Samplers for separate modes: what `pyro_dft.mode_search` needs of this engine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pyro_dft.engine_torch.precondition import Gaussians
from pyro_dft.engine_torch.refine import refine, tune_step_size
from pyro_dft.engine_torch.target import Target
from pyro_dft.mode_search import Fitted, search
from pyro_dft.modes import Modes

# Transitions of the test whether draws pass from one mode to another.
TEST_STEPS = 5


def find(
    target: Target,
    gaussians: Gaussians,
    restart: Callable[[Tensor], Gaussians],
    *,
    chains: int,
    leapfrog_steps: int,
    rng: torch.Generator,
) -> tuple[Gaussians, np.ndarray, Modes | None]:
    """See `pyro_dft.mode_search.search`.

    Args:
        target: The posterior.
        gaussians: Of all restarts so far, (R).
        restart: Fits Gaussians from starting points (R, d).
        chains: C.
        leapfrog_steps: Of the refinement.
        rng: Generator on the target's device.

    Returns:
        The Gaussians of all restarts, indices (K,) of the modes among them, and their weights; None with a single mode.
    """
    host = np.random.default_rng(int(torch.randint(2**31 - 1, (), generator=rng, device=rng.device)))

    def numpy(x: Tensor) -> np.ndarray:
        return x.detach().double().cpu().numpy()

    def tensor(x: np.ndarray) -> Tensor:
        return torch.as_tensor(x, dtype=target.dtype, device=target.device)

    def log_density(x: np.ndarray) -> np.ndarray:
        return numpy(target.evaluate(tensor(x))[0])

    def move(draws: np.ndarray, scales: np.ndarray) -> np.ndarray:
        x, scale = tensor(draws), tensor(scales)
        step_size = tune_step_size(target, x, scale, leapfrog_steps=leapfrog_steps, rng=rng)
        moved = refine(target, x, scale, step_size, steps=TEST_STEPS, leapfrog_steps=leapfrog_steps, rng=rng)
        return numpy(moved.draws)

    def fitted() -> Fitted:
        return numpy(gaussians.mean), numpy(gaussians.scale), numpy(gaussians.elbo)

    def further(starts: np.ndarray) -> None:
        nonlocal gaussians
        gaussians = gaussians.joined(restart(tensor(starts)))

    index, found = search(
        fitted, further, log_density, move, chains=chains, data_size=target.data_size, rng=host
    )
    return gaussians, index, found
