"""The fit as pure functions: one training iteration after the other, without a host in between.

`start`, `update`, `finish` and `refined` can be compiled, mapped over random keys and over data sets of one shape, and called
under another library's trace. What a host can decide between chunks is decided here beforehand: the phases have the planned
lengths, the network is always trained, and the coordinates are given. `pyro_dft.recipe.trainer.Trainer` does better than that
where it can be used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pyro_dft.engine_jax import precondition, random
from pyro_dft.engine_jax import refine as hmc
from pyro_dft.engine_jax import sampler as sampling
from pyro_dft.engine_jax import step as training
from pyro_dft.engine_jax.networks import Weights
from pyro_dft.engine_jax.target import TargetSpec
from pyro_dft.judging import drift, moments
from pyro_dft.recipe.chains import STATISTICS, Dynamics
from pyro_dft.recipe.constants import FIRST_STEPS
from pyro_dft.settings import Settings


@dataclass(frozen=True)
class Schedule:
    """What a compiled fit is specialised to.

    Attributes:
        spec: The posterior.
        plan: Of the network's training.
        objective: As in the settings.
        gaussian: Iterations of the Gaussian phase; 0 takes the unit Gaussian.
        warm: Iterations before the DFT phase.
        dft: Iterations of the DFT phase.
        leapfrog_steps: Of the refinement.
        refine_steps: Transitions of the refinement, or None to find them by the drift test.
        max_refine_steps: Limit of that search.
    """

    spec: TargetSpec
    plan: training.Plan
    objective: str
    gaussian: int
    warm: int
    dft: int
    leapfrog_steps: int
    refine_steps: int | None
    max_refine_steps: int

    @classmethod
    def of(
        cls, spec: TargetSpec, settings: Settings, networks: training.OwnNetworks = training.NO_NETWORKS
    ) -> Schedule:
        """The schedule that settings ask for, with the networks that the user brings."""
        last = (
            round(settings.num_steps * settings.experimental.dft_fraction)
            if settings.objective == "auto"
            else 0
        )
        paper = settings.objective == "dft-paper"
        return cls(
            spec, training.Plan.of(settings, networks), settings.phase,
            settings.experimental.precondition_steps if settings.preconditioned else 0,
            settings.num_steps - last, last, settings.fixed_leapfrog_steps, 0 if paper else settings.refine_steps,
            settings.experimental.max_refine_steps,
        )  # fmt: skip

    @property
    def total(self) -> int:
        """Iterations of the whole fit."""
        return self.gaussian + self.warm + self.dft


class FitState(NamedTuple):
    """State of the training, which each iteration changes.

    Attributes:
        step: Iterations made.
        gaussian: State of the Gaussian phase, for chains times restarts.
        mean: (C, d) of the whitening, chosen at the end of the Gaussian phase.
        scale: (C, d, d) or (C, d), of the whitening.
        network: State of the networks.
        key: Words of the random stream.
    """

    step: Array
    gaussian: precondition.State
    mean: Array
    scale: Array
    network: training.NetworkState
    key: Array


class Refinement(NamedTuple):
    """What is needed to draw, and the draws of the measurement.

    Attributes:
        raw: (C, n, d) draws.
        halfway: (C, n, d) after S transitions.
        refined: (C, n, d) after 2 S transitions.
        steps: S.
        scale: (C, d, d) or (C, d), whitening of the transitions.
        step_size: (C,) leapfrog step sizes.
        acceptance: (C,) mean acceptance probabilities.
        diverged: (C, n) draws with a diverging transition on their way from `raw` to `refined`.
        statistics: (C, n) each; see `pyro_dft.recipe.chains.STATISTICS`.
    """

    raw: Array
    halfway: Array
    refined: Array
    steps: Array
    scale: Array
    step_size: Array
    acceptance: Array
    diverged: Array
    statistics: dict[str, Array]


def start(schedule: Schedule, hyper: training.Hyper, starts: Array, words: Array) -> FitState:
    """The first state, from starting points (C, restarts, d)."""
    c, restarts, d = starts.shape
    scales = jnp.tile(jnp.array([0.1, 1.0]), (restarts + 1) // 2)[:restarts]
    gaussian = precondition.start(starts.reshape(-1, d), jnp.tile(scales, c), max(schedule.gaussian, 1))
    dtype = jnp.dtype(schedule.spec.dtype)
    network = training.start(random.fold(words, 0), schedule.plan, hyper, c, d, dtype)
    scale = jnp.ones((c, d), dtype)
    if gaussian.scale.ndim == 3:
        scale = jnp.broadcast_to(jnp.eye(d, dtype=dtype), (c, d, d))
    step = jnp.zeros((), jnp.int32)
    return FitState(step, gaussian, jnp.zeros((c, d), dtype), scale, network, random.fold(words, 1))


def update(schedule: Schedule, hyper: training.Hyper, state: FitState, data: Any) -> tuple[FitState, Array]:
    """One iteration of the phase that is due; past the last one nothing changes.

    Returns:
        The new state; the loss: the Fisher gap on fresh draws, mean over chains, or minus the best evidence bound in the
        Gaussian phase.
    """
    spec, i = schedule.spec, state.step
    key = random.fold(state.key, i)
    warm, loss_type = schedule.gaussian + schedule.warm, state.network.gap.dtype

    def gaussian_phase(now: FitState) -> tuple[FitState, Array]:
        own = jax.lax.cond(
            precondition.finished(now.gaussian, schedule.gaussian),
            lambda g: g,
            lambda g: precondition.step(spec, data, g, key),
            now.gaussian,
        )
        mean, scale = _chosen(own, now.mean)
        now = now._replace(gaussian=own, mean=mean, scale=scale)
        return now, (-own.best.max()).astype(loss_type)

    def network_phase(phase: str, first: int, length: int) -> Any:
        def go(now: FitState) -> tuple[FitState, Array]:
            done = ((i - first) / max(length, 1)).astype(now.mean.dtype)
            at = training.Whitened(data, now.mean, now.scale)
            network, gap = training.step(spec, schedule.plan, phase, at, now.network, hyper, done, key)
            return now._replace(network=network), gap.astype(loss_type)

        return go

    first_phase = "kl" if schedule.objective == "auto" else schedule.objective
    branches = [
        gaussian_phase,
        network_phase(first_phase, schedule.gaussian, schedule.warm),
        network_phase("dft", warm, schedule.dft),
        lambda now: (now, now.network.gap.mean()),
    ]
    lengths = [schedule.gaussian, schedule.warm, schedule.dft]
    # Phases without iterations are not compiled.
    present = [branch for branch, length in zip(branches, [*lengths, 1], strict=True) if length]
    ends = [sum(lengths[: k + 1]) for k in range(3) if lengths[k]]
    index = sum((i >= end).astype(jnp.int32) for end in ends)
    state, loss = jax.lax.switch(index, present, state)
    return state._replace(step=jnp.minimum(i + 1, schedule.total)), loss


def _chosen(gaussian: precondition.State, mean: Array) -> tuple[Array, Array]:
    """The Gaussian of each chain's restart with the highest evidence bound so far."""
    c = len(mean)
    best = gaussian.best.reshape(c, -1)
    index = best.argmax(1) + jnp.arange(c) * best.shape[1]
    return gaussian.mean[index].astype(mean.dtype), gaussian.scale[index].astype(mean.dtype)


def rest(schedule: Schedule, hyper: training.Hyper, state: FitState, data: Any) -> tuple[FitState, Array]:
    """All iterations of a fit; returns the last state and the loss of each."""
    return jax.lax.scan(lambda now, _: update(schedule, hyper, now, data), state, None, length=schedule.total)


def still(before: Array, after: Array) -> Array:
    """Whether draws are at rest: as `pyro_dft.judging.drift.Drift.still`."""
    b, a = before.reshape(-1, before.shape[-1]), after.reshape(-1, after.shape[-1])
    n, d = b.shape
    centre, sd_b, sd_a = a.mean(0), b.std(0, ddof=1), a.std(0, ddof=1)
    zb, za = (b - b.mean(0)) / sd_b, (a - centre) / sd_a
    shift = (centre - b.mean(0)) / sd_a
    on_a, on_b = (za**2 - 1) / 2, (zb**2 - 1) / 2
    effects = jnp.stack([shift, jnp.log(sd_a / sd_b)])
    influences = jnp.stack([za - zb * (sd_b / sd_a) - shift * on_a, on_a - on_b])
    errors = influences.std(1, ddof=1) / n**0.5
    worst = (jnp.abs(effects) - drift.still_limit(d) * errors).max()
    rms = jnp.sqrt(jnp.maximum((jnp.square(effects) - jnp.square(errors)).mean(), 0.0))
    low, high = _shares(b, a)
    x = (b - centre) / sd_a
    first, last = jnp.stack([x, x**2 / 2, low[0], high[0]]), jnp.stack([za, za**2 / 2, low[1], high[1]])
    spread = za**2 - (zb * (sd_b / sd_a)) ** 2
    differences = jnp.stack([(a - b) / sd_a, spread, low[1] - low[0], high[1] - high[0]])
    size = jnp.sqrt(jnp.square(differences).sum(1))
    chance = jnp.abs(differences.sum(1)) <= drift.normal_limit(drift.FALSE_ALARMS, 4 * d) * size
    sure, memory = _sure_gaps(first, last, drift.normal_limit(0.05, 4 * d))
    sure = jnp.where(chance, jnp.minimum(sure, 0.0), sure).max()
    quiet = (worst <= drift.STILL_WORST) & (rms <= drift.STILL_RMS) & (sure <= drift.STILL_GAP)
    return quiet & (memory.max() <= drift.STILL_MEMORY)


def _shares(b: Array, a: Array) -> list[list[Array]]:
    """Draws beyond the 5 % and the 95 % point over the density there, before and after, (n, d) each.

    See `pyro_dft.judging.drift`.
    """
    outer, inner = moments.AROUND
    edges = jnp.array([[outer, moments.TAIL, inner], [1 - outer, 1 - moments.TAIL, 1 - inner]], a.dtype)
    found = []
    for levels, sign in zip(edges, (-1.0, 1.0), strict=True):
        ends = jnp.quantile(jnp.concatenate([b, a]), levels, axis=0)
        beyond = [sign * (x - ends[1]) > 0 for x in (b, a)]
        sd = a.std(0, ddof=1)
        local = (inner - outer) * sd / jnp.abs(ends[2] - ends[0])
        distance = jnp.abs(jnp.quantile(a, levels[1], axis=0) - jnp.quantile(b, levels[1], axis=0)) / sd
        between = jnp.abs(beyond[1].mean(0) - beyond[0].mean(0)) / (distance + moments.NEAR)
        density = jnp.maximum(jnp.clip(local, *moments.DENSITIES), between)
        found.append([sign * x / density for x in beyond])
    return found


def _sure_gaps(first: Array, last: Array, z: float) -> tuple[Array, Array]:
    """Smallest sizes that Fieller's limits allow the gaps, and the memories, (4, d) each; see `pyro_dft.judging.drift`."""
    n, difference = first.shape[1], last - first
    shift = difference.mean(1)
    first, last = first - first.mean(1, keepdims=True), last - last.mean(1, keepdims=True)
    variance = jnp.square(first).mean(1)
    varies = variance > 0
    variance = jnp.where(varies, variance, 1.0)
    memory = jnp.where(varies, (first * last).mean(1) / variance, 0.0)
    on_memory = first * (last - memory[:, None] * first) / variance[:, None]
    centred, scale = difference - shift[:, None], z**2 / (n * (n - 1.0))
    square = jnp.square(1 - memory) - scale * jnp.square(on_memory).sum(1)
    linear = shift * (1 - memory) + scale * (centred * on_memory).sum(1)
    known = (1 - memory > moments.LEAST_FORGOTTEN) & (square > 0)
    square = jnp.where(known, square, 1.0)
    constant = jnp.square(shift) - scale * jnp.square(centred).sum(1)
    root = jnp.sqrt(jnp.maximum(jnp.square(linear) - square * constant, 0.0))
    sure = jnp.maximum((linear - root) / square, -(linear + root) / square)
    return jnp.where(known, sure, -jnp.inf), memory


def finish(schedule: Schedule, state: FitState, data: Any, words: Array, draws: int) -> Refinement:
    """Draws (C, draws, d) of the trained sampler, refined until the drift test is still.

    As `pyro_dft.recipe.measure.measure`, on the coordinates of the target itself.
    """
    spec, leapfrogs = schedule.spec, schedule.leapfrog_steps
    raw = sampling.draw(state.mean, state.scale, state.network.trained, random.fold(words, 0), draws)
    c, n, d = raw.shape
    some = raw[:, :: max(1, n // hmc.TUNING_DRAWS)][:, : hmc.TUNING_DRAWS]

    def tuned(x: Array, scale: Array, key: Array) -> Array:
        first = jnp.full(c, d**-0.25, x.dtype)
        dynamics = Dynamics(scale, first, leapfrogs, tune=True)
        return hmc.run(spec, data, x, dynamics, key, hmc.TUNING_STEPS).step_size

    class _Loop(NamedTuple):
        steps: Array
        again: Array
        first: Array
        second: Array
        scale: Array
        step_size: Array
        acceptance: Array
        diverged: Array
        passes: Array
        statistics: dict[str, Array]

    def go(now: _Loop) -> _Loop:
        # Folded with the number of the pass: the first two make as many steps, and must not share their noise.
        key = random.fold(words, 1 + now.passes)
        # Raw draws that were far off must not decide the kernel that repairs them.
        scale = hmc.whitening_traced(now.second, state.scale)
        part = now.second[:, :: max(1, n // hmc.TUNING_DRAWS)][:, : some.shape[1]]
        step_size = tuned(part, scale, random.fold(key, 0))
        dynamics = Dynamics(scale, step_size, leapfrogs, tune=False)
        moves = hmc.run(spec, data, now.second, dynamics, random.fold(key, 1), now.steps)
        # The first pass only makes the draws that the second one is compared with.
        begun = jnp.isfinite(now.acceptance).all()
        fixed = schedule.refine_steps is not None
        enough = begun & (True if fixed else still(now.second, moves.position.x))
        steps = jnp.where(begun & ~enough, 2 * now.steps, now.steps)
        again = ~enough & (steps <= schedule.max_refine_steps)
        return _Loop(
            jnp.where(again, steps, now.steps), again, now.second, moves.position.x, scale, step_size,
            moves.acceptance.mean(1), now.diverged | (moves.divergences > 0), now.passes + 1, _statistics(moves),
        )  # fmt: skip

    steps = jnp.asarray(schedule.refine_steps or min(FIRST_STEPS, schedule.max_refine_steps), jnp.int32)
    unknown = jnp.full(c, jnp.nan, raw.dtype)
    never, none = jnp.zeros((c, n), bool), jnp.zeros((), jnp.int32)
    nothing = dict.fromkeys(STATISTICS, jnp.zeros((c, n), raw.dtype))
    first = _Loop(steps, jnp.array(True), raw, raw, state.scale, unknown, unknown, never, none, nothing)
    last = jax.lax.while_loop(lambda now: now.again, go, first)
    return Refinement(
        raw, last.first, last.second, last.steps, last.scale, last.step_size, last.acceptance, last.diverged, last.statistics
    )  # fmt: skip


def _statistics(moves: hmc.Moves) -> dict[str, Array]:
    return dict(zip(STATISTICS, (moves.acceptance, moves.kinetic), strict=True))


class Trained(NamedTuple):
    """The samplers of one chain, one for each of K separate modes, and what refines their draws.

    Attributes:
        mean: (K, d).
        scale: (K, d, d), or (K, d).
        generator: Weights, (K, ...) each.
        weights: (K,) how often each of them serves.
        kernel_scale: (K, d, d), or (K, d), whitening of the transitions.
        step_size: (K,) leapfrog step sizes.
        network: Whether the generator is used, or the Gaussian alone.
        coordinates: Index of the coordinates that it was trained in: the model's own, or non-centred ones.
        steps: Transitions that a draw gets.
        leapfrogs: Gradient steps of each.
        starts: Kept draws, (K, m, d).
        renewed: Whether new draws start at these, and not at draws of the samplers.
    """

    mean: Any
    scale: Any
    generator: Weights
    weights: Any
    kernel_scale: Any
    step_size: Any
    network: Any
    coordinates: Any
    steps: Any
    leapfrogs: Any
    starts: Any
    renewed: Any


def refined(
    schedule: Schedule, t: Trained, data: Any, words: Array, n: int
) -> tuple[Array, Array, dict[str, Array]]:
    """New draws (K, n, d), refined by transitions, which of them had one that diverged, (K, n), and their statistics.

    Without the network they are those of the Gaussian alone. Streams 0, 1 and 3 of `words` are used.
    """
    raw = jnp.where(t.renewed, _kept(t.starts, random.fold(words, 3), n), _raw(t, random.fold(words, 0), n))
    dynamics = Dynamics(t.kernel_scale, t.step_size, t.leapfrogs, tune=False)
    moves = hmc.run(schedule.spec, data, raw, dynamics, random.fold(words, 1), jnp.maximum(t.steps, 1))
    x, diverged = jnp.where(t.steps > 0, moves.position.x, raw), (t.steps > 0) & (moves.divergences > 0)
    return x, diverged, _statistics(moves)


def _raw(t: Trained, words: Array, n: int) -> Array:
    """Draws (K, n, d) of the samplers."""
    z, eps = random.normal(words, (2, t.mean.shape[0], n, t.mean.shape[1]), t.mean.dtype)
    with_network = sampling.transport(t.mean, t.scale, t.generator, z, eps)
    return jnp.where(t.network, with_network, sampling.transport(t.mean, t.scale, None, z, eps))


def _kept(starts: Array, words: Array, n: int) -> Array:
    """Kept draws (K, n, d) in random order, each once where there are so many."""
    order = jnp.argsort(random.uniform(words, (starts.shape[1],), jnp.float32))
    return starts[:, order[jnp.arange(n) % starts.shape[1]]]


compiled_start = partial(jax.jit, static_argnums=0)(start)
compiled_update = partial(jax.jit, static_argnums=0)(update)
compiled_rest = partial(jax.jit, static_argnums=0)(rest)
