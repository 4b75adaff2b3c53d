"""Particles that are not where the posterior is: thrown far out on their way, late, or stranded where next to nothing lies."""

from __future__ import annotations

from typing import Any

import numpy as np

# Nats below the median, so many and so many times sqrt(d), at which a particle that does not move is no draw of the posterior but
# was thrown there on its way. One in a neck is stuck at a high density.
FAR_OUT = (5.0, 3.0)
# One that moves is on its way where it is as far below, so many sds of the log densities of the others as well, and rises by one
# of these at least: a draw of a heavy tail comes and goes.
STRAGGLING, RISING = 6.0, 1.0
# What is around a particle that stays by itself holds next to nothing of the posterior where its evidence is so many nats, and so
# many sds of those around the others, below their median.
NO_EVIDENCE, UNUSUAL = 10.0, 6.0
# From the median deviation of a Gaussian to its sd.
_MAD = 1.4826


def left_behind(log_density: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Particles far below the others, and those of them that are on their way up.

    Args:
        log_density: Of a block of transitions, (G, P, T).
        dim: d.

    Returns:
        Two masks (G, P).
    """
    now, before = log_density[:, :, -1], log_density[:, :, 0]
    middle, spread = _middle_and_spread(now)
    far = ~(now >= middle - FAR_OUT[0] - FAR_OUT[1] * dim**0.5)
    return far, far & (now < middle - STRAGGLING * spread) & (now > before + RISING * spread)


def highest_potential(highest: Any, median: Any) -> Any:
    """Potential above which a new draw is still far out, from those of good draws: twice as far up as any of thousands.

    A sampler has some such draws where no step of the transitions is short enough, so that they hardly move.

    Args:
        highest: The highest potential of good draws, of any library, one for each sampler.
        median: Their median.
    """
    return 2 * highest - median


def stranded(x: np.ndarray, log_density: np.ndarray) -> np.ndarray:
    """Particles that have stayed in a part of the space which holds next to nothing of the posterior, (G, P).

    A low density alone does not say so, as such a part may be wide: the evidence of a Gaussian with the particle's own spread is
    E log p + sum log sd, up to a constant that all particles share. All of them have taken as few transitions to measure it.

    Args:
        x: States (G, P, T, d), in coordinates that are common to all particles.
        log_density: (G, P, T).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        evidence = log_density.mean(2) + np.log(x.std(2, dtype=np.float64)).sum(-1)
    middle, spread = _middle_and_spread(evidence)
    return evidence < middle - NO_EVIDENCE - UNUSUAL * spread


def replaced(positions: Any, gone: np.ndarray, rng: np.random.Generator) -> Any:
    """Positions (G, P, d) of any library, with those of some particles replaced by those of others of the same sampler.

    Args:
        positions: (G, P, d).
        gone: Which particles go elsewhere (G, P); not all of any sampler.
        rng: Chooses the others.
    """
    rows = np.tile(np.arange(gone.shape[1]), (len(gone), 1))
    for g, own in enumerate(gone):
        rows[g, own] = rng.choice(np.flatnonzero(~own), int(own.sum()))
    return positions[np.arange(len(gone))[:, None], rows]


def _middle_and_spread(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median of (G, P) over particles, and the sd of a Gaussian with that median deviation from it, (G, 1) each."""
    middle = np.median(values, 1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return middle, _MAD * np.median(np.abs(values - middle), 1, keepdims=True)
