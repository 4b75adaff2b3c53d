"""A network that stands in for the model's scores, fitted to those that chains evaluated anyway."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pyro_dft.engine_torch.networks import ScoreNetwork
from pyro_dft.recipe.constants import SURROGATE_BATCH, SURROGATE_RATE


class Surrogate:
    """Scores of G posteriors in whitened coordinates: that of a unit Gaussian, and a network's correction.

    Args:
        samplers: G.
        dim: d.
        width: Of the network.
        depth: Of the network.
        dtype: Of its numbers.
        rng: Generator on the device of the target.
    """

    def __init__(
        self, samplers: int, dim: int, width: int, depth: int, dtype: torch.dtype, rng: torch.Generator
    ):
        self.dtype, self.rng = dtype, rng
        self.network = ScoreNetwork(samplers, dim, width, depth, rng=rng, dtype=dtype)
        self._still = torch.zeros((), dtype=dtype, device=rng.device)

    def fit(self, u: np.ndarray, s: np.ndarray, steps: int) -> None:
        """Goes on with the fit to scores s at points u, (G, N, d) each, for so many steps."""
        x, y = (torch.as_tensor(v, dtype=self.dtype, device=self.rng.device) for v in (u, s))
        g, count, d = x.shape
        self.network.requires_grad_(True)
        adam = torch.optim.Adam(self.network.parameters(), lr=SURROGATE_RATE)
        for step in range(steps):
            adam.param_groups[0]["lr"] = SURROGATE_RATE * (
                0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps))
            )
            rows = torch.randint(
                count, (g, SURROGATE_BATCH, 1), generator=self.rng, device=self.rng.device
            ).expand(-1, -1, d)
            square = (self(x.gather(1, rows)) - y.gather(1, rows)).square().sum(-1) / d
            # Far points have huge scores: errors above one count by their size, not its square.
            loss = ((1 + square).sqrt() - 1).mean(1).sum()
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
        self.network.requires_grad_(False)

    def __call__(self, u: Tensor) -> Tensor:
        """Scores (G, n, d) at points (G, n, d)."""
        return self.network(u, self._still)

    @torch.no_grad()
    def scores(self, u: np.ndarray) -> np.ndarray:
        """Scores (G, n, d) at points (G, n, d)."""
        points = torch.as_tensor(u, dtype=self.dtype, device=self.rng.device)
        return self(points).double().cpu().numpy()

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights, by name."""
        return {name: value.detach().cpu().numpy() for name, value in self.network.state_dict().items()}

    def set_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `arrays`."""
        self.network.load_state_dict({name: torch.as_tensor(np.array(v)) for name, v in arrays.items()})
        self.network.requires_grad_(False)
