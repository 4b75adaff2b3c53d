"""What methods and tables need to know of a posterior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np


class Case(Protocol):
    """What the methods need to know of a posterior; `Benchmark` is one."""

    @property
    def name(self) -> str:
        """Key on the command line."""

    def arrays(self) -> tuple[np.ndarray, ...]:
        """The model's positional arguments as NumPy arrays."""

    def numpyro(self, reference: bool = False) -> tuple[Callable[..., None], tuple[Any, ...]]:
        """The NumPyro model and its arguments."""

    def flat(self, samples: Mapping[str, Any]) -> np.ndarray:
        """Coordinates (n, d) in which errors are measured, from constrained draws {site: (n, *shape)}."""


class PyroCase(Case, Protocol):
    """A posterior that is written for Pyro too."""

    def pyro(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        """The Pyro model and its arguments."""
