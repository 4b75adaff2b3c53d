"""The Pyro front door: `DFT` for a Pyro model or a bare potential function."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_dft import storage, verdict
from pyro_dft.diagnostics import rhat
from pyro_dft.engine_torch.fit import Fit, FittedTrainer, Problem, Trainer
from pyro_dft.engine_torch.measure import affordable_draws
from pyro_dft.engine_torch.refine import refine
from pyro_dft.engine_torch.sampler import CHUNK, Sampler
from pyro_dft.engine_torch.target import Target
from pyro_dft.errors import ModelError, NotFittedError, StorageError
from pyro_dft.inference import Inference
from pyro_dft.layout import Layout
from pyro_dft.pyro.guide import DrawsGuide
from pyro_dft.pyro.model import PyroProblem
from pyro_dft.pyro.potential import PotentialProblem
from pyro_dft.pyro.problem import Problem as Posterior

CHECK_POINTS = 4


class DFT(Inference):
    """Neural posterior sampler for Pyro: trains an implicit sampler by Denoising Fisher Training, then draws.

    Args:
        model: A Pyro model. Discrete sites are summed out, subsampled plates give minibatches.
        potential_fn: In place of a model: minus the log density of a dict of unconstrained values, as NUTS takes it.
        initial_params: Unconstrained values that give `potential_fn` its names and shapes.
        transforms: Name -> transform from constrained to unconstrained values for `potential_fn` (or to override a model's).
        num_chains: Independently initialised and trained samplers, all at once; R-hat compares them.
        init_strategy: Where the search starts, such as `pyro.infer.autoguide.init_to_median`; uniform(-2, 2) by default.
        device: Device of the draws, when the model's data are elsewhere than its parameters say; None follows the model.
        disable_progbar: Whether to hide the progress bar.
        settings: A `Settings` object, or give single settings as keywords, such as `num_steps=1000` or `objective="kl"`.
        **overrides: Single settings; see `pyro_dft.Settings`.

    Raises:
        SettingsError: a setting is unknown or out of range.
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
    """

    _framework = "pyro"

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        device: torch.device | str | None = None,
        init_strategy: Callable[..., Any] | None = None,
        **options: Any,
    ):
        super().__init__(model, init_strategy=init_strategy, **options)
        self.device = None if device is None else torch.device(device)

    @property
    def guide(self) -> DrawsGuide:
        """The fit as a guide, for `pyro.infer.Predictive(model, guide=dft.guide, num_samples=...)`.

        It serves the kept draws at random. It has no density: ELBO and weights cannot be computed from it.

        Raises:
            NotFittedError: before `run`.
        """
        self._require_fit()
        latent = set(self._layout().names)
        samples = self.get_samples()
        return DrawsGuide({k: v for k, v in samples.items() if k in latent})

    # Problems: the posterior in the model's own coordinates and, where it has location-scale sites, non-centred.

    def _posteriors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Posterior]:
        if self.potential_fn is not None:
            if args or kwargs:
                raise ModelError("potential_fn takes no model arguments: run() must be called without any")
            return [PotentialProblem(self.potential_fn, self._initial_params or {}, self._transforms)]
        own = PyroProblem(self.model, args, kwargs, transforms=self._transforms)  # type: ignore[arg-type]
        posteriors: list[Posterior] = [own]
        if self.settings.reparam == "auto" and self.settings.objective != "dft-paper":
            candidates = own.noncentering_candidates()
            if candidates:
                posteriors.append(own.noncentered(candidates))
        return posteriors

    def _prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._posterior_list = self._posteriors(args, kwargs)
        seed = self.settings.seed
        if seed is None:
            seed = int(torch.randint(2**31 - 1, ()))
        device = self.device or self._posterior_list[0].device
        self._rng = torch.Generator(device=device).manual_seed(seed)
        torch.manual_seed(seed)
        problems = []
        for posterior in self._posterior_list:
            count = self.num_chains * self.settings.restarts
            starts = posterior.initial_points(count, init_strategy=self.init_strategy)
            target = self._target(posterior)
            target.probe(starts[: min(4, count)])
            starts = starts.reshape(self.num_chains, self.settings.restarts, posterior.dim)
            problems.append(Problem(target, starts.to(device), posterior.original_coordinates))
        self._trainer = Trainer(problems, self.settings, self._rng)

    def _target(self, posterior: Posterior) -> Target:
        return Target(
            posterior.potential,
            posterior.dim,
            dtype=posterior.dtype,
            device=self.device or posterior.device,
            minibatch_potential=posterior.minibatch_potential if posterior.minibatch else None,
            context=posterior.context,
            data_size=posterior.data_size,
            trace=self.settings.compile == "auto",
        )

    def _replace_data(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        posteriors = self._posteriors(args, kwargs)
        if (
            len(posteriors) != len(self._posterior_list)
            or posteriors[0].layout != self._posterior_list[0].layout
        ):
            raise ModelError(
                "step() was given data that change the model's latent sites; start a new DFT for it"
            )
        self._posterior_list = posteriors
        for problem, posterior in zip(self._trainer.problems, posteriors, strict=True):
            problem.target.rebind(
                posterior.potential, posterior.minibatch_potential if posterior.minibatch else None
            )
            problem.original = posterior.original_coordinates

    @contextlib.contextmanager
    def _random_state(self) -> Iterator[None]:
        """Models draw from torch's global generator; what a fit does to it beyond one number is undone."""
        torch.rand(())
        devices = [self.device] if self.device is not None and self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            yield

    # The trained sampler

    @property
    def _fit(self) -> Fit:
        if self._trainer is None or self._trainer.fit is None:
            raise NotFittedError("the sampler is not trained yet: call run(...) first")
        return self._trainer.fit

    @property
    def _posterior(self) -> Posterior:
        return self._posterior_list[self._fit.problem]

    def _layout(self) -> Layout:
        return self._posterior_list[0].layout

    def _transforms_of_sites(self) -> dict[str, Any]:
        """Name -> transform from constrained to unconstrained values, in the model's own coordinates."""
        return self._posterior_list[0].transforms

    def _origin(self) -> Tensor:
        """A flat point of the model's own coordinates."""
        own = self._posterior_list[0]
        return torch.zeros(own.dim, dtype=own.dtype, device=own.device)

    def _unconstrained_draws(self, count: int) -> Tensor:
        """New draws (count, d) in the model's own coordinates, from all chains in turn, refined as by default."""
        self._require_fit()
        each = -(-count // self.num_chains)
        flat = self._concatenate(self._draw_blocks(each, self._default_refine_steps()))
        return self._posterior.original_coordinates(flat.transpose(0, 1).reshape(-1, flat.shape[-1]))[:count]

    def _keep_draws(self) -> Tensor:
        measurement = self._fit.measurement
        assert measurement is not None
        return measurement.raw if self._default_refine_steps() == 0 else measurement.refined

    def _drift_start(self) -> Tensor:
        measurement = self._fit.measurement
        assert measurement is not None
        return measurement.refined if self._default_refine_steps() == 0 else measurement.halfway

    def _draw_blocks(self, each: int, refine_steps: int) -> Iterator[Tensor]:
        fit = self._fit
        assert fit.measurement is not None
        # Blocks small enough that a million draws never stand in memory more than once.
        size = max(1, CHUNK // self.num_chains)
        for start in range(0, each, size):
            block = fit.sampler.draw(min(size, each - start), self._rng)
            if refine_steps:
                block = refine(
                    self._trainer.target,
                    block,
                    fit.measurement.scale,
                    steps=refine_steps,
                    leapfrog_steps=self.settings.leapfrog_steps,
                    rng=self._rng,
                    step_size=fit.measurement.step_size,
                ).draws
            yield block

    def _constrain_blocks(self, blocks: Iterable[Tensor]) -> dict[str, Tensor]:
        posterior = self._posterior
        parts: dict[str, list[Tensor]] = {}
        for block in blocks:
            c, n, d = block.shape
            for name, value in posterior.constrain(block.reshape(-1, d)).items():
                parts.setdefault(name, []).append(value.reshape(c, n, *value.shape[1:]))
        return {
            name: pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1) for name, pieces in parts.items()
        }

    def _concatenate(self, blocks: Iterable[Tensor]) -> Tensor:
        return torch.cat(list(blocks), 1)

    def _numpy(self, value: Any) -> np.ndarray:
        return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)

    def _original_and_density(self, flat: Tensor) -> tuple[np.ndarray, np.ndarray]:
        c, n, d = flat.shape
        original = self._posterior.original_coordinates(flat.reshape(-1, d)).reshape(c, n, d)
        # In the model's own coordinates, whatever the sampler was trained in.
        log_density, _ = self._trainer.problems[0].target.evaluate(original)
        return self._numpy(original), self._numpy(log_density)

    def _model_groups(
        self, flat: Tensor, log_likelihood: bool, predictive: bool, prior: bool
    ) -> dict[str, Any]:
        if self.model is None:
            return {}
        posterior = self._posterior_list[0]
        c, n, d = flat.shape
        samples = self._posterior.constrain(flat.reshape(-1, d))

        def grouped(values: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
            return {k: self._numpy(v.reshape(c, n, *v.shape[1:])) for k, v in values.items()}

        groups: dict[str, Any] = {
            "observed_data": {k: self._numpy(v) for k, v in posterior.observed().items()}
        }
        if log_likelihood and groups["observed_data"]:
            groups["log_likelihood"] = grouped(posterior.log_likelihood(samples))
        if predictive:
            groups["posterior_predictive"] = grouped(posterior.posterior_predictive(samples))
        if prior:
            drawn = grouped(posterior.prior_predictive(c * n))
            observed = groups["observed_data"]
            groups["prior"] = {k: v for k, v in drawn.items() if k not in observed}
            groups["prior_predictive"] = {k: v for k, v in drawn.items() if k in observed}
        return groups

    def _plate_dims(self) -> dict[str, list[str]]:
        return self._posterior_list[0].plate_dims()

    def _assess(self) -> verdict.Diagnostics:
        fit, target = self._fit, self._trainer.target
        m = fit.measurement
        assert m is not None
        names = self._layout().coordinate_names()
        served = self._kept
        c, n, d = served.shape
        original = self._posterior.original_coordinates(served.reshape(-1, d)).double().cpu().numpy()
        spread = original.std(0)
        whitened, scores = self._whitened_scores(served)
        optima = verdict.optima_entry(
            self._numpy(fit.optima.mean), self._numpy(fit.optima.scale), self._numpy(fit.optima.elbo),
            self._numpy(served.reshape(-1, d)).astype(float),
        )  # fmt: skip
        refine_steps = self._default_refine_steps()
        own, used = self._layout(), self._posterior.layout
        objectives = sorted(set(fit.objective))
        gaps = np.asarray(fit.fisher_gap)
        return verdict.judge(
            {
                "objective": objectives[0] if len(objectives) == 1 else list(fit.objective),
                "coordinates": [s.name for s in used.sites if s.transform != own[s.name].transform],
                "refine_steps": refine_steps,
                "drift_raw": verdict.drift_entry(m.drift_raw, names),
                "drift_refined": verdict.drift_entry(m.drift_refined, names),
                "r_hat": float(np.nanmax(rhat(original.reshape(c, n, d)))) if c > 1 else None,
                "ksd": verdict.ksd_entry(whitened, scores, seed=self._rng.initial_seed() % 2**31),
                "optima": optima,
                "fisher_gap": None if np.isnan(gaps).all() else float(np.nanmean(gaps)),
                "movement": {k: v.tolist() for k, v in fit.movement.items()},
                "acceptance": float(m.acceptance.min()),
                "divergence_rate": float(m.divergence_rate),
                "stuck": float(m.stuck),
                "expected_stuck": float(((1 - m.acceptance) ** m.steps).mean()),
                "spread": float(spread.max()),
                "widest": names[int(spread.argmax())],
                "num_draws": c * n,
                "gradient_evaluations": self._gradient_evaluations(),
                "nonfinite_evaluations": sum(p.target.nonfinite_evaluations for p in self._trainer.problems),
                "vectorised": target.vectorised,
                "iterations": len(self._trainer.history),
                "seconds": self._seconds,
                "cpu_seconds": self._cpu_seconds,
                "phase_seconds": dict(fit.seconds),
            }
        )

    def _gradient_evaluations(self) -> int:
        return sum(p.target.gradient_evaluations for p in self._trainer.problems)

    def _whitened_scores(self, draws: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """At most 1,000 draws in whitened coordinates with the scores there, (n, d) both."""
        c, n, d = draws.shape
        m = self._fit.measurement
        assert m is not None
        some = affordable_draws(1000, 1, self.settings, self._trainer.target)
        x = draws[:, : max(1, min(n, some // c))]
        _, score = self._trainer.target.evaluate(x)
        scale = m.scale.double()
        centred = (x - draws.mean((0, 1))).double()
        u = torch.linalg.solve(scale, centred.mT).mT
        return self._numpy(u.reshape(-1, d)), self._numpy((score.double() @ scale).reshape(-1, d))

    # Files

    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        fit = self._fit
        m = fit.measurement
        assert m is not None
        arrays = fit.sampler.to_arrays()
        arrays |= {
            f"measured.{k}": self._numpy(getattr(m, k))
            for k in ("raw", "halfway", "refined", "scale", "step_size")
        }
        return arrays, {
            "sampler_layout": self._posterior.layout.to_json(),
            "objective": fit.objective,
            "refine_steps": m.steps,
        }

    def _restore(self, path: Any, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> None:
        layouts = [posterior.layout.to_json() for posterior in self._posterior_list]
        if header.get("sampler_layout") not in layouts:
            raise StorageError(
                f"{path}: the sampler was trained in coordinates that this model does not have"
            )
        index = layouts.index(header["sampler_layout"])
        c, d = self.num_chains, self._posterior_list[index].dim
        expected = {
            "mean": (c, d),
            "scale": (c, d, d),
            "measured.scale": (c, d, d),
            "measured.step_size": (c,),
        }
        for name in ("raw", "halfway", "refined"):
            found = arrays.get(f"measured.{name}")
            expected[f"measured.{name}"] = (
                c,
                found.shape[1] if found is not None and found.ndim == 3 else 0,
                d,
            )
        weights = {k for k in arrays if k.startswith("generator.")}
        if weights:
            expected |= Sampler.generator_shapes(c, d, self.settings.width, self.settings.depth)
        storage.check_tensors(path, arrays, expected)
        target = self._trainer.problems[index].target
        own = {k: v for k, v in arrays.items() if not k.startswith("measured.")}
        sampler = Sampler.from_arrays(
            own, width=self.settings.width, depth=self.settings.depth, device=target.device
        )
        kept = {
            k.removeprefix("measured."): torch.as_tensor(v, device=target.device)
            for k, v in arrays.items()
            if k.startswith("measured.")
        }
        self._trainer = FittedTrainer(
            self._trainer.problems,
            index,
            sampler,
            list(header["objective"]),
            int(header["refine_steps"]),
            kept,
        )

    def _check_points(self) -> tuple[np.ndarray, np.ndarray]:
        draws = self._kept.reshape(-1, self._kept.shape[-1])
        some = draws[:: max(1, len(draws) // CHECK_POINTS)][:CHECK_POINTS]
        points = self._posterior.original_coordinates(some).double().cpu().numpy()
        return points, self._potential_at(points)

    def _potential_at(self, points: np.ndarray) -> np.ndarray:
        target = self._trainer.problems[0].target
        log_density, _ = target.evaluate(torch.as_tensor(points, dtype=target.dtype, device=target.device))
        return -self._numpy(log_density).astype(float)
