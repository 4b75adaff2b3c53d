"""Chains of a framework's `MCMC` that share one training: how many draws it keeps, and which of them each chain is served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyro_dft.interface.backend import Backend
from pyro_dft.settings import Settings

# As many draws as a run asks for are kept, up to these many, and so many numbers: what goes beyond is drawn anew.
MOST_KEPT, MOST_NUMBERS = 16_000, 20_000_000


@dataclass(frozen=True)
class Asked:
    """What a run of `MCMC` asks of its kernel.

    Attributes:
        chains: Chains that share a training.
        draws: For each of them, those of the warm-up not counted; None where that is not known.
    """

    chains: int = 1
    draws: int | None = None


@dataclass(frozen=True)
class Part:
    """Which of the kept draws a chain is served.

    Those of a sampler lie chain by chain of the ensemble that they are states of: each part has ensemble chains of its own, so
    that R-hat between the chains of `MCMC` compares chains that have run apart.

    Attributes:
        number: Of the chain, from 0.
        of: How many chains there are.
    """

    number: int = 0
    of: int = 1

    def rows(self, count: int) -> slice:
        """Its rows of `count` draws; where there are fewer draws than chains, they are served more than once."""
        each = max(1, count // self.of)
        first = self.number * each % count
        return slice(first, first + each)


def kept_draws(
    options: Mapping[str, Any],
    settings: Settings,
    backend: Backend,
    asked: Asked,
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
) -> dict[str, int]:
    """The setting with which a fit keeps as many draws as a run asks for; none where it does, or where it was chosen.

    Args:
        options: Of the kernel.
        settings: What they come to.
        backend: Reads the model.
        asked: By the run.
        arguments: Positional and keyword arguments of the model.

    Raises:
        ModelError: the model cannot be read.
    """
    total = asked.chains * (asked.draws or 0)
    chosen = "num_draws" in options or options.get("settings") is not None
    if chosen or total <= settings.num_draws:
        return {}
    kept = min(total, MOST_KEPT, MOST_NUMBERS // backend.own_posterior(*arguments).dim)
    return {"num_draws": kept} if kept > settings.num_draws else {}
