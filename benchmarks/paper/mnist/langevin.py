"""Langevin dynamics on the energy: annealed from noise (the rival), and at temperature 1 from data (the gate).

A step of size a at temperature T moves x to x - a s0^2 grad E(x) + sqrt(2 a T) s0 n: a share a of the way to
the denoised image, and noise. The energy is that of the noise level sqrt(T) s0. (In the notation of Li, Chen and
Sommer, eps^2 / 2 = a s0^2; their eps = 0.02 at s0 = 0.1 is a = 0.02.) One evaluation of the gradient is a forward and
a backward pass of the energy network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Model(Protocol):
    """What the dynamics need of an energy: s0, and x - s0^2 grad E(x) at a noise level."""

    reference: float

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """Flat images (n, d) of a noise level to flat images (n, d)."""


@dataclass(frozen=True)
class Schedule:
    """An annealed run.

    Attributes:
        steps: Langevin steps; the denoising step at the end is one more evaluation.
        share: Step size a.
        start: Temperature of the first step; it falls geometrically to ``end``.
        end: Temperature of the last step.
    """

    steps: int
    share: float
    start: float
    end: float = 1.0

    def temperatures(self) -> list[float]:
        """One for each step."""
        count = max(self.steps - 1, 1)
        return [self.start * (self.end / self.start) ** (i / count) for i in range(self.steps)]


def step(model: Model, x: Tensor, share: float, temperature: float, generator: torch.Generator) -> Tensor:
    """One Langevin step of all images (n, d)."""
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    sigma = math.sqrt(temperature) * model.reference
    return x + share * (model.denoise(x, sigma) - x) + math.sqrt(2 * share) * sigma * noise


def anneal(model: Model, mean: Tensor, count: int, schedule: Schedule, seed: int, block: int = 250) -> Tensor:
    """Images (count, d): from the mean image under the noise of the first temperature, down to the last, denoised.

    Args:
        model: The energy.
        mean: Mean image (d,).
        count: Images.
        schedule: Steps and temperatures.
        seed: Of the noise.
        block: Images at a time.
    """
    generator = torch.Generator().manual_seed(seed)
    out = []
    for first in range(0, count, block):
        shape = (min(block, count - first), len(mean))
        x = mean + math.sqrt(schedule.start) * model.reference * torch.randn(shape, generator=generator)
        for temperature in schedule.temperatures():
            x = step(model, x, schedule.share, temperature, generator)
        out.append(model.denoise(x, math.sqrt(schedule.end) * model.reference))
    return torch.cat(out)


def relax(
    model: Model, images: Tensor, steps: list[int], share: float, seed: int, temperature: float = 1.0
) -> Iterator[tuple[int, Tensor]]:
    """Langevin at a fixed temperature from noised data: the chain's state after so many steps, denoised.

    Args:
        model: The energy.
        images: Clean images (n, d); noise of sqrt(temperature) s0 is added, so that the chain starts where data of that
            level are.
        steps: Counts at which to look, increasing.
        share: Step size a.
        seed: Of the noise.
        temperature: 1 for data with noise s0.
    """
    generator = torch.Generator().manual_seed(seed)
    level = math.sqrt(temperature) * model.reference
    x = images + level * torch.randn(images.shape, generator=generator)
    done = 0
    for count in steps:
        for _ in range(count - done):
            x = step(model, x, share, temperature, generator)
        done = count
        yield count, model.denoise(x, level)
