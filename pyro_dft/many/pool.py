"""Many fits at once, whose evaluations are answered together.

Each fit is the ordinary recipe, written as if it were alone: it calls `ask` where it wants the model to be evaluated, and goes
on with the answer. It runs in a thread of its own, but only one of them runs at any time: the threads are no more than
stacks that can wait. Where all of them wait, the requests of the kind that most of them wait for are answered by one call.
So nothing that is global (random numbers, handlers of a model) is ever seen by two fits at once, and results do not depend on
how the threads are scheduled.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

from pyro_dft.interface.exclusive import exclusive

Answer = Callable[[Any, list[Any]], Sequence[Any]]

_here = threading.local()


class _Cancelled(BaseException):
    """Ends a fit whose pool was left before it was done."""


class _Fit(threading.Thread):
    """One fit: runs between two requests, and waits else."""

    def __init__(self, index: int, function: Callable[[], Any]):
        super().__init__(daemon=True)
        self.index, self._function = index, function
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self.request: tuple[Hashable, Any] | None = None
        self.outcome: Any = None
        self.cancelled = False
        self._reply: Any = None

    def run(self) -> None:
        """Called by `start`."""
        self._go.acquire()
        _here.fit = self
        try:
            if not self.cancelled:
                with self._turn():
                    self.outcome = self._function()
        except _Cancelled:
            pass
        except BaseException as error:
            self.outcome = error
        finally:
            self._back.release()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Other threads of the process wait while this one is at work; not while it waits itself."""
        with contextlib.ExitStack() as self._held:
            self._held.enter_context(exclusive())
            yield

    def ask(self, key: Hashable, payload: Any) -> Any:
        """Waits for an answer; called in this thread."""
        self.request = key, payload
        self._held.close()
        self._back.release()
        self._go.acquire()
        self._held.enter_context(exclusive())
        if self.cancelled:
            raise _Cancelled
        reply, self._reply = self._reply, None
        if isinstance(reply, Exception):
            raise reply
        return reply

    def advance(self, reply: Any = None) -> bool:
        """Goes on with an answer, until the next request; whether there is one. Called by the pool."""
        self.request, self._reply = None, reply
        self._go.release()
        self._back.acquire()
        if self.request is None:
            self.join()
        return self.request is not None


def inside() -> bool:
    """Whether this thread is a fit of a pool."""
    return getattr(_here, "fit", None) is not None


def ask(key: Hashable, payload: Any) -> Any:
    """An answer to a request of one kind, from the pool that this fit belongs to.

    Args:
        key: What is asked for: requests with equal keys may be answered together.
        payload: What it is asked about.

    Raises:
        Exception: one that was given as the answer.
    """
    return _here.fit.ask(key, payload)


class Pool:
    """Runs fits, so many at a time.

    Args:
        answer: Takes a key and the payloads of some requests, and returns as many answers; one that is an exception is
            raised where it was asked for.
        width: Fits that are in progress at once. The next one begins where one ends.
        full: How many requests of a key make a call full: no others are answered while there are so many.

    Attributes:
        calls: How often `answer` was called, and for how many requests in all.
    """

    def __init__(self, answer: Answer, width: int, full: Callable[[Any], int] = lambda key: 1):
        self._answer, self._width, self._full = answer, width, full
        self.calls = [0, 0]

    def run(self, fits: Iterable[Callable[[], Any]]) -> Iterator[tuple[int, Any]]:
        """Runs all of them; yields the index of each that has ended with what it returned, or the exception it raised.

        `BaseException`s that are no `Exception`, such as an interrupt, end all.
        """
        waiting, active = iter(enumerate(fits)), list[_Fit]()
        try:
            while True:
                while len(active) < self._width and (following := next(waiting, None)) is not None:
                    fit = _Fit(*following)
                    active.append(fit)
                    fit.start()
                    if not fit.advance():
                        active.remove(fit)
                        yield self._ended(fit)
                if not active:
                    return
                for fit in self._answered(active):
                    active.remove(fit)
                    yield self._ended(fit)
        finally:
            for fit in active:
                fit.cancelled = True
                if fit.is_alive():
                    fit.advance()

    @staticmethod
    def _ended(fit: _Fit) -> tuple[int, Any]:
        if isinstance(fit.outcome, BaseException) and not isinstance(fit.outcome, Exception):
            raise fit.outcome
        return fit.index, fit.outcome

    def _answered(self, active: list[_Fit]) -> list[_Fit]:
        """Answers the requests of the commonest kind, and returns those fits that ended then."""
        groups: dict[Hashable, list[_Fit]] = {}
        for fit in active:
            assert fit.request is not None
            groups.setdefault(fit.request[0], []).append(fit)
        key, group = max(groups.items(), key=lambda item: len(item[1]))
        full = self._full(key)
        if len(group) > full:  # the others wait for more of their kind
            group = group[: full * (len(group) // full)]
        payloads = [fit.request[1] for fit in group if fit.request is not None]
        self.calls[0] += 1
        self.calls[1] += len(group)
        answers = self._replies(key, payloads)
        return [fit for fit, reply in zip(group, answers, strict=True) if not fit.advance(reply)]

    def _replies(self, key: Hashable, payloads: list[Any]) -> Sequence[Any]:
        """Answers; where one request spoils the call for all, one by one, and the exception for that one."""
        try:
            return self._answer(key, payloads)
        except Exception as error:
            if len(payloads) == 1:
                return [error]
        return [reply for payload in payloads for reply in self._replies(key, [payload])]
