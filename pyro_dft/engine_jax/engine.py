"""The jax engine, as the recipe sees it: see `pyro_dft.recipe.engine.Engine`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pyro_dft.engine_jax.chains import run_block
from pyro_dft.engine_jax.refine import refine, tune_step_size, whitening
from pyro_dft.engine_jax.sampler import CHUNK, Sampler
from pyro_dft.engine_jax.step import NO_NETWORKS, OwnNetworks
from pyro_dft.engine_jax.surrogate import Surrogate
from pyro_dft.engine_jax.target import Target
from pyro_dft.engine_jax.train import NetworkTrainer
from pyro_dft.settings import Settings


class JaxEngine:
    """NumPy arrays at the border, compiled jax behind it; random numbers come from NumPy generators, which give the keys."""

    BLOCK_ROWS = CHUNK
    FREEZES_NOISE = True

    def numpy(self, x: Any) -> np.ndarray:
        """An array in double precision."""
        return np.asarray(x, float)

    def native(self, target: Target, x: np.ndarray) -> np.ndarray:
        """Points in the target's precision."""
        return x.astype(target.dtype)

    def concatenate(self, arrays: Sequence[np.ndarray], axis: int) -> np.ndarray:
        """Native arrays, one after the other."""
        return np.concatenate(arrays, axis)

    def host_rng(self, rng: np.random.Generator) -> np.random.Generator:
        """The generator itself."""
        return rng

    def selection_seed(self, rng: np.random.Generator) -> int:
        """Drawn from the fit's own generator."""
        return int(rng.integers(2**31))

    def seeded(self, target: Target, seed: int) -> np.random.Generator:
        """A new NumPy generator."""
        return np.random.default_rng(seed)

    def rng_state(self, rng: np.random.Generator) -> dict[str, Any]:
        """The generator's state."""
        return {"rng": rng.bit_generator.state}

    def set_rng_state(self, rng: np.random.Generator, header: dict[str, Any]) -> None:
        """The inverse of `rng_state`."""
        rng.bit_generator.state = header["rng"]

    def blocks(self, sampler: Sampler, n: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Draws, some blocks ahead of the one that is given out."""
        return sampler.blocks(n, rng)

    def thread_count(self, problem: Any, batch_size: int) -> int:
        """Nothing to choose: jax has a pool of its own."""
        return 1

    def threads(self, count: int) -> contextlib.AbstractContextManager[None]:
        """Does nothing."""
        return contextlib.nullcontext()

    def scores(
        self, target: Target, x: np.ndarray, rng: np.random.Generator, *, minibatch: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log densities (...) and scores (..., d) at points (..., d), in double precision."""
        log_density, score = target.evaluate(x.astype(target.dtype), rng if minibatch else None)
        return log_density.astype(float), score.astype(float)

    def gaussian_sampler(self, target: Target, mean: np.ndarray, scale: np.ndarray) -> Sampler:
        """The sampler x = mean + scale z."""
        return Sampler(mean.astype(target.dtype), scale.astype(target.dtype))

    def train_networks(
        self,
        target: Target,
        sampler: Sampler,
        settings: Settings,
        rng: np.random.Generator,
        networks: OwnNetworks | None,
    ) -> NetworkTrainer:
        """A training of networks that start as the Gaussian `sampler`."""
        return NetworkTrainer(target, sampler, settings, rng, networks or NO_NETWORKS)

    def surrogate(
        self, target: Target, samplers: int, settings: Settings, rng: np.random.Generator
    ) -> Surrogate:
        """Scores in whitened coordinates that start as those of unit Gaussians."""
        return Surrogate(samplers, target.dim, settings.width, settings.depth, target.dtype.name, rng)

    whitening = staticmethod(whitening)
    tune_step_size = staticmethod(tune_step_size)
    refine = staticmethod(refine)
    run_block = staticmethod(run_block)


ENGINE = JaxEngine()
