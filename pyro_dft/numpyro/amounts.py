"""How far each site should be non-centred: fitted together with a Gaussian of independent coordinates.

Variationally inferred parametrisation (Gorinova, Moore and Hoffman 2020): the evidence bound of such a Gaussian depends on the
coordinates that it is independent in, and rises where a site is moved from the model's own coordinates towards the non-centred
ones, or back. The bound is climbed in the Gaussian and in the amounts at once. It need not converge: the Gaussian phase fits
the coordinates that come out beside others, and takes them only where they are better.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from pyro_dft.models.amounts import DRAWS, RATE, SCALE, STEPS, rounded
from pyro_dft.numpyro.traced import Traced, point, trace

if TYPE_CHECKING:
    from pyro_dft.numpyro.model import NumPyroProblem


def fitted(problem: NumPyroProblem, names: Sequence[str]) -> dict[str, float]:
    """An amount from 0 to 1 for each site; it costs ``STEPS * DRAWS`` gradients.

    Args:
        problem: The posterior in the model's own coordinates.
        names: Sites that can be non-centred.
    """

    def energy(x: Any, amounts: Any) -> Any:
        moved = copy.copy(problem)
        moved._noncentered = {name: amounts[i] for i, name in enumerate(names)}
        return moved._energy(x, None)

    function, arrays = trace(energy, point(problem.dim, problem.dtype), point(len(names), problem.dtype))
    noise = np.random.default_rng(0).normal(size=(STEPS, DRAWS // 2, problem.dim)).astype(problem.dtype)
    logits = _climb(function, arrays, jnp.asarray(problem._centre, problem.dtype), noise, len(names))
    return rounded(names, 1 / (1 + np.exp(-np.asarray(logits, float))))


@partial(jax.jit, static_argnums=(0, 4))
def _climb(function: Traced, arrays: Any, start: Array, noise: Array, count: int) -> Array:
    """Logits of the amounts after some steps of Adam."""

    def loss(state: tuple[Array, Array, Array], eps: Array) -> Array:
        mean, log_sd, logits = state
        both = jnp.concatenate([eps, -eps])
        amounts = jax.nn.sigmoid(logits)
        energies = jax.vmap(lambda e: function(mean + jnp.exp(log_sd) * e, amounts, arrays))(both)
        return energies.mean() - log_sd.sum()

    def step(carry: Any, eps: Array) -> Any:
        state, moments = carry
        gradient = jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0.0), jax.grad(loss)(state, eps))
        changes, moments = adam.update(gradient, moments)
        return (optax.apply_updates(state, changes), moments), None

    adam = optax.adam(optax.linear_schedule(RATE, 0.0, STEPS), b1=0.9, b2=0.99)
    state = (start, jnp.full_like(start, np.log(SCALE)), jnp.zeros(count, start.dtype))
    (state, _), _ = lax.scan(step, (state, adam.init(state)), jnp.asarray(noise))
    return state[2]
