"""Samplers for separate modes: what `pyro_dft.mode_search` needs of this engine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyro_dft.engine_jax.precondition import Gaussians
from pyro_dft.engine_jax.refine import refine, tune_step_size
from pyro_dft.engine_jax.target import Target
from pyro_dft.mode_search import Fitted, search
from pyro_dft.modes import Modes

# Transitions of the test whether draws pass from one mode to another.
TEST_STEPS = 5


def find(
    target: Target,
    gaussians: Gaussians,
    restart: Callable[[np.ndarray], Gaussians],
    *,
    chains: int,
    leapfrog_steps: int,
    rng: np.random.Generator,
) -> tuple[Gaussians, np.ndarray, Modes | None]:
    """See `pyro_dft.mode_search.search`.

    Args:
        target: The posterior.
        gaussians: Of all restarts so far, (R).
        restart: Fits Gaussians from starting points (R, d).
        chains: C.
        leapfrog_steps: Of the refinement.
        rng: For draws and starting points.

    Returns:
        The Gaussians of all restarts, indices (K,) of the modes among them, and their weights; None with a single mode.
    """

    def log_density(x: np.ndarray) -> np.ndarray:
        return target.evaluate(x.astype(target.dtype))[0].astype(float)

    def move(draws: np.ndarray, scales: np.ndarray) -> np.ndarray:
        x, scale = draws.astype(target.dtype), scales.astype(target.dtype)
        step_size = tune_step_size(target, x, scale, leapfrog_steps=leapfrog_steps, rng=rng)
        moved = refine(target, x, scale, step_size, steps=TEST_STEPS, leapfrog_steps=leapfrog_steps, rng=rng)
        return moved.draws.astype(float)

    def fitted() -> Fitted:
        mean, scale, elbo = gaussians.mean, gaussians.scale, gaussians.elbo
        return np.asarray(mean, float), np.asarray(scale, float), np.asarray(elbo, float)

    def further(starts: np.ndarray) -> None:
        nonlocal gaussians
        gaussians = gaussians.joined(restart(starts))

    index, found = search(
        fitted, further, log_density, move, chains=chains, data_size=target.data_size, rng=rng
    )
    return gaussians, index, found
