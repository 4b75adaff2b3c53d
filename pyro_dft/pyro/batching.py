"""Many points at once: by vmap where it can, row by row where it cannot."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_dft.engine_torch.branches import Answers, Disagreement, fill_mask, fills_a_mask
from pyro_dft.engine_torch.cost import cost_of

from .evaluation import evaluating, patched, replaced

Rows = Mapping[str, Tensor]
RowFunction = Callable[[dict[str, Tensor]], dict[str, Tensor]]
# So few rows are batched without counting what they take.
_FEW = 2
_DIRICHLET = torch.distributions.dirichlet._Dirichlet


def in_vmap(x: Tensor) -> bool:
    """Whether ``x`` stands for a whole batch of points inside ``torch.func.vmap``."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False


def _methods(*names: str) -> set[Any]:
    return {getattr(owner, name) for name in names for owner in (torch, torch.Tensor) if hasattr(owner, name)}


_RANDOM = _methods(
    "normal_", "uniform_", "exponential_", "cauchy_", "log_normal_", "geometric_", "bernoulli_"
)  # fmt: skip
_FACTORIES = _methods(
    "zeros", "ones", "empty", "full", "eye", "clone",
    "zeros_like", "ones_like", "empty_like", "full_like",
    "new_zeros", "new_ones", "new_empty", "new_full",
)  # fmt: skip


class PerRow(TorchFunctionMode):
    """Gives every row of a vmap its own copy of tensors that are written in place.

    vmap refuses to write a batched value into a tensor that all rows share, as in ``a = torch.zeros(3)``,
    ``a[0] = mu``, and to fill such a tensor with different random numbers, as many distributions do.

    Args:
        x: A tensor that is batched over the rows.
        factories: Treat new tensors, such as ``torch.zeros(3)``, in addition to random numbers.
    """

    def __init__(self, x: Tensor, factories: bool) -> None:
        super().__init__()
        self.zero = torch.zeros_like(x, dtype=torch.get_default_dtype()).sum()
        self.factories = factories

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.__setitem__ and fills_a_mask(*args[1:]):
            return fill_mask(*args)
        if func in _RANDOM:
            return func(torch.zeros_like(args[0]) + self.zero.to(args[0].dtype), *args[1:], **kwargs)
        result = func(*args, **kwargs)
        if self.factories and func in _FACTORIES and result.is_floating_point():
            return result + self.zero.to(result.dtype)
        return result


def per_row(x: Tensor, factories: bool) -> AbstractContextManager[Any]:
    """:class:`PerRow` if ``x`` is batched, else nothing."""
    return PerRow(x, factories) if in_vmap(x) else nullcontext()


def map_rows(function: RowFunction, rows: Rows, *, chunk: int) -> dict[str, Tensor]:
    """Applies a function of one point to every row, without gradients.

    Args:
        function: Maps name -> tensor of one row to name -> tensor. Random numbers differ from row to row.
        rows: Name -> tensor of shape (n, ...), with the same n > 0 for all.
        chunk: Number of rows that are batched at a time, which bounds the memory.

    Returns:
        Name -> tensor of shape (n, ...).
    """
    inputs = dict(rows)
    first = next(iter(inputs.values()))
    n = len(first)
    with (
        torch.no_grad(),
        patched(),
        replaced(torch.distributions.dirichlet, "_Dirichlet", _SampleDirichlet),
    ):
        for factories in (False, True) if n > 1 else ():
            own = _with_own_tensors(function, factories)
            try:
                batched = torch.func.vmap(own, randomness="different")
                return _in_chunks(batched, inputs, min(chunk, affordable(batched, inputs, first.device)))
            except Exception:  # whatever vmap cannot do, the loop may: the real error comes again below
                continue
        for factories in (False, True) if n > 1 else ():
            own = _with_own_tensors(_answered(function), factories)
            # Whoever draws random numbers until points agree prefers some of them: those are left to the loop.
            with contextlib.suppress(Exception):
                batched = torch.func.vmap(own, randomness="error")
                return _in_chunks(lambda some, b=batched: _by_answers(b, some), inputs, chunk)  # type: ignore[misc]
        results = [function({name: value[i] for name, value in inputs.items()}) for i in range(n)]
    return {name: torch.stack([result[name] for result in results]) for name in results[0]}


def affordable(batched: Callable[[Any], Any], inputs: Any, device: torch.device) -> int:
    """How many rows of a tensor, or of a dict of them, memory allows a batched function at a time."""

    def evaluate(count: int) -> Any:
        return batched(_rows(inputs, slice(0, count)))

    n = len(inputs) if isinstance(inputs, Tensor) else len(next(iter(inputs.values())))
    if n <= _FEW:
        return _FEW
    try:
        return cost_of(evaluate, device).size.affordable(device.type == "cpu")
    except Exception:  # where it was the evaluation, the caller's own says why
        return _FEW


def _rows(inputs: Any, some: slice | Tensor) -> Any:
    if isinstance(inputs, Tensor):
        return inputs[some]
    return {name: value[some] for name, value in inputs.items()}


def _in_chunks(batched: RowFunction, inputs: dict[str, Tensor], chunk: int) -> dict[str, Tensor]:
    n = len(next(iter(inputs.values())))
    whole: dict[str, Tensor] = {}
    for start in range(0, n, chunk):
        part = batched(_rows(inputs, slice(start, start + chunk)))
        if chunk >= n:
            return part
        # Written into the whole as it comes: parts that are joined at the end would stand in memory twice.
        for name, value in part.items():
            if name not in whole:
                whole[name] = value.new_empty((n, *value.shape[1:]))
            whole[name][start : start + chunk] = value
    return whole


def _answered(function: RowFunction) -> RowFunction:
    def wrapped(row: dict[str, Tensor]) -> dict[str, Tensor]:
        with Answers(next(iter(row.values()))):
            return function(row)

    return wrapped


def _by_answers(batched: RowFunction, rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """All rows at once or, where they answer differently what the model asks of them, those that agree."""
    try:
        return batched(rows)
    except Disagreement as parted:
        group = parted.group
    parts = [(group == number).nonzero()[:, 0] for number in range(int(group.max()) + 1)]
    results = [_by_answers(batched, _rows(rows, index)) for index in parts]
    back = torch.argsort(torch.cat(parts))
    return {name: torch.cat([result[name] for result in results])[back] for name in results[0]}


def _with_own_tensors(function: RowFunction, factories: bool) -> RowFunction:
    def wrapped(row: dict[str, Tensor]) -> dict[str, Tensor]:
        with PerRow(next(iter(row.values())), factories):
            return function(row)

    return wrapped


class _SampleDirichlet:
    """Stands in for torch's autograd function of Dirichlet samples, which vmap refuses. No gradient."""

    @staticmethod
    def apply(concentration: Tensor) -> Tensor:
        return torch._sample_dirichlet(concentration) if evaluating() else _DIRICHLET.apply(concentration)
