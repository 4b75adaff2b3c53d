"""Natural-gradient steps of the Gaussians of many posteriors at once: as many calls of NumPy as for one."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from pyro_dft.many import pool
from pyro_dft.recipe.constants import SCALES_FIRST, fitting_pairs, pairs
from pyro_dft.recipe.gaussian_fit import GaussianFitter
from pyro_dft.recipe.gaussian_phase import GaussianPhase
from pyro_dft.recipe.natural_gradient import State, antithetic
from pyro_dft.recipe.trainer import Trainer

KEY = "gaussian step"


class SharedFitter(GaussianFitter):
    """A fitter whose steps are taken together with those of others of the pool."""

    def advance(self) -> list[float]:
        """See `GaussianFitter.advance`."""
        if self._minibatch or not pool.inside():
            return super().advance()
        averaging = None if self._averaging_from is None else self.taken - self._averaging_from
        state, dim = self._state, self.target.dim
        known = averaging is not None and dim <= SCALES_FIRST
        count = pairs(dim) if known else fitting_pairs(dim, state.full)
        noise = antithetic(self._noise, len(state.mean), count, dim)
        log_q, score = self._evaluate(state.points(noise))
        key = (KEY, state.full, noise.shape[1:], averaging)
        self._state, still = pool.ask(key, (state, noise, log_q, score))
        self.taken += 1
        if averaging is None:
            self._look(still)
        return [self._state.highest]


class _Phase(GaussianPhase):
    """A Gaussian phase with such fitters."""

    fitter = SharedFitter


def shared(trainer: Trainer) -> Trainer:
    """A trainer whose Gaussians are fitted by `SharedFitter`."""
    if trainer.settings.preconditioned:
        trainer._gaussian = _Phase(
            trainer.engine, trainer.problems, trainer.settings, trainer.rng, trainer._ledger
        )
    return trainer


def answer(key: Any, payloads: list[Any]) -> list[tuple[State, np.ndarray]]:
    """Takes a step of all: see `pyro_dft.recipe.natural_gradient.State.advance`."""
    states, *columns = zip(*payloads, strict=True)
    counts = np.cumsum([0, *(len(state.mean) for state in states)])
    whole = State(
        *(np.concatenate([getattr(state, field.name) for state in states]) for field in fields(State))
    )
    noise, log_q, score = (np.concatenate(column) for column in columns)
    still = whole.advance(noise, log_q, score, key[3], minibatch=False)
    spans = [slice(a, b) for a, b in zip(counts[:-1], counts[1:], strict=True)]
    return [(whole[span], still[span]) for span in spans]
