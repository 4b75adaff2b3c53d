"""The progress bar of a fit: phase, loss and speed, as users of MCMC know it."""

from __future__ import annotations

import os
from typing import Any, Self

from tqdm.auto import tqdm


class ProgressBar:
    """A tqdm bar over training iterations; silent when disabled, or where CI is set, as Pyro's.

    Args:
        total: Iterations planned.
        disable: Whether to show nothing.
    """

    def __init__(self, total: int, *, disable: bool = False):
        self._bar: Any = tqdm(total=total, disable=disable or "CI" in os.environ, unit="it")
        self._phase = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, progress: Any) -> None:
        """Shows an iteration: an object with `total`, `phase` and `loss`, such as the engine's `Progress`."""
        loss = "-elbo" if progress.phase == "gaussian" else "fisher gap"
        self._bar.total = progress.total  # the plan gets shorter where a phase ends early
        self._bar.set_postfix({loss: f"{progress.loss:.4g}"}, refresh=False)
        self._bar.update(1)
        if progress.phase != self._phase:
            self._phase = progress.phase
            self.status(self._phase)

    def status(self, text: str) -> None:
        """Says what goes on beside the iterations."""
        self._bar.set_description(text)
