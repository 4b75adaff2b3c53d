"""One ensemble across separate modes, where their weights cannot be told.

Weights of modes come from importance sampling, which needs modes that are nearly Gaussian. Those of a neural network, of a matrix
factorisation or of a scale with a long tail are not, and are joined by ridges that long trajectories pass. Chains that pass
between all of them need no weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_dft import roots
from pyro_dft.recipe.engine import Engine
from pyro_dft.recipe.fit import Fit
from pyro_dft.recipe.measure import Measurement
from pyro_dft.recipe.measure_chains import measure_by_chains
from pyro_dft.recipe.mode_weights import GOOD_KHAT
from pyro_dft.recipe.particles import Particles
from pyro_dft.recipe.subject import Subject

Array = NDArray[np.floating[Any]]


def measured(fit: Fit, subject: Callable[[Fit], Subject]) -> tuple[Measurement, Fit] | None:
    """Chains across the modes of a fit, and the fit without modes; None where its weights are good, or chains do not pass.

    Args:
        fit: What there is.
        subject: What is to be measured of a fit.
    """
    if fit.modes is None or fit.modes.k_hat.max() <= GOOD_KHAT:
        return None
    before = subject(fit)
    try:
        single = _single(fit, before.engine, before.target)
    except np.linalg.LinAlgError:  # a direction without any scale, as in an improper posterior
        return None
    found = measure_by_chains(Particles(replace(subject(single), across=True)))
    return (found, single) if found.complete else None


def _single(fit: Fit, engine: Engine, target: Any) -> Fit:
    """The fit with one Gaussian for each chain, with the moments of all modes, whose particles start at all optima."""
    modes = fit.modes
    assert modes is not None
    index = np.asarray(fit.chosen).reshape(modes.chains, modes.count)
    moments = [_moments(fit, own, weights) for own, weights in zip(index, modes.weights, strict=True)]
    mean, scale = (np.stack(part) for part in zip(*moments, strict=True))
    own = fit.shares or [{int(i): 1.0} for i in index[0]]
    shares = {
        i: share * float(weight)
        for part, weight in zip(own, modes.weights.mean(0), strict=True)
        for i, share in part.items()
    }
    best = index[np.arange(modes.chains), modes.weights.argmax(1)]
    return replace(
        fit, sampler=engine.gaussian_sampler(target, mean, scale), objective=["gaussian"] * modes.chains, chosen=best, modes=None,
        shares=[shares],
    )  # fmt: skip


def _moments(fit: Fit, index: NDArray[np.intp], weights: Array) -> tuple[Array, Array]:
    """Mean (d,) and square root of the covariance, (d, d) or (d,), of a mixture of Gaussians."""
    means, scales = np.asarray(fit.optima.mean[index], float), np.asarray(fit.optima.scale[index], float)
    mean = weights @ means
    away = means - mean
    within = sum(w * roots.covariance(scale, mean) for w, scale in zip(weights, scales, strict=True))
    between = (weights[:, None] * away).T @ away if scales.ndim == 3 else weights @ np.square(away)
    return mean, roots.root_of(within + between)
