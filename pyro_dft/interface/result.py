"""The result of a training: the measured fit, the draws that are served by default, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_dft.interface.arrays import Arrays
from pyro_dft.judging.verdict import Diagnostics
from pyro_dft.recipe.fit import Fit
from pyro_dft.recipe.measure import Measurement
from pyro_dft.settings import Settings


@dataclass(frozen=True)
class Making:
    """How new draws are made.

    Attributes:
        transitions: HMC transitions of each; 0 for raw ones.
        renewed: Whether they start at draws that are kept, and not at draws of the sampler.
    """

    transitions: int
    renewed: bool = False


class Result:
    """A measured fit.

    Args:
        fit: The fit.
        settings: Of the fit.
        arrays: The framework's arrays.

    Attributes:
        fit: The fit.
        kept: The draws that are served by default, native (chains, draws, dim), in the sampler's coordinates: draws of the
            measurement, refined at least as much as new ones are by default.
        report: The diagnostics.
        told_of_raw: Whether it was said what is wrong with raw draws, see `pyro_dft.judging.alarms.raw_draws`.
    """

    def __init__(self, fit: Fit, settings: Settings, arrays: Arrays):
        self.fit, self._settings, self._arrays = fit, settings, arrays
        self.report, self.told_of_raw = Diagnostics(), False
        measured = self.measurement
        self.kept = self.served(measured.raw if self.refine_steps == 0 else measured.refined)

    @property
    def measurement(self) -> Measurement:
        """The drift test of the sampler."""
        assert self.fit.measurement is not None
        return self.fit.measurement

    @property
    def refine_steps(self) -> int:
        """HMC transitions that a draw gets by default."""
        if self._settings.refine_steps is not None:
            return self._settings.refine_steps
        return 0 if self._settings.objective == "dft-paper" else self.measurement.steps

    @property
    def making(self) -> Making:
        """How a new draw is made by default."""
        return Making(self.refine_steps, self._settings.refine_steps is None and self.measurement.renewed)

    def served(self, draws: Any) -> Any:
        """Draws (chains, n, dim) of the chains from those of the measured samplers, of which a chain can have several."""
        modes = self.fit.modes
        return draws if modes is None else modes.kept(draws)

    def log_density(self) -> np.ndarray | None:
        """Log densities (chains, n) of the kept draws, in the coordinates of the fit; None where they are raw: not known."""
        if self.refine_steps == 0:
            return None
        return self._arrays.numpy(self.served(self.measurement.log_density))

    def shares(self) -> np.ndarray:
        """How often each of the measured samplers serves, over all chains."""
        modes = self.fit.modes
        if modes is None:
            return np.ones(self.fit.sampler.chains)
        # The mean over chains: a mode to which one of them gives hardly any weight keeps its draws there.
        return np.tile(modes.weights.mean(0), modes.chains)

    def other_end(self) -> Any:
        """Draws that `kept` are compared with in the drift test, row by row.

        Raw draws are compared with what refinement makes of them, refined ones with what they were halfway.
        """
        return self.served(self.measurement.refined if self.refine_steps == 0 else self.measurement.halfway)

    def statistics(self) -> dict[str, Any]:
        """What is known of the transitions that the kept draws come from, NumPy arrays (chains, draws) by name.

        "diverging" always, which says whether one of the transitions diverged; where draws are refined also those of
        `pyro_dft.recipe.chains.STATISTICS`, "n_steps" (gradient steps, in the mean) and "step_size" (of a leapfrog step, in
        whitened coordinates). An early file has none of these.
        """
        measured, refined = self.measurement, self.refine_steps > 0
        found = {"diverging": self._arrays.numpy(self.served(measured.diverged & refined))}
        if refined:
            own = with_kernel(self._arrays, measured, measured.statistics, measured.gradients_each)
            found |= {name: self.served(value) for name, value in own.items()}
        return found


def with_kernel(
    arrays: Arrays,
    measured: Measurement,
    statistics: Mapping[str, Any],
    gradients: int,
    samplers: slice = slice(None),
) -> dict[str, np.ndarray]:
    """Statistics of refined draws, completed by numbers that are the same for all draws of a sampler.

    Args:
        arrays: The framework's arrays.
        measured: Holds the step sizes of the transitions.
        statistics: By name, native (samplers, draws); nothing is known where there are none.
        gradients: Gradient steps that made each draw.
        samplers: Which of the measured samplers these are.
    """
    found = {name: arrays.numpy(value) for name, value in statistics.items()}
    if not found:
        return {}
    shape = next(iter(found.values())).shape
    step_size = np.broadcast_to(arrays.numpy(measured.step_size)[samplers][:, None], shape)
    return {**found, "n_steps": np.full(shape, gradients), "step_size": step_size}
