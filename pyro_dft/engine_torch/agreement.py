"""Do two ways to evaluate a potential give the same, but for rounding?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Scores and values (n, d) and (n,) at some points.
Found = tuple[Tensor, Tensor]

# Differences of values, and of scores, that are rounding: relative, and absolute.
ALIKE, SCORES_ALIKE = 1e-3, 1e-2
# In single precision a few scores have no digits where a probability is nearly one. Where no larger share of them differs, points
# that are so much closer together tell.
FEW, CLOSER = 0.02, 0.25


def differing(found: Found, expected: Found, tolerance: float = SCORES_ALIKE) -> float:
    """The share of the scores that differ; 1 where a value does.

    Args:
        found: Scores and values of one way.
        expected: Those of the other.
        tolerance: Of scores, relative and absolute.
    """
    if not torch.allclose(found[1], expected[1], rtol=ALIKE, atol=ALIKE, equal_nan=True):
        return 1.0
    alike = torch.isclose(found[0], expected[0], rtol=tolerance, atol=tolerance, equal_nan=True)
    return float((~alike).double().mean())


def agree(
    x: Tensor, found: Found, expected: Found, one: Callable[[Tensor], Found], other: Callable[[Tensor], Found]
) -> bool:
    """Whether two ways give the same at points (n, d).

    Args:
        x: The points.
        found: What the one gives there.
        expected: What the other gives.
        one: The one, for other points.
        other: The other.
    """
    share = differing(found, expected)
    if 0 < share <= FEW:
        centre = x.mean(0) if len(x) > 1 else torch.zeros_like(x[0])
        closer = centre + CLOSER * (x - centre)
        share = differing(one(closer), other(closer))
    return share == 0
