"""The training of a sampler, as a run or by single steps, and the state that it leaves."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from pyro_dft import links, messages
from pyro_dft.errors import FidelityWarning, ModelError, NotFittedError, first_line
from pyro_dft.interface import memory_check
from pyro_dft.interface.arguments import unchanged
from pyro_dft.interface.checkpoint import Checkpoint, check_folder
from pyro_dft.interface.exclusive import exclusive
from pyro_dft.interface.persistence import Files, seed_of
from pyro_dft.interface.progress import ProgressBar
from pyro_dft.interface.recognition import CHECK_POINTS
from pyro_dft.judging import verdict
from pyro_dft.models.validity import DRAWS
from pyro_dft.settings import check_count


class Training(Files):
    """Train, interrupt, resume."""

    checkpoint: str | os.PathLike[str] | None
    checkpoint_every: int
    callback_every: int

    def _forget(self) -> None:
        """Back to an untrained sampler."""
        self._arguments = ((), {})
        self._trainer = None
        self._checkpoint: Checkpoint | None = None
        self._process = os.getpid()
        self._whole = False  # whether the training was one `run`, and not single steps that may go on
        self._failure = ""
        self._seconds = self._cpu_seconds = 0.0
        self._drop_results()

    def _drop_results(self) -> None:
        self._fit = None
        self._kept = None
        self._report = verdict.Diagnostics()

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Trains the sampler for the posterior given the model's arguments, from the start.

        Ctrl-C ends the training early and keeps the sampler trained so far; `diagnostics()` then says how
        good it is.

        Args:
            *args: Arguments of the model.
            **kwargs: Keyword arguments of the model.

        Raises:
            ModelError: the model or its data cannot be used; the message names the site or argument. Nothing
                of an earlier fit is left then.
            SettingsError: the checkpoint's folder is missing or cannot be written to.

        Warns:
            RuntimeWarning: a checkpoint could not be written; the training goes on.
            FidelityWarning: a diagnostic says that the fit is doubtful, or the training was interrupted.

        Example:
            >>> dft = DFT(model, seed=0, disable_progbar=True)
            >>> dft.run(y)
            >>> sorted(dft.get_samples())
            ['mu']
        """
        self._train(args, kwargs)

    def _train(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """All of `run`, which calls it; warnings name the line of the user's own call."""
        planned = 0
        if self.checkpoint is not None:
            check_folder(self.checkpoint)
        with exclusive(), self._all_or_nothing(), self._timed():
            self._prepare(args, kwargs)
            self._whole = True
            self._trainer.lazy = self._lazy
            with (
                self._session(),
                ProgressBar(self._trainer.total, disable=self.disable_progbar) as bar,
                self._trainer.announcing(bar.entered),
            ):
                try:
                    self._resume()
                    while not self._trainer.done:
                        bar.update(self._trainer.step())
                        if self._checkpoint is not None:
                            self._checkpoint.after_step(self._trainer)
                    bar.status("measuring")
                    self._measure(self._trainer)
                except KeyboardInterrupt:
                    planned = self._trainer.total
                    bar.status("interrupted, measuring")
                    self._measure(self._trainer)
        if planned:
            warnings.warn(
                f"training was interrupted after {len(self._trainer.history)} of {planned} iterations: the "
                "sampler trained so far is kept; see diagnostics()",
                FidelityWarning,
                stacklevel=3,
            )
        self._warn(stacklevel=4)

    def _resume(self) -> None:
        """Takes up the training that the checkpoint holds, if there is one."""
        if self.checkpoint is None:
            return
        owner = {
            "framework": self._framework,
            "settings": self.settings.to_json(),
            "seed": self._seed(),
            "num_chains": self.num_chains,
            "layout": self._layout().to_json(),
        }
        if self._amounts:
            owner["amounts"] = dict(self._amounts)
        points = self._trainer.problems[0].starts.reshape(-1, self._layout().dim)[:CHECK_POINTS]
        now = self._portrait(self._numpy(points), self._precision())
        sums = self._fingerprints(self._arguments)
        self._checkpoint = Checkpoint(self.checkpoint, self.checkpoint_every, owner, now, sums)
        self._checkpoint.resume(self._trainer)

    def step(self, *args: Any, **kwargs: Any) -> float:
        """One training iteration on the given arguments, as `SVI.step`, for users who write their own loop.

        The first call sets the training up (also the first one after `run` or `load`). Later calls may bring other data,
        such as minibatches scaled by the model: each iteration sees the arguments of its own call. The learning rates
        follow the plan of the settings; when the planned iterations are made, further calls train no more.

        Draws may be taken after any number of steps, and training goes on after that. Refinement and diagnostics use the
        arguments of the last call: end a loop over minibatches with a step on the full data. (With
        `pyro.plate(..., subsample_size=...)` in the model, `run` draws the minibatches itself, and the DFT phase gets the
        two independent ones that its loss needs.)

        Returns:
            The Fisher gap J(s_q) - J(s_phi) on fresh draws; minus the evidence bound while the Gaussian is
            fitted.

        Raises:
            ModelError: as for `run`. Data that cannot be used leave the training as it was before the call.

        Example:
            >>> dft = DFT(model, seed=0, precondition_steps=50, train="never")
            >>> losses = [dft.step(y) for _ in range(50)]
            >>> losses[-1] < losses[0]
            True
        """
        with exclusive(), self._timed():
            if self._trainer is None or self._whole:
                if self.checkpoint is not None:
                    check_folder(self.checkpoint)
                with self._all_or_nothing():
                    self._prepare(args, kwargs)
                    with self._session():
                        self._resume()
            with self._session():
                if not unchanged(self._arguments, (args, kwargs), self._same_array):
                    arguments = self._snapshot((args, kwargs))
                    self._replace_data(*arguments)
                    self._arguments = arguments
                self._drop_results()
                progress = self._trainer.step()
                if self._checkpoint is not None:
                    self._checkpoint.after_step(self._trainer)
                return progress.loss

    @property
    def progress(self) -> Any:
        """Where the training is: `step` of `total` iterations, the `phase` and the `loss` of the last one; None before it.

        Fewer iterations than `total` are made where a phase ends early.

        Example:
            >>> dft.progress.step == dft.diagnostics()["iterations"]
            True
        """
        return self._trainer.history[-1] if self._trainer is not None and self._trainer.history else None

    def _prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forgets an earlier fit and sets up a training that no step has been made of."""
        self._forget()
        arguments = self._snapshot((args, kwargs))
        self._read(*arguments)
        self._process = os.getpid()
        itemsize = 8 if self._precision() < 1e-10 else 4
        memory_check.check_fit(self.settings, self.num_chains, self._layout().dim, itemsize)
        with self._session():
            self._trainer = self._start()
        self._arguments = arguments
        if self.callback is not None:
            self._trainer.watch = self._watcher(self.callback)

    def _watcher(
        self, callback: Callable[[Any, Callable[[int], dict[str, Any]]], None]
    ) -> Callable[[Any], None]:
        """Calls back every so many iterations, and where the phase changes."""
        last: tuple[str, int] = ("", 0)

        def watch(progress: Any) -> None:
            nonlocal last
            if progress.phase != last[0] or progress.step - last[1] >= self.callback_every:
                last = progress.phase, progress.step
                callback(progress, self._draw_so_far)

        return watch

    def _draw_so_far(self, num_samples: int) -> dict[str, Any]:
        """Raw draws of the sampler in training, by random numbers of their own: new ones at each call."""
        check_count("num_samples", num_samples, 1)
        before = self._fit, self._rng
        self._fit, self._rng = self._trainer.so_far(), self._looking
        try:
            samples = self._constrain(self._blocks(-(-num_samples // self.num_chains), 0))
        finally:
            self._fit, self._rng = before
        return {
            name: value.reshape((value.shape[0] * value.shape[1], *value.shape[2:]))[:num_samples]
            for name, value in samples.items()
        }

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Sets up a training for `DFTKernel`, which then drives it with `_advance` in place of `run`."""
        with exclusive(), self._all_or_nothing(), self._timed():
            self._prepare(args, kwargs)
            self._trainer.lazy = self._lazy

    def _advance(self, until: float) -> float | None:
        """Trains until that share of the plan is made; returns the last loss, None where no step was due."""
        trainer, loss = self._trainer, None
        with exclusive(), self._all_or_nothing(), self._timed(), self._session():
            while not trainer.done and len(trainer.history) < until * trainer.total:
                loss = trainer.step().loss
        return loss

    def _measure(self, trainer: Any) -> None:
        """Ends the training, measures the sampler and keeps the draws of the measurement."""
        try:
            self._fit = trainer.finish()
            self._kept = self._keep()
            kept = self._numpy(self._kept)
            some = kept.reshape(-1, kept.shape[-1])
            some = some[:: max(1, len(some) // DRAWS)][:DRAWS]
            self._report = verdict.judge({**self._facts(), "invalid": self._invalid(some)})
        except BaseException:
            self._drop_results()
            raise

    def _require_fit(self) -> None:
        if self._fit is not None:
            if self._process != os.getpid():  # a fork would repeat the draws of its parent
                self._set_seed(seed_of(None))
                self._process = os.getpid()
            return
        with exclusive():
            if self._fit is not None:  # by now: another thread was training it
                return
            if self._failure:
                raise NotFittedError(
                    f"there is no trained sampler: the last run failed ({self._failure}); call run(...) again"
                )
            if self._trainer is None or not self._trainer.history:
                raise NotFittedError("the sampler is not trained yet: call run(...) first")
            with self._timed(), self._session():
                # Between single steps: a copy is finished and measured, and the training can go on.
                self._measure(self._trainer if self._trainer.done else self._trainer.branch())
            self._warn(stacklevel=4)

    @property
    def _lazy(self) -> bool:
        """Whether networks may be left for later: not those of the user's own, nor where a checkpoint is to keep them."""
        return self.checkpoint is None and self._own_generator is None and self._own_score_network is None

    def _complete(self) -> None:
        """Trains the networks, where the chains gave all that is kept, and somebody asks for what only networks give.

        The kept draws stay as they are; what is said of raw draws, and of how much refinement they need, is said anew.
        """
        if not self._trainer.put_off:
            return
        before = self._report["warnings"]
        with exclusive(), self._timed(), self._session():
            trainer = self._trainer.branch()  # an interrupt leaves the networks put off
            trainer.watch = self._trainer.watch
            trainer.take_up()
            bar = ProgressBar(trainer.total, disable=self.disable_progbar)
            with bar, trainer.announcing(bar.entered):
                while not trainer.done:
                    bar.update(trainer.step())
                self._measure(trainer)
            self._trainer = trainer
        if self._report["warnings"] != before:
            self._warn(stacklevel=4)

    def _warn(self, stacklevel: int) -> None:
        if self._report["warnings"]:
            lines = "\n".join(f"  - {line}" for line in self._report["warnings"])
            see = f"What it means, and what to try: {links.alarm(self._report['alarms'][0])}"
            warnings.warn(
                f"the fit is {self._report['status']}:\n{lines}\n{see}",
                FidelityWarning,
                stacklevel=stacklevel,
            )

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
            self._forget()
            self._failure = first_line(told or error)
            if told is None:
                raise
            raise told from error

    def _where(self) -> str:
        """The point of a training in progress, in words; "" before it."""
        trainer = self._trainer
        if trainer is None or not trainer.history:
            return ""
        return messages.where(trainer.phase, len(trainer.history), trainer.total)

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - wall
            self._cpu_seconds += time.process_time() - cpu
