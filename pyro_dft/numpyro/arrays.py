"""Arrays of NumPy and jax as the interface handles them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pyro_dft.engine_jax.sharding import in_row_order, is_spread
from pyro_dft.interface.arrays import Arrays, same_numbers


class JaxArrays(Arrays):
    """Native arrays are NumPy's within a fit, and jax's where users get them."""

    def concatenate(self, arrays: Iterable[Any], axis: int = 0) -> Any:
        """NumPy arrays, or jax arrays, one after the other."""
        pieces = list(arrays)
        if all(isinstance(piece, np.ndarray) for piece in pieces):
            return np.concatenate(pieces, axis)
        return jnp.concatenate(pieces, axis)

    def copied(self, value: Any) -> Any:
        """A copy of a NumPy array; jax's cannot change."""
        return value.copy() if isinstance(value, np.ndarray) else value

    def same(self, a: Any, b: Any) -> bool | None:
        """Whether two NumPy arrays hold the same, or two jax arrays are one; None where one of them is no array."""
        if isinstance(a, jax.Array):  # which cannot change
            return a is b
        if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
            return None
        return same_numbers(a, b)

    def to_numpy(self, value: Any) -> np.ndarray | None:
        """An array as a NumPy array, of single precision at least where it is jax's; None where no process has all of it."""
        if isinstance(value, np.ndarray):
            return value
        if not isinstance(value, jax.Array) or not (value.is_fully_addressable or value.is_fully_replicated):
            return None  # what no process has all of
        return _single(value)

    def in_pieces(self, value: Any) -> Iterable[np.ndarray] | None:
        """See the base class."""
        rows = in_row_order(value) if is_spread(value) else None
        return None if rows is None else map(_single, rows)


def _single(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.name in ("bfloat16", "float16") else array
