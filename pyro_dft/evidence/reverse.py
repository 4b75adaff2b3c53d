"""The density of a sampler that has none: p(u) of u = g(z) + sigma eps, from draws of a reverse kernel.

p(u) is the integral of the joint density p(z, u) = N(z; 0, I) N(u; g(z), sigma^2) over the latent z. With z_1..z_K
from any reverse kernel r(z | u) of full support, the mean of p(z_k, u) / r(z_k | u) estimates it. Where u itself is a
draw of the sampler, one of the z_k has to be the latent that it was made from: then pi(u) over that mean is an
unbiased weight for every target pi, every r and every K (the proof is in docs/density.md; K = 1 is the usual weight
pi(u) r(z | u) / p(z, u), and the mean is that of Sobolev and Vetrov, "Importance weighted hierarchical variational
inference", NeurIPS 2019).

Here r is Gaussian: N(z; m(u), A(u)^-1) with m(u) the mode of p(z | u), found by damped Gauss-Newton steps, and
A = I + J' J / sigma^2 the curvature there, J the Jacobian of g. As sigma falls, z given u becomes Gaussian wherever
g is invertible, and r becomes exact. Where g folds, r sees one of several latents and K draws make up for that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

# K: for a network that folds, 16 latents leave little of the kernel's misfit in the weights; elsewhere one would do.
LATENTS = 16
# Pairs (z, u) from which the search for a mode may start.
PAIRS = 2000
# A search ends when the next step promises less than this (nats): r need not be exact.
TOLERANCE = 1e-3
MAX_ITERATIONS = 50
# Numbers in one array of Jacobians, and of distances to the pairs: bounds memory.
CHUNK = 2**22


class ImplicitSampler(Protocol):
    """A sampler of either engine, C chains; NumPy in and out."""

    @property
    def noise(self) -> Array:
        """Standard deviation sigma of the noise, (C, 1, d), whitened units."""

    def generate(self, z: Array) -> Array:
        """Latent points (C, n, d) -> g(z), (C, n, d)."""

    def linearise(self, z: Array) -> tuple[Array, Array]:
        """Latent points (C, n, d) -> g(z) and its Jacobians, (C, n, d, d)."""


@dataclass(frozen=True)
class _Kernel:
    """N(z; mode, (root root')^-1) for each of C chains and n points.

    Attributes:
        mode: (C, n, d).
        root: (C, n, d, d), lower Cholesky factors of the precisions.
    """

    mode: Array
    root: Array

    def draw(self, count: int, rng: np.random.Generator) -> Array:
        """Latents (C, n, count, d)."""
        eps = rng.standard_normal((*self.mode.shape, count))
        return self.mode[:, :, None] + np.linalg.solve(self.root.swapaxes(-1, -2), eps).swapaxes(-1, -2)

    def log_density(self, z: Array) -> Array:
        """(C, n, K, d) -> (C, n, K)."""
        log_det = np.log(np.diagonal(self.root, axis1=-2, axis2=-1)).sum(-1)
        whitened = (z - self.mode[:, :, None]) @ self.root
        return log_det[..., None] + standard_normal(whitened)


class Marginal:
    """Estimates the density of whitened points under each chain of a sampler.

    Args:
        sampler: The sampler.
        rng: Makes the pairs that searches start from, and the latents.
        latents: K.
    """

    def __init__(self, sampler: ImplicitSampler, rng: np.random.Generator, latents: int = LATENTS):
        self._sampler, self._rng, self._latents = sampler, rng, latents
        self._sigma = np.asarray(sampler.noise, np.float64)
        chains, _, dim = self._sigma.shape
        # r may depend on these pairs, and not on the latents of the draws that it is used for.
        self._z = rng.standard_normal((chains, max(PAIRS, 4 * dim), dim))
        self._g = sampler.generate(self._z)
        u = self._g + self._sigma * rng.standard_normal(self._z.shape)
        pairs = zip(_with_one(u), self._z, strict=True)
        self._regression = np.stack([np.linalg.lstsq(x, z, rcond=None)[0] for x, z in pairs])

    def log_density(self, u: Array, z: Array, chain: NDArray[np.intp]) -> Array:
        """Estimates log p(u) under each chain.

        Args:
            u: The same n points in the whitened coordinates of each chain, (C, n, d).
            z: The latents of those that are draws of the sampler, (n, d); others are not read.
            chain: The chain that made each point, (n,); -1 for points from elsewhere.

        Returns:
            (C, n), in nats.
        """
        chains, n, dim = u.shape
        rows = max(1, CHUNK // (chains * max(dim * dim, PAIRS, dim * self._latents)))
        parts = [slice(start, start + rows) for start in range(0, n, rows)]
        return np.concatenate([self._part(u[:, part], z[part], chain[part]) for part in parts], 1)

    def _part(self, u: Array, z: Array, chain: NDArray[np.intp]) -> Array:
        chains, n, dim = u.shape
        kernel = self._kernel(u)
        latents = kernel.draw(self._latents, self._rng)
        own = np.flatnonzero(chain >= 0)
        latents[chain[own], own, 0] = z[own]
        g = self._sampler.generate(latents.reshape(chains, -1, dim)).reshape(latents.shape)
        sigma = self._sigma[:, :, None]
        joint = standard_normal(latents) + standard_normal((u[:, :, None] - g) / sigma)
        joint -= np.log(sigma).sum(-1)
        ratios = joint - kernel.log_density(latents)
        return np.logaddexp.reduce(ratios, -1) - math.log(self._latents)

    def _kernel(self, u: Array) -> _Kernel:
        mode, jacobian = self._search(u, self._start(u))
        return _Kernel(mode, np.linalg.cholesky(self._curvature(jacobian)))

    def _start(self, u: Array) -> Array:
        """Linear regression of z on u, or the latent of the nearest pair where that is the better guess."""
        guess = _with_one(u) @ self._regression
        energy = self._energy(guess, u, self._sampler.generate(guess))
        scaled, points = self._g / self._sigma, u / self._sigma
        of_pairs = ((self._z**2).sum(-1) + (scaled**2).sum(-1))[:, None] / 2
        energies = of_pairs + (points**2).sum(-1)[..., None] / 2 - points @ scaled.swapaxes(-1, -2)
        nearest = energies.argmin(-1)
        better = np.take_along_axis(energies, nearest[..., None], -1) < energy[..., None]
        return np.where(better, np.take_along_axis(self._z, nearest[..., None], 1), guess)

    def _search(self, u: Array, z: Array) -> tuple[Array, Array]:
        """Damped Gauss-Newton steps (Levenberg and Marquardt) to a mode of p(z | u); the mode and the Jacobian there."""
        z = z.copy()
        g, jacobian = self._sampler.linearise(z)
        energy, damping = self._energy(z, u, g), np.zeros(z.shape[:2])
        active = np.arange(z.shape[1])
        for _ in range(MAX_ITERATIONS):
            here, slope = z[:, active], jacobian[:, active]
            precision = self._curvature(slope)
            residual = (u[:, active] - g[:, active]) / self._sigma**2
            gradient = here - (residual[..., None, :] @ slope)[..., 0, :]
            diagonal = np.einsum("...ii->...i", precision)  # a view: the next line changes `precision`
            diagonal *= 1 + damping[:, active, None]
            step = -np.linalg.solve(precision, gradient[..., None])[..., 0]
            going = (-(step * gradient).sum(-1) > TOLERANCE).any(0)
            # The last step is not worth another Jacobian, and yet a better mean.
            z[:, active[~going]] += step[:, ~going]
            if not going.any():
                break
            active, there = active[going], (here + step)[:, going]
            found, slope = self._sampler.linearise(there)
            reached = self._energy(there, u[:, active], found)
            lower = reached < energy[:, active]
            for kept, new in ((z, there), (g, found), (jacobian, slope), (energy, reached)):
                mask = lower.reshape(*lower.shape, *(1,) * (new.ndim - 2))
                kept[:, active] = np.where(mask, new, kept[:, active])
            now = damping[:, active]
            damping[:, active] = np.where(
                lower, np.where(now < 0.01, 0.0, now / 5), np.maximum(5 * now, 0.05)
            )
        return z, jacobian

    def _curvature(self, jacobian: Array) -> Array:
        """A = I + J' J / sigma^2, (C, n, d, d)."""
        scaled = jacobian / self._sigma[..., None].astype(jacobian.dtype)
        return (scaled.swapaxes(-1, -2) @ scaled).astype(np.float64) + np.eye(jacobian.shape[-1])

    def _energy(self, z: Array, u: Array, g: Array) -> Array:
        """Minus log p(z, u) without constants, (C, n)."""
        return ((z**2).sum(-1) + (((u - g) / self._sigma) ** 2).sum(-1)) / 2


def standard_normal(x: Array) -> Array:
    """Log density of N(0, I) at x (..., d), (...,)."""
    return -(x**2).sum(-1) / 2 - x.shape[-1] / 2 * math.log(2 * math.pi)


def _with_one(u: Array) -> Array:
    return np.concatenate([np.ones((*u.shape[:-1], 1)), u], -1)
