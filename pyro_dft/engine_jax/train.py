"""Training of the generator and the score network in whitened coordinates (Algorithm 1 of arXiv 2411.01453).

A step is a pure function of a state, a key and hyper-parameters that are arguments, not constants; `NetworkTrainer` runs
chunks of steps as one compiled program.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from pyro_dft.engine_jax import networks, objectives, random
from pyro_dft.engine_jax.custom import Own, named, unnamed
from pyro_dft.engine_jax.networks import Weights
from pyro_dft.engine_jax.sampler import Sampler
from pyro_dft.engine_jax.surrogate import Surrogate
from pyro_dft.engine_jax.target import (
    Target,
    TargetSpec,
    double,
    smoothed_score,
    whitened_score,
    whitened_score_differentiable,
)
from pyro_dft.recipe.constants import (
    ANCHOR_DRAWS,
    GENERATOR_BETAS,
    MAX_GRADIENT_NORM,
    MIN_SIGMA,
    SCORE_BETAS,
    SETTLING_RATE,
    SETTLING_SCORE,
)
from pyro_dft.recipe.history import check_like
from pyro_dft.settings import Settings

# Steps of one compiled call, at most: between calls the progress bar moves and Ctrl-C is heard.
CHUNK = 50

GENERATOR_ADAM = optax.scale_by_adam(*GENERATOR_BETAS)
SCORE_ADAM = optax.scale_by_adam(*SCORE_BETAS)


class OwnNetworks(NamedTuple):
    """Networks that the user brings; None takes those of this package."""

    generator: Own | None = None
    score_network: Own | None = None


NO_NETWORKS = OwnNetworks()


@dataclass(frozen=True)
class Plan:
    """The settings that a compiled training step is specialised to; see `Settings`."""

    score_steps: int
    batch_size: int
    final_batch_factor: int
    width: int
    depth: int
    distance: str
    noise_mode: str
    averaging: float = 0.0
    warm: bool = True
    generator: Own | None = None
    score_network: Own | None = None

    @classmethod
    def of(cls, settings: Settings, networks: OwnNetworks = NO_NETWORKS) -> Plan:
        """The part of the settings that belongs here, and the networks that the user brings."""
        names = cls.__dataclass_fields__.keys() - {"warm", "generator", "score_network"}
        own = {name: getattr(settings, name) for name in names}
        return cls(**own, warm=settings.objective == "auto", **networks._asdict())

    @property
    def levels(self) -> bool:
        """Whether the noise varies from point to point."""
        return self.noise_mode == "levels"

    def batch(self, phase: str) -> int:
        """Latent points for each step."""
        return self.batch_size * (self.final_batch_factor if self.after_kl(phase) else 1)

    def after_kl(self, phase: str) -> bool:
        """Whether the networks were trained by KL before this phase."""
        return phase == "dft" and self.warm


class Hyper(NamedTuple):
    """The settings that are arguments of a compiled training step; see `Settings`."""

    learning_rate: Any
    dft_learning_rate: Any
    score_learning_rate: Any
    huber_scale: Any
    noise: Any
    noise_start: Any
    settle_fraction: Any

    @classmethod
    def of(cls, settings: Settings) -> Hyper:
        """The part of the settings that belongs here."""
        return cls(*(np.float32(getattr(settings, name)) for name in cls._fields))


class NetworkState(NamedTuple):
    """What a training step changes.

    Attributes:
        generator: Weights.
        score: Weights of the score network.
        generator_adam: Moments.
        score_adam: Moments.
        gap: Moving average of the Fisher gap, (C,); NaN before the first step.
        nonfinite: Score evaluations that were not finite.
        average: Moving average of the generator's weights; empty where none is taken.
    """

    generator: Weights
    score: Weights
    generator_adam: Any
    score_adam: Any
    gap: Array
    nonfinite: Array
    average: Weights | tuple[()] = ()

    @property
    def trained(self) -> Weights:
        """The weights that draws come from."""
        return self.average or self.generator


def start(key: Array, plan: Plan, hyper: Hyper, chains: int, dim: int, dtype: Any) -> NetworkState:
    """Networks that reproduce the Gaussian."""
    noise = hyper.noise_start if plan.noise_mode == "annealed" else hyper.noise
    generator = networks.init_generator(
        random.fold(key, 1), chains, dim, plan.width, plan.depth, noise, dtype, plan.generator
    )
    words = random.fold(key, 2)
    if plan.score_network is None:
        more = int(plan.levels)
        score = networks.init_mlp(words, chains, dim, plan.width, plan.depth, dtype, more)
    else:
        score = {"own": plan.score_network.init(words, chains, dtype)}
    gap = jnp.full(chains, jnp.nan, double())
    return NetworkState(
        generator, score, GENERATOR_ADAM.init(generator), SCORE_ADAM.init(score), gap, jnp.zeros((), jnp.int32),
        generator if plan.averaging else (),
    )  # fmt: skip


def fresh(generator: Weights, z: Array, eps: Array, level: Any = None) -> tuple[Array, Array, Array]:
    """Draws u (C, 2 B, d), eps and sigma: each eps is used with -eps, which halves the gradient's error.

    The noise is one for all points, (C, 1, d), or where a `level` (C, B, 1) is given that one, (C, 2 B, 1).
    """
    sigma = networks.sigma(generator) if level is None else level
    clean, noise = networks.generate(generator, z), sigma * eps
    u, eps = jnp.concatenate([clean + noise, clean - noise], 1), jnp.concatenate([eps, -eps], 1)
    return u, eps, sigma if level is None else jnp.concatenate([level, level], 1)


def score_loss(score: Weights, generator: Weights, z: Array, eps: Array, level: Any = None) -> Array:
    """Weighted denoising loss of the score network on fresh detached draws, (C,)."""
    u, noise, sigma = fresh(jax.lax.stop_gradient(generator), z, eps, level)
    found = networks.score(score, u, sigma, level is not None)
    return objectives.denoising_weighted(found, noise, sigma)


def generator_loss(
    spec: TargetSpec, phase: str, distance: objectives.Distance, data: Any, mean: Array, scale: Array,
    generator: Weights, score: Weights, z: Array, eps: Array, keys: Any, level: Any = None, anchor: Any = None,
) -> tuple[Array, tuple[Array, Array]]:  # fmt: skip
    """The generator's objective in one phase.

    Args:
        spec: The posterior.
        phase: "kl", "dft", "dft-paper" or "fisher-partial".
        distance: Distance of Theorem 1; its scale is also the knee under KL.
        data: What the posterior reads.
        mean: (C, d) of the whitening.
        scale: (C, d, d) or (C, d), of the whitening.
        generator: Weights.
        score: Weights of the score network.
        z: (C, B, d) normal.
        eps: (C, B, d) normal.
        keys: Two keys for the minibatches, or None where there are none.
        level: (C, B, 1) noise of each point, or None for that of the generator.
        anchor: (C, d) full scores at the means, or None; see `whitened_score`.

    Returns:
        The loss (C,); the Fisher gap (C,) and the number of scores that were not finite.
    """
    u, noise, sigma = fresh(generator, z, eps, level)
    levels = level is not None
    detached = jax.lax.stop_gradient(u)
    full = phase in ("dft", "dft-paper")
    differentiable = full or phase == "fisher-partial"

    def target_score(through: bool, key: Any) -> tuple[Array, Array]:
        if levels:
            return smoothed_score(spec, u if through else detached, sigma, mean, scale, data)
        function = whitened_score_differentiable if through else whitened_score
        return function(spec, u if through else detached, mean, scale, data, key, anchor)

    key_1, key_2 = (None, None) if keys is None else (keys[0], keys[1])
    score_q, good = target_score(differentiable, key_1)
    # Where a product of scores enters, minibatch noise must be independent in the two factors.
    score_q2 = target_score(full, key_2)[0] if spec.minibatch and not levels else None
    score_p = networks.score(jax.lax.stop_gradient(score), u if differentiable else detached, sigma, levels)
    delta = score_p - score_q
    # The square of the difference of two denoised points, of one size at all levels.
    weight = sigma[..., 0] ** 4 if levels else 1.0
    if phase == "kl":
        if score_q2 is not None:
            delta = 0.5 * (delta + score_p - score_q2)
        # Under KL a single particle far out may pull with bounded force only; same fixed point.
        bounded = objectives.Distance("pseudo-huber", distance.scale)
        loss = objectives.kl_levels(delta, u, sigma, bounded) if levels else objectives.kl(delta, u, bounded)
    elif phase == "fisher-partial":
        loss = objectives.fisher_partial(delta, distance, weight)
    elif score_q2 is not None:
        loss = objectives.fisher_full_two_minibatches(delta, score_p - score_q2, score_p, noise, sigma)
    else:
        loss = objectives.fisher_full(delta, score_p, noise, sigma, distance, weight)
    gap = objectives.fisher_gap(score_q, score_p, noise, sigma, score_q2, weight)
    return loss, (jax.lax.stop_gradient(gap), (~good).sum(dtype=jnp.int32))


def rates(phase: str, hyper: Hyper, done: Any, after_kl: bool = False) -> tuple[Any, Any]:
    """Learning rates of the generator and the score network; `done` is the share of the phase that is behind."""
    if phase != "kl":
        # After KL training both networks are good already, and only have to follow (docs/experiments.md).
        follow = SETTLING_SCORE if after_kl else 1.0
        cosine = _cosine(done)
        rate = hyper.dft_learning_rate * (0.1 + 0.9 * cosine) * follow
        return rate, hyper.score_learning_rate * (0.05 + 0.95 * cosine) * follow
    share = hyper.settle_fraction
    moving = _cosine(done / jnp.maximum(1 - share, 1e-6))
    settling = _cosine((done - 1 + share) / jnp.maximum(share, 1e-6))
    settles = done >= 1 - share
    last = SETTLING_RATE * (0.01 + 0.99 * settling), SETTLING_SCORE * (0.05 + 0.95 * settling)
    rate = hyper.learning_rate * jnp.where(settles, last[0], 0.01 + 0.99 * moving)
    return rate, hyper.score_learning_rate * jnp.where(settles, last[1], 0.05 + 0.95 * moving)


def _cosine(done: Any) -> Any:
    return 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0.0, 1.0)))


def step(
    spec: TargetSpec, plan: Plan, phase: str, data: Any, mean: Array, scale: Array, state: NetworkState,
    hyper: Hyper, done: Any, key: Array, anchor: Any = None,
) -> tuple[NetworkState, Array]:  # fmt: skip
    """One generator step behind `score_steps` score steps; see `generator_loss` and `rates` for the arguments.

    Returns:
        The new state, and the Fisher gap J(s_q) - J(s_phi) on the fresh draws of this step, mean over chains.
    """
    generator_rate, score_rate = rates(phase, hyper, done, plan.after_kl(phase))
    generator, dtype = state.generator, state.generator["log_sigma"].dtype
    if plan.noise_mode == "annealed" and not plan.after_kl(phase):
        share = jnp.minimum(done / 0.6, 1.0)
        log_sigma = jnp.log(hyper.noise_start) * (1 - share) + jnp.log(hyper.noise) * share
        generator = generator | {"log_sigma": jnp.full_like(generator["log_sigma"], log_sigma)}
    shape = (mean.shape[0], plan.batch(phase), mean.shape[1])

    # All noise of the step at once: each place that draws costs compilation.
    noise = random.normal(key, (plan.score_steps + 1, 2, *shape), dtype)
    level: Any = None
    if plan.levels:
        share = random.uniform(random.fold(key, 3), (plan.score_steps + 1, *shape[:2], 1), dtype)
        level = hyper.noise * (hyper.noise_start / hyper.noise) ** share

    def score_step(carry: tuple[Weights, Any], own: Any) -> tuple[tuple[Weights, Any], None]:
        weights, adam = carry
        (z, eps), sigma = own
        gradient = jax.grad(lambda w: score_loss(w, generator, z, eps, sigma).sum())(weights)
        return apply(SCORE_ADAM, weights, adam, gradient, score_rate), None

    rest = noise[1:], None if level is None else level[1:]
    (score, score_adam), _ = jax.lax.scan(score_step, (state.score, state.score_adam), rest)
    distance = objectives.Distance(plan.distance, hyper.huber_scale)

    def loss(weights: Weights) -> tuple[Array, tuple[Array, Array]]:
        own = generator_loss(
            spec, phase, distance, data, mean, scale, weights, score, noise[0, 0], noise[0, 1],
            (random.fold(key, 1), random.fold(key, 2)) if spec.minibatch else None,
            None if level is None else level[0], anchor,
        )  # fmt: skip
        return own[0].sum(), own[1]

    gradient, (gap, nonfinite) = jax.grad(loss, has_aux=True)(generator)
    if plan.noise_mode != "learned":
        gradient = gradient | {"log_sigma": jnp.zeros_like(gradient["log_sigma"])}
    generator, adam = apply(GENERATOR_ADAM, generator, state.generator_adam, gradient, generator_rate)
    if plan.noise_mode == "learned":
        generator = generator | {"log_sigma": jnp.maximum(generator["log_sigma"], math.log(MIN_SIGMA))}
    gap = gap.astype(state.gap.dtype)
    smooth = jnp.where(jnp.isnan(state.gap), gap, 0.98 * state.gap + 0.02 * gap)
    average = state.average
    if average:
        n = adam.count.astype(dtype)
        decay = jnp.minimum(plan.averaging, (1 + n) / (10 + n))
        average = jax.tree.map(lambda m, w: m + ((1 - decay) * (w - m)).astype(m.dtype), average, generator)
    state = NetworkState(generator, score, adam, score_adam, smooth, state.nonfinite + nonfinite, average)
    return state, gap.mean()


def apply(
    adam: optax.GradientTransformation, weights: Weights, moments: Any, gradient: Weights, rate: Any
) -> tuple[Weights, Any]:
    """Adam with the gradient norm of each chain clipped on its own, so that chains stay independent."""
    squares = sum(jnp.square(g).reshape(len(g), -1).sum(1) for g in jax.tree.leaves(gradient))
    factor = jnp.minimum(MAX_GRADIENT_NORM / jnp.maximum(jnp.sqrt(jnp.asarray(squares)), 1e-12), 1.0)
    # A chain whose gradient is not finite skips the step.
    factor = jnp.where(jnp.isfinite(jnp.asarray(squares)), factor, 0.0)

    def clip(g: Array) -> Array:
        return jnp.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0) * factor.reshape(-1, *[1] * (g.ndim - 1))

    updates, moments = adam.update(jax.tree.map(clip, gradient), moments)
    return jax.tree.map(lambda w, change: w - (rate * change).astype(w.dtype), weights, updates), moments


@partial(jax.jit, static_argnums=(0, 1, 2))
def _chunk(
    spec: TargetSpec, plan: Plan, phase: str, data: Any, mean: Any, scale: Any, state: NetworkState, hyper: Hyper,
    words: Any, first: Any, length: Any, count: Any, anchor: Any = None,
) -> tuple[NetworkState, Array]:  # fmt: skip
    """`count` <= `CHUNK` steps from the phase's step `first` of `length`; the Fisher gap of each."""
    key = random.words(words)

    def go(i: Array, carry: tuple[NetworkState, Array]) -> tuple[NetworkState, Array]:
        now, gaps = carry
        done = (first + i) / length
        now, gap = step(
            spec,
            plan,
            phase,
            data,
            mean,
            scale,
            now,
            hyper,
            done.astype(mean.dtype),
            random.fold(key, i),
            anchor,
        )
        return now, gaps.at[i].set(gap)

    return jax.lax.fori_loop(0, count, go, (state, jnp.zeros(CHUNK, state.gap.dtype)))


@partial(jax.jit, static_argnums=0)
def _noisy_scores(
    spec: TargetSpec, data: Any, u: Any, mean: Any, scale: Any, anchor: Any, words: Any
) -> tuple[Array, Array]:
    """Whitened minibatch scores, without and with the control variate."""
    key = random.words(words)
    plain = whitened_score(spec, u, mean, scale, data, key)[0]
    return plain, whitened_score(spec, u, mean, scale, data, key, anchor)[0]


_start = jax.jit(
    lambda words, plan, hyper, chains, dim, dtype: start(
        random.words(words), plan, hyper, chains, dim, dtype
    ),
    static_argnums=(1, 3, 4, 5),
)


class NetworkTrainer:
    """Alternates denoising score matching and generator steps for C chains at once.

    Args:
        target: The posterior.
        sampler: The Gaussian whose coordinates are used, (C, d).
        settings: Hyper-parameters.
        rng: Gives the random keys.
        networks: Networks that the user brings.

    Attributes:
        surrogate: Gives the scores in place of the posterior, or None.
    """

    def __init__(
        self,
        target: Target,
        sampler: Sampler,
        settings: Settings,
        rng: np.random.Generator,
        networks: OwnNetworks = NO_NETWORKS,
    ):
        self.target, self.rng = target, rng
        self.plan, self.hyper = Plan.of(settings, networks), Hyper.of(settings)
        self.mean, self.scale = sampler.mean, sampler.scale
        self.state: NetworkState = _start(
            self._words(), self.plan, self.hyper, *self.mean.shape, target.dtype.name
        )
        self.anchor = None if self.plan.levels else self._anchor(sampler)
        self.surrogate: Surrogate | None = None

    def _anchor(self, sampler: Sampler) -> np.ndarray | None:
        """Full scores at the means, where a control variate made of them halves the variance of minibatch scores."""
        target = self.target
        if not target.minibatch:
            return None
        c, d = self.mean.shape
        anchor = target.evaluate(np.asarray(self.mean, target.dtype))[1]
        u = self.rng.standard_normal((c, ANCHOR_DRAWS, d)).astype(target.dtype)
        both = [
            _noisy_scores(target.spec, target.data, u, self.mean, self.scale, anchor, self._words())
            for _ in range(2)
        ]
        target.count(2 * 3 * u.shape[0] * u.shape[1], minibatch=True)
        plain, corrected = (
            float(np.square(np.asarray(a) - np.asarray(b)).mean()) for a, b in zip(*both, strict=True)
        )
        return anchor if corrected < 0.5 * plain else None

    def _words(self) -> np.ndarray:
        return self.rng.integers(2**32, size=2, dtype=np.uint32)

    def sampler(self) -> Sampler:
        """The sampler as trained so far."""
        return Sampler(self.mean, self.scale, self.snapshot())

    @property
    def trained(self) -> Weights:
        """The weights that draws come from."""
        return self.snapshot()

    @property
    def trained_score(self) -> Weights:
        """The score network's weights."""
        return dict(self.state.score)

    def branch(self) -> NetworkTrainer:
        """A copy whose sampler stays as it is while this one is trained."""
        return copy.copy(self)

    def pack(self, weights: Weights) -> dict[str, np.ndarray]:
        """A snapshot as arrays, by name."""
        return named(weights)

    def unpack(self, arrays: dict[str, np.ndarray]) -> Weights:
        """The inverse of `pack`."""
        return unnamed(arrays, self.snapshot())

    def snapshot(self) -> Weights:
        """The weights that draws come from."""
        return dict(self.state.trained)

    def restore(
        self, weights: Weights, mask: np.ndarray | None = None, otherwise: Weights | None = None
    ) -> None:
        """Sets the weights that draws come from; with a mask (C,), those of `otherwise` where it is False."""
        if mask is not None and otherwise is not None:
            keep = mask

            def choose(a: Any, b: Any) -> np.ndarray:
                return np.where(keep.reshape(-1, *[1] * (a.ndim - 1)), np.asarray(a), np.asarray(b))

            weights = jax.tree.map(choose, dict(weights), dict(otherwise))
        if self.state.average:
            self.state = self.state._replace(average=dict(weights))
        else:
            self.state = self.state._replace(generator=dict(weights))

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that training goes on from, but for the random numbers."""
        return named({"state": self.state._asdict(), "mean": self.mean, "scale": self.scale})

    def set_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `arrays`."""
        check_like(arrays, self.arrays())
        like = {"state": self.state._asdict(), "mean": self.mean, "scale": self.scale}
        found = unnamed(arrays, like)
        self.state, self.mean, self.scale = NetworkState(**found["state"]), found["mean"], found["scale"]
        if self.anchor is not None:  # it belongs to the means, which another machine may round differently
            self.anchor = self.target.evaluate(np.asarray(self.mean, self.target.dtype))[1]

    def smoothed_gap(self) -> np.ndarray:
        """Moving average of the Fisher gap, (C,)."""
        return np.array(self.state.gap)

    def advance(self, phase: str, first: int, length: int, count: int) -> list[float]:
        """Up to `CHUNK` steps of a phase; returns the Fisher gap J(s_q) - J(s_phi) of each, mean over chains.

        Args:
            phase: "kl", "dft", "dft-paper" or "fisher-partial".
            first: Steps of the phase made before.
            length: Steps of the phase in all (sets the learning rates).
            count: Steps to make at most.
        """
        count, lost = min(count, CHUNK), int(self.state.nonfinite)
        spec, data = self.target.spec, self.target.data
        if self.surrogate is not None:
            spec, data = self.surrogate.spec, self.surrogate.weights
        self.state, gaps = _chunk(
            spec, self.plan, phase, data, self.mean, self.scale, self.state, self.hyper,
            self._words(), first, length, count, self.anchor,
        )  # fmt: skip
        if self.surrogate is not None:
            return np.asarray(gaps)[:count].tolist()
        # A Hessian-vector product costs about two gradients, on each of the scores that is differentiated.
        differentiated = {"kl": 0, "fisher-partial": 1}.get(phase, 2 if self.target.minibatch else 1)
        each = (2 if self.target.minibatch else 1) * (1 if self.anchor is None else 2) + 2 * differentiated
        rows = self.mean.shape[0] * 2 * self.plan.batch(phase)
        nonfinite = int(self.state.nonfinite) - lost
        self.target.count(count * rows * each, nonfinite, minibatch=self.target.minibatch)
        return np.asarray(gaps)[:count].tolist()
