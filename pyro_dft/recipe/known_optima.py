"""Optima that are known already, at which a further restart need not be fitted again."""

from __future__ import annotations

import numpy as np

from pyro_dft.recipe.gaussians import Gaussians
from pyro_dft.recipe.natural_gradient import TINY, State

# Two fits are of one optimum when the means are so close, in sds times sqrt(d), and no sd differs by more than the factor.
MET_DISTANCE, MET_RATIO = 0.5, 2.0


class KnownOptima:
    """Gaussians of settled fits, and whether another fit is about to end at one of them.

    Args:
        gaussians: The fits; those whose bound is not finite, or that have a direction without any scale, are left out.

    Attributes:
        best: The highest bound.
        full: Whether they have whole covariances.
    """

    def __init__(self, gaussians: Gaussians):
        order = np.argsort(-gaussians.elbo, kind="stable")
        self._index: list[int] = []
        self._inverse: list[np.ndarray] = []
        for k in order[np.isfinite(gaussians.elbo[order])]:
            scale = np.asarray(gaussians.scale[k], float)
            try:
                inverse = np.linalg.inv(scale) if scale.ndim == 2 else 1 / scale
            except np.linalg.LinAlgError:
                continue
            if np.isfinite(inverse).all():
                self._index.append(int(k))
                self._inverse.append(inverse)
        self.gaussians = gaussians
        self.best = float(gaussians.elbo[self._index].max()) if self._index else -np.inf
        self.full = gaussians.scale.ndim == 3

    def met(self, state: State, i: int) -> int | None:
        """Index of the Gaussian, the best one, that a restart is the same as but for the noise of its fit; None without any."""
        if state.limited[i] or not np.isfinite(state.best[i]):
            return None
        reach = MET_DISTANCE * state.mean.shape[1] ** 0.5
        for k, inverse in zip(self._index, self._inverse, strict=True):
            apart = state.mean[i] - self.gaussians.mean[k]
            away = inverse @ apart if inverse.ndim == 2 else inverse * apart
            if np.linalg.norm(away) <= reach and _alike(inverse, state.scale[i]):
                return k
        return None


def _alike(inverse: np.ndarray, scale: np.ndarray) -> bool:
    """Whether sds agree, in any direction.

    A fit of scales alone ends at the sds of each coordinate given all others, of which the precision matrix has the squares.
    """
    if scale.ndim == 2:
        product = inverse @ scale
        # Lengths of images of unit vectors: none is beyond the singular values, which take longer.
        lengths = np.sqrt(np.square(product).sum(0))
        if lengths.max() > MET_RATIO * (1 + TINY) or lengths.min() * (1 + TINY) < 1 / MET_RATIO:
            return False
        ratios = np.linalg.svd(product, compute_uv=False)
    else:
        ratios = scale * (np.sqrt(np.square(inverse).sum(0)) if inverse.ndim == 2 else inverse)
    return bool(ratios.max() <= MET_RATIO and ratios.min() >= 1 / MET_RATIO)
