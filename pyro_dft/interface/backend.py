"""What a front door fills in below the public interface, and the state that all parts of it share.

Native arrays (torch or jax) go in and out of the hooks; everything above them is NumPy. Flat arrays have
shape (chains, draws, dim), in the sampler's coordinates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from pyro_dft.interface.arguments import Arguments, copied
from pyro_dft.interface.checkpoint import Checkpoint
from pyro_dft.interface.recognition import Portrait, Terms, fingerprints
from pyro_dft.interface.restoring import Restored
from pyro_dft.judging.verdict import Diagnostics
from pyro_dft.layout import Layout
from pyro_dft.settings import Settings


class Hooks(ABC):
    """State of a sampler, and what its framework must be able to do.

    Attributes:
        model: The model, or None where there is a potential.
        potential_fn: The potential, or None where there is a model.
        initial_params: Unconstrained values to start from, or None.
        transforms: Site name -> transform that overrides the automatic one.
        smoothed_potential_fn: The potential of the noised posterior, or None.
        num_chains: Samplers, C.
        init_strategy: Where the search starts, or None.
        callback: Called on the way of a training, or None.
        disable_progbar: Whether to hide the progress bar.
        settings: All settings.
    """

    model: Callable[..., Any] | None
    potential_fn: Callable[[dict[str, Any]], Any] | None
    initial_params: Mapping[str, Any] | None
    transforms: dict[str, Any]
    smoothed_potential_fn: Callable[[dict[str, Any], Any], Any] | None
    num_chains: int
    init_strategy: Callable[..., Any] | None
    callback: Callable[[Any, Callable[[int], dict[str, Any]]], None] | None
    disable_progbar: bool
    settings: Settings

    _framework: str
    # Networks of the user's own, or None.
    _own_generator: Any
    _own_score_network: Any
    _needs_seed: bool  # whether a random seed is drawn where the settings have none
    # Names of attributes that the front door makes in `_read`, and that do not go into copies.
    _live: frozenset[str]

    _arguments: Arguments
    _checkpoint: Checkpoint | None
    _rng: Any  # the framework's random number generator of the fit
    _looking: Any  # another one, for draws on the way of a training
    _posteriors: Any  # the model's posterior in each set of coordinates, its own first
    # How far sites are non-centred in the last set of coordinates; None where that is to be fitted.
    _amounts: dict[str, float] | None = {}
    _piloted: int = 0  # gradients that the fit of these took, until they are booked
    _problems: Any  # the engine's `Problem` for each set of coordinates
    _trainer: Any  # the engine's `Trainer`, in progress or complete
    _process: int  # where the random numbers were set up: a fork of it would repeat them
    _whole: bool  # whether the training was one `run`, and not single steps that may go on
    _fit: Any  # the engine's measured `Fit`; None before, and after each further step
    _kept: Any  # flat draws that the fit keeps
    _report: Diagnostics
    _seconds: float
    _cpu_seconds: float

    # From a model to a training

    @abstractmethod
    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int | None = None) -> None:
        """Turns the model and its arguments into targets, and sets up the random number generator.

        Args:
            args: Arguments of the model.
            kwargs: Keyword arguments of the model.
            seed: Of the random numbers, below 2**63; None takes that of the fit.
        """

    @abstractmethod
    def _set_seed(self, seed: int) -> None:
        """Lets the random number generator start again, from a seed below 2**63."""

    @abstractmethod
    def _start(self) -> Any:
        """A new trainer for what `_read` made."""

    @abstractmethod
    def _seed(self) -> list[int]:
        """What the random numbers of a training follow from."""

    @abstractmethod
    def _replace_data(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Lets the running training see other model arguments; raises before anything is changed."""

    @abstractmethod
    def _session(self) -> AbstractContextManager[None]:
        """Global state of the framework as the fit needs it, put back after: random numbers, device."""

    # Draws

    @abstractmethod
    def _layout(self) -> Layout:
        """Layout of the model's own unconstrained coordinates."""

    @abstractmethod
    def _told_blocks(self, each: int, refine_steps: int) -> Iterator[tuple[Any, dict[str, Any]]]:
        """New draws, in flat blocks that together have `each` for each chain, with what `_kept_told` has of kept ones."""

    def _together(self, blocks: Iterator[tuple[Any, dict[str, Any]]]) -> tuple[Any, dict[str, Any]]:
        """All blocks of `_told_blocks` as one."""
        draws, told = zip(*blocks, strict=True)
        names = told[0]
        return self._concatenate(draws, axis=1), {
            name: np.concatenate([part[name] for part in told], 1) for name in names
        }

    def _blocks(self, each: int, refine_steps: int) -> Iterator[Any]:
        """The draws alone."""
        return (draws for draws, _ in self._told_blocks(each, refine_steps))

    @abstractmethod
    def _constrain(self, blocks: Iterable[Any]) -> dict[str, Any]:
        """Blocks of flat draws -> site name -> native array (chains, draws, *site)."""

    @abstractmethod
    def _original(self, flat: Any) -> np.ndarray:
        """Flat draws -> the model's own unconstrained coordinates, same shape."""

    @abstractmethod
    def _potential_at(self, points: np.ndarray, problem: int = 0) -> np.ndarray:
        """Potential (...) on the full data at points (..., dim) of one of the sets of coordinates.

        The first one is that of the model's own unconstrained coordinates.
        """

    @abstractmethod
    def _terms_at(self, points: np.ndarray) -> Terms:
        """Log density of each site at points (n, dim) of the model's own unconstrained coordinates."""

    @abstractmethod
    def _flat(self, points: np.ndarray) -> Any:
        """Points (chains, draws, dim) of the sampler's coordinates as flat draws."""

    @abstractmethod
    def _host_rng(self) -> np.random.Generator:
        """A NumPy generator that takes up the fit's own random numbers."""

    def _keep(self) -> Any:
        """The draws of the measurement that were refined at least as much as served ones are by default."""
        measurement = self._fit.measurement
        return self._served(measurement.raw if self._default_refine_steps() == 0 else measurement.refined)

    def _kept_diverged(self) -> Any:
        """Which of the kept draws a diverging transition led to, (chains, draws); none where they are not refined."""
        measured = self._fit.measurement
        return self._served(measured.diverged & (self._default_refine_steps() > 0))

    def _kept_told(self) -> dict[str, Any]:
        """What is known of the transitions that the kept draws come from, NumPy arrays (chains, draws) by name.

        "diverging" always; where draws are refined also those of `pyro_dft.recipe.chains.STATISTICS`, "n_steps" (gradient
        steps) and "step_size" (of a leapfrog step, in whitened coordinates). An early file has none of these.
        """
        measured, told = self._fit.measurement, {"diverging": self._numpy(self._kept_diverged())}
        if self._default_refine_steps():
            own = self._with_kernel(measured.statistics, measured.gradients_each)
            told |= {name: self._served(value) for name, value in own.items()}
        return told

    def _with_kernel(
        self, statistics: Mapping[str, Any], gradients: int, samplers: slice = slice(None)
    ) -> dict[str, np.ndarray]:
        """Statistics of draws of the measured samplers, with what is one number for all draws of each."""
        found = {name: self._numpy(value) for name, value in statistics.items()}
        if not found:
            return {}
        shape = next(iter(found.values())).shape
        step_size = self._numpy(self._fit.measurement.step_size)[samplers]
        step_size = np.broadcast_to(step_size[:, None], shape)
        return {**found, "n_steps": np.full(shape, gradients), "step_size": step_size}

    def _served(self, draws: Any) -> Any:
        """Draws (chains, n, dim) of the chains from those of the measured samplers, of which a chain can have several."""
        modes = self._fit.modes
        return draws if modes is None else modes.kept(draws)

    def _shares(self) -> np.ndarray:
        """How often each of the measured samplers serves, over all chains."""
        modes = self._fit.modes
        if modes is None:
            return np.ones(self._fit.sampler.chains)
        # The mean over the chains: a mode that one of them gives next to nothing keeps its draws.
        return np.tile(modes.weights.mean(0), modes.chains)

    def _default_refine_steps(self) -> int:
        if self.settings.refine_steps is not None:
            return self.settings.refine_steps
        return 0 if self.settings.objective == "dft-paper" else self._fit.measurement.steps

    # Arrays

    @abstractmethod
    def _precision(self) -> float:
        """Relative rounding error of one number of the model's dtype."""

    @abstractmethod
    def _concatenate(self, arrays: Iterable[Any], axis: int = 0) -> Any:
        """Native arrays, one after the other."""

    @abstractmethod
    def _copied(self, value: Any) -> Any:
        """A copy of an array that may be changed in place; any other value as it is."""

    @abstractmethod
    def _same_array(self, a: Any, b: Any) -> bool | None:
        """Whether two arrays hold the same; None where one of them is no array."""

    def _snapshot(self, arguments: Arguments) -> Arguments:
        """Arguments of the model that stay as they are when their owner changes his arrays in place."""
        return copied(arguments, self._copied)

    @abstractmethod
    def _to_numpy(self, value: Any) -> np.ndarray | None:
        """A native array as a NumPy array; None for any other value."""

    @abstractmethod
    def _from_numpy(self, array: np.ndarray) -> Any:
        """A NumPy array as a native one."""

    def _numpy(self, value: Any) -> np.ndarray:
        array = self._to_numpy(value)
        return np.asarray(value) if array is None else array

    # Reports

    @abstractmethod
    def _model_groups(
        self, samples: dict[str, Any], log_likelihood: bool | None, predictive: bool, prior: bool
    ) -> dict[str, dict[str, Any]]:
        """ArviZ groups that need the model, for constrained draws (chains, draws, *site)."""

    @abstractmethod
    def _plate_dims(self) -> dict[str, list[str]]:
        """Names of the dimensions of each site."""

    def _invalid(self, points: np.ndarray) -> dict[str, dict[str, float]]:
        """What `pyro_dft.models.validity` finds at points (n, dim) of the sampler's coordinates; nothing for a potential."""
        posterior = self._posteriors[self._fit.problem]
        return posterior.invalid(self._flat(points))

    @abstractmethod
    def _facts(self) -> dict[str, Any]:
        """What `verdict.judge` wants to know about the fit."""

    # Files

    def _portrait(self, points: np.ndarray, rounding: float | None = None) -> Portrait:
        """The posterior at points (n, dim); with its rounding errors where the relative one of a number is given."""
        if rounding is None:
            return Portrait.of(points, self._potential_at, self._terms_at)
        return Portrait.with_rounding(points, self._potential_at, self._terms_at, rounding)

    def _fingerprints(self, arguments: Arguments) -> list[dict[str, Any]]:
        """Checksums of the model's arguments."""
        return fingerprints(arguments, self.model, self._to_numpy)

    @abstractmethod
    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and header entries that define the trained sampler."""

    @abstractmethod
    def _own_shapes(self, chains: int, dim: int) -> dict[str, tuple[int, ...]] | None:
        """Names and shapes of the arrays of a generator of the user's own; None where there is none."""

    @abstractmethod
    def _restore(self, content: Restored) -> Any:
        """A complete trainer from what a file says."""
