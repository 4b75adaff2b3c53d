"""How many effective draws of an ensemble are enough, by what they have cost so far, and whether more are to be had."""

from __future__ import annotations

import math

from pyro_dft.recipe.constants import BLOCK_STEPS

# A window goes on where fewer effective draws than this share of those asked for are in it; smaller shares are enough once so
# many gradients for each draw are spent.
ENOUGH_DRAWS = ((0, 0.6), (10, 0.3), (100, 0.15))
# Where the least is over thousands of features, those of many dimensions, it is lower for the noise of its estimate alone: from
# the second stage on this share is enough, but not fewer draws than so many; from the third on as many as are asked of four
# chains (Vehtari et al., Rank-normalization, folding, and localization, 2021). With separate modes these are enough from the
# second on: which part of a mode a particle is in it remembers for long, but all parts have their shares.
OF_MANY, LEAST_OF_MANY = 0.2, (800, 400)

# Particles mix where a longer window has more effective draws, by such a share of what is to be expected at least, or each of
# them is worth as many, by squares and tails too, as none that stays where it is ever is; with smaller steps, where each is worth
# nearly one.
GROWTH, MIXED, WORTH = 0.25, 2.0, 0.75


def enough(asked: int, each: float, *, large: bool, apart: bool) -> float:
    """Effective draws, the least over all features, with which a window ends.

    Args:
        asked: Draws that are asked for.
        each: Gradients spent so far for each of them.
        large: Whether there are many dimensions.
        apart: Whether there are separate modes.
    """
    stages = [share * asked for spent, share in ENOUGH_DRAWS if each >= spent]
    if len(stages) == 1 or not (large or apart):
        return stages[-1]
    if len(stages) == 2 and not apart:
        return min(stages[-1], max(OF_MANY * asked, LEAST_OF_MANY[0]))
    return min(stages[-1], LEAST_OF_MANY[1])


def at_last(asked: int) -> float:
    """Effective draws that are enough whatever they have cost."""
    return ENOUGH_DRAWS[-1][1] * asked


def missing(length: int, times: float, before: float, now: float) -> int:
    """Transitions by which a window goes on, in whole blocks, and no more than it has.

    Args:
        length: Transitions of the window.
        times: How many times the effective draws in it are wanted.
        before: Gradients of one of its transitions.
        now: Of one to come: those of longer trajectories are worth as much at least.
    """
    more = 1.1 * min(1.0, before / now) * length * (times - 1)
    return min(length, BLOCK_STEPS * max(1, math.ceil(more / BLOCK_STEPS)))


def mixes(before: tuple[int, float], now: tuple[int, float], least: float) -> bool:
    """Whether particles mix, which one window does not tell.

    Args:
        before: Transitions of a window, and the effective draws that each particle was worth in it, by coordinates alone.
        now: The same of a later one: it is longer, or its steps are smaller.
        least: Effective draws that a particle is worth there, the least over coordinates, their squares and tails.
    """
    (length, worth), (longer, more) = before, now
    if longer <= length:
        return more >= WORTH
    return least >= MIXED or more > worth * (1 + GROWTH * (longer / length - 1))
