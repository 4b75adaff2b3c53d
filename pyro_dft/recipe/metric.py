"""The metric of an ensemble of chains: what their states and scores say of the covariance."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_dft import roots
from pyro_dft.recipe.engine import Engine

# Successive states are alike: as how much of an independent one each counts by default.
SHARE = 0.25


def adapted(engine: Engine, target: Any, x: Any, score: Any, scale: Any, share: float = SHARE) -> Any:
    """Square roots of covariances, shrunk to the present ones: see `pyro_dft.roots`.

    Where there are no matrices they have directions as well, if any is notable.

    Args:
        engine: Of the target.
        target: The posterior.
        x: States (G, P, T, d), native.
        score: Their scores (G, P, T, d), native.
        scale: The present roots of the G kernels, native.
        share: As how much of an independent state each counts.
    """
    states, before = engine.numpy(x), roots.without_directions(engine.numpy(scale))
    found = _covariances(states, before, share)
    if found.ndim == 2:
        scores = engine.numpy(score)
        columns = [roots.directions(*own) for own in zip(states, scores, found, strict=True)]
        found = _with_directions(found, columns)
    return engine.native(target, found)


def _covariances(states: np.ndarray, scale: np.ndarray, share: float) -> np.ndarray:
    """Those of matrices (G, d, d) or standard deviations (G, d) alone."""
    found = np.array(scale)
    for g, own in enumerate(states.reshape(len(states), -1, states.shape[-1])):
        root = roots.adapted(own, found[g], share * len(own))
        if np.isfinite(root).all():
            found[g] = root
    return found


def _with_directions(sd: np.ndarray, columns: list[np.ndarray]) -> np.ndarray:
    """(G, d, 1 + k) with as many directions as most have; others get some in which nothing is stretched. (G, d) without any."""
    k = max(own.shape[1] for own in columns)
    if k == 0:
        return sd
    padded = [own if own.shape[1] == k else _unstretched(own, k) for own in columns]
    return np.concatenate([sd[..., None], np.stack(padded)], 2)


def _unstretched(columns: np.ndarray, k: int) -> np.ndarray:
    """Columns (d, k) behind those (d, j), of length one and orthogonal to them."""
    d, j = columns.shape
    units = np.eye(d, k - j)
    along = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-30)
    return np.concatenate([columns, np.linalg.qr(units - along @ (along.T @ units))[0]], 1)
