"""What a front door (`pyro_dft.pyro`, `pyro_dft.numpyro`) implements: how a model with its arguments becomes targets.

Native arrays (torch or jax) go in and out; everything above a backend is NumPy. Flat arrays have shape
(chains, draws, dim), in the sampler's coordinates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np

from pyro_dft.errors import ModelError
from pyro_dft.interface.arguments import Arguments, copied
from pyro_dft.interface.arrays import Arrays
from pyro_dft.interface.options import Options
from pyro_dft.interface.recognition import CHECK_POINTS, Portrait, Terms, fingerprints, unlike
from pyro_dft.interface.restoring import MEASURED
from pyro_dft.interface.result import Result
from pyro_dft.layout import Layout
from pyro_dft.models.amounts import GRADIENTS as AMOUNT_GRADIENTS
from pyro_dft.models.amounts import worth_a_try
from pyro_dft.recipe.engine import Engine
from pyro_dft.recipe.fit import Fit, FittedTrainer, Restored
from pyro_dft.recipe.trainer import Trainer


class Backend(ABC):
    """A model in its framework, with what it becomes once its arguments are known.

    Args:
        options: Options of the `DFT`.

    Attributes:
        framework: Its name.
        needs_seed: Whether a random seed is drawn where the settings have none.
        engine: The engine that trains and draws.
        arrays: Operations on the framework's arrays.
        options: Options of the `DFT`.
        posteriors: The model's posterior in each set of coordinates, its own first.
        problems: The recipe's `Problem` for each of them.
        rng: The framework's random number generator of the fit.
        callback_rng: Another one, for draws that a callback takes during training.
        amounts: How far sites are non-centred in the last set of coordinates; None where that is to be fitted.
    """

    framework: str
    needs_seed: bool
    engine: Engine
    arrays: Arrays

    posteriors: Any
    problems: Any
    rng: Any
    callback_rng: Any

    def __init__(self, options: Options):
        self.options = options
        self.amounts: dict[str, float] | None = {}
        self._piloted = 0  # gradients of the fit of `amounts` that are not in the targets' counts yet

    # From a model to a training

    @abstractmethod
    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int | None = None) -> None:
        """Turns the model and its arguments into targets, and sets up the random number generators.

        Args:
            args: Arguments of the model.
            kwargs: Keyword arguments of the model.
            seed: Of the random numbers, below 2**63; None takes that of the fit.

        Raises:
            ModelError: the model or its arguments cannot be used.
        """

    @abstractmethod
    def set_seed(self, seed: int) -> None:
        """Restarts the random number generator of the fit from a seed below 2**63."""

    @abstractmethod
    def seed_words(self) -> list[int]:
        """Integers that determine the random numbers of a training."""

    @abstractmethod
    def session(self) -> AbstractContextManager[None]:
        """A context with the framework's global state (random numbers, device) as the fit needs it, restored afterwards."""

    def refuse_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises ModelError where a bare potential is given arguments of a model."""
        if args or kwargs:
            raise ModelError("potential_fn takes no model arguments: run() must be called without any")

    @abstractmethod
    def own_posterior(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The posterior in the model's own coordinates.

        Raises:
            ModelError: the model or its arguments cannot be used.
        """

    @abstractmethod
    def fitted_amounts(self, own: Any, sites: tuple[str, ...]) -> dict[str, float] | None:
        """How far to non-centre sites of the posterior `own`, from a short fit; None where that is not possible."""

    def posteriors_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The posterior in each set of coordinates, the model's own first: non-centred ones wholly and by fitted amounts."""
        return self.coordinate_sets(self.own_posterior(args, kwargs))

    def coordinate_sets(self, own: Any) -> list[Any]:
        """A posterior in its own coordinates, and in the others; `amounts` are fitted where they are None."""
        settings = self.options.settings
        movable = own.noncentering_candidates()
        if not movable or settings.reparam != "auto" or not settings.preconditioned:
            self.amounts = {}
            return [own]
        if self.amounts is None:
            found = self.fitted_amounts(own, movable)
            self.amounts = found or {}
            self._piloted = 0 if found is None else AMOUNT_GRADIENTS
        sets = [movable, self.amounts] if worth_a_try(self.amounts, movable) else [movable]
        return [own, *(own.noncentered(each) for each in sets)]

    @abstractmethod
    def replace_data(self, args: tuple[Any, ...], kwargs: dict[str, Any], trainer: Any) -> None:
        """Gives a running training other model arguments; raises before anything is changed."""

    def start(self) -> Trainer:
        """A new trainer for what `read` made."""
        options, settings = self.options, self.options.settings
        # The cost of fitting the amounts of non-centring is added once.
        self.problems[0].target.count(self._piloted)
        self._piloted = 0
        for posterior, problem in zip(self.posteriors, self.problems, strict=True):
            points = self.initial_points(posterior, problem.target, options.num_chains * settings.restarts)
            # A potential starts from the given values anyway.
            if options.initial_params is not None and options.model is not None:
                points[0] = self.given_start(posterior)
            self.look_at(problem.target, points)
            problem.starts = points.reshape(options.num_chains, settings.restarts, posterior.dim)
        networks = self.networks(self.problems[0].target.dim)
        return Trainer(self.engine, self.problems, settings, self.rng, networks)

    def measurer(self, fit: Fit) -> Trainer:
        """A trainer for a fit that was trained elsewhere and is only to be measured."""
        return Trainer(self.engine, self.problems, self.options.settings, self.rng, fit=fit)

    @abstractmethod
    def initial_points(self, posterior: Any, target: Any, count: int) -> Any:
        """`count` starting points, native (count, dim), in the coordinates of one of the posteriors."""

    def given_start(self, posterior: Any) -> Any:
        """`initial_params` as a flat point, native (dim,), in the coordinates of one of the posteriors.

        Raises:
            ModelError: names or shapes are not those of the latent sites, or the potential is not finite there.
        """
        own = self.posteriors[0]
        shapes = {site.name: site.unconstrained_shape for site in own.layout.sites}
        given = {name: self.arrays.numpy(v) for name, v in (self.options.initial_params or {}).items()}
        found = {name: value.shape for name, value in given.items()}
        if found != shapes:
            raise ModelError(
                "initial_params must hold one unconstrained value for each latent site, with shapes "
                f"{shapes}, got {found}"
            )
        parts = [self.flat(0, given[name].reshape(-1)) for name in own.layout.names]
        point = self.arrays.concatenate(parts)[None]
        if not self.is_finite(point):
            raise ModelError("initial_params: the potential is not finite there")
        return point[0] if posterior is own else posterior.unconstrain(own.constrain(point))[0]

    @abstractmethod
    def is_finite(self, point: Any) -> bool:
        """Whether the potential is finite at a native point (1, dim) of the model's own coordinates."""

    @abstractmethod
    def look_at(self, target: Any, points: Any) -> None:
        """Shows a target some points, native (n, dim), by which it finds out how to evaluate batches."""

    @abstractmethod
    def networks(self, dim: int) -> Any:
        """The user's own networks for so many coordinates, as the engine takes them."""

    def evaluations(self) -> dict[str, int | None]:
        """`gradient_evaluations` of the potential since the model was given, and the `data_rows` that they read."""
        targets = [problem.target for problem in self.problems]
        rows = sum(target.data_rows for target in targets) if targets[0].minibatch else None
        evaluations = sum(target.gradient_evaluations for target in targets)
        return {"gradient_evaluations": evaluations, "data_rows": rows}

    # Draws. `problem` is the index of the set of coordinates that draws are in.

    @property
    def layout(self) -> Layout:
        """Layout of the model's own unconstrained coordinates."""
        return self.posteriors[0].layout

    def constrain(self, problem: int, blocks: Iterable[Any]) -> dict[str, Any]:
        """Blocks of flat draws -> site name -> native array (chains, draws, *site)."""
        parts: dict[str, list[Any]] = {}
        for block in blocks:
            for name, value in self.posteriors[problem].constrain(rows_of(block)).items():
                parts.setdefault(name, []).append(value.reshape(*block.shape[:2], *value.shape[1:]))
        joined = self.arrays.concatenate
        return {name: own[0] if len(own) == 1 else joined(own, 1) for name, own in parts.items()}

    def original(self, problem: int, flat: Any) -> np.ndarray:
        """Flat draws -> the model's own unconstrained coordinates, same shape."""
        points = self.posteriors[problem].original_coordinates(rows_of(flat))
        return self.arrays.numpy(points).reshape(flat.shape)

    def flat(self, problem: int, points: np.ndarray) -> Any:
        """Points (..., dim) of the sampler's coordinates as flat draws."""
        return self.engine.native(self.problems[problem].target, points)

    def potential_at(self, points: np.ndarray, problem: int = 0) -> np.ndarray:
        """Potential (...) on the full data at points (..., dim) of one of the sets of coordinates.

        The first one is that of the model's own unconstrained coordinates.
        """
        target = self.problems[problem].target
        return -self.arrays.numpy(target.evaluate(self.flat(problem, points))[0])

    def potential_of_kept(self, result: Result, points: np.ndarray) -> np.ndarray:
        """Potential (chains, n) of the kept draws, given also as points of the model's own unconstrained coordinates.

        It is known from the transitions that they come from, where these were made in the same coordinates.
        """
        known = result.log_density() if result.fit.problem == 0 else None
        return self.potential_at(points) if known is None else -known

    def terms_at(self, points: np.ndarray) -> Terms:
        """Log density of each site at points (n, dim) of the model's own unconstrained coordinates."""
        return self.posteriors[0].site_terms(points)

    @abstractmethod
    def host_rng(self, rng: Any) -> np.random.Generator:
        """A NumPy generator that takes up random numbers of the framework's own."""

    @property
    @abstractmethod
    def precision(self) -> float:
        """Relative rounding error of one number of the model's dtype."""

    @property
    def itemsize(self) -> int:
        """Bytes of one number of the model's dtype."""
        return 8 if self.precision < 1e-10 else 4

    # Reports

    @abstractmethod
    def replicated(self, own: Any, samples: dict[str, Any]) -> dict[str, Any]:
        """Replicated data by observed site, one for each draw of `samples`, (draws, *site) each."""

    @abstractmethod
    def prior(self, own: Any, count: int) -> dict[str, Any]:
        """So many draws of every site from the prior."""

    # Files

    @abstractmethod
    def from_numpy(self, array: np.ndarray) -> Any:
        """A NumPy array as a native one."""

    def snapshot(self, arguments: Arguments) -> Arguments:
        """Arguments of the model that stay as they are when their owner changes his arrays in place."""
        return copied(arguments, self.arrays.copied)

    def portrait(self, points: np.ndarray, rounding: float | None = None) -> Portrait:
        """The posterior at points (n, d); with its rounding errors where the relative one of a number is given."""
        if rounding is None:
            return Portrait.of(points, self.potential_at, self.terms_at)
        return Portrait.with_rounding(points, self.potential_at, self.terms_at, rounding)

    def is_alike(self, other: Any, result: Result, before: Arguments, now: Arguments) -> bool:
        """Whether another posterior is the one that was fitted, at some of the kept draws.

        Args:
            other: In the model's own coordinates.
            result: Of the fit.
            before: Arguments of the model in the fit.
            now: Those of the other posterior.
        """
        own = self.posteriors[0]
        if own.layout != other.layout:
            return False
        points = self.original(result.fit.problem, result.kept)[0, :CHECK_POINTS]

        def portrait(posterior: Any) -> Portrait:
            density = posterior.density()
            return Portrait.with_rounding(
                points, lambda x: -density(x)[0], posterior.site_terms, self.precision
            )

        sums = self.fingerprints(before), self.fingerprints(now)
        return not unlike(portrait(own), portrait(other), sums)[0]

    def fingerprints(self, arguments: Arguments) -> list[dict[str, Any]]:
        """Checksums of the model's arguments."""
        return fingerprints(arguments, self.options.model, self.arrays)

    def state(self, fit: Fit) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and header entries that define a trained sampler."""
        measured = fit.measurement
        assert measured is not None
        numpy = self.arrays.numpy
        arrays = fit.sampler.to_arrays()
        arrays |= {f"measured.{name}": numpy(getattr(measured, name)) for name in MEASURED}
        arrays |= {f"measured.{name}": numpy(value) for name, value in measured.statistics.items()}
        if fit.modes is not None:
            arrays |= fit.modes.to_arrays()
        return arrays, {
            "sampler_layout": self.posteriors[fit.problem].layout.to_json(),
            "objective": fit.objective,
            "measured_steps": measured.steps,
            "measured_renewed": measured.renewed,
            "measured_leapfrogs": measured.leapfrog_steps,
            "measured_gradients_each": measured.gradients_each,
        }

    @abstractmethod
    def own_shapes(self, chains: int, dim: int) -> dict[str, tuple[int, ...]] | None:
        """Names and shapes of the arrays of a generator of the user's own; None where there is none."""

    @abstractmethod
    def sampler_of(self, content: Restored) -> tuple[Any, dict[str, Any]]:
        """The sampler that a file holds, and the arrays of its measurement, native."""

    def restored(self, content: Restored) -> FittedTrainer:
        """A complete trainer from what a file says."""
        sampler, kept = self.sampler_of(content)
        return FittedTrainer(self.engine, self.problems, sampler, replace(content, measured=kept))


def rows_of(flat: Any) -> Any:
    """Flat draws (chains, draws, dim) -> (chains * draws, dim)."""
    return flat.reshape(-1, flat.shape[-1])
