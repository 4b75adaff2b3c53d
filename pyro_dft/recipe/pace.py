"""What the screen says of chains: what a gradient takes, their effective draws, and how long the missing ones will take."""

from __future__ import annotations

import time
from collections.abc import Callable

# Below so many gradients their seconds are mostly those of compiling and tracing.
LEAST_GRADIENTS = 2000


class Pace:
    """Measures the chains of one fit by the clock. Nothing that draws depend on may follow from it.

    Args:
        clock: Gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._first: tuple[float, int] | None = None
        self._found = ""
        self._end: float | None = None

    def found(self, effective: float, enough: float, ahead: float, spent: int) -> None:
        """A window is judged.

        Args:
            effective: Effective draws in it.
            enough: Those with which it ends.
            ahead: Gradients that the missing ones will take, as far as one knows; infinite where the window is given up.
            spent: Gradients so far.
        """
        self._found = f", {effective:,.0f} of {enough:,.0f} effective draws"
        self._end = spent + ahead if ahead < float("inf") else None

    def words(self, spent: int) -> str:
        """How far chains have come with so many gradients, such as "52,000 gradients of 1.9 ms, 420 of 1,200 effective draws"."""
        now = self._clock(), spent
        # The first call comes when what there is to compile is compiled.
        self._first = self._first or now
        seconds, gradients = (a - b for a, b in zip(now, self._first, strict=True))
        if gradients < LEAST_GRADIENTS:
            return f"{spent:,} gradients{self._found}"
        each = seconds / gradients
        ahead = 0 if self._end is None else max(self._end - spent, 0)
        left = f", about {_short(each * ahead)} left" if ahead else ""
        return f"{spent:,} gradients of {_short(each)}{self._found}{left}"


def _short(seconds: float) -> str:
    """To two digits or three, in the unit that is read at a glance."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.{0 if seconds >= 10 * size else 1}f} {unit}"
    return f"{seconds * 1e6:.0f} µs"
