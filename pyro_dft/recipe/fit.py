"""What a fit is: the problem that goes in, the progress on the way, the trained sampler that comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyro_dft.recipe.chains import STATISTICS
from pyro_dft.recipe.engine import Engine
from pyro_dft.recipe.gaussians import Gaussians
from pyro_dft.recipe.measure import Measurement, compare
from pyro_dft.recipe.modes import Modes
from pyro_dft.recipe.subject import Origin


def _same(x: Any) -> Any:
    return x


@dataclass
class Problem:
    """A target in one set of coordinates.

    Attributes:
        target: The target.
        starts: Starting points of every chain, native (C, restarts, d).
        original: Maps native (n, d) points to the model's own unconstrained coordinates, without full turns of angles.
    """

    target: Any
    starts: Any
    original: Callable[[Any], Any] = _same


@dataclass(frozen=True)
class Progress:
    """What one training iteration reports.

    Attributes:
        step: Iterations made so far.
        total: Iterations planned; fewer are made where the Gaussian is right already.
        phase: "gaussian", "kl", "dft", "dft-paper", "fisher-partial" or "done"; to a callback also "measuring".
        loss: The Fisher gap J(s_q) - J(s_phi) on fresh draws, mean over chains; minus the evidence bound in the
            "gaussian" phase.
    """

    step: int
    total: int
    phase: str
    loss: float


@dataclass
class Fit:
    """A trained sampler and how it came about.

    Where there are K separate modes, each of the C chains has K samplers, one behind the other.

    Attributes:
        sampler: The trained sampler.
        problem: Index of the set of coordinates that it was trained in.
        objective: What the returned samplers ended with: "gaussian", "kl", "dft", ...
        history: `Progress` of every iteration.
        movement: How far the refinement moved the draws of each candidate (root mean square over coordinates of the
            shifts in mean and log sd, in sds, noise subtracted), by name, (C,) each.
        optima: The Gaussians of all restarts, (C * restarts).
        chosen: Index into `optima` of the one that each sampler started from.
        elbos: Best evidence bound in each set of coordinates.
        fisher_gap: Last smoothed Fisher gap, (C,); NaN without a network.
        seconds: Wall seconds by phase.
        gradients: Gradient evaluations of the model by phase.
        measurement: The drift test of the returned sampler.
        modes: How often each of several samplers of a chain serves; None where there is one for each.
        shares: Optima of each mode, as indices into `optima`, and what share of it each holds; none where these are not known.
        score_network: The score network at the end of the training; None without one, and from a file.
        surrogate_error: Error of the surrogate that the networks were trained on, at draws of the generator late in the training,
            relative to the size of the scores there; None where they were trained on the model.
        cut: The limit that ended the fit before its time: "max_gradients", "max_seconds" or None.
    """

    sampler: Any
    problem: int
    objective: list[str]
    optima: Gaussians
    chosen: np.ndarray
    elbos: list[float]
    history: list[Progress] = field(default_factory=list)
    movement: dict[str, np.ndarray] = field(default_factory=dict)
    fisher_gap: np.ndarray = field(default_factory=lambda: np.array([math.nan]))
    seconds: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, int] = field(default_factory=dict)
    measurement: Measurement | None = None
    modes: Modes | None = None
    score_network: Any = None
    cut: str | None = None
    surrogate_error: float | None = None
    shares: Sequence[dict[int, float]] = ()

    def origins(self) -> list[Origin]:
        """Where particles of each mode start; none where that is at one optimum each."""
        return [Origin(self.optima[np.array(list(own))], np.array(list(own.values()))) for own in self.shares]

    @property
    def networks_so_far(self) -> dict[str, Any]:
        """Generator and score network."""
        return {"generator": self.sampler.generator, "score_network": self.score_network}


@dataclass(frozen=True)
class Restored:
    """A trained sampler as a file has it.

    Attributes:
        index: Which of the sets of coordinates it was trained in.
        steps: Transitions that new draws need.
        renewed: Whether these start at draws that are kept.
        leapfrog_steps: Gradient steps of each.
        gradients_each: Gradient steps that made each of the kept draws; 0 where the file does not say.
        objective: What it ended with, for each sampler.
        modes: How often each of several samplers of a chain serves, or None.
        sampler: Its arrays, by name.
        measured: Arrays of its measurement, by name: `raw`, `halfway` and `refined` draws, `scale`, `step_size`, `diverged`, and
            numbers of the draws' transitions.
    """

    index: int
    steps: int
    renewed: bool
    leapfrog_steps: int
    gradients_each: int
    objective: list[str]
    modes: Modes | None
    sampler: dict[str, np.ndarray]
    measured: dict[str, Any]


class FittedTrainer:
    """Stands in for a `Trainer` whose fit was read from a file: complete, with nothing left to train.

    Args:
        engine: Of the sampler.
        problems: As for `Trainer`.
        sampler: The sampler.
        content: What the file says of it, with a measurement in the engine's arrays.
    """

    done, phase, total, put_off = True, "done", 0, False

    def __init__(self, engine: Engine, problems: Sequence[Problem], sampler: Any, content: Restored):
        self.problems = list(problems)
        self.history: list[Progress] = []
        kept, problem = content.measured, problems[content.index]
        nothing = compare(engine, kept["refined"], kept["refined"], problem.original, content.modes)
        log_density, _ = problem.target.evaluate(kept["refined"])
        measurement = Measurement(
            content.steps, kept["raw"], kept["halfway"], kept["refined"], log_density, nothing[0], nothing[0], nothing[1:],
            kept["scale"], kept["step_size"], np.ones(sampler.chains), 0.0, 0.0, kept["diverged"], content.leapfrog_steps,
            statistics={name: kept[name] for name in STATISTICS if name in kept}, gradients_each=content.gradients_each,
            renewed=content.renewed,
        )  # fmt: skip
        none = np.zeros(0)
        self.fit = Fit(
            sampler, content.index, content.objective, Gaussians(none, none, none, none), np.zeros(0), [],
            measurement=measurement, modes=content.modes,
        )  # fmt: skip

    @property
    def target(self) -> Any:
        """The target in the sampler's coordinates."""
        return self.problems[self.fit.problem].target

    @property
    def networks_so_far(self) -> dict[str, Any]:
        """Generator and score network."""
        return self.fit.networks_so_far

    def finish(self) -> Fit:
        """The fit as it is."""
        return self.fit
