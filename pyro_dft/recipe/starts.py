"""Where the particles of an ensemble start, at draws of its sampler or at all optima of its modes; who stays there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_dft import roots
from pyro_dft.judging.optima import triangular
from pyro_dft.recipe.mode_weights import log_gaussians
from pyro_dft.recipe.subject import Origin, Subject

Array = NDArray[np.floating[Any]]

# Half of the particles start so many times as far from the mean as the sampler's draws.
DISPERSION = 3.0
# A particle stays at an optimum where it is nearest to it in more than this share of its states.
STAYING = 0.9


def starting_points(subject: Subject, count: int) -> Any:
    """Points (G, count, d) for the particles of each sampler.

    Every second one is further from the mean than a draw of its Gaussian: tails are left sooner than they are found. Not where
    there are separate modes: particles of one must not end in another. A mode with several optima has particles at each, as
    many as its share: transitions that pass from one to the other rarely would take long to find it.
    """
    engine, target = subject.engine, subject.target
    draws = np.array(engine.numpy(subject.sampler.draw(count, subject.rng)))
    mean = draws.mean(1, keepdims=True).repeat(count, 1)
    if subject.origins:
        noise = engine.host_rng(subject.rng)
        for g in range(len(draws)):
            own = subject.origins[g % len(subject.origins)]
            if len(own.shares) > 1:
                draws[g], mean[g] = _at_optima(own, count, noise)
    if subject.modes is None:
        far = np.where(np.arange(count) % 2, DISPERSION, 1.0)[None, :, None]
        draws = mean + far * (draws - mean)
    return engine.native(target, draws)


def _at_optima(origin: Origin, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws (count, d) of several Gaussians, in random order, and the mean of each one's own."""
    optima, shares = origin.optima, origin.shares
    # Each has as many particles as its share, up to one.
    counts = np.diff(np.round(np.cumsum(shares) / shares.sum() * count).astype(int), prepend=0)
    which = rng.permutation(np.repeat(np.arange(len(shares)), counts))
    means, noise = np.asarray(optima.mean, float), rng.normal(size=(count, optima.mean.shape[1]))
    draws = np.empty_like(noise)
    for k in range(len(shares)):
        draws[which == k] = means[k] + roots.coloured(np.asarray(optima.scale[k], float), noise[which == k])
    return draws, means[which]


def staying(points: Array, origins: Sequence[Origin]) -> int:
    """How many particles are nearest to one optimum nearly all the time, but for an optimum that holds more than half of all.

    Args:
        points: States (P, T, d).
        origins: The optima that they start at.
    """
    means, scales = (
        np.concatenate([np.asarray(getattr(own.optima, name), float) for own in origins])
        for name in ("mean", "scale")
    )
    nearest = log_gaussians(points.reshape(-1, points.shape[-1]), means, triangular(scales)).argmax(1)
    shares = np.eye(len(means))[nearest].reshape(*points.shape[:2], -1).mean(1)
    return int((shares > STAYING)[:, shares.mean(0) <= 0.5].sum())
