"""The fit, phase by phase: Gaussian, measurement, networks, selection, measurement.

`Trainer.step` hands out one iteration of whatever phase is due, so that a progress bar, `DFT.step` and the warm-up of an
MCMC class can all drive the same training. An engine may compute several iterations at once; that chunk is what an
interrupt can lose.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np

from pyro_dft.recipe.bank import Bank
from pyro_dft.recipe.budget import Budget
from pyro_dft.recipe.constants import FIRST_STEPS, FULL_RANK_LIMIT
from pyro_dft.recipe.engine import Engine
from pyro_dft.recipe.fit import Fit, Problem, Progress
from pyro_dft.recipe.gaussian_phase import Chosen, GaussianPhase
from pyro_dft.recipe.gaussians import Gaussians
from pyro_dft.recipe.history import taking_up
from pyro_dft.recipe.ledger import Ledger
from pyro_dft.recipe.measure import Measurement, measure
from pyro_dft.recipe.measure_chains import by_chains, measured_again, with_steps
from pyro_dft.recipe.network_phase import NetworkPhase
from pyro_dft.recipe.race import measured_by_chains
from pyro_dft.recipe.selection import Selection
from pyro_dft.recipe.subject import Subject
from pyro_dft.settings import Settings

# Most transitions of each draw where an ensemble of chains was given up; with separate modes each has as many draws.
GIVEN_UP_STEPS = 16


class Trainer:
    """Runs the phases of one fit.

    Args:
        engine: Of the targets.
        problems: The target in one or more sets of coordinates (the same posterior): the Gaussian phase keeps those
            with the highest evidence bound.
        settings: See `pyro_dft.settings.Settings`.
        rng: The engine's random number generator.
        networks: Networks that the user brings; None for the engine's own.
        fit: A fit whose sampler was trained elsewhere, and which is only measured here.

    Attributes:
        history: `Progress` of every iteration.
        fit: The fit; None during the Gaussian phase.
        watch: Called with the `Progress`; it may call `so_far`.
        gaussian_measured: The drift test of the Gaussian, where one was made.
        chains: C.
        lazy: Whether networks that only raw draws would need may be trained later, see `put_off`.
        kept_alone: Whether nobody will ask for new draws: what these need is not measured then.
        put_off: Whether that is so: the chains gave all that is served, and `take_up` trains the networks.
    """

    def __init__(
        self,
        engine: Engine,
        problems: Sequence[Problem],
        settings: Settings,
        rng: Any,
        networks: Any = None,
        *,
        fit: Fit | None = None,
    ):
        self.engine, self.problems, self.settings, self.rng = engine, list(problems), settings, rng
        self.networks = networks
        self.chains = self.problems[0].starts.shape[0]
        self.history: list[Progress] = []
        self.fit = fit
        self.watch: Callable[[Progress], None] | None = None
        self.gaussian_measured: Measurement | None = None
        self.lazy = self.put_off = self.kept_alone = False
        self.budget = Budget(settings, self._evaluations)
        self._ledger = Ledger(self._evaluations, gradients={"start": self._evaluations()})
        self._selection_seed = engine.selection_seed(rng)
        self._ready: deque[tuple[str, float]] = deque()
        self._told: list[tuple[str, float]] = []  # iterations of an earlier process
        self._resumed: tuple[dict[str, np.ndarray], dict[str, Any]] | None = None
        self._threads: int | None = None
        self._gaussian = GaussianPhase(engine, self.problems, settings, rng, self._ledger)
        self._network: NetworkPhase | None = None
        self._network_steps = 0
        if fit is None and not settings.preconditioned:
            self._gaussian.total = 0
            self._start_without_gaussian()

    # Where the training is

    @property
    def done(self) -> bool:
        """Whether the fit is complete."""
        return self.fit is not None and self._network is None and not self._ready

    @property
    def phase(self) -> str:
        """The phase of the next iteration."""
        if self.fit is None:
            return "gaussian"
        return "done" if self._network is None else self._network.phase

    @property
    def total(self) -> int:
        """Iterations planned; fewer once a phase has ended early or turned out not to be needed."""
        if self.fit is None:
            return self._gaussian.total + (0 if self.settings.train == "never" else self.settings.num_steps)
        rest = self.settings.num_steps if self._network is not None else self._network_steps
        return self._gaussian.steps + rest

    @property
    def network_steps(self) -> int:
        """Iterations of the network phases made so far."""
        return self._network_steps if self._network is None else self._network.steps

    @property
    def target(self) -> Any:
        """The target in the coordinates that were chosen (the first ones before that)."""
        return self.problems[self.fit.problem if self.fit else 0].target

    @property
    def networks_so_far(self) -> dict[str, Any]:
        """Generator and score network, in training or trained; None before."""
        if self._network is not None:
            now = self._network.networks
            return {"generator": now.trained, "score_network": now.trained_score}
        return {"generator": None, "score_network": None} if self.fit is None else self.fit.networks_so_far

    def so_far(self) -> Fit:
        """The sampler as it stands, without any measurement: training goes on from where it is."""
        if self.fit is not None:
            now = self._network
            return self.fit if now is None else replace(self.fit, sampler=now.networks.sampler())
        return self._fit_of(replace(self._gaussian.so_far(), elbos=[]))

    # Going on

    def step(self) -> Progress:
        """One iteration of the phase that is due; the first of a chunk computes all of it."""
        if not self._ready:
            phase = self.phase
            if phase == "done":
                return self.history[-1]
            if self.history and self.budget.over():
                self.end()
                return self.history[-1]
            with self._working(), self._ledger.phase(phase):
                losses = self._gaussian_chunk() if phase == "gaussian" else self._network_chunk()
            self._ready.extend((phase, loss) for loss in losses)
            self._look(self.phase, losses[-1])
        self._tell(*self._ready.popleft())
        if not self._ready:
            self._tell_earlier()
        return self.history[-1]

    def announcing(
        self, entered: Callable[[str], None], noted: Callable[[str], None]
    ) -> AbstractContextManager[None]:
        """Calls `entered` with the name of each phase that begins in here, and `noted` with how far it has come."""
        return self._ledger.announcing(entered, noted)

    def end(self) -> None:
        """Ends the training here: the sampler trained so far, not measured yet."""
        with self._working():
            if self.fit is None:
                self._gaussian.stop()
                self._finish_gaussian(stopped=True)
            if self._network is not None:
                self._finish_network()

    def finish(self) -> Fit:
        """Ends the training here, as on Ctrl-C: the sampler trained so far, measured like a complete one."""
        while self._ready:
            self.step()
        self.end()
        assert self.fit is not None
        if self.fit.measurement is None:
            with self._working(), self._ledger.phase("refinement"):
                self.fit.measurement = self._with_steps(self._measure())
        self.fit.history = self.history
        self.fit.seconds, self.fit.gradients = self._ledger.seconds, self._ledger.gradients
        self.fit.cut = self.budget.met
        return self.fit

    def take_up(self) -> None:
        """Begins the training of networks that was put off: call `step` until `done`, then `finish`. The chains' states stay."""
        assert self.fit is not None
        if self.put_off:
            self.put_off = False
            self.budget.go_on()  # draws since then, and the time until now, are no part of the fit
            self.fit = replace(self.fit, measurement=None, movement=dict(self.fit.movement))
            with self._working():
                self._start_network()

    def branch(self) -> Trainer:
        """A copy that can be finished, to draw from the sampler trained so far, while this trainer goes on."""
        other = copy.copy(self)
        other.watch = None
        other.history, other._ready = list(self.history), deque(self._ready)
        other._ledger = self._ledger.copy()
        other._gaussian = self._gaussian.branch(other._ledger)
        if self.fit is not None:
            other.fit = replace(self.fit, movement=dict(self.fit.movement))
        if self._network is not None:
            other._network = self._network.branch()
        return other

    def _evaluations(self) -> int:
        return sum(problem.target.gradient_evaluations for problem in self.problems)

    def _working(self) -> Any:
        """A context with as many processor threads as are worth using."""
        if self._threads is None:
            self._threads = self.engine.thread_count(self.problems[0], self.settings.batch_size)
        return self.engine.threads(self._threads)

    def _tell(self, phase: str, loss: float) -> None:
        self.history.append(Progress(len(self.history) + 1, self.total, phase, loss))

    def _tell_earlier(self) -> None:
        earlier, self._told = self._told, []
        for entry in earlier:
            self._tell(*entry)

    def _look(self, phase: str, loss: float = math.nan) -> None:
        if self.watch is not None:
            self.watch(Progress(self._gaussian.steps + self.network_steps, self.total, phase, loss))

    # The phases

    def _gaussian_chunk(self) -> list[float]:
        losses = self._gaussian.advance()
        if self._gaussian.complete:
            self._look("gaussian", losses[-1])
            self._finish_gaussian()
        return losses

    def _finish_gaussian(self, stopped: bool = False) -> None:
        s = self.settings
        self.fit = self._fit_of(
            self._gaussian.choose(search=s.modes == "auto" and not stopped and not self.budget.over())
        )
        chains = by_chains(s, self.target)
        if stopped or (s.train == "never" and not chains):
            return
        if s.train == "auto" or chains:
            self._look("measuring")
            with self._ledger.phase("refinement"):
                measured = self.fit.measurement = self._with_steps(self._matched(self._measure()))
            self.gaussian_measured = measured
            if s.train != "always":  # else it is no candidate
                self.fit.movement["gaussian"] = np.array(measured.chain_movement)
            good = measured.near(s.experimental.gate) and (not chains or measured.complete)
            large = chains and self.target.dim > FULL_RANK_LIMIT
            if s.train == "never" or (s.train == "auto" and good) or self.budget.over():
                return
            if s.train == "auto" and large and not measured.complete:
                return  # where chains are not done in so many dimensions, a network's draws are no nearer
            self.put_off = self.lazy and s.train == "auto" and measured.complete
            if self.put_off:
                self.budget.pause()
                return
            self.fit.measurement = None
        self._start_network()

    def _matched(self, measured: Measurement) -> Measurement:
        """Takes the Gaussian with the moments of the particles instead, where these can be trusted and it is nearer to them."""
        assert self.fit is not None
        if measured.ensemble is None or not measured.trusted:
            return measured
        sampler = measured.ensemble.gaussian()
        better = measured_again(measured, sampler, self.rng)
        if np.mean(better.chain_movement) > np.mean(measured.chain_movement):
            return measured
        self.fit.sampler = sampler
        return better

    def _with_steps(self, measured: Measurement) -> Measurement:
        """See `with_steps`."""
        if self.kept_alone and measured.ensemble is not None:
            return replace(measured, steps=FIRST_STEPS)
        return with_steps(measured, self.settings)

    def _fit_of(self, chosen: Chosen) -> Fit:
        sampler = chosen.sampler(self.engine, self.problems)
        objective = ["gaussian"] * sampler.chains
        return Fit(
            sampler, chosen.problem, objective, chosen.gaussians, chosen.index, chosen.elbos, modes=chosen.modes,
            shares=chosen.shares,
        )  # fmt: skip

    def _start_without_gaussian(self) -> None:
        none = Gaussians.none(self.chains, self.problems[0].target.dim)
        self.fit = self._fit_of(Chosen(0, none, np.arange(self.chains), []))
        self._start_network()

    def _start_network(self) -> None:
        assert self.fit is not None
        self._network = NetworkPhase(
            self.engine, self.target, self.fit.sampler, self.settings, self.rng, self.networks, self._bank()
        )
        if self._resumed is not None:
            with taking_up(self._resumed[1].get("path")):
                self._take_up(*self._resumed)

    def _bank(self) -> Bank | None:
        """Scores to train on, where chains that forgot their start have seen where the posterior is."""
        measured = self.gaussian_measured
        if self.settings.objective != "auto" or measured is None or measured.ensemble is None:
            return None
        return measured.ensemble.particles.bank if measured.trusted else None

    def _network_chunk(self) -> list[float]:
        assert self._network is not None
        losses = self._network.advance()
        if self._network.complete:
            self._finish_network()
        return losses

    def _finish_network(self) -> None:
        """Chooses the sampler that is served, and ends the training."""
        assert self.fit is not None
        assert self._network is not None
        problem = self.problems[self.fit.problem]
        selection = Selection(self.engine, problem, self.settings, self._selection_seed, self.fit)
        with self._ledger.phase("selection"):
            selection.run(self._network, self.chains, self.gaussian_measured)
        substitute = self._network.substitute
        self.fit.surrogate_error = None if substitute is None else substitute.error
        known = self.gaussian_measured
        # Chains that have forgotten the Gaussian would find nothing else from the network's draws.
        if self.fit.measurement is None and known is not None and known.complete:
            with self._ledger.phase("refinement"):
                self.fit.measurement = self._with_steps(measured_again(known, self.fit.sampler, self.rng))
        self._network_steps, self._network = self._network.steps, None

    def _subject(self, fit: Fit) -> Subject:
        problem, s = self.problems[fit.problem], self.settings
        # Each mode of a chain gets as many draws as a chain without modes.
        draws = s.num_draws * fit.sampler.chains // self.chains
        return Subject(
            self.engine, problem.target, fit.sampler, draws, s, self.rng, problem.original, fit.modes, self.budget,
            fit.origins(), self._ledger.noted,
        )  # fmt: skip

    def _measure(self) -> Measurement:
        """Inside of the phase "refinement"."""
        assert self.fit is not None
        if not by_chains(self.settings, self.target) or self.gaussian_measured is not None:
            # Where chains have failed already, a network's draws need few transitions, or they do not help.
            apart = 1 if self.fit.modes is None else self.fit.modes.count
            most = None if self.gaussian_measured is None else max(FIRST_STEPS, GIVEN_UP_STEPS // apart)
            measured = measure(self._subject(self.fit), most)
        else:
            measured, self.fit = measured_by_chains(self.fit, self._rival, self._subject)
        self.fit.measurement = measured
        self.budget.reserved = 0.0
        return measured

    def _rival(self) -> Fit | None:
        assert self.fit is not None
        found = self._gaussian.rival(self.fit.problem) if self.fit.modes is None else None
        return None if found is None else self._fit_of(found)

    # A training in progress, to go on with in another process

    def training_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Arrays and header of the network phases; None while there is nothing to go on with, and within a chunk."""
        if self._network is None or self.fit is None or self._ready:
            return None
        arrays, header = self._network.state(self.history)
        return arrays, header | {
            "problem": self.fit.problem,
            "phase_seconds": self._ledger.seconds,
            "phase_gradients": self._ledger.gradients,
        }

    def resume(self, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> None:
        """Goes on with what `training_state` gave, once the networks are due."""
        self._resumed = arrays, header
        if self._network is not None:
            self._take_up(arrays, header)
            self._tell_earlier()

    def _take_up(self, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> None:
        assert self._network is not None
        assert self.fit is not None
        if header["problem"] != self.fit.problem:
            raise ValueError("the networks were trained in other coordinates")
        self._told, self._resumed = self._network.resume(arrays, header), None
        self._ledger.go_on_from(header["phase_seconds"], header.get("phase_gradients", {}))
