"""Wall seconds by phase."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping


class Stopwatch:
    """Books each second once: what runs inside another phase is not counted there as well.

    Args:
        earlier: Seconds by phase that were booked before, as by another process.
    """

    def __init__(self, earlier: Mapping[str, float] | None = None):
        self.earlier: dict[str, float] = dict(earlier or {})
        self._own: dict[str, float] = {}

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase."""
        names = dict.fromkeys([*self.earlier, *self._own])
        return {name: self.earlier.get(name, 0.0) + self._own.get(name, 0.0) for name in names}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of what runs inside to a phase, without what others booked meanwhile."""
        start, booked = time.perf_counter(), sum(self._own.values())
        try:
            yield
        finally:
            others = sum(self._own.values()) - booked
            own = time.perf_counter() - start - others
            self._own[name] = self._own.get(name, 0.0) + own
