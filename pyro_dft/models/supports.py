"""Names of supports that both frameworks give alike, so that each reads the other's files."""

from __future__ import annotations

import numbers
import re
from collections.abc import Collection
from typing import Any

_ALIKE = {
    "greater_than_eq": "greater_than", "half_open_interval": "interval", "real_vector": "real", "real_matrix": "real",
}  # fmt: skip


def support_name(support: Any, apart: Collection[str] = ()) -> str:
    """A short stable name of a support: ``"real"``, ``"positive"``, ``"interval"``, ``"simplex"``, ...

    Args:
        support: A constraint of either framework, with or without ``independent``.
        apart: Names of those whose transforms are not the ones that their bounds would have.
    """
    while type(support).__name__ == "_IndependentConstraint":
        support = support.base_constraint
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(support).__name__.lstrip("_")).lower()
    if name in apart:
        return name
    lower, upper = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if lower is not None and upper is not None:
        return "unit_interval" if _is_number(lower, 0) and _is_number(upper, 1) else "interval"
    return "positive" if lower is not None and _is_number(lower, 0) else _ALIKE.get(name, name)


def _is_number(bound: Any, number: float) -> bool:
    return isinstance(bound, numbers.Number) and bound == number
