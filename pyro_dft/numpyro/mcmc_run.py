"""What `numpyro.infer.MCMC` knows and does not tell its kernel: the fields it collects, how many draws, if there is a bar."""

from __future__ import annotations

import functools
from typing import Any, Protocol


class Prepared(Protocol):
    """A kernel that wants to know."""

    def prepare_run(
        self, extra_fields: Any, progress_bar: bool, warmed_up: Any, draws: int, alone: bool
    ) -> None:
        """Called before each run.

        Args:
            extra_fields: Fields of the state that are to be collected.
            progress_bar: Whether MCMC shows a bar.
            warmed_up: The state that a warm-up left, or None.
            draws: For each chain, those of the warm-up not counted.
            alone: Whether each of several chains is run alone, one after the other, and their last states are stacked.
        """

    def run_ended(self, state: Any) -> Any:
        """Called behind each run with the last state, or None; returns it in the form in which others may go on from it."""


def tell_kernel(mcmc: type, kernel: type[Prepared]) -> None:
    """Lets `run`, and so `warmup`, of MCMC call `prepare_run` of its kernel first, where that is ours.

    Args:
        mcmc: NumPyro's class.
        kernel: Ours.
    """
    plain = mcmc.run  # type: ignore[attr-defined]

    @functools.wraps(plain)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self.sampler, kernel):
            return plain(self, *args, **kwargs)
        fields = kwargs.get("extra_fields", ())
        alone = self.num_chains > 1 and self.chain_method == "sequential"
        self.sampler.prepare_run(fields, self.progress_bar, self._warmup_state, self.num_samples, alone)
        try:
            return plain(self, *args, **kwargs)
        finally:
            self._last_state = self.sampler.run_ended(self._last_state)

    mcmc.run = run  # type: ignore[attr-defined]
