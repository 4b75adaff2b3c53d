"""Refinement: a few transitions of exact Hamiltonian Monte Carlo from the sampler's draws, all draws at once.

Each draw is a chain of its own, so nothing has to mix beyond repairing what the sampler got slightly wrong; the transitions
leave the posterior invariant, so the draws can only come closer to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pyro_dft.engine_jax import random
from pyro_dft.engine_jax.target import Target, TargetSpec, block_rows
from pyro_dft.recipe.chains import Dynamics
from pyro_dft.recipe.constants import MAX_ENERGY_ERROR, TARGET_ACCEPTANCE, TUNING_DRAWS, TUNING_STEPS
from pyro_dft.roots import coloured, has_directions, projected, spread

# Draws of one compiled call where the full data are many (the model subsamples them).
FULL_DATA_ROWS = 32
# Draws of one compiled call where no more are moved, as in the search for modes.
FEW = 128


@dataclass
class Refined:
    """The result of some transitions.

    Attributes:
        draws: (C, n, d), unconstrained.
        log_density: (C, n), up to the target's constant.
        acceptance: Mean acceptance probability, (C,).
        divergence_rate: Share of transitions with an energy error over 1000, or not finite.
        stuck: Share of draws that never moved.
        diverged: Draws with such a transition, (C, n).
        log_density_before: None: random numbers that a model draws by itself are fixed when it is traced, and cannot vary.
        statistics: See `pyro_dft.recipe.chains.STATISTICS`.
    """

    draws: np.ndarray
    log_density: np.ndarray
    acceptance: np.ndarray
    divergence_rate: float
    stuck: float
    diverged: np.ndarray
    log_density_before: np.ndarray | None = None
    statistics: dict[str, np.ndarray] = field(default_factory=dict)

    def first(self, count: int) -> Refined:
        """The same for the first `count` draws of each chain only."""
        fewer = {name: getattr(self, name)[:, :count] for name in ("draws", "log_density", "diverged")}
        statistics = {name: value[:, :count] for name, value in self.statistics.items()}
        return replace(self, **fewer, statistics=statistics)


class Position(NamedTuple):
    """Points (C, n, d) with their log densities (C, n) and scores (C, n, d)."""

    x: Array
    log_q: Array
    score: Array


class Moves(NamedTuple):
    """Result and counts of a run of transitions, (C, n) each but the step sizes.

    Attributes:
        position: Where it ended.
        moved: Whether any transition was accepted.
        acceptance: Mean acceptance probability.
        divergences: Transitions with an energy error beyond `MAX_ENERGY_ERROR`.
        kinetic: Kinetic energy at the end of the last transition.
        nonfinite: Evaluations that were not finite, a scalar.
        step_size: Leapfrog step sizes, (C,), tuned or as given.
    """

    position: Position
    moved: Array
    acceptance: Array
    divergences: Array
    kinetic: Array
    nonfinite: Array
    step_size: Array


def whitening(draws: np.ndarray, fallback: np.ndarray) -> np.ndarray:
    """Cholesky factors of the covariances of (C, n, d) draws, (C, d, d); `fallback` where n is too small to tell.

    Standard deviations (C, d) where `fallback` holds these alone; `fallback` itself where it has directions (`pyro_dft.roots`).
    """
    n, d = draws.shape[1:]
    factors = np.array(fallback, dtype=float)
    if factors.ndim == 2:
        sd = np.asarray(draws, float).std(1, ddof=1)
        return np.where(np.isfinite(sd) & (sd > 0), sd, factors).astype(draws.dtype)
    if n < 4 * d or has_directions(fallback, 3):
        return factors.astype(draws.dtype)
    for chain, x in enumerate(np.asarray(draws, float)):
        x = x - x.mean(0)
        covariance = x.T @ x / (n - 1)
        sd = np.maximum(np.sqrt(np.diagonal(covariance)), 1e-300)
        correlation = covariance / (sd[:, None] * sd) + 1e-9 * np.eye(d)
        if not np.isfinite(correlation).all():
            continue
        try:
            factors[chain] = sd[:, None] * np.linalg.cholesky(correlation)
        except np.linalg.LinAlgError:
            continue
    return factors.astype(draws.dtype)


def whitening_traced(draws: Array, fallback: Array) -> Array:
    """`whitening` inside compiled functions."""
    n, d = draws.shape[1:]
    if fallback.ndim == 2:
        sd = draws.std(1, ddof=1)
        return jnp.where(jnp.isfinite(sd) & (sd > 0), sd, fallback).astype(draws.dtype)
    if n < 4 * d or has_directions(fallback, 3):
        return fallback.astype(draws.dtype)
    x = draws - draws.mean(1, keepdims=True)
    covariance = x.mT @ x / (n - 1)
    sd = jnp.sqrt(jnp.diagonal(covariance, axis1=-2, axis2=-1))
    correlation = covariance / (sd[..., None] * sd[..., None, :])
    tiny = 1e-9 if x.dtype == jnp.float64 else 1e-6
    factor = jnp.linalg.cholesky(correlation + tiny * jnp.eye(d, dtype=x.dtype))
    good = jnp.isfinite(factor).all((-2, -1))
    return jnp.where(good[:, None, None], sd[..., None] * factor, fallback.astype(draws.dtype))


def transition(
    spec: TargetSpec,
    data: Any,
    position: Position,
    scale: Array,
    step_size: Array,
    noise: tuple[Array, Array, Array],
    leapfrogs: Any,
) -> tuple[Position, Array, Array, Array, Array]:
    """One HMC transition of all points, for given noise.

    Args:
        spec: The posterior, on its full data.
        data: What it reads.
        position: Where the points are.
        scale: (C, d, d), or (C, d), maps whitened to unconstrained coordinates; masses are one in whitened ones.
        step_size: Leapfrog step size of each chain in whitened units, (C,).
        noise: Uniform (C, n) for the step's length, normal momenta (C, n, d), uniform (C, n) for the acceptance.
        leapfrogs: Gradient steps.

    Returns:
        The new position; who moved, the acceptance probabilities, the energy errors and the kinetic energies of those momenta
        that the points end with, (C, n) each.
    """
    stretch, p, accept = noise
    # Step sizes differ from draw to draw, so that trajectories of no direction end at the same phase every time.
    eps = (step_size[:, None] * (0.7 + 0.5 * stretch))[..., None]

    # Velocities change by the covariance times the score, so that the root is applied once for each step; whitened momenta follow
    # from the sum of the scores.
    def leap(_: Any, carry: tuple[Array, Array, Position]) -> tuple[Array, Array, Position]:
        velocity, total, now = carry
        y = now.x + eps * velocity
        log_y, score = spec.evaluate(y, data)
        return velocity + eps * spread(scale, score), total + score, Position(y, log_y, score)

    def hop(_: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        velocity, total, x = carry
        y = x + eps * velocity
        score = spec.score(y, data)
        return velocity + eps * spread(scale, score), total + score, y

    velocity, total = coloured(scale, p) + 0.5 * eps * spread(scale, position.score), jnp.zeros_like(p)
    if spec.brief:
        _, total, proposal = jax.lax.fori_loop(0, leapfrogs, leap, (velocity, total, position))
    else:
        # Only the end of a trajectory needs its log density, a sum over the data that may take as long as the score; for brief
        # models a second program would take longer to compile. The way back passes the same points: it is reversible too.
        velocity, total, x = jax.lax.fori_loop(0, leapfrogs - 1, hop, (velocity, total, position.x))
        _, total, proposal = leap(0, (velocity, total, position._replace(x=x)))
    momentum = p + eps * projected(scale, total + 0.5 * (position.score - proposal.score))
    at_first, at_last = (0.5 * jnp.square(each).sum(-1) for each in (p, momentum))
    error = (position.log_q - at_first) - (proposal.log_q - at_last)
    error = jnp.where(jnp.isfinite(proposal.log_q) & ~jnp.isnan(error), error, jnp.inf)
    # A draw outside the support (log density -inf) moves as soon as it finds a way in.
    error = jnp.where(jnp.isinf(position.log_q) & jnp.isfinite(proposal.log_q), -jnp.inf, error)
    probability = jnp.exp(jnp.minimum(-error, 0.0))
    take = accept < probability
    return _choose(take, proposal, position), take, probability, error, jnp.where(take, at_last, at_first)


def _choose(take: Array, a: Position, b: Position) -> Position:
    return Position(
        jnp.where(take[..., None], a.x, b.x),
        jnp.where(take, a.log_q, b.log_q),
        jnp.where(take[..., None], a.score, b.score),
    )


def transition_noise(key: Array, shape: tuple[int, ...], dtype: Any) -> tuple[Array, Array, Array]:
    """Random numbers of one transition of points of shape (C, n, d)."""
    # One draw for all of them: each place that draws costs compilation.
    unit = random.uniform(key, (*shape[:-1], shape[-1] + 2), dtype)
    return unit[..., -1], random.to_normal(unit[..., :-2]), unit[..., -2]


def run(spec: TargetSpec, data: Any, x: Array, dynamics: Dynamics, key: Array, steps: Any) -> Moves:
    """`steps` transitions of points (C, n, d), compiled once for any number.

    The step size adapts where `dynamics.tune` is True, at a rate and to an acceptance that are fixed here.

    The first pass of the loop takes no step: it evaluates the start, so that the model is compiled only once.
    """
    shape, dtype = x.shape, x.dtype
    scale, step_size, leapfrogs, tune, _ = dynamics
    zeros = jnp.zeros(shape[:2], dtype)
    first = Moves(
        Position(x, jnp.full(shape[:2], -jnp.inf, dtype), jnp.zeros_like(x)),
        zeros.astype(bool), zeros, zeros, zeros, jnp.zeros((), jnp.int32), jnp.zeros_like(step_size),
    )  # fmt: skip
    adapt_from = steps // 2

    def go(k: Array, carry: tuple[Moves, Array]) -> tuple[Moves, Array]:
        now, log_step = carry
        begin = k == 0
        noise = transition_noise(random.fold(key, k), shape, dtype)
        length = jnp.where(begin, 0.0, jnp.exp(log_step))
        count = jnp.where(begin, 1, leapfrogs)
        position, take, probability, error, kinetic = transition(
            spec, data, now.position, scale, length, noise, count
        )
        take, weight = take & ~begin, jnp.where(begin, 0.0, 1.0).astype(dtype)
        rate = tune * weight * 1.5 / (1 + 0.3 * (k - 1))
        log_step = log_step + (rate * (probability.mean(1) - TARGET_ACCEPTANCE)).astype(dtype)
        averaged = (k > adapt_from) * log_step / (steps - adapt_from)
        moves = Moves(
            position,
            now.moved | take,
            now.acceptance + weight * probability / steps,
            now.divergences + weight * (error > MAX_ENERGY_ERROR),
            kinetic,
            now.nonfinite + jnp.isinf(position.log_q).sum(dtype=jnp.int32),
            now.step_size + averaged.astype(dtype),
        )
        return moves, log_step

    moves, _ = jax.lax.fori_loop(0, steps + 1, go, (first, jnp.log(step_size)))
    return moves._replace(step_size=jnp.where(tune, jnp.exp(moves.step_size), step_size))


@partial(jax.jit, static_argnums=0)
def _run_block(spec: TargetSpec, data: Any, x: Any, dynamics: Dynamics, words: Any, steps: Any) -> Moves:
    moves = run(spec, data, x, dynamics, random.words(words), steps)
    return spec.whole(moves._replace(position=moves.position._replace(score=jnp.zeros(()))))


def _block_size(chains: int, draws: int, target: Target) -> int:
    """Draws of each chain in one compiled call; fewer where each reads many rows of data, as the last block is padded.

    Few draws have a program of their own, which costs less than many rows that are not needed.
    """
    whole = max(32, (FULL_DATA_ROWS if target.minibatch else block_rows()) // chains)
    return min(whole, FEW) if draws <= FEW else whole


def _padded(part: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([part, np.repeat(part[:, :1], size - part.shape[1], 1)], 1)


def refine(
    target: Target,
    draws: np.ndarray,
    scale: np.ndarray,
    step_size: np.ndarray,
    *,
    steps: int,
    leapfrog_steps: int,
    rng: np.random.Generator,
) -> Refined:
    """Moves every draw by `steps` HMC transitions.

    Args:
        target: The posterior, on its full data.
        draws: Starting points (C, n, d).
        scale: (C, d, d), or (C, d), maps whitened to unconstrained coordinates; masses are one in whitened ones.
        step_size: Leapfrog step size of each chain in whitened units, (C,).
        steps: Transitions.
        leapfrog_steps: Leapfrog steps in each transition.
        rng: Gives the random keys.
    """
    c, n, d = draws.shape
    size, dynamics = _block_size(c, n, target), Dynamics(scale, step_size, leapfrog_steps, tune=False)
    x, log_q = np.empty_like(draws), np.empty((c, n), draws.dtype)
    moved, acceptance, divergences = np.empty((c, n), bool), np.empty((c, n)), np.empty((c, n))
    kinetic = np.empty((c, n))
    for start in range(0, n, size):
        some = slice(start, min(start + size, n))
        words = rng.integers(2**32, size=2, dtype=np.uint32)
        out = _run_block(target.spec, target.data, _padded(draws[:, some], size), dynamics, words, steps)
        count = some.stop - some.start
        for whole, part in (
            (x, out.position.x), (log_q, out.position.log_q), (moved, out.moved), (acceptance, out.acceptance),
            (divergences, out.divergences), (kinetic, out.kinetic),
        ):  # fmt: skip
            whole[:, some] = np.asarray(part)[:, :count]
        target.count(c * count * (steps * leapfrog_steps + 1), int(out.nonfinite))
    return Refined(
        x, log_q, acceptance.mean(1), float(divergences.mean()) / max(steps, 1),
        float((~moved).mean()) if steps else 0.0, divergences > 0,
        statistics={"acceptance_rate": acceptance.astype(x.dtype), "kinetic": kinetic.astype(x.dtype)},
    )  # fmt: skip


def tune_step_size(
    target: Target, draws: np.ndarray, scale: np.ndarray, *, leapfrog_steps: int, rng: np.random.Generator
) -> np.ndarray:
    """Leapfrog step sizes (C,) at which a few of the draws (C, n, d) are accepted with probability 0.8."""
    c, n, d = draws.shape
    some = draws[:, :: max(1, n // TUNING_DRAWS)][:, :TUNING_DRAWS]
    size = min(_block_size(c, n, target), TUNING_DRAWS)
    # The block's other rows repeat draws in turn (and so weigh them alike, but for a remainder).
    x = some[:, np.arange(size) % some.shape[1]]
    words = rng.integers(2**32, size=2, dtype=np.uint32)
    first = np.full(c, d**-0.25, draws.dtype)
    dynamics = Dynamics(scale, first, leapfrog_steps, tune=True)
    out = _run_block(target.spec, target.data, x, dynamics, words, TUNING_STEPS)
    target.count(c * size * (TUNING_STEPS * leapfrog_steps + 1), int(out.nonfinite))
    return np.asarray(out.step_size)
