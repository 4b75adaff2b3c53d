"""Which sampler is served: the Gaussian, the one before the DFT phase, or the one after it.

Each candidate's draws are refined shortly, on equal terms; the nearer a sampler is to the posterior, the less
its draws move.
"""

from __future__ import annotations

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
# A sampler that is wrong in some coordinate is a worse start of new draws than one that is so only jointly: transitions within
# modes that hardly mix repair the second alone. Of what is wrong jointly (nats for each coordinate) so much counts as an sd.
JOINT_WEIGHT = 3.0


class Selection:
    """Compares the samplers of one fit.

    Args:
        engine: Of the target.
        problem: The posterior.
        settings: See `pyro_dft.settings.Settings`.
        seed: Of the comparisons.
        fit: The fit, which gets the sampler that is chosen.
    """

    def __init__(self, engine: Engine, problem: Problem, settings: Settings, seed: int, fit: Fit):
        self.engine, self.problem, self.settings, self.seed, self.fit = engine, problem, settings, seed, fit
        self._kernel: tuple[Any, Any] = (None, None)
        self._measured: Measurement | None = None

    def run(
        self,
        phase: NetworkPhase,
        chains: int,
        gaussian_measured: Measurement | None,
    ) -> None:
        """Puts the best sampler of a training into the fit.

        Args:
            phase: The training.
            chains: C.
            gaussian_measured: The drift test of the Gaussian, where it was made.
        """
        fit, networks, objective = self.fit, phase.networks, self.settings.phase
        # Not `fit.sampler`: an earlier call may have been interrupted after it was set.
        gaussian = self.engine.gaussian_sampler(self.problem.target, networks.mean, networks.scale)
        fit.sampler, fit.score_network = networks.sampler(), networks.trained_score
        fit.fisher_gap = networks.smoothed_gap()
        fit.objective = [objective] * fit.sampler.chains
        if objective != "auto":
            return
        name = "kl" if phase.before_dft is None else "dft"
        fit.objective = [name] * fit.sampler.chains
        self._measured = gaussian_measured
        if gaussian_measured is None or gaussian_measured.ensemble is None:
            self._kernel = self._kernel_of(gaussian)
        after = self.movement(name, fit.sampler)
        if phase.before_dft is not None:
            after = self._before_or_after_dft(phase, chains, after)
        # Not the movement of the Gaussian's own drift test, which makes as many transitions as that needs.
        if "gaussian" in fit.movement and self.movement("gaussian", gaussian).mean() <= after.mean():
            fit.sampler, fit.objective = gaussian, ["gaussian"] * gaussian.chains
            # Where chains were given up in favour of a network, draws of the Gaussian are refined in place of their states.
            known = gaussian_measured
            if known is not None and (known.ensemble is None or known.complete):
                fit.measurement = known

    def _before_or_after_dft(self, phase: NetworkPhase, chains: int, after: np.ndarray) -> np.ndarray:
        """Keeps the weights after the DFT phase for the chains that it helped; returns how far draws move then, (C,)."""
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

    def _kernel_of(self, sampler: Any) -> tuple[Any, Any]:
        """Whitening (C, d, d) and leapfrog step sizes (C,) of transitions for the draws of a sampler."""
        engine, target = self.engine, self.problem.target
        rng = engine.seeded(target, self.seed)
        draws = sampler.draw(self._count(sampler), rng)
        scale = engine.whitening(draws, sampler.scale)
        leapfrogs = self.settings.fixed_leapfrog_steps
        return scale, engine.tune_step_size(target, draws, scale, leapfrog_steps=leapfrogs, rng=rng)

    def _count(self, sampler: Any) -> int:
        """Draws of each chain."""
        draws = affordable_draws(SELECTION_DRAWS, SELECTION_STEPS, self.settings, self.problem.target)
        return max(draws // sampler.chains, 10)

    def movement(self, name: str, sampler: Any) -> np.ndarray:
        """How far a short refinement moves draws of each chain, or, where particles have run, how far draws are from these, (C,).

        From particles in each coordinate and jointly: see `pyro_dft.judging.joint.Joint`.

        Every candidate has as many draws, and as many transitions of one kernel (the Gaussian's) with the same random numbers.
        """
        engine, problem, target = self.engine, self.problem, self.problem.target
        if self._measured is not None and self._measured.ensemble is not None:
            draws = sampler.draw(self._measured.raw.shape[1], engine.seeded(target, self.seed + 1))
            ensemble = self._measured.ensemble
            apart = np.array([d.distance for d in ensemble.against(draws)[1:]])
            self.fit.movement[name] = np.hypot(apart, ensemble.jointly(draws).size / JOINT_WEIGHT)
            return self.fit.movement[name]
        # Two generators: the transitions' numbers are then the same however many the draws take.
        drawing, moving = (engine.seeded(target, self.seed + i) for i in (1, 2))
        before = sampler.draw(self._count(sampler), drawing)
        after = engine.refine(
            target, before, *self._kernel, steps=SELECTION_STEPS, leapfrog_steps=self.settings.fixed_leapfrog_steps, rng=moving
        ).draws  # fmt: skip
        drifts = compare(engine, before, after, problem.original, self.fit.modes)[1:]
        self.fit.movement[name] = np.array([d.rms for d in drifts])
        return self.fit.movement[name]
