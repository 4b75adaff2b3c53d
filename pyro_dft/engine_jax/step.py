"""A step of the training in whitened coordinates (Algorithm 1 of arXiv 2411.01453).

It is a pure function of a state, a key and hyper-parameters that are arguments, not constants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from pyro_dft.engine_jax import networks, objectives, random
from pyro_dft.engine_jax.custom import Own
from pyro_dft.engine_jax.networks import Weights
from pyro_dft.engine_jax.target import (
    TargetSpec,
    double,
    smoothed_score,
    whitened_score,
    whitened_score_differentiable,
)
from pyro_dft.experimental import NAMES
from pyro_dft.recipe.constants import (
    DIFFERENTIATED,
    GENERATOR_BETAS,
    MAX_GRADIENT_NORM,
    MIN_SIGMA,
    SCORE_BETAS,
    SETTLING_RATE,
    SETTLING_SCORE,
)
from pyro_dft.settings import Settings

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
        own = {name: _value(settings, name) for name in names}
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
        return cls(*(np.float32(_value(settings, name)) for name in cls._fields))


class Whitened(NamedTuple):
    """The posterior in whitened coordinates, for C samplers.

    Attributes:
        data: What the posterior reads.
        mean: (C, d) of the whitening.
        scale: (C, d, d) or (C, d), of the whitening.
        anchor: (C, d) full scores at the means, or None; see `whitened_score`.
    """

    data: Any
    mean: Any
    scale: Any
    anchor: Any = None


class Noise(NamedTuple):
    """The random numbers that draws are made of.

    Attributes:
        z: Normal latents, (C, B, d).
        eps: Normal noise, (C, B, d).
        level: Standard deviation of the noise of each point, (C, B, 1); None for that of the generator.
    """

    z: Any
    eps: Any
    level: Any = None


def _value(settings: Settings, name: str) -> Any:
    return getattr(settings.experimental if name in NAMES else settings, name)


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


def fresh(generator: Weights, noise: Noise) -> tuple[Array, Array, Array]:
    """Draws u (C, 2 B, d), eps and sigma: each eps is used with -eps, which halves the gradient's error.

    Sigma is one for all points, (C, 1, d), or where the noise has levels those, (C, 2 B, 1).
    """
    level = noise.level
    sigma = networks.sigma(generator) if level is None else level
    clean, moved = networks.generate(generator, noise.z), sigma * noise.eps
    u = jnp.concatenate([clean + moved, clean - moved], 1)
    eps = jnp.concatenate([noise.eps, -noise.eps], 1)
    return u, eps, sigma if level is None else jnp.concatenate([level, level], 1)


def score_loss(score: Weights, generator: Weights, noise: Noise) -> Array:
    """Weighted denoising loss of the score network on fresh detached draws, (C,)."""
    u, eps, sigma = fresh(jax.lax.stop_gradient(generator), noise)
    found = networks.score(score, u, sigma, noise.level is not None)
    return objectives.denoising_weighted(found, eps, sigma)


def generator_loss(
    spec: TargetSpec,
    phase: str,
    distance: objectives.Distance,
    at: Whitened,
    generator: Weights,
    score: Weights,
    noise: Noise,
    keys: Any,
) -> tuple[Array, tuple[Array, Array]]:
    """The generator's objective in one phase.

    Args:
        spec: The posterior.
        phase: "kl", "dft", "dft-paper" or "fisher-partial".
        distance: Distance of Theorem 1; its scale is also the knee under KL.
        at: Where the posterior is evaluated.
        generator: Weights.
        score: Weights of the score network.
        noise: What the draws are made of.
        keys: Two keys for the minibatches, or None where there are none.

    Returns:
        The loss (C,); the Fisher gap (C,) and the number of scores that were not finite.
    """
    u, eps, sigma = fresh(generator, noise)
    levels = noise.level is not None
    detached = jax.lax.stop_gradient(u)
    through = DIFFERENTIATED[phase]
    differentiable, full = through > 0, through > 1

    def target_score(through: bool, key: Any) -> tuple[Array, Array]:
        if levels:
            return smoothed_score(spec, u if through else detached, sigma, at.mean, at.scale, at.data)
        function = whitened_score_differentiable if through else whitened_score
        return function(spec, u if through else detached, at.mean, at.scale, at.data, key, at.anchor)

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
        loss = objectives.fisher_full_two_minibatches(delta, score_p - score_q2, score_p, eps, sigma)
    else:
        loss = objectives.fisher_full(delta, score_p, eps, sigma, distance, weight)
    gap = objectives.fisher_gap(score_q, score_p, eps, sigma, score_q2, weight)
    return loss, (jax.lax.stop_gradient(gap), (~good).sum(dtype=jnp.int32))


def rates(phase: str, hyper: Hyper, done: Any, after_kl: bool = False) -> tuple[Any, Any]:
    """Learning rates of the generator and the score network; `done` is the fraction of the phase that is done, 0 to 1."""
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
    spec: TargetSpec,
    plan: Plan,
    phase: str,
    at: Whitened,
    state: NetworkState,
    hyper: Hyper,
    done: Any,
    key: Array,
) -> tuple[NetworkState, Array]:
    """`score_steps` steps of the score network, then one of the generator; see `generator_loss` and `rates` for the arguments.

    Returns:
        The new state, and the Fisher gap J(s_q) - J(s_phi) on the fresh draws of this step, mean over chains.
    """
    generator_rate, score_rate = rates(phase, hyper, done, plan.after_kl(phase))
    generator, dtype = state.generator, state.generator["log_sigma"].dtype
    if plan.noise_mode == "annealed" and not plan.after_kl(phase):
        share = jnp.minimum(done / 0.6, 1.0)
        log_sigma = jnp.log(hyper.noise_start) * (1 - share) + jnp.log(hyper.noise) * share
        generator = generator | {"log_sigma": jnp.full_like(generator["log_sigma"], log_sigma)}
    noise, level = _noise(plan, (at.mean.shape[0], plan.batch(phase), at.mean.shape[1]), hyper, dtype, key)
    first = Noise(noise[0, 0], noise[0, 1], None if level is None else level[0])

    def score_step(carry: tuple[Weights, Any], own: Any) -> tuple[tuple[Weights, Any], None]:
        (weights, adam), ((z, eps), sigma) = carry, own
        gradient = jax.grad(lambda w: score_loss(w, generator, Noise(z, eps, sigma)).sum())(weights)
        return apply(SCORE_ADAM, weights, adam, gradient, score_rate), None

    rest = noise[1:], None if level is None else level[1:]
    (score, score_adam), _ = jax.lax.scan(score_step, (state.score, state.score_adam), rest)
    distance = objectives.Distance(plan.distance, hyper.huber_scale)
    keys = (random.fold(key, 1), random.fold(key, 2)) if spec.minibatch else None

    def loss(weights: Weights) -> tuple[Array, tuple[Array, Array]]:
        own = generator_loss(spec, phase, distance, at, weights, score, first, keys)
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


def _noise(plan: Plan, shape: tuple[int, ...], hyper: Hyper, dtype: Any, key: Array) -> tuple[Array, Any]:
    """The noise z and eps of a generator step and of the score steps before it, (1 + score_steps, 2, C, B, d), and its levels.

    All of it is made at once: each place that draws costs compilation.
    """
    noise = random.normal(key, (plan.score_steps + 1, 2, *shape), dtype)
    if not plan.levels:
        return noise, None
    share = random.uniform(random.fold(key, 3), (plan.score_steps + 1, *shape[:2], 1), dtype)
    return noise, hyper.noise * (hyper.noise_start / hyper.noise) ** share


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
