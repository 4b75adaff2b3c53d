"""The state of a chain that is trained under a trace, where its data are traced too: by plan, and without a verdict."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pyro_dft.engine_jax import functional, random
from pyro_dft.engine_jax.functional import Trained
from pyro_dft.engine_jax.step import Hyper
from pyro_dft.numpyro.dft import DFT
from pyro_dft.numpyro.fields import AdaptState
from pyro_dft.numpyro.serving import DFTState, Wanted, far_out, fingerprint, shown

# Draws of a block where chains are trained under a trace, at most: new ones are made in blocks, and served one by one.
BLOCK = 1000


def traced_state(
    dft: DFT, wanted: Wanted, rng_key: Any, next_key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> DFTState:
    """Trains, refines a block of draws and makes a state of them.

    Args:
        dft: Of one chain, untrained.
        wanted: What the state shows. The mass matrix is not known in it.
        rng_key: Random key of the training.
        next_key: Of the draws after those of the first block.
        args: Arguments of the model.
        kwargs: Keyword arguments of the model.
    """
    posterior, target = dft.parts.backend.programs.read(args, kwargs)
    schedule = dft.parts.backend.programs.schedule(target)
    first = dft.init(rng_key, *args, **kwargs)
    last, _ = functional.rest(schedule, Hyper.of(dft.settings), first, target.data)
    draws = max(10, min(BLOCK, dft.settings.num_draws))
    found = functional.finish(schedule, last, target.data, random.fold(random.words(rng_key), 2), draws)
    raw = schedule.refine_steps == 0
    steps = found.steps if schedule.refine_steps is None else jnp.asarray(schedule.refine_steps, jnp.int32)
    block = (found.raw if raw else found.refined)[0]
    diverged = jnp.zeros(len(block), bool) if raw else found.diverged[0]
    trained = Trained(
        last.mean, last.scale, last.network.trained, jnp.ones(1), found.scale, found.step_size, jnp.array(True),
        jnp.zeros((), jnp.int32), steps, jnp.asarray(schedule.leapfrog_steps, jnp.int32), block[None], jnp.array(False),
    )  # fmt: skip
    log_density, score = target.spec.evaluate(block, target.data)
    numbers, adapted = {}, None
    if not raw:
        numbers = {name: value[0].astype(block.dtype) for name, value in found.statistics.items()}
        numbers["step_size"] = jnp.broadcast_to(found.step_size[0], len(block)).astype(block.dtype)
        numbers["n_steps"] = jnp.full(len(block), 2 * found.steps * schedule.leapfrog_steps, jnp.int32)
        unknown = {posterior.layout.names: jnp.full(posterior.dim, jnp.nan)}
        adapted = AdaptState(numbers["step_size"][0], unknown, unknown, unknown)
    zero, energies = jnp.zeros((), jnp.int32), -log_density
    state = DFTState(
        zero, posterior.layout.unflatten(block[0]), energies[0], diverged[0], next_key, None, None, None, None, None,
        None, adapted, zero, block, energies, far_out(energies), diverged, numbers,
        -score if wanted.gradients else None, random.words(next_key), fingerprint((args, kwargs)), trained,
    )  # fmt: skip
    return shown(state, 0, posterior, wanted)


def traced_states(
    dft: DFT, wanted: Wanted, keys: Any, next_keys: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> DFTState:
    """The same for a batch of keys: chains that are trained side by side, each by its own key.

    Their new draws are made together, with as many transitions as the chain needs that forgets most slowly.

    Args:
        dft: Of one chain, untrained.
        wanted: What the states show.
        keys: Random keys of the trainings, (chains,).
        next_keys: Of the draws after those of the first blocks, (chains,).
        args: Arguments of the model.
        kwargs: Keyword arguments of the model.
    """

    def one(key: Any, following: Any) -> DFTState:
        return traced_state(dft, wanted, key, following, args, kwargs)

    state = jax.vmap(one)(keys, next_keys)
    own = state.trained
    assert own is not None
    common = {name: getattr(own, name)[0] for name in ("network", "coordinates", "leapfrogs", "renewed")}
    trained = own._replace(steps=own.steps.max(), **common)
    return state._replace(i=state.i[0], position=state.position[0], data=state.data[0], trained=trained)
