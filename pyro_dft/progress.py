"""The progress bar of a fit: loss, phase and speed, as users of MCMC know it."""

from __future__ import annotations

import os
from typing import Any, Self

from tqdm.auto import tqdm


class ProgressBar:
    """A tqdm bar over training iterations; silent when disabled, or where the environment says CI (as Pyro's).

    Args:
        total: Iterations planned.
        disable: Whether to show nothing.
    """

    def __init__(self, total: int, *, disable: bool = False):
        self._bar: Any = tqdm(total=total, disable=disable or "CI" in os.environ, desc="gaussian", unit="it")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, progress: Any) -> None:
        """Shows one iteration (`step`, `total`, `phase`, `loss`)."""
        self._bar.set_description(progress.phase, refresh=False)
        name = "-elbo" if progress.phase == "gaussian" else "fisher gap"
        self._bar.set_postfix({name: f"{progress.loss:.4g}"}, refresh=False)
        self._bar.update(1)

    def status(self, text: str) -> None:
        """Shows what goes on beside the iterations."""
        self._bar.set_description(text)
