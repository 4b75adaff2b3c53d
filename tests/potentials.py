"""Potentials for the tests of the batched target."""

from __future__ import annotations

import torch

D = 3


def curved(x):
    """A potential with a full Hessian that depends on x."""
    return 0.5 * x.square().sum() + 0.3 * torch.exp(0.5 * x[0]) * x[1] + torch.cos(x).prod()


def one_by_one(potential, x):
    log_density, score = [], []
    for row in x:
        point = row.clone().requires_grad_()
        value = potential(point)
        log_density.append(-value.detach())
        score.append(-torch.autograd.grad(value, point)[0])
    return torch.stack(log_density), torch.stack(score)
