"""The fitted sampler as a Pyro guide, for `Predictive`."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

# Which draw is served goes through a sample site: a vectorised `Predictive` then gets different draws and not one repeated.
INDEX = "_dft_draw"


class DrawsGuide:
    """Samples all latent sites jointly: each call serves one of the fit's (refined) draws, chosen at random.

    Within an outer plate, as `Predictive(parallel=True)` adds, a whole batch of draws is served.

    Args:
        draws: Constrained draws of the latent sites, name -> (n, *site).
    """

    def __init__(self, draws: dict[str, Tensor]):
        self._draws = draws
        self._count = len(next(iter(draws.values())))

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        like = next(iter(self._draws.values()))
        unit = dist.Uniform(torch.zeros((), device=like.device), torch.ones((), device=like.device))
        position = pyro.sample(INDEX, unit, infer={"is_auxiliary": True})
        index = (position * self._count).long().clamp(max=self._count - 1)
        return {
            name: pyro.sample(name, dist.Delta(draws[index], event_dim=draws.dim() - 1))
            for name, draws in self._draws.items()
        }
