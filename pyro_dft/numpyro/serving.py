"""Draws of a trained sampler in the form in which `numpyro.infer.MCMC` takes them: states that serve one draw after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_context

from pyro_dft.engine_jax import functional, random
from pyro_dft.engine_jax.functional import Trained
from pyro_dft.engine_jax.networks import Weights, init_generator
from pyro_dft.interface.mcmc_run import Part
from pyro_dft.numpyro.dft import DFT
from pyro_dft.numpyro.fields import AdaptState, mass_matrices
from pyro_dft.numpyro.problem import Problem
from pyro_dft.numpyro.trees import Tree, is_traced
from pyro_dft.recipe.chains import STATISTICS
from pyro_dft.recipe.stragglers import highest_potential

_MIX = (0x9E3779B1, 0x85EBCA6B)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Beyond:
    """Whether new draws may be asked for when those of the block are used up.

    A part of the state's structure: what makes new draws takes seconds to compile, and most runs need none.
    """

    allowed: bool = True


class DFTState(NamedTuple):
    """State of the kernel.

    Where there is nothing to infer, it is the one point that there is: nothing from `position` on.

    Attributes:
        i: Calls of `sample` so far.
        z: The present draw, unconstrained: a dict by site, or what the potential takes.
        potential_energy: Potential there, in the model's own coordinates.
        diverging: Whether one of the transitions that refined the draw had an energy error over 1000.
        rng_key: Random key of the draws to come. Another one in its place gives other draws from there on.
        z_grad: Gradient of the potential there; None where it was not asked for.
        energy: Potential and kinetic energy at the end of the last transition. This, and what follows up to `adapt_state`, is
            None where draws are served raw.
        num_steps: Gradient steps of the transitions that made the draw from another one, or from a raw one.
        accept_prob: Mean acceptance probability of the last of them.
        mean_accept_prob: Its mean over the draws so far.
        trajectory_length: Of the last transition: leapfrog steps times their size.
        adapt_state: See `pyro_dft.numpyro.fields.AdaptState`.
        position: Row of `block` that comes next; below zero, the draws of a warm-up, it counts from the block's end.
        block: Draws to serve, (rows, d), in the model's own coordinates.
        energies: Potentials there, (rows,).
        highest: Potential above which a new draw counts as still far out, see `far_out`.
        diverged: `diverging` of each, (rows,).
        numbers: Of the transitions of each, (rows,) by name; see `pyro_dft.interface.result.Result.statistics`. Empty where
            there are none.
        gradients: Gradients of the potential, (rows, d), or None.
        block_key: Words of the key that `block` goes with, (2,).
        data: Words that the model's arguments are recognised by, (2,).
        trained: The samplers.
        beyond: Whether there are draws beyond the block.
    """

    i: Any
    z: Any
    potential_energy: Any
    diverging: Any
    rng_key: Any
    z_grad: Any
    energy: Any
    num_steps: Any
    accept_prob: Any
    mean_accept_prob: Any
    trajectory_length: Any
    adapt_state: AdaptState | None
    position: Any = None
    block: Any = None
    energies: Any = None
    highest: Any = None
    diverged: Any = None
    numbers: dict[str, Any] | None = None
    gradients: Any = None
    block_key: Any = None
    data: Any = None
    trained: Trained | None = None
    beyond: Beyond = Beyond()


@dataclass(frozen=True)
class Kept:
    """How the draws that a fit keeps are served.

    Attributes:
        warm_up: Calls before the first of them, which get some of them as well.
        draws: Calls behind these, at most; None where that is not known.
        part: Of them, that of the first chain.
    """

    warm_up: int = 0
    draws: int | None = None
    part: Part = Part()

    def shared(self, value: Any, several: bool, axis: int = 0) -> Any:
        """The rows of each chain, of (..., rows, ...); with a leading axis for chains where there are several."""
        if not several:
            return value[(slice(None),) * axis + (self.part.rows(value.shape[axis]),)]
        each = [replace(self, part=self.part.after(i)) for i in range(len(value))]
        return np.stack([chain.shared(own, False, axis) for chain, own in zip(each, value, strict=True)])


@dataclass(frozen=True)
class Wanted:
    """What a state is to show.

    Attributes:
        tree: What the potential takes; None for a dict by site.
        gradients: Whether gradients were asked for.
        dense: The form of the mass matrix: see `pyro_dft.interface.mass_matrix`.
    """

    tree: Tree | None = None
    gradients: bool = False
    dense: Any = False

    def values(self, problem: Problem, x: Any) -> Any:
        """Flat points (..., d) as the potential takes them."""
        sites = problem.layout.unflatten(x)
        return sites if self.tree is None else self.tree.whole(sites)


def chain_axes(state: DFTState) -> DFTState:
    """Which leaves of a state of several chains, trained together, have a leading axis for them."""
    axes = jax.tree.map(lambda _: 0, state)
    trained = axes.trained._replace(network=None, coordinates=None, steps=None, leapfrogs=None, renewed=None)
    return axes._replace(i=None, position=None, data=None, trained=trained)


@jax.custom_batching.custom_vmap
def any_chain(flag: Any) -> Any:
    """Whether a flag is set in any of the chains that are mapped over: they then branch together, and not draw by draw."""
    return flag


@any_chain.def_vmap
def _(size: int, batched: list[bool], flag: Any) -> tuple[Any, bool]:
    return flag.any(), False


def _is_on_host(tree: Any) -> bool:
    """Whether all leaves can be read by NumPy at no cost: each operation of jax alone is a program to compile."""
    if is_traced(tree):
        return False
    devices: list[Any] = [
        set(leaf.devices()) for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)
    ]
    return all(len(own) == 1 and own.pop().platform == "cpu" for own in devices)


def fingerprint(arguments: Any) -> Any:
    """Words (2,) that change with the numbers in a model's arguments; may be traced."""
    numbers = np if _is_on_host(arguments) else jnp  # with the same result
    words = numbers.zeros(2, np.uint32)
    for number, leaf in enumerate(jax.tree.leaves(arguments)):
        value = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        if not (jnp.issubdtype(value.dtype, jnp.number) or value.dtype == bool) or value.size == 0:
            continue
        value = numbers.asarray(value).astype(jax.dtypes.canonicalize_dtype(value.dtype))
        value = (numbers.real(value) + numbers.imag(value)).reshape(-1).astype(np.float32)
        bits = value.view(np.uint32)
        place = numbers.arange(len(bits), dtype=np.uint32) + np.uint32(number << 16)
        own = [
            ((bits ^ (bits >> np.uint32(15))) * (place * np.uint32(mix) | np.uint32(1))).sum(dtype=np.uint32)
            for mix in _MIX
        ]
        words = words * np.uint32(3) + numbers.stack(own)
    return words


def states(dft: DFT, chosen: Any, keys: Any, data: Any, kept: Kept | None, wanted: Wanted) -> DFTState:
    """States of some chains of a fit, stacked, or of one chain, that serve the kept draws first, or only new ones.

    Args:
        dft: A fitted one.
        chosen: Indices of chains, (chains,), or one index; it may be traced.
        keys: The random key of each.
        data: Words of `fingerprint`.
        kept: How to begin with the draws that the fit keeps; None for new ones alone.
        wanted: What they show.
    """
    result, backend = dft.parts.training.trained(), dft.parts.backend
    fit, own, measured, sampler = result.fit, backend.posteriors[0], result.measurement, result.fit.sampler
    chains, modes = dft.num_chains, 1 if fit.modes is None else fit.modes.count
    with eval_context():  # the fit is there already, whatever is being traced around it
        original = backend.original(fit.problem, result.kept).astype(own.dtype)
        log_density, score = (
            backend.problems[0].target.evaluate(original) if wanted.gradients else (None, None)
        )
        potential = -log_density if log_density is not None else backend.potential_of_kept(result, original)
        statistics = result.statistics()
        numbers = _numbers(statistics, own.dtype) if result.refine_steps else {}
        mass = mass_matrices(original, own.layout, wanted.dense, wanted.tree is not None, own.dtype)
    generator = sampler.generator
    if generator is None:
        generator = _no_weights(chains * modes, sampler.dim, dft)
    weights = np.ones((chains, 1)) if fit.modes is None else fit.modes.weights

    def pick(value: Any) -> Any:
        numbers = jnp if is_traced(chosen) else np  # see `_is_on_host`
        return numbers.take(numbers.asarray(value), chosen, axis=0)

    def of_chains(value: Any) -> Any:
        value = np.asarray(value)
        return pick(value.reshape(chains, modes, *value.shape[1:]))

    def of_rows(value: Any, axis: int = 0) -> Any:
        return value if kept is None else kept.shared(value, np.ndim(chosen) == 1, axis)

    trained = Trained(
        of_chains(sampler.mean), of_chains(sampler.scale), jax.tree.map(of_chains, generator),
        pick((weights / weights.sum(1, keepdims=True)).astype(np.float32)),
        of_chains(measured.scale), of_chains(measured.step_size), np.asarray(sampler.generator is not None),
        np.asarray(fit.problem, np.int32), np.asarray(result.refine_steps, np.int32),
        np.asarray(measured.leapfrog_steps, np.int32),
        of_rows(of_chains(measured.refined), 1), np.asarray(result.making.renewed),
    )  # fmt: skip
    block = of_rows(pick(original))
    energies = of_rows(pick(potential.astype(own.dtype)))
    diverged = of_rows(pick(statistics["diverging"]))
    rows = block.shape[-2]
    beyond = Beyond(kept is None or kept.draws is None or kept.draws > rows)
    position = np.asarray(rows if kept is None else -kept.warm_up, np.int32)
    gradients = None if score is None else of_rows(pick(-score))
    numbers = {name: of_rows(pick(value)) for name, value in numbers.items()}
    adapted = AdaptState(energies[..., 0], *jax.tree.map(pick, mass)) if numbers else None
    state = DFTState(
        np.zeros((), np.int32), wanted.values(own, block[..., 0, :]), energies[..., 0], diverged[..., 0], keys,
        None, None, None, None, None, None, adapted,
        position, block, energies, far_out(energies), diverged, numbers, gradients, random.words(keys), data, trained, beyond,
    )  # fmt: skip
    return shown(state, 0, own, wanted)


def far_out(energies: Any) -> Any:
    """The potential above which new draws are still far out, from those of some good ones (..., rows)."""
    numbers = jnp if is_traced(energies) else np
    return highest_potential(energies.max(-1), numbers.median(energies, axis=-1))


def _numbers(statistics: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """What the transitions of kept draws tell; NaN, in the same form, for those of an early file, which are not served."""
    shape = statistics["diverging"].shape
    found = {
        name: statistics.get(name, np.full(shape, np.nan)).astype(dtype)
        for name in (*STATISTICS, "step_size")
    }
    return {**found, "n_steps": statistics.get("n_steps", np.zeros(shape)).astype(np.int32)}


def shown(state: DFTState, row: Any, own: Problem, wanted: Wanted) -> DFTState:
    """A state with one row of its block in its public fields; `i` calls have been made before."""
    z = state.block[..., row, :]
    state = state._replace(
        z=wanted.values(own, z), potential_energy=state.energies[..., row], diverging=state.diverged[..., row]
    )
    if state.gradients is not None:
        state = state._replace(z_grad=wanted.values(own, state.gradients[..., row, :]))
    if not state.numbers:
        return state
    assert state.trained is not None
    now = {name: value[..., row] for name, value in state.numbers.items()}
    before = now["acceptance_rate"] if state.mean_accept_prob is None else state.mean_accept_prob
    assert state.adapt_state is not None
    return state._replace(
        energy=state.potential_energy + now["kinetic"],
        num_steps=now["n_steps"],
        accept_prob=now["acceptance_rate"],
        mean_accept_prob=before + (now["acceptance_rate"] - before) / (state.i + 1).astype(before.dtype),
        trajectory_length=now["step_size"] * state.trained.leapfrogs,
        adapt_state=state.adapt_state._replace(step_size=now["step_size"]),
    )


def _no_weights(samplers: int, dim: int, dft: DFT) -> Weights:
    """Arrays in the shapes of a generator that is not used: both kinds of sampler have the same state."""
    size, dtype = (dft.settings.width, dft.settings.depth), dft.parts.backend.posteriors[0].dtype
    own = dft.parts.backend.networks(dim).generator
    like = jax.eval_shape(
        lambda words: init_generator(words, samplers, dim, *size, 1.0, dtype, own), np.zeros(2, np.uint32)
    )
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)


def advance(state: DFTState, posteriors: list[Problem], dft: DFT, data: Any, wanted: Wanted) -> DFTState:
    """The next draw: of the block or, where that is used up or the state has another key now, of a new one.

    Where there are no draws beyond the block, those that would be are not numbers.

    Args:
        state: Of one chain, or of several that were trained together.
        posteriors: The model with the arguments of this call, in all coordinates.
        dft: Holds the settings.
        data: Words of `fingerprint` for these arguments. Where they are not those of the state, its samplers are for other
            data, and the draw is not a number.
        wanted: What the state shows.
    """
    several, rows = state.block.ndim == 3, state.block.shape[-2]
    due = (state.position >= rows) | (random.words(state.rng_key) != state.block_key).any()

    def renew(now: DFTState) -> DFTState:
        if not several:
            return _renewed(now, posteriors, dft)
        axes = chain_axes(now)
        return jax.vmap(lambda own: _renewed(own, posteriors, dft), in_axes=(axes,), out_axes=axes)(now)

    known = (state.data == data).all()
    if state.beyond.allowed:
        state = jax.lax.cond(any_chain(due), renew, lambda now: now, state)
    else:
        known &= ~due
    row = state.position
    state = shown(state, row % rows, posteriors[0], wanted)
    z = jax.tree.map(lambda value: jnp.where(known, value, jnp.nan), state.z)
    return state._replace(i=state.i + 1, z=z, position=row + 1)


def _renewed(state: DFTState, posteriors: list[Problem], dft: DFT) -> DFTState:
    """The same chain with a block of new draws."""
    own, t, rows = posteriors[0], state.trained, len(state.block)
    assert t is not None
    key, now = jax.random.split(state.rng_key)
    words = random.words(now)

    def in_coordinates(problem: Problem) -> Callable[[Any], Any]:
        def new(_: Any) -> Any:
            target = problem.target()
            # Each mode makes as many draws as could be asked of it: how many serve is known only in here.
            schedule = dft.parts.backend.programs.schedule(target)
            flat, diverged, statistics = functional.refined(schedule, t, target.data, words, rows)
            unit = random.uniform(random.fold(words, 2), (rows,), np.float32)
            ends = jnp.cumsum(t.weights)
            mode = (unit[:, None] * ends[-1] >= ends[:-1]).sum(1)
            flat, diverged = (value[mode, jnp.arange(rows)] for value in (flat, diverged))
            statistics = {
                name: value[mode, jnp.arange(rows)].astype(own.dtype) for name, value in statistics.items()
            }
            return (
                problem.original_coordinates(flat),
                diverged,
                {**statistics, "step_size": t.step_size[mode]},
            )

        return new

    block, diverged, statistics = jax.lax.switch(t.coordinates, [in_coordinates(p) for p in posteriors], None)
    gradients, numbers = state.gradients, state.numbers
    if gradients is not None:
        target = own.target()
        gradients = -target.spec.evaluate(block[None].astype(own.dtype), target.data)[1][0]
    if numbers:
        steps = jnp.full(rows, t.steps * t.leapfrogs, jnp.int32)
        numbers = {**{name: statistics[name].astype(own.dtype) for name in statistics}, "n_steps": steps}
    energies = jax.vmap(own.potential, in_axes=(0, None))(block, own.data)
    # Those that no step was short enough for are copies of others; raw draws are what they are.
    arrived = (energies <= state.highest) | (t.steps == 0)
    others = jax.random.categorical(
        jax.random.fold_in(now, 1), jnp.where(arrived, 0.0, -jnp.inf), shape=(rows,)
    )
    index = jnp.where(arrived | ~arrived.any(), jnp.arange(rows), others)
    served = {
        "block": block.astype(own.dtype),
        "energies": energies,
        "diverged": diverged,
        "numbers": numbers,
    }
    picked = jax.tree.map(lambda value: value[index], {**served, "gradients": gradients})
    return state._replace(
        rng_key=key, block_key=random.words(key), position=jnp.zeros_like(state.position), **picked
    )
