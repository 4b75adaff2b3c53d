"""`DFTKernel`: the sampler as a kernel of `numpyro.infer.MCMC`, the literal one-line swap for NUTS."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_context
from numpyro.infer.mcmc import MCMC, MCMCKernel

from pyro_dft import messages
from pyro_dft.engine_jax import random
from pyro_dft.engine_jax.sharding import pieces
from pyro_dft.errors import FidelityWarning, ModelError, warn
from pyro_dft.interface import mcmc_verdict
from pyro_dft.interface.mcmc_run import Asked, Run, kept_draws
from pyro_dft.interface.nuts_options import refuse, translated
from pyro_dft.judging.verdict import Diagnostics
from pyro_dft.numpyro.dft import DFT
from pyro_dft.numpyro.fields import check_fields
from pyro_dft.numpyro.mcmc_run import tell_kernel
from pyro_dft.numpyro.problem import Problem
from pyro_dft.numpyro.serving import Beyond, DFTState, Kept, Wanted, advance, fingerprint, states
from pyro_dft.numpyro.still import postprocess, still_state
from pyro_dft.numpyro.surroundings import lenient
from pyro_dft.numpyro.traced_state import traced_state, traced_states
from pyro_dft.numpyro.trees import Tree, is_traced, needs_tree

# Streams of a chain's key: of the draws after its training, and of the choice between the chains of a fit.
SERVING, CHOICE = 0x5E41, 3


class DFTKernel(MCMCKernel):
    """Serves independent draws of a trained sampler to `numpyro.infer.MCMC`.

    One training, before the first iteration, serves all chains. How long it takes depends on the settings and on how many draws
    are asked for, not on `num_warmup`, whose iterations have nothing left to do. Behind them the draws that the fit keeps are
    served, each once: states of an ensemble of exact chains, of which each chain of `MCMC` has others, so that R-hat between them
    compares chains that have run apart. Those of a run are all kept, up to 16,000 (`num_draws` of the settings, where given);
    behind them new draws follow, refined as `DFT.get_samples` does by default.

    With `chain_method="parallel"` on several devices, or a mapped chain method such as `jax.vmap`, chains are served new draws
    of their own keys: R-hat between them says nothing about the training, and `diagnostics` does. Where the data are traced as
    well, as within `jax.jit`, the training is traced: it follows the plan of the settings without looking at its progress, in
    the model's own coordinates, and has no verdict.

    New data need a new training: `MCMC.run` on other data than those of `MCMC.warmup` is an error.

    Args:
        model: A NumPyro model. Or a fitted `DFT`, whose sampler is then served without training: chain i gets new draws of
            its sampler i modulo `num_chains` (of a random one with mapped chains), and `MCMC.run` takes the data that it
            was trained on, or nothing. A model without continuous latent sites runs as under NUTS.
        potential_fn: In place of a model, as for NUTS: a function of any pytree of arrays.
        *positional: As for NumPyro's NUTS.
        initial_params: As for `DFT`. Those of `MCMC.run(init_params=...)` take their place.
        **options: As for `DFT`: settings, `transforms`, `init_strategy`, `disable_progbar` (without it, there is a bar where
            `MCMC` has one); and those of NUTS and HMC, most of which change nothing: docs/migration.md. `num_chains`
            belongs to `MCMC`.

    Raises:
        SettingsError: an option belongs to `MCMC`, or a setting is unknown or out of range.
        ModelError: neither a model nor a potential is given, or both.

    Warns:
        UserWarning: options of NUTS or HMC do not act as they do there.

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
        potential_fn: Callable[[Any], Any] | None = None,
        *positional: Any,
        initial_params: Any = None,
        **options: Any,
    ):
        self._fitted = model if isinstance(model, DFT) else None
        self._model = model.model if isinstance(model, DFT) else model
        brought = bool(positional) or potential_fn is not None or initial_params is not None
        refuse(options, ("num_chains",), fitted=self._fitted is not None, brought=brought)
        options, dense = translated(
            positional, options, pyro=False, potential=potential_fn is not None, stacklevel=2
        )
        initial_params = options.pop("init_params", initial_params)
        self._wanted, self._silent = Wanted(dense=dense), False
        self._options = {"potential_fn": potential_fn, "transforms": None, **options}
        self._given = self._by_site(initial_params)
        if self._fitted is None:
            # A wrong option must fail here. Initial values may still come from MCMC.
            self._new_dft(self._given or {"any": np.zeros(())})
        self._chains_set_up = self._trainings = 0
        self._run: Run[DFT] = Run()  # the present one
        self._diagnostics: list[Diagnostics | None] = []
        # What the model and its data are recognised by, of each training -> how far it non-centred sites.
        self._known: dict[bytes, dict[str, float]] = {}
        self._template: Mapping[str, Any] | None = None
        # MCMC calls `init` again, and so trains again, in each run of a kernel whose `_sample_fn` is None.
        self._sample_fn: str | None = None

    def _new_dft(self, initial_params: Mapping[str, Any] | None, **changed: Any) -> DFT:
        options, potential = {**self._options, **changed}, self._options["potential_fn"]
        if self._wanted.tree is not None and potential is not None:
            options["potential_fn"] = self._wanted.tree.potential(potential)
        if self._silent:
            options = {**options, "progress_bar": False, "disable_progbar": False}
        return DFT(self._model, initial_params=initial_params, **options)

    def _by_site(self, values: Any) -> Any:
        """Initial values as a dict by site, whatever the potential takes."""
        if values is None or self._model is not None or not needs_tree(values):
            return values
        tree = Tree.of(values)
        self._wanted = replace(self._wanted, tree=tree)
        return tree.sites(values)

    def prepare_run(self, extra_fields: Any, progress_bar: bool, warmed_up: Any, asked: Asked) -> None:
        """What `MCMC.run` is asked for, before it begins.

        Args:
            extra_fields: Fields of the state that are to be collected.
            progress_bar: Whether MCMC shows a bar; without it the training shows none either.
            warmed_up: The state that is gone on from, or None.
            asked: Chains that share a training, and how many draws of each.

        Raises:
            SettingsError: a state has no such field.
        """
        settings = (self._fitted or self._new_dft(self._given or {"any": np.zeros(())})).settings
        refined = settings.refine_steps != 0 and settings.objective != "dft-paper"
        has = None if warmed_up is None else ("z_grad",) * (getattr(warmed_up, "z_grad", None) is not None)
        check_fields(extra_fields, refined=refined, known=has)
        gradients = any(name.split(".")[0] == "z_grad" for name in extra_fields)
        self._wanted, self._silent = replace(self._wanted, gradients=gradients), not progress_bar
        self._run = Run(asked)

    def run_ended(self, state: DFTState | None) -> DFTState | None:
        """The last state of `MCMC.run`, from which any number of draws may follow; None where there is none."""
        self._run = Run()
        return None if state is None else state._replace(beyond=Beyond())

    @property
    def model(self) -> Callable[..., Any] | None:
        """The model; None for a bare potential."""
        return self._model

    @property
    def is_ensemble_kernel(self) -> bool:
        """Chains know nothing of each other."""
        return False

    # What MCMC calls, in its order.

    @lenient()
    def init(
        self, rng_key: Any, num_warmup: int, init_params: Any, model_args: tuple[Any, ...], model_kwargs: Any
    ) -> DFTState:
        """Trains, and prepares one chain, or all of them where `rng_key` is a batch of keys.

        A further chain of the same run of `MCMC` gets its draws from the training of the first.

        Raises:
            ModelError: the model or its data cannot be used, or they are not those of the fitted DFT.
        """
        args, kwargs = self._arguments(model_args, model_kwargs)
        self._sample_fn = "trained"
        try:
            return self._trained(rng_key, num_warmup, self._by_site(init_params), args, kwargs)
        except ModelError as error:
            if not error.nothing_to_infer or self._model is None:
                raise
            self._diagnostics.append(None)
            return still_state(self._model, rng_key, _is_single(rng_key), args, kwargs)

    def _trained(
        self, rng_key: Any, num_warmup: int, init_params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> DFTState:
        batch = not _is_single(rng_key)
        if init_params is not None:  # with a leading axis for the chains where they are trained together
            shapes = {name: np.shape(value)[batch:] for name, value in init_params.items()}
            self._template = {name: np.zeros(shapes[name], v.dtype) for name, v in init_params.items()}
        if is_traced((args, kwargs)):
            return self._traced_init(rng_key, args, kwargs)
        with eval_context():  # what is computed in here is computed now, whatever is being traced around it
            data = fingerprint((args, kwargs))
            dft = self._fit_of_run(rng_key, init_params, args, kwargs)
        # Training has drawn from the key itself.
        keys = rng_key if self._fitted is not None else _next(rng_key)
        count = 1 if _is_single(rng_key) else len(rng_key)
        kept = None
        if self._kept(rng_key):
            kept = Kept(num_warmup, self._run.asked.draws, self._run.next_part(count))
        return states(dft, self._chosen(rng_key, dft), keys, data, kept=kept, wanted=self._wanted)

    def _fit_of_run(
        self, rng_key: Any, init_params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> DFT:
        """The fit that serves these chains: the given one, that of earlier chains of the same run, or a new one."""
        if self._run.fit is not None:
            return self._run.fit
        if self._fitted is not None:
            dft = self._checked_fit(args, kwargs)
        else:
            several, given = not _is_single(rng_key), None if is_traced(init_params) else init_params
            if several and given is not None:
                given = {name: np.asarray(value)[0] for name, value in given.items()}
            # The first chain stands for all.
            dft = self._train(rng_key[0] if several else rng_key, given, args, kwargs)
            self._run.share(dft)
        self._diagnostics.append(dft.diagnostics())
        backend = dft.parts.backend
        self._known[_digest(backend.own_posterior(args, kwargs))] = dict(backend.amounts or {})
        return dft

    def _train(self, rng_key: Any, given: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> DFT:
        if is_traced(rng_key):
            # Its numbers are not known yet: mapped chains share one training, which follows from the settings alone.
            rng_key = np.random.SeedSequence([self._trainings, 0]).generate_state(2)
        self._trainings += 1
        start = self._start() if given is None else given
        dft = self._new_dft(start)
        changed = kept_draws(self._options, dft.settings, dft.parts.backend, self._run.asked, (args, kwargs))
        dft = self._new_dft(start, **changed) if changed else dft
        dft.run(rng_key, *args, **kwargs)
        return dft

    def _checked_fit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> DFT:
        dft = self._fitted
        assert dft is not None
        dft.parts.training.trained()
        own, other = dft.parts.backend.posteriors[0], dft.parts.backend.posteriors_of(args, kwargs)[0]
        if _digest(own) == _digest(other):
            return dft
        # One that was written differently, such as with whole numbers for floats, has other operations.
        training = dft.parts.training
        rewritten = own.potential != other.potential
        if rewritten and dft.parts.backend.is_alike(
            other, training.trained(), training.arguments, (args, kwargs)
        ):
            return dft
        raise messages.other_data(True)

    def _kept(self, rng_key: Any) -> bool:
        """Whether the kept draws come first; mapped chains, which share them, begin with new ones of their own keys."""
        return self._fitted is None and not is_traced(rng_key)

    def _chosen(self, rng_key: Any, dft: DFT) -> Any:
        """Which chains of a fit are served: in turn; where the keys are traced, by the key."""
        if is_traced(rng_key):
            unit = random.uniform(random.fold(random.words(rng_key), CHOICE), (), np.float32)
            return (unit * dft.num_chains).astype(jnp.int32)
        chosen = np.arange(1 if _is_single(rng_key) else len(rng_key))
        chosen = (self._chains_set_up + chosen) % dft.num_chains
        self._chains_set_up += len(chosen)
        return chosen[0] if _is_single(rng_key) else chosen

    def _traced_init(self, rng_key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> DFTState:
        """Chains trained under the trace, where the data are traced too: by plan, and without a verdict."""
        if self._fitted is not None:
            raise messages.fitted_for_traced_data()
        self._diagnostics.clear()
        warn(messages.no_verdict_under_a_trace(), FidelityWarning)
        dft = self._new_dft(self._start())
        made = traced_state if _is_single(rng_key) else traced_states
        return made(dft, self._wanted, rng_key, _next(rng_key), args, kwargs)

    @lenient()
    def sample(self, state: DFTState, model_args: tuple[Any, ...], model_kwargs: Any) -> DFTState:
        """The next draw.

        Raises:
            ModelError: the arguments are not those of a training of this kernel.
        """
        if state.trained is None:  # nothing to infer
            return state._replace(i=state.i + 1)
        args, kwargs = self._arguments(model_args, model_kwargs)
        dft, posteriors = self._read(args, kwargs)
        if is_traced((args, kwargs)):
            data = fingerprint((args, kwargs))
        else:
            with eval_context():
                data = np.asarray(fingerprint((args, kwargs)))
        return advance(state, posteriors, dft, data, self._wanted)

    def postprocess_fn(self, args: tuple[Any, ...], kwargs: Any) -> Callable[[Any], Any]:
        """Unconstrained values of one draw -> constrained ones, deterministic sites included."""
        args, kwargs = self._arguments(args, kwargs)
        if self._wanted.tree is not None:
            return lambda z: z
        try:
            posterior = self._read(args, kwargs)[1][0]
        except ModelError as error:
            if not error.nothing_to_infer or self._model is None:
                raise
            return postprocess(self._model, args, kwargs)

        def constrain(z: dict[str, Any]) -> dict[str, Any]:
            parts = [jnp.reshape(z[name], -1) for name in posterior.layout.names]
            row = jnp.concatenate(parts).astype(posterior.dtype)
            return posterior.constrain_one(row)

        return constrain

    def _arguments(self, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = tuple(args), dict(kwargs or {})
        if self._fitted is not None and not args and not kwargs:
            return self._fitted.parts.training.arguments
        if self._model is None:  # as with NUTS, data that a potential does not read are allowed
            return (), {}
        return args, kwargs

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[DFT, list[Problem]]:
        """The model with these arguments, in all coordinates."""
        dft = self._fitted or self._new_dft(self._start())
        backend = dft.parts.backend
        if is_traced((args, kwargs)):
            with backend.as_pure():
                return dft, backend.posteriors_of(args, kwargs)
        with eval_context():  # sites that may be angles are looked at now, whatever is being traced around it
            own = backend.own_posterior(args, kwargs)
            digest = _digest(own) if self._known else b""
            if self._known and digest not in self._known:
                raise messages.other_data(self._fitted is not None)
            backend.amounts = self._known.get(digest, backend.amounts)
            return dft, backend.coordinate_sets(own)

    def _start(self) -> Mapping[str, Any] | None:
        return self._template if self._given is None else self._given

    def get_diagnostics_str(self, state: DFTState) -> str:
        """What MCMC's progress bar shows."""
        return "independent draws"

    @property
    def diagnostics(self) -> list[Diagnostics | None]:
        """`DFT.diagnostics` of each training so far; none where chains were trained under a trace, None for nothing to infer."""
        return copy.deepcopy(self._diagnostics)


def _is_typed(key: Any) -> bool:
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def _is_single(key: Any) -> bool:
    return key.ndim == (0 if _is_typed(key) else 1)


def _next(keys: Any) -> Any:
    """A key that goes on where the given one was used for a training, or one for each."""
    if _is_single(keys):
        return jax.random.fold_in(keys, SERVING)
    return jax.vmap(lambda key: jax.random.fold_in(key, SERVING))(keys)


def _digest(posterior: Problem) -> bytes:
    """Changes with the operations of a potential, and with each number that they read."""
    found = hashlib.sha256(posterior.potential.digest)
    for leaf in jax.tree.leaves(posterior.data):
        for place, piece in pieces(leaf):
            found.update(f"{piece.dtype}{piece.shape}{place}".encode())
            found.update(np.ascontiguousarray(piece).tobytes())
    return found.digest()


def _kernel_of(mcmc: Any) -> DFTKernel | None:
    return mcmc.sampler if isinstance(mcmc.sampler, DFTKernel) else None


def _reports_of(mcmc: Any) -> list[Diagnostics | None]:
    return mcmc.sampler.diagnostics[-1:]


tell_kernel(MCMC, _kernel_of)
mcmc_verdict.show_verdict(MCMC, "print_summary", _kernel_of, _reports_of)
