"""Gaussians that restarts ended at, as NumPy arrays: what the choice between them needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyro_dft import roots
from pyro_dft.recipe.constants import FULL_RANK_LIMIT


@dataclass
class Gaussians:
    """One Gaussian for each of K restarts, on unconstrained R^d.

    Attributes:
        mean: (K, d).
        scale: Square roots of the covariances, (K, d, d), not triangular; standard deviations (K, d) above `FULL_RANK_LIMIT`.
        elbo: Evidence lower bounds, up to the target's own constant, (K,).
        elbo_error: Monte Carlo standard errors of `elbo`, (K,).
    """

    mean: np.ndarray
    scale: np.ndarray
    elbo: np.ndarray
    elbo_error: np.ndarray

    def __getitem__(self, index: np.ndarray) -> Gaussians:
        return Gaussians(self.mean[index], self.scale[index], self.elbo[index], self.elbo_error[index])

    def joined(self, other: Gaussians) -> Gaussians:
        """Those of `other` behind these."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Gaussians(*(np.concatenate(pair) for pair in pairs))

    def replaced(self, index: np.ndarray, other: Gaussians) -> Gaussians:
        """A copy with those of `other` at the places `index`."""

        def put(values: np.ndarray, new: np.ndarray) -> np.ndarray:
            values = np.array(values)
            values[index] = new
            return values

        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Gaussians(*(put(*pair) for pair in pairs))

    def best_of_chains(self, chains: int) -> np.ndarray:
        """Index of the restart with the highest bound among those of each chain, (chains,)."""
        per_chain = self.elbo.reshape(chains, -1)
        return per_chain.argmax(1) + np.arange(chains) * per_chain.shape[1]

    @classmethod
    def none(cls, chains: int, dim: int) -> Gaussians:
        """Stands in where no Gaussian was fitted: bounds of -inf."""
        nothing = np.zeros(chains)
        ones = np.ones((chains, dim))
        scale = roots.matrices(ones) if dim <= FULL_RANK_LIMIT else ones
        return cls(np.zeros((chains, dim)), scale, nothing - np.inf, nothing)
