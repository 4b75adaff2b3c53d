"""See `pyro_dft.models.missing`, for Pyro."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor

from pyro_dft.models.missing import observed_twin


def log_density(sites: Mapping[str, Any], coordinates: Mapping[str, Tensor]) -> Tensor | float:
    """Of latent values of observed rows.

    Args:
        sites: Of a run.
        coordinates: Name -> unconstrained coordinates.
    """
    total: Tensor | float = 0.0
    for name, x in coordinates.items():
        twin = sites.get(observed_twin(name))
        if twin is None or not twin["is_observed"] or twin["mask"] is None:
            continue
        batch = twin["fn"].batch_shape
        if x.shape[: len(batch)] != batch:  # a random part of the rows
            continue
        each = _unmasked(sites[name]["fn"]).log_prob(sites[name]["value"])
        total = total + torch.where(torch.as_tensor(twin["mask"], device=x.device), each, 0.0).sum()
    return total


def _unmasked(fn: Any) -> Any:
    """A distribution without its masks."""
    while isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    return fn
