"""Slices of data sets on other workers: anything with the interface of `concurrent.futures`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass
from typing import Any

from pyro_dft.errors import PerformanceWarning, first_line, warn
from pyro_dft.many.fitting import fit_slice
from pyro_dft.many.record import Record
from pyro_dft.many.store import Folder

# Workers of an executor that does not say how many it has.
UNKNOWN_WORKERS = 32


@dataclass
class Job:
    """One slice, as it travels to a worker.

    Attributes:
        number: Of the slice.
        arguments: Keyword arguments of `fit_slice`.
        sums: Checksums of its data.
        folder: Where the worker writes it; None brings the records back.
        call: See `pyro_dft.many.store.Folder`.
        tries: How often it was given out.
        lost: Why no worker could do it; "" where one did.
    """

    number: int
    arguments: dict[str, Any]
    sums: list[int]
    folder: str | None = None
    call: dict[str, Any] | None = None
    tries: int = 0
    lost: str = ""

    def failed(self, error: BaseException) -> list[Record]:
        """Records of a slice that no worker could do."""
        self.lost = first_line(error)
        return [Record.of_error(row, error) for row, _ in self.arguments["sets"]]


def work(job: Job) -> list[Record] | None:
    """Does a slice; called on a worker. It may be called again for the same slice: the same draws come out."""
    records = fit_slice(**job.arguments)
    if job.folder is None:
        return records
    Folder(job.folder, job.call).write(job.number, records, job.sums)
    return None


class Crew:
    """Gives slices to an executor, and gives them again where a worker was lost.

    Args:
        executor: An `Executor`, or a function without arguments that makes one, which is called again where one breaks.
        retries: How often a slice is given out again.
    """

    def __init__(self, executor: Executor | Callable[[], Executor], retries: int):
        self._make = None if hasattr(executor, "submit") else executor
        self._executor: Any = None if self._make else executor
        self._retries = retries
        self._broken = False

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, list[Record] | None]]:
        """Does all slices; yields each that is done, in any order. No more are taken from `jobs` than workers can have."""
        waiting, more = deque[Job](), iter(jobs)
        running: dict[Future[Any], Job] = {}
        if self._make:
            self._executor = self._make()
        try:
            while True:
                while len(running) < self._room() and (job := self._next(waiting, more)) is not None:
                    done = self._submit(job, running)
                    if done is not None:
                        yield job, done[0]
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    error = _error(future)
                    if error is None:
                        yield job, future.result()
                    elif job.tries > self._retries:
                        yield job, job.failed(error)
                    else:
                        waiting.append(job)
                        if isinstance(error, BrokenExecutor):
                            self._broken = True
        finally:
            for future in running:
                future.cancel()
            if self._make:
                self._executor.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def _next(waiting: deque[Job], more: Iterator[Job]) -> Job | None:
        return waiting.popleft() if waiting else next(more, None)

    def _room(self) -> int:
        """Slices that are out at once: two for each worker, so that none waits."""
        return 2 * int(getattr(self._executor, "_max_workers", None) or UNKNOWN_WORKERS)

    def _submit(self, job: Job, running: dict[Future[Any], Job]) -> tuple[list[Record] | None] | None:
        """Gives a slice out; where there is nobody left to take it, does it here and returns what came out."""
        job.tries += 1
        if self._broken and self._make:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor, self._broken = self._make(), False
        try:
            running[self._executor.submit(work, job)] = job
            return None
        except BrokenExecutor as error:
            if self._make:
                self._broken = True
                return self._submit(job, running)
            warn(
                f"the executor is broken ({first_line(error)}): the slices that are left are done in this process. A function "
                "that makes an executor, in the place of the executor, would be called again",
                PerformanceWarning,
            )
            return (work(job),)


def _error(future: Future[Any]) -> BaseException | None:
    """What a future ended with, a cancellation too."""
    try:
        return future.exception()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return error
