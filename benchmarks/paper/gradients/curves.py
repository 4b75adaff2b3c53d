"""What the two trainings on one density gave."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Curves:
    """Both trainings on one density.

    Attributes:
        density: Its name.
        steps: Steps (T,) at which was looked.
        values: (gradient, measure) -> (T, seeds); measures are "ksd_u", "ksd_v" and "sw2".
        gap: gradient -> Fisher gap (T,), mean over seeds.
        floor: measure -> values of exact draws, one for each set of as many draws.
    """

    density: str
    steps: np.ndarray
    values: dict[tuple[str, str], np.ndarray]
    gap: dict[str, np.ndarray]
    floor: dict[str, np.ndarray]
