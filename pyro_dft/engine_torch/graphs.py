"""Flat graphs of tensor operations (`make_fx`), which take the modelling language out of a loop over batches of one size.

What a potential asks of the data, or of anything else that is the same for all points, is a constant of its graph. A graph of
a potential that asks for values of its point (see `pyro_dft.engine_torch.branches`) holds one way through it, and says which
points go that way. There are a few for the ways that are most common; points on others are left to the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_dft.engine_torch.branches import Vmapped, joined
from pyro_dft.engine_torch.random_state import unmoved

# Ways through a potential that are worth a graph, each of which evaluates all points: the most common ones.
MOST_WAYS, LEAST_SHARE = 4, 1 / 8
Results = tuple[Tensor, Tensor]
Way = tuple[int, list[Tensor]]


class Graphs:
    """Graphs of one size of batches.

    Args:
        vmapped: The potential.
        x: Points (n, d) to trace at.
        ways: How many of them gave which answers.
        rest: Evaluates points that no graph takes.

    Attributes:
        missed: Points that were left to `rest` so far.
        twice: Whether results can be differentiated once more; None where that was not tried.
    """

    def __init__(
        self, vmapped: Vmapped, x: Tensor, ways: list[Way], rest: Callable[[Tensor], Results]
    ) -> None:
        self.rest = rest
        self.missed = 0
        self.twice: bool | None = None
        common = sorted(ways, key=lambda way: -way[0])[:MOST_WAYS]
        scripts = [script for count, script in common if count >= LEAST_SHARE * len(x)]
        self.graphs = [_graph(vmapped, x, script) for script in scripts]

    def __call__(self, x: Tensor) -> Results:
        """Gradients (n, d) and values (n,) of points (n, d)."""
        left = torch.ones(len(x), dtype=torch.bool, device=x.device)
        parts: list[tuple[Tensor, Results]] = []
        for graph in self.graphs:
            results = graph(x)
            if len(results) == 2 or (not parts and bool(results[2].all())):
                return results[0], results[1]
            agree = results[2] & left
            if not bool(agree.any()):
                continue
            index = agree.nonzero()[:, 0]
            if x.requires_grad:
                # Results for points that go another way are not used, but their derivative may be NaN, also times zero.
                results = graph(torch.where(agree[:, None], x, x[index[:1]].detach()))
            parts.append((index, (results[0][index], results[1][index])))
            left = left & ~agree
        if bool(left.any()):
            index = left.nonzero()[:, 0]
            self.missed += len(index)
            parts.append((index, self.rest(x[index])))
        return joined(parts)


def _graph(vmapped: Vmapped, x: Tensor, script: list[Tensor]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    def function(batch: Tensor) -> tuple[Tensor, ...]:
        results = vmapped(batch, script)
        agree = None if vmapped.last is None else vmapped.last.agree
        return results if agree is None else (*results, agree)

    with unmoved(x.device):
        return traced(function, x)


def traced(function: Callable[..., Any], *args: Tensor) -> Callable[..., Any]:
    """A flat graph of `function` at `args`.

    `make_fx` computes shapes on fake tensors, and unless a mode of these is active it makes one for each operation, and formats
    the stack of calls for it: more than half of the time that a graph takes.
    """
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        return make_fx(function)(*args)
