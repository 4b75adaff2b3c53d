"""What the interface does with arrays of a framework, beside computing: copying, comparing, conversion to NumPy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np


class Arrays(ABC):
    """Operations on arrays of one framework, which are called native; values of any other kind pass through."""

    @abstractmethod
    def concatenate(self, arrays: Iterable[Any], axis: int = 0) -> Any:
        """Native arrays, one after the other."""

    @abstractmethod
    def copied(self, value: Any) -> Any:
        """A copy of an array that may be changed in place; any other value as it is."""

    @abstractmethod
    def same(self, a: Any, b: Any) -> bool | None:
        """Whether two arrays hold the same numbers; None where one of the values is not an array."""

    @abstractmethod
    def to_numpy(self, value: Any) -> np.ndarray | None:
        """A native array as a NumPy array; None for any other value."""

    def in_pieces(self, value: Any) -> Iterable[np.ndarray] | None:
        """The pieces of an array that lies on several devices, as NumPy arrays, row after row; None for any other value."""
        return None

    def numpy(self, value: Any) -> np.ndarray:
        """Any array as a NumPy array."""
        array = self.to_numpy(value)
        return np.asarray(value) if array is None else array


def same_numbers(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two NumPy arrays hold the same numbers, of the same kind."""
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
