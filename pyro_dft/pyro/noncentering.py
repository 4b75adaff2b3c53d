"""Non-centred coordinates of sites whose prior is moved or stretched by other sites.

A hierarchical site theta ~ Normal(mu, tau) makes a funnel with its own tau. In coordinates y with
theta = mu + tau y the funnel is gone where the data say little about theta. The change of coordinates needs
no help from the model's author: location and scale are read off the distribution at the sample statement (`families.py`).

In between lie partly non-centred coordinates, of an amount a (Gorinova, Moore and Hoffman 2020, "Automatic reparameterisation of
probabilistic programs", with a = 1 - lambda): u = loc + scale^a (y - (1 - a) loc), the non-centred form for a = 1 and the model's
own for a = 0. Where the data say much about theta, a is small.
"""

from __future__ import annotations

import copy
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor

from .families import Coefficients, coefficients, unwrap
from .transforms import bijection

# Families whose density is one of (value - loc) / scale, and asks nothing else of these two.
_STANDARDISED = (dist.Normal, dist.StudentT, dist.Cauchy, dist.Laplace, dist.Logistic, dist.Gumbel)


def movable_sites(first: Any, second: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of ``names`` whose location or scale differ between two runs at different latent values."""
    found = []
    for name in names:
        if name not in first.nodes or name not in second.nodes:
            continue
        a, b = (_parameters(run.nodes[name]["fn"]) for run in (first, second))
        same = len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        if a and b and not same:
            found.append(name)
    return tuple(found)


def _parameters(fn: Any) -> list[Tensor]:
    """All coefficients of a distribution; none where it has no non-centred coordinates."""
    found, inner = coefficients(fn), unwrap(fn)
    if found is not None:
        return [found.loc, found.scale]
    if not isinstance(inner, torch.distributions.TransformedDistribution):
        return []
    base = coefficients(inner.base_dist)
    # Its coordinates are those of the base distribution, which have to be as many.
    x = torch.zeros(inner.base_dist.batch_shape + inner.base_dist.event_shape)
    if base is None or inner.transforms and not _one_to_one(inner, x):
        return []
    own = [value for step in inner.transforms for value in vars(step).values() if isinstance(value, Tensor)]
    return [base.loc, base.scale, *own]


def _one_to_one(fn: Any, x: Tensor) -> bool:
    """Whether the transforms of a distribution are bijections, to as many coordinates as its support has."""
    if not all(transform.bijective for transform in fn.transforms):
        return False
    shape = x.shape
    for transform in fn.transforms:
        shape = transform.forward_shape(shape)
    try:
        return bijection(fn.support).inverse_shape(shape) == x.shape
    except NotImplementedError:
        return False


def _masked(fn: Any) -> bool:
    while isinstance(fn, torch.distributions.Independent | ExpandedDistribution):
        fn = fn.base_dist
    return isinstance(fn, MaskedDistribution)


class NonCentered:
    """The site map u = loc + scale^a (y - (1 - a) loc), where u are unconstrained coordinates.

    Args:
        amount: a, from 0 for the model's own coordinates to 1.
    """

    def __init__(self, amount: float | Tensor = 1.0) -> None:
        self.amount = amount

    def forward(self, fn: Any, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates -> (value, original unconstrained coordinates, log Jacobian)."""
        found = coefficients(fn)
        if found is None:
            return self._through(fn, y)
        loc, scale = found.loc, self._scale(found)
        if not self._whole:
            y = y - (1 - self.amount) * loc
        if found.matrix:
            x = loc + (scale @ y.unsqueeze(-1)).squeeze(-1)
            scale = scale.diagonal(dim1=-2, dim2=-1)
        else:
            x = loc + scale * y
        transform = bijection(fn.support)
        value = transform(x)
        log_jacobian = scale.log().expand(x.shape).sum()
        return value, x, log_jacobian + transform.log_abs_det_jacobian(x, value).sum()

    def unrounded(self, fn: Any, y: Tensor, value: Tensor) -> Tensor | float:
        """Log density at the exact value less that at the rounded one; zero in exact arithmetic.

        A value loc + scale y is rounded to the digits of its location. Where the scale is below these, the site's own density
        would see nothing of y: the neck of a funnel would have a false density, and no scores. Only for the usual
        families on the real line, where they are not masked; others have none.

        Args:
            fn: Distribution at the sample statement.
            y: Coordinates.
            value: What `forward` makes of them.
        """
        inner = unwrap(fn)
        if type(inner) not in _STANDARDISED or _masked(fn):
            return 0.0
        loc, scale = inner.loc, inner.scale
        standard = copy.copy(inner)
        standard.loc, standard.scale = torch.zeros_like(loc), torch.ones_like(scale)
        standard._validate_args = False  # a check on values stops a batch of points
        exact = y if self._whole else scale ** (self.amount - 1) * (y - (1 - self.amount) * loc)
        difference = standard.log_prob(exact) - standard.log_prob((value - loc) / scale)
        return torch.where(torch.isfinite(difference), difference, 0.0).sum()

    def inverse(self, fn: Any, value: Tensor) -> Tensor:
        """Value -> coordinates."""
        found = coefficients(fn)
        if found is None:
            inner = unwrap(fn)
            for transform in reversed(inner.transforms):
                value = transform.inv(value)
            return self.inverse(inner.base_dist, value)
        scale, residual = self._scale(found), bijection(fn.support).inv(value) - found.loc
        if found.matrix:
            y = torch.linalg.solve_triangular(scale, residual.unsqueeze(-1), upper=False).squeeze(-1)
        else:
            y = residual / scale
        return y if self._whole else y + (1 - self.amount) * found.loc

    @property
    def _whole(self) -> bool:
        return isinstance(self.amount, float) and self.amount == 1

    def _scale(self, found: Coefficients) -> Tensor:
        """scale^a; of a triangular factor D R, with R that of the correlations, D^a (a R + (1 - a) 1)."""
        if self._whole:
            return found.scale
        if not found.matrix:
            return found.scale**self.amount
        factor = found.scale
        sd = factor.square().sum(-1, keepdim=True).sqrt()
        unit = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        return sd**self.amount * (self.amount * factor / sd + (1 - self.amount) * unit)

    def _through(self, fn: Any, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The coordinates of a transformed distribution are those of its base."""
        inner = unwrap(fn)
        value, _, log_jacobian = self.forward(inner.base_dist, y)
        for transform in inner.transforms:
            x, value = value, transform(value)
            log_jacobian = log_jacobian + transform.log_abs_det_jacobian(x, value).sum()
        return value, bijection(fn.support).inv(value), log_jacobian
