"""Of many parameters, those that run every day; the others run with the slow tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def daily(values: Iterable[Any], *often: Any) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`, of which all but the named ones are marked slow.

    Args:
        values: All of them; tuples are one value for each of several names.
        often: Those that stand for the others in every run.

    Returns:
        The values in their order, the slow ones as `pytest.param`.
    """
    values = list(values)
    missing = [value for value in often if value not in values]
    assert not missing, f"not among the parameters: {missing}"
    slow = [pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.slow) for v in values]
    return [value if value in often else other for value, other in zip(values, slow, strict=True)]
