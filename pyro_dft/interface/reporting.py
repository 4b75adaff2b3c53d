"""Calls of a `DFT` that say how good a fit is, and hand it over."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from pyro_dft.errors import NotFittedError
from pyro_dft.export import plot
from pyro_dft.interface import inference_data
from pyro_dft.interface.mcmc_verdict import verdict_line
from pyro_dft.interface.parts import Parts
from pyro_dft.judging.summary import Summary
from pyro_dft.judging.verdict import Diagnostics
from pyro_dft.settings import check_count


class Reporting:
    """Diagnostics, tables, pictures and ArviZ data."""

    parts: Parts

    def diagnostics(self) -> Diagnostics:
        """Numbers that say how good the fit is; `print` it for a readable page.

        Its keys are those of `pyro_dft.judging.verdict.Diagnostics`.

        A mode that no restart, chain or draw ever reached cannot show in any of them.

        Raises:
            NotFittedError: before `run`.

        Example:
            >>> report = dft.diagnostics()
            >>> report["status"], report["warnings"]
            ('converged', [])
            >>> report["drift_refined"]["flagged"]
            False
        """
        return copy.deepcopy(self.parts.training.report())

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
        trainer = self.parts.training.trainer
        if trainer is None or not trainer.history:
            self.parts.training.trained()
            raise NotFittedError(
                "there is no history of the training: this sampler came from a file or from a state, which hold none"
            )
        return plot.training(trainer.history, axes)

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
        print(verdict_line([self.parts.training.trained().report], "diagnostics()"))

    def summary_table(self, prob: float = 0.9) -> Summary:
        """The numbers behind `summary`.

        Example:
            >>> table = dft.summary_table(prob=0.5)
            >>> sorted(table.rows["mu"])[:2]
            ['25.0%', '75.0%']
        """
        return self.parts.drawing.summary(prob)

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
        """The fit as ArviZ data: xarray's `DataTree`, or on ArviZ 0.x an `InferenceData` with the same groups.

        Its groups are posterior (chain, draw, plates), sample_stats, unconstrained_posterior and observed_data, and the others on
        request. sample_stats has the log density `lp` and, of the transitions that a draw comes from, `diverging` (whether one
        had an energy error over 1000), `acceptance_rate` (mean probability of the last ones), `n_steps` (gradients, in the
        mean over the chains' transitions), `step_size` (in whitened coordinates) and `energy` (potential and kinetic); for raw
        draws the first two alone. Attributes hold the library's version, the settings, the training time and the verdict. New
        draws are independent, kept ones nearly: rank, trace and autocorrelation plots carry little information on mixing.

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
        training, drawing, fresh = self.parts.training, self.parts.drawing, None
        if num_samples is not None:
            check_count("num_samples", num_samples, 1)
            training.trained()
            drawing.check_room(num_samples * self.parts.options.num_chains)
            fresh = num_samples, drawing.making(None)
        wanted = inference_data.Wanted(
            log_likelihood, posterior_predictive, prior, constant_data or {}, coords, dims or {}
        )
        return inference_data.inference_data(training, fresh, wanted)
