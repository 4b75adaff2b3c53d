"""From the support of a distribution to unconstrained coordinates and back."""

from __future__ import annotations

import numbers
import re
from typing import Any

from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import IdentityTransform

__all__ = ["base_support", "biject_to", "is_identity", "support_name"]


def base_support(support: Any) -> Any:
    """The constraint inside `constraints.independent`."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def support_name(support: Any) -> str:
    """A short stable name of a support: ``"real"``, ``"positive"``, ``"interval"``, ``"simplex"``, ..."""
    support = base_support(support)
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(support).__name__.lstrip("_")).lower()
    if name in ("circular", "softplus_positive"):
        return name
    lower = getattr(support, "lower_bound", None)
    upper = getattr(support, "upper_bound", None)
    if lower is not None and upper is not None:
        return "unit_interval" if _is_number(lower, 0) and _is_number(upper, 1) else "interval"
    if lower is not None and _is_number(lower, 0):
        return "positive"
    return {"greater_than_eq": "greater_than", "real_vector": "real", "real_matrix": "real"}.get(name, name)


def _is_number(bound: Any, number: float) -> bool:
    return isinstance(bound, numbers.Number) and bound == number


def is_identity(transform: Any) -> bool:
    """Whether a transform leaves its argument alone, so that its Jacobian can be skipped."""
    while hasattr(transform, "base_transform"):
        transform = transform.base_transform
    return isinstance(transform, IdentityTransform)
