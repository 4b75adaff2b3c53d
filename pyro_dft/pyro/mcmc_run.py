"""What Pyro's `MCMC` and `StreamingMCMC` know and do not tell their kernel: chains that run in one process, and their draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pyro.infer.mcmc.api import _UnarySampler

from pyro_dft.interface.mcmc_run import Asked, around_run


class Prepared(Protocol):
    """A kernel that wants to know."""

    def prepare_run(self, asked: Asked) -> None:
        """Called before each run.

        Args:
            asked: Chains that can share a training, and their draws.
        """

    def run_ended(self) -> None:
        """Called behind each run."""


def tell_kernel(mcmc: type, kernel_of: Callable[[Any], Prepared | None]) -> None:
    """Lets `run` call `prepare_run` of its kernel first, where that is ours.

    Args:
        mcmc: Pyro's class.
        kernel_of: An instance of it -> our kernel, or None.
    """

    def begin(own: Any, kernel: Prepared, _: Mapping[str, Any]) -> None:
        # Worker processes share nothing.
        one_process = isinstance(own.sampler, _UnarySampler)
        kernel.prepare_run(Asked(own.num_chains if one_process else 1, own.num_samples))

    around_run(mcmc, kernel_of, begin, lambda own, kernel: kernel.run_ended())
