"""The progress bar of a fit: its phase, its progress, and the time elapsed."""

from __future__ import annotations

import os
from typing import Any, Self

from tqdm.auto import tqdm

# What the bar calls the phases of a fit; networks by the objective that trains them.
_WORDS = {
    "gaussian": "gaussian", "modes": "searching modes", "polish": "gaussian", "refinement": "chains",
    "selection": "choosing the sampler",
}  # fmt: skip
# Iterations differ in cost by factors of thousands: so it shows no rate. Chains say themselves how long they will take.
_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class ProgressBar:
    """A tqdm bar over training iterations; silent when disabled, or where CI is set, as Pyro's.

    Args:
        total: Iterations planned.
        disable: Whether to show nothing.
    """

    def __init__(self, total: int, *, disable: bool = False):
        hidden = disable or "CI" in os.environ
        self._phase = "tracing the model"
        self._bar: Any = tqdm(total=total, disable=hidden, unit="it", bar_format=_FORMAT, desc=self._phase)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, progress: Any) -> None:
        """Shows an iteration: an object with `step`, `total`, `phase` and `loss`, such as the engine's `Progress`.

        A training that goes on, from a checkpoint or with a network that was put off, begins where it was left.
        """
        loss = "-elbo" if progress.phase == "gaussian" else "fisher gap"
        self._bar.total = progress.total  # the plan gets shorter where a phase ends early
        self._bar.set_postfix({loss: f"{progress.loss:.4g}"}, refresh=False)
        self._bar.update(progress.step - self._bar.n)

    def entered(self, phase: str) -> None:
        """Names the phase of the fit that begins, or goes on."""
        self._phase = _WORDS.get(phase, f"network ({phase})")
        self.status(self._phase)

    def noted(self, text: str) -> None:
        """Says how far the phase has come."""
        self.status(f"{self._phase} ({text})")

    def status(self, text: str) -> None:
        """Says what goes on beside the iterations."""
        self._bar.set_description_str(text)
