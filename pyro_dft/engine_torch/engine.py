"""The torch engine, as the recipe sees it: see `pyro_dft.recipe.engine.Engine`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_dft.engine_torch.chains import run_block
from pyro_dft.engine_torch.custom import NO_NETWORKS, Networks
from pyro_dft.engine_torch.refine import refine, tune_step_size, whitening
from pyro_dft.engine_torch.sampler import CHUNK, Sampler
from pyro_dft.engine_torch.surrogate import Surrogate
from pyro_dft.engine_torch.target import Target
from pyro_dft.engine_torch.threads import threads, worthwhile
from pyro_dft.engine_torch.train import NetworkTrainer
from pyro_dft.settings import Settings


class TorchEngine:
    """Tensors on the target's device; random numbers come from a torch generator there."""

    BLOCK_ROWS = CHUNK
    FREEZES_NOISE = False

    def numpy(self, x: Tensor) -> np.ndarray:
        """A tensor in double precision on the host."""
        return x.detach().double().cpu().numpy()

    def native(self, target: Target, x: np.ndarray) -> Tensor:
        """Points in the target's precision and on its device."""
        return torch.as_tensor(x, dtype=target.dtype, device=target.device)

    def concatenate(self, arrays: Sequence[Tensor], axis: int) -> Tensor:
        """Native arrays, one after the other."""
        return torch.cat(list(arrays), axis)

    def host_rng(self, rng: torch.Generator) -> np.random.Generator:
        """A NumPy generator, seeded from this one."""
        return np.random.default_rng(int(torch.randint(2**31 - 1, (), generator=rng, device=rng.device)))

    def selection_seed(self, rng: torch.Generator) -> int:
        """Follows from the seed of the fit."""
        return rng.initial_seed() % 2**31 + 1

    def seeded(self, target: Target, seed: int) -> torch.Generator:
        """A new generator on the target's device."""
        return torch.Generator(device=target.device).manual_seed(seed)

    def rng_state(self, rng: torch.Generator) -> dict[str, Any]:
        """Nothing: the arrays of the network training hold it."""
        return {}

    def set_rng_state(self, rng: torch.Generator, header: dict[str, Any]) -> None:
        """Does nothing."""

    def blocks(self, sampler: Sampler, n: int, rng: torch.Generator) -> Iterator[Tensor]:
        """Draws, each block when it is asked for."""
        size = max(1, CHUNK // sampler.chains)
        for start in range(0, n, size):
            yield sampler.draw(min(size, n - start), rng)

    def thread_count(self, problem: Any, batch_size: int) -> int:
        """One, or all where a batch as the network phases see it is worth that."""
        target = problem.target
        if target.device.type != "cpu":
            return 1
        x = problem.starts[:, :1].expand(-1, 2 * batch_size, -1)
        return worthwhile(target.largest_tensor(x, minibatch=True))

    def threads(self, count: int) -> contextlib.AbstractContextManager[None]:
        """See `pyro_dft.engine_torch.threads.threads`."""
        return threads(count)

    def scores(
        self, target: Target, x: np.ndarray, rng: torch.Generator, *, minibatch: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log densities (...) and scores (..., d) at points (..., d), in double precision."""
        with torch.no_grad():
            log_density, score = target.evaluate(self.native(target, x), minibatch=minibatch)
        return self.numpy(log_density), self.numpy(score)

    def gaussian_sampler(self, target: Target, mean: Any, scale: Any) -> Sampler:
        """The sampler x = mean + scale z."""
        return Sampler(self.native(target, mean), self.native(target, scale))

    def train_networks(
        self,
        target: Target,
        sampler: Sampler,
        settings: Settings,
        rng: torch.Generator,
        networks: Networks | None,
    ) -> NetworkTrainer:
        """A training of networks that start as the Gaussian `sampler`."""
        return NetworkTrainer(target, sampler, settings, rng, networks or NO_NETWORKS)

    def surrogate(self, target: Target, samplers: int, settings: Settings, rng: torch.Generator) -> Surrogate:
        """Scores in whitened coordinates that start as those of unit Gaussians."""
        return Surrogate(samplers, target.dim, settings.width, settings.depth, target.dtype, rng)

    whitening = staticmethod(whitening)
    tune_step_size = staticmethod(tune_step_size)
    refine = staticmethod(refine)
    run_block = staticmethod(run_block)


ENGINE = TorchEngine()
