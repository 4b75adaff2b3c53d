"""A network that stands in for the model's scores, fitted to those that chains evaluated anyway."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from pyro_dft.engine_jax import networks, random
from pyro_dft.engine_jax.networks import Weights
from pyro_dft.engine_jax.target import TargetSpec
from pyro_dft.recipe.constants import SURROGATE_BATCH, SURROGATE_RATE

_ADAM = optax.scale_by_adam()
# Steps of one compiled call.
_CHUNK = 250


def surrogate_spec(dim: int, dtype: str) -> TargetSpec:
    """What compiled training steps see in place of the posterior; one for all models."""
    return TargetSpec(_no_potential, dim, dtype, surrogate=True)


def _no_potential(x: Array, data: Any) -> Array:
    raise NotImplementedError("a surrogate has scores, and no potential")


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _start(chains: int, dim: int, width: int, depth: int, dtype: str, words: Any) -> Weights:
    return networks.init_mlp(random.words(words), chains, dim, width, depth, dtype)


@jax.jit
def _fit(
    weights: Weights, moments: Any, u: Any, s: Any, count: Any, words: Any, first: Any, steps: Any
) -> tuple[Weights, Any]:
    """`_CHUNK` steps of Adam on batches of the first `count` rows of points u and scores s, (G, N, d) each."""
    key, (g, _, d) = random.words(words), u.shape

    def loss(w: Weights, rows: Array) -> Array:
        x, y = (jnp.take_along_axis(v, rows[..., None], 1) for v in (u, s))
        square = jnp.square(networks.score(w, x, jnp.zeros(())) - y).sum(-1) / d
        # Far points have huge scores: errors above one count by their size, not its square.
        return (jnp.sqrt(1 + square) - 1).mean(1).sum()

    def go(i: Array, carry: tuple[Weights, Any]) -> tuple[Weights, Any]:
        now, adam = carry
        unit = random.uniform(random.fold(key, i), (g, SURROGATE_BATCH), np.float32)
        rows = jnp.minimum((unit * count).astype(jnp.int32), count - 1)
        gradient = jax.grad(loss)(now, rows)
        rate = SURROGATE_RATE * (0.01 + 0.99 * 0.5 * (1 + jnp.cos(jnp.pi * (first + i) / steps)))
        changes, adam = _ADAM.update(gradient, adam)
        return jax.tree.map(lambda w, c: w - (rate * c).astype(w.dtype), now, changes), adam

    return jax.lax.fori_loop(0, _CHUNK, go, (weights, moments))


@jax.jit
def _scores(weights: Weights, u: Any) -> Array:
    return networks.score(weights, u, jnp.zeros(()))


class Surrogate:
    """Scores of G posteriors in whitened coordinates: that of a unit Gaussian, and a network's correction.

    Args:
        samplers: G.
        dim: d.
        width: Of the network.
        depth: Of the network.
        dtype: Name of its numbers' type.
        rng: Gives the random keys.

    Attributes:
        weights: Of the network.
        spec: What compiled training steps see.
    """

    def __init__(self, samplers: int, dim: int, width: int, depth: int, dtype: str, rng: np.random.Generator):
        self.spec, self.dtype, self.rng = surrogate_spec(dim, dtype), dtype, rng
        self.weights: Weights = _start(samplers, dim, width, depth, dtype, self._words())

    def _words(self) -> np.ndarray:
        return self.rng.integers(2**32, size=2, dtype=np.uint32)

    def fit(self, u: np.ndarray, s: np.ndarray, steps: int) -> None:
        """Goes on with the fit to scores s at points u, (G, N, d) each, for about so many steps."""
        count, rows = u.shape[1], 2 ** int(np.ceil(np.log2(max(u.shape[1], 1024))))
        # One size for many: compiled once.
        pad = ((0, 0), (0, rows - count), (0, 0))
        u, s = (np.pad(v, pad).astype(self.dtype) for v in (u, s))
        moments = _ADAM.init(self.weights)
        for first in range(0, steps, _CHUNK):
            self.weights, moments = _fit(
                self.weights, moments, u, s, count, self._words(), first, float(max(steps, _CHUNK))
            )

    def scores(self, u: np.ndarray) -> np.ndarray:
        """Scores (G, n, d) at points (G, n, d)."""
        return np.asarray(_scores(self.weights, u.astype(self.dtype)), float)

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights, by name."""
        return {name: np.asarray(value) for name, value in self.weights.items()}

    def set_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `arrays`."""
        self.weights = {name: np.asarray(value, self.dtype) for name, value in arrays.items()}
