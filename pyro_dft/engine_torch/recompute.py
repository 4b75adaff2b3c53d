"""A batched evaluation of which nothing is kept for the backward pass, which evaluates it again.

`torch.utils.checkpoint` does the same, but its hooks do not go with functions that `torch.func` has made, and without them
it does not go with `torch.autograd.grad`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_dft.engine_torch.random_state import random_state, set_random_state, unmoved

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]


def recomputed(evaluate: Evaluate, x: Tensor) -> tuple[Tensor, Tensor]:
    """Two results of points (n, d), differentiable once; the same random numbers are drawn both times."""
    return _Recomputed.apply(x, evaluate)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, evaluate: Evaluate) -> tuple[Tensor, Tensor]:
        ctx.evaluate, ctx.random_state = evaluate, random_state(x.device)
        ctx.save_for_backward(x)
        return evaluate(x)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        point = x.detach().requires_grad_()
        with unmoved(x.device), torch.enable_grad():
            set_random_state(ctx.random_state)
            results = ctx.evaluate(point)
            (gradient,) = torch.autograd.grad(results, point, cotangents, allow_unused=True)
        return torch.zeros_like(x) if gradient is None else gradient, None
