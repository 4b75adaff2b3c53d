"""States of chains that were trained one by one, in one shape: `MCMC` stacks the last ones of all chains."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from pyro_dft import roots
from pyro_dft.numpyro.serving import DFTState
from pyro_dft.recipe.constants import FULL_RANK_LIMIT
from pyro_dft.recipe.mode_search import MOST_MODES


def stackable(state: DFTState) -> DFTState:
    """The state of one chain with samplers whose shapes do not hang on what its training found.

    Trainings may find other numbers of separate modes, and directions in the scales of many dimensions or none. Modes are filled
    up to the largest number with some that never serve, and each has so many fewer of the kept draws that new ones may start at,
    so that they take no more memory. A run that makes new draws makes them of all modes: a single one is left as it is there.

    Args:
        state: Of one chain.
    """
    own = state.trained
    if own is None:
        return state
    modes = len(own.weights)
    count = 1 if modes == 1 and state.beyond.allowed else MOST_MODES
    index = np.minimum(np.arange(count), modes - 1)

    def filled(value: Any) -> Any:
        return np.asarray(value)[index]

    starts = np.asarray(own.starts)
    some = np.linspace(0, starts.shape[1] - 1, max(1, starts.shape[1] // count)).round().astype(int)
    scales = {name: _in_one_form(np.asarray(getattr(own, name))) for name in ("scale", "kernel_scale")}
    weights = np.where(np.arange(count) < modes, filled(own.weights), 0).astype(np.float32)
    return state._replace(
        trained=own._replace(
            mean=filled(own.mean), generator=jax.tree.map(filled, own.generator), weights=weights,
            step_size=filled(own.step_size), starts=filled(starts[:, some]),
            **{name: filled(value) for name, value in scales.items()},
        )
    )  # fmt: skip


def _in_one_form(scale: np.ndarray) -> np.ndarray:
    """Standard deviations (K, d) of many dimensions with as many unit directions as there may be; others as they are."""
    if scale.ndim == 2 and scale.shape[1] > FULL_RANK_LIMIT:
        scale = scale[..., None]
    elif not roots.has_directions(scale, 3):
        return scale
    return np.stack([_with_all(own) for own in scale])


def _with_all(scale: np.ndarray) -> np.ndarray:
    """One of them, (d, 1 + k), with `MOST_DIRECTIONS` directions."""
    filled = roots.unstretched(scale[:, 1:].astype(float), roots.MOST_DIRECTIONS)
    return np.concatenate([scale[:, :1], filled], 1).astype(scale.dtype)
