"""See `pyro_dft.models.missing`, for NumPyro."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from numpyro.distributions import MaskedDistribution

from pyro_dft.models.missing import observed_twin


def log_density(sites: Mapping[str, Any], coordinates: Mapping[str, Any]) -> Any:
    """Of latent values of observed rows.

    Args:
        sites: Of a run.
        coordinates: Name -> unconstrained coordinates.
    """
    total: Any = 0.0
    for name, x in coordinates.items():
        twin = sites.get(observed_twin(name))
        if twin is None or not twin["is_observed"] or not isinstance(twin["fn"], MaskedDistribution):
            continue
        batch = twin["fn"].batch_shape
        if jnp.shape(x)[: len(batch)] != batch:  # a random part of the rows
            continue
        each = _unmasked(sites[name]["fn"]).log_prob(sites[name]["value"])
        total = total + jnp.where(_mask(twin["fn"]), each, 0.0).sum()
    return total


def _unmasked(fn: Any) -> Any:
    """A distribution without its masks."""
    while isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    return fn


def _mask(fn: Any) -> Any:
    """Where all masks of a distribution hold."""
    mask: Any = True
    while isinstance(fn, MaskedDistribution):
        mask, fn = jnp.logical_and(mask, fn._mask), fn.base_dist
    return mask
