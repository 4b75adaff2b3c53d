"""`DFTKernel`: the sampler as a kernel of `numpyro.infer.MCMC`, the literal one-line swap for NUTS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.mcmc import MCMCKernel

from pyro_dft.engine_jax import functional, noise
from pyro_dft.engine_jax.networks import Weights, init_generator
from pyro_dft.engine_jax.train import Hyper
from pyro_dft.errors import NotFittedError, SettingsError
from pyro_dft.numpyro.dft import DFT
from pyro_dft.numpyro.problem import Problem
from pyro_dft.verdict import Diagnostics

# New draws are made in blocks of this many for each chain, and served one by one.
BLOCK = 1000


class Trained(NamedTuple):
    """A trained sampler and what refines its draws, for one chain (without the chain axis).

    Attributes:
        mean: (d,).
        scale: (d, d).
        generator: Weights.
        network: Whether the generator is used, or the Gaussian alone.
        coordinates: Index of the coordinates that it was trained in: the model's own, or non-centred ones.
        kernel_scale: (d, d) whitening of the transitions.
        step_size: Leapfrog step.
        steps: Transitions that a draw gets.
    """

    mean: Any
    scale: Any
    generator: Weights
    network: Any
    coordinates: Any
    kernel_scale: Any
    step_size: Any
    steps: Any


class DFTState(NamedTuple):
    """State of the kernel.

    Attributes:
        i: Calls of `sample` so far.
        z: The present draw, unconstrained, by site.
        potential_energy: Potential there, in the model's own coordinates.
        diverging: False: draws are independent, nothing diverges.
        rng_key: Random key of the draws to come.
        position: Row of `block` that comes next.
        block: Draws to serve, (rows, d), in the model's own coordinates.
        energies: Potentials there, (rows,).
        trained: The sampler.
    """

    i: Any
    z: Any
    potential_energy: Any
    diverging: Any
    rng_key: Any
    position: Any
    block: Any
    energies: Any
    trained: Trained


class DFTKernel(MCMCKernel):
    """Serves independent draws of a trained sampler to `numpyro.infer.MCMC`.

    Each chain trains a sampler of its own, exactly once, before its first iteration, so R-hat between chains compares
    independent fits. How long depends on the settings (`num_steps`, `precondition_steps`), not on `num_warmup`, whose
    iterations have nothing left to do. Draws are refined as `DFT.get_samples` does by default.

    With `chain_method="parallel"` on several devices, or a mapped chain method of the caller's own, the training is traced: it
    then follows the plan of the settings without looking at its progress, in the model's own coordinates.

    Args:
        model: A NumPyro model. Or a fitted `DFT`, whose sampler is then served without training: chain i gets new draws of
            its sampler i modulo `num_chains`.
        potential_fn: In place of a model, as for NUTS.
        initial_params: As for `DFT`. Those of `MCMC.run(init_params=...)` take their place.
        transforms: As for `DFT`.
        **options: As for `DFT`: settings, `init_strategy`, `disable_progbar`. `num_chains` belongs to `MCMC`.

    Raises:
        SettingsError: an option belongs to `MCMC`, or a setting is unknown or out of range.
        ModelError: neither a model nor a potential is given, or both.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC
        >>> from pyro_dft.numpyro import DFTKernel
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with numpyro.plate("data", len(y)):
        ...         numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> kernel = DFTKernel(model, disable_progbar=True)
        >>> mcmc = MCMC(kernel, num_warmup=100, num_samples=1000, progress_bar=False)
        >>> mcmc.run(jax.random.key(0), jnp.array([1.0, 2.0, 3.0]))
        >>> mcmc.get_samples()["mu"].shape
        (1000,)
    """

    sample_field = "z"
    default_fields = ("z", "diverging")

    def __init__(
        self,
        model: Callable[..., Any] | DFT | None = None,
        *,
        potential_fn: Callable[[dict[str, Any]], Any] | None = None,
        initial_params: Mapping[str, Any] | None = None,
        transforms: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        if "num_chains" in options:
            raise SettingsError("num_chains belongs to MCMC: MCMC(DFTKernel(model), num_chains=...)")
        self._fitted = model if isinstance(model, DFT) else None
        self._model = model.model if isinstance(model, DFT) else model
        if "checkpoint" in options:
            raise SettingsError("checkpoint: DFTKernel writes none; use DFT(...).run(...)")
        self._options = {"potential_fn": potential_fn, "transforms": transforms, **options}
        self._given = initial_params
        if self._fitted is None:
            # A wrong option must fail here. Initial values may still come from MCMC.
            self._new_dft(1, initial_params or {"any": np.zeros(())})
        elif options or any(given is not None for given in (potential_fn, initial_params, transforms)):
            raise SettingsError("a fitted DFT brings its own options: DFTKernel(dft) takes no others")
        self._chains_set_up = 0
        self._diagnostics: list[Diagnostics] = []
        # MCMC calls `init` again, and so trains again, in each run of a kernel whose `_sample_fn` is None.
        self._sample_fn: str | None = None

    def _new_dft(self, chains: int, initial_params: Mapping[str, Any] | None) -> DFT:
        return DFT(self._model, num_chains=chains, initial_params=initial_params, **self._options)

    @property
    def model(self) -> Callable[..., Any] | None:
        """The model; None for a bare potential."""
        return self._model

    @property
    def is_ensemble_kernel(self) -> bool:
        """Chains know nothing of each other."""
        return False

    # What MCMC calls, in its order.

    def init(
        self, rng_key: Any, num_warmup: int, init_params: Any, model_args: tuple[Any, ...], model_kwargs: Any
    ) -> DFTState:
        """Trains one chain, or all of them where `rng_key` is a batch of keys.

        Raises:
            ModelError: the model or its data cannot be used.
        """
        args, kwargs = tuple(model_args), dict(model_kwargs or {})
        self._sample_fn = "trained"
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((rng_key, args, kwargs))):
            return self._traced_init(rng_key, args, kwargs)
        batch = not _is_single(rng_key)
        keys = np.asarray(jax.random.key_data(rng_key) if _is_typed(rng_key) else rng_key)
        chains = len(keys) if batch else 1
        if self._fitted is None:
            given = self._given if init_params is None else init_params
            if batch and given is not None:
                given = {name: np.asarray(value)[0] for name, value in given.items()}
            dft = self._new_dft(chains, given)
            # A batch of keys trains all chains together: one of them stands for all.
            dft.run(keys[0] if batch else keys, *args, **kwargs)
            chosen = np.arange(chains)
        else:
            dft = self._fitted
            dft._require_fit()
            chosen = (self._chains_set_up + np.arange(chains)) % dft.num_chains
        self._chains_set_up += chains
        self._diagnostics.append(dft.diagnostics())
        states = _states(dft, chosen, rng_key if batch else None, kept=self._fitted is None)
        if batch:
            return states
        return jax.tree.map(lambda leaf: leaf[0], states._replace(rng_key=None))._replace(rng_key=rng_key)

    def _traced_init(self, rng_key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> DFTState:
        if self._fitted is not None:
            raise NotFittedError(
                "a fitted DFT cannot be served by traced chains: use chain_method='sequential'"
            )
        if not _is_single(rng_key):
            raise NotFittedError("a batch of traced keys cannot be trained: map over them one by one")
        dft = self._new_dft(1, self._given)
        posterior, target = dft._pure(args, kwargs)
        schedule = dft._schedule(target)
        words = noise.words(rng_key)
        first = dft.init(rng_key, *args, **kwargs)
        last, _ = functional.rest(schedule, Hyper.of(dft.settings), first, target.data)
        draws = max(10, min(BLOCK, dft.settings.num_draws))
        found = functional.finish(schedule, last, target.data, noise.fold(words, 2), draws)
        steps = (
            found.steps if schedule.refine_steps is None else jnp.asarray(schedule.refine_steps, jnp.int32)
        )
        block = (found.raw if schedule.refine_steps == 0 else found.refined)[0]
        trained = Trained(
            last.mean[0],
            last.scale[0],
            jax.tree.map(lambda value: value[0], last.network.trained),
            jnp.array(True),
            jnp.zeros((), jnp.int32),
            found.scale[0],
            found.step_size[0],
            steps,
        )
        energies = jax.vmap(posterior.potential, in_axes=(0, None))(block, target.data)
        zero = jnp.zeros((), jnp.int32)
        return DFTState(
            zero, posterior.layout.unflatten(block[0]), energies[0], jnp.array(False), rng_key, zero, block, energies,
            trained,
        )  # fmt: skip

    def sample(self, state: DFTState, model_args: tuple[Any, ...], model_kwargs: Any) -> DFTState:
        """The next draw."""
        dft = self._fitted or self._new_dft(1, self._given)
        posteriors = dft._posteriors_of(tuple(model_args), dict(model_kwargs or {}))
        layout = posteriors[0].layout
        if state.block.ndim == 2:
            block, energies, position, key = _refill(state, posteriors, dft)
            z = layout.unflatten(block[position])
            energy = energies[position]
        else:  # all chains at once
            one = jax.vmap(lambda own: _refill(own, posteriors, dft), in_axes=(_chain_axes(state),))
            block, energies, position, key = one(state)
            position = position[0]
            z, energy = layout.unflatten(block[:, position]), energies[:, position]
        return state._replace(
            i=state.i + 1,
            z=z,
            potential_energy=energy,
            rng_key=key,
            position=position + 1,
            block=block,
            energies=energies,
        )

    def postprocess_fn(self, args: tuple[Any, ...], kwargs: Any) -> Callable[[Any], Any]:
        """Unconstrained values of one draw -> constrained ones, deterministic sites included."""
        dft = self._fitted or self._new_dft(1, self._given)
        posterior = dft._own_posterior(tuple(args), dict(kwargs or {}))

        def constrain(z: dict[str, Any]) -> dict[str, Any]:
            parts = [jnp.reshape(z[name], -1) for name in posterior.layout.names]
            row = jnp.concatenate(parts).astype(posterior.dtype)
            return posterior.constrain_one(row)

        return constrain

    def get_diagnostics_str(self, state: DFTState) -> str:
        """What MCMC's progress bar shows."""
        return "independent draws"

    @property
    def diagnostics(self) -> list[Diagnostics]:
        """`DFT.diagnostics` of each training so far; none for traced chains."""
        return list(self._diagnostics)


def _is_typed(key: Any) -> bool:
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def _is_single(key: Any) -> bool:
    return key.ndim == (0 if _is_typed(key) else 1)


def _states(dft: DFT, chosen: np.ndarray, keys: Any, kept: bool) -> DFTState:
    """States of some chains of a fit, stacked; they serve the kept draws first, or only new ones."""
    fit, own = dft._fit, dft._posteriors[0]
    measured, sampler = fit.measurement, fit.sampler
    chains, dim = len(chosen), sampler.dim
    flat = dft._kept[chosen]
    original = dft._original(flat).astype(own.dtype)
    energies = dft._potential_at(original).astype(own.dtype)
    count = original.shape[1]
    generator = sampler.generator
    if generator is None:
        generator = _no_weights(dft.num_chains, dim, dft)
    zero = np.zeros((), np.int32)

    def each(value: Any) -> np.ndarray:
        return np.full(chains, value)

    trained = Trained(
        np.asarray(sampler.mean)[chosen],
        np.asarray(sampler.scale)[chosen],
        jax.tree.map(lambda value: np.asarray(value)[chosen], generator),
        each(sampler.generator is not None),
        each(np.int32(fit.problem)),
        np.asarray(measured.scale)[chosen],
        np.asarray(measured.step_size)[chosen],
        each(np.int32(dft._default_refine_steps())),
    )
    first = own.layout.unflatten(original[:, 0])
    position = zero if kept else np.int32(count)
    one = keys is None
    state = DFTState(
        each(zero) if one else zero, first, energies[:, 0], each(False), None,
        each(position) if one else position, original, energies, trained,
    )  # fmt: skip
    state = jax.tree.map(jnp.asarray, state)
    return state._replace(rng_key=keys)


def _no_weights(chains: int, dim: int, dft: DFT) -> Weights:
    """Arrays in the shapes of a generator that is not used: both kinds of sampler have the same state."""
    size, dtype = (dft.settings.width, dft.settings.depth), dft._posteriors[0].dtype
    own = dft._networks(dim).generator
    like = jax.eval_shape(
        lambda words: init_generator(words, chains, dim, *size, 1.0, dtype, own), np.zeros(2, np.uint32)
    )
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)


def _chain_axes(state: DFTState) -> DFTState:
    """Which leaves of a state of several chains have a leading axis for them."""
    axes = jax.tree.map(lambda _: 0, state)
    return axes._replace(i=None, position=None)


def _refill(state: DFTState, posteriors: list[Problem], dft: DFT) -> tuple[Any, Any, Any, Any]:
    """The block to serve from, its potentials, the row that is due and the key: new draws where the block is used up."""
    own = posteriors[0]

    def keep(_: Any) -> tuple[Any, Any, Any, Any]:
        return state.block, state.energies, state.position, state.rng_key

    def renew(_: Any) -> tuple[Any, Any, Any, Any]:
        key, now = jax.random.split(state.rng_key)
        words, t = noise.words(now), state.trained
        rows = len(state.block)

        def in_coordinates(problem: Problem) -> Callable[[Any], Any]:
            def new(_: Any) -> Any:
                target = problem.target()
                schedule = dft._schedule(target)
                flat = functional.refined(
                    schedule, t.mean[None], t.scale[None], jax.tree.map(lambda v: v[None], t.generator), t.network,
                    target.data, words, rows, t.kernel_scale[None], t.step_size[None], t.steps,
                )[0]  # fmt: skip
                return problem.original_coordinates(flat)

            return new

        block = jax.lax.switch(t.coordinates, [in_coordinates(p) for p in posteriors], None)
        energies = jax.vmap(own.potential, in_axes=(0, None))(block, own.data)
        return block.astype(own.dtype), energies, jnp.zeros_like(state.position), key

    return jax.lax.cond(state.position >= len(state.block), renew, keep, None)
