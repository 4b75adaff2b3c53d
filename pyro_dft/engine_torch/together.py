"""Processes that share the rows of one posterior, by `torch.distributed`.

Each of them evaluates its own rows at the same points; potentials and gradients are added up, (1 + d) numbers for each point, so
that everything that follows is the same in all processes. The sum carries a mark of each process: what its points are, or that it
failed. So processes that took other steps, or one that cannot go on, end all of them with an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pyro_dft import messages

# (n, d) points -> (n,) values and (n, d) gradients.
Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]
# Marks are whole numbers that single precision holds.
MARKS = 2**22
FAILED = -1.0


class _Summed(torch.autograd.Function):
    """Sum over processes. Backwards each gets the gradient of the sum, which is the same in all of them."""

    @staticmethod
    def forward(ctx, together, message):
        return together.add_up(message.clone())

    @staticmethod
    def backward(ctx, gradient):
        return None, gradient


class _Shared(torch.autograd.Function):
    """Points that each process reads on its way to a sum: backwards their shares of a gradient are added up."""

    @staticmethod
    def forward(ctx, together, x):
        ctx.together = together
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return None, ctx.together.add_up(gradient.contiguous().clone())


class Together:
    """A process group of `torch.distributed`, as a posterior sees it.

    Args:
        group: The group.

    Attributes:
        rank: This process's place in it.
        size: Processes.
    """

    def __init__(self, group: Any):
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def evaluate(self, function: Evaluate, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values (n,) and gradients (n, d) at points (n, d), summed over processes; differentiable as `function` is.

        Args:
            function: Evaluates this process's part.
            x: The points, the same in each process.

        Raises:
            ConnectionError: a process has ended, failed, or is at other points.
            Exception: what `function` raised here.
        """
        n, d = x.shape
        mark, failure = _mark(x), None
        try:
            value, gradient = function(_Shared.apply(self, x) if x.requires_grad else x)
        except Exception as error:  # the others wait for this process, and must hear of it
            value, gradient = x.new_full((n,), torch.nan), x.new_full((n, d), torch.nan)
            mark, failure = FAILED, error
        marks = x.new_zeros(self.size)
        marks[self.rank] = mark
        message = torch.cat([value.to(x.dtype), gradient.to(x.dtype).reshape(-1), marks])
        try:
            total = _Summed.apply(self, message)
        except ConnectionError as error:
            if failure is None:
                raise
            raise failure from error
        if failure is not None:
            raise failure
        marks = total[n * (1 + d) :].detach()
        if bool((marks != mark).any()):
            failed = (marks == FAILED).nonzero().flatten().tolist()
            raise ConnectionError(messages.process_failed(failed) if failed else messages.processes_apart())
        return total[:n], total[n : n * (1 + d)].reshape(n, d)

    def add_up(self, message: Tensor) -> Tensor:
        """Sums of a tensor over all processes, in its place.

        Raises:
            ConnectionError: a process has ended, or has not answered within the time limit of the group.
        """
        try:
            dist.all_reduce(message, group=self.group)
        except RuntimeError as error:
            raise ConnectionError(messages.process_lost(str(error))) from error
        return message

    def gather(self, value: Any) -> list[Any]:
        """A picklable object of each process, in the order of their ranks.

        Raises:
            ConnectionError: as for `add_up`.
        """
        found: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(found, value, group=self.group)
        except RuntimeError as error:
            raise ConnectionError(messages.process_lost(str(error))) from error
        return found


def _mark(x: Tensor) -> float:
    """A number below `MARKS` that changes with any bit of the points (n, d)."""
    flat = x.detach().contiguous().reshape(-1)
    bits = flat.view(torch.int32 if flat.element_size() == 4 else torch.int64).to(torch.int64)
    places = 2 * torch.arange(len(bits), device=bits.device) + 1
    return float((((bits ^ (bits >> 21)) * places).sum() >> 7) % MARKS)
