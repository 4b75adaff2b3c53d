"""What `numpyro.infer.MCMC` knows and does not tell its kernel: the fields it collects, how many draws, if there is a bar."""

from __future__ import annotations

import functools
from typing import Any, Protocol

from pyro_dft.interface.mcmc_run import Asked

# Chains that run in one process and one program after the other, or as one batch, can share what one of them has trained.
TOGETHER = ("sequential", "vectorized")


class Prepared(Protocol):
    """A kernel that wants to know."""

    def prepare_run(self, extra_fields: Any, progress_bar: bool, warmed_up: Any, asked: Asked) -> None:
        """Called before each run.

        Args:
            extra_fields: Fields of the state that are to be collected.
            progress_bar: Whether MCMC shows a bar.
            warmed_up: The state that a warm-up left, or None.
            asked: Chains that can share a training, and their draws.
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
        chains = self.num_chains if self.chain_method in TOGETHER else 1
        asked = Asked(chains, self.num_samples)
        self.sampler.prepare_run(fields, self.progress_bar, self._warmup_state, asked)
        try:
            return plain(self, *args, **kwargs)
        finally:
            self._last_state = self.sampler.run_ended(self._last_state)

    mcmc.run = run  # type: ignore[attr-defined]
