"""What a user allows a fit to cost, and what is left of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from pyro_dft.settings import Settings

# Share of the allowed gradients that is reserved for the chains whose states are served.
FOR_CHAINS = 0.6


class Budget:
    """Limits of one fit.

    Args:
        settings: `max_gradients` and `max_seconds`.
        evaluations: Gradient evaluations of the model so far.

    Attributes:
        met: The limit that the fit has reached, "max_gradients" or "max_seconds", or None.
        reserved: Share of the gradients that is reserved for the chains; zero once they have run.
    """

    def __init__(self, settings: Settings, evaluations: Callable[[], int]):
        self._settings, self._evaluations = settings, evaluations
        self._begun = time.perf_counter()
        self.met: str | None = None
        self.reserved = FOR_CHAINS
        self._elsewhere, self._paused = 0, (0, 0.0)

    def over(self) -> bool:
        """Whether the phase that is running must end now."""
        most = self._settings.max_gradients
        if most is not None and self._spent >= (1 - self.reserved) * most:
            self.met = "max_gradients"
        return self.late or self.met is not None

    def affords(self, gradients: float) -> bool:
        """Whether this many further gradients stay within the limits."""
        if gradients > self.left:
            self.met = "max_gradients"
            return False
        return not self.late

    @property
    def late(self) -> bool:
        """Whether the time that is allowed is over."""
        seconds = self._settings.max_seconds
        if seconds is None or self._elapsed < seconds:
            return False
        self.met = self.met or "max_seconds"
        return True

    def most(self, count: int, each: float, least: int) -> int:
        """How many of `count` steps, each of `each` gradients, stay within the limits; never fewer than `least`."""
        if self.affords(count * each):
            return count
        within = 0 if self.met == "max_seconds" else int(min(count, self.left // each))
        return max(least, within)

    def pause(self) -> None:
        """Stops counting: what is spent from here until `go_on` is no part of the fit."""
        self._paused = self._spent, self._elapsed

    def go_on(self) -> None:
        """Counts again, from where `pause` stopped."""
        spent, elapsed = self._paused
        self._elsewhere, self._begun = self._evaluations() - spent, time.perf_counter() - elapsed

    @property
    def left(self) -> float:
        """Gradients that may still be evaluated."""
        most = self._settings.max_gradients
        return math.inf if most is None else max(most - self._spent, 0)

    @property
    def _spent(self) -> int:
        return self._evaluations() - self._elsewhere

    @property
    def _elapsed(self) -> float:
        return time.perf_counter() - self._begun
