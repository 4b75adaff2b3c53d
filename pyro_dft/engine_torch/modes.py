"""Samplers for separate modes: what `pyro_dft.modes` needs of this engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_dft import modes
from pyro_dft.engine_torch.precondition import Gaussians
from pyro_dft.engine_torch.refine import refine, tune_step_size
from pyro_dft.engine_torch.target import Target

# Transitions of the test whether draws pass from one mode to another.
TEST_STEPS = 5
# Rounds of further restarts, at most: one that finds nothing is enough where there is one mode, and this many where there
# are several.
ROUNDS = 6
PATIENCE = 2


def find(
    target: Target,
    gaussians: Gaussians,
    restart: Callable[[Tensor], Gaussians],
    *,
    chains: int,
    leapfrog_steps: int,
    rng: torch.Generator,
) -> tuple[Gaussians, np.ndarray, modes.Modes | None]:
    """Separate modes among the restarts; further restarts look for more, from far away, for as long as they find some.

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

    def parts(index: Any = slice(None)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        mean, scale, elbo = gaussians.mean[index], gaussians.scale[index], gaussians.elbo[index]
        return numpy(mean), numpy(scale), numpy(elbo)

    def separate() -> np.ndarray:
        return modes.separate(*parts(), log_density, move, host)

    def search() -> tuple[Gaussians, np.ndarray, modes.Modes | None]:
        nonlocal gaussians
        count, found = len(gaussians.elbo), separate()
        misses = 0
        for _ in range(ROUNDS):
            known, (mean, scale, _) = len(found), parts(found)
            starts = modes.further_starts(mean, scale, count, log_density, host)
            gaussians = gaussians.joined(restart(tensor(starts)))
            found = separate()
            misses = 0 if len(found) > known else misses + 1
            if misses == (1 if len(found) == 1 else PATIENCE):
                break
        for _ in range(2):
            if len(found) < 2:
                break
            weighed = modes.weigh(*parts(found), log_density, chains, host)
            heavy = weighed.weights.mean(0) >= modes.LEAST_WEIGHT
            if heavy.all():
                return gaussians, found, weighed
            found = found[heavy]
        return gaussians, found[:1], None

    if not np.isfinite(parts()[2]).any():
        return gaussians, np.zeros(1, int), None
    try:
        return search()
    except np.linalg.LinAlgError:
        # A direction without any scale, as in an improper posterior: there are no modes to tell apart.
        return gaussians, np.zeros(1, int), None
