"""Non-centred coordinates of location-scale sites.

A hierarchical site theta ~ Normal(mu, tau) makes a funnel with its own tau. In coordinates y with
theta = mu + tau y the funnel is gone where the data say little about theta. The change of coordinates needs
no help from the model's author: location and scale are read off the distribution at the sample statement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from .structure import unwrap

_FAMILIES = (
    torch.distributions.Normal,
    torch.distributions.StudentT,
    torch.distributions.Laplace,
    torch.distributions.Cauchy,
    torch.distributions.Gumbel,
    dist.Logistic,
)


@dataclass
class LocationScale:
    """x = loc + scale y; the value of the site is x, or exp(x) if ``log``.

    Attributes:
        loc: Location.
        scale: Scale; a lower triangular factor if ``matrix``.
        log: Whether the site is the exponential of a location-scale family.
        matrix: Whether ``scale`` is a matrix.
    """

    loc: Tensor
    scale: Tensor
    log: bool = False
    matrix: bool = False

    def differs(self, other: LocationScale) -> bool:
        """Whether location or scale differ."""
        return not (torch.equal(self.loc, other.loc) and torch.equal(self.scale, other.scale))


def location_scale(fn: Any) -> LocationScale | None:
    """Location and scale of a distribution, or None where it is no location-scale family.

    Normal, StudentT, Laplace, Cauchy, Gumbel, Logistic, LogNormal and MultivariateNormal, with or without
    ``to_event``, ``expand`` and ``mask``.
    """
    fn = unwrap(fn)
    if isinstance(fn, torch.distributions.LogNormal):
        return LocationScale(fn.loc, fn.scale, log=True)
    if isinstance(fn, torch.distributions.MultivariateNormal):
        return LocationScale(fn.loc, fn.scale_tril, matrix=True)
    if isinstance(fn, _FAMILIES):
        return LocationScale(fn.loc, fn.scale)
    return None


def movable_sites(first: Any, second: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of ``names`` whose location or scale differ between two runs at different latent values."""
    found = []
    for name in names:
        if name not in first.nodes or name not in second.nodes:
            continue
        a, b = location_scale(first.nodes[name]["fn"]), location_scale(second.nodes[name]["fn"])
        if a is not None and b is not None and a.differs(b):
            found.append(name)
    return tuple(found)


class NonCentered:
    """The site map value = loc + scale y (exp of that for a log-normal site)."""

    def forward(self, fn: Any, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates -> (value, original unconstrained coordinates, log Jacobian)."""
        family = self._family(fn)
        if family.matrix:
            x = family.loc + (family.scale @ y.unsqueeze(-1)).squeeze(-1)
            scale = family.scale.diagonal(dim1=-2, dim2=-1)
        else:
            x = family.loc + family.scale * y
            scale = family.scale
        log_jacobian = scale.log().expand(x.shape).sum()
        if family.log:
            return x.exp(), x, log_jacobian + x.sum()
        return x, x, log_jacobian

    def inverse(self, fn: Any, value: Tensor) -> Tensor:
        """Value -> coordinates."""
        family = self._family(fn)
        residual = (value.log() if family.log else value) - family.loc
        if not family.matrix:
            return residual / family.scale
        return torch.linalg.solve_triangular(family.scale, residual.unsqueeze(-1), upper=False).squeeze(-1)

    @staticmethod
    def _family(fn: Any) -> LocationScale:
        family = location_scale(fn)
        if family is None:
            raise TypeError(f"{type(unwrap(fn)).__name__} is not a location-scale family")
        return family
