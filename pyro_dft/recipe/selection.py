"""Which sampler is served: the Gaussian, the one before the DFT phase, or the one after it.

Each candidate's draws are refined shortly with the same random numbers; the nearer a sampler is to the posterior, the less
its draws move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pyro_dft.recipe.engine import Engine
from pyro_dft.recipe.fit import Fit, Problem
from pyro_dft.recipe.measure import Measurement, affordable_draws, compare
from pyro_dft.recipe.network_phase import NetworkPhase
from pyro_dft.settings import Settings

# Draws (over all chains) on which the refinement compares two samplers, and its transitions.
SELECTION_DRAWS = 2000
SELECTION_STEPS = 10


class Selection:
    """Compares the samplers of one fit.

    Args:
        engine: Of the target.
        problem: The posterior.
        settings: See `pyro_dft.settings.Settings`.
        seed: Of the comparisons.
        fit: What is compared, and where the outcome goes.
    """

    def __init__(self, engine: Engine, problem: Problem, settings: Settings, seed: int, fit: Fit):
        self.engine, self.problem, self.settings, self.seed, self.fit = engine, problem, settings, seed, fit

    def run(
        self,
        phase: NetworkPhase,
        chains: int,
        measure: Callable[[], Measurement],
        gaussian_measured: Measurement | None,
    ) -> None:
        """Puts the best sampler of a training into the fit.

        Args:
            phase: The training.
            chains: C.
            measure: The drift test of the fit's sampler.
            gaussian_measured: That of the Gaussian, where it was made.
        """
        fit, networks, objective = self.fit, phase.networks, self.settings.objective
        # Not `fit.sampler`: an interrupt may have come in the middle of this before.
        gaussian = self.engine.gaussian_sampler(self.problem.target, networks.mean, networks.scale)
        fit.sampler, fit.score_network = networks.sampler(), networks.trained_score
        fit.fisher_gap = networks.smoothed_gap()
        fit.objective = [objective] * fit.sampler.chains
        if objective != "auto":
            return
        name = "kl" if phase.before_dft is None else "dft"
        fit.objective = [name] * fit.sampler.chains
        if phase.before_dft is None and self.problem.target.minibatch:
            # Full data are costly: the drift test, which comes next anyway, says as well how far draws move.
            after = fit.movement[name] = np.array(measure().chain_movement)
        else:
            after = self.movement(name, fit.sampler)
        if phase.before_dft is not None:
            after = self._before_or_after_dft(phase, chains, after)
        before_training = fit.movement.get("gaussian")
        if before_training is not None and before_training.mean() <= after.mean():
            fit.sampler, fit.objective = gaussian, ["gaussian"] * gaussian.chains
            fit.measurement = gaussian_measured

    def _before_or_after_dft(self, phase: NetworkPhase, chains: int, after: np.ndarray) -> np.ndarray:
        """Keeps the DFT phase for the chains that it helped; how far their draws move then, (C,)."""
        fit, networks = self.fit, phase.networks
        final = networks.snapshot()
        networks.restore(phase.before_dft)
        before = self.movement("kl", networks.sampler())
        helped = after < before
        # The modes of a chain are judged together.
        each = np.repeat(helped, fit.sampler.chains // chains)
        networks.restore(final, mask=each, otherwise=phase.before_dft)
        fit.sampler = networks.sampler()
        fit.objective = ["dft" if h else "kl" for h in each]
        return np.where(helped, after, before)

    def movement(self, name: str, sampler: Any) -> np.ndarray:
        """How far a short refinement moves draws of each chain, (C,)."""
        engine, problem, s = self.engine, self.problem, self.settings
        target, leapfrogs = problem.target, s.leapfrog_steps
        rng = engine.seeded(target, self.seed)
        draws = affordable_draws(SELECTION_DRAWS, SELECTION_STEPS, s, target)
        before = sampler.draw(max(draws // sampler.chains, 10), rng)
        scale = engine.whitening(before, sampler.scale)
        step_size = engine.tune_step_size(target, before, scale, leapfrog_steps=leapfrogs, rng=rng)
        after = engine.refine(
            target, before, scale, step_size, steps=SELECTION_STEPS, leapfrog_steps=leapfrogs, rng=rng
        ).draws
        drifts = compare(engine, before, after, problem.original, self.fit.modes)[1:]
        self.fit.movement[name] = np.array([d.rms for d in drifts])
        return self.fit.movement[name]
