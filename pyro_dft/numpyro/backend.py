"""A NumPyro model, or a bare potential, as targets of the jax engine."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pyro_dft import messages
from pyro_dft.engine_jax.custom import Own
from pyro_dft.engine_jax.engine import ENGINE
from pyro_dft.engine_jax.sampler import Sampler
from pyro_dft.engine_jax.sharding import Placement, gathered
from pyro_dft.engine_jax.step import OwnNetworks
from pyro_dft.engine_jax.target import Target
from pyro_dft.interface.backend import Backend
from pyro_dft.interface.exclusive import exclusive
from pyro_dft.interface.options import Options
from pyro_dft.numpyro.amounts import fitted as fitted_amounts
from pyro_dft.numpyro.arrays import JaxArrays
from pyro_dft.numpyro.model import NumPyroProblem
from pyro_dft.numpyro.potential import PotentialProblem
from pyro_dft.numpyro.problem import Problem as Posterior
from pyro_dft.numpyro.programs import Programs
from pyro_dft.numpyro.surroundings import lenient, without_mesh
from pyro_dft.recipe.fit import Problem, Restored

# Added to the seed of a fit for draws that a callback takes.
CALLBACK = 2**31


class NumPyroBackend(Backend):
    """NumPyro, on jax.

    Attributes:
        words: Words of the random key that the training was given.
        programs: What pure functions run.
    """

    framework, needs_seed = "numpyro", False
    engine, arrays = ENGINE, JaxArrays()

    posteriors: list[Posterior]
    problems: list[Problem]
    rng: np.random.Generator
    callback_rng: np.random.Generator

    def __init__(self, options: Options):
        super().__init__(options)
        self.words: tuple[int, ...] = ()
        self.programs = Programs(self)
        self._as_pure = False
        self._checked_networks: tuple[int, OwnNetworks] | None = None

    # From a model to a training

    @lenient()
    @without_mesh()
    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int | None = None) -> None:
        """See the base class."""
        own = self.options.settings.seed
        words = [*self.words, *(() if own is None else (own % 2**32,))] if seed is None else [seed]
        self.rng = np.random.default_rng(words if seed is None else seed)
        self.callback_rng = np.random.default_rng([*words, CALLBACK])
        if seed is None:
            self.amounts = None
        self.posteriors = self.posteriors_of(args, kwargs)
        self.problems = [self._problem(posterior) for posterior in self.posteriors]
        placement = Placement.of(self.posteriors[0].data)
        if placement is not None and placement.mesh.is_multi_process:
            self._check_together()

    def _check_together(self) -> None:
        """Whether the processes that share the data will take the same steps."""
        if self.options.settings.max_seconds is not None:
            raise messages.timed_together()
        if len(np.unique(gathered(copy.deepcopy(self.rng).random(2)), axis=0)) > 1:
            raise messages.seeded_apart("random keys")

    def set_seed(self, seed: int) -> None:
        """See the base class."""
        # In place: a trainer holds the same generator.
        self.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state

    def seed_words(self) -> list[int]:
        """Words of the random key, and the seed of the settings."""
        seed = self.options.settings.seed
        return [*self.words, *([] if seed is None else [seed])]

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """One thread at a time, whatever jax is told to be strict about."""
        with exclusive(), lenient(), without_mesh():
            yield

    @contextlib.contextmanager
    def as_pure(self) -> Iterator[None]:
        """Models are read inside as pure functions read them: in their own coordinates, with angles centred at zero."""
        self._as_pure = True
        try:
            yield
        finally:
            self._as_pure = False

    def own_posterior(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], centred: bool | None = None
    ) -> Posterior:
        """The posterior in the model's own coordinates.

        Args:
            args: Arguments of the model.
            kwargs: Keyword arguments of the model.
            centred: Whether the coordinates of angles are centred at a mode, and not at zero; None for what `as_pure` says.

        Raises:
            ModelError: the model or its arguments cannot be used.
        """
        options = self.options
        if options.potential_fn is not None:
            self.refuse_arguments(args, kwargs)
            return PotentialProblem(
                options.potential_fn,
                options.initial_params or {},
                options.transforms,
                options.smoothed_potential_fn,
            )
        assert options.model is not None
        centred = not self._as_pure if centred is None else centred
        return NumPyroProblem(options.model, args, kwargs, transforms=options.transforms, centred=centred)

    def fitted_amounts(self, own: Posterior, sites: tuple[str, ...]) -> dict[str, float] | None:
        """See the base class."""
        possible = isinstance(own, NumPyroProblem) and not own.minibatch and not self._as_pure
        return fitted_amounts(own, sites) if possible else None  # type: ignore[arg-type]

    def _problem(self, posterior: Posterior) -> Problem:
        if posterior.minibatch:
            self.options.settings.check_minibatches()
        starts = np.empty((self.options.num_chains, 0, posterior.dim), posterior.dtype)
        return Problem(posterior.target(), starts, posterior.compared_coordinates)

    def replace_data(self, args: tuple[Any, ...], kwargs: dict[str, Any], trainer: Any) -> None:
        """Not with NumPyro, whose users train by pure functions."""
        raise AttributeError("with NumPyro, training by steps is init(rng_key, ...) and update(state, ...)")

    def initial_points(self, posterior: Posterior, target: Target, count: int) -> np.ndarray:
        """See the base class."""
        return posterior.initial_points(count, target, self.rng, init_strategy=self.options.init_strategy)

    def is_finite(self, point: np.ndarray) -> bool:
        """See the base class."""
        return bool(np.isfinite(self.problems[0].target.evaluate(point)[0]).all())

    def look_at(self, target: Target, points: np.ndarray) -> None:
        """Does nothing: jax batches everything."""

    def networks(self, dim: int) -> OwnNetworks:
        """See the base class; checked once for each dimension."""
        if self._checked_networks is None or self._checked_networks[0] != dim:
            generator, score_network = self.options.generator, self.options.score_network
            levels = self.options.settings.experimental.noise_mode == "levels"
            own = OwnNetworks(
                None if generator is None else Own(generator, "generator", dim),
                None if score_network is None else Own(score_network, "score_network", dim, levels),
            )
            self._checked_networks = dim, own
        return self._checked_networks[1]

    # Draws

    def constrain(self, problem: int, blocks: Iterable[np.ndarray]) -> dict[str, jax.Array]:
        """As the base class, in arrays of jax."""
        return {name: jnp.asarray(value) for name, value in super().constrain(problem, blocks).items()}

    def host_rng(self, rng: np.random.Generator) -> np.random.Generator:
        """The generator itself."""
        return rng

    @property
    def precision(self) -> float:
        """See the base class."""
        return float(np.finfo(self.posteriors[0].dtype).eps)

    # Reports

    def replicated(self, own: Posterior, samples: dict[str, Any]) -> dict[str, Any]:
        """See the base class."""
        return own.posterior_predictive(samples, self.rng)

    def prior(self, own: Posterior, count: int) -> dict[str, Any]:
        """See the base class."""
        return own.prior_predictive(count, self.rng)

    # Files

    def from_numpy(self, array: np.ndarray) -> jax.Array:
        """An array of jax's."""
        return jnp.asarray(array)

    def own_shapes(self, chains: int, dim: int) -> dict[str, tuple[int, ...]] | None:
        """See the base class."""
        own, settings = self.networks(dim).generator, self.options.settings
        return (
            None
            if own is None
            else Sampler.generator_shapes(chains, dim, settings.width, settings.depth, own)
        )

    def sampler_of(self, content: Restored) -> tuple[Sampler, dict[str, np.ndarray]]:
        """See the base class."""
        target = self.problems[content.index].target
        sampler = Sampler.from_arrays(content.sampler, self.networks(target.dim).generator)
        return sampler, {
            name: value if value.dtype.kind == "b" else value.astype(target.dtype)
            for name, value in content.measured.items()
        }
