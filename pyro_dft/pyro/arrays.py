"""Torch's tensors as the interface handles them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_dft.interface.arrays import Arrays, same_numbers


class TorchArrays(Arrays):
    """Native arrays are tensors; NumPy's own are arrays as well where something is copied or compared."""

    def concatenate(self, arrays: Iterable[Tensor], axis: int = 0) -> Tensor:
        """Tensors, one after the other."""
        return torch.cat(list(arrays), axis)

    def copied(self, value: Any) -> Any:
        """A detached copy of a tensor, or a copy of a NumPy array."""
        if isinstance(value, Tensor):
            return value.detach().clone()
        return value.copy() if isinstance(value, np.ndarray) else value

    def same(self, a: Any, b: Any) -> bool | None:
        """Whether two arrays hold the same, on the same device; None where one of them is no array."""
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            return same_numbers(a, b)
        return None

    def to_numpy(self, value: Any) -> np.ndarray | None:
        """A tensor as a NumPy array, of single precision at least."""
        if not isinstance(value, Tensor):
            return None
        value = value.detach().cpu()
        return (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy()
