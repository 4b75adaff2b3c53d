"""What refinement leaves of the errors that raw draws had, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_dft.judging.drift import Drift, normal_limit

Array = NDArray[np.floating[Any]]

_FAR = 3.0  # larger gaps are extrapolations of a memory near one, and no sizes
# Of a gap of the raw draws in a mean or log sd, refinement may leave this share even where the refined draws show no
# memory of it: what transitions enter slowly (necks) hardly shows in the memory of the rest.
_LEFT_UNSEEN = np.array([0.15, 0.15, 0.0, 0.0])[:, None]


def left_over(raw: Drift, refined: Drift, *, chains: bool = False) -> tuple[Array, Array]:
    """What is expected to be left in refined draws of the errors that the raw ones had, in sds.

    Args:
        raw: From raw draws to refined ones.
        refined: As many transitions further.
        chains: Whether the second is of long chains, from half a window to the next: they had the time to enter what is
            entered slowly.

    Returns:
        Sizes of the raw draws' gaps, shrunk by what may be chance: g - m^2 / g with m the margin of its limits, zero below
        m. And this times the share that as many transitions leave, which the refined draws' memory shows. Both (4, d).
    """
    size = np.abs(raw.gap)
    with np.errstate(divide="ignore", invalid="ignore"):  # gaps can be infinite
        margin = raw.gap - raw.gap_low
        shrunk = size - margin**2 / size
    known = raw.significant & np.isfinite(shrunk)
    shrunk = np.where(known, np.clip(np.where(known, shrunk, 0.0), 0.0, _FAR), 0.0)
    # Chains are few, so that the largest memory of many coordinates is mostly chance: shrunk as the gaps are.
    chance = normal_limit(0.05, refined.memory.size) * refined.memory_se if chains else np.zeros(())
    memory = np.clip(refined.memory - chance**2 / np.maximum(refined.memory, 1e-12), 0.0, 1.0)
    unseen = 0.0 if chains else _LEFT_UNSEEN
    return shrunk, shrunk * (memory + unseen * (1.0 - memory))
