"""The Gaussian phase: a race between the sets of coordinates, from several restarts; then the search for separate modes."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_dft.recipe import find_modes
from pyro_dft.recipe.engine import Engine
from pyro_dft.recipe.fit import Problem
from pyro_dft.recipe.gaussian_fit import HOPELESS, MORE_STEPS, TIMES, GaussianFitter, polish
from pyro_dft.recipe.gaussians import Gaussians
from pyro_dft.recipe.ledger import Ledger
from pyro_dft.recipe.lost_bounds import lost
from pyro_dft.recipe.mode_search import Shares
from pyro_dft.recipe.modes import Modes
from pyro_dft.settings import Settings

# Standard deviations that restarts begin with, in turn.
START_SCALES = (0.1, 1.0)
# With an adaptive target, whose solver takes a hundred times as many steps where it does not belong.
ADAPTIVE_START_SCALES = (0.1,)
# The model's own coordinates, the first ones, are chosen where their bound is above those of non-centred ones by so many nats. A
# Gaussian that misses the neck of a funnel loses no more by it, and chains that start from it miss the neck as well.
OWN_LEAD = 2.0
# Places among the sets of coordinates: the model's own, wholly non-centred, and partly where the amounts suit each site.
OWN, WHOLLY, PARTLY = 0, 1, 2
# Other coordinates are tried where chains do badly, if their bound is no more than so many nats below.
NEAR_BOUND = 10.0


@dataclass(frozen=True)
class Chosen:
    """The Gaussians that samplers start from.

    Attributes:
        problem: Index of the coordinates with the highest evidence bound.
        gaussians: All restarts there.
        index: Those that the samplers start from, (C,), or (C K,) with K modes.
        elbos: The highest bound in each set of coordinates.
        modes: Weights of separate modes, or None.
        shares: The optima of each mode and what share of it each holds; none where these are not known.
    """

    problem: int
    gaussians: Gaussians
    index: np.ndarray
    elbos: list[float]
    modes: Modes | None = None
    shares: Sequence[Shares] = ()

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
        fitter: Class of the fits.
    """

    fitter = GaussianFitter

    def __init__(
        self, engine: Engine, problems: Sequence[Problem], settings: Settings, rng: Any, ledger: Ledger
    ):
        self.engine, self.problems, self.settings, self.rng = engine, problems, settings, rng
        self.ledger = ledger
        self.chains = problems[0].starts.shape[0]
        self.steps, self.total = 0, settings.experimental.precondition_steps * len(problems)
        self._fitters: list[GaussianFitter | None] = [None] * len(problems)
        self._fitted: list[Gaussians | None] = [None] * len(problems)

    @property
    def complete(self) -> bool:
        """Whether all sets of coordinates are fitted, or given up."""
        return all(found is not None for found in self._fitted)

    def advance(self) -> list[float]:
        """A step in every set of coordinates that is not fitted yet; minus the highest evidence bound after each."""
        losses = []
        for i, problem in enumerate(self.problems):
            if self._fitted[i] is not None:
                continue
            fitter = self._fitters[i]
            if fitter is None:
                fitter = self._new_fitter(problem.target, self.engine.numpy(problem.starts))
                self._fitters[i] = fitter
            losses += [-best for best in fitter.advance()]
            if fitter.done:
                self._fitted[i] = self._polished(fitter)
            elif (behind := self._behind(fitter)) > HOPELESS:
                self._fitted[i] = fitter.current()
            elif behind > -math.inf:
                fitter.settle()
        self.steps += len(losses)
        return losses

    def _behind(self, fitter: GaussianFitter) -> float:
        """By how much the bound is below that of other coordinates which have settled long ago, nats; -inf where none have."""
        found = -math.inf
        for other in self._fitters:
            if other is None or not other.done or not other.settled or fitter.target.minibatch:
                continue
            if fitter.taken > TIMES * other.taken + MORE_STEPS:
                found = max(found, other.settled_bound - fitter.current().elbo.max())
        return float(found)

    def stop(self) -> None:
        """Ends early, with what there is."""
        if not any(self._fitters):
            self.advance()
        for i, fitter in enumerate(self._fitters):
            if fitter is not None and self._fitted[i] is None:
                self._fitted[i] = fitter.result()

    def so_far(self) -> Chosen:
        """What would be chosen as things stand, without any further evaluation."""
        now = [
            found if found is not None or fitter is None else fitter.current()
            for found, fitter in zip(self._fitted, self._fitters, strict=True)
        ]
        return self._choose(now)

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
            gaussians, index, found, shares = find_modes.find(
                self.engine,
                target,
                chosen.gaussians,
                lambda starts, known: self._restart(target, starts, known),
                chains=self.chains,
                leapfrog_steps=self.settings.fixed_leapfrog_steps,
                rng=self.rng,
            )
        return Chosen(chosen.problem, gaussians, index, chosen.elbos, found, shares)

    def rival(self, problem: int) -> Chosen | None:
        """Other coordinates for chains that do badly: the wholly non-centred ones, which have no neck, or from there partly so.

        Never the model's own: where chains do not enter a neck, nothing there shows it, and they look as if they did better.

        Args:
            problem: The coordinates that these chains are in.
        """
        other = PARTLY if problem == WHOLLY else WHOLLY
        found = self._fitted[other] if other < len(self._fitted) else None
        if found is None:
            return None
        elbos = [-math.inf if g is None else float(g.elbo.max()) for g in self._fitted]
        if not elbos[other] >= elbos[problem] - NEAR_BOUND:
            return None
        return Chosen(other, found, found.best_of_chains(self.chains), elbos)

    def branch(self, ledger: Ledger) -> GaussianPhase:
        """A copy that can be ended while this one goes on."""
        other = copy.copy(self)
        other._fitted, other._fitters, other.ledger = list(self._fitted), list(self._fitters), ledger
        return other

    def _choose(self, fitted: Sequence[Gaussians | None]) -> Chosen:
        highest = np.array([-math.inf if g is None else float(g.elbo.max()) for g in fitted])
        dtype = self.problems[0].target.dtype
        gone = lost(highest, np.zeros(len(highest)), -math.inf, dtype)
        elbos = [float(bound) for bound in np.where(gone, -math.inf, highest)]
        known = [i for i, g in enumerate(fitted) if g is not None]
        best = max(known, key=lambda i: elbos[i] - (OWN_LEAD if i == OWN and len(known) > 1 else 0.0))
        gaussians = fitted[best]
        assert gaussians is not None
        return Chosen(best, gaussians, gaussians.best_of_chains(self.chains), elbos)

    def _polished(self, fitter: GaussianFitter) -> Gaussians:
        """What a fitter found; after a fit to minibatches the best restart of each chain goes on with the full data."""
        found, target = fitter.result(), fitter.target
        if not target.minibatch:
            return found
        chosen = found.best_of_chains(self.chains)
        with self.ledger.phase("polish"):
            better = polish(self.engine, target, found[chosen], self.rng, self.settings.full_data_budget)
        if not fitter.settled:  # the others are no optima, and say nothing about modes
            return better
        return found.replaced(chosen, better)

    def _restart(self, target: Any, starts: np.ndarray, known: Gaussians) -> Gaussians:
        fitter = self._new_fitter(target, starts[None], known)
        while not fitter.done:
            fitter.advance()
        return fitter.result()

    def _new_fitter(self, target: Any, starts: np.ndarray, known: Gaussians | None = None) -> GaussianFitter:
        """Restarts from (C, R, d) points, narrow and wide in turn."""
        scales = np.resize(ADAPTIVE_START_SCALES if target.adaptive else START_SCALES, starts.shape[1])
        return self.fitter(
            self.engine,
            target,
            starts,
            scales,
            steps=self.settings.experimental.precondition_steps,
            rng=self.rng,
            known=known,
        )
