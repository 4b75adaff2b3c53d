"""A sampler that is to be measured, and what there is to do it with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_dft.recipe.budget import Budget
from pyro_dft.recipe.engine import Engine
from pyro_dft.recipe.gaussians import Gaussians
from pyro_dft.recipe.ledger import told_nobody
from pyro_dft.recipe.modes import Modes
from pyro_dft.settings import Settings


@dataclass(frozen=True)
class Origin:
    """The optima of one mode, K, at which its particles start.

    Attributes:
        optima: Their Gaussians.
        shares: What share of the mode each holds, (K,).
    """

    optima: Gaussians
    shares: np.ndarray


@dataclass(frozen=True)
class Subject:
    """What `pyro_dft.recipe.measure` and `pyro_dft.recipe.measure_chains` measure.

    Attributes:
        engine: Of the target.
        target: The posterior (its full data are used).
        sampler: Makes the draws, or the points that particles start from.
        draws: Draws over all chains (and all modes of each) that are asked for.
        settings: See `pyro_dft.settings.Settings`.
        rng: The engine's random number generator.
        original: Maps native (n, d) points of the target's coordinates to the model's own unconstrained ones.
        modes: Which of several samplers serve each chain, or None.
        budget: What the fit may cost; None for no limit, which is for draws that are refined one by one only.
        note: Takes words about how far the chains have come.
        across: Whether particles have to pass between all optima that they start at: see `pyro_dft.recipe.across`.
        origins: Where the particles of each mode start; none where that is at draws of its sampler.
    """

    engine: Engine
    target: Any
    sampler: Any
    draws: int
    settings: Settings
    rng: Any
    original: Callable[[Any], Any]
    modes: Modes | None = None
    budget: Budget | None = None
    origins: Sequence[Origin] = ()
    note: Callable[[str], None] = told_nobody
    across: bool = False

    @property
    def leapfrogs(self) -> int:
        """Leapfrog steps of a transition, where draws are refined one by one."""
        return self.settings.fixed_leapfrog_steps

    def refine(self, x: Any, scale: Any, step_size: Any, steps: int, finer: int = 1) -> Any:
        """Draws (C, n, d) after `steps` transitions, with leapfrog steps `finer` times smaller, and as many times more."""
        return self.engine.refine(
            self.target, x, scale, step_size if finer == 1 else step_size / finer, steps=steps,
            leapfrog_steps=finer * self.leapfrogs, rng=self.rng,
        )  # fmt: skip

    def tune(self, x: Any, scale: Any) -> Any:
        """Leapfrog step sizes (C,) for transitions of draws (C, n, d)."""
        return self.engine.tune_step_size(self.target, x, scale, leapfrog_steps=self.leapfrogs, rng=self.rng)
