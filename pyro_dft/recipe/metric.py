"""The metric of an ensemble of chains: what their states and scores say of the covariance."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_dft import roots
from pyro_dft.recipe.engine import Engine
from pyro_dft.recipe.window import spacing

# Successive states of a chain are correlated: each counts as this share of an independent one by default.
SHARE = 0.25


def adapted(engine: Engine, target: Any, x: Any, score: Any, scale: Any, share: float = SHARE) -> Any:
    """Square roots of the covariances of states, shrunk towards the present ones: see `pyro_dft.roots`.

    Above 300 dimensions they are standard deviations, with some directions of other scales where there are notable ones.

    Args:
        engine: Of the target.
        target: The posterior.
        x: States (G, P, T, d), native.
        score: Their scores (G, P, T, d), native.
        scale: The present roots of the G kernels, native.
        share: What share of an independent state each of them counts as.
    """
    every = spacing(x.shape)
    states, before = engine.numpy(x)[:, :, ::every], roots.without_directions(engine.numpy(scale))
    found = _covariances(states, before, every * share)
    if found.ndim == 2:
        scores = engine.numpy(score)[:, :, ::every]
        columns = [roots.directions(*own) for own in zip(states, scores, found, strict=True)]
        found = _with_directions(found, columns)
    return engine.native(target, found)


def _covariances(states: np.ndarray, scale: np.ndarray, share: float) -> np.ndarray:
    """Shrunk roots for a present scale of matrices (G, d, d), or of standard deviations (G, d)."""
    found = np.array(scale)
    for g, own in enumerate(states.reshape(len(states), -1, states.shape[-1])):
        root = roots.adapted(own, found[g], share * len(own))
        if np.isfinite(root).all():
            found[g] = root
    return found


def _with_directions(sd: np.ndarray, columns: list[np.ndarray]) -> np.ndarray:
    """Roots (G, d, 1 + k), k the most directions of any sampler; others get directions of unit scale. (G, d) where k is 0."""
    k = max(own.shape[1] for own in columns)
    if k == 0:
        return sd
    padded = [roots.unstretched(own, k) for own in columns]
    return np.concatenate([sd[..., None], np.stack(padded)], 2)
