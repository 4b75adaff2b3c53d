"""A Gaussian fitted to the target from scores alone: the coordinates in which the sampler is trained.

Natural-gradient variational inference with antithetic draws, from several starting points at once. For x = mu + L e and
s = L^T grad log q(x), the matrix -E[s e^T] estimates L^T (-Hessian) L, which is the identity at the optimum (Stein's
lemma; Opper and Archambeau 2009, Lin, Khan and Schmidt 2019). All of it is invariant to affine maps of x.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pyro_dft.engine_jax import random
from pyro_dft.engine_jax.target import Target, TargetSpec, double
from pyro_dft.recipe.constants import (
    AVERAGING_SHARE,
    CALM_STEPS,
    EVIDENCE_ROWS,
    FULL_RANK_LIMIT,
    LEAST_POLISH,
    MAX_SD,
    POLISH_CALM,
    POLISH_STEPS,
    pairs,
)
from pyro_dft.recipe.gaussians import Gaussians

# Steps of one compiled call, at most: between calls the progress bar moves and Ctrl-C is heard.
CHUNK = 25


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
        reach: The longest step, in units of 2 sqrt(d), (K,): it doubles while a far optimum lies ahead.
        limited: Where the last step was cut short, (K,).
        last: The last step, in the present whitened coordinates, (K, d).
        stopped: Restarts that grew beyond `MAX_SD` and rest, (K,).
        calm: Steps for which all restarts have been still.
        calm_sd: Standard deviations when they began to be, (K, d).
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


def step(spec: TargetSpec, data: Any, state: State, key: Array, calm_steps: int = CALM_STEPS) -> State:
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


def bound(log_q: Array, log_det: Array) -> tuple[Array, Array]:
    """Evidence bounds (K,) from log densities (K, n), -inf where more than a tenth are not finite; standard errors."""
    good = jnp.isfinite(log_q)
    count = good.sum(1)
    mean = jnp.where(good, log_q, 0.0).sum(1) / jnp.maximum(count, 1)
    residual = jnp.where(good, log_q - mean[:, None], 0.0)
    # The two points of an antithetic pair are not independent: pairs are the units of the standard error.
    pair = residual.reshape(len(residual), 2, -1).sum(1)
    value = jnp.where(count >= 0.9 * good.shape[1], mean + log_det, -jnp.inf)
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
    # Points where the target is not finite act as under a unit Gaussian: they pull back.
    s = jnp.where(good[..., None], whitened, -noise)
    n, d = noise.shape[1:]
    centre = s.mean(1)
    elbo, error = bound(log_q, state.log_det)
    tiny = np.finfo(s.dtype).tiny
    if minibatch:
        # Minibatch noise swamps the bound, so the step follows from the size of that noise instead.
        spread, size = _minibatch_noise(s - centre[:, None], noise, full)
        ridge = jnp.maximum(spread / size**2, 1.0)[:, None, None]
        rate = jnp.minimum(0.5 * size * jnp.sqrt(n / spread), 1.0)
        pull = 1 - 4 * spread * d / (n * jnp.maximum(jnp.square(centre).sum(-1), tiny))
        mean_rate = jnp.maximum(rate, pull)
        state = state._replace(best=jnp.fmax(state.best, elbo))
        dropped = jnp.zeros_like(state.returned)
    else:
        ridge = jnp.ones((1, 1, 1), s.dtype)
        state, dropped = _accept_or_return(state, elbo, error)
        # The scores of a point that was just left are of no use at the one returned to.
        rate = mean_rate = jnp.where(dropped, 0.0, state.rate)
    slow = (1.0 + jnp.maximum(averaging, 0)) ** 0.7
    rate, mean_rate = (jnp.where(state.stopped, 0.0, r / slow) for r in (rate, mean_rate))
    if full:
        eye = jnp.eye(d, dtype=s.dtype)
        gram = noise.mT @ noise + ridge * eye
        product = -(s - centre[:, None]).mT @ noise + ridge * eye
        curvature = _solve(gram, product.mT).mT
        curvature = jnp.nan_to_num(0.5 * (curvature + curvature.mT), nan=0.0, posinf=9.0, neginf=-9.0)
        w, v = jnp.linalg.eigh(curvature, symmetrize_input=False)
        w = jnp.clip(w, 0.25, 9.0)
        move = (v @ ((v.mT @ centre[..., None])[..., 0] / w)[..., None])[..., 0]
    else:
        weight = ridge[..., 0]
        w = ((-(s - centre[:, None]) * noise).sum(1) + weight) / (jnp.square(noise).sum(1) + weight)
        w = jnp.clip(jnp.nan_to_num(w, nan=1.0), 0.25, 9.0)
        move = centre / w
    length = jnp.maximum(jnp.linalg.norm(move, axis=-1, keepdims=True), tiny)
    # Narrow posteriors can be thousands of their own sds away. While the score still points the way of the last step, and
    # that was cut short, the next may be twice as long.
    ahead = state.limited & ~dropped & ((centre * state.last).sum(-1) > 0)
    reach = jnp.where(ahead, 2 * state.reach, 1.0)
    limit = 2 * d**0.5 * reach[:, None]
    limited = (length > limit)[:, 0]
    move = jnp.nan_to_num(move * jnp.minimum(limit / length, 1.0)) * mean_rate[:, None]
    shrink = w ** (-0.5 * rate[:, None])
    if full:
        mean = state.mean + (state.scale @ move[..., None])[..., 0]
        scale = state.scale @ (v * shrink[:, None, :]) @ v.mT
        last = (v @ ((v.mT @ move[..., None])[..., 0] / shrink)[..., None])[..., 0]
    else:
        mean, scale = state.mean + state.scale * move, state.scale * shrink
        last = move / shrink
    log_det = state.log_det - 0.5 * rate * jnp.log(w).sum(-1)
    # A restart that has grown too wide takes its step back, and rests.
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
        limited=limited,
        last=last,
        stopped=stopped,
        log_det=log_det,
        calm=jnp.where(still, state.calm + 1, 0),
        nonfinite=state.nonfinite + (~good).sum(dtype=jnp.int32),
    )


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
    """Rows of `a` where the mask (K,) says so, else of `b`."""
    return jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)


def _accept_or_return(state: State, elbo: Array, error: Array) -> tuple[State, Array]:
    """Goes back to the best point where the bound dropped, and halves the step; else speeds up. Says where (K,)."""
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


_start = jax.jit(start)


@partial(jax.jit, static_argnums=(0, 5))
def _chunk(
    spec: TargetSpec, data: Any, state: State, words: Any, steps: Any, calm_steps: int = CALM_STEPS
) -> tuple[State, Array]:
    """Up to `CHUNK` steps, fewer where the fit is done; the best bound after each."""
    key = random.words(words)

    def go(carry: tuple[State, Array, Array]) -> tuple[State, Array, Array]:
        now, i, bests = carry
        now = step(spec, data, now, random.fold(key, now.taken), calm_steps)
        return now, i + 1, bests.at[i].set(now.best.max())

    bests = jnp.full(CHUNK, -jnp.inf, state.mean.dtype)
    state, _, bests = jax.lax.while_loop(
        lambda c: (c[1] < CHUNK) & ~finished(c[0], steps), go, (state, jnp.zeros((), jnp.int32), bests)
    )
    return state, bests


class GaussianFitter:
    """Fits one full-rank Gaussian from each starting point (diagonal above 300 dimensions), a chunk of steps at a time.

    Args:
        target: The target; minibatch scores are used where it has them.
        starts: (K, d) starting means.
        start_scales: (K,) standard deviations to start from.
        steps: Natural-gradient steps at most; fitting ends early when all restarts have settled.
        rng: Gives the random keys.
    """

    def __init__(
        self, target: Target, starts: Any, start_scales: Any, *, steps: int, rng: np.random.Generator
    ):
        self.target, self.steps, self.rng = target, steps, rng
        self.state: State = _start(np.asarray(starts, double()), np.asarray(start_scales, double()), steps)
        self._spec, self._calm = target.spec, CALM_STEPS
        self._words = rng.integers(2**32, size=2, dtype=np.uint32)
        self.taken = 0
        self.done = False

    @property
    def settled(self) -> bool:
        """Whether all restarts were still before the averaging began."""
        return int(self.state.averaging_from) != int((1 - AVERAGING_SHARE) * self.steps)

    def go_on_from(self, gaussians: Gaussians) -> None:
        """Starts from Gaussians that are nearly right, with scores of the full data."""
        own = (
            gaussians.scale if self.state.scale.ndim == 3 else np.diagonal(gaussians.scale, axis1=1, axis2=2)
        )
        mean, scale = jnp.asarray(gaussians.mean, double()), jnp.asarray(own, double())
        log_det = jnp.asarray(np.linalg.slogdet(gaussians.scale)[1], double())
        kept = (mean, scale, log_det)
        self.state = self.state._replace(mean=mean, scale=scale, log_det=log_det, kept=kept)
        self._spec, self._calm = replace(self.target.spec, minibatch_potential=None), POLISH_CALM

    def advance(self) -> list[float]:
        """A chunk of natural-gradient steps; the best evidence bound after each."""
        before, lost = self.taken, int(self.state.nonfinite)
        self.state, bests = _chunk(
            self._spec, self.target.data, self.state, self._words, self.steps, self._calm
        )
        self.taken = int(self.state.taken)
        ends = min(self.steps, int(self.state.averaging_from) + AVERAGING_SHARE * self.steps)
        self.done = self.taken >= ends
        k, d = self.state.mean.shape
        evaluations = (self.taken - before) * k * 2 * pairs(d)
        nonfinite = int(self.state.nonfinite) - lost
        self.target.count(evaluations, nonfinite, minibatch=self._spec.minibatch)
        return np.asarray(bests)[: self.taken - before].tolist()

    @property
    def best_elbo(self) -> float:
        """The highest evidence bound seen, up to the target's constant."""
        return float(np.asarray(self.state.best).max())

    def current(self) -> Gaussians:
        """The K Gaussians as they stand, with the highest bounds seen, which cost nothing."""
        mean, scale, best = (np.asarray(v) for v in (self.state.mean, self.state.scale, self.state.best))
        return Gaussians(mean, _full(scale), best, np.zeros(len(best)))

    def result(self) -> Gaussians:
        """The K Gaussians; those whose evidence bound is not finite have `elbo` -inf."""
        mean, scale = np.asarray(self.state.mean), np.asarray(self.state.scale)
        rows = len(mean) * self.target.data_size
        count = int(min(256, max(8, EVIDENCE_ROWS / (2 * rows))))
        noise = self.rng.standard_normal((len(mean), count, mean.shape[1]))
        noise = np.concatenate([noise, -noise], 1)
        full = scale.ndim == 3
        moved = noise @ scale.swapaxes(1, 2) if full else noise * scale[:, None]
        log_q, _ = self.target.evaluate((mean[:, None] + moved).astype(mean.dtype))
        elbo, error = _host_bound(log_q.astype(float), np.asarray(self.state.log_det, float))
        return Gaussians(mean, _full(scale), elbo, error)


def _full(scale: np.ndarray) -> np.ndarray:
    """Square roots (K, d, d) of covariances, from those or from standard deviations (K, d)."""
    return scale if scale.ndim == 3 else scale[..., None] * np.eye(scale.shape[1])


def polish(target: Target, gaussians: Gaussians, rng: np.random.Generator, budget: float) -> Gaussians:
    """Goes on with fits to minibatches on the full data, where their noise would need thousands of steps to average out.

    Args:
        target: The target.
        gaussians: Where to go on.
        rng: Gives the random keys.
        budget: Gradient evaluations times data rows that may be used; where they allow few steps, none are made.
    """
    each = 2 * pairs(target.dim) * len(gaussians.mean) * target.data_size
    steps = int(min(POLISH_STEPS, budget / each))
    if steps < LEAST_POLISH:
        return gaussians
    fitter = GaussianFitter(target, gaussians.mean, np.ones(len(gaussians.mean)), steps=steps, rng=rng)
    fitter.go_on_from(gaussians)
    while not fitter.done:
        fitter.advance()
    return fitter.result()


def _host_bound(log_q: np.ndarray, log_det: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`bound` in float64 on the host, where jax may have none."""
    good = np.isfinite(log_q)
    count = good.sum(1)
    mean = np.where(good, log_q, 0.0).sum(1) / np.maximum(count, 1)
    residual = np.where(good, log_q, mean[:, None]) - mean[:, None]
    pair = residual.reshape(len(residual), 2, -1).sum(1)
    value = np.where(count >= 0.9 * good.shape[1], mean + log_det, -np.inf)
    return value, np.sqrt(np.square(pair).sum(1)) / np.maximum(count, 1)
