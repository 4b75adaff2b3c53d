"""The fit: Gaussian, KL training, DFT training, and the choice between what they gave.

`Trainer.step` makes one iteration of whatever phase is due, so that a progress bar, `DFT.step` and the warm-up of
`pyro.infer.MCMC` can all drive the same training.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_dft.checkpoint import pack_history, part, unpack_history
from pyro_dft.engine_torch import modes
from pyro_dft.engine_torch.custom import NO_NETWORKS, Networks
from pyro_dft.engine_torch.measure import Measurement, affordable_draws, compare, measure
from pyro_dft.engine_torch.precondition import GaussianFitter, Gaussians, polish
from pyro_dft.engine_torch.refine import refine, tune_step_size, whitening
from pyro_dft.engine_torch.result import Fit, Problem, Progress
from pyro_dft.engine_torch.sampler import Sampler
from pyro_dft.engine_torch.target import Target
from pyro_dft.engine_torch.threads import threads, worthwhile
from pyro_dft.engine_torch.train import NetworkTrainer
from pyro_dft.modes import Modes
from pyro_dft.settings import Settings

# Draws (over all chains) on which the refinement compares two samplers, and its transitions.
SELECTION_DRAWS = 2000
SELECTION_STEPS = 10


class Trainer:
    """Runs the phases of one fit.

    Args:
        problems: The target in one or more sets of coordinates (the same posterior): the Gaussian phase keeps those
            with the highest evidence bound.
        settings: See `pyro_dft.settings.Settings`.
        rng: Generator on the targets' device.
        networks: Networks that the user brings.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        settings: Settings,
        rng: torch.Generator,
        networks: Networks = NO_NETWORKS,
    ):
        self.problems, self.settings, self.rng = list(problems), settings, rng
        self.networks = networks
        self._told: list[tuple[str, float]] = []  # iterations of an earlier process
        self._resumed: tuple[dict[str, np.ndarray], dict[str, Any]] | None = None
        self.chains = self.problems[0].starts.shape[0]
        self.history: list[Progress] = []
        self.fit: Fit | None = None
        # Told where the training is; `so_far` may be called then.
        self.watch: Callable[[Progress], None] | None = None
        self._seconds: dict[str, float] = {}
        self._fitted: list[Gaussians] = []
        self._fitter: GaussianFitter | None = None
        self._network: NetworkTrainer | None = None
        self.gaussian_measured: Measurement | None = None
        self._kept: dict | None = None
        self._network_steps = 0
        self._gaussian_steps = 0
        self._threads: int | None = None
        self._gaussian_total = settings.precondition_steps * len(self.problems)
        if not settings.preconditioned:
            self._gaussian_total = 0
            self._start_without_gaussian()

    @property
    def done(self) -> bool:
        """Whether the fit is complete."""
        return self.fit is not None and self.phase == "done"

    @property
    def phase(self) -> str:
        """The phase of the next iteration."""
        if self.fit is None:
            return "gaussian"
        if self._network is None:
            return "done"
        s = self.settings
        if s.objective != "dft":
            return s.objective
        return "kl" if self._network_steps < s.num_steps - self._dft_steps else "dft"

    @property
    def _dft_steps(self) -> int:
        return round(self.settings.num_steps * self.settings.dft_fraction)

    @property
    def total(self) -> int:
        """Iterations planned; fewer once a phase has ended early or turned out not to be needed."""
        if self.fit is None:
            return self._gaussian_total + (0 if self.settings.train == "never" else self.settings.num_steps)
        return self._gaussian_steps + (
            self.settings.num_steps if self._network is not None else self._network_steps
        )

    @property
    def target(self) -> Target:
        """The target in the coordinates that were chosen (the first ones before that)."""
        return self.problems[self.fit.problem if self.fit else 0].target

    def step(self) -> Progress:
        """One iteration of the phase that is due."""
        phase, start, accounted = self.phase, time.perf_counter(), sum(self._seconds.values())
        if phase == "done":
            return self.history[-1]
        with threads(self._thread_count()):
            loss = self._gaussian_step() if phase == "gaussian" else self._network_step(phase)
        # The last step of a phase may have measured and selected as well, which is accounted for by itself.
        accounted = sum(self._seconds.values()) - accounted
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start - accounted
        self._look(self.phase, loss)
        self._tell(phase, loss)
        self._tell_earlier()
        return self.history[-1]

    def _tell(self, phase: str, loss: float) -> None:
        self.history.append(Progress(len(self.history) + 1, self.total, phase, loss))

    def _tell_earlier(self) -> None:
        for earlier in self._told:
            self._tell(*earlier)
        self._told = []

    def _thread_count(self) -> int:
        if self._threads is None:
            self._threads = 1
            if self.target.device.type == "cpu":
                # A batch as the network phases see it. Trying it is no work of the fit, and is not counted.
                x = self.problems[0].starts[:, :1].expand(-1, 2 * self.settings.batch_size, -1)
                names = ("gradient_evaluations", "data_rows", "nonfinite_evaluations")
                before = {name: getattr(self.target, name) for name in names}
                self._threads = worthwhile(lambda: self.target.evaluate(x, minibatch=True))
                vars(self.target).update(before)
        return self._threads

    def _look(self, phase: str, loss: float = math.nan) -> None:
        if self.watch is not None:
            made = self._gaussian_steps + self._network_steps
            self.watch(Progress(made, self.total, phase, loss))

    def so_far(self) -> Fit:
        """The sampler as it stands, without any measurement: training goes on from where it is."""
        if self.fit is not None:
            return self.fit if self._network is None else replace(self.fit, sampler=self._network.sampler())
        found = self._fitted or [self._fitter.current()]  # type: ignore[union-attr]
        best = int(np.argmax([float(g.elbo.max()) for g in found]))
        per_chain = found[best].elbo.reshape(self.chains, -1)
        chosen = per_chain.argmax(1).cpu().numpy() + np.arange(self.chains) * per_chain.shape[1]
        picked, dtype = found[best][chosen], self.problems[best].target.dtype
        sampler = Sampler(picked.mean.to(dtype), picked.scale.to(dtype))
        return Fit(sampler, best, ["gaussian"] * self.chains, found[best], chosen, [])

    def finish(self) -> Fit:
        """Ends the training here, as on Ctrl-C: the sampler trained so far, measured like a complete one."""
        with threads(self._thread_count()):
            return self._finish()

    def _finish(self) -> Fit:
        if self.fit is None:
            self._finish_gaussian(stopped=True)
        if self._network is not None:
            self._finish_network()
        assert self.fit is not None
        if self.fit.measurement is None:
            self._measure()
        self.fit.history, self.fit.seconds = self.history, self._seconds
        return self.fit

    def branch(self) -> Trainer:
        """A copy that can be finished, to draw from the sampler trained so far, while this trainer goes on."""
        other = copy.copy(self)
        other.watch = None
        other.history, other._fitted = list(self.history), list(self._fitted)
        other._seconds = dict(self._seconds)
        if self.fit is not None:
            other.fit = replace(self.fit, movement=dict(self.fit.movement))
        if self._network is not None:
            other._network = copy.copy(self._network)
            other._network.generator = copy.deepcopy(self._network.generator)
            other._network.average = copy.deepcopy(self._network.average)
        return other

    # The Gaussian phase: every set of coordinates in turn, each chain choosing among its own restarts.

    def _gaussian_step(self) -> float:
        if self._fitter is None:
            problem = self.problems[len(self._fitted)]
            self._fitter = self._new_fitter(problem.target, problem.starts.flatten(0, 1))
        self._fitter.step()
        self._gaussian_steps += 1
        loss = -self._fitter.best_elbo
        if self._fitter.done:
            self._fitted.append(self._polished(self._fitter))
            self._fitter = None
            self._look("gaussian", loss)
            if len(self._fitted) == len(self.problems):
                self._finish_gaussian()
        return loss

    def _finish_gaussian(self, stopped: bool = False) -> None:
        if self._fitter is not None:
            self._fitted.append(self._fitter.result())
            self._fitter = None
        if not self._fitted:
            self._gaussian_step()
            return self._finish_gaussian(stopped)
        elbos = [float(g.elbo.max()) for g in self._fitted]
        best = int(np.argmax(elbos))
        gaussians = self._fitted[best]
        per_chain = gaussians.elbo.reshape(self.chains, -1)
        own = per_chain.argmax(1).cpu().numpy()
        chosen = own + np.arange(self.chains) * per_chain.shape[1]
        target, found = self.problems[best].target, None
        if self.settings.modes == "auto" and not stopped:
            gaussians, several, found = self._separate_modes(target, gaussians)
            chosen = chosen if found is None else np.tile(several, self.chains)
        picked = gaussians[chosen]
        sampler = Sampler(picked.mean.to(target.dtype), picked.scale.to(target.dtype))
        self.fit = Fit(sampler, best, ["gaussian"] * sampler.chains, gaussians, chosen, elbos, modes=found)
        if stopped or self.settings.train == "never":
            return None
        if self.settings.train == "auto":
            self._look("measuring")
            measured = self.gaussian_measured = self._measure()
            self.fit.movement["gaussian"] = np.array(measured.chain_movement)
            surely = [float((abs(d.effects) - d.standard_errors).max()) for d in measured.drift_raw_by_chain]
            if max(surely) < self.settings.gate:
                return None
            self.fit.measurement = None
        self._start_network(target, sampler)
        return None

    def _start_network(self, target: Target, sampler: Sampler) -> None:
        self._network = NetworkTrainer(target, sampler, self.settings, self.rng, self.networks)
        if self._resumed is not None:
            self._take_up(*self._resumed)

    def _polished(self, fitter: GaussianFitter) -> Gaussians:
        """What a fitter found; behind a fit to minibatches each chain's best restart goes on with the full data."""
        found, target = fitter.result(), fitter.target
        if not target.minibatch:
            return found
        start = time.perf_counter()
        per_chain = found.elbo.reshape(self.chains, -1)
        chosen = per_chain.argmax(1).cpu().numpy() + np.arange(self.chains) * per_chain.shape[1]
        better = polish(target, found[chosen], self.rng, self.settings.full_data_budget)
        self._seconds["polish"] = self._seconds.get("polish", 0.0) + time.perf_counter() - start
        if not fitter.settled:  # the others are no optima, and say nothing about modes
            return better
        for values, own in zip(vars(found).values(), vars(better).values(), strict=True):
            values[chosen] = own
        return found

    def _separate_modes(
        self, target: Target, gaussians: Gaussians
    ) -> tuple[Gaussians, np.ndarray, Modes | None]:
        start = time.perf_counter()

        def restart(starts: Tensor) -> Gaussians:
            fitter = self._new_fitter(target, starts)
            while not fitter.done:
                fitter.step()
            return fitter.result()

        found = modes.find(
            target,
            gaussians,
            restart,
            chains=self.chains,
            leapfrog_steps=self.settings.leapfrog_steps,
            rng=self.rng,
        )
        self._seconds["modes"] = time.perf_counter() - start
        return found

    def _new_fitter(self, target: Target, starts: Tensor) -> GaussianFitter:
        """Restarts from (R, d) points, narrow and wide in turn."""
        scales = torch.tensor([0.1, 1.0], dtype=torch.float64, device=starts.device)
        scales = scales.repeat((len(starts) + 1) // 2)[: len(starts)]
        return GaussianFitter(target, starts, scales, steps=self.settings.precondition_steps, rng=self.rng)

    def _start_without_gaussian(self) -> None:
        target, starts = self.problems[0].target, self.problems[0].starts
        scale = (
            torch.eye(target.dim, dtype=target.dtype, device=target.device)
            .expand(self.chains, -1, -1)
            .clone()
        )
        sampler = Sampler(torch.zeros_like(starts[:, 0]), scale)
        none = torch.zeros(self.chains, dtype=torch.float64)
        empty = Gaussians(sampler.mean.double(), scale.double(), none - math.inf, none)
        self.fit = Fit(sampler, 0, ["gaussian"] * self.chains, empty, np.arange(self.chains), [])
        self._start_network(target, sampler)

    @property
    def networks_so_far(self) -> dict[str, Any]:
        """Generator and score network, those in training or those that it ended with; None before."""
        if self._network is not None:
            return {"generator": self._network.trained, "score_network": self._network.score_network}
        return {"generator": None, "score_network": None} if self.fit is None else self.fit.networks_so_far

    # A training in progress, to go on with in another process.

    @property
    def network_steps(self) -> int:
        """Iterations of the network phases made so far."""
        return self._network_steps

    def training_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Arrays and header of the network phases; None while there is nothing to go on with."""
        if self._network is None or self.fit is None:
            return None
        arrays = {f"network.{name}": value for name, value in self._network.state().items()}
        if self._kept is not None:
            arrays |= {f"kept.{name}": value.cpu().numpy() for name, value in self._kept.items()}
        own = [entry for entry in self.history if entry.phase != "gaussian"]
        arrays["losses"], runs = pack_history(own)
        return arrays, {"network_steps": self._network_steps, "phases": runs, "problem": self.fit.problem,
                        "phase_seconds": dict(self._seconds)}  # fmt: skip

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
        self._network.set_state(part(arrays, "network."))
        kept = part(arrays, "kept.")
        if kept:
            self._kept = {
                name: torch.as_tensor(np.array(v), device=self.rng.device) for name, v in kept.items()
            }
        self._network_steps, self._resumed = int(header["network_steps"]), None
        self._seconds = {phase: float(value) for phase, value in header["phase_seconds"].items()}
        self._told = unpack_history(arrays["losses"], header["phases"])

    # The network phases.

    def _network_step(self, phase: str) -> float:
        assert self._network is not None
        s = self.settings
        # Steps before the DFT phase: all of them where the objective has no such phase.
        first_part = s.num_steps - (self._dft_steps if s.objective == "dft" else 0)
        first, length = (first_part, self._dft_steps) if phase == "dft" else (0, first_part)
        if phase == "dft" and self._kept is None:
            self._kept = self._network.snapshot()
        loss = self._network.step(phase, (self._network_steps - first) / length)
        self._network_steps += 1
        if self._network_steps >= s.num_steps:
            self._finish_network()
        return loss

    def _finish_network(self) -> None:
        """Chooses between the Gaussian, the sampler before the DFT phase and the one after it, and ends the training."""
        assert self.fit is not None
        assert self._network is not None
        start, refining = time.perf_counter(), self._seconds.get("refinement", 0.0)
        network, fit, objective = self._network, self.fit, self.settings.objective
        # Not `fit.sampler`: an interrupt may have come in the middle of this before.
        gaussian = Sampler(network.mean, network.scale)
        fit.sampler = network.sampler()
        fit.score_network = network.score_network
        fit.fisher_gap = network.smoothed_gap()
        fit.objective = [objective] * fit.sampler.chains
        if objective == "dft":
            name = "kl" if self._kept is None else "dft"
            fit.objective = [name] * fit.sampler.chains
            if self._kept is None and self.target.minibatch:
                # Full data are costly: the drift test, which comes next anyway, says as well how far draws move.
                after = fit.movement[name] = np.array(self._measure().chain_movement)
            else:
                after = self._movement(name, fit.sampler)
            if self._kept is not None:
                final = network.snapshot()
                network.restore(self._kept)
                before = self._movement("kl", network.sampler())
                helped = after < before
                # The modes of a chain are judged together.
                each = np.repeat(helped, fit.sampler.chains // self.chains)
                network.restore(final, mask=each, otherwise=self._kept)
                fit.sampler = network.sampler()
                fit.objective = ["dft" if h else "kl" for h in each]
                after = np.where(helped, after, before)
            before_training = fit.movement.get("gaussian")
            if before_training is not None and before_training.mean() <= after.mean():
                fit.sampler, fit.objective = gaussian, ["gaussian"] * gaussian.chains
                fit.measurement = self.gaussian_measured
        self._network = None
        accounted = self._seconds.get("refinement", 0.0) - refining
        self._seconds["selection"] = time.perf_counter() - start - accounted

    def _measure(self) -> Measurement:
        assert self.fit is not None
        start = time.perf_counter()
        problem = self.problems[self.fit.problem]
        self.fit.measurement = measure(
            problem.target,
            self.fit.sampler,
            # As many for each mode as for each chain.
            self.settings.num_draws * self.fit.sampler.chains // self.chains,
            self.settings,
            self.rng,
            problem.original,
            self.fit.modes,
        )
        self._seconds["refinement"] = self._seconds.get("refinement", 0.0) + time.perf_counter() - start
        return self.fit.measurement

    def _movement(self, name: str, sampler: Sampler) -> np.ndarray:
        """How far a short refinement moves draws of each chain; the same random numbers for every sampler compared."""
        assert self.fit is not None
        problem, s = self.problems[self.fit.problem], self.settings
        rng = torch.Generator(device=problem.target.device)
        rng.manual_seed(self.rng.initial_seed() % 2**31 + 1)
        draws = affordable_draws(SELECTION_DRAWS, SELECTION_STEPS, s, problem.target)
        before = sampler.draw(max(draws // sampler.chains, 10), rng)
        scale, leapfrogs = whitening(before, sampler.scale), s.leapfrog_steps
        step_size = tune_step_size(problem.target, before, scale, leapfrog_steps=leapfrogs, rng=rng)
        after = refine(
            problem.target, before, scale, step_size, steps=SELECTION_STEPS, leapfrog_steps=leapfrogs, rng=rng
        ).draws
        drifts = compare(before, after, problem.original, self.fit.modes)[1:]
        self.fit.movement[name] = np.array([d.rms for d in drifts])
        return self.fit.movement[name]
