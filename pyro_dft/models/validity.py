"""Are parameters and data where their distributions allow them? Written for torch and jax at once.

Potentials are evaluated without the frameworks' own checks, which look at numbers and so can be neither batched nor compiled. A
distribution with a parameter out of its range often has a finite density all the same, as a Beta distribution with a negative
concentration has; it is no distribution then. So the finished fit is looked at once, at some of its draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

# Draws at which parameters and data are checked.
DRAWS = 64
# How far out (relative to 1 + |bound|) a number may be by rounding.
ROUNDING = 1e-5
# Constraints whose bounds do not hold for single numbers.
_JOINT = ("_Multinomial", "_Circular")
# Between the name of a site and that of its parameter.
SEPARATOR = ": "


def outside(value: Any, constraint: Any) -> Any | None:
    """Which numbers of an array are surely outside of a constraint's bounds, or no integers where these are wanted.

    Constraints that tie several numbers together (a simplex, a positive definite matrix) are left out: rounding breaks
    them, and where they are badly broken the density is not finite.

    Returns:
        A boolean array of the value's shape; None where the constraint sets no bounds.
    """
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    kind = type(constraint).__name__
    if kind in _JOINT:
        return None
    binary = kind == "_Boolean"
    low = 0 if binary else getattr(constraint, "lower_bound", None)
    high = 1 if binary else getattr(constraint, "upper_bound", None)
    if low is None and high is None:
        return None
    bad = value != value  # False, except where there is no number
    if low is not None:
        bad = bad | (value < low - ROUNDING * (1 + abs(low)))
    if high is not None:
        bad = bad | (value > high + ROUNDING * (1 + abs(high)))
    if binary or kind.startswith("_Integer"):
        rest = value % 1
        bad = bad | ((rest > ROUNDING) & (rest < 1 - ROUNDING))
    return bad


def _parts(fn: Any) -> Iterator[Any]:
    """A distribution and those that it is made of."""
    yield fn
    for name in ("base_dist", "component_distribution", "mixing_distribution"):
        inner = getattr(fn, name, None)
        if inner is not None:
            yield from _parts(inner)


def parameters(fn: Any) -> Iterator[tuple[str, Any]]:
    """Names of parameters with bounds, and which of their numbers are outside of them."""
    for part in _parts(fn):
        constraints = getattr(part, "arg_constraints", None)
        for name, constraint in constraints.items() if isinstance(constraints, Mapping) else ():
            derived = "lazy" in type(getattr(type(part), name, None)).__name__
            if (derived and name not in vars(part)) or not hasattr(part, name):
                continue
            value = getattr(part, name)
            bad = outside(value, constraint) if hasattr(value, "shape") else None
            if bad is not None:
                yield name, bad


def unmasked(bad: Any, fn: Any, mask: Any = None) -> Any:
    """Drops what the masks of a distribution, and one around it, cover."""
    bad, inner = _without(bad, mask, fn.event_dim), fn
    while inner is not None:
        bad, inner = (
            _without(bad, getattr(inner, "_mask", None), fn.event_dim),
            getattr(inner, "base_dist", None),
        )
    return bad


def _without(bad: Any, mask: Any, event_dim: int) -> Any:
    """Parameters may have event dimensions, masks have none."""
    if mask is None or mask is True:
        return bad
    if mask is False:
        return bad & False
    shared = bad.shape[len(bad.shape) - event_dim :] if event_dim else ()
    try:
        return bad & mask.reshape((*mask.shape, *(1 for _ in shared)))
    except (
        TypeError,
        ValueError,
        RuntimeError,
    ):  # a shape of its own: it is not told which numbers are covered
        return bad


def shares(flags: Mapping[str, Any]) -> dict[str, float]:
    """Name -> share of the draws at which something is wrong; without those where nothing is.

    Args:
        flags: Name -> one boolean for each draw.
    """
    found = {name: float(np.asarray(flag, float).mean()) for name, flag in flags.items()}
    return {name: share for name, share in found.items() if share > 0}
