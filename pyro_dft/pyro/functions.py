"""Functions with gradients of their own (`torch.autograd.Function`) that ``torch.func`` refuses, in a form that it takes.

It wants the forward pass apart from what is kept for the backward pass, and leave to batch both. The old form has one
function for the two, and most functions of the new form do not give leave. Checkpoints, which only save memory, are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.autograd import Function

from .evaluation import evaluating, replaced

_APPLY = vars(Function)["apply"]  # a class method: of Python, or of C from torch 2.14 on
_SETUP = Function.setup_context
# The generator behind checkpoints; from torch 2.14 on `checkpoint` takes the second.
_CHECKPOINTS = {
    name: getattr(torch.utils.checkpoint, name)
    for name in ("_checkpoint_without_reentrant_generator", "_checkpoint_without_reentrant_generator_impl")
    if hasattr(torch.utils.checkpoint, name)
}
_REENTRANT = torch.utils.checkpoint.CheckpointFunction


class _Context:
    """What the forward pass of an old function leaves on its `ctx` for the backward pass."""

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad
        self.saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *tensors: Any) -> None:
        """Nothing: a gradient that nobody asks for does no harm."""

    def set_materialize_grads(self, value: bool) -> None:
        """Nothing: gradients are there, and zero at worst."""


class _Kept:
    """Where each tensor on a context comes from, so that it can be found again among inputs and outputs of another level."""

    def __init__(self) -> None:
        self.places: dict[str, list[tuple[str, Any]]] = {}
        self.plain: dict[str, Any] = {}
        self.single, self.count = True, 1

    def record(self, ctx: _Context, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> list[Tensor]:
        """Notes everything on `ctx`; returns the tensors that are neither inputs nor outputs."""
        own: list[Tensor] = []

        def place(value: Any) -> tuple[str, Any]:
            if not isinstance(value, Tensor):
                return "plain", value
            for kind, known in (("input", inputs), ("output", outputs)):
                for i, other in enumerate(known):
                    if other is value:
                        return kind, i
            own.append(value)
            return "output", len(outputs) + len(own) - 1

        for name, value in vars(ctx).items():
            if name == "saved_tensors":
                self.places[name] = [place(tensor) for tensor in value]
            elif isinstance(value, Tensor):
                self.places[name] = [place(value)]
            else:
                self.plain[name] = value
        return own

    def context(self, tensors: tuple[Any, ...]) -> _Context:
        """The same context with the tensors of :meth:`tensors`."""
        ctx = _Context(self.plain["needs_input_grad"])
        vars(ctx).update(self.plain)
        rest = iter(tensors)
        for name, places in self.places.items():
            values = tuple(value if kind == "plain" else next(rest) for kind, value in places)
            setattr(ctx, name, values if name == "saved_tensors" else values[0])
        return ctx

    def tensors(self, inputs: Any, outputs: Any) -> list[Any]:
        """The tensors on the context, in order."""
        known = {"input": inputs, "output": outputs}
        return [known[kind][i] for places in self.places.values() for kind, i in places if kind != "plain"]


class _Old(Function):
    """Calls a function of the old form."""

    generate_vmap_rule = True

    @staticmethod
    def forward(function: Any, kept: _Kept, *inputs: Any) -> Any:
        ctx = _Context(tuple(isinstance(value, Tensor) and value.is_floating_point() for value in inputs))
        result = function.forward(ctx, *inputs)
        kept.single = not isinstance(result, tuple)
        outputs = (result,) if kept.single else result
        kept.count = len(outputs)
        return (*outputs, *kept.record(ctx, inputs, outputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        function, kept, *own = inputs
        ctx.function, ctx.kept = function, kept
        ctx.save_for_backward(*kept.tensors(own, output))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        kept = ctx.kept
        old = kept.context(ctx.saved_tensors)
        result = ctx.function.backward(old, *gradients[: kept.count])
        return None, None, *(result if isinstance(result, tuple) else (result,))


@functools.cache
def _batchable(function: Any) -> Any:
    return type(function.__name__, (function,), {"generate_vmap_rule": True})


def _plain(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """What `cls.apply` does where nothing is replaced."""
    return _APPLY.__get__(None, cls)(*args, **kwargs)


def _apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
    if not evaluating() or not torch._C._are_functorch_transforms_active():
        return _plain(cls, *args, **kwargs)
    if cls.setup_context is _SETUP:
        kept = _Kept()
        results = _plain(_Old, cls, kept, *args, **kwargs)
        return results[0] if kept.single else results[: kept.count]
    if not cls.generate_vmap_rule and cls.vmap is Function.vmap:
        cls = _batchable(cls)
    return _plain(cls, *args, **kwargs)


def _checkpoint(plain: Callable[..., Iterator[None]], *args: Any, **kwargs: Any) -> Iterator[None]:
    return iter((None,)) if evaluating() else plain(*args, **kwargs)


class _Reentrant:
    """Stands in for the function behind checkpoints of the older kind."""

    @staticmethod
    def apply(function: Any, preserve: bool, *args: Any) -> Any:
        return function(*args) if evaluating() else _REENTRANT.apply(function, preserve, *args)


def replace_functions(stack: ExitStack) -> None:
    """Until the stack is left, the thread inside `patched` has functions that can be batched."""
    stack.enter_context(replaced(Function, "apply", classmethod(_apply)))
    for name, plain in _CHECKPOINTS.items():
        stack.enter_context(replaced(torch.utils.checkpoint, name, functools.partial(_checkpoint, plain)))
    stack.enter_context(replaced(torch.utils.checkpoint, "CheckpointFunction", _Reentrant))
