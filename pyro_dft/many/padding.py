"""Rows of padding: how many there are, and what becomes of the latent variables that belong to them.

A latent variable of a row that is padding is a coordinate like any other. With the prior that the model gives it, it would hang
on the model's other variables: theta ~ Normal(mu, tau) without data is a funnel, in which chains are slow, however easy the
posterior of the rows that are data is. So it gets parameters of its own there (location 0, scale 1). Nothing else in the
posterior changes, as the prior of such a variable integrates to one whatever its parameters are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

# Data sets are padded to few sizes, each of which is compiled for: at least so many data sets for each, and sizes differ by at
# least this factor.
LEAST_SETS, LADDER = 100, 1.4


@dataclass(frozen=True)
class Rows:
    """What of a model belongs to the rows of its data.

    Attributes:
        plates: Plates that are as long as the padded data, whatever their length.
        moved: Latent sites in these -> parameters of their priors that other sites move.
    """

    plates: frozenset[str]
    moved: dict[str, tuple[str, ...]]


def row_plates(first: Iterable[Any], length: int, second: Iterable[Any], other: int) -> frozenset[str]:
    """Names of the plates that follow the length of the data, from all plates of runs with data of two lengths."""
    long = {frame.name for frame in first if frame.size == length}
    return frozenset(frame.name for frame in second if frame.size == other and frame.name in long)


def parameter_names(fn: Any) -> tuple[str, ...]:
    """Parameters that a distribution of either framework can be made from."""
    names = tuple(getattr(fn, "arg_constraints", {}))
    if "scale_tril" in names:  # the others say the same
        names = tuple(name for name in names if name not in ("covariance_matrix", "precision_matrix"))
    return names


def sizes_of(counts: Sequence[int]) -> list[int]:
    """To how many rows data sets are padded, in ascending order; each to the first that is as large as its own count.

    Args:
        counts: Rows of each data set.
    """
    ordered, found, at = sorted(counts, reverse=True), list[int](), 0
    while at < len(ordered):
        size, after = max(1, ordered[at]), at + LEAST_SETS
        found.append(size)
        while after < len(ordered) and (
            ordered[after] * LADDER > size or ordered[after] == ordered[after - 1]
        ):
            after += 1
        at = len(ordered) if len(ordered) - after < LEAST_SETS else after
    return found[::-1]
