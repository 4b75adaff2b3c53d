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

import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import constraints, transforms


@dataclass
class Coefficients:
    """Of u = loc + scale y, where u are unconstrained coordinates.

    Attributes:
        loc: Location; broadcasts to u.
        scale: Scale, which broadcasts to u; a lower triangular factor (..., k, k) if ``matrix``.
        matrix: Whether ``scale`` is a matrix.
    """

    loc: Tensor
    scale: Tensor
    matrix: bool = False


def unwrap(fn: Any) -> Any:
    """The distribution inside ``to_event``, ``expand`` and ``mask``."""
    while isinstance(fn, (torch.distributions.Independent, MaskedDistribution, ExpandedDistribution)):
        fn = fn.base_dist
    return fn


def coefficients(fn: Any) -> Coefficients | None:
    """Location and scale of a distribution, with or without ``to_event``, ``expand`` and ``mask``; None where it has none."""
    inner = unwrap(fn)
    for kind, found in _FAMILIES:
        if isinstance(inner, kind):
            return found(inner)
    support = inner.support
    if hasattr(inner, "loc") and support is constraints.real and hasattr(inner, "scale"):
        return Coefficients(inner.loc, inner.scale)
    if (
        hasattr(inner, "loc")
        and _is_real(support)
        and support.event_dim == 1
        and hasattr(inner, "scale_tril")
    ):
        return Coefficients(inner.loc, inner.scale_tril, matrix=True)
    if isinstance(inner, torch.distributions.TransformedDistribution):
        return _transformed(inner)
    return None


def _is_real(support: Any) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real


def _transformed(fn: Any) -> Coefficients | None:
    """Affine transforms of a real family, with or without an exponential or a sigmoid at the end."""
    base = coefficients(fn.base_dist)
    if base is None or base.matrix or not _is_real(unwrap(fn.base_dist).support):
        return None
    loc, scale = base.loc, base.scale
    for i, transform in enumerate(fn.transforms):
        while isinstance(transform, transforms.IndependentTransform):
            transform = transform.base_transform
        if isinstance(transform, transforms.AffineTransform):
            step = torch.as_tensor(transform.scale, dtype=scale.dtype, device=scale.device)
            loc, scale = transform.loc + step * loc, step.abs() * scale
        elif i + 1 < len(fn.transforms) or not isinstance(
            transform, transforms.ExpTransform | transforms.SigmoidTransform
        ):
            return None
    return Coefficients(loc, scale)


def _log_scale(scale: Callable[[Any], Tensor]) -> Callable[[Any], Coefficients]:
    """Where u = log x, or log (x - a) on a support that starts at a: a scale of x is a shift of u."""

    def found(fn: Any) -> Coefficients:
        loc = scale(fn).log()
        return Coefficients(loc, torch.ones_like(loc))

    return found


def log_gamma_moments(concentration: Tensor) -> tuple[Tensor, Tensor]:
    """About the mean and sd of log x, for x ~ Gamma(concentration, 1).

    They are digamma(c) = digamma(c + 1) - 1 / c, with log(c + 1/2) for digamma(c + 1), and the root of trigamma(c), with its
    limits 1 / c^2 and 1 / c for small and large c: elementary functions cost less than those, and nothing has to be exact here.
    """
    c = concentration
    return (c + 0.5).log() - c.reciprocal(), (1 + c).sqrt() / c


def _gamma(fn: Any) -> Coefficients:
    mean, sd = log_gamma_moments(fn.concentration)
    return Coefficients(mean - fn.rate.log(), sd)


def _inverse_gamma(fn: Any) -> Coefficients:
    mean, sd = log_gamma_moments(fn.concentration)
    return Coefficients(fn.rate.log() - mean, sd)


def _beta(fn: Any) -> Coefficients:
    """A beta variable is x / (x + z) for two gamma variables: its logit is the difference of their logarithms."""
    (first, one), (second, other) = (log_gamma_moments(c) for c in (fn.concentration1, fn.concentration0))
    return Coefficients(first - second, (one.square() + other.square()).sqrt())


def _weibull(fn: Any) -> Coefficients:
    """As log x = log scale + log E / concentration, with E ~ Exponential(1)."""
    return Coefficients(fn.scale.log(), fn.concentration.reciprocal())


def _folded(fn: Any) -> Coefficients | None:
    base = coefficients(fn.base_dist)
    if base is None or base.matrix:
        return None
    h = (1 + (base.loc / base.scale).square()).sqrt()
    return Coefficients((base.scale * h).log(), h.reciprocal())


# In this order: a family stands before what it is derived from.
_FAMILIES: tuple[tuple[Any, Callable[[Any], Coefficients | None]], ...] = (
    (torch.distributions.HalfNormal, _log_scale(lambda fn: fn.scale)),
    (torch.distributions.HalfCauchy, _log_scale(lambda fn: fn.scale)),
    (torch.distributions.Pareto, _log_scale(lambda fn: fn.scale)),
    (torch.distributions.Exponential, _log_scale(lambda fn: fn.rate.reciprocal())),
    (torch.distributions.Gamma, _gamma),
    (dist.InverseGamma, _inverse_gamma),
    (torch.distributions.Beta, _beta),
    (torch.distributions.Weibull, _weibull),
    (dist.FoldedDistribution, _folded),
)
