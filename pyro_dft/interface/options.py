"""The options that a `DFT` was made with, which all its parts read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyro_dft.settings import Settings


@dataclass
class Options:
    """Options of the constructor, checked; `pyro_dft.DFT` and `pyro_dft.numpyro.DFT` describe them.

    `device`, `max_plate_nesting` and `process_group` are options of Pyro's alone.
    """

    settings: Settings
    model: Callable[..., Any] | None = None
    potential_fn: Callable[[dict[str, Any]], Any] | None = None
    initial_params: Mapping[str, Any] | None = None
    transforms: Mapping[str, Any] | None = None
    smoothed_potential_fn: Callable[[dict[str, Any], Any], Any] | None = None
    generator: Any = None
    score_network: Any = None
    num_chains: int = 1
    init_strategy: Callable[..., Any] | None = None
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_every: int = 500
    callback: Callable[[Any, Callable[[int], dict[str, Any]]], None] | None = None
    callback_every: int = 50
    disable_progbar: bool = False
    device: Any = None
    max_plate_nesting: int | None = None
    process_group: Any = None

    @property
    def brings_networks(self) -> bool:
        """Whether generator or score network are the user's own."""
        return self.generator is not None or self.score_network is not None


class Option:
    """An attribute of a `DFT` that its options hold."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, dft: Any, owner: type | None = None) -> Any:
        return self if dft is None else getattr(dft.parts.options, self._name)

    def __set__(self, dft: Any, value: Any) -> None:
        setattr(dft.parts.options, self._name, value)
