"""Evidence bounds that are what is left of a density whose terms have cancelled, and not those of an optimum.

As that of a normal distribution of low rank where a variance is below what single precision resolves, or of a normal and an
exponential variable together where the rate is huge: of terms that are each 1e14 nats high, or far higher, nothing but rounding
errors is left, of millions of nats and either sign.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# Nats by which a bound, or the density at points next to each other, is not known where something is wrong.
LOST = 1000.0
# How near to each other such points are, in sds.
NEARBY = 1e-4


def lost(elbo: np.ndarray, error: np.ndarray, known: float, dtype: Any) -> np.ndarray:
    """Bounds that cannot be those of an optimum, (K,).

    They are so high that the dtype has lost them by `LOST` nats, or have a larger error than that, within which they may be below
    the others, or a known one, where these are none. Low bounds of very many rows are large too, and those of an improper density
    all are.

    Args:
        elbo: (K,).
        error: Standard errors, (K,).
        known: The highest bound of known optima.
        dtype: Of the density, of any library.
    """
    most = _most(dtype)
    usual = max(known, np.max(elbo, where=(elbo <= most) & (error <= LOST), initial=-math.inf))
    if usual < -most:
        return (elbo > most) & (usual > -math.inf)
    return (elbo > most) | ((error > LOST) & (elbo - 3 * error < usual))


def sound(elbo: np.ndarray, error: np.ndarray, dtype: Any) -> np.ndarray:
    """Bounds that others can be held against, (K,): neither their errors nor what the dtype may have lost are above `LOST`."""
    return (elbo <= _most(dtype)) & (error <= LOST)


def jumps(log_density: np.ndarray) -> np.ndarray:
    """Whether the density at points as near to each other as `NEARBY` differs by more than `LOST`, (K,), from (K, n)."""
    finite = np.isfinite(log_density)
    high = np.max(log_density, 1, where=finite, initial=-math.inf)
    low = np.min(log_density, 1, where=finite, initial=math.inf)
    return high - low > LOST


def _most(dtype: Any) -> float:
    """Nats of which a dtype has lost `LOST`."""
    return LOST / float(np.finfo(str(dtype).removeprefix("torch.")).eps)
