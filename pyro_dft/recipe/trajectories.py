"""How many leapfrog steps the trajectories of chains have."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_dft.recipe.constants import BLOCK_STEPS

Array = NDArray[np.floating[Any]]

# Length of a trajectory in whitened units: a quarter of the period of a unit Gaussian forgets all. Small steps need many for it;
# shorter trajectories would walk at random.
LENGTH, MOST_LEAPFROGS = 1.6, 256
# Gradient steps at most while the particles are on their way.
MOST_AT_FIRST = 16
# Where fewer effective draws than this share of the states are in a window, trajectories get twice as long, up to a factor.
SLOW, MOST_STRETCH = 0.2, 4.0

# Gradients at most in one call of an engine of more than one transition: it cannot be stopped, and shows nothing on the way.
CALL_GRADIENTS = 65_536


def calls(steps: int, each: int) -> list[int]:
    """Transitions of each of the calls that make a block.

    Args:
        steps: Transitions of the block.
        each: Gradients of a transition, of all particles.
    """
    at_once = min(max(CALL_GRADIENTS // each, 1), steps)
    return [min(at_once, steps - first) for first in range(0, steps, at_once)]


class Trajectories:
    """Lengths of the trajectories of all blocks in turn. Step sizes are in whitened units, (G,) for G samplers.

    Args:
        fixed: Leapfrog steps that all of them have, or None.
    """

    def __init__(self, fixed: int | None):
        self._fixed, self._stretch, self._turn = fixed, 1.0, 0

    def stretch(self, effective: float, states: int) -> None:
        """They get longer where so many states of a window are far from independent."""
        if effective < SLOW * states:
            self._stretch = min(2 * self._stretch, MOST_STRETCH)

    def lengths(self, step_size: Array, tune: float = 0.0) -> list[int]:
        """Leapfrogs of blocks in turn, over all windows: long ones, where they are stretched, are followed by short ones.

        A trajectory that is stretched for slow directions takes others half around their period, to minus where they were: their
        squares, and tails, would hardly move.

        Args:
            step_size: Of the chains.
            tune: How fast step sizes are tuned; zero where they are not.
        """
        longest = self._leapfrogs(step_size, self._stretch, MOST_LEAPFROGS if tune < 1.0 else MOST_AT_FIRST)
        if tune or self._stretch == 1.0:
            return [longest]
        return [longest, self._leapfrogs(step_size, 1.0)]

    def next(self, step_size: Array, tune: float = 0.0) -> int:
        """Leapfrogs of the next block; blocks in which steps are tuned have no turn."""
        lengths = self.lengths(step_size, tune)
        found = lengths[self._turn % len(lengths)]
        self._turn += not tune
        return found

    def mean(self, step_size: Array, steps: int) -> float:
        """Leapfrogs in the mean over the next so many transitions."""
        lengths, blocks = self.lengths(step_size), -(-steps // BLOCK_STEPS)
        return float(np.mean([lengths[(self._turn + i) % len(lengths)] for i in range(blocks)]))

    def whole(self, step_size: Array) -> Array:
        """Step sizes with which one number of leapfrogs makes the length for all samplers, where the given ones are longer.

        Trajectories of twice the length would end where they began, with the opposite sign.
        """
        if self._fixed is not None:
            return step_size
        count = np.clip(np.ceil(LENGTH / max(step_size.min(), 1e-6) - 0.1), 1, MOST_LEAPFROGS)
        return np.minimum(step_size, LENGTH / count)

    def _leapfrogs(self, step_size: Array, stretch: float, most: int = MOST_LEAPFROGS) -> int:
        if self._fixed is not None:
            return self._fixed
        return int(np.clip(round(stretch * LENGTH / max(float(step_size.min()), 1e-6)), 1, most))
