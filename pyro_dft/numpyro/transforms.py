"""From the support of a distribution to unconstrained coordinates and back."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.transforms import (
    IdentityTransform,
    IndependentTransform,
    StickBreakingTransform,
    Transform,
)

from pyro_dft.models.circular import COPIES, SPREAD

# Supports with transforms of their own, see `pyro_dft.models.supports.support_name`.
APART = ("circular", "softplus_positive")


class StickBreaking(StickBreakingTransform):
    """NumPyro's coordinates of a simplex, computed in logarithms.

    There the rest of the stick is a product of rounded factors, and the log Jacobian has logarithms of values that were clipped:
    in single precision the density is flat from a coordinate of -87 on, and another one above 16. Sparse simplices, as under
    Dirichlet(0.1), get there.
    """

    @staticmethod
    def _logs(x: Any) -> tuple[Any, Any]:
        """Logarithms of all shares (..., K), and of what each break leaves of the stick (..., K - 1)."""
        x = x - jnp.log(jnp.arange(x.shape[-1], 0, -1, dtype=x.dtype))
        left = jax.nn.log_sigmoid(-x)
        none = jnp.zeros((*x.shape[:-1], 1), x.dtype)
        before = jnp.concatenate([none, jnp.cumsum(left, -1)], -1)
        return before + jnp.concatenate([jax.nn.log_sigmoid(x), none], -1), left

    def __call__(self, x: Any) -> Any:
        """Coordinates (..., K - 1) -> shares (..., K), all of them positive."""
        return jnp.exp(jnp.maximum(self._logs(x)[0], math.log(4 * jnp.finfo(x.dtype).tiny)))

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Any:
        """Of the exact shares."""
        shares, left = self._logs(x)
        return (shares[..., :-1] + left).sum(-1)


def biject_to(support: Any) -> Transform:
    """From unconstrained coordinates to a support: NumPyro's registry, its stick-breaking computed as here.

    Raises:
        NotImplementedError: NumPyro has no transform for the support.
    """
    if isinstance(support, constraints.independent):
        return IndependentTransform(biject_to(support.base_constraint), support.reinterpreted_batch_ndims)
    found = dist.biject_to(support)
    # Not one that a user has registered in its place.
    return StickBreaking() if type(found) is StickBreakingTransform else found


class Wrapped(Transform):
    """Real coordinates -> angles in [-pi, pi), with the share of each copy in the place of the Jacobian.

    See `pyro_dft.models.circular`. It is no bijection: the inverse gives the coordinate of an angle that is nearest to the
    centre.

    Args:
        centre: m, a number or of the shape of the site.
    """

    domain = constraints.real
    codomain = constraints.real

    def __init__(self, centre: Any = 0.0) -> None:
        self.centre = np.asarray(centre)

    def __call__(self, x: Any) -> Any:
        """Coordinates -> angles."""
        return jnp.remainder(x + math.pi, 2 * math.pi) - math.pi

    def _inverse(self, y: Any) -> Any:
        centre = self.centre.astype(jnp.result_type(y))
        return centre + self(y - centre)

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Any:
        """Log shares of the copies."""
        t = x - self.centre.astype(jnp.result_type(x))
        copies = self(t)[..., None] + 2 * math.pi * jnp.arange(-COPIES, COPIES + 1, dtype=t.dtype)
        return -jnp.square(t) / (2 * SPREAD**2) - jax.nn.logsumexp(-jnp.square(copies) / (2 * SPREAD**2), -1)

    def tree_flatten(self) -> Any:
        """As NumPyro's transforms: no leaves."""
        return (), ((), {"centre": self.centre})

    def eq(self, other: Any, static: bool = False) -> bool:
        """Whether another transform is the same."""
        return isinstance(other, Wrapped) and np.array_equal(self.centre, other.centre)


def base_support(support: Any) -> Any:
    """The constraint inside `constraints.independent`."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def is_identity(transform: Any) -> bool:
    """Whether a transform leaves its argument alone, so that its Jacobian can be skipped."""
    while hasattr(transform, "base_transform"):
        transform = transform.base_transform
    return isinstance(transform, IdentityTransform)


def angle_of(fn: Any) -> str:
    """What a distribution may be: "angle" on a circular support, "improper" where it is flat on the real line, or ""."""
    support = base_support(fn.support)
    if support is constraints.circular:
        return "angle"
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        fn = fn.base_dist
    flat = isinstance(fn, dist.ImproperUniform) and support is constraints.real
    return "improper" if flat else ""
