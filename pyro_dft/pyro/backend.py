"""A Pyro model, or a bare potential, as targets of the torch engine."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_dft import messages
from pyro_dft.engine_torch.custom import Networks
from pyro_dft.engine_torch.engine import ENGINE
from pyro_dft.engine_torch.sampler import Sampler
from pyro_dft.engine_torch.target import Target
from pyro_dft.engine_torch.together import Together
from pyro_dft.errors import ModelError, SettingsError
from pyro_dft.interface.arguments import Arguments
from pyro_dft.interface.backend import Backend
from pyro_dft.interface.exclusive import exclusive
from pyro_dft.interface.options import Options
from pyro_dft.interface.recognition import Terms
from pyro_dft.pyro.amounts import fitted as fitted_amounts
from pyro_dft.pyro.arrays import TorchArrays
from pyro_dft.pyro.model import PyroProblem
from pyro_dft.pyro.potential import PotentialProblem
from pyro_dft.pyro.problem import Problem as Posterior
from pyro_dft.pyro.sharing import added_terms, agreed, joint_fingerprints
from pyro_dft.recipe.engine import Forms
from pyro_dft.recipe.fit import Problem, Restored

# Added to the seed of a fit for what a model draws while its structure is read, and for draws that a callback takes. Below 2^32:
# of a larger number torch takes the low half alone.
READING, CALLBACK = 0x52454144, 0x1C4F4F4B


class PyroBackend(Backend):
    """Pyro, on torch."""

    framework, needs_seed = "pyro", True
    engine, arrays = ENGINE, TorchArrays()

    posteriors: list[Posterior]
    problems: list[Problem]
    rng: torch.Generator
    callback_rng: torch.Generator

    def __init__(self, options: Options):
        super().__init__(options)
        self._together: Together | None = None
        self._home: torch.device | None = None  # where the latent sites are, once that is known

    # From a model to a training

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int | None = None) -> None:
        """See the base class."""
        given, seed = seed, self.options.settings.seed if seed is None else seed
        if seed is None:
            seed = int(torch.randint(2**31 - 1, (), device="cpu"))
        if self.together is not None:
            if self.options.settings.max_seconds is not None:
                raise messages.timed_together()
            seed = self.together.gather(seed)[0]
        # Another stream than that of the fit, which begins below.
        self.rng, self._home = torch.Generator("cpu").manual_seed(seed + READING), self.options.device
        if given is None:
            self.amounts = None
        with self.session():
            self.posteriors = self.posteriors_of(args, kwargs)
            self.problems = [self._problem(posterior) for posterior in self.posteriors]
        self._home = self.posteriors[0].device
        self.rng = torch.Generator(self._home).manual_seed(seed)
        self.callback_rng = torch.Generator(self._home).manual_seed(seed + CALLBACK)

    def set_seed(self, seed: int) -> None:
        """See the base class."""
        self.rng.manual_seed(seed)

    def seed_words(self) -> list[int]:
        """The seed of the settings, if there is one."""
        return [] if self.options.settings.seed is None else [self.options.settings.seed]

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Models draw from torch's global generators: those are seeded from the fit's own, and put back."""
        with exclusive():
            # Not torch.manual_seed: where no GPU is in use yet, it would leave a seed for the first use.
            gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
            seed = int(torch.randint(2**31 - 1, (), generator=self.rng, device=self.rng.device))
            # A default device in force costs something with each operation: only where it is needed.
            home = None if self._home == torch.get_default_device() else self._home
            with (
                # Whatever the caller is in the middle of: a fit needs gradients, of tensors that may have them.
                torch.inference_mode(False),
                torch.enable_grad(),
                torch.random.fork_rng(gpus),
                home or contextlib.nullcontext(),
            ):
                torch.default_generator.manual_seed(seed)
                if gpus:
                    torch.cuda.manual_seed_all(seed)
                yield

    def own_posterior(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Posterior:
        """See the base class."""
        if self.together is None:
            return self._own_posterior(args, kwargs)
        return agreed(self.together, self.options.settings, lambda: self._own_posterior(args, kwargs))

    @property
    def together(self) -> Together | None:
        """The processes that share the rows."""
        group = self.options.process_group
        if self._together is None and group is not None:
            self._together = Together(group)
        return self._together

    def _own_posterior(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Posterior:
        options = self.options
        own: Posterior
        if options.potential_fn is not None and self.together is not None:
            raise SettingsError("process_group: give a model, which says what is prior and what are rows")
        if options.potential_fn is not None:
            self.refuse_arguments(args, kwargs)
            own = PotentialProblem(
                options.potential_fn,
                options.initial_params or {},
                options.transforms,
                options.smoothed_potential_fn,
            )
        else:
            assert options.model is not None
            own = PyroProblem(
                options.model,
                args,
                kwargs,
                transforms=options.transforms,
                max_plate_nesting=options.max_plate_nesting,
                together=self.together,
            )
            if own.noise is not None:
                raise own.noise
        if options.device is not None and own.device != options.device:
            raise ModelError(
                f"device={str(options.device)!r}, but the latent sites are on {own.device}: the model puts them there"
            )
        return own

    def fitted_amounts(self, own: Posterior, sites: tuple[str, ...]) -> dict[str, float] | None:
        """See the base class."""
        possible = (
            isinstance(own, PyroProblem) and own.batchable and not own.minibatch and own.together is None
        )
        return fitted_amounts(own, sites) if possible else None  # type: ignore[arg-type]

    def _problem(self, posterior: Posterior) -> Problem:
        settings = self.options.settings
        if posterior.minibatch:
            settings.check_minibatches()
        forms = Forms(
            posterior.minibatch_potential if posterior.minibatch else None,
            posterior.smoothed_potential if self.options.smoothed_potential_fn else None,
            posterior.data_size,
            posterior.minibatch_size,
        )
        target = Target(
            posterior.potential,
            posterior.dim,
            forms=forms,
            dtype=posterior.dtype,
            device=posterior.device,
            context=posterior.context,
            trace=settings.experimental.compile == "auto",
            together=posterior.together,
        )
        starts = torch.empty((self.options.num_chains, 0, posterior.dim), dtype=posterior.dtype)
        return Problem(target, starts, posterior.compared_coordinates)

    def replace_data(self, args: tuple[Any, ...], kwargs: dict[str, Any], trainer: Any) -> None:
        """See the base class."""
        posteriors = self.posteriors_of(args, kwargs)
        if [p.layout for p in posteriors] != [p.layout for p in self.posteriors]:
            raise ModelError("step() was given data that change the latent sites; start a new DFT for it")
        for problem, posterior in zip(self.problems, posteriors, strict=True):
            minibatch = posterior.minibatch_potential if posterior.minibatch else None
            target = problem.target
            target.rebind(posterior.potential, minibatch)
            target.data_size, target.minibatch_size = posterior.data_size, posterior.minibatch_size
            problem.original = posterior.compared_coordinates
        self.posteriors = posteriors
        if trainer.fit is not None:
            trainer.fit.measurement = None  # it was made on the data before
            # Nor are the bounds of the restarts those of the new posterior.
            trainer.fit.optima.elbo_error[:] = math.inf
        trainer.gaussian_measured = None

    def initial_points(self, posterior: Posterior, target: Target, count: int) -> Tensor:
        """See the base class."""
        return posterior.initial_points(count, init_strategy=self.options.init_strategy)

    def is_finite(self, point: Tensor) -> bool:
        """See the base class."""
        return bool(self.posteriors[0].values_and_gradients(point)[0].isfinite())

    def look_at(self, target: Target, points: Tensor) -> None:
        """Checks on some points that the potential works, and how it can be batched."""
        target.probe(points[:4])

    def networks(self, dim: int) -> Networks:
        """See the base class."""
        return Networks(self.options.generator, self.options.score_network)

    # Draws

    def terms_at(self, points: np.ndarray) -> Terms:
        """See the base class."""
        terms = super().terms_at(points)
        return (
            terms if self.together is None else added_terms(self.together, terms, self.posteriors[0].summed)
        )

    def fingerprints(self, arguments: Arguments) -> list[dict[str, Any]]:
        """See the base class."""
        own = super().fingerprints(arguments)
        return own if self.together is None else joint_fingerprints(self.together, own)

    def host_rng(self, rng: torch.Generator) -> np.random.Generator:
        """A NumPy generator that is seeded from the framework's."""
        return np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=rng, device=rng.device)))

    @property
    def precision(self) -> float:
        """See the base class."""
        return torch.finfo(self.posteriors[0].dtype).eps

    # Reports

    def replicated(self, own: Posterior, samples: dict[str, Tensor]) -> dict[str, Tensor]:
        """See the base class."""
        return own.posterior_predictive(samples)

    def prior(self, own: Posterior, count: int) -> dict[str, Tensor]:
        """See the base class."""
        return own.prior_predictive(count)

    # Files

    def from_numpy(self, array: np.ndarray) -> Tensor:
        """A tensor on the device that the options name."""
        return torch.as_tensor(array, device=self.options.device)

    def own_shapes(self, chains: int, dim: int) -> dict[str, tuple[int, ...]] | None:
        """See the base class."""
        own, settings = self.options.generator, self.options.settings
        return (
            None
            if own is None
            else Sampler.generator_shapes(chains, dim, settings.width, settings.depth, own)
        )

    def sampler_of(self, content: Restored) -> tuple[Sampler, dict[str, Tensor]]:
        """See the base class."""
        device, settings = self.problems[content.index].target.device, self.options.settings
        sampler = Sampler.from_arrays(
            content.sampler,
            width=settings.width,
            depth=settings.depth,
            own=self.options.generator,
            device=device,
        )
        return sampler, {
            name: torch.as_tensor(value, device=device) for name, value in content.measured.items()
        }
