"""A potential that asks for values of its point, as in ``if x > 0``, evaluated for many points at once.

``torch.func.vmap`` has no value to return where Python asks for one. But where all points of a batch give the same answer,
that is the value; where they do not, points are grouped by their answers, and each group is evaluated together. So a check
that passes at every point costs nothing but its own evaluation, and each point takes the branch that it would take by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.overrides import TorchFunctionMode

_functorch = torch._C._functorch


class Disagreement(BaseException):
    """The points of a batch give different answers. Not an `Exception`, which a model may catch.

    Attributes:
        group: (n,) number of the answer that each point gives.
    """

    def __init__(self, group: Tensor) -> None:
        super().__init__(f"{int(group.max()) + 1} answers of {len(group)} points")
        self.group = group


def rows_of(x: Any, level: int | None = None) -> Tensor | None:
    """The values (n, ...) of all points, where ``x`` is one of them inside a single `vmap`; else None.

    Args:
        x: Anything.
        level: Of the `vmap` that is meant; that of `x` by default.
    """
    if not isinstance(x, Tensor):
        return None
    found = None
    batch_dims = 0
    while _functorch.is_functorch_wrapped_tensor(x):
        inner = _functorch.get_unwrapped(x)
        if _functorch.is_batchedtensor(x):
            batch_dims += 1
            if level is None or _functorch.maybe_get_level(x) == level:
                found = _functorch.maybe_get_bdim(x)
        x = inner
    return x.movedim(found, 0) if batch_dims == 1 and found is not None else None


def _batched_at_all(x: Tensor) -> bool:
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_batchedtensor(x):
            return True
        x = _functorch.get_unwrapped(x)
    return False


def _plain(x: Tensor) -> Tensor:
    while _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
    return x


def _level(x: Tensor) -> int:
    while not _functorch.is_batchedtensor(x):
        x = _functorch.get_unwrapped(x)
    return int(_functorch.maybe_get_level(x))


_TRUTH = {torch.Tensor.__bool__, torch.Tensor.is_nonzero, torch.is_nonzero}
_NUMBERS = {torch.Tensor.__int__, torch.Tensor.__index__, torch.Tensor.__float__, torch.Tensor.tolist}
_MASKED = {
    torch.Tensor.__getitem__,
    torch.Tensor.__setitem__,
    torch.masked_select,
    torch.Tensor.masked_select,
}
_WHERE = {
    torch.where,
    torch.Tensor.where,
    torch.nonzero,
    torch.Tensor.nonzero,
    torch.argwhere,
    torch.Tensor.argwhere,
}
_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]
_SIZED = {torch.arange, torch.linspace, torch.zeros, torch.ones, torch.empty, torch.full, torch.eye}
_RESHAPED = {torch.Tensor.repeat, torch.Tensor.view, torch.Tensor.reshape, torch.Tensor.expand}
_SAME = {torch.equal, torch.Tensor.equal, torch.allclose, torch.Tensor.allclose}


class Answers(TorchFunctionMode):
    """Answers what a model asks of its point while `vmap` evaluates a batch.

    Args:
        x: The point, which stands for the batch.
        script: Answers to give, in order, whatever the points would answer; which points agree is noted. None to ask the points.

    Attributes:
        given: The answers, in order.
        agree: (n,) which points give all of them, where there is a script and something was asked.

    Raises:
        Disagreement: points give different answers, and there is no script.
    """

    def __init__(self, x: Tensor, script: list[Tensor] | None = None) -> None:
        super().__init__()
        self.level = _level(x)
        self.script = script
        self.given: list[Tensor] = []
        self.agree: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _TRUTH or func in _NUMBERS:
            # More points agree on a rounded number than on the number before rounding.
            whole = func is torch.Tensor.__int__ and args[0].is_floating_point()
            answer = self._answer(args[0].detach().trunc() if whole else args[0])
            return func(args[0] if answer is None else answer)
        if func is _DATA and rows_of(args[0], self.level) is not None:
            return args[0].detach()
        if func is torch.Tensor.item:
            # A real number is mostly compared or computed with: the question can wait until the comparison.
            if args[0].is_floating_point() and rows_of(args[0], self.level) is not None:
                return args[0].detach().reshape(())
            answer = self._answer(args[0])
            return func(args[0] if answer is None else answer)
        if func is torch.Tensor.__format__ and (rows := rows_of(args[0], self.level)) is not None:
            return ", ".join(format(number, args[1]) for number in rows.flatten().tolist())
        if func is torch.Tensor.register_hook:
            return func(args[0], self._inside(args[1]))
        if func in _SIZED:
            args = [self._size(value) for value in args]
        if func in _RESHAPED:  # a tensor, which may be a whole number itself, and its new sizes
            args = [args[0], *(self._size(value) for value in args[1:])]
        if func in _SAME:
            return self._same(func, *args, **kwargs)
        if func in _MASKED:
            return self._masked(func, *args, **kwargs)
        if func in _WHERE and len(args) == 1 and (answer := self._answer(args[0] != 0)) is not None:
            return func(answer, **kwargs)
        return func(*args, **kwargs)

    def _same(self, func: Any, a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> bool:
        if rows_of(a, self.level) is None and rows_of(b, self.level) is None:
            return bool(func(a, b, *args, **kwargs))
        if a.shape != b.shape and func in (torch.equal, torch.Tensor.equal):
            return False
        close = torch.isclose(a, b, *args, **kwargs) if "allclose" in func.__name__ else a == b
        answer = self._answer(close.all())
        return bool(close.all() if answer is None else answer)

    def _inside(self, hook: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        def answered(gradient: Tensor) -> Any:
            with self:
                return hook(gradient)

        return answered

    def _number(self, x: Any) -> Any:
        answer = self._answer(x)
        return x if answer is None else answer.item()

    def _size(self, x: Any) -> Any:
        whole = isinstance(x, Tensor) and x.dim() == 0 and not x.is_floating_point()
        return self._number(x) if whole else x

    def _masked(self, func: Any, tensor: Tensor, index: Any, *rest: Any, **kwargs: Any) -> Any:
        if rest and rows_of(tensor, self.level) is not None and fills_a_mask(index, rest[0]):
            return fill_mask(tensor, index, rest[0])
        if func is torch.Tensor.__getitem__ and _is_row(index) and _batched_at_all(index):
            return func(tensor, index.reshape(1)).squeeze(0)  # the same, without asking for a number

        def shared(part: Any) -> Any:
            if isinstance(part, tuple):
                return tuple(shared(inner) for inner in part)
            if isinstance(part, slice):
                return slice(*(self._number(end) for end in (part.start, part.stop, part.step)))
            if not isinstance(part, Tensor):
                return part
            if _is_row(part) and not _batched_at_all(part):
                return int(self._number(part))
            answer = self._answer(part) if part.dtype in (torch.bool, torch.uint8) else None
            return part if answer is None else answer

        return func(tensor, shared(index), *rest, **kwargs)

    def _answer(self, x: Tensor) -> Tensor | None:
        """The value of ``x`` that all points agree on, without a gradient; None inside of a `vmap` of the model's own."""
        if not isinstance(x, Tensor):
            return None
        rows = rows_of(x, self.level)
        if rows is None and _batched_at_all(x):
            return None
        # What is noted belongs to the whole batch, and must outlive the `vmap`.
        with temporarily_clear_interpreter_stack():
            answer = self._common(x) if rows is None else self._noted(rows.detach())
        self.given.append(answer)
        return answer

    def _common(self, x: Tensor) -> Tensor:
        """The value of something that is the same for all points; in a graph that is being traced it cannot be read."""
        return _plain(x).detach().clone() if self.script is None else self.script[len(self.given)]

    def _noted(self, rows: Tensor) -> Tensor:
        if self.script is not None:
            answer = self.script[len(self.given)]
            same = _equal(rows, answer).reshape(len(rows), -1).all(-1)
            self.agree = same if self.agree is None else self.agree & same
            return answer
        if not bool(_equal(rows, rows[0]).all()):
            raise Disagreement(_groups(rows.reshape(len(rows), -1)))
        return rows[0].clone()


def _is_row(index: Any) -> bool:
    """Whether a tensor stands for one whole number."""
    return isinstance(index, Tensor) and index.dim() == 0 and index.dtype in (torch.int64, torch.int32)


def _equal(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | (a != a) & (b != b)


def _groups(rows: Tensor) -> Tensor:
    if rows.is_floating_point():
        rows = torch.where(rows != rows, torch.full_like(rows, torch.inf), rows)
    return torch.unique(rows, dim=0, return_inverse=True)[1]


def fills_a_mask(index: Any, value: Any) -> bool:
    """Whether ``tensor[index] = value`` writes one number wherever a mask says so."""
    scalar = value.dim() == 0 if isinstance(value, Tensor) else isinstance(value, int | float)
    return scalar and isinstance(index, Tensor) and index.dtype == torch.bool


def fill_mask(tensor: Tensor, mask: Tensor, value: Any) -> Tensor:
    """``tensor[mask] = value`` for one number, by an operation whose shapes do not depend on the mask."""
    return tensor.masked_fill_(mask.reshape(mask.shape + (1,) * (tensor.dim() - mask.dim())), value)


class Vmapped:
    """Gradient and value of a potential for a batch of points (n, d).

    Args:
        potential: Of one point (d,).
        randomness: As `torch.func.vmap` takes it.

    Attributes:
        asks: Whether the potential asks for values of its point, so that answers are needed.
        in_place: Whether the potential may write into tensors in place; else it writes into copies, so that second derivatives,
            which need what was overwritten, work.
        last: What was asked in the last call; None where the potential does not ask.
    """

    def __init__(self, potential: Callable[[Tensor], Tensor], randomness: str) -> None:
        self.function = torch.func.grad_and_value(potential)
        self.randomness = randomness
        self.asks = False
        self.in_place = True
        self.last: Answers | None = None

    def __call__(self, x: Tensor, script: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Gradients (n, d) and values (n,).

        Args:
            x: Points (n, d).
            script: Answers to give, whatever the points say; see `Answers`.

        Raises:
            Disagreement: points give different answers.
        """

        def answered(point: Tensor) -> tuple[Tensor, Tensor]:
            # Around the gradient too: hooks of tensors are called in the backward pass.
            with Answers(point, script) as self.last:
                return self.function(point)

        self.last = None
        function = answered if self.asks else self.function
        batched = torch.func.vmap(function, randomness=self.randomness)
        return batched(x) if self.in_place else torch.func.functionalize(batched)(x)


def joined(parts: list[tuple[Tensor, tuple[Tensor, Tensor]]]) -> tuple[Tensor, Tensor]:
    """Results of parts of a batch, each given with the indices of its points, in the order of the batch."""
    back = torch.argsort(torch.cat([index for index, _ in parts]))
    first, second = (torch.cat([result[i] for _, result in parts]) for i in range(2))
    return first[back], second[back]
