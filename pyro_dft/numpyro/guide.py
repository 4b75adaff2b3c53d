"""The fitted sampler as a NumPyro guide, for `Predictive`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

# Which draw is served is a sample site itself: a vectorised `Predictive` then gets many draws and not one repeated.
POSITION = "_dft_position"


class DrawsGuide:
    """Samples all latent sites jointly: each call serves one of the given draws, chosen at random.

    The arguments of a call are ignored: the draws are those of the data that the sampler was trained on.

    Args:
        draws: Constrained draws of the latent sites, name -> (n, *site).
    """

    def __init__(self, draws: dict[str, Any]):
        self._draws = {name: jnp.asarray(value) for name, value in draws.items()}
        self._count = len(next(iter(self._draws.values())))

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, jax.Array]:
        """One of the draws, as sample sites."""
        position = numpyro.sample(POSITION, dist.Uniform(0.0, 1.0), infer={"is_auxiliary": True})
        index = jnp.minimum((position * self._count).astype(int), self._count - 1)
        return {
            name: numpyro.sample(name, dist.Delta(draws[index], event_dim=draws.ndim - 1))
            for name, draws in self._draws.items()
        }
