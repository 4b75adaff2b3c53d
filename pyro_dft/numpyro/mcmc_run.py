"""What `numpyro.infer.MCMC` knows and does not tell its kernel: the fields it collects, how many draws, if there is a bar."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pyro_dft.interface.mcmc_run import Asked, around_run

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


def tell_kernel(mcmc: type, kernel_of: Callable[[Any], Prepared | None]) -> None:
    """Lets `run`, and so `warmup`, of MCMC call `prepare_run` of its kernel first, where that is ours.

    Args:
        mcmc: NumPyro's class.
        kernel_of: An instance of it -> our kernel, or None.
    """

    def begin(own: Any, kernel: Prepared, kwargs: Mapping[str, Any]) -> None:
        asked = Asked(own.num_chains if own.chain_method in TOGETHER else 1, own.num_samples)
        kernel.prepare_run(kwargs.get("extra_fields", ()), own.progress_bar, own._warmup_state, asked)

    def end(own: Any, kernel: Prepared) -> None:
        own._last_state = kernel.run_ended(own._last_state)

    around_run(mcmc, kernel_of, begin, end)
