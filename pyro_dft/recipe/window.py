"""A window of transitions of an ensemble, and what it shows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyro_dft.judging.drift import Drift
from pyro_dft.recipe.engine import Engine

# The log density drifts where its mean has changed between the halves of a window by so many standard errors: in many dimensions
# it shows what no coordinate does.
CLIMB = 4.0
# A window of more numbers is judged by some of its states, evenly spaced: it is long where successive ones hardly differ. It is
# judged by so many states of each particle at least. Moments of its halves, and of all of it, are compared by fewer: their errors
# are those of means over particles.
MOST_NUMBERS, LEAST_STATES, COMPARED_STATES = 2**23, 128, 32


@dataclass(frozen=True)
class Window:
    """The states that are kept.

    Attributes:
        x: (G, P, T, d), native.
        log_density: (G, P, T), native.
        score: (G, P, T, d), native.
        acceptance: Mean acceptance probability, (G,).
        diverged: Share of transitions that diverged.
        stuck: Share of particles that never moved.
        scale: Whitening of the kernel, native: see `pyro_dft.roots`.
        step_size: Its leapfrog step, (G,), native.
        leapfrog_steps: Gradient steps of a transition; of a short one where trajectories are stretched.
        divergent: Particles' transitions that diverged, (G, P, T).
        statistics: Numbers of each transition, (G, P, T) each; see `pyro_dft.recipe.chains.STATISTICS`.
        gradients_each: Gradient steps of a transition in the mean.
        nonfinite: Share of transitions that led where the log density is not finite, as far as the engine counts it.
    """

    x: Any
    log_density: Any
    score: Any
    acceptance: np.ndarray
    diverged: float
    stuck: float
    scale: Any
    step_size: Any
    leapfrog_steps: int
    divergent: Any
    statistics: dict[str, Any]
    gradients_each: float
    nonfinite: float = 0.0


@dataclass(frozen=True)
class Judged:
    """What a window shows, in the model's own unconstrained coordinates.

    Attributes:
        points: Its states, (G, P, T, d), or of many those whose moments are compared: see `spacing`.
        drifts: From the first half to the second, of all chains together and then of each.
        effective: The smallest number of effective draws over coordinates, their squares and tails, of all chains together.
        of_means: The same over coordinates alone.
        climb: By how many standard errors the log density rose from the first half to the second.
        stranded: Particles that have stayed where next to nothing of the posterior lies, (G, P): see `recipe.stragglers`.
        complete: Whether nothing more is to be wished for.
    """

    points: np.ndarray
    drifts: list[Drift]
    effective: float
    of_means: float
    climb: float
    stranded: np.ndarray
    complete: bool = False

    @property
    def restless(self) -> bool:
        """Whether more than chance says that the particles still move, or remember their start."""
        return self.drifts[0].restless or abs(self.climb) > CLIMB or bool(self.stranded.any())

    @property
    def climbing(self) -> bool:
        """Whether the particles are still on their way up, to where the posterior is."""
        return self.climb > CLIMB


def spacing(shape: tuple[int, ...], asked: int = 0, least: int = LEAST_STATES) -> int:
    """Of how many successive states of particles, (G, P, T, d) in all, one is looked at.

    Args:
        shape: Of the states.
        asked: Draws of each sampler that are asked for: no fewer states are looked at where there are as many.
        least: States of each particle that are looked at, at least.
    """
    least = max(least, math.ceil(asked / shape[1]))
    return max(1, min(shape[2] // least, math.ceil(math.prod(shape) / MOST_NUMBERS)))


def picked(particles: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Some particles of (G P, T, d); without a copy where they are all of them."""
    whole = len(rows) == len(particles) and bool((rows == np.arange(len(rows))).all())
    return particles if whole else particles[rows]


def joined(engine: Engine, window: Window, following: Window) -> Window:
    """Two windows of one step size, one behind the other."""
    join = engine.concatenate
    t, u = window.x.shape[2], following.x.shape[2]
    share = t / (t + u)
    return replace(
        window, x=join([window.x, following.x], 2),
        log_density=join([window.log_density, following.log_density], 2), score=join([window.score, following.score], 2),
        acceptance=share * window.acceptance + (1 - share) * following.acceptance,
        diverged=share * window.diverged + (1 - share) * following.diverged, stuck=min(window.stuck, following.stuck),
        gradients_each=share * window.gradients_each + (1 - share) * following.gradients_each,
        nonfinite=share * window.nonfinite + (1 - share) * following.nonfinite,
        divergent=join([window.divergent, following.divergent], 2),
        statistics={name: join([own, following.statistics[name]], 2) for name, own in window.statistics.items()},
    )  # fmt: skip


def climb(log_density: np.ndarray) -> float:
    """See `Judged.climb`, for log densities (G, P, T). Particles are independent of each other; their own states need not be."""
    half = log_density.shape[2] // 2
    values = np.asarray(log_density, float).reshape(-1, log_density.shape[2])
    values = values[np.isfinite(values).all(1)]  # others are known to be stuck
    if half == 0 or len(values) < 2:
        return 0.0
    rise = values[:, half : 2 * half].mean(1) - values[:, :half].mean(1)
    return float(rise.mean() / max(rise.std(ddof=1) / len(rise) ** 0.5, 1e-300))
