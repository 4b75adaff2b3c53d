"""Multivariate Student-t densities: proposals with heavier tails than a Gaussian's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_dft import roots

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class StudentT:
    """x = mean + root t, with t a standard multivariate Student-t.

    Attributes:
        mean: (d,).
        root: Square root of its scale matrix, any of `pyro_dft.roots`.
        freedom: Degrees of freedom.
    """

    mean: Array
    root: Array
    freedom: float

    @classmethod
    def of_draws(cls, draws: Array, mean: Array, root: Array, freedom: float) -> StudentT:
        """Mean and covariance of draws (n, d), the latter shrunk as if d + 2 draws were N(mean, root root').

        Where the root has directions, its covariance is left as it is.
        """
        if roots.has_directions(root, 2):
            return cls(draws.mean(0), root, freedom)
        whitened = roots.whitened(root, draws - mean)
        n, dim = whitened.shape
        if root.ndim == 1:
            variance = (n * whitened.var(0) + dim + 2) / (n + dim + 2)
            return cls(draws.mean(0), root * np.sqrt(variance), freedom)
        covariance = np.cov(whitened.T, ddof=0).reshape(dim, dim)
        shrunk = (n * covariance + (dim + 2) * np.eye(dim)) / (n + dim + 2)
        return cls(draws.mean(0), root @ np.linalg.cholesky(shrunk), freedom)

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """(n, d)."""
        spread = np.sqrt(rng.chisquare(self.freedom, (n, 1)) / self.freedom)
        return self.mean + roots.coloured(self.root, rng.standard_normal((n, len(self.mean))) / spread)

    def log_density(self, x: Array) -> Array:
        """(n, d) -> (n,)."""
        dim, nu = len(self.mean), self.freedom
        squared = np.square(roots.whitened(self.root, x - self.mean)).sum(1)
        constant = math.lgamma((nu + dim) / 2) - math.lgamma(nu / 2) - dim / 2 * math.log(nu * math.pi)
        return constant - roots.log_det(self.root, self.mean) - (nu + dim) / 2 * np.log1p(squared / nu)
