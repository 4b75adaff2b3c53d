"""Training of the generator and the score network: compiled chunks of the steps of `pyro_dft.engine_jax.step`."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pyro_dft.engine_jax import random
from pyro_dft.engine_jax.custom import named, unnamed
from pyro_dft.engine_jax.networks import Weights
from pyro_dft.engine_jax.sampler import Sampler
from pyro_dft.engine_jax.step import (
    NO_NETWORKS,
    Hyper,
    NetworkState,
    OwnNetworks,
    Plan,
    Whitened,
    start,
    step,
)
from pyro_dft.engine_jax.surrogate import Surrogate
from pyro_dft.engine_jax.target import Target, TargetSpec, whitened_score
from pyro_dft.recipe.constants import ANCHOR_DRAWS, DIFFERENTIATED
from pyro_dft.recipe.history import check_like
from pyro_dft.settings import Settings

# Steps of one compiled call, at most: between calls the progress bar moves and Ctrl-C is heard.
CHUNK = 50


class Part(NamedTuple):
    """Steps of a phase: `count`, at most `CHUNK`, from step `first` of `length` on."""

    first: Any
    length: Any
    count: Any


@partial(jax.jit, static_argnums=(0, 1, 2))
def _chunk(
    spec: TargetSpec, plan: Plan, phase: str, at: Whitened, state: NetworkState, hyper: Hyper, words: Any, part: Part
) -> tuple[NetworkState, Array]:  # fmt: skip
    """Some steps of a phase; the Fisher gap of each, (CHUNK,)."""
    key = random.words(words)

    def go(i: Array, carry: tuple[NetworkState, Array]) -> tuple[NetworkState, Array]:
        now, gaps = carry
        done = ((part.first + i) / part.length).astype(at.mean.dtype)
        now, gap = step(spec, plan, phase, at, now, hyper, done, random.fold(key, i))
        return now, gaps.at[i].set(gap)

    return spec.whole(jax.lax.fori_loop(0, part.count, go, (state, jnp.zeros(CHUNK, state.gap.dtype))))


@partial(jax.jit, static_argnums=0)
def _noisy_scores(
    spec: TargetSpec, data: Any, u: Any, mean: Any, scale: Any, anchor: Any, words: Any
) -> tuple[Array, Array]:
    """Whitened minibatch scores, without and with the control variate."""
    key = random.words(words)
    plain = whitened_score(spec, u, mean, scale, data, key)[0]
    return spec.whole((plain, whitened_score(spec, u, mean, scale, data, key, anchor)[0]))


_start = jax.jit(
    lambda words, plan, hyper, chains, dim, dtype: start(
        random.words(words), plan, hyper, chains, dim, dtype
    ),
    static_argnums=(1, 3, 4, 5),
)


class NetworkTrainer:
    """Alternates denoising score matching and generator steps for C chains at once.

    Args:
        target: The posterior.
        sampler: The Gaussian whose coordinates are used, (C, d).
        settings: Hyper-parameters.
        rng: Gives the random keys.
        networks: Networks that the user brings.

    Attributes:
        surrogate: Gives the scores in place of the posterior, or None.
    """

    def __init__(
        self,
        target: Target,
        sampler: Sampler,
        settings: Settings,
        rng: np.random.Generator,
        networks: OwnNetworks = NO_NETWORKS,
    ):
        self.target, self.rng = target, rng
        self.plan, self.hyper = Plan.of(settings, networks), Hyper.of(settings)
        self.mean, self.scale = sampler.mean, sampler.scale
        self.state: NetworkState = _start(
            self._words(), self.plan, self.hyper, *self.mean.shape, target.dtype.name
        )
        self.anchor = None if self.plan.levels else self._anchor(sampler)
        self.surrogate: Surrogate | None = None

    def _anchor(self, sampler: Sampler) -> np.ndarray | None:
        """Full scores at the means, where a control variate made of them halves the variance of minibatch scores."""
        target = self.target
        if not target.minibatch:
            return None
        c, d = self.mean.shape
        anchor = target.evaluate(np.asarray(self.mean, target.dtype))[1]
        u = self.rng.standard_normal((c, ANCHOR_DRAWS, d)).astype(target.dtype)
        both = [
            _noisy_scores(target.spec, target.data, u, self.mean, self.scale, anchor, self._words())
            for _ in range(2)
        ]
        target.count(2 * 3 * u.shape[0] * u.shape[1], minibatch=True)
        plain, corrected = (
            float(np.square(np.asarray(a) - np.asarray(b)).mean()) for a, b in zip(*both, strict=True)
        )
        return anchor if corrected < 0.5 * plain else None

    def _words(self) -> np.ndarray:
        return self.rng.integers(2**32, size=2, dtype=np.uint32)

    def sampler(self) -> Sampler:
        """The sampler as trained so far."""
        return Sampler(self.mean, self.scale, self.snapshot())

    @property
    def trained(self) -> Weights:
        """The weights that draws come from."""
        return self.snapshot()

    @property
    def trained_score(self) -> Weights:
        """The score network's weights."""
        return dict(self.state.score)

    def branch(self) -> NetworkTrainer:
        """A copy whose sampler stays as it is while this one is trained."""
        return copy.copy(self)

    def pack(self, weights: Weights) -> dict[str, np.ndarray]:
        """A snapshot as arrays, by name."""
        return named(weights)

    def unpack(self, arrays: dict[str, np.ndarray]) -> Weights:
        """The inverse of `pack`."""
        return unnamed(arrays, self.snapshot())

    def snapshot(self) -> Weights:
        """The weights that draws come from."""
        return dict(self.state.trained)

    def restore(
        self, weights: Weights, mask: np.ndarray | None = None, otherwise: Weights | None = None
    ) -> None:
        """Sets the weights that draws come from; with a mask (C,), those of `otherwise` where it is False."""
        if mask is not None and otherwise is not None:
            keep = mask

            def choose(a: Any, b: Any) -> np.ndarray:
                return np.where(keep.reshape(-1, *[1] * (a.ndim - 1)), np.asarray(a), np.asarray(b))

            weights = jax.tree.map(choose, dict(weights), dict(otherwise))
        if self.state.average:
            self.state = self.state._replace(average=dict(weights))
        else:
            self.state = self.state._replace(generator=dict(weights))

    def arrays(self) -> dict[str, np.ndarray]:
        """What training can go on from, but for the random numbers."""
        return named({"state": self.state._asdict(), "mean": self.mean, "scale": self.scale})

    def set_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `arrays`."""
        check_like(arrays, self.arrays())
        like = {"state": self.state._asdict(), "mean": self.mean, "scale": self.scale}
        found = unnamed(arrays, like)
        self.state, self.mean, self.scale = NetworkState(**found["state"]), found["mean"], found["scale"]
        if self.anchor is not None:  # it belongs to the means, which another machine may round differently
            self.anchor = self.target.evaluate(np.asarray(self.mean, self.target.dtype))[1]

    def smoothed_gap(self) -> np.ndarray:
        """Moving average of the Fisher gap, (C,)."""
        return np.array(self.state.gap)

    def advance(self, phase: str, first: int, length: int, count: int) -> list[float]:
        """Up to `CHUNK` steps of a phase; returns the Fisher gap J(s_q) - J(s_phi) of each, mean over chains.

        Args:
            phase: "kl", "dft", "dft-paper" or "fisher-partial".
            first: Steps of the phase made before.
            length: Steps of the phase in all (sets the learning rates).
            count: Steps to make at most.
        """
        count, lost = min(count, CHUNK), int(self.state.nonfinite)
        spec, data = self.target.spec, self.target.data
        if self.surrogate is not None:
            spec, data = self.surrogate.spec, self.surrogate.weights
        at, steps = Whitened(data, self.mean, self.scale, self.anchor), Part(first, length, count)
        self.state, gaps = _chunk(spec, self.plan, phase, at, self.state, self.hyper, self._words(), steps)
        if self.surrogate is not None:
            return np.asarray(gaps)[:count].tolist()
        # A Hessian-vector product costs about two gradients, on each of the scores that is differentiated.
        scores = 2 if self.target.minibatch else 1
        differentiated = min(DIFFERENTIATED[phase], scores)
        each = scores * (1 if self.anchor is None else 2) + 2 * differentiated
        rows = self.mean.shape[0] * 2 * self.plan.batch(phase)
        nonfinite = int(self.state.nonfinite) - lost
        self.target.count(count * rows * each, nonfinite, minibatch=self.target.minibatch)
        return np.asarray(gaps)[:count].tolist()
