"""The training of a sampler, as a run or by single steps, and its result."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pyro_dft import links, messages
from pyro_dft.errors import FidelityWarning, ModelError, NotFittedError, first_line, warn
from pyro_dft.interface import memory_check
from pyro_dft.interface.arguments import Arguments, unchanged
from pyro_dft.interface.backend import Backend
from pyro_dft.interface.blocks import new_blocks
from pyro_dft.interface.checkpoint import Checkpoint, check_folder
from pyro_dft.interface.exclusive import exclusive
from pyro_dft.interface.progress import ProgressBar
from pyro_dft.interface.recognition import CHECK_POINTS
from pyro_dft.interface.result import Making, Result
from pyro_dft.judging import verdict
from pyro_dft.models.validity import DRAWS
from pyro_dft.recipe.facts import facts
from pyro_dft.recipe.fit import Fit
from pyro_dft.settings import check_count

# Bits of a seed that both frameworks' generators take.
SEED_BITS = 63


class Training:
    """Trains a sampler, survives interrupts and resumes from checkpoints.

    Args:
        backend: The model and its framework.

    Attributes:
        arguments: Arguments of the model.
        trainer: The recipe's trainer, in progress or complete; None before.
        checkpoint: The file that the training in progress is written to, or None.
        whole: Whether the training is one `run`, not single steps that may go on.
        seconds: Wall seconds that it took.
        cpu_seconds: Processor seconds that it took.
        result: The result; None before the end, and after each further step.
    """

    def __init__(self, backend: Backend):
        self.backend, self.options = backend, backend.options
        self.forget()

    def forget(self) -> None:
        """Back to an untrained sampler."""
        self.arguments: Arguments = ((), {})
        self.trainer: Any = None
        self.checkpoint: Checkpoint | None = None
        self.whole = False
        self.failure = ""  # of the last run, in a line
        self.seconds = self.cpu_seconds = 0.0
        self.result: Result | None = None
        self._process = os.getpid()  # where the random numbers were set up: a fork of it would repeat them

    # As a run

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """All of `DFT.run`."""
        planned = 0
        if self.options.checkpoint is not None:
            check_folder(self.options.checkpoint)
        with exclusive(), self._all_or_nothing(), self._timed():
            self.prepare(args, kwargs)
            self.whole = True
            self.trainer.lazy = self._lazy
            with (
                self.backend.session(),
                ProgressBar(self.trainer.total, disable=self.options.disable_progbar) as bar,
                self.trainer.announcing(bar.entered, bar.noted),
            ):
                try:
                    self.resume()
                    while not self.trainer.done:
                        bar.update(self.trainer.step())
                        if self.checkpoint is not None:
                            self.checkpoint.after_step(self.trainer)
                    bar.status("measuring")
                    self._measure(self.trainer)
                except KeyboardInterrupt:
                    planned = self.trainer.total
                    bar.status("interrupted, measuring")
                    self._measure(self.trainer)
        if planned:
            warn(
                f"training was interrupted after {len(self.trainer.history)} of {planned} iterations: the "
                "sampler trained so far is kept; see diagnostics()",
                FidelityWarning,
            )
        self._warn()

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forgets an earlier fit and sets up a new training, without a step of it."""
        self.forget()
        backend = self.backend
        arguments = backend.snapshot((args, kwargs))
        backend.read(*arguments)
        memory_check.check_fit(
            self.options.settings, self.options.num_chains, backend.layout.dim, backend.itemsize
        )
        with backend.session():
            self.trainer = backend.start()
        self.arguments = arguments
        if self.options.callback is not None:
            self.trainer.watch = self._watcher(self.options.callback)

    def resume(self) -> None:
        """Resumes the training that the checkpoint holds, if there is one."""
        if self.options.checkpoint is None:
            return
        backend = self.backend
        owner = {
            "framework": backend.framework,
            "settings": self.options.settings.to_json(),
            "seed": backend.seed_words(),
            "num_chains": self.options.num_chains,
            "layout": backend.layout.to_json(),
        }
        if backend.amounts:
            owner["amounts"] = dict(backend.amounts)
        points = self.trainer.problems[0].starts.reshape(-1, backend.layout.dim)[:CHECK_POINTS]
        now = backend.portrait(backend.arrays.numpy(points), backend.precision)
        sums = backend.fingerprints(self.arguments)
        self.checkpoint = Checkpoint(self.options.checkpoint, self.options.checkpoint_every, owner, now, sums)
        self.checkpoint.resume(self.trainer)

    # By steps

    def step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        """All of `DFT.step`."""
        with exclusive(), self._timed():
            if self.trainer is None or self.whole:
                if self.options.checkpoint is not None:
                    check_folder(self.options.checkpoint)
                with self._all_or_nothing():
                    self.prepare(args, kwargs)
                    with self.backend.session():
                        self.resume()
            with self.backend.session():
                if not unchanged(self.arguments, (args, kwargs), self.backend.arrays.same):
                    arguments = self.backend.snapshot((args, kwargs))
                    self.backend.replace_data(*arguments, self.trainer)
                    self.arguments = arguments
                self.result = None
                progress = self.trainer.step()
                if self.checkpoint is not None:
                    self.checkpoint.after_step(self.trainer)
                return progress.loss

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Sets up a training for a kernel, which then drives it with `advance` in place of `run`."""
        with exclusive(), self._all_or_nothing(), self._timed():
            self.prepare(args, kwargs)
            self.trainer.lazy = self._lazy

    def advance(self, until: float) -> float | None:
        """Trains until a share `until` of the planned iterations is made; returns the last loss, None where no step was due."""
        trainer, loss = self.trainer, None
        with exclusive(), self._all_or_nothing(), self._timed(), self.backend.session():
            while not trainer.done and len(trainer.history) < until * trainer.total:
                loss = trainer.step().loss
        return loss

    def take_over(self, args: tuple[Any, ...], kwargs: dict[str, Any], fit: Fit) -> None:
        """Measures a sampler that was trained elsewhere, and serves its draws as after `run`."""
        with exclusive(), self._all_or_nothing(), self._timed():
            self.prepare(args, kwargs)
            self.trainer = self.backend.measurer(fit)
            self.whole = True
            self._measure(self.trainer)
        self._warn()

    def adopt(self, trainer: Any, arguments: Arguments, report: verdict.Diagnostics) -> None:
        """Takes over a complete training with its diagnostics, as a file or a copy has them."""
        self.trainer, self.arguments = trainer, arguments
        self.seconds, self.cpu_seconds = float(report["seconds"]), float(report["cpu_seconds"])
        result = Result(trainer.fit, self.options.settings, self.backend.arrays)
        result.report = report
        self.whole, self._process, self.result = True, os.getpid(), result

    # On the way

    def _watcher(
        self, callback: Callable[[Any, Callable[[int], dict[str, Any]]], None]
    ) -> Callable[[Any], None]:
        """A function that calls the user's callback every so many iterations, and where the phase changes."""
        last: tuple[str, int] = ("", 0)

        def watch(progress: Any) -> None:
            nonlocal last
            if progress.phase != last[0] or progress.step - last[1] >= self.options.callback_every:
                last = progress.phase, progress.step
                callback(progress, self._draw_so_far)

        return watch

    def _draw_so_far(self, num_samples: int) -> dict[str, Any]:
        """Raw draws of the sampler in training, new ones at each call, from a random number generator of their own."""
        check_count("num_samples", num_samples, 1)
        backend, fit, each = self.backend, self.trainer.so_far(), -(-num_samples // self.options.num_chains)
        blocks = (draws for draws, _ in new_blocks(backend, fit, each, Making(0), rng=backend.callback_rng))
        return {
            name: value.reshape((value.shape[0] * value.shape[1], *value.shape[2:]))[:num_samples]
            for name, value in backend.constrain(fit.problem, blocks).items()
        }

    @property
    def _lazy(self) -> bool:
        """Whether networks may be trained later: not the user's own ones, and not where a checkpoint is to keep them."""
        return self.options.checkpoint is None and not self.options.brings_networks

    # The result

    def trained(self) -> Result:
        """The result; a training by single steps is measured in its present state, and can go on after that.

        Raises:
            NotFittedError: there is no trained sampler.
        """
        result = self.result
        if result is not None:
            if self._process != os.getpid():  # a fork would repeat the draws of its parent
                self.reseed(None)
            return result
        with exclusive():
            if self.result is not None:  # by now: another thread was training it
                return self.result
            if self.failure:
                raise NotFittedError(
                    f"there is no trained sampler: the last run failed ({self.failure}); call run(...) again"
                )
            if self.trainer is None or not self.trainer.history:
                raise NotFittedError("the sampler is not trained yet: call run(...) first")
            with self._timed(), self.backend.session():
                found = self._measure(self.trainer if self.trainer.done else self.trainer.branch())
            self._warn()
            return found

    def complete(self) -> Result:
        """The result with networks trained, which `run` may have put off where the chains gave all that is kept.

        The kept draws stay as they are; the diagnostics of raw draws, and the refinement that these need, are measured again.
        """
        result = self.trained()
        if not self.trainer.put_off:
            return result
        before = result.report["warnings"]
        with exclusive(), self._timed(), self.backend.session():
            trainer = self.trainer.branch()  # an interrupt leaves the networks put off
            trainer.watch = self.trainer.watch
            trainer.take_up()
            bar = ProgressBar(trainer.total, disable=self.options.disable_progbar)
            with bar, trainer.announcing(bar.entered, bar.noted):
                while not trainer.done:
                    bar.update(trainer.step())
                result = self._measure(trainer)
            self.trainer = trainer
        if result.report["warnings"] != before:
            self._warn()
        return result

    def report(self) -> verdict.Diagnostics:
        """The diagnostics of the result, with its cost until now: draws taken since the fit cost gradients too."""
        report = self.trained().report
        report |= self.backend.evaluations()
        report |= {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
        return report

    def finish(self) -> Result:
        """Measures the training in its present state, for a caller who has driven it."""
        return self._measure(self.trainer)

    def reseed(self, seed: int | None) -> None:
        """Starts the random numbers of the draws to come anew."""
        self.backend.set_seed(seed_of(seed))
        self._process = os.getpid()

    def _measure(self, trainer: Any) -> Result:
        """Ends the training, measures the sampler and keeps the draws of the measurement."""
        self.result = None
        result = Result(trainer.finish(), self.options.settings, self.backend.arrays)
        result.report = self._judged(result)
        self.result = result
        return result

    def _judged(self, result: Result) -> verdict.Diagnostics:
        backend, fit = self.backend, result.fit
        used = backend.posteriors[fit.problem]
        measured = facts(
            backend.engine,
            fit,
            backend.problems,
            own=backend.posteriors[0],
            used=used,
            served=result.kept,
            settings=self.options.settings,
            refine_steps=result.refine_steps,
        )
        costs = {
            **backend.evaluations(),
            "iterations": len(fit.history),
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "phase_seconds": dict(fit.seconds),
            "phase_gradients": dict(fit.gradients),
        }
        invalid = used.invalid(backend.flat(fit.problem, self._some(result)))
        return verdict.judge({**measured, **costs, "invalid": invalid})

    def _some(self, result: Result) -> np.ndarray:
        """Some of the kept draws, (n, dim), for the check of the model's parameters."""
        kept = self.backend.arrays.numpy(result.kept)
        some = kept.reshape(-1, kept.shape[-1])
        return some[:: max(1, len(some) // DRAWS)][:DRAWS]

    def _warn(self) -> None:
        report = None if self.result is None else self.result.report
        if report and report["warnings"]:
            lines = "\n".join(f"  - {line}" for line in report["warnings"])
            see = f"What it means, and what to try: {links.alarm(report['alarms'][0])}"
            warn(f"the fit is {report['status']}:\n{lines}\n{see}", FidelityWarning)

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """A failure leaves no half-trained sampler that could pass for a good one."""
        try:
            yield
        except Exception as error:
            where = self._where()
            told = ModelError(f"{error}; {where}") if where and isinstance(error, ModelError) else None
            if where and told is None:
                error.add_note(where)
            self.forget()
            self.failure = first_line(told or error)
            if told is None:
                raise
            raise told from error

    def _where(self) -> str:
        """Where a training in progress is, in words; "" before it."""
        trainer = self.trainer
        if trainer is None or not trainer.history:
            return ""
        return messages.where(trainer.phase, len(trainer.history), trainer.total)

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - wall
            self.cpu_seconds += time.process_time() - cpu


def seed_of(seed: int | None) -> int:
    """A seed of 63 bits, from one of any size, or from the system."""
    words = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    return int(words[0]) >> (64 - SEED_BITS)
