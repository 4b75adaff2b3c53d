"""Non-centred coordinates of sites whose prior is moved or stretched by other sites.

A hierarchical site theta ~ Normal(mu, tau) makes a funnel with its own tau. In coordinates y with
theta = mu + tau y the funnel is gone where the data say little about theta. The change of coordinates needs no
help from the model's author: location and scale are read off the distribution at the sample statement (`families.py`).

In between lie partly non-centred coordinates, of an amount a (Gorinova, Moore and Hoffman 2020, "Automatic reparameterisation of
probabilistic programs", with a = 1 - lambda): u = loc + scale^a (y - (1 - a) loc), the non-centred form for a = 1 and the model's
own for a = 0. Where the data say much about theta, a is small.
"""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from pyro_dft.numpyro.families import Coefficients, coefficients, unwrap
from pyro_dft.numpyro.transforms import base_support, biject_to

# Families whose density is one of (value - loc) / scale, and asks nothing else of these two.
_STANDARDISED = (dist.Normal, dist.StudentT, dist.Cauchy, dist.Laplace, dist.Logistic, dist.Gumbel)


def movable(fn: Any, shape: tuple[int, ...]) -> bool:
    """Whether a distribution has non-centred coordinates.

    Args:
        fn: Distribution.
        shape: Of the site's unconstrained coordinates.
    """
    inner = unwrap(fn)
    if coefficients(inner) is not None:
        return True
    if not isinstance(inner, dist.TransformedDistribution) or coefficients(inner.base_dist) is None:
        return False
    # Its coordinates are those of the base distribution, which have to be as many.
    event = tuple(inner.base_dist.event_shape)
    return shape[len(shape) - len(event) :] == event


def parameters(fn: Any) -> Array:
    """All coefficients of a distribution in one vector."""
    found = coefficients(fn)
    if found is None:
        inner = unwrap(fn)
        parts = jax.tree.leaves(inner.transforms)
        return jnp.concatenate(
            [parameters(inner.base_dist), *(jnp.ravel(jnp.asarray(part)) for part in parts)]
        )
    return jnp.concatenate([jnp.ravel(jnp.asarray(found.loc)), jnp.ravel(jnp.asarray(found.scale))])


def forward(fn: Any, y: Array, amount: Any = 1.0) -> tuple[Array, Array, Array]:
    """Coordinates -> (value, original unconstrained coordinates, log Jacobian, summed over events or not).

    Args:
        fn: Distribution at the sample statement.
        y: Coordinates, in the unconstrained shape of the site.
        amount: From 0, the model's own coordinates, to 1, the non-centred ones.
    """
    found = coefficients(fn)
    if found is None:
        return _through(fn, y, amount)
    x, log_jacobian = _affine(found, y, amount)
    transform = _bijection(fn, found)
    value = transform(x)
    part = jnp.asarray(transform.log_abs_det_jacobian(x, value))
    return value, x, over_events(log_jacobian, jnp.ndim(part)) + part


def inverse(fn: Any, value: Array, amount: Any = 1.0) -> Array:
    """Value -> coordinates."""
    found = coefficients(fn)
    if found is None:
        inner = unwrap(fn)
        for transform in reversed(inner.transforms):
            value = transform.inv(value)
        return inverse(inner.base_dist, value, amount)
    return _affine_inverse(found, _bijection(fn, found).inv(value), amount)


def unrounded(fn: Any, y: Array, value: Array, amount: Any = 1.0) -> Array | float:
    """Log density at the exact value less that at the rounded one, summed over events; zero in exact arithmetic.

    A value loc + scale y is rounded to the digits of its location. Where the scale is below these, the site's own density would
    see nothing of y: the neck of a funnel would have a false density, and no scores. Only for the usual families on
    the real line, where they are not masked; others have none.

    Args:
        fn: Distribution at the sample statement.
        y: Coordinates.
        value: What `forward` makes of them.
        amount: See `forward`.
    """
    inner = unwrap(fn)
    if type(inner) not in _STANDARDISED or _masked(fn):
        return 0.0
    loc, scale = jnp.asarray(inner.loc), jnp.asarray(inner.scale)
    standard = copy.copy(inner)
    standard.loc, standard.scale = jnp.zeros_like(loc), jnp.ones_like(scale)
    whole = isinstance(amount, float) and amount == 1
    exact = y if whole else scale ** (amount - 1) * (y - (1 - amount) * loc)
    difference = standard.log_prob(exact) - standard.log_prob((value - loc) / scale)
    return over_events(jnp.where(jnp.isfinite(difference), difference, 0.0), len(fn.batch_shape))


def over_events(log_jacobian: Array, batch_dims: int) -> Array:
    """A log density or log Jacobian with at most so many dimensions; the others, those of events, are summed."""
    extra = jnp.ndim(log_jacobian) - batch_dims
    return log_jacobian.sum(tuple(range(-extra, 0))) if extra > 0 else log_jacobian


def _masked(fn: Any) -> bool:
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution):
        fn = fn.base_dist
    return isinstance(fn, dist.MaskedDistribution)


def _bijection(fn: Any, found: Coefficients) -> Any:
    """Unconstrained coordinates -> values; by itself for each coordinate, where ``to_event`` has only joined them."""
    return biject_to(base_support(fn.support) if found.kind == "each" else fn.support)


def _affine(found: Coefficients, y: Array, amount: Any) -> tuple[Array, Array]:
    """(u, log Jacobian of each coordinate)."""
    loc, scale = found.loc, found.scale
    whole = isinstance(amount, float) and amount == 1
    if not whole and found.kind != "walk":
        y = y - (1 - amount) * loc
    if found.kind == "matrix":
        factor = scale if whole else _partial(scale, amount)
        x = loc + (factor @ y[..., None])[..., 0]
        diagonal = jnp.diagonal(factor, axis1=-2, axis2=-1)
        return x, jnp.broadcast_to(jnp.log(diagonal), x.shape)
    scale = scale if whole else jnp.asarray(scale) ** amount
    x = jnp.cumsum(scale * y, -1) if found.kind == "walk" else loc + scale * y
    return x, jnp.broadcast_to(jnp.log(scale), x.shape)


def _affine_inverse(found: Coefficients, x: Array, amount: Any) -> Array:
    loc, scale = found.loc, found.scale
    whole = isinstance(amount, float) and amount == 1
    if found.kind == "walk":
        return jnp.diff(x, prepend=0.0) / (scale if whole else jnp.asarray(scale) ** amount)
    if found.kind == "matrix":
        factor = scale if whole else _partial(scale, amount)
        factor = jnp.broadcast_to(factor, (*x.shape, x.shape[-1]))
        y = jax.scipy.linalg.solve_triangular(factor, (x - loc)[..., None], lower=True)[..., 0]
    else:
        y = (x - loc) / (scale if whole else jnp.asarray(scale) ** amount)
    return y if whole else y + (1 - amount) * loc


def _partial(factor: Array, amount: Any) -> Array:
    """A triangular factor D R, with R that of the correlations, on the way from 1 to itself: D^a (a R + (1 - a) 1)."""
    sd = jnp.linalg.norm(factor, axis=-1, keepdims=True)
    return sd**amount * (amount * factor / sd + (1 - amount) * jnp.eye(factor.shape[-1], dtype=factor.dtype))


def _through(fn: Any, y: Array, amount: Any) -> tuple[Array, Array, Array]:
    """The coordinates of a transformed distribution are those of its base."""
    inner = unwrap(fn)
    value, _, log_jacobian = forward(inner.base_dist, y, amount)
    batch_dims = jnp.ndim(y) - len(inner.base_dist.event_shape)
    total = over_events(log_jacobian, batch_dims)
    for transform in inner.transforms:
        x, value = value, transform(value)
        total = total + over_events(jnp.asarray(transform.log_abs_det_jacobian(x, value)), batch_dims)
    return value, biject_to(fn.support).inv(value), total
