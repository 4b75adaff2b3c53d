"""Samplers for separate modes: what `pyro_dft.recipe.mode_search` needs, made of an engine's primitives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pyro_dft.recipe.constants import FULL_RANK_LIMIT
from pyro_dft.recipe.engine import Engine
from pyro_dft.recipe.far_starts import FAR, NEAR, SPARSE
from pyro_dft.recipe.gaussians import Gaussians
from pyro_dft.recipe.mode_search import Fitted, Shares, search
from pyro_dft.recipe.modes import Modes

# Transitions of the test whether draws pass from one mode to another.
TEST_STEPS = 5


def find(
    engine: Engine,
    target: Any,
    gaussians: Gaussians,
    restart: Callable[[np.ndarray, Gaussians], Gaussians],
    *,
    chains: int,
    leapfrog_steps: int,
    rng: Any,
) -> tuple[Gaussians, np.ndarray, Modes | None, list[Shares]]:
    """See `pyro_dft.recipe.mode_search.search`.

    Args:
        engine: Of the target.
        target: The posterior.
        gaussians: Of all restarts so far, (R).
        restart: Fits Gaussians from starting points (R, d), given those that are known.
        chains: C.
        leapfrog_steps: Of the refinement.
        rng: The engine's random number generator, for draws and starting points.

    Returns:
        The Gaussians of all restarts, indices (C K,) of those that the samplers start from, the weights of K modes (None with a
        single one), and the optima of each mode where their shares of it are known.
    """
    host = engine.host_rng(rng)

    def log_density(x: np.ndarray) -> np.ndarray:
        return engine.numpy(target.evaluate(engine.native(target, x))[0])

    def move(draws: np.ndarray, scales: np.ndarray) -> np.ndarray:
        x, scale = engine.native(target, draws), engine.native(target, scales)
        step_size = engine.tune_step_size(target, x, scale, leapfrog_steps=leapfrog_steps, rng=rng)
        moved = engine.refine(
            target, x, scale, step_size, steps=TEST_STEPS, leapfrog_steps=leapfrog_steps, rng=rng
        )
        return engine.numpy(moved.draws)

    def fitted() -> Fitted:
        mean, scale, elbo = gaussians.mean, gaussians.scale, gaussians.elbo
        return np.asarray(mean, float), np.asarray(scale, float), np.asarray(elbo, float)

    def further(starts: np.ndarray) -> None:
        nonlocal gaussians
        gaussians = gaussians.joined(restart(starts, gaussians))

    index, found, shares = search(
        fitted,
        further,
        log_density,
        move,
        chains=chains,
        data_size=target.data_size,
        rng=host,
        reach=NEAR if target.adaptive else SPARSE if target.dim > FULL_RANK_LIMIT else FAR,
    )
    return gaussians, index, found, shares
