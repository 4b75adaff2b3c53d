"""Log densities at a sampler's draws against those at states of the posterior: errors that no coordinate shows, in NumPy.

A Gaussian with the right means, sds and tails can be wrong jointly, where scales depend on other coordinates say, or two
coordinates make a ring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.floating[Any]]

# Draws count as at most this much wrong (see `Joint.size`), and single draws as so many sds too low: where they are worse than
# that, it says nothing more.
LARGEST, FARTHEST = 0.7, 30.0
# More than this (nats for each coordinate, surely) is told where such draws are served.
LIMIT = 0.1
# Of a difference that is sure, in standard errors.
SURE = 1.96


@dataclass(frozen=True)
class Joint:
    """How far the log densities at draws of samplers are from those at states of their chains.

    Attributes:
        difference: Mean log density at the states less that at the draws (nats), of each sampler, (C K,).
        standard_error: Of `difference`, if the draws were right, (C K,).
        weights: How often each of the K samplers of a chain serves, (C, K).
        dim: Coordinates. Gaussians whose sds are a few per cent too large in each of them differ by that share of `dim` nats.
    """

    difference: Array
    standard_error: Array
    weights: Array
    dim: int

    @classmethod
    def of(cls, draws: ArrayLike, states: ArrayLike, weights: Array, dim: int) -> Joint:
        """Of log densities (C K, n) at draws, and (C K, ...) at states."""
        found, goal = np.asarray(draws, float), np.asarray(states, float)
        goal = goal.reshape(len(goal), -1)
        # The sd of the states: by that of the draws a few that are far out would hide. Zero densities agree with nothing.
        with np.errstate(invalid="ignore"):
            mean, sd = goal.mean(1), goal.std(1)
            lowest = (mean - FARTHEST * sd)[:, None]
            difference = mean - np.where(found >= lowest, found, lowest).mean(1)
        return cls(difference, sd / np.sqrt(found.shape[1]), weights, dim)

    def agrees(self, errors: float) -> bool:
        """Whether no sampler is wrong by more than so many standard errors."""
        with np.errstate(invalid="ignore"):
            return bool((np.abs(self.difference) <= errors * self.standard_error).all())

    @property
    def size(self) -> Array:
        """The part of the differences that chance does not explain, in nats for each coordinate, at most `LARGEST`; (C,)."""
        squared = self.difference**2 - self.standard_error**2
        each = np.sqrt(np.maximum(np.nan_to_num(squared, nan=np.inf), 0.0)) / self.dim
        return self._of_chains(np.minimum(each, LARGEST))

    @property
    def sure(self) -> Array:
        """The part that is sure, likewise, (C,)."""
        low = (np.abs(self.difference) - SURE * self.standard_error) / self.dim
        return self._of_chains(np.clip(np.nan_to_num(low, nan=np.inf), 0.0, LARGEST))

    def _of_chains(self, each: Array) -> Array:
        return np.asarray((each.reshape(self.weights.shape) * self.weights).sum(1))
