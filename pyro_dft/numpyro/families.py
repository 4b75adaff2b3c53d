"""Where the prior of a site lies, and how wide it is, in the site's unconstrained coordinates.

These are the coefficients of its non-centred coordinates y: u = loc + scale y. Any coefficients give the right posterior, as the
log Jacobian is exact whatever they are; good ones give y a prior that its parents do not move. For location and scale families,
and positive ones with a scale, the prior of y is then the same for all values of the parents. For others, location and width
of the prior are matched, so that it changes its form but not its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints
from numpyro.distributions.transforms import AffineTransform, ExpTransform, SigmoidTransform

from pyro_dft.numpyro.transforms import base_support


@dataclass
class Coefficients:
    """Of u = loc + scale y, where u are unconstrained coordinates.

    Attributes:
        loc: Location; broadcasts to u.
        scale: Scale, which broadcasts to u; a lower triangular factor (..., k, k) if ``kind`` is "matrix".
        kind: "each" coordinate by itself, "matrix" for vectors, "walk" where u are sums of scale y from the first step on.
    """

    loc: Any
    scale: Any
    kind: str = "each"


def unwrap(fn: Any) -> Any:
    """The distribution inside ``to_event``, ``expand`` and ``mask``."""
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn


def coefficients(fn: Any) -> Coefficients | None:
    """Location and scale of a distribution, with or without ``to_event``, ``expand`` and ``mask``; None where it has none."""
    inner = unwrap(fn)
    for kind, found in _FAMILIES:
        if isinstance(inner, kind):
            return found(inner)
    known, support = type(inner).arg_constraints, inner.support
    if base_support(support) is constraints.real and "loc" in known:
        if not support.event_dim and "scale" in known:
            return Coefficients(inner.loc, inner.scale)
        if support.event_dim == 1 and hasattr(inner, "scale_tril"):
            return Coefficients(inner.loc, inner.scale_tril, "matrix")
    if isinstance(inner, dist.TransformedDistribution):
        return _transformed(inner)
    return None


def _transformed(fn: Any) -> Coefficients | None:
    """Affine transforms of a real family, with or without an exponential or a sigmoid at the end."""
    base = coefficients(fn.base_dist)
    if (
        base is None
        or base.kind != "each"
        or base_support(unwrap(fn.base_dist).support) is not constraints.real
    ):
        return None
    loc, scale = base.loc, base.scale
    for i, transform in enumerate(fn.transforms):
        if isinstance(transform, AffineTransform):
            loc, scale = transform.loc + transform.scale * loc, jnp.abs(transform.scale) * scale
        elif i + 1 < len(fn.transforms) or not isinstance(transform, ExpTransform | SigmoidTransform):
            return None
    return Coefficients(loc, scale)


def _log_scale(scale: Callable[[Any], Any]) -> Callable[[Any], Coefficients]:
    """Where u = log x, or log (x - a) on a support that starts at a: a scale of x is a shift of u."""
    return lambda fn: Coefficients(jnp.log(scale(fn)), jnp.ones(()))


def log_gamma_moments(concentration: Any) -> tuple[Array, Array]:
    """About the mean and sd of log x, for x ~ Gamma(concentration, 1).

    They are digamma(c) = digamma(c + 1) - 1 / c, with log(c + 1/2) for digamma(c + 1), and the root of trigamma(c), with its
    limits 1 / c^2 and 1 / c for small and large c: elementary functions cost less than those, and nothing has to be exact here.
    """
    c = jnp.asarray(concentration)
    return jnp.log(c + 0.5) - 1 / c, jnp.sqrt(1 + c) / c


def _gamma(fn: Any) -> Coefficients:
    mean, sd = log_gamma_moments(fn.concentration)
    return Coefficients(mean - jnp.log(fn.rate), sd)


def _inverse_gamma(fn: Any) -> Coefficients:
    mean, sd = log_gamma_moments(fn.concentration)
    return Coefficients(jnp.log(fn.rate) - mean, sd)


def _beta(fn: Any) -> Coefficients:
    """A beta variable is x / (x + z) for two gamma variables: its logit is the difference of their logarithms."""
    (first, one), (second, other) = (log_gamma_moments(c) for c in (fn.concentration1, fn.concentration0))
    return Coefficients(first - second, jnp.hypot(one, other))


def _weibull(fn: Any) -> Coefficients:
    """As log x = log scale + log E / concentration, with E ~ Exponential(1)."""
    return Coefficients(jnp.log(fn.scale), 1 / jnp.asarray(fn.concentration))


def _folded(fn: Any) -> Coefficients | None:
    base = coefficients(fn.base_dist)
    if base is None or base.kind != "each":
        return None
    h = jnp.sqrt(1 + jnp.square(base.loc / base.scale))
    return Coefficients(jnp.log(base.scale * h), 1 / h)


def excess(base: Any, b: Array) -> Array:
    """About how far a family lies above its truncation, in units of its scale.

    Args:
        base: The family, before it is truncated.
        b: (location - truncation) / scale, of either sign.

    Returns:
        h(b), with h(b) / b -> 1 for large b. Normal: (b + sqrt(b^2 + 4)) / 2, the bound of Birnbaum (1942) on the mean, which
        is sharp for b -> -infinity. Exponential tails: the mean of a truncated logistic. Heavier tails: sqrt(1 + b^2), which
        is the median of a truncated Cauchy for b -> -infinity.
    """
    if isinstance(base, dist.Normal):
        return _above(b)
    if isinstance(base, dist.StudentT | dist.Cauchy):
        return jnp.sqrt(1 + jnp.square(b))
    # (1 + exp(-b)) log(1 + exp(b)); for very negative b the limit, 1.
    safe = jnp.maximum(b, -10.0)
    return jnp.where(b < -10, 1.0, (1 + jnp.exp(-safe)) * jnp.logaddexp(0.0, safe))


def _above(b: Array) -> Array:
    root = jnp.sqrt(jnp.square(b) + 4)
    # Two forms of one number: each is exact where the other one takes a difference of large numbers.
    return jnp.where(b > 0, (b + root) / 2, 2 / (root - jnp.minimum(b, 0)))


def _relative_width(b: Array) -> Array:
    """About the sd of the logarithm of the distance from the truncation: 1 / b for large b, 1 for very negative b."""
    return 1 / jnp.sqrt(1 + jnp.square(_above(b)))


def _left(fn: Any) -> Coefficients:
    """Of u = log(x - low)."""
    base = fn.base_dist
    b = (base.loc - fn.low) / base.scale
    return Coefficients(jnp.log(base.scale * excess(base, b)), _relative_width(b))


def _right(fn: Any) -> Coefficients:
    """Of u = log(high - x)."""
    base = fn.base_dist
    b = (fn.high - base.loc) / base.scale
    return Coefficients(jnp.log(base.scale * excess(base, b)), _relative_width(b))


def _both(fn: Any) -> Coefficients:
    """Of u = log(x - low) - log(high - x)."""
    base = fn.base_dist
    width = (fn.high - fn.low) / base.scale
    low, high = (base.loc - fn.low) / base.scale, (fn.high - base.loc) / base.scale

    def inside(b: Array) -> Array:
        """No farther than the width."""
        h = excess(base, b)
        return h * (1 + (h / width) ** 4) ** -0.25

    loc = jnp.log(inside(low) / inside(high))
    return Coefficients(loc, _relative_width(low) + _relative_width(high))


# In this order: a family stands before what it is derived from.
_FAMILIES: tuple[tuple[Any, Callable[[Any], Coefficients | None]], ...] = (
    (dist.HalfNormal, _log_scale(lambda fn: fn.scale)),
    (dist.HalfCauchy, _log_scale(lambda fn: fn.scale)),
    (dist.Levy, _log_scale(lambda fn: fn.scale)),
    (dist.Pareto, _log_scale(lambda fn: fn.scale)),
    (dist.Exponential, _log_scale(lambda fn: 1 / fn.rate)),
    (dist.Gompertz, _log_scale(lambda fn: 1 / fn.rate)),
    (dist.Gamma, _gamma),
    (dist.InverseGamma, _inverse_gamma),
    (dist.Beta, _beta),
    (dist.Weibull, _weibull),
    (dist.FoldedDistribution, _folded),
    (dist.LeftTruncatedDistribution, _left),
    (dist.RightTruncatedDistribution, _right),
    (dist.TwoSidedTruncatedDistribution, _both),
    (dist.GaussianRandomWalk, lambda fn: Coefficients(jnp.zeros(()), jnp.expand_dims(fn.scale, -1), "walk")),
    (dist.CAR, lambda fn: Coefficients(fn.loc, jnp.expand_dims(fn.conditional_precision, -1) ** -0.5)),
    (dist.ZeroSumNormal, lambda fn: Coefficients(jnp.zeros(()), fn.scale)),
)
