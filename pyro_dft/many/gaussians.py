"""Natural-gradient steps of the Gaussians of many posteriors at once: as many calls of NumPy as for one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_dft.many import pool
from pyro_dft.recipe.constants import SCALES_FIRST, fitting_pairs, pairs
from pyro_dft.recipe.engine import Engine
from pyro_dft.recipe.gaussian_fit import GaussianFitter
from pyro_dft.recipe.gaussian_phase import GaussianPhase
from pyro_dft.recipe.natural_gradient import State, antithetic
from pyro_dft.recipe.trainer import Trainer

Array = NDArray[np.floating[Any]]
# Takes a key and payloads, see `pyro_dft.many.group.Group.answer`.
Answer = Callable[[Any, list[Any]], list[Any]]

KEY = "gaussian step"


@dataclass(frozen=True)
class _Step:
    """What a step of one fit needs.

    Attributes:
        engine: Of the target.
        target: The target, which is one of a stack.
        state: Its Gaussians.
        noise: (K, n, d).
    """

    engine: Engine
    target: Any
    state: State
    noise: Array


class SharedFitter(GaussianFitter):
    """A fitter whose steps are taken together with those of others of the pool."""

    def advance(self) -> list[float]:
        """See `GaussianFitter.advance`."""
        if self._minibatch or not pool.inside():
            return super().advance()
        averaging = None if self._averaging_from is None else self.taken - self._averaging_from
        state, target = self._state, self.target
        known = averaging is not None and target.dim <= SCALES_FIRST
        count = pairs(target.dim) if known else fitting_pairs(target.dim, state.full)
        noise = antithetic(self._noise, len(state.mean), count, target.dim)
        # One request for the scores and the step: each wait costs as much as some of the work.
        key = (KEY, state.full, noise.shape[1:], averaging)
        self._state, still, lost = pool.ask(key, _Step(self.engine, target, state, noise))
        target.count(noise.shape[0] * noise.shape[1])
        target.nonfinite_evaluations += lost
        self.taken += 1
        highest = self._state.highest
        if averaging is None:
            self._look(still)
        return [highest]


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


def answer(key: Any, asked: list[_Step], scores: Answer) -> list[tuple[State, Array, int]]:
    """Takes a step of all: see `pyro_dft.recipe.natural_gradient.State.advance`.

    Args:
        key: The last of its entries is how many averaging steps have been made.
        asked: Steps that are to be taken.
        scores: Answers the key (stack, "scores").

    Returns:
        The Gaussians of each fit, how still they are, and how many evaluations were not finite.
    """
    states = [own.state for own in asked]
    ends = np.cumsum([0, *(len(state.mean) for state in states)])
    spans = [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    whole = State.joined(states)
    noise = np.concatenate([own.noise for own in asked])
    log_q, score = _scored(asked, spans, whole.points(noise), scores)
    bad = ~(np.isfinite(log_q) & np.isfinite(score).all(-1))
    if bad.any():
        log_q, score = np.where(bad, -np.inf, log_q), np.where(bad[..., None], 0.0, score)
    still = whole.advance(noise, log_q, score, key[-1], minibatch=False)
    return [(whole[span], still[span], int(bad[span].sum())) for span in spans]


def _scored(asked: list[_Step], spans: list[slice], points: Array, scores: Answer) -> tuple[Array, Array]:
    """Log densities (K, n) and scores (K, n, d) at points (K, n, d) of several fits, whose rows are those of `spans`."""
    log_q, score = np.empty(points.shape[:2]), np.empty(points.shape)
    stacks: dict[Any, list[int]] = {}
    for i, own in enumerate(asked):
        stacks.setdefault(own.target.stack, []).append(i)
    for stack, places in stacks.items():
        payloads = [
            (own.target.row, own.engine.native(own.target, points[spans[i]].reshape(-1, points.shape[-1])))
            for i, own in ((i, asked[i]) for i in places)
        ]
        for i, found in zip(places, scores((stack, "scores"), payloads), strict=True):
            value, slope = (asked[i].engine.numpy(part) for part in found)
            log_q[spans[i]] = value.reshape(-1, points.shape[1])
            score[spans[i]] = slope.reshape(-1, *points.shape[1:])
    return log_q, score
