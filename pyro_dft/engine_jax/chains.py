"""Chains of Hamiltonian Monte Carlo that go on from block to block, many particles at once, with every state recorded."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pyro_dft.engine_jax import random
from pyro_dft.engine_jax.refine import Position, transition, transition_noise
from pyro_dft.engine_jax.target import BRIEFLY, Target, TargetSpec
from pyro_dft.recipe.chains import Block, Dynamics
from pyro_dft.recipe.constants import BLOCK_STEPS, FINE, MAX_ENERGY_ERROR


class _Recorded(NamedTuple):
    """Results of one compiled call; recorded arrays have the transitions as first axis.

    Attributes:
        position: Where it ended.
        log_step: Logs of the leapfrog step sizes, (G,).
        x: States after each transition, (BLOCK_STEPS, G, P, d).
        log_q: Their log densities, (BLOCK_STEPS, G, P).
        score: Their scores, (BLOCK_STEPS, G, P, d).
        probability: Acceptance probabilities, (BLOCK_STEPS, G, P).
        moved: Whether the transition was accepted, (BLOCK_STEPS, G, P).
        diverged: Whether its energy error was beyond `MAX_ENERGY_ERROR`, (BLOCK_STEPS, G, P).
        kinetic: Kinetic energies that the states end with, (BLOCK_STEPS, G, P).
        nonfinite: Transitions that led where the log density is not finite, a scalar.
    """

    position: Position
    log_step: Array
    x: Array
    log_q: Array
    score: Array
    probability: Array
    moved: Array
    diverged: Array
    kinetic: Array
    nonfinite: Array


@partial(jax.jit, static_argnums=0, compiler_options=BRIEFLY)
def block(
    spec: TargetSpec, data: Any, position: Position, dynamics: Dynamics, words: Any, first: Any, steps: Any
) -> _Recorded:
    """Up to `BLOCK_STEPS` transitions; the loop's pass number zero takes none and evaluates the start.

    With it in the loop the model is compiled once. It is left out (`first` is 1) where the start is known already.
    """
    shape, dtype = position.x.shape, position.x.dtype
    scale, step_size, leapfrogs, tune, goal = dynamics
    key = random.words(words)
    wide = jnp.zeros((BLOCK_STEPS + 1, *shape[:2]), dtype)
    many = jnp.zeros((BLOCK_STEPS + 1, *shape), dtype)
    begin = _Recorded(
        position, jnp.log(step_size), many, wide, many, wide, wide.astype(bool),
        wide.astype(bool), wide, jnp.zeros((), jnp.int32),
    )  # fmt: skip

    def go(k: Array, now: _Recorded) -> _Recorded:
        start = k == 0
        noise = transition_noise(random.fold(key, k), shape, dtype)
        length = jnp.where(start, 0.0, jnp.exp(now.log_step))
        count = jnp.where(start, 1, leapfrogs)
        reached, take, probability, error, kinetic = transition(
            spec, data, now.position, scale, length, noise, count
        )
        # Robbins and Monro: large changes at first.
        rate = jnp.where(start, 0.0, tune / (1 + 0.3 * k))
        log_step = now.log_step + (rate * (felt_acceptance(probability, error, goal) - goal)).astype(dtype)
        return _Recorded(
            reached,
            log_step,
            now.x.at[k].set(reached.x),
            now.log_q.at[k].set(reached.log_q),
            now.score.at[k].set(reached.score),
            now.probability.at[k].set(probability),
            now.moved.at[k].set(take),
            now.diverged.at[k].set(error > MAX_ENERGY_ERROR),
            now.kinetic.at[k].set(kinetic),
            now.nonfinite + jnp.isposinf(error).sum(dtype=jnp.int32),
        )

    return spec.whole(jax.lax.fori_loop(first, steps + 1, go, begin))


_large_block = jax.jit(block.__wrapped__, static_argnums=0)  # type: ignore[attr-defined]


def felt_acceptance(probability: Array, error: Array, goal: Any) -> Array:
    """Mean acceptance (G,) as the adaptation takes it: see `pyro_dft.recipe.constants.FINE`."""
    finite = jnp.isfinite(error)
    count = jnp.maximum(finite.sum(1), 1)
    fine = jnp.where(finite, probability, 0.0).sum(1) / count > FINE
    return jnp.where(finite, probability, jnp.where(fine, goal, 0.0)[:, None]).mean(1)


def run_block(
    target: Target,
    start: Any,
    dynamics: Dynamics,
    *,
    steps: int,
    rng: np.random.Generator,
) -> Block:
    """Some HMC transitions of every particle: see `pyro_dft.recipe.engine.Engine.run_block`."""
    known = isinstance(start, Position)
    if known:
        position = start
    else:
        # On the host, from where each process puts the same onto its own devices.
        x: Any = np.asarray(start)
        wide: Any = np.full(x.shape[:2], -np.inf, x.dtype)
        position = Position(x, wide, np.zeros_like(x))
    words = rng.integers(2**32, size=2, dtype=np.uint32)
    program = block if target.spec.brief else _large_block
    out = program(target.spec, target.data, position, dynamics, words, int(known), steps)
    particles = position.x.shape[0] * position.x.shape[1]
    target.count(particles * (steps * dynamics.leapfrog_steps + (not known)), int(out.nonfinite))
    taken = slice(1, steps + 1)

    def recorded(value: Array) -> np.ndarray:
        return np.moveaxis(np.asarray(value)[taken], 0, 2)

    return Block(
        out.position, recorded(out.x), recorded(out.log_q), recorded(out.score), recorded(out.probability), recorded(out.moved),
        recorded(out.diverged), recorded(out.kinetic), np.exp(np.asarray(out.log_step)),
    )  # fmt: skip
