"""What the evaluation of a potential takes for each point, from the tensors that it makes at one point and at two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_dft.engine_torch.random_state import unmoved
from pyro_dft.recipe.memory import PointSize


@dataclass(frozen=True)
class Cost:
    """Of one call.

    Attributes:
        operations: Number of tensor operations.
        size: What each point takes.
    """

    operations: int = 1
    size: PointSize = PointSize()


class _Made(TorchDispatchMode):
    """Sizes (elements, bytes) of every new tensor, in order; views of others take nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.sizes: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        given = {_storage(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and _storage(value) not in given:
                self.sizes.append((value.numel(), value.numel() * value.element_size()))
        return result


def _storage(value: Tensor) -> Any:
    try:
        return value.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse tensors and the like
        return id(value)


def cost_of(evaluate: Callable[[int], Any], device: torch.device) -> Cost:
    """Counts what an evaluation of one point makes, and what a second point adds to it.

    What depends on the data alone is made once for all points, and is not counted. Nothing random is used up.

    Args:
        evaluate: Evaluates so many points at once.
        device: Where.
    """

    def made(count: int) -> _Made:
        with unmoved(device), torch.no_grad(), _Made() as mode:
            evaluate(count)
        return mode

    one = made(1)
    largest = max((elements for elements, _ in one.sizes), default=1)
    total = sum(size for _, size in one.sizes)
    if PointSize(largest, total).affordable(device.type == "cpu") > 1:
        two = made(2)
        if len(two.sizes) == len(one.sizes):
            pairs = list(zip(one.sizes, two.sizes, strict=True))
            largest = max((b[0] - a[0] for a, b in pairs), default=1)
            total = sum(b[1] - a[1] for a, b in pairs)
    return Cost(one.operations, PointSize(max(1, largest), max(1, total)))
