"""The trained sampler: it maps noise to draws in one forward pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pyro_dft import roots
from pyro_dft.engine_jax import networks, random
from pyro_dft.engine_jax.custom import Own, named, unnamed
from pyro_dft.engine_jax.networks import Weights
from pyro_dft.engine_jax.target import block_rows, double
from pyro_dft.roots import coloured

# Rows of one forward pass; bounds memory when a million draws are asked for.
CHUNK = 65_536
# Rows of it that are made at a time, so that they stay in the processor's cache; fewer for a user's network, which can be wide.
PIECE, OWN_PIECE = 4096, 256
AHEAD = 2
# Numbers in the Jacobians that are made at once, and their rows at most.
JACOBIANS, LINEARISED = 2**21, 256


def transport(mean: Array, scale: Array, generator: Weights | None, z: Array, eps: Array) -> Array:
    """Draws (C, n, d) for given noise: x = mean + scale (g(z) + sigma eps); without a generator mean + scale z."""
    u = z if generator is None else networks.generate(generator, z) + networks.sigma(generator) * eps
    return mean[:, None].astype(u.dtype) + coloured(scale.astype(u.dtype), u)


def draw(mean: Array, scale: Array, generator: Weights | None, key: Array, n: int) -> Array:
    """N independent draws from each chain, (C, n, d), unconstrained."""
    dtype = mean.dtype if generator is None else generator["log_sigma"].dtype
    shape = (mean.shape[0], n, mean.shape[1])
    if generator is None:
        z = random.normal(key, shape, dtype)
        return transport(mean, scale, None, z, z)
    z, eps = random.normal(key, (2, *shape), dtype)
    return transport(mean, scale, generator, z, eps)


def piece_rows(generator: Weights | None) -> int:
    """Rows that are made at a time."""
    return OWN_PIECE if generator is not None and "own" in generator else PIECE


_transport = jax.jit(transport)
_generate = jax.jit(networks.generate)


@jax.jit
def _linearise(generator: Weights, z: Array) -> tuple[Array, Array]:
    g, push = jax.linearize(partial(networks.generate, generator), z)
    columns = jax.vmap(lambda direction: push(jnp.broadcast_to(direction, z.shape)))(
        jnp.eye(z.shape[-1], dtype=z.dtype)
    )
    return g, jnp.moveaxis(columns, 0, -1)


@partial(jax.jit, static_argnums=4)
def _draw(mean: Array, scale: Array, generator: Weights | None, words: Any, n: int) -> Array:
    """As `draw`, a piece at a time: what stays in the cache takes half the time. n is a power of two."""
    key, piece = random.words(words), piece_rows(generator)
    if n <= piece:
        return draw(mean, scale, generator, key, n)
    keys = random.split(key, n // piece)
    pieces = jax.lax.map(lambda own: draw(mean, scale, generator, own, piece), keys)
    return jnp.moveaxis(pieces, 0, 1).reshape(mean.shape[0], n, mean.shape[1])


@dataclass
class Sampler:
    """x = mean + scale (g(z) + sigma eps) for each of C chains; without a generator x = mean + scale z.

    Attributes:
        mean: (C, d), unconstrained units.
        scale: (C, d, d), or (C, d), maps whitened to unconstrained coordinates.
        generator: Weights of the network g with its noise sigma, or None for the Gaussian alone.
    """

    mean: Any
    scale: Any
    generator: Weights | None = None

    @property
    def chains(self) -> int:
        """Number of chains C."""
        return self.mean.shape[0]

    @property
    def dim(self) -> int:
        """Dimension d."""
        return self.mean.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """Precision of the draws."""
        return np.dtype(self.mean.dtype if self.generator is None else self.generator["log_sigma"].dtype)

    def transport(self, z: Any, eps: Any) -> Array:
        """Draws (C, n, d) for given noise: the same noise gives the same draws."""
        return _transport(self.mean, self.scale, self.generator, z, eps)

    def blocks(self, n: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """N draws from each chain in blocks (C, at most 65,536 / C, d)."""
        if self.generator is None:
            yield from self._gaussian_blocks(n, rng)
            return
        ahead: deque[tuple[Array, int]] = deque()
        for start in range(0, n, max(1, CHUNK // self.chains)):
            count = min(max(1, CHUNK // self.chains), n - start)
            words = rng.integers(2**32, size=2, dtype=np.uint32)
            # A few sizes only, each of them compiled once: the next power of two, cut to size.
            size = max(block_rows(), 1 << (count - 1).bit_length())
            ahead.append((_draw(self.mean, self.scale, self.generator, words, size), count))
            # jax works on a block or two while the host takes the one before.
            if len(ahead) > AHEAD:
                block, count = ahead.popleft()
                yield np.asarray(block)[:, :count]
        for block, count in ahead:
            yield np.asarray(block)[:, :count]

    def _gaussian_blocks(self, n: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Those of the Gaussian alone, on the host: nothing has to be compiled for them."""
        mean, scale = np.asarray(self.mean), np.asarray(self.scale)
        for start in range(0, n, max(1, CHUNK // self.chains)):
            count = min(max(1, CHUNK // self.chains), n - start)
            z = rng.standard_normal((self.chains, count, self.dim)).astype(self.dtype)
            yield mean[:, None] + roots.coloured(scale, z)

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """N independent draws from each chain, (C, n, d), unconstrained."""
        return np.concatenate(list(self.blocks(n, rng)), 1)

    # The network alone, NumPy in and out: what `pyro_dft.evidence.reverse` reads the density from.

    @property
    def noise(self) -> np.ndarray:
        """Standard deviation sigma of the noise, (C, 1, d), whitened units."""
        assert self.generator is not None
        return np.asarray(networks.sigma(self.generator), np.float64)

    def generate(self, z: np.ndarray) -> np.ndarray:
        """Latent points (C, n, d) -> g(z), (C, n, d)."""
        return np.concatenate(list(self._pieces(_generate, z, piece_rows(self.generator))), 1)

    def linearise(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Latent points (C, n, d) -> g(z) and its Jacobians, (C, n, d, d)."""
        rows = max(1, min(LINEARISED, JACOBIANS // (self.chains * self.dim**2)))
        pieces = list(self._pieces(_linearise, z, rows))
        g, jacobian = (np.concatenate(parts, 1) for parts in zip(*pieces, strict=True))
        return g, jacobian

    def _pieces(self, function: Any, z: np.ndarray, rows: int) -> Iterator[Any]:
        """A compiled function of the weights and (C, rows, d) latents, on pieces of one size: compiled once."""
        for start in range(0, z.shape[1], rows):
            part = z[:, start : start + rows].astype(self.dtype)
            n = part.shape[1]
            found = function(self.generator, np.pad(part, ((0, 0), (0, rows - n), (0, 0))))
            yield jax.tree.map(lambda value, n=n: np.asarray(value)[:, :n], found)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything that defines the sampler, by name."""
        arrays = {"mean": self.mean, "scale": self.scale}
        if self.generator is not None:
            arrays |= {f"generator.{k}": v for k, v in named(self.generator).items()}
        return {k: np.asarray(v) for k, v in arrays.items()}

    @staticmethod
    def generator_shapes(
        chains: int, dim: int, width: int, depth: int, own: Own | None = None
    ) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the network's arrays in `to_arrays`."""
        if own is None:
            shapes = networks.generator_shapes(chains, dim, width, depth)
        else:
            shapes = {name: value.shape for name, value in named(_like(own, chains)).items()}
        return {f"generator.{k}": v for k, v in shapes.items()}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], own: Own | None = None) -> Sampler:
        """The inverse of `to_arrays`; `own` is the user's network. float64 becomes float32 where jax has no float64."""
        read = {k: _canonical(v) for k, v in arrays.items()}
        mean, scale = read.pop("mean"), read.pop("scale")
        weights: Weights = {k.removeprefix("generator."): v for k, v in read.items()}
        if own is not None and weights:
            weights = unnamed(weights, _like(own, len(mean)))
        return cls(mean, scale, weights or None)


def _like(own: Own, chains: int) -> Any:
    """Weights in the structure of a user's generator."""

    def start(words: Array) -> Weights:
        return networks.init_generator(words, chains, own.dim, 1, 1, 1.0, np.float32, own)

    return jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(start, np.zeros(2, np.uint32))
    )


def _canonical(value: np.ndarray) -> np.ndarray:
    return value.astype(double()) if value.dtype == np.float64 else value
