"""Is an optimum of the Gaussian fits that no draws are near to a mode that they miss? Chains that start there answer.

Evidence bounds say what an optimum holds only where the posterior is near to Gaussian around it. On a long ridge restarts end
in different places, far below the evidence, and draws of the posterior are near to none of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_dft import roots
from pyro_dft.recipe.chains import Dynamics
from pyro_dft.recipe.constants import BLOCK_STEPS
from pyro_dft.recipe.engine import Engine
from pyro_dft.recipe.fit import Fit

# Points that start at an optimum, for each sampler, and how many blocks of transitions they make.
POINTS, BLOCKS = 64, 2


def ends(engine: Engine, target: Any, fit: Fit, restart: int) -> np.ndarray | None:
    """Where draws of a restart's Gaussian end after some of the transitions that refine draws.

    Transitions are in detailed balance: under the posterior as much mass passes from one region to another as back. So a region
    that most points leave within some transitions, and that thousands of transitions have not reached, holds next to nothing.

    Args:
        engine: Of the target.
        target: The posterior, in the coordinates of the samplers.
        fit: The measured fit.
        restart: Index into its optima.

    Returns:
        (n, d), in the coordinates of the samplers; None where transitions see minibatches only, and where the fit has met a limit
        of what it may cost.
    """
    measured = fit.measurement
    assert measured is not None
    if target.minibatch or fit.cut is not None:
        return None
    mean, scale = np.asarray(fit.optima.mean[restart], float), np.asarray(fit.optima.scale[restart], float)
    count = POINTS if measured.ensemble is None else measured.ensemble.particles.count
    g, d = fit.sampler.chains, len(mean)
    z = np.random.default_rng(restart).normal(size=(1, g * count, d))
    position: Any = engine.native(target, (mean + roots.coloured(scale[None], z)[0]).reshape(g, count, d))
    rng = engine.seeded(target, restart)
    dynamics = Dynamics(measured.scale, measured.step_size, measured.leapfrog_steps)
    for _ in range(BLOCKS):
        block = engine.run_block(target, position, dynamics, steps=BLOCK_STEPS, rng=rng)
        position = block.position
    return engine.numpy(block.x[:, :, -1]).reshape(-1, d)
