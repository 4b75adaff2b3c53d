"""Draws of a trained sampler: those that the fit keeps, and new ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_dft import messages
from pyro_dft.errors import FidelityWarning, warn
from pyro_dft.evidence import importance
from pyro_dft.evidence.psis import khat_threshold
from pyro_dft.interface import memory_check
from pyro_dft.interface.blocks import new_blocks
from pyro_dft.interface.result import Making
from pyro_dft.interface.training import Training
from pyro_dft.judging import alarms, verdict
from pyro_dft.judging.summary import Summary, summary_table


class Drawing:
    """Draws by site, in the form of `DFT.get_samples`.

    Args:
        training: Whose result is drawn from.
    """

    def __init__(self, training: Training):
        self._training, self._backend, self._options = training, training.backend, training.options

    def samples(
        self, num_samples: int | None, group_by_chain: bool, refine_steps: int | None
    ) -> dict[str, Any]:
        """All of `DFT.get_samples`, for arguments that are checked."""
        self._training.trained()
        chains, settings = self._options.num_chains, self._options.settings
        if num_samples is None and refine_steps is not None:
            num_samples = settings.num_draws // (chains if group_by_chain else 1)
        if num_samples is None:
            samples = self._kept()
        else:
            self.check_room(num_samples * (chains if group_by_chain else 1))
            each = num_samples if group_by_chain else -(-num_samples // chains)
            few = each * chains <= settings.experimental.refine_limit
            making = self.making(refine_steps if few or refine_steps is not None else 0)
            if making.transitions == 0:
                self._warn_of_raw_draws()
            samples = self._new(each, making)
        if group_by_chain:
            return samples
        if num_samples is None or num_samples % chains == 0:
            # Not -1 for the draws: a site may have no elements.
            return {
                name: value.reshape((value.shape[0] * value.shape[1], *value.shape[2:]))
                for name, value in samples.items()
            }
        # Numbers of draws of the chains differ by one at most.
        counts = [num_samples // chains + (i < num_samples % chains) for i in range(chains)]
        return {
            name: self._backend.arrays.concatenate([value[i, :count] for i, count in enumerate(counts)])
            for name, value in samples.items()
        }

    def _kept(self) -> dict[str, Any]:
        result, backend = self._training.trained(), self._backend
        with backend.session():
            return backend.constrain(result.fit.problem, [backend.arrays.copied(result.kept)])

    def _new(self, each: int, making: Making) -> dict[str, Any]:
        fit, backend = self._training.trained().fit, self._backend
        with backend.session():
            blocks = new_blocks(backend, fit, each, making, rng=backend.rng)
            return backend.constrain(fit.problem, (draws for draws, _ in blocks))

    def making(self, refine_steps: int | None) -> Making:
        """How new draws are made, None for the default; trains networks that were put off where raw draws are asked for."""
        if refine_steps == 0:
            self._training.complete()
        return self._training.trained().making if refine_steps is None else Making(refine_steps)

    def _warn_of_raw_draws(self) -> None:
        """Once for each result; where the fit is judged by its raw draws, its own verdict has said it."""
        result = self._training.trained()
        if result.told_of_raw or result.refine_steps == 0:
            return
        result.told_of_raw = True
        text = alarms.raw_draws(result.report)
        if text is not None:
            warn(text, FidelityWarning)

    def check_room(self, draws: int) -> None:
        """Raises MemoryError where so many draws, over all chains, would not fit."""
        numbers = sum(
            math.prod(site.unconstrained_shape) + math.prod(site.constrained_shape)
            for site in self._backend.layout.sites
        )
        memory_check.check_draws(draws, numbers, itemsize=self._backend.itemsize)

    def weighted(self, num_samples: int) -> importance.ImportanceResult:
        """All of `DFT.importance_sampling`, for arguments that are checked."""
        self._training.trained()
        self.check_room(num_samples)
        result, backend = self._training.complete(), self._backend
        fit, numpy = result.fit, backend.arrays.numpy
        means, scales, elbos = map(numpy, (fit.optima.mean, fit.optima.scale, fit.optima.elbo))
        with backend.session():
            refined = numpy(result.measurement.refined)
            mixture = importance.Mixture(
                fit.sampler, result.shares(), refined, (means, scales, elbos), backend.host_rng(backend.rng)
            )

            def constrained(x: np.ndarray) -> dict[str, Any]:
                values = backend.constrain(fit.problem, [backend.flat(fit.problem, x[None])])
                return {name: value[0] for name, value in values.items()}

            found = importance.importance_sample(
                mixture, lambda x: backend.potential_at(x, fit.problem), constrained, int(num_samples)
            )
        if not found.reliable:
            threshold = khat_threshold(len(found.log_weights))
            text = messages.unreliable_weights(found.k_hat, threshold, found.ess, num_samples)
            warn(text, FidelityWarning)
        return found

    def summary(self, prob: float) -> Summary:
        """The table of the kept draws, with the approximation error of their means."""
        numpy, backend = self._backend.arrays.numpy, self._backend
        result = self._training.trained()
        samples = {name: numpy(value) for name, value in self._kept().items()}
        with backend.session():
            before = backend.constrain(result.fit.problem, [result.other_end()])
        samples = {
            name: value for name, value in samples.items() if value.size
        }  # a site may have no elements
        errors = {
            name: verdict.approximation_error(numpy(before[name]), after) for name, after in samples.items()
        }
        return summary_table(samples, errors, prob=prob)
