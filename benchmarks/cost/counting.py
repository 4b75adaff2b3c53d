"""NumPyro's NUTS with a count of all its leapfrog steps, those of the warm-up too."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from numpyro.infer import NUTS
from numpyro.infer.hmc import HMCState

# Each step evaluates one gradient. The collected `num_steps` of a run are those after warm-up only.
CountedState = namedtuple("CountedState", (*HMCState._fields, "total_steps"))


class _CountingNUTS(NUTS):
    def init(self, *args: Any, **kwargs: Any) -> Any:
        state = super().init(*args, **kwargs)
        return CountedState(*state, total_steps=jnp.zeros_like(state.num_steps))

    def sample(self, state: Any, model_args: Any, model_kwargs: Any) -> Any:
        after = super().sample(HMCState(*state[:-1]), model_args, model_kwargs)
        return CountedState(*after, total_steps=state.total_steps + after.num_steps)


def counting_nuts(model: Callable[..., None]) -> NUTS:
    """NUTS at its defaults; ask ``MCMC`` for the extra field ``total_steps``."""
    return _CountingNUTS(model)
