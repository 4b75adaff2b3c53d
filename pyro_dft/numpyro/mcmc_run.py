"""What `numpyro.infer.MCMC` knows, and does not tell its kernel: which fields are collected, and whether there is a bar."""

from __future__ import annotations

import functools
from typing import Any, Protocol


class Prepared(Protocol):
    """A kernel that wants to know."""

    def prepare_run(self, extra_fields: Any, progress_bar: bool, warmed_up: Any) -> None:
        """Called before each run with the state that a warm-up left, or None."""


def tell_kernel(mcmc: type, kernel: type[Prepared]) -> None:
    """Lets `run`, and so `warmup`, of MCMC call `prepare_run` of its kernel first, where that is ours.

    Args:
        mcmc: NumPyro's class.
        kernel: Ours.
    """
    plain = mcmc.run  # type: ignore[attr-defined]

    @functools.wraps(plain)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.sampler, kernel):
            self.sampler.prepare_run(kwargs.get("extra_fields", ()), self.progress_bar, self._warmup_state)
        return plain(self, *args, **kwargs)

    mcmc.run = run  # type: ignore[attr-defined]
