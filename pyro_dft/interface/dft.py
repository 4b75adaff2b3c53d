"""The public interface, written once for both frameworks: train, draw, summarise, diagnose, hand over.

A front door (`pyro_dft.pyro.dft`) fills in the hooks of `pyro_dft.interface.backend`: how a model becomes a target, and
how its engine trains, draws and refines.
"""

from __future__ import annotations

import copy
import inspect
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pyro_dft import messages
from pyro_dft.errors import FidelityWarning, NotFittedError, SettingsError
from pyro_dft.evidence import importance
from pyro_dft.evidence.psis import khat_threshold
from pyro_dft.export import plot
from pyro_dft.export.arviz import sample_stats, to_inference_data
from pyro_dft.interface import memory_check, nuts_options
from pyro_dft.interface.arguments import copied
from pyro_dft.interface.mcmc_verdict import verdict_line
from pyro_dft.interface.training import Training
from pyro_dft.judging import verdict
from pyro_dft.judging.summary import Summary, summary_table
from pyro_dft.models.options import check_options, spelt_as_numpyro
from pyro_dft.settings import Settings, check_count, check_names

# Pointwise log-likelihoods with more numbers than this (draws x data) are computed on request only.
LIKELIHOOD_LIMIT = 1e8

# Transitions of a fresh draw above which a network that was put off is trained.
FEW_TRANSITIONS = 16


class Inference(Training):
    """Base of the `DFT` classes; see `pyro_dft.DFT`."""

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        potential_fn: Callable[[dict[str, Any]], Any] | None = None,
        initial_params: Mapping[str, Any] | None = None,
        transforms: Mapping[str, Any] | None = None,
        smoothed_potential_fn: Callable[[dict[str, Any], Any], Any] | None = None,
        generator: Any = None,
        score_network: Any = None,
        num_chains: int = 1,
        init_strategy: Callable[..., Any] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 500,
        callback: Callable[[Any, Callable[[int], dict[str, Any]]], None] | None = None,
        callback_every: int = 50,
        disable_progbar: bool = False,
        settings: Settings | None = None,
        **overrides: Any,
    ):
        initial_params, disable_progbar = spelt_as_numpyro(overrides, initial_params, disable_progbar)
        check_options(
            model=model, potential_fn=potential_fn, initial_params=initial_params, transforms=transforms,
            init_strategy=init_strategy, checkpoint=checkpoint, callback=callback, disable_progbar=disable_progbar,
        )  # fmt: skip
        check_count("num_chains", num_chains, 1, SettingsError)
        for name, every in (("checkpoint_every", checkpoint_every), ("callback_every", callback_every)):
            check_count(name, every, 1, SettingsError)
        foreign = sorted(nuts_options.NAMES & overrides.keys())
        if foreign:
            raise SettingsError(f"{', '.join(foreign)}: an option of NUTS that means nothing here; drop it")
        # Names of options as well, whichever class of the hierarchy takes them.
        options = {**inspect.signature(Inference).parameters, **inspect.signature(type(self)).parameters}
        check_names(overrides, options)
        if settings is not None and overrides:
            raise SettingsError(
                f"give either settings or single ones ({', '.join(sorted(overrides))}), not both"
            )
        self.model = model
        self.potential_fn = potential_fn
        self.initial_params = copied(initial_params, self._copied)
        self.transforms = dict(transforms or {})
        self.num_chains = int(num_chains)
        self.init_strategy = init_strategy
        self.disable_progbar = disable_progbar
        self.settings = settings or Settings.from_kwargs(**overrides)
        self.settings.check_use()
        self.smoothed_potential_fn = smoothed_potential_fn
        levels = self.settings.noise_mode == "levels"
        if levels != (smoothed_potential_fn is not None) or (levels and potential_fn is None):
            raise SettingsError(
                'noise_mode="levels" and smoothed_potential_fn, beside potential_fn, need each other'
            )
        self._own_generator, self._own_score_network = generator, score_network
        self.checkpoint, self.checkpoint_every = checkpoint, checkpoint_every
        self.callback, self.callback_every = callback, callback_every
        if checkpoint is not None and self._needs_seed and self.settings.seed is None:
            raise SettingsError(
                "checkpoint: give a seed as well, by which a later run goes on with the same training"
            )
        self._forget()

    # Draws

    def get_samples(
        self, num_samples: int | None = None, group_by_chain: bool = False, *, refine_steps: int | None = None
    ) -> dict[str, Any]:
        """Posterior draws of all latent and deterministic sites, constrained, as `MCMC.get_samples`.

        Args:
            num_samples: Draws over all chains, or for each chain with `group_by_chain`. None returns the
                draws that the fit kept (`num_draws` in the settings, refined): the same at each call. A
                number gives new draws.
            group_by_chain: Whether to keep the chains apart.
            refine_steps: HMC transitions for each draw; 0 gives the one-step sampler's raw draws. None takes
                what the drift test found necessary, and raw draws above `refine_limit` of them.

        Returns:
            Site name -> array of shape (num_samples, *site), or (num_chains, num_samples, *site).

        Raises:
            NotFittedError: before `run`.
            ValueError: `num_samples` or `refine_steps` is not a positive integer (0 is allowed for the
                latter).
            MemoryError: there is no room for so many draws.

        Example:
            >>> tuple(dft.get_samples()["mu"].shape)  # the kept draws
            (4000,)
            >>> tuple(dft.get_samples(10)["mu"].shape)  # new ones, refined
            (10,)
            >>> tuple(dft.get_samples(10, group_by_chain=True, refine_steps=0)["mu"].shape)
            (1, 10)
        """
        if num_samples is not None:
            check_count("num_samples", num_samples, 1)
        if refine_steps is not None:
            check_count("refine_steps", refine_steps, 0)
        self._require_fit()
        chains = self.num_chains
        if num_samples is None and refine_steps is not None:
            num_samples = self.settings.num_draws // (chains if group_by_chain else 1)
        if num_samples is not None:
            self._check_room(num_samples * (chains if group_by_chain else 1))
        if num_samples is None:
            with self._session():
                samples = self._constrain([self._copied(self._kept)])
        else:
            each = num_samples if group_by_chain else -(-num_samples // chains)
            few = each * chains <= self.settings.refine_limit
            refine_steps = self._transitions(refine_steps if few or refine_steps is not None else 0)
            with self._session():
                samples = self._constrain(self._blocks(each, refine_steps))
        if group_by_chain:
            return samples
        if num_samples is None or num_samples % chains == 0:
            # Not -1 for the draws: a site may have no elements.
            return {
                name: value.reshape((value.shape[0] * value.shape[1], *value.shape[2:]))
                for name, value in samples.items()
            }
        # No chain serves more than one draw more than another.
        counts = [num_samples // chains + (i < num_samples % chains) for i in range(chains)]
        return {
            name: self._concatenate([value[i, :count] for i, count in enumerate(counts)])
            for name, value in samples.items()
        }

    def _transitions(self, refine_steps: int | None) -> int:
        """Transitions of fresh draws, and networks that were put off where these need them."""
        # Many transitions from the Gaussian cost more than a network from whose draws fewer are enough.
        if refine_steps == 0 or (refine_steps is None and self._default_refine_steps() > FEW_TRANSITIONS):
            self._complete()
        return self._default_refine_steps() if refine_steps is None else refine_steps

    def importance_sampling(self, num_samples: int = 4000) -> importance.ImportanceResult:
        """New draws with importance weights: the evidence, PSIS k-hat, and draws that the weights correct.

        The draws are raw ones of the sampler, and for a tenth of them of wide Student-t densities; refinement has no
        density. The full data are read once for each draw. See docs/importance.md for method, cost and limits.

        Args:
            num_samples: Draws over all chains, at least 100.

        Returns:
            Weighted draws, `log_evidence` with its standard error, `k_hat`, `ess`; `resample()` gives draws without
            weights.

        Raises:
            NotFittedError: before `run`.
            ValueError: `num_samples` is not an integer of at least 100.
            ModelError: the posterior density is zero at all draws.

        Warns:
            FidelityWarning: k-hat says that the weights cannot be trusted.

        Example:
            >>> result = dft.importance_sampling(1000)
            >>> result.reliable
            True
            >>> exact = -6.63  # log p(y) in closed form
            >>> bool(abs(result.log_evidence - exact) < 0.05)
            True
        """
        check_count("num_samples", num_samples, 100)
        self._require_fit()
        self._check_room(num_samples)
        self._complete()
        fit = self._fit
        means, scales, elbos = map(self._numpy, (fit.optima.mean, fit.optima.scale, fit.optima.elbo))
        with self._session():
            refined = self._numpy(fit.measurement.refined)
            weights = self._shares()
            mixture = importance.Mixture(
                fit.sampler, weights, refined, (means, scales, elbos), self._host_rng()
            )
            result = importance.importance_sample(
                mixture,
                lambda x: self._potential_at(x, fit.problem),
                lambda x: {name: v[0] for name, v in self._constrain([self._flat(x[None])]).items()},
                int(num_samples),
            )
        if not result.reliable:
            threshold = khat_threshold(len(result.log_weights))
            text = messages.unreliable_weights(result.k_hat, threshold, result.ess, num_samples)
            warnings.warn(text, FidelityWarning, stacklevel=2)
        return result

    def _check_room(self, draws: int) -> None:
        """Raises MemoryError where so many draws, over all chains, would not fit."""
        numbers = sum(
            math.prod(site.unconstrained_shape) + math.prod(site.constrained_shape)
            for site in self._layout().sites
        )
        memory_check.check_draws(draws, numbers, itemsize=8 if self._precision() < 1e-10 else 4)

    # Reports

    def diagnostics(self) -> verdict.Diagnostics:
        """Numbers that say how good the fit is; `print` it for a readable page.

        Its keys are those of `pyro_dft.judging.verdict.Diagnostics`.

        What no number here can show is a mode that nothing ever reached.

        Raises:
            NotFittedError: before `run`.

        Example:
            >>> report = dft.diagnostics()
            >>> report["status"], report["warnings"]
            ('converged', [])
            >>> report["drift_refined"]["flagged"]
            False
        """
        self._require_fit()
        # Draws taken since the fit have cost gradients too.
        self._report |= self._evaluations()
        self._report |= {"seconds": self._seconds, "cpu_seconds": self._cpu_seconds}
        return copy.deepcopy(self._report)

    def _evaluations(self) -> dict[str, int | None]:
        """`gradient_evaluations` of the potential since the model was given, and the `data_rows` that they read."""
        targets = [problem.target for problem in self._problems]
        rows = sum(target.data_rows for target in targets) if targets[0].minibatch else None
        evaluations = sum(target.gradient_evaluations for target in targets)
        return {"gradient_evaluations": evaluations, "data_rows": rows}

    def plot_training(self, axes: Any = None) -> Any:
        """Draws the loss of the training against its iterations, with the phases marked.

        The Gaussian's loss is minus its evidence bound (nats). That of the networks is the Fisher gap on one batch: it
        hovers around zero where the fit is good, and its level does not rank fits. Needs Matplotlib.

        Args:
            axes: Matplotlib axes to draw on, one for each panel (Gaussian, networks); None makes a figure.

        Returns:
            The axes, an array of shape (1,) or (2,).

        Raises:
            NotFittedError: before `run`, and where there is no history: after `load` and, with NumPyro, `adopt`.
            ImportError: Matplotlib is not installed.
            ValueError: `axes` are not as many as the panels.

        Example:
            >>> axes = dft.plot_training()
            >>> axes[0].get_xlabel()
            'iteration'
        """
        if self._trainer is None or not self._trainer.history:
            self._require_fit()
            raise NotFittedError(
                "there is no history of the training: this sampler came from a file or from a state, which hold none"
            )
        return plot.training(self._trainer.history, axes)

    def summary(self, prob: float = 0.9) -> None:
        """Prints a table of the kept draws, as `MCMC.summary`, and the verdict in a line.

        The approximation error of the means stands beside their Monte Carlo error.

        Args:
            prob: Mass of the interval that is shown.

        Raises:
            NotFittedError: before `run`.

        Example:
            >>> dft.summary()  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
                mean  std  median  5.0%  95.0%  n_eff  r_hat  mcse  approx_error
            mu  ...
        """
        print(self.summary_table(prob))
        print(verdict_line([self._report], "diagnostics()"))

    def summary_table(self, prob: float = 0.9) -> Summary:
        """The numbers behind `summary`.

        Example:
            >>> table = dft.summary_table(prob=0.5)
            >>> sorted(table.rows["mu"])[:2]
            ['25.0%', '75.0%']
        """
        samples = {k: self._numpy(v) for k, v in self.get_samples(group_by_chain=True).items()}
        # The other end of the last part of the drift test: raw draws are compared with what refinement makes
        # of them.
        measurement = self._fit.measurement
        other = measurement.refined if self._default_refine_steps() == 0 else measurement.halfway
        with self._session():
            before = self._constrain([self._served(other)])
        errors = {
            name: verdict.approximation_error(self._numpy(before[name]), after)
            for name, after in samples.items()
            if after.size  # a site may have no elements
        }
        samples = {name: after for name, after in samples.items() if after.size}
        return summary_table(samples, errors, prob=prob)

    def to_inference_data(
        self,
        num_samples: int | None = None,
        *,
        log_likelihood: bool | None = None,
        posterior_predictive: bool = False,
        prior: bool = False,
        constant_data: Mapping[str, Any] | None = None,
        coords: Mapping[str, Sequence[Any]] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
    ) -> Any:
        """The fit as ArviZ data: `InferenceData` on ArviZ 0.x, `DataTree` on ArviZ 1.x or arviz-base alone.

        Its groups are posterior (chain, draw, plates), sample_stats, unconstrained_posterior and observed_data, and the others on
        request. sample_stats has the log density `lp` and, of the transitions that a draw comes from, `diverging` (whether one
        had an energy error over 1000), `acceptance_rate` (mean probability of the last ones), `n_steps` (gradients), `step_size`
        (in whitened coordinates) and `energy` (potential and kinetic); for raw draws the first two alone. Attributes hold the
        library's version, the settings, the training time and the verdict. Draws are independent: rank, trace and autocorrelation
        plots carry no information on mixing.

        Args:
            num_samples: Draws for each chain; None takes the kept ones.
            log_likelihood: Whether to add pointwise log likelihoods (for `az.loo`). None adds them where the
                model has them and they are at most 1e8 numbers.
            posterior_predictive: Whether to add replicated data, one for each draw.
            prior: Whether to add prior draws and prior predictive data, as many as there are draws.
            constant_data: Arrays to store beside the observations, such as predictors.
            coords: Labels for dimensions.
            dims: Names of dimensions for each site, in place of the plates' names.

        Raises:
            NotFittedError: before `run`.
            ModelError: a group was asked for that the model does not have.
            ValueError: `num_samples` is not a positive integer.
            ImportError: neither ArviZ nor arviz-base is installed.

        Example:
            >>> idata = dft.to_inference_data()
            >>> dict(idata.posterior["mu"].sizes)
            {'chain': 1, 'draw': 4000}
        """
        if num_samples is not None:
            check_count("num_samples", num_samples, 1)
            self._require_fit()
            self._check_room(num_samples * self.num_chains)
            self._transitions(None)
        report = self.diagnostics()
        with self._session():
            flat, told = self._kept, self._kept_told()
            if num_samples is not None:
                flat, told = self._together(self._told_blocks(num_samples, report["refine_steps"]))
            samples = self._constrain([flat])
            original = self._original(flat)
            log_density = -self._potential_at(original).astype(np.float64)
            groups = self._model_groups(samples, log_likelihood, posterior_predictive, prior)
        return to_inference_data(
            {name: self._numpy(value) for name, value in samples.items()},
            sample_stats=sample_stats(log_density, told),
            unconstrained_posterior=self._layout().unflatten(original),
            constant_data={name: self._numpy(value) for name, value in (constant_data or {}).items()},
            coords=coords,
            dims={**self._plate_dims(), **(dims or {})},
            attrs={
                "backend": self._framework,
                "settings": self.settings.to_json(),
                "sampling_time": self._seconds,
                **{key: report[key] for key in ("status", "warnings", "objective", "refine_steps")},
            },
            **{
                group: {name: self._numpy(value) for name, value in values.items()}
                for group, values in groups.items()
            },
        )
