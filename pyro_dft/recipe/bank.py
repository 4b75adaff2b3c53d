"""Scores of the model that a fit has evaluated, and the surrogate network that is fitted to them to train on."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_dft import roots
from pyro_dft.recipe.constants import SURROGATE_MORE, SURROGATE_STEPS
from pyro_dft.recipe.engine import Engine
from pyro_dft.settings import Settings

# Points that are kept over all samplers, and the memory in bytes that they and their scores may take.
MOST_POINTS, MOST_BYTES = 30_000, 2e8
# Points where a whitened score is larger than this are not used: the posterior has no mass there.
LARGEST = 1e3
# Scores of the model that are added each time for each sampler, at draws of its generator.
MORE_POINTS = 256


class Bank:
    """Points in unconstrained space and the model's scores there, for each of G samplers; some, evenly spaced, if many."""

    def __init__(self) -> None:
        self._points: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []
        self._every = 1

    def add(self, points: np.ndarray, scores: np.ndarray) -> None:
        """Adds points and their scores, (G, n, d) each."""
        g, n, d = points.shape
        some = slice(None, None, self._every)
        self._points.append(np.asarray(points[:, some], np.float32))
        self._scores.append(np.asarray(scores[:, some], np.float32))
        most = min(MOST_POINTS, MOST_BYTES / (8 * d)) / g
        if sum(part.shape[1] for part in self._points) > max(most, 2):
            self._every *= 2
            self._points = [np.concatenate(self._points, 1)[:, ::2]]
            self._scores = [np.concatenate(self._scores, 1)[:, ::2]]

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The points that are kept and their scores, (G, N, d) each."""
        return np.concatenate(self._points, 1), np.concatenate(self._scores, 1)


def usable(u: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points u and scores s (G, N, d), with rows that cannot be used replaced by usable rows of the same sampler."""
    bad = ~(np.isfinite(s).all(-1) & np.isfinite(u).all(-1) & (np.abs(s).max(-1) < LARGEST))
    rows = np.tile(np.arange(u.shape[1]), (len(u), 1))
    for own, gone in zip(rows, bad, strict=True):
        if gone.any() and not gone.all():
            own[gone] = np.resize(np.flatnonzero(~gone), int(gone.sum()))
    pick = np.arange(len(u))[:, None], rows
    return np.nan_to_num(u[pick]), np.nan_to_num(s[pick])


class Substitute:
    """The surrogate of one training and the points that it is fitted to, in the sampler's whitened coordinates.

    Args:
        engine: Of the target.
        target: The posterior.
        sampler: The Gaussian sampler that the whitened coordinates are those of.
        bank: Points and scores to fit first.
        settings: Width and depth of the network.
        rng: The engine's random number generator.

    Attributes:
        surrogate: The engine's surrogate network.
        error: Median error of the surrogate's scores at draws of the generator, over the median size of the scores there, taken
            in the last `top_up` before it was fitted to them; NaN before the first.
    """

    def __init__(self, engine: Engine, target: Any, sampler: Any, bank: Bank, settings: Settings, rng: Any):
        self.engine, self.target, self.rng = engine, target, rng
        self.mean, self.scale = engine.numpy(sampler.mean), engine.numpy(sampler.scale)
        self.error = float("nan")
        points, scores = bank.arrays()
        self.u, self.s = self._whitened(points.astype(float), scores.astype(float))
        self.surrogate = engine.surrogate(target, len(self.mean), settings, rng)
        self.surrogate.fit(self.u, self.s, SURROGATE_STEPS)

    def _whitened(self, points: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centred = points - self.mean[:, None]
        u = roots.whitened(self.scale, centred)
        s = roots.projected(self.scale, scores)
        return usable(u, s)

    def top_up(self, sampler: Any) -> None:
        """Evaluates the model's scores at draws of the sampler, and fits the surrogate to them as well."""
        draws = self.engine.numpy(sampler.draw(MORE_POINTS, self.rng))
        _, scores = self.engine.scores(self.target, draws, self.rng, minibatch=False)
        u, s = self._whitened(draws, scores)
        wrong = np.square(self.surrogate.scores(u) - s).sum(-1)
        self.error = float(np.sqrt(np.median(wrong) / max(np.median(np.square(s).sum(-1)), 1e-300)))
        self.u, self.s = np.concatenate([self.u, u], 1), np.concatenate([self.s, s], 1)
        self.surrogate.fit(self.u, self.s, SURROGATE_MORE)

    def state(self) -> dict[str, np.ndarray]:
        """Everything that training goes on from, but for the random numbers."""
        own = {f"weights.{name}": value for name, value in self.surrogate.arrays().items()}
        return own | {"u": self.u, "s": self.s, "error": np.asarray(self.error)}

    def resume(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `state`."""
        weights = {
            name.removeprefix("weights."): v for name, v in arrays.items() if name.startswith("weights.")
        }
        self.surrogate.set_arrays(weights)
        self.u, self.s, self.error = arrays["u"], arrays["s"], float(arrays["error"])
