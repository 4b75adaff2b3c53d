"""What each phase of a fit cost: wall seconds and gradient evaluations of the model."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping


class Ledger:
    """Books each second and each gradient once: what runs inside another phase is not counted there as well.

    Args:
        evaluations: Gradient evaluations of the model so far.
        seconds: Wall seconds by phase that were booked before, as by another process.
        gradients: Gradient evaluations by phase that were booked before.

    Attributes:
        entered: Called with the name of each phase that begins, or goes on after another one within it.
        noted: Called with what the phase that is open says of how far it has come.
    """

    def __init__(
        self,
        evaluations: Callable[[], int],
        seconds: Mapping[str, float] | None = None,
        gradients: Mapping[str, int] | None = None,
    ):
        self._evaluations = evaluations
        self._earlier = dict(seconds or {}), dict(gradients or {})
        self._seconds: dict[str, float] = {}
        self._gradients: dict[str, int] = {}
        self._open: list[str] = []
        self.entered: Callable[[str], None] = told_nobody
        self.noted: Callable[[str], None] = told_nobody

    @property
    def seconds(self) -> dict[str, float]:
        """Wall seconds by phase."""
        return _sum(self._earlier[0], self._seconds)

    @property
    def gradients(self) -> dict[str, int]:
        """Gradient evaluations of the model by phase."""
        return {name: round(count) for name, count in _sum(self._earlier[1], self._gradients).items()}

    def copy(self) -> Ledger:
        """One that goes on by itself."""
        return Ledger(self._evaluations, self.seconds, self.gradients)

    def go_on_from(self, seconds: Mapping[str, float], gradients: Mapping[str, int]) -> None:
        """Takes up what another process booked before, in the middle of a phase too."""
        self._earlier = (
            {name: float(value) for name, value in seconds.items()},
            {name: int(value) for name, value in gradients.items()},
        )

    @contextlib.contextmanager
    def announcing(self, entered: Callable[[str], None], noted: Callable[[str], None]) -> Iterator[None]:
        """Calls these in here, see above."""
        before = self.entered, self.noted
        self.entered, self.noted = entered, noted
        try:
            yield
        finally:
            self.entered, self.noted = before

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds what runs inside to a phase, without what other phases booked meanwhile."""
        start, booked = time.perf_counter(), sum(self._seconds.values())
        count, counted = self._evaluations(), sum(self._gradients.values())
        self._open.append(name)
        self.entered(name)
        try:
            yield
        finally:
            self._open.pop()
            if self._open:
                self.entered(self._open[-1])
            others = sum(self._seconds.values()) - booked
            own = time.perf_counter() - start - others
            self._seconds[name] = self._seconds.get(name, 0.0) + own
            others = sum(self._gradients.values()) - counted
            self._gradients[name] = self._gradients.get(name, 0) + self._evaluations() - count - int(others)


def told_nobody(_: str) -> None:
    """Where nobody watches."""


def _sum(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {name: a.get(name, 0) + b.get(name, 0) for name in dict.fromkeys([*a, *b])}
