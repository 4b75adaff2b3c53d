"""Chains of a framework's `MCMC` that share one training: how many draws it keeps, and which of them each chain is served."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from pyro_dft.interface.backend import Backend
from pyro_dft.settings import Settings

# As many draws as a run asks for are kept, up to these many, and so many numbers: what goes beyond is drawn anew.
MOST_KEPT, MOST_NUMBERS = 16_000, 20_000_000

Fit = TypeVar("Fit")


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

    def after(self, chains: int) -> Part:
        """That of a later chain."""
        return replace(self, number=self.number + chains)


class Run(Generic[Fit]):
    """One run of `MCMC`: the fit that its chains share, and which part of its kept draws is next.

    Attributes:
        asked: Of the kernel.
        fit: That serves its chains; None before the first one, and where each chain has a fit of its own.
    """

    def __init__(self, asked: Asked | None = None):
        self.asked = asked or Asked()
        self.fit: Fit | None = None
        self._served, self._seed = 0, None

    def share(self, fit: Fit) -> None:
        """Lets the chains that follow be served from this fit, where there are any."""
        self.fit = fit if self.asked.chains > 1 else None

    def seeded(self, seed: Any) -> None:
        """Tells what the framework's generator was last seeded with: where that is new, a chain has a training of its own."""
        if seed != self._seed:
            self.fit, self._served, self._seed = None, 0, seed

    def next_part(self, chains: int = 1) -> Part:
        """That of the next chain, or of the first of the next ones."""
        part = Part(self._served, max(self.asked.chains, chains))
        self._served += chains
        return part


def around_run(
    mcmc: type,
    kernel_of: Callable[[Any], Any],
    begin: Callable[[Any, Any, Mapping[str, Any]], None],
    end: Callable[[Any, Any], None],
) -> None:
    """Lets `run` of a framework's `MCMC` tell a kernel of ours when a run begins and that it has ended.

    Args:
        mcmc: The framework's class.
        kernel_of: An instance -> its kernel, or None where that is not ours.
        begin: Called before each run with the instance, its kernel and the keyword arguments of `run`.
        end: Called behind each run, also where it failed, with the instance and its kernel.
    """
    plain = mcmc.run  # type: ignore[attr-defined]

    @functools.wraps(plain)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        kernel = kernel_of(self)
        if kernel is None:
            return plain(self, *args, **kwargs)
        begin(self, kernel, kwargs)
        try:
            return plain(self, *args, **kwargs)
        finally:
            end(self, kernel)

    mcmc.run = run  # type: ignore[attr-defined]


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
