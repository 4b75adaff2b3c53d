"""The Pyro front door: `DFT` for a Pyro model or a bare potential function."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_dft import messages
from pyro_dft.engine_torch.custom import CustomGenerator, CustomScore, Networks
from pyro_dft.engine_torch.engine import ENGINE
from pyro_dft.engine_torch.refine import refine
from pyro_dft.engine_torch.sampler import CHUNK, Sampler
from pyro_dft.engine_torch.target import Target
from pyro_dft.errors import ModelError, SettingsError
from pyro_dft.interface.dft import LIKELIHOOD_LIMIT, Inference
from pyro_dft.interface.exclusive import exclusive
from pyro_dft.interface.recognition import Terms
from pyro_dft.interface.restoring import MEASURED, Restored
from pyro_dft.layout import Layout
from pyro_dft.models.amounts import GRADIENTS as AMOUNT_GRADIENTS
from pyro_dft.models.amounts import worth_a_try
from pyro_dft.pyro.amounts import fitted as fitted_amounts
from pyro_dft.pyro.guide import DrawsGuide
from pyro_dft.pyro.model import PyroProblem
from pyro_dft.pyro.potential import PotentialProblem
from pyro_dft.pyro.problem import Problem as Posterior
from pyro_dft.recipe.facts import facts
from pyro_dft.recipe.fit import FittedTrainer, Problem
from pyro_dft.recipe.trainer import Trainer

# Added to the seed of a fit for what a model draws while its structure is read, and for draws that a callback takes. Below 2^32:
# of a larger number torch takes the low half alone.
READING, LOOKING = 0x52454144, 0x1C4F4F4B


class DFT(Inference):
    """Neural posterior sampler for Pyro: trains a network that turns noise into posterior draws.

    It is trained by the KL divergence; `objective="dft"` is Denoising Fisher Training (arXiv 2411.01453).

    Args:
        model: A Pyro model. Discrete sites are summed out; plates with `subsample_size` give minibatches.
        potential_fn: In place of a model: minus the log density of a dict of unconstrained values, as NUTS
            takes it.
        initial_params: Unconstrained values (one point) to start from, in the first restart of the first
            chain. With `potential_fn` they are required, and give names and shapes.
        transforms: Name -> transform from constrained to unconstrained values, for `potential_fn` or to
            override those of a model.
        smoothed_potential_fn: For `noise_mode="levels"`, beside `potential_fn`: called with the dict and a noise level sigma,
            minus the log density of the unconstrained values with noise N(0, sigma^2 I) added, as a diffusion or
            denoising model gives it. Training at many levels finds far modes and their weights.
        generator: A network of your own in place of the default one: a `torch.nn.Module` (copied), or a function without
            arguments that makes one, for each chain. It maps standard normal latent points (n, d) to points (n, d), flat and
            in whitened coordinates (with `precondition="never"` in those of the posterior), and is the whole map: nothing is
            added to it but the noise.
        score_network: The same for the score of the sampler's noised draws, (n, d) to (n, d). With `noise_mode="levels"`
            it is called with the noise (n, 1) as well.
        num_chains: Independently initialised and trained samplers, all at once; R-hat compares them.
        init_strategy: Where the search starts, such as `pyro.infer.autoguide.init_to_median`; uniform(-2, 2)
            in unconstrained coordinates by default.
        checkpoint: File that the training in progress is written to. A run that was killed goes on from it, with the same
            settings and seed, to the same end; the file is removed when the training is complete.
        checkpoint_every: Iterations of the network phases between two writes.
        callback: Called on the way as `callback(progress, draw)`: where the training is (`step` of `total`, `phase`, `loss`), and
            a function that makes raw draws of the sampler as it stands, `draw(num_samples)`, a dict as from `get_samples`.
            It changes nothing in the training; to end that early, raise `KeyboardInterrupt`.
        callback_every: Iterations between two calls, at least; a new phase calls at once.
        max_plate_nesting: Batch dimensions that plates may use, where the guess is wrong for an enumerated
            model.
        device: Default device while the model runs, such as "cuda": priors like `dist.Normal(0.0, 1.0)` are
            made there. The data must be there already. None takes the model as it is.
        disable_progbar: Whether to hide the progress bar.
        settings: A `Settings` object, or give single settings as keywords, such as `num_steps=1000` or
            `objective="kl"`.
        **overrides: Single settings; see `pyro_dft.Settings`.

    Raises:
        SettingsError: a setting is unknown or out of range, or the device cannot be used.
        ModelError: neither a model nor a potential is given, or both.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_dft import DFT
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> dft = DFT(model, seed=0, disable_progbar=True)
        >>> dft.run(torch.tensor([1.0, 2.0, 3.0]))
        >>> dft.get_samples(100)["mu"].shape
        torch.Size([100])
        >>> dft.diagnostics()["status"]
        'converged'
    """

    _framework, _needs_seed = "pyro", True
    _live = frozenset(("_posteriors", "_problems", "_rng", "_looking"))
    _home: torch.device | None  # where the latent sites are, once that is known

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        device: torch.device | str | None = None,
        max_plate_nesting: int | None = None,
        **options: Any,
    ):
        super().__init__(model, **options)
        self.device = None if device is None else _usable(device)
        self.max_plate_nesting = max_plate_nesting

    @property
    def guide(self) -> DrawsGuide:
        """The fit as a guide, for `pyro.infer.Predictive(model, guide=dft.guide, num_samples=...)`.

        It serves the kept draws at random. It has no density: ELBO and weights cannot be computed from it.

        Raises:
            NotFittedError: before `run`.

        Example:
            >>> from pyro.infer import Predictive
            >>> predict = Predictive(model, guide=dft.guide, num_samples=5)
            >>> tuple(predict(y, observed=False)["y"].shape)
            (5, 3)
        """
        self._require_fit()
        with self._session():
            return DrawsGuide(
                self._posterior.constrain(self._copied(self._kept).flatten(0, 1), include_deterministic=False)
            )

    @property
    def generator(self) -> torch.nn.Module | list[torch.nn.Module]:
        """The trained generator of your own: latent points (n, d) to noise-free draws (n, d), flat.

        They are in the coordinates of the training, which are those of the posterior with `precondition="never"`. A list where
        there are several chains or modes. They are copies, and may be given to another `DFT`, to go on with.

        Raises:
            NotFittedError: before the training.
            SettingsError: no generator was given, or the Gaussian alone was kept.

        Example:
            >>> import torch
            >>> straight = torch.nn.Linear(1, 1)
            >>> _ = torch.nn.init.eye_(straight.weight), torch.nn.init.zeros_(straight.bias)
            >>> dft = DFT(model, generator=straight, train="always", num_steps=100, seed=0)
            >>> dft.run(y)
            >>> dft.generator(torch.zeros(5, 1)).shape
            torch.Size([5, 1])
        """
        return self._trained("generator", self._own_generator)

    @property
    def score_network(self) -> torch.nn.Module | list[torch.nn.Module]:
        """The trained score network of your own, as `generator`; files do not keep it.

        Raises:
            NotFittedError: before the training.
            SettingsError: none was given, or none was trained.

        Example:
            >>> import torch
            >>> slope = torch.nn.Linear(1, 1)
            >>> _ = torch.nn.init.constant_(slope.weight, -1.0), torch.nn.init.zeros_(slope.bias)
            >>> dft = DFT(model, score_network=slope, train="always", num_steps=400, seed=0)
            >>> dft.run(y)
            >>> dft.score_network(torch.zeros(5, 1)).shape
            torch.Size([5, 1])
        """
        return self._trained("score_network", self._own_score_network)

    def _trained(self, option: str, given: Any) -> torch.nn.Module | list[torch.nn.Module]:
        if self._fit is None and self._trainer is None:
            self._require_fit()
        found = (self._fit or self._trainer).networks_so_far[option]
        if not isinstance(found, CustomGenerator | CustomScore):
            raise messages.no_own_network(option, given is not None)
        nets = copy.deepcopy(list(found.nets))
        return nets[0] if len(nets) == 1 else nets

    # From a model to targets: the posterior in the model's own coordinates and, where it has location-scale
    # sites, in non-centred ones.

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int | None = None) -> None:
        given, seed = seed, self.settings.seed if seed is None else seed
        if seed is None:
            seed = int(torch.randint(2**31 - 1, (), device="cpu"))
        # Another stream than that of the fit, which begins below.
        self._rng, self._home = torch.Generator("cpu").manual_seed(seed + READING), self.device
        if given is None:
            self._amounts = None
        with self._session():
            self._posteriors = self._posteriors_of(args, kwargs)
            self._problems = [self._problem(posterior) for posterior in self._posteriors]
        self._home = self._posteriors[0].device
        self._rng = torch.Generator(self._home).manual_seed(seed)
        self._looking = torch.Generator(self._home).manual_seed(seed + LOOKING)

    def _set_seed(self, seed: int) -> None:
        self._rng.manual_seed(seed)

    def _posteriors_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Posterior]:
        if self.potential_fn is not None:
            if args or kwargs:
                raise ModelError("potential_fn takes no model arguments: run() must be called without any")
            own_potential = PotentialProblem(
                self.potential_fn, self.initial_params or {}, self.transforms, self.smoothed_potential_fn
            )
            posteriors: list[Posterior] = [own_potential]
        else:
            assert self.model is not None
            own = PyroProblem(
                self.model, args, kwargs, transforms=self.transforms, max_plate_nesting=self.max_plate_nesting
            )
            if own.noise is not None:
                raise own.noise
            posteriors = [own]
            posteriors.extend(self._moved(own))
        found = posteriors[0].device
        if self.device is not None and found != self.device:
            raise ModelError(
                f"device={str(self.device)!r}, but the latent sites are on {found}: the model puts them there"
            )
        return posteriors

    def _moved(self, own: PyroProblem) -> list[Posterior]:
        """The same posterior in non-centred coordinates, wholly and by fitted amounts."""
        movable = own.noncentering_candidates()
        if not movable or self.settings.reparam != "auto" or not self.settings.preconditioned:
            self._amounts = {}
            return []
        if self._amounts is None:
            fits = own.batchable and not own.minibatch
            self._amounts = fitted_amounts(own, movable) if fits else {}
            self._piloted = AMOUNT_GRADIENTS if fits else 0
        sets = [movable, self._amounts] if worth_a_try(self._amounts, movable) else [movable]
        return [own.noncentered(each) for each in sets]

    def _problem(self, posterior: Posterior) -> Problem:
        if posterior.minibatch:
            self.settings.check_minibatches()
        target = Target(
            posterior.potential,
            posterior.dim,
            dtype=posterior.dtype,
            device=posterior.device,
            minibatch_potential=posterior.minibatch_potential if posterior.minibatch else None,
            smoothed_potential=posterior.smoothed_potential if self.smoothed_potential_fn else None,
            context=posterior.context,
            data_size=posterior.data_size,
            minibatch_size=posterior.minibatch_size,
            trace=self.settings.compile == "auto",
        )
        starts = torch.empty((self.num_chains, 0, posterior.dim), dtype=posterior.dtype)
        return Problem(target, starts, posterior.original_coordinates)

    def _start(self) -> Trainer:
        restarts = self.settings.restarts
        # What the amounts of non-centring cost, once.
        self._problems[0].target.count(self._piloted)
        self._piloted = 0
        for posterior, problem in zip(self._posteriors, self._problems, strict=True):
            points = posterior.initial_points(self.num_chains * restarts, init_strategy=self.init_strategy)
            given = self._given_start(posterior)
            if given is not None:
                points[0] = given
            problem.target.probe(points[:4])
            problem.starts = points.reshape(self.num_chains, restarts, posterior.dim)
        return Trainer(ENGINE, self._problems, self.settings, self._rng, self._networks)

    def _seed(self) -> list[int]:
        return [] if self.settings.seed is None else [self.settings.seed]

    @property
    def _networks(self) -> Networks:
        return Networks(self._own_generator, self._own_score_network)

    def _given_start(self, posterior: Posterior) -> Tensor | None:
        """`initial_params` as flat point of a model's posterior, or None: a potential starts there anyway."""
        if self.initial_params is None or self.model is None:
            return None
        own = self._posteriors[0]
        shapes = {site.name: site.unconstrained_shape for site in own.layout.sites}
        given = {name: torch.as_tensor(value) for name, value in self.initial_params.items()}
        if {name: tuple(value.shape) for name, value in given.items()} != shapes:
            raise ModelError(
                "initial_params must hold one unconstrained value for each latent site, with shapes "
                f"{shapes}, got { {name: tuple(value.shape) for name, value in given.items()} }"
            )
        parts = [given[name].reshape(-1).to(own.device, own.dtype) for name in own.layout.names]
        point = torch.cat(parts)[None]
        if not bool(own.values_and_gradients(point)[0].isfinite()):
            raise ModelError("initial_params: the potential is not finite there")
        return point[0] if posterior is own else posterior.unconstrain(own.constrain(point))[0]

    def _replace_data(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        posteriors = self._posteriors_of(args, kwargs)
        if [p.layout for p in posteriors] != [p.layout for p in self._posteriors]:
            raise ModelError("step() was given data that change the latent sites; start a new DFT for it")
        for problem, posterior in zip(self._problems, posteriors, strict=True):
            minibatch = posterior.minibatch_potential if posterior.minibatch else None
            problem.target.rebind(posterior.potential, minibatch)
            problem.target.data_size, problem.target.minibatch_size = (
                posterior.data_size,
                posterior.minibatch_size,
            )
            problem.original = posterior.original_coordinates
        self._posteriors = posteriors
        if self._trainer.fit is not None:
            self._trainer.fit.measurement = None  # it was made on the data before
            # Nor are the bounds of the restarts those of the new posterior.
            self._trainer.fit.optima.elbo_error[:] = math.inf
        self._trainer.gaussian_measured = None

    @contextlib.contextmanager
    def _session(self) -> Iterator[None]:
        """Models draw from torch's global generators: those are seeded from the fit's own, and put back."""
        with exclusive():
            # Not torch.manual_seed: where no GPU is in use yet, it would leave a seed for the first use.
            gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
            seed = int(torch.randint(2**31 - 1, (), generator=self._rng, device=self._rng.device))
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

    # The trained sampler

    @property
    def _posterior(self) -> Posterior:
        """The posterior in the sampler's coordinates."""
        return self._posteriors[self._fit.problem]

    def _layout(self) -> Layout:
        return self._posteriors[0].layout

    def _told_blocks(
        self, each: int, refine_steps: int, chains: slice = slice(None)
    ) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        fit, measured = self._fit, self._fit.measurement
        samplers, modes = range(fit.sampler.chains)[chains], fit.modes
        if modes is not None:
            # A chain has as many samplers as there are modes, one behind the other.
            own = range(self.num_chains)[chains]
            modes, samplers = modes[own], range(own.start * modes.count, own.stop * modes.count)
        some = slice(samplers.start, samplers.stop)
        # Small enough that the flat draws of a million never stand in memory at once.
        size = max(1, CHUNK // fit.sampler.chains)
        for start in range(0, each, size):
            needed, rows = min(size, each - start), None
            if modes is not None:
                needed, rows = modes.rows(needed, self._host_rng())
            block = fit.sampler.draw(needed, self._rng)[some]
            told: dict[str, Any] = {"diverging": np.zeros(tuple(block.shape[:2]), bool)}
            if refine_steps:
                moved = refine(
                    self._problems[fit.problem].target,
                    block,
                    measured.scale[some],
                    measured.step_size[some],
                    steps=refine_steps,
                    leapfrog_steps=measured.leapfrog_steps,
                    rng=self._rng,
                )
                block, gradients = moved.draws, refine_steps * measured.leapfrog_steps
                statistics = self._with_kernel(moved.statistics, gradients, some)
                told = {"diverging": self._numpy(moved.diverged), **statistics}
            if modes is not None and rows is not None:
                block = modes.combine(block, rows)
                told = {name: modes.combine(value, rows) for name, value in told.items()}
            yield block, told

    def _constrain(self, blocks: Iterable[Tensor]) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {}
        for block in blocks:
            for name, value in self._posterior.constrain(block.flatten(0, 1)).items():
                parts.setdefault(name, []).append(value.unflatten(0, block.shape[:2]))
        return {
            name: pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1) for name, pieces in parts.items()
        }

    def _original(self, flat: Tensor) -> np.ndarray:
        points = self._posterior.original_coordinates(flat.flatten(0, 1))
        return self._numpy(points.reshape(flat.shape))

    def _potential_at(self, points: np.ndarray, problem: int = 0) -> np.ndarray:
        target = self._problems[problem].target
        x = torch.as_tensor(points, dtype=target.dtype, device=target.device)
        return -self._numpy(target.evaluate(x)[0])

    def _terms_at(self, points: np.ndarray) -> Terms:
        own = self._posteriors[0]
        return own.site_terms(torch.as_tensor(points, dtype=own.dtype, device=own.device))

    def _flat(self, points: np.ndarray) -> Tensor:
        target = self._problems[self._fit.problem].target
        return torch.as_tensor(points, dtype=target.dtype, device=target.device)

    def _host_rng(self) -> np.random.Generator:
        seed = torch.randint(2**63 - 1, (), generator=self._rng, device=self._rng.device)
        return np.random.default_rng(int(seed))

    def _precision(self) -> float:
        return torch.finfo(self._posteriors[0].dtype).eps

    def _concatenate(self, arrays: Iterable[Tensor], axis: int = 0) -> Tensor:
        return torch.cat(list(arrays), axis)

    def _copied(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().clone()
        return value.copy() if isinstance(value, np.ndarray) else value

    def _same_array(self, a: Any, b: Any) -> bool | None:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        return None

    def _to_numpy(self, value: Any) -> np.ndarray | None:
        if not isinstance(value, Tensor):
            return None
        value = value.detach().cpu()
        return (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy()

    def _from_numpy(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, device=self.device)

    # Reports

    def _model_groups(
        self, samples: dict[str, Tensor], log_likelihood: bool | None, predictive: bool, prior: bool
    ) -> dict[str, dict[str, Tensor]]:
        own = self._posteriors[0]
        wanted = bool(log_likelihood or predictive or prior)
        if self.model is None:
            if wanted:
                raise ModelError(
                    "a bare potential_fn has no likelihood, no replicated data and no prior to report"
                )
            return {}
        assert isinstance(own, PyroProblem)
        chains, draws = next(iter(samples.values())).shape[:2]
        flat = {name: value.flatten(0, 1) for name, value in samples.items()}
        observed = own.observed()
        if log_likelihood is None:
            numbers = chains * draws * sum(value.numel() for value in observed.values())
            log_likelihood = (
                own.without_likelihood().keys() != observed.keys() and numbers <= LIKELIHOOD_LIMIT
            )
        groups = {"observed_data": observed}
        if log_likelihood:
            groups["log_likelihood"] = own.log_likelihood(flat)
        if predictive:
            groups["posterior_predictive"] = own.posterior_predictive(flat)
        if prior:
            drawn = own.prior_predictive(chains * draws)
            groups["prior"] = {name: value for name, value in drawn.items() if name not in observed}
            groups["prior_predictive"] = {name: drawn[name] for name in observed}
        return {
            group: values
            if group == "observed_data"
            else {name: value.unflatten(0, (chains, draws)) for name, value in values.items()}
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
        arrays |= {f"measured.{name}": self._numpy(getattr(measured, name)) for name in MEASURED}
        arrays |= {f"measured.{name}": self._numpy(value) for name, value in measured.statistics.items()}
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
        size, own = (self.settings.width, self.settings.depth), self._own_generator
        return None if own is None else Sampler.generator_shapes(chains, dim, *size, own)

    def _restore(self, content: Restored) -> FittedTrainer:
        device = self._problems[content.index].target.device
        size = {"width": self.settings.width, "depth": self.settings.depth, "own": self._own_generator}
        sampler = Sampler.from_arrays(content.sampler, **size, device=device)
        kept = {name: torch.as_tensor(value, device=device) for name, value in content.measured.items()}
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


def _usable(device: torch.device | str) -> torch.device:
    """The device with its index.

    Raises:
        SettingsError: there is no such device here.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise SettingsError(f"device={str(device)!r} cannot be used: {str(error).splitlines()[0]}") from error
