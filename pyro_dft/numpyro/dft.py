"""The NumPyro front door: `DFT` for a NumPyro model or a bare potential function."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pyro_dft import messages
from pyro_dft.engine_jax.custom import TrainedNetwork
from pyro_dft.engine_jax.engine import ENGINE
from pyro_dft.engine_jax.refine import refine
from pyro_dft.engine_jax.sampler import CHUNK, Sampler
from pyro_dft.errors import ModelError
from pyro_dft.interface.dft import LIKELIHOOD_LIMIT
from pyro_dft.interface.exclusive import exclusive
from pyro_dft.interface.recognition import Terms
from pyro_dft.interface.restoring import MEASURED, Restored
from pyro_dft.layout import Layout
from pyro_dft.models.amounts import GRADIENTS as AMOUNT_GRADIENTS
from pyro_dft.models.amounts import worth_a_try
from pyro_dft.numpyro.amounts import fitted as fitted_amounts
from pyro_dft.numpyro.guide import DrawsGuide
from pyro_dft.numpyro.habits import Habits
from pyro_dft.numpyro.model import NumPyroProblem
from pyro_dft.numpyro.potential import PotentialProblem
from pyro_dft.numpyro.problem import Problem as Posterior
from pyro_dft.numpyro.surroundings import lenient
from pyro_dft.recipe.facts import facts
from pyro_dft.recipe.fit import FittedTrainer, Problem
from pyro_dft.recipe.trainer import Trainer

# Added to the seed of a fit for draws that a callback takes.
LOOKING = 2**31


class DFT(Habits):
    """Neural posterior sampler for NumPyro: trains a network that turns noise into posterior draws.

    It is trained by the KL divergence; `objective="dft"` is Denoising Fisher Training (arXiv 2411.01453).

    Args:
        model: A NumPyro model. Discrete sites are summed out; plates with `subsample_size` give minibatches.
        potential_fn: In place of a model: minus the log density of a dict of unconstrained values, as NUTS takes it.
        initial_params: Unconstrained values (one point) to start from, in the first restart of the first chain. With
            `potential_fn` they are required, and give names and shapes.
        transforms: Name -> transform from constrained to unconstrained values, for `potential_fn` or to override those
            of a model.
        smoothed_potential_fn: For `noise_mode="levels"`, beside `potential_fn`: called with the dict and a noise level sigma,
            minus the log density of the unconstrained values with noise N(0, sigma^2 I) added, as a diffusion or
            denoising model gives it. Training at many levels finds far modes and their weights.
        generator: A network of your own in place of the default one: anything with methods `init(key, x)` and `apply(params,
            x)`, such as a `flax.linen.Module`, or `pyro_dft.numpyro.Network(init, apply)`. It maps standard normal latent
            points (n, d) to points (n, d), flat and in whitened coordinates (with `precondition="never"` in those of the
            posterior), and is the whole map: nothing is added to it but the noise.
        score_network: The same for the score of the sampler's noised draws, (n, d) to (n, d). With `noise_mode="levels"`
            both methods get the noise (n, 1) behind x.
        num_chains: Independently initialised and trained samplers, all at once; R-hat compares them.
        init_strategy: Where the search starts, such as `numpyro.infer.init_to_median`; uniform(-2, 2) in
            unconstrained coordinates by default.
        checkpoint: File that the training in progress is written to. A run that was killed goes on from it, with the same
            settings and key, to the same end; the file is removed when the training is complete.
        checkpoint_every: Iterations of the network phases between two writes.
        callback: Called on the way as `callback(progress, draw)`: where the training is (`step` of `total`, `phase`, `loss`), and
            a function that makes raw draws of the sampler as it stands, `draw(num_samples)`, a dict as from `get_samples`.
            It changes nothing in the training; to end that early, raise `KeyboardInterrupt`.
        callback_every: Iterations between two calls, at least; a new phase calls at once.
        disable_progbar: Whether to hide the progress bar.
        settings: A `Settings` object, or give single settings as keywords, such as `num_steps=1000` or `objective="kl"`.
        **overrides: Single settings; see `pyro_dft.numpyro.Settings`.

    Raises:
        SettingsError: a setting is unknown or out of range.
        ModelError: neither a model nor a potential is given, or both.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from pyro_dft.numpyro import DFT
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with numpyro.plate("data", len(y)):
        ...         numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> dft = DFT(model, disable_progbar=True)
        >>> dft.run(jax.random.key(0), jnp.array([1.0, 2.0, 3.0]))
        >>> dft.get_samples(100)["mu"].shape
        (100,)
        >>> dft.diagnostics()["status"]
        'converged'
    """

    _framework, _needs_seed = "numpyro", False
    _live = frozenset(("_posteriors", "_problems", "_rng", "_looking", "_last", "_checked_networks"))

    def run(self, rng_key: Any, *args: Any, **kwargs: Any) -> None:
        """Trains the sampler for the posterior given the model's arguments, from the start.

        Ctrl-C ends the training early and keeps the sampler trained so far; `diagnostics()` then says how good it is.

        Args:
            rng_key: Random key of everything in the fit, and of the draws taken later.
            *args: Arguments of the model.
            **kwargs: Keyword arguments of the model.

        Raises:
            ModelError: the model or its data cannot be used; the message names the site or argument. Nothing of an
                earlier fit is left then.

        Warns:
            FidelityWarning: a diagnostic says that the fit is doubtful, or the training was interrupted.

        Example:
            >>> dft = DFT(model, disable_progbar=True)
            >>> dft.run(jax.random.key(0), y)
            >>> sorted(dft.get_samples())
            ['mu']
        """
        self._words = key_words(rng_key)
        self._train(args, kwargs)

    @property
    def guide(self) -> DrawsGuide:
        """The fit as a guide, for `numpyro.infer.Predictive(model, guide=dft.guide, num_samples=...)`.

        It serves the kept draws at random. It has no density: ELBO and weights cannot be computed from it.

        Raises:
            NotFittedError: before `run`.

        Example:
            >>> from numpyro.infer import Predictive
            >>> predict = Predictive(model, guide=dft.guide, num_samples=5)
            >>> tuple(predict(jax.random.key(1), y, observed=False)["y"].shape)
            (5, 3)
        """
        self._require_fit()
        return DrawsGuide(self._posterior.constrain(_rows(self._kept), include_deterministic=False))

    @property
    def generator(self) -> TrainedNetwork | list[TrainedNetwork]:
        """The trained generator of your own: latent points (n, d) to noise-free draws (n, d), flat.

        They are in the coordinates of the training, which are those of the posterior with `precondition="never"`. A list where
        there are several chains or modes. Each is called with points, has its `params`,
        and may be given to another `DFT`, to go on with.

        Raises:
            NotFittedError: before the training.
            SettingsError: no generator was given, or the Gaussian alone was kept.

        Example:
            >>> from pyro_dft.numpyro import Network
            >>> shift = Network(lambda key, z: jnp.zeros(1), lambda weights, z: z + weights)
            >>> dft = DFT(model, generator=shift, train="always", num_steps=50)
            >>> dft.run(jax.random.key(0), y)
            >>> dft.generator(jnp.zeros((5, 1))).shape
            (5, 1)
        """
        self._require_fit()
        return self._trained("generator", self._fit.sampler.generator, self._own_generator)

    @property
    def score_network(self) -> TrainedNetwork | list[TrainedNetwork]:
        """The trained score network of your own, as `generator`; files do not keep it.

        Raises:
            NotFittedError: before the training.
            SettingsError: none was given, or none was trained.

        Example:
            >>> from pyro_dft.numpyro import Network
            >>> slope = Network(lambda key, x: -jnp.ones(1), lambda weights, x: x * weights)
            >>> dft = DFT(model, score_network=slope, train="always", num_steps=400)
            >>> dft.run(jax.random.key(0), y)
            >>> dft.score_network(jnp.zeros((5, 1))).shape
            (5, 1)
        """
        self._require_fit()
        return self._trained("score_network", self._fit.score_network, self._own_score_network)

    @staticmethod
    def _trained(option: str, weights: Any, given: Any) -> TrainedNetwork | list[TrainedNetwork]:
        if weights is None or "own" not in weights:
            raise messages.no_own_network(option, given is not None)
        made = weights["own"].each()
        return made[0] if len(made) == 1 else made

    # From a model to targets: the posterior in the model's own coordinates and, where it has location-scale sites,
    # in non-centred ones.

    @lenient()
    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int | None = None) -> None:
        own = () if self.settings.seed is None else (self.settings.seed % 2**32,)
        words = [*self._words, *own] if seed is None else [seed]
        self._rng = np.random.default_rng(words if seed is None else seed)
        self._looking = np.random.default_rng([*words, LOOKING])
        if seed is None:
            self._amounts = None
        self._posteriors = self._posteriors_of(args, kwargs)
        self._problems = [self._problem(posterior) for posterior in self._posteriors]

    def _set_seed(self, seed: int) -> None:
        # In place: a trainer holds the same generator.
        self._rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state

    def _own_posterior(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], centred: bool = True
    ) -> Posterior:
        if self.potential_fn is not None:
            if args or kwargs:
                raise ModelError("potential_fn takes no model arguments: run() must be called without any")
            return PotentialProblem(
                self.potential_fn, self.initial_params or {}, self.transforms, self.smoothed_potential_fn
            )
        assert self.model is not None
        return NumPyroProblem(self.model, args, kwargs, transforms=self.transforms, centred=centred)

    def _posteriors_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Posterior]:
        own = self._own_posterior(args, kwargs, centred=not self._pure_state)
        movable = own.noncentering_candidates()
        if not movable or self.settings.reparam != "auto" or not self.settings.preconditioned:
            self._amounts = {}
            return [own]
        if self._amounts is None:
            fits = isinstance(own, NumPyroProblem) and not own.minibatch and not self._pure_state
            self._amounts = fitted_amounts(own, movable) if fits else {}  # type: ignore[arg-type]
            self._piloted = AMOUNT_GRADIENTS if fits else 0
        sets = [movable, self._amounts] if worth_a_try(self._amounts, movable) else [movable]
        return [own, *(own.noncentered(each) for each in sets)]

    def _problem(self, posterior: Posterior) -> Problem:
        if posterior.minibatch:
            self.settings.check_minibatches()
        starts = np.empty((self.num_chains, 0, posterior.dim), posterior.dtype)
        return Problem(posterior.target(), starts, posterior.original_coordinates)

    def _start(self) -> Trainer:
        restarts = self.settings.restarts
        # What the amounts of non-centring cost, once.
        self._problems[0].target.count(self._piloted)
        self._piloted = 0
        for posterior, problem in zip(self._posteriors, self._problems, strict=True):
            points = posterior.initial_points(
                self.num_chains * restarts, problem.target, self._rng, init_strategy=self.init_strategy
            )
            given = self._given_start(posterior)
            if given is not None:
                points[0] = given
            problem.starts = points.reshape(self.num_chains, restarts, posterior.dim)
        return Trainer(
            ENGINE, self._problems, self.settings, self._rng, self._networks(self._problems[0].target.dim)
        )

    def _seed(self) -> list[int]:
        return [*self._words, *([] if self.settings.seed is None else [self.settings.seed])]

    def _given_start(self, posterior: Posterior) -> np.ndarray | None:
        """`initial_params` as a flat point of a posterior; None where there are none, or the potential has used them."""
        if self.initial_params is None or self.model is None:
            return None
        own = self._posteriors[0]
        shapes = {site.name: site.unconstrained_shape for site in own.layout.sites}
        given = {name: np.asarray(value) for name, value in self.initial_params.items()}
        if {name: value.shape for name, value in given.items()} != shapes:
            raise ModelError(
                "initial_params must hold one unconstrained value for each latent site, with shapes "
                f"{shapes}, got { {name: value.shape for name, value in given.items()} }"
            )
        point = np.concatenate([given[name].reshape(-1).astype(own.dtype) for name in own.layout.names])[None]
        if not np.isfinite(self._problems[0].target.evaluate(point)[0]).all():
            raise ModelError("initial_params: the potential is not finite there")
        return point[0] if posterior is own else posterior.unconstrain(own.constrain(point))[0]

    def _replace_data(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise AttributeError("with NumPyro, training by steps is init(rng_key, ...) and update(state, ...)")

    def _session(self) -> contextlib.AbstractContextManager[None]:
        return _alone()

    # The trained sampler

    @property
    def _posterior(self) -> Posterior:
        """The posterior in the sampler's coordinates."""
        return self._posteriors[self._fit.problem]

    def _layout(self) -> Layout:
        return self._posteriors[0].layout

    def _told_blocks(self, each: int, refine_steps: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        fit, measured = self._fit, self._fit.measurement

        def refined(block: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
            if not refine_steps:
                return block, {"diverging": np.zeros(block.shape[:2], bool)}
            moved = refine(
                self._problems[fit.problem].target,
                block,
                measured.scale,
                measured.step_size,
                steps=refine_steps,
                leapfrog_steps=measured.leapfrog_steps,
                rng=self._rng,
            )
            own = self._with_kernel(moved.statistics, refine_steps * measured.leapfrog_steps)
            return moved.draws, {"diverging": moved.diverged, **own}

        if fit.modes is None:
            for block in fit.sampler.blocks(each, self._rng):
                yield refined(block)
            return
        size = max(1, CHUNK // fit.sampler.chains)
        for start in range(0, each, size):
            needed, rows = fit.modes.rows(min(size, each - start), self._rng)
            draws, told = refined(fit.sampler.draw(needed, self._rng))
            yield (
                fit.modes.combine(draws, rows),
                {name: fit.modes.combine(value, rows) for name, value in told.items()},
            )

    def _constrain(self, blocks: Iterable[np.ndarray]) -> dict[str, jax.Array]:
        parts: dict[str, list[np.ndarray]] = {}
        for block in blocks:
            for name, value in self._posterior.constrain(_rows(block)).items():
                parts.setdefault(name, []).append(value.reshape(*block.shape[:2], *value.shape[1:]))
        return {
            name: jnp.asarray(pieces[0] if len(pieces) == 1 else np.concatenate(pieces, 1))
            for name, pieces in parts.items()
        }

    def _original(self, flat: np.ndarray) -> np.ndarray:
        return np.asarray(self._posterior.original_coordinates(_rows(flat))).reshape(flat.shape)

    def _potential_at(self, points: np.ndarray, problem: int = 0) -> np.ndarray:
        target = self._problems[problem].target
        return -target.evaluate(points.astype(target.dtype))[0]

    def _terms_at(self, points: np.ndarray) -> Terms:
        return self._posteriors[0].site_terms(points)

    def _flat(self, points: np.ndarray) -> np.ndarray:
        return points.astype(self._problems[self._fit.problem].target.dtype)

    def _host_rng(self) -> np.random.Generator:
        return self._rng

    def _precision(self) -> float:
        return float(np.finfo(self._posteriors[0].dtype).eps)

    def _concatenate(self, arrays: Iterable[Any], axis: int = 0) -> Any:
        pieces = list(arrays)
        if all(isinstance(piece, np.ndarray) for piece in pieces):
            return np.concatenate(pieces, axis)
        return jnp.concatenate(pieces, axis)

    def _copied(self, value: Any) -> Any:
        return value.copy() if isinstance(value, np.ndarray) else value

    def _same_array(self, a: Any, b: Any) -> bool | None:
        if isinstance(a, jax.Array):  # which cannot change
            return a is b
        if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
            return None
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")

    def _to_numpy(self, value: Any) -> np.ndarray | None:
        if isinstance(value, np.ndarray):
            return value
        if not isinstance(value, jax.Array):
            return None
        array = np.asarray(value)
        return array.astype(np.float32) if array.dtype.name in ("bfloat16", "float16") else array

    def _from_numpy(self, array: np.ndarray) -> jax.Array:
        return jnp.asarray(array)

    # Reports

    def _model_groups(
        self, samples: dict[str, Any], log_likelihood: bool | None, predictive: bool, prior: bool
    ) -> dict[str, dict[str, Any]]:
        own = self._posteriors[0]
        wanted = bool(log_likelihood or predictive or prior)
        if self.model is None:
            if wanted:
                raise ModelError(
                    "a bare potential_fn has no likelihood, no replicated data and no prior to report"
                )
            return {}
        assert isinstance(own, NumPyroProblem)
        chains, draws = next(iter(samples.values())).shape[:2]
        flat = {name: np.asarray(v).reshape(chains * draws, *v.shape[2:]) for name, v in samples.items()}
        observed = own.observed()
        if log_likelihood is None:
            numbers = chains * draws * sum(value.size for value in observed.values())
            log_likelihood = (
                own.without_likelihood().keys() != observed.keys() and numbers <= LIKELIHOOD_LIMIT
            )
        groups: dict[str, Mapping[str, Any]] = {"observed_data": observed}
        if log_likelihood:
            groups["log_likelihood"] = own.log_likelihood(flat)
        if predictive:
            groups["posterior_predictive"] = own.posterior_predictive(flat, self._rng)
        if prior:
            drawn = own.prior_predictive(chains * draws, self._rng)
            groups["prior"] = {name: value for name, value in drawn.items() if name not in observed}
            groups["prior_predictive"] = {name: drawn[name] for name in observed}
        return {
            group: dict(values)
            if group == "observed_data"
            else {name: value.reshape(chains, draws, *value.shape[1:]) for name, value in values.items()}
            for group, values in groups.items()
        }

    def _plate_dims(self) -> dict[str, list[str]]:
        return self._posteriors[0].plate_dims()

    def _facts(self) -> dict[str, Any]:
        return facts(
            ENGINE,
            self._fit,
            self._problems,
            own=self._posteriors[0],
            used=self._posterior,
            served=self._kept,
            settings=self.settings,
            refine_steps=self._default_refine_steps(),
        ) | {
            **self._evaluations(),
            "iterations": len(self._fit.history),
            "seconds": self._seconds,
            "cpu_seconds": self._cpu_seconds,
            "phase_seconds": dict(self._fit.seconds),
            "phase_gradients": dict(self._fit.gradients),
        }

    # Files

    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        measured = self._fit.measurement
        arrays = self._fit.sampler.to_arrays()
        arrays |= {f"measured.{name}": np.asarray(getattr(measured, name)) for name in MEASURED}
        arrays |= {f"measured.{name}": np.asarray(value) for name, value in measured.statistics.items()}
        if self._fit.modes is not None:
            arrays |= self._fit.modes.to_arrays()
        return arrays, {
            "sampler_layout": self._posterior.layout.to_json(),
            "objective": self._fit.objective,
            "measured_steps": measured.steps,
            "measured_leapfrogs": measured.leapfrog_steps,
            "measured_gradients_each": measured.gradients_each,
        }

    def _own_shapes(self, chains: int, dim: int) -> dict[str, tuple[int, ...]] | None:
        size, own = (self.settings.width, self.settings.depth), self._networks(dim).generator
        return None if own is None else Sampler.generator_shapes(chains, dim, *size, own)

    def _restore(self, content: Restored) -> FittedTrainer:
        target = self._problems[content.index].target
        sampler = Sampler.from_arrays(content.sampler, self._networks(target.dim).generator)
        kept = {
            name: value if value.dtype.kind == "b" else value.astype(target.dtype)
            for name, value in content.measured.items()
        }
        return FittedTrainer(
            ENGINE,
            self._problems,
            content.index,
            sampler,
            content.objective,
            content.steps,
            kept,
            content.modes,
            leapfrog_steps=content.leapfrog_steps,
            gradients_each=content.gradients_each,
        )


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One thread at a time, whatever jax is told to be strict about."""
    with exclusive(), lenient():
        yield


def _rows(flat: np.ndarray) -> np.ndarray:
    """Flat draws (chains, draws, dim) -> (chains * draws, dim)."""
    return flat.reshape(-1, flat.shape[-1])


def key_words(rng_key: Any) -> tuple[int, ...]:
    """The words of a random key, new-style or old-style.

    Raises:
        TypeError: it is no single random key.
    """
    typed = hasattr(rng_key, "dtype") and jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key)
    words = np.asarray(jax.random.key_data(rng_key) if typed else rng_key)
    if words.ndim != 1 or words.dtype != np.uint32:
        raise TypeError(
            f"the first argument must be a random key such as jax.random.key(0), got {type(rng_key).__name__}"
            + (f" of shape {words.shape}" if words.ndim else "")
        )
    return tuple(int(word) for word in words)
