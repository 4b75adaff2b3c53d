"""Three modes whose weights differ, at one distance from each other."""

from __future__ import annotations

import numpy as np

WEIGHTS = np.array([0.2, 0.3, 0.5])


def corners(dim=8, distance=6.0):
    """Three centres (3, dim), all at one distance from each other."""
    centres = np.zeros((3, dim))
    centres[range(3), range(3)] = distance / 2**0.5
    return centres - centres.mean(0)
