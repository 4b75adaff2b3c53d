"""The fitted sampler as a Pyro guide, for `Predictive`."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

# Which draw is served is a sample site itself: a vectorised `Predictive` then gets many draws and not one
# repeated.
POSITION = "_dft_position"


class DrawsGuide:
    """Samples all latent sites jointly: each call serves one of the given draws, chosen at random.

    Within an outer plate, as `Predictive(parallel=True)` adds, a whole batch of draws is served. The
    arguments of a call are
    ignored: the draws are those of the data that the sampler was trained on.

    Args:
        draws: Constrained draws of the latent sites, name -> (n, *site).
    """

    def __init__(self, draws: dict[str, Tensor]):
        self._draws = draws
        self._count = len(next(iter(draws.values())))

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Site name -> one draw, or a batch of them within an outer plate."""
        device = next(iter(self._draws.values())).device
        unit = dist.Uniform(torch.zeros((), device=device), torch.ones((), device=device))
        position = pyro.sample(POSITION, unit, infer={"is_auxiliary": True})
        index = (position * self._count).long().clamp(max=self._count - 1)
        return {
            name: pyro.sample(name, dist.Delta(draws[index], event_dim=draws.dim() - 1))
            for name, draws in self._draws.items()
        }
