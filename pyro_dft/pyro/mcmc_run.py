"""What Pyro's `MCMC` and `StreamingMCMC` know and do not tell their kernel: chains that run in one process, and their draws."""

from __future__ import annotations

import functools
from typing import Any, Protocol

from pyro.infer.mcmc.api import _UnarySampler

from pyro_dft.interface.mcmc_run import Asked


class Prepared(Protocol):
    """A kernel that wants to know."""

    def prepare_run(self, asked: Asked) -> None:
        """Called before each run.

        Args:
            asked: Chains that can share a training, and their draws.
        """

    def run_ended(self) -> None:
        """Called behind each run."""


def tell_kernel(mcmc: type, kernel: type[Prepared]) -> None:
    """Lets `run` call `prepare_run` of its kernel first, where that is ours.

    Args:
        mcmc: Pyro's class.
        kernel: Ours.
    """
    plain = mcmc.run  # type: ignore[attr-defined]

    @functools.wraps(plain)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self.kernel, kernel):
            return plain(self, *args, **kwargs)
        # Worker processes share nothing.
        one_process = isinstance(self.sampler, _UnarySampler)
        self.kernel.prepare_run(Asked(self.num_chains if one_process else 1, self.num_samples))
        try:
            return plain(self, *args, **kwargs)
        finally:
            self.kernel.run_ended()

    mcmc.run = run  # type: ignore[attr-defined]
