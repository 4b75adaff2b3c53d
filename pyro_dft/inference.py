"""The public interface, written once for both frameworks: train, draw, summarise, diagnose, hand over, save, load.

A front door (`pyro_dft.pyro.dft`) fills in the hooks at the end of the class: how a model becomes a target, and how its
engine trains, draws and refines. Native arrays (torch or jax) go in and out of the hooks; everything between is NumPy.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from pyro_dft import storage, verdict
from pyro_dft.errors import FidelityWarning, ModelError, NotFittedError, SettingsError, StorageError
from pyro_dft.layout import Layout
from pyro_dft.progress import ProgressBar
from pyro_dft.report import to_inference_data
from pyro_dft.settings import Settings
from pyro_dft.summary import Summary, summary_table


class Inference:
    """Base of the `DFT` classes; see `pyro_dft.DFT`."""

    _framework = ""

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        potential_fn: Callable[[dict[str, Any]], Any] | None = None,
        initial_params: Mapping[str, Any] | None = None,
        transforms: Mapping[str, Any] | None = None,
        num_chains: int = 1,
        init_strategy: Callable[..., Any] | None = None,
        disable_progbar: bool = False,
        settings: Settings | None = None,
        **overrides: Any,
    ):
        if (model is None) == (potential_fn is None):
            raise ModelError("give either a model or potential_fn, and not both")
        if potential_fn is not None and not initial_params:
            raise ModelError("potential_fn needs initial_params: a dict of unconstrained values that gives names and shapes")
        if model is not None and not callable(model):
            raise ModelError(f"model must be callable, got {type(model).__name__}")
        if isinstance(num_chains, bool) or not isinstance(num_chains, int) or num_chains < 1:
            raise SettingsError(f"num_chains={num_chains!r}: expected an integer of at least 1")
        if settings is not None and overrides:
            raise SettingsError(f"give either settings or single ones ({', '.join(sorted(overrides))}), not both")
        self.model = model
        self.potential_fn = potential_fn
        self.num_chains = num_chains
        self.settings = settings or Settings.from_kwargs(**overrides)
        self.init_strategy = init_strategy
        self.disable_progbar = disable_progbar
        self._initial_params = initial_params
        self._transforms = dict(transforms or {})
        self._clear()

    def _clear(self) -> None:
        self._trainer: Any = None
        self._arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._kept: Any = None
        self._report: verdict.Diagnostics | None = None
        self._seconds = 0.0
        self._cpu_seconds = 0.0

    # Training

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Trains the sampler for the posterior given the model's arguments, from the start.

        Ctrl-C ends the training early and keeps the sampler trained so far; `diagnostics()` then says how good it is.

        Args:
            *args: Arguments of the model.
            **kwargs: Keyword arguments of the model.

        Raises:
            ModelError: the model or its data cannot be used; the message names the site or argument.

        Warns:
            FidelityWarning: a diagnostic says that the fit is doubtful.
        """
        wall, cpu = time.perf_counter(), time.process_time()
        self._clear()
        self._arguments = (args, kwargs)
        with self._random_state():
            self._prepare(args, kwargs)
            with ProgressBar(self._trainer.total, disable=self.disable_progbar) as bar:
                try:
                    while not self._trainer.done:
                        bar.update(self._trainer.step())
                    bar.status("measuring")
                    self._trainer.finish()
                except KeyboardInterrupt:
                    bar.status("interrupted")
                    self._trainer.finish()
                    warnings.warn(
                        "training was interrupted: the sampler trained so far is kept; see diagnostics()",
                        FidelityWarning,
                        stacklevel=2,
                    )
            self._finish(wall, cpu)

    def step(self, *args: Any, **kwargs: Any) -> float:
        """One training iteration on the given arguments, as `SVI.step`, for users who write their own loop.

        The first call sets up the training. Later calls may bring other data of the same shapes (minibatches scaled by
        the model): each iteration sees the arguments of its own call. Draws may be taken after any number of steps.

        Returns:
            The Fisher gap J(s_q) - J(s_phi) on fresh draws; minus the evidence bound while the Gaussian is fitted.
        """
        wall, cpu = time.perf_counter(), time.process_time()
        with self._random_state():
            if self._trainer is None:
                self._clear()
                self._arguments = (args, kwargs)
                self._prepare(args, kwargs)
            elif not _same_arguments(self._arguments, (args, kwargs)):
                self._arguments = (args, kwargs)
                self._replace_data(args, kwargs)
            progress = self._trainer.step()
        self._kept, self._report = None, None
        self._seconds += time.perf_counter() - wall
        self._cpu_seconds += time.process_time() - cpu
        return progress.loss

    # What `DFTKernel` drives in place of `run`.

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self._clear()
        self._arguments = (args, kwargs)
        with self._random_state():
            self._prepare(args, kwargs)
        self._seconds += time.perf_counter() - wall
        self._cpu_seconds += time.process_time() - cpu

    def _advance(self, until: float) -> float:
        """Trains until that share of the planned iterations is made; returns the last loss."""
        wall, cpu = time.perf_counter(), time.process_time()
        trainer, loss = self._trainer, float("nan")
        with self._random_state():
            while not trainer.done and len(trainer.history) < until * trainer.total:
                loss = trainer.step().loss
        self._seconds += time.perf_counter() - wall
        self._cpu_seconds += time.process_time() - cpu
        return loss

    @property
    def _phase(self) -> str:
        return "untrained" if self._trainer is None else self._trainer.phase

    def _finish(self, wall: float, cpu: float) -> None:
        """Keeps the refined draws of the drift test, assesses the fit and warns where it is doubtful."""
        self._kept = self._keep_draws()
        self._seconds += time.perf_counter() - wall
        self._cpu_seconds += time.process_time() - cpu
        self._report = self._assess()
        if self._report["warnings"]:
            text = "\n".join(f"  - {line}" for line in self._report["warnings"])
            warnings.warn(f"the fit is {self._report['status']}:\n{text}", FidelityWarning, stacklevel=3)

    def _require_fit(self) -> None:
        if self._kept is not None:
            return
        if self._trainer is None:
            raise NotFittedError("the sampler is not trained yet: call run(...) first")
        # After single steps: measure what is there.
        wall, cpu = time.perf_counter(), time.process_time()
        with self._random_state():
            self._trainer.finish()
            self._finish(wall, cpu)

    # Draws

    def get_samples(
        self, num_samples: int | None = None, group_by_chain: bool = False, *, refine_steps: int | None = None
    ) -> dict[str, Any]:
        """Posterior draws of all latent sites, constrained, as `MCMC.get_samples`.

        Args:
            num_samples: Draws over all chains, or for each chain with `group_by_chain`. None returns the draws that the
                fit kept (`num_draws` in the settings, refined): the same at each call. A number gives new draws.
            group_by_chain: Whether to keep the chains apart.
            refine_steps: HMC transitions for each draw; 0 gives the one-step sampler's raw draws. None takes what the
                drift test found necessary, and raw draws above `refine_limit` of them.

        Returns:
            Site name -> array of shape (num_samples, *site), or (num_chains, num_samples, *site).

        Raises:
            NotFittedError: before `run`.
            ValueError: `num_samples` or `refine_steps` is not a positive integer (0 is allowed for the latter).
        """
        if num_samples is not None:
            _check_count("num_samples", num_samples, 1)
        if refine_steps is not None:
            _check_count("refine_steps", refine_steps, 0)
        self._require_fit()
        if num_samples is None and refine_steps is None:
            return self._grouped(self._constrain_blocks([self._kept]), group_by_chain, None)
        if num_samples is None:
            num_samples = self.settings.num_draws // (self.num_chains if group_by_chain else 1)
        each = num_samples if group_by_chain else -(-num_samples // self.num_chains)
        if refine_steps is None:
            refine_steps = self._default_refine_steps() if each * self.num_chains <= self.settings.refine_limit else 0
        blocks = self._draw_blocks(each, refine_steps)
        return self._grouped(self._constrain_blocks(blocks), group_by_chain, num_samples)

    def _default_refine_steps(self) -> int:
        if self.settings.refine_steps is not None:
            return self.settings.refine_steps
        return 0 if self.settings.objective == "dft-paper" else self._trainer.fit.measurement.steps

    def _grouped(self, samples: dict[str, Any], group_by_chain: bool, num_samples: int | None) -> dict[str, Any]:
        if group_by_chain:
            return samples
        flat = {k: v.reshape((-1, *v.shape[2:])) for k, v in samples.items()}
        return flat if num_samples is None else {k: v[:num_samples] for k, v in flat.items()}

    # Reports

    def diagnostics(self) -> verdict.Diagnostics:
        """Numbers that say how good the fit is; `print` it for a readable page.

        Keys: see `pyro_dft.verdict.Diagnostics`. What no number here can show is a mode that nothing ever reached.
        """
        self._require_fit()
        assert self._report is not None
        return self._report

    def summary(self, prob: float = 0.9) -> None:
        """Prints a table of the kept draws, as `MCMC.summary`, with the approximation error beside the Monte Carlo error.

        Args:
            prob: Mass of the interval that is shown.
        """
        print(self.summary_table(prob))

    def summary_table(self, prob: float = 0.9) -> Summary:
        """The numbers behind `summary`."""
        samples = self._numpy_samples()
        return summary_table(samples, self._approximation_error(samples), prob=prob)

    def _numpy_samples(self) -> dict[str, np.ndarray]:
        return {k: self._numpy(v) for k, v in self.get_samples(group_by_chain=True).items()}

    def _approximation_error(self, samples: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Error of each site's mean in posterior sds: between samplers, and by the drift of the refined draws."""
        before = self._constrain_blocks([self._drift_start()])
        errors = {}
        for name, after in samples.items():
            errors[name] = verdict.approximation_error(self._numpy(before[name]), after)
        return errors

    def to_inference_data(
        self,
        num_samples: int | None = None,
        *,
        log_likelihood: bool = True,
        posterior_predictive: bool = False,
        prior: bool = False,
        constant_data: Mapping[str, Any] | None = None,
        coords: Mapping[str, Sequence[Any]] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
    ) -> Any:
        """The fit as ArviZ data: `InferenceData` on ArviZ 0.x, `DataTree` on ArviZ 1.x or arviz-base alone.

        Groups: posterior (chain, draw, plates), sample_stats, unconstrained_posterior, observed_data, and log_likelihood
        where the model's can be computed; the others on request.

        Args:
            num_samples: Draws for each chain; None takes the kept ones.
            log_likelihood: Whether to add pointwise log likelihoods (for `az.loo`).
            posterior_predictive: Whether to add replicated data, one for each draw.
            prior: Whether to add prior draws and prior predictive data, as many as there are draws.
            constant_data: Arrays to store beside the observations, such as predictors.
            coords: Labels for dimensions.
            dims: Names of dimensions for each site, in place of the plates' names.
        """
        self._require_fit()
        if num_samples is not None:
            _check_count("num_samples", num_samples, 1)
        if num_samples is None:
            flat = self._kept
        else:
            flat = self._concatenate(self._draw_blocks(num_samples, self._default_refine_steps()))
        samples = {k: self._numpy(v) for k, v in self._constrain_blocks([flat]).items()}
        original, log_density = self._original_and_density(flat)
        groups = self._model_groups(flat, log_likelihood, posterior_predictive, prior)
        shape = (self.num_chains, log_density.shape[1])
        report = self.diagnostics()
        return to_inference_data(
            samples,
            sample_stats={"lp": log_density, "diverging": np.zeros(shape, dtype=bool)},
            unconstrained_posterior=self._layout().unflatten(original),
            constant_data={k: self._numpy(v) for k, v in (constant_data or {}).items()},
            coords=coords,
            dims={**self._plate_dims(), **(dims or {})},
            attrs={
                "backend": self._framework,
                "settings": self.settings.to_json(),
                "sampling_time": self._seconds,
                "status": report["status"],
                "objective": report["objective"],
                "refine_steps": report["refine_steps"],
            },
            **groups,
        )

    # Files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the trained sampler to a safetensors file with a JSON header (no pickle).

        The file holds the sampler's weights, the layout of the sites, the settings and the diagnostics, and the potential
        at a few points, by which `load` recognises the model and its data. It does not hold the data.
        """
        self._require_fit()
        arrays, header = self._state()
        points, values = self._check_points()
        header |= {
            "framework": self._framework,
            "layout": self._layout().to_json(),
            "settings": self.settings.to_json(),
            "num_chains": self.num_chains,
            "diagnostics": self.diagnostics().to_json(),
            "seconds": self._seconds,
        }
        storage.save(path, {**arrays, "check.points": points, "check.values": values}, header)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: Callable[..., Any] | None = None,
        *args: Any,
        potential_fn: Callable[[dict[str, Any]], Any] | None = None,
        initial_params: Mapping[str, Any] | None = None,
        transforms: Mapping[str, Any] | None = None,
        disable_progbar: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Reads a sampler that `save` wrote.

        Args:
            path: The file.
            model: The model that it was trained for; or give `potential_fn`, `initial_params`, `transforms`.
            *args: The model's arguments at training: the data are not in the file.
            potential_fn: As in the constructor.
            initial_params: As in the constructor.
            transforms: As in the constructor.
            disable_progbar: As in the constructor.
            **kwargs: The model's keyword arguments at training.

        Raises:
            StorageError: the file is damaged, of another version, or of another model or other data.
        """
        arrays, header = storage.load(path)
        try:
            settings = Settings.from_kwargs(**header["settings"])
            chains, saved_layout = int(header["num_chains"]), header["layout"]
            report = verdict.Diagnostics(header["diagnostics"])
            points, values = arrays.pop("check.points"), arrays.pop("check.values")
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{path}: the header is incomplete ({error})") from error
        loaded = cls(
            model, potential_fn=potential_fn, initial_params=initial_params, transforms=transforms,
            num_chains=chains, disable_progbar=disable_progbar, settings=settings,
        )  # fmt: skip
        loaded._arguments = (args, kwargs)
        with loaded._random_state():
            loaded._prepare(args, kwargs)
        storage.check_layout(path, saved_layout, loaded._layout())
        now = loaded._potential_at(points)
        # The potential of float32 models is good to some digits of its own size.
        if not np.allclose(now - now[0], values - values[0], rtol=1e-3, atol=1e-3 * max(1.0, float(np.abs(values).max()))):
            raise StorageError(f"{path}: the potential differs from the saved one: another model, or other data")
        loaded._restore(path, arrays, header)
        loaded._kept = loaded._keep_draws()
        loaded._report = report
        loaded._seconds = float(header.get("seconds", 0.0))
        return loaded

    # Hooks that a front door fills in. Flat arrays have shape (chains, draws, dim), in the sampler's coordinates.

    def _prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Builds the problems and `self._trainer`."""
        raise NotImplementedError

    def _replace_data(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Lets the running training see other model arguments."""
        raise NotImplementedError

    def _random_state(self) -> Any:
        """A context in which the framework's global random state may be used and is put back after."""
        raise NotImplementedError

    def _layout(self) -> Layout:
        """Layout of the model's own unconstrained coordinates."""
        raise NotImplementedError

    def _keep_draws(self) -> Any:
        """The draws that the fit serves by default."""
        raise NotImplementedError

    def _drift_start(self) -> Any:
        """The draws that the last part of the drift test started from: raw ones where raw draws are served."""
        raise NotImplementedError

    def _draw_blocks(self, each: int, refine_steps: int) -> Any:
        """New draws, in blocks (chains, any number, dim) that together have `each` for each chain."""
        raise NotImplementedError

    def _constrain_blocks(self, blocks: Any) -> dict[str, Any]:
        """Blocks of flat draws -> site name -> native array (chains, draws, *site)."""
        raise NotImplementedError

    def _concatenate(self, blocks: Any) -> Any:
        raise NotImplementedError

    def _numpy(self, value: Any) -> np.ndarray:
        raise NotImplementedError

    def _original_and_density(self, flat: Any) -> tuple[np.ndarray, np.ndarray]:
        """The model's own unconstrained coordinates (C, n, d), and the log density there (C, n)."""
        raise NotImplementedError

    def _model_groups(self, flat: Any, log_likelihood: bool, predictive: bool, prior: bool) -> dict[str, Any]:
        """ArviZ groups that need the model."""
        raise NotImplementedError

    def _plate_dims(self) -> dict[str, list[str]]:
        raise NotImplementedError

    def _assess(self) -> verdict.Diagnostics:
        raise NotImplementedError

    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and header entries that define the trained sampler."""
        raise NotImplementedError

    def _restore(self, path: Any, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> None:
        raise NotImplementedError

    def _check_points(self) -> tuple[np.ndarray, np.ndarray]:
        """A few flat points of the model's own coordinates, (m, d), and the potential there, (m,)."""
        raise NotImplementedError

    def _potential_at(self, points: np.ndarray) -> np.ndarray:
        """Potential at points of the model's own unconstrained coordinates."""
        raise NotImplementedError


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}={value!r}: expected an integer of at least {least}")


def _same_arguments(a: Any, b: Any) -> bool:
    """Whether two sets of model arguments hold the very same objects."""
    (args_a, kwargs_a), (args_b, kwargs_b) = a, b
    if len(args_a) != len(args_b) or kwargs_a.keys() != kwargs_b.keys():
        return False
    return all(x is y for x, y in zip(args_a, args_b, strict=True)) and all(kwargs_a[k] is kwargs_b[k] for k in kwargs_a)
