"""Running a Pyro model so that many points can be evaluated at once.

``torch.func.vmap`` batches a potential without any help from the model's author, but Pyro and torch raise
where a batch is harmless. The context managers here remove those obstacles for the length of an evaluation
and put everything back as it was. They change attributes of modules, one thread at a time, and what they put
there acts as before in every other thread: torch works in several threads, and must go on to do so.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.ops.special
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from pyro_dft.interface.exclusive import exclusive

_VALIDATE_SAMPLE = torch.distributions.Distribution._validate_sample
_LOOP_LIMIT = 10_000  # rows of a plate over which a Python loop is thinkable
# What torch itself has, whatever is in its place for now.
_CHOLESKY, _CHOLESKY_OLD, _CHOLESKY_METHOD = torch.linalg.cholesky, torch.cholesky, torch.Tensor.cholesky
_depth = 0
_thread: int | None = None  # the one inside `patched`


def evaluating() -> bool:
    """Whether this thread is inside :func:`patched`."""
    return _thread == threading.get_ident()


class _OffWhileEvaluating:
    """A class attribute that is False for the thread inside :func:`patched`, and as before for the others."""

    def __init__(self, before: bool) -> None:
        self.before = before

    def __get__(self, instance: Any, owner: Any = None) -> bool:
        return self.before and not evaluating()


class _SafeLog(torch.autograd.Function):
    """Pyro's log with a bounded gradient at 0, written so that torch.func can batch it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.log()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad / x.clamp(min=torch.finfo(x.dtype).eps)


def _validate_sample(self: Any, value: Any) -> None:
    if not evaluating():
        _VALIDATE_SAMPLE(self, value)


def _cholesky(matrix: Tensor, *, upper: bool = False, out: Any = None) -> Tensor:
    """``torch.linalg.cholesky`` that gives NaN for a matrix that has no factor, in place of an exception."""
    if not evaluating():
        return _CHOLESKY(matrix, upper=upper, out=out)
    if out is not None:
        raise NotImplementedError("torch.linalg.cholesky(out=...) is not supported inside a model")
    factor, info = torch.linalg.cholesky_ex(matrix, upper=upper)
    # A product, so that the gradient becomes NaN as well.
    return factor * torch.where(info > 0, float("nan"), 1.0).to(factor.dtype)[..., None, None]


def _cholesky_old(matrix: Tensor, upper: bool = False, *, out: Any = None) -> Tensor:
    if not evaluating():
        return _CHOLESKY_OLD(matrix, upper, out=out)
    return _cholesky(matrix, upper=upper, out=out)


def _cholesky_method(matrix: Tensor, upper: bool = False) -> Tensor:
    return _cholesky(matrix, upper=upper) if evaluating() else _CHOLESKY_METHOD(matrix, upper)


def marked_range(size: int, device: Any) -> Tensor:
    """Index of all rows of a plate; short ones carry their entries as numbers for :func:`_iterate`."""
    index = torch.arange(size, device=device)
    if size <= _LOOP_LIMIT:
        index._pyro_dft_rows = range(size)  # type: ignore[attr-defined]
    return index


def _iterate(plate: SubsampleMessenger) -> Iterator[int]:
    """``for i in pyro.plate(...)`` that reads no numbers from tensors: tracing into a graph forbids it."""
    rows = getattr(plate._indices, "_pyro_dft_rows", None)
    if rows is None or plate._vectorized is True or plate.dim is not None:
        yield from IndepMessenger.__iter__(plate)  # type: ignore[misc]
        return
    plate._vectorized = False
    for i in rows:
        plate.next_context()
        with plate:
            yield i


class VmapEnumMessenger(EnumMessenger):
    """Parallel enumeration that never touches ``Tensor.data``, which vmap forbids outside of a gradient."""

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if not isinstance(msg["fn"], TorchDistributionMixin) or value is None:
            return
        shape = value.shape[: value.dim() - msg["fn"].event_dim]
        dim_to_id = msg["infer"].setdefault("_dim_to_id", {})
        dim_to_id.update(self._param_dims.get(msg["name"], {}))
        self._value_dims[msg["name"]] = {
            dim: id_ for dim, id_ in dim_to_id.items() if len(shape) >= -dim and shape[dim] > 1
        }


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute of a module or class for the length of the context."""
    own = name in vars(owner)
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Everything that batched evaluation of a Pyro model needs; restores all of it on the way out.

    Within: validation of Pyro and torch distributions is off (it branches on values, which vmap forbids), the
    logarithm of enumeration is batchable, and a matrix without a Cholesky factor gives NaN in its own row in
    place of an exception for the whole batch. Effect handlers outside do not reach the model, as in Pyro's `MCMC.run`, and
    torch's detection of anomalies is off: gradients that are not finite are expected far out. May be nested; only the
    outermost context does anything. Another thread that enters waits until this one has left, and sees torch as it was until
    it has entered.
    """
    global _depth, _thread
    with exclusive(), contextlib.ExitStack() as stack:
        _depth += 1
        try:
            if _depth == 1:
                _thread = threading.get_ident()
                _replace_all(stack)
            yield
        finally:
            _depth -= 1
            if not _depth:
                _thread = None


def _replace_all(stack: contextlib.ExitStack) -> None:
    distribution = torch.distributions.Distribution
    # Pyro puts torch's flag back to what *Pyro's* flag says: keep torch's own value as well.
    before = distribution._validate_args
    stack.callback(distribution.set_default_validate_args, before)
    stack.enter_context(poutine.block())
    stack.enter_context(torch.autograd.set_detect_anomaly(False))
    stack.enter_context(pyro.validation_enabled(False))
    distribution._validate_args = _OffWhileEvaluating(before)  # type: ignore[assignment]
    stack.enter_context(warnings.catch_warnings())
    # vmap's advice on operations that it loops over is meant for the developers of torch.
    warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
    stack.enter_context(replaced(distribution, "_validate_sample", _validate_sample))
    stack.enter_context(replaced(SubsampleMessenger, "__iter__", _iterate))
    stack.enter_context(replaced(pyro.ops.special, "_SafeLog", _SafeLog))
    stack.enter_context(replaced(torch.linalg, "cholesky", _cholesky))
    stack.enter_context(replaced(torch, "cholesky", _cholesky_old))
    stack.enter_context(replaced(torch.Tensor, "cholesky", _cholesky_method))
    from .functions import replace_functions  # which asks here whether this thread is evaluating

    replace_functions(stack)


def _forget() -> None:
    # A forked process has one thread, which is inside of nothing; where another was, its replacements act as what they replaced.
    global _depth, _thread
    if not evaluating():
        _depth, _thread = 0, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def checked_samples() -> contextlib.AbstractContextManager[None]:
    """Puts back, inside :func:`patched`, the check of samples on which Pyro's strategies to start rely."""
    return replaced(torch.distributions.Distribution, "_validate_sample", _VALIDATE_SAMPLE)


def with_gradients(arguments: Any) -> Any:
    """Nested arguments with tensors that were made in inference mode, which can take no part in a gradient, copied."""

    def copied(leaf: Any) -> Any:
        return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf

    leaves = tree_leaves(arguments)
    if not any(isinstance(leaf, Tensor) and leaf.is_inference() for leaf in leaves):
        return arguments
    return tree_map(copied, arguments)


@contextlib.contextmanager
def full_index(record: dict[str, tuple[int, int]] | None = None) -> Iterator[None]:
    """Makes every ``pyro.plate(name, size, subsample_size=n)`` run over all of its ``size`` rows.

    A messenger cannot do this: Pyro compares the length of the index with ``subsample_size`` after the
    handlers have run. Plates that were given an explicit ``subsample=`` keep it: that is the caller's choice.

    Args:
        record: Filled with name -> (size, subsample size) of the plates that were widened.
    """
    original, thread = SubsampleMessenger._subsample, threading.get_ident()

    def subsample(
        name: str,
        size: int | None = None,
        subsample_size: int | None = None,
        subsample: Tensor | None = None,
        use_cuda: bool | None = None,
        device: str | None = None,
    ) -> Any:
        if threading.get_ident() != thread:
            return original(name, size, subsample_size, subsample, use_cuda, device)
        if subsample is None and size is not None and subsample_size is not None and subsample_size < size:
            if record is not None:
                record[name] = (int(size), int(subsample_size))
            subsample_size = None
        return original(name, size, subsample_size, subsample, use_cuda, device)

    with exclusive(), replaced(SubsampleMessenger, "_subsample", staticmethod(subsample)):
        yield
