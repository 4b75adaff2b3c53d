"""Samplers and targets whose objectives are known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_dft.engine_torch.objectives import Distance

SQUARED = Distance()


def uniform(rng: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=rng, dtype=torch.float64)


def flat(parts) -> Tensor:
    return torch.cat([p.reshape(-1) for p in parts])


DISTANCES = [SQUARED, Distance("pseudo-huber", 1.0), Distance("pseudo-huber", 3.0)]
