"""What refinement leaves of the errors that raw draws had, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_dft.judging.drift import Drift, normal_limit

Array = NDArray[np.floating[Any]]

_FAR = 3.0  # larger gaps are extrapolated from a memory near one, and are no estimates of a size
# Refinement may leave this share of the raw draws' gap in a mean or log sd even where refined draws show no memory: regions that
# transitions enter slowly (necks) hardly show in the memory of the draws elsewhere.
_LEFT_UNSEEN = np.array([0.15, 0.15, 0.0, 0.0])[:, None]


def left_over(raw: Drift, refined: Drift, *, chains: bool = False) -> tuple[Array, Array]:
    """What is expected to be left in refined draws of the errors that the raw ones had, in sds.

    Args:
        raw: Drift from raw draws to refined ones.
        refined: Drift of these over as many transitions again.
        chains: Whether the second is of long chains, from one half of a window to the other: these have had time to enter
            regions that are entered slowly.

    Returns:
        Sizes of the raw draws' gaps g, shrunk by what may be chance to g - m^2 / g, with m half the width of their interval (zero
        below m); and these times the share that the transitions leave, taken from the refined draws' memory. Both (4, d).
    """
    size = np.abs(raw.gap)
    with np.errstate(divide="ignore", invalid="ignore"):  # gaps can be infinite
        margin = raw.gap - raw.gap_low
        shrunk = size - margin**2 / size
    known = raw.significant & np.isfinite(shrunk)
    shrunk = np.where(known, np.clip(np.where(known, shrunk, 0.0), 0.0, _FAR), 0.0)
    # Chains are few, and the largest memory over many coordinates is mostly chance: it is shrunk like the gaps.
    chance = normal_limit(0.05, refined.memory.size) * refined.memory_se if chains else np.zeros(())
    memory = np.clip(refined.memory - chance**2 / np.maximum(refined.memory, 1e-12), 0.0, 1.0)
    unseen = 0.0 if chains else _LEFT_UNSEEN
    return shrunk, shrunk * (memory + unseen * (1.0 - memory))
