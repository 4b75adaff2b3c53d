"""The Gaussian phase: every set of coordinates in turn, from several restarts; then the search for separate modes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_dft.recipe import find_modes
from pyro_dft.recipe.engine import Engine, GaussianFitter
from pyro_dft.recipe.fit import Problem
from pyro_dft.recipe.gaussians import Gaussians
from pyro_dft.recipe.ledger import Ledger
from pyro_dft.recipe.modes import Modes
from pyro_dft.settings import Settings

# Standard deviations that restarts begin with, in turn.
START_SCALES = (0.1, 1.0)


@dataclass(frozen=True)
class Chosen:
    """The Gaussians that samplers start from.

    Attributes:
        problem: Index of the coordinates with the highest evidence bound.
        gaussians: All restarts there.
        index: Those that the samplers start from, (C,), or (C K,) with K modes.
        elbos: The highest bound in each set of coordinates.
        modes: Weights of separate modes, or None.
    """

    problem: int
    gaussians: Gaussians
    index: np.ndarray
    elbos: list[float]
    modes: Modes | None = None

    def sampler(self, engine: Engine, problems: Sequence[Problem]) -> Any:
        """The Gaussian samplers."""
        picked = self.gaussians[self.index]
        return engine.gaussian_sampler(problems[self.problem].target, picked.mean, picked.scale)


class GaussianPhase:
    """Fits the Gaussians of one training.

    Args:
        engine: Of the targets.
        problems: The same posterior in one or more sets of coordinates.
        settings: See `pyro_dft.settings.Settings`.
        rng: The engine's random number generator.
        ledger: Books the cost.

    Attributes:
        steps: Iterations made.
        total: Iterations planned at most.
    """

    def __init__(
        self, engine: Engine, problems: Sequence[Problem], settings: Settings, rng: Any, ledger: Ledger
    ):
        self.engine, self.problems, self.settings, self.rng = engine, problems, settings, rng
        self.ledger = ledger
        self.chains = problems[0].starts.shape[0]
        self.steps, self.total = 0, settings.precondition_steps * len(problems)
        self._fitted: list[Gaussians] = []
        self._fitter: GaussianFitter | None = None

    @property
    def complete(self) -> bool:
        """Whether all sets of coordinates are fitted."""
        return len(self._fitted) == len(self.problems)

    def advance(self) -> list[float]:
        """Some iterations; minus the highest evidence bound after each."""
        if self._fitter is None:
            problem = self.problems[len(self._fitted)]
            starts = problem.starts.reshape(-1, problem.starts.shape[-1])
            self._fitter = self._new_fitter(problem.target, starts)
        losses = [-best for best in self._fitter.advance()]
        self.steps += len(losses)
        if self._fitter.done:
            self._fitted.append(self._polished(self._fitter))
            self._fitter = None
        return losses

    def stop(self) -> None:
        """Ends early, with what there is."""
        if self._fitter is None and not self._fitted:
            self.advance()
        if self._fitter is not None:
            self._fitted.append(self._fitter.result())
            self._fitter = None

    def so_far(self) -> Chosen:
        """What would be chosen as things stand, without any further evaluation."""
        return self._choose(self._fitted or [self._fitter.current()])  # type: ignore[union-attr]

    def choose(self, search: bool) -> Chosen:
        """The best set of coordinates, and what its samplers start from.

        Args:
            search: Whether to look for separate modes.
        """
        chosen = self._choose(self._fitted)
        if not search:
            return chosen
        target = self.problems[chosen.problem].target
        with self.ledger.phase("modes"):
            gaussians, index, found = find_modes.find(
                self.engine,
                target,
                chosen.gaussians,
                lambda starts: self._restart(target, starts),
                chains=self.chains,
                leapfrog_steps=self.settings.leapfrog_steps,
                rng=self.rng,
            )
        return Chosen(chosen.problem, gaussians, index, chosen.elbos, found)

    def branch(self, ledger: Ledger) -> GaussianPhase:
        """A copy that can be ended while this one goes on."""
        other = copy.copy(self)
        other._fitted, other.ledger = list(self._fitted), ledger
        return other

    def _choose(self, fitted: list[Gaussians]) -> Chosen:
        elbos = [float(g.elbo.max()) for g in fitted]
        best = int(np.argmax(elbos))
        return Chosen(best, fitted[best], fitted[best].best_of_chains(self.chains), elbos)

    def _polished(self, fitter: GaussianFitter) -> Gaussians:
        """What a fitter found; after a fit to minibatches the best restart of each chain goes on with the full data."""
        found, target = fitter.result(), fitter.target
        if not target.minibatch:
            return found
        chosen = found.best_of_chains(self.chains)
        with self.ledger.phase("polish"):
            better = self.engine.polish(target, found[chosen], self.rng, self.settings.full_data_budget)
        if not fitter.settled:  # the others are no optima, and say nothing about modes
            return better
        return found.replaced(chosen, better)

    def _restart(self, target: Any, starts: np.ndarray) -> Gaussians:
        fitter = self._new_fitter(target, starts)
        while not fitter.done:
            fitter.advance()
        return fitter.result()

    def _new_fitter(self, target: Any, starts: Any) -> GaussianFitter:
        """Restarts from (R, d) points, narrow and wide in turn."""
        scales = np.tile(START_SCALES, (len(starts) + 1) // 2)[: len(starts)]
        return self.engine.fit_gaussians(
            target, starts, scales, steps=self.settings.precondition_steps, rng=self.rng
        )
