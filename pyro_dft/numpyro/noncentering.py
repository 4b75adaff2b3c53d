"""Non-centred coordinates of location-scale sites.

A hierarchical site theta ~ Normal(mu, tau) makes a funnel with its own tau. In coordinates y with
theta = mu + tau y the funnel is gone where the data say little about theta. The change of coordinates needs no
help from the model's author: location and scale are read off the distribution at the sample statement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

_FAMILIES = (dist.Normal, dist.StudentT, dist.Laplace, dist.Cauchy, dist.Gumbel, dist.Logistic)


@dataclass
class LocationScale:
    """x = loc + scale y; the value of the site is x, or exp(x) if ``log``.

    Attributes:
        loc: Location, broadcast to the shape of the site.
        scale: Scale; a lower triangular factor if ``matrix``.
        log: Whether the site is the exponential of a location-scale family.
        matrix: Whether ``scale`` is a matrix.
    """

    loc: Array
    scale: Array
    log: bool = False
    matrix: bool = False


def unwrap(fn: Any) -> Any:
    """The distribution inside ``to_event``, ``expand`` and ``mask``."""
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn


def location_scale(fn: Any) -> LocationScale | None:
    """Location and scale of a distribution, or None where it is no location-scale family.

    Normal, StudentT, Laplace, Cauchy, Gumbel, Logistic, LogNormal and MultivariateNormal, with or without
    ``to_event``, ``expand`` and ``mask``.
    """
    inner, shape = unwrap(fn), fn.shape()
    if isinstance(inner, dist.MultivariateNormal):
        matrix = jnp.broadcast_to(inner.scale_tril, (*shape, shape[-1]))
        return LocationScale(jnp.broadcast_to(inner.loc, shape), matrix, matrix=True)
    log = isinstance(inner, dist.LogNormal)
    if not log and not isinstance(inner, _FAMILIES):
        return None
    # A distribution that `expand` made wider in the middle needs its parameters there too.
    if len(shape) != len(inner.batch_shape):
        inner_shape = (1,) * (len(shape) - len(inner.batch_shape)) + tuple(inner.batch_shape)
    else:
        inner_shape = tuple(inner.batch_shape)

    def wide(value: Any) -> Array:
        own = jnp.broadcast_to(value, inner.batch_shape).reshape(inner_shape)
        return jnp.broadcast_to(own, shape)

    return LocationScale(wide(inner.loc), wide(inner.scale), log=log)


def forward(fn: Any, y: Array) -> tuple[Array, Array, Array]:
    """Coordinates -> (value, original unconstrained coordinates, log Jacobian of each element)."""
    family = _family(fn)
    if family.matrix:
        x = family.loc + (family.scale @ y[..., None])[..., 0]
        log_jacobian = jnp.log(jnp.diagonal(family.scale, axis1=-2, axis2=-1))
    else:
        x = family.loc + family.scale * y
        log_jacobian = jnp.broadcast_to(jnp.log(family.scale), x.shape)
    if family.log:
        return jnp.exp(x), x, log_jacobian + x
    return x, x, log_jacobian


def inverse(fn: Any, value: Array) -> Array:
    """Value -> coordinates."""
    family = _family(fn)
    residual = (jnp.log(value) if family.log else value) - family.loc
    if not family.matrix:
        return residual / family.scale
    return jax.scipy.linalg.solve_triangular(family.scale, residual[..., None], lower=True)[..., 0]


def _family(fn: Any) -> LocationScale:
    family = location_scale(fn)
    if family is None:
        raise TypeError(f"{type(unwrap(fn)).__name__} is not a location-scale family")
    return family
