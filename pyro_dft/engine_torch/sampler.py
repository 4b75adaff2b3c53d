"""The trained sampler: it maps noise to draws in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyro_dft.engine_torch.custom import CustomGenerator, Source
from pyro_dft.engine_torch.networks import Generator
from pyro_dft.recipe.shapes import generator_shapes
from pyro_dft.roots import coloured

# Rows of draws that are held at once.
CHUNK = Generator.rows
# Rows whose Jacobians are made at once.
LINEARISED = 512


@dataclass
class Sampler:
    """x = mean + scale (g(z) + sigma eps) for each of C chains; without a generator x = mean + scale z.

    Attributes:
        mean: (C, d), unconstrained units.
        scale: (C, d, d), or (C, d), maps whitened to unconstrained coordinates.
        generator: The network g with its noise sigma, or None for the Gaussian alone.
    """

    mean: Tensor
    scale: Tensor
    generator: Generator | CustomGenerator | None = None

    @property
    def chains(self) -> int:
        """Number of chains C."""
        return self.mean.shape[0]

    @property
    def dim(self) -> int:
        """Dimension d."""
        return self.mean.shape[1]

    def color(self, u: Tensor) -> Tensor:
        """Whitened (C, n, d) -> unconstrained coordinates."""
        return self.mean[:, None].to(u.dtype) + coloured(self.scale.to(u.dtype), u)

    def whitened_noise(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """The random numbers z and eps of n draws from each chain, (C, n, d) both."""
        dtype = self.dtype
        shape = (self.chains, n, self.dim)
        z = torch.randn(shape, generator=rng, dtype=dtype, device=self.mean.device)
        if self.generator is None:
            return z, torch.zeros(0, dtype=dtype)
        return z, torch.randn(shape, generator=rng, dtype=dtype, device=self.mean.device)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the draws."""
        return self.mean.dtype if self.generator is None else self.generator.log_sigma.dtype

    @torch.no_grad()
    def transport(self, z: Tensor, eps: Tensor) -> Tensor:
        """Draws (C, n, d) for given noise: the same noise gives the same draws."""
        if self.generator is None:
            return self.color(z)
        return self.color(self.generator(z) + self.generator.sigma * eps)

    def blocks(self, n: int, rng: torch.Generator) -> Iterator[Tensor]:
        """N draws from each chain in blocks (C, at most 65,536 / C, d)."""
        rows = CHUNK if self.generator is None else min(CHUNK, self.generator.rows)
        size = max(1, rows // self.chains)
        for start in range(0, n, size):
            yield self.transport(*self.whitened_noise(min(size, n - start), rng))

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        """N independent draws from each chain, (C, n, d), unconstrained."""
        return torch.cat(list(self.blocks(n, rng)), 1)

    # The network alone, NumPy in and out: what `pyro_dft.evidence.reverse` reads the density from.

    @property
    def noise(self) -> np.ndarray:
        """Standard deviation sigma of the noise, (C, 1, d), whitened units."""
        assert self.generator is not None
        return self.generator.sigma.detach().double().cpu().numpy()

    @torch.no_grad()
    def generate(self, z: np.ndarray) -> np.ndarray:
        """Latent points (C, n, d) -> g(z), (C, n, d)."""
        assert self.generator is not None
        parts = self._latent(z).split(self.generator.rows, 1)
        return torch.cat([self.generator(part) for part in parts], 1).cpu().numpy()

    @torch.no_grad()
    def linearise(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Latent points (C, n, d) -> g(z) and its Jacobians, (C, n, d, d)."""
        pieces = [self._linearised(part) for part in self._latent(z).split(LINEARISED, 1)]
        g, jacobian = (torch.cat(parts, 1).cpu().numpy() for parts in zip(*pieces, strict=True))
        return g, jacobian

    def _linearised(self, z: Tensor) -> tuple[Tensor, Tensor]:
        assert self.generator is not None
        chains, n, dim = z.shape
        # One row of the Jacobian for each copy of a point: a single backward pass makes all of them.
        directions = torch.eye(dim, dtype=z.dtype, device=z.device).repeat(chains, n, 1)
        with torch.enable_grad():
            points = z.repeat_interleave(dim, 1).requires_grad_()
            g = self.generator(points)
            (rows,) = torch.autograd.grad(g, points, directions)
        return g.detach()[:, ::dim], rows.reshape(chains, n, dim, dim)

    def _latent(self, z: np.ndarray) -> Tensor:
        return torch.as_tensor(z, dtype=self.dtype, device=self.mean.device)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything that defines the sampler, by name."""
        arrays = {"mean": self.mean, "scale": self.scale}
        if self.generator is not None:
            arrays |= {f"generator.{k}": v for k, v in self.generator.state_dict().items()}
        return {k: v.detach().cpu().numpy() for k, v in arrays.items()}

    @staticmethod
    def generator_shapes(
        chains: int, dim: int, width: int, depth: int, own: Source | None = None
    ) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the network's arrays in `to_arrays`."""
        if own is None:
            return {
                f"generator.{k}": shape for k, shape in generator_shapes(chains, dim, width, depth).items()
            }
        empty = _empty(chains, dim, width, depth, own, torch.float32, torch.device("cpu"))
        return {f"generator.{k}": tuple(v.shape) for k, v in empty.state_dict().items()}

    @classmethod
    def from_arrays(
        cls,
        arrays: dict[str, np.ndarray],
        *,
        width: int,
        depth: int,
        device: torch.device | str = "cpu",
        own: Source | None = None,
    ) -> Sampler:
        """The inverse of `to_arrays`; `width` and `depth` are those of the network, or `own` is the user's."""
        tensors = {k: torch.as_tensor(np.array(v), device=device) for k, v in arrays.items()}
        mean, scale = tensors.pop("mean"), tensors.pop("scale")
        generator = None
        if tensors:
            weights = {k.removeprefix("generator."): v for k, v in tensors.items()}
            dtype = weights["log_sigma"].dtype
            chains, dim = mean.shape
            generator = _empty(chains, dim, width, depth, own, dtype, torch.device(device))
            generator.load_state_dict(weights)
            generator.eval()
        return cls(mean, scale, generator)


def _empty(
    chains: int,
    dim: int,
    width: int,
    depth: int,
    own: Source | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Generator | CustomGenerator:
    if own is not None:
        return CustomGenerator(own, chains, dim, 1.0, dtype=dtype, device=device)
    return Generator(chains, dim, width, depth, 1.0, rng=torch.Generator(device=device), dtype=dtype)
