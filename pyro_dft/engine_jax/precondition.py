"""A Gaussian fitted to the target from scores alone: the coordinates in which the sampler is trained.

Natural-gradient variational inference with antithetic draws, from several starting points at once. For x = mu + L e and
s = L^T grad log q(x), the matrix -E[s e^T] estimates L^T (-Hessian) L, which is the identity at the optimum (Stein's
lemma; Opper and Archambeau 2009, Lin, Khan and Schmidt 2019). All of it is invariant to affine maps of x.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pyro_dft.engine_jax import random
from pyro_dft.engine_jax.target import TargetSpec, double
from pyro_dft.recipe.constants import (
    AVERAGING_SHARE,
    FULL_RANK_LIMIT,
    LONG_CALM,
    MAX_SD,
    pairs,
)


class State(NamedTuple):
    """Means (K, d), scales (K, d, d) or (K, d), and what is needed to step back from a bad move.

    Attributes:
        mean: (K, d).
        scale: (K, d, d), or (K, d) above `FULL_RANK_LIMIT`.
        log_det: Log determinant of the scale, (K,).
        rate: Step size, (K,).
        best: Highest evidence bound seen, (K,).
        kept: Mean, scale and log determinant there.
        returned: Where the last step went back, (K,).
        reach: The longest step allowed, in units of 2 sqrt(d), (K,): it doubles while the optimum is far ahead.
        limited: Where the last step was cut short, (K,).
        last: The last step, in the present whitened coordinates, (K, d).
        stopped: Restarts whose sd passed `MAX_SD`, which are not moved any more, (K,).
        calm: Steps since any restart moved by more than noise.
        calm_sd: Standard deviations when that count began, (K, d).
        taken: Steps taken.
        averaging_from: Step at which the averaging begins.
        nonfinite: Evaluations that were not finite.
    """

    mean: Array
    scale: Array
    log_det: Array
    rate: Array
    best: Array
    kept: tuple[Array, Array, Array]
    returned: Array
    reach: Array
    limited: Array
    last: Array
    stopped: Array
    calm: Array
    calm_sd: Array
    taken: Array
    averaging_from: Array
    nonfinite: Array


def start(means: Any, sds: Any, steps: Any) -> State:
    """The first state.

    Args:
        means: Starting means (K, d).
        sds: Standard deviations to start from, (K,).
        steps: Natural-gradient steps at most.
    """
    mean, sd = jnp.asarray(means, double()), jnp.asarray(sds, double())
    k, d = mean.shape
    scale = sd[:, None] * jnp.ones_like(mean)
    if d <= FULL_RANK_LIMIT:
        scale = scale[..., None] * jnp.eye(d, dtype=mean.dtype)
    log_det = d * jnp.log(sd)
    zero, no = jnp.zeros((), jnp.int32), jnp.zeros(k, bool)
    one = jnp.ones(k, mean.dtype)
    return State(
        mean=mean,
        scale=scale,
        log_det=log_det,
        rate=one,
        best=-jnp.inf * one,
        kept=(mean, scale, log_det),
        returned=no,
        reach=one,
        limited=no,
        last=jnp.zeros_like(mean),
        stopped=no,
        calm=zero,
        calm_sd=sd[:, None] * jnp.ones_like(mean),
        taken=zero,
        averaging_from=jnp.asarray((1 - AVERAGING_SHARE) * steps, jnp.int32),
        nonfinite=zero,
    )


def finished(state: State, steps: Any) -> Array:
    """Whether all steps are taken or the restarts have settled and been averaged."""
    return state.taken >= jnp.minimum(steps, state.averaging_from + AVERAGING_SHARE * steps)


def antithetic_noise(key: Array, shape: tuple[int, int, int], dtype: Any) -> Array:
    """Normal noise (K, 2 pairs, d), each row used with its negative."""
    noise = random.normal(key, shape, dtype)
    return jnp.concatenate([noise, -noise], 1)


def draw(state: State, noise: Array) -> Array:
    """Points (K, n, d) for given noise."""
    moved = noise @ state.scale.mT if state.scale.ndim == 3 else noise * state.scale[:, None]
    return state.mean[:, None] + moved


def step(spec: TargetSpec, data: Any, state: State, key: Array, calm_steps: int = LONG_CALM) -> State:
    """One natural-gradient step of every restart, and the bookkeeping of the schedule."""
    k, d = state.mean.shape
    noise = antithetic_noise(key, (k, pairs(d), d), state.mean.dtype)
    log_q, score = spec.evaluate(draw(state, noise), data, random.fold(key, 0) if spec.minibatch else None)
    averaging = state.taken - state.averaging_from
    new = advance(state, noise, log_q, score, averaging, minibatch=spec.minibatch)
    sd = deviations(new)
    # Still for a while, and none has grown all the time in a flat direction.
    calm_sd = jnp.where(new.calm == 1, sd, state.calm_sd)
    waited = (averaging < 0) & (new.calm >= calm_steps)
    still = (sd < 10 * calm_sd).all()
    return new._replace(
        taken=state.taken + 1,
        calm=jnp.where(waited & ~still, 0, new.calm),
        calm_sd=calm_sd,
        averaging_from=jnp.where(waited & still, state.taken + 1, state.averaging_from),
    )


def deviations(state: State) -> Array:
    """Standard deviations, (K, d)."""
    return jnp.sqrt(jnp.square(state.scale).sum(-1)) if state.scale.ndim == 3 else state.scale


def bound(log_q: Array, noise: Array, log_det: Array) -> tuple[Array, Array]:
    """Evidence bounds (K,) from log densities (K, n) for noise (K, n, d), and standard errors.

    See `pyro_dft.recipe.natural_gradient.bound`.
    """
    good = jnp.isfinite(log_q)
    count = good.sum(1)
    value = jnp.where(good, log_q + 0.5 * jnp.square(noise).sum(-1), 0.0)
    mean = value.sum(1) / jnp.maximum(count, 1)
    residual = jnp.where(good, value - mean[:, None], 0.0)
    # The two points of an antithetic pair are not independent: pairs are the units of the standard error.
    pair = residual.reshape(len(residual), 2, -1).sum(1)
    value = jnp.where(count >= 0.9 * good.shape[1], mean - 0.5 * noise.shape[-1] + log_det, -jnp.inf)
    return value, jnp.sqrt(jnp.square(pair).sum(1)) / jnp.maximum(count, 1)


def advance(
    state: State, noise: Array, log_q: Array, score: Array, averaging: Array, *, minibatch: bool
) -> State:
    """The step for given noise (K, n, d), log densities (K, n) and scores (K, n, d).

    Args:
        state: Where it starts.
        noise: As from `antithetic_noise`.
        log_q: -inf where the target is not finite.
        score: In unconstrained coordinates.
        averaging: Steps of the last, noise-averaging part so far; negative before it.
        minibatch: Whether the scores come from minibatches.
    """
    full = state.scale.ndim == 3
    good = jnp.isfinite(log_q)
    whitened = score @ state.scale if full else score * state.scale[:, None]
    # Points where the target is not finite get the score of a unit Gaussian, which pulls back.
    s = jnp.where(good[..., None], whitened, -noise)
    n, d = noise.shape[1:]
    centre = s.mean(1)
    elbo, error = bound(log_q, noise, state.log_det)
    residual = s - centre[:, None]
    if minibatch:
        ridge, rate, mean_rate = _minibatch_rates(residual, centre, noise, full)
        state = state._replace(best=jnp.fmax(state.best, elbo))
        dropped = jnp.zeros_like(state.returned)
    else:
        ridge = jnp.ones((1, 1, 1), s.dtype)
        state, dropped = _accept_or_return(state, elbo, error)
        # The scores of a point that was just left are of no use at the one returned to.
        rate = mean_rate = jnp.where(dropped, 0.0, state.rate)
    slow = (1.0 + jnp.maximum(averaging, 0)) ** 0.7
    rate, mean_rate = (jnp.where(state.stopped, 0.0, r / slow) for r in (rate, mean_rate))
    w, v, move = _newton(residual, centre, noise, ridge, full)
    length = jnp.maximum(jnp.linalg.norm(move, axis=-1, keepdims=True), np.finfo(s.dtype).tiny)
    # Narrow posteriors can be thousands of their own sds away. While the score still points the way of the last step, and
    # that was cut short, the next may be twice as long.
    ahead = state.limited & ~dropped & ((centre * state.last).sum(-1) > 0)
    reach = jnp.where(ahead, 2 * state.reach, 1.0)
    limit = 2 * d**0.5 * reach[:, None]
    move = jnp.nan_to_num(move * jnp.minimum(limit / length, 1.0)) * mean_rate[:, None]
    shrink = w ** (-0.5 * rate[:, None])
    if full:
        mean = state.mean + (state.scale @ move[..., None])[..., 0]
        scale = state.scale @ (v * shrink[:, None, :]) @ v.mT
        last = (v @ ((v.mT @ move[..., None])[..., 0] / shrink)[..., None])[..., 0]
    else:
        mean, scale, last = state.mean + state.scale * move, state.scale * shrink, move / shrink
    log_det = state.log_det - 0.5 * rate * jnp.log(w).sum(-1)
    # A restart that has grown too wide takes its last step back, and is moved no more.
    wide = deviations(state._replace(scale=scale)).max(-1) > MAX_SD
    mean, scale, log_det = (
        _choose(wide, a, b)
        for a, b in zip((state.mean, state.scale, state.log_det), (mean, scale, log_det), strict=True)
    )
    stopped = state.stopped | wide
    # Restarts that have settled move by no more than the noise of their own estimate.
    small = (length[:, 0] < 4 * (d / n) ** 0.5) & (jnp.abs(jnp.log(w)).max(-1) < 6 * (d / n) ** 0.5 + 0.3)
    still = (small | stopped | ~jnp.isfinite(elbo)).all()
    return state._replace(
        mean=mean,
        scale=scale,
        reach=reach,
        limited=(length > limit)[:, 0],
        last=last,
        stopped=stopped,
        log_det=log_det,
        calm=jnp.where(still, state.calm + 1, 0),
        nonfinite=state.nonfinite + (~good).sum(dtype=jnp.int32),
    )


def _minibatch_rates(residual: Array, centre: Array, noise: Array, full: bool) -> tuple[Array, Array, Array]:
    """Ridge (K, 1, 1) and rates (K,) of covariance and mean, where scores come from minibatches.

    Minibatch noise swamps the bound, so the step follows from the size of that noise instead.
    """
    n, d = noise.shape[1:]
    spread, size = _minibatch_noise(residual, noise, full)
    ridge = jnp.maximum(spread / size**2, 1.0)[:, None, None]
    rate = jnp.minimum(0.5 * size * jnp.sqrt(n / spread), 1.0)
    square = jnp.maximum(jnp.square(centre).sum(-1), np.finfo(centre.dtype).tiny)
    pull = 1 - 4 * spread * d / (n * square)
    return ridge, rate, jnp.maximum(rate, pull)


def _newton(
    residual: Array, centre: Array, noise: Array, ridge: Array, full: bool
) -> tuple[Array, Any, Array]:
    """Curvatures w (K, d) in whitened coordinates, their directions v (K, d, d), and the Newton step (K, d) along them.

    Without matrices v is None, and the directions are the coordinates.
    """
    if not full:
        weight = ridge[..., 0]
        w = ((-residual * noise).sum(1) + weight) / (jnp.square(noise).sum(1) + weight)
        w = jnp.clip(jnp.nan_to_num(w, nan=1.0), 0.25, 9.0)
        return w, None, centre / w
    eye = jnp.eye(noise.shape[-1], dtype=residual.dtype)
    gram = noise.mT @ noise + ridge * eye
    product = -residual.mT @ noise + ridge * eye
    curvature = _solve(gram, product.mT).mT
    curvature = jnp.nan_to_num(0.5 * (curvature + curvature.mT), nan=0.0, posinf=9.0, neginf=-9.0)
    w, v = jnp.linalg.eigh(curvature, symmetrize_input=False)
    w = jnp.clip(w, 0.25, 9.0)
    return w, v, (v @ ((v.mT @ centre[..., None])[..., 0] / w)[..., None])[..., 0]


def _minibatch_noise(s: Array, noise: Array, full: bool) -> tuple[Array, Array]:
    """Variance of whitened scores (K, n, d) that no curvature explains, and the size of that curvature, (K,) each.

    Where the posterior is still much narrower than the Gaussian, the curvature is large, and none of it is noise.
    """
    n, d = s.shape[1:]
    if full:
        residual = s - noise @ _solve(noise.mT @ noise, noise.mT @ s)
    else:
        residual = s - noise * (s * noise).sum(1, keepdims=True) / jnp.square(noise).sum(1, keepdims=True)
    spread = jnp.square(residual).sum((1, 2)) / (max(n - (d if full else 1), 1) * d)
    # One number for all directions, less twice its standard error.
    squares = jnp.square(noise).sum((1, 2))
    size = -(s * noise).sum((1, 2)) / squares
    remainder = jnp.square(s + size[:, None, None] * noise).mean((1, 2))
    size = size - 2 * jnp.sqrt(remainder / squares)
    return jnp.maximum(spread, 1e-12), jnp.maximum(jnp.nan_to_num(size, nan=1.0), 1.0)


def _solve(matrix: Array, right: Array) -> Array:
    """Positive definite systems; compiles in a third of the time of a general solver."""
    factor = jax.lax.linalg.cholesky(matrix, symmetrize_input=False)
    return jax.scipy.linalg.cho_solve((factor, True), right)


def _choose(mask: Array, a: Array, b: Array) -> Array:
    """Rows of `a` where the mask (K,) is True, else rows of `b`."""
    return jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)


def _accept_or_return(state: State, elbo: Array, error: Array) -> tuple[State, Array]:
    """Goes back to the best point where the bound dropped, and adapts the step sizes; returns where it dropped, (K,)."""
    finite = jnp.isfinite(elbo)
    # A lucky estimate of the bound must not hold a restart in its place for ever: after a return, this is a second
    # estimate for the same point.
    again = state.returned & finite
    dropped = jnp.isfinite(state.best) & (~finite | (elbo < state.best - 2 - 3 * error)) & ~again
    better = finite & (elbo > state.best) & ~again
    best = jnp.where(better, elbo, jnp.where(again, 0.5 * (state.best + elbo), state.best))

    now = (state.mean, state.scale, state.log_det)
    kept = tuple(_choose(better, a, b) for a, b in zip(now, state.kept, strict=True))
    mean, scale, log_det = (_choose(dropped, a, b) for a, b in zip(kept, now, strict=True))
    state = state._replace(
        mean=mean,
        scale=scale,
        log_det=log_det,
        kept=kept,  # type: ignore[arg-type]
        best=best,
        returned=dropped,
        rate=jnp.where(dropped, state.rate / 2, jnp.minimum(1.2 * state.rate, 1.0)),
    )
    return state, dropped
