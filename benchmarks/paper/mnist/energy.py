"""An energy-based model of images, trained by multi-scale denoising score matching (Li, Chen and Sommer 2019).

One energy E serves all noise levels. With clean images x, noise n and x~ = x + sigma n, the loss is
E || grad E(x~) / sigma - n / s0^2 ||^2, s0 the reference level. At its minimum x~ - s0^2 grad E(x~) is the mean of
the clean image given x~, and so the score of the data smoothed by noise sigma is -(s0 / sigma)^2 grad E(x~): the
energy at temperature (sigma / s0)^2. The network need not be told sigma: in hundreds of dimensions the length
of the noise gives it away.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.paper.mnist import training


@dataclass(frozen=True)
class EnergySettings:
    """Size and training of the energy.

    Attributes:
        size: Pixels on a side.
        widths: Channels of the residual blocks.
        strides: Of the same blocks; the stem has halved the side before.
        reference: Noise level s0 at which the energy has temperature 1, in units of the pixels' range [0, 1].
        smallest: Smallest noise level of the training.
        largest: Largest one.
        iterations: Adam steps.
        batch: Images for each step, each with a noise level of its own (log-uniform).
        rate: Largest learning rate; it falls to a hundredth along a cosine.
        decay: Of the moving average of the weights, which is what is used afterwards.
        seed: Of weights, batches and noise.
    """

    size: int = 14
    widths: tuple[int, ...] = (32, 32, 64, 64)
    strides: tuple[int, ...] = (1, 1, 2, 1)
    reference: float = 0.1
    smallest: float = 0.1
    largest: float = 2.0
    iterations: int = 12_000
    batch: int = 64
    rate: float = 1e-3
    decay: float = 0.999
    seed: int = 0


class Block(nn.Module):
    """A residual block of two 3 x 3 convolutions behind their activations; no normalisation."""

    def __init__(self, channels: int, width: int, stride: int = 1):
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride=stride, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.stride = stride
        self.skip = nn.Conv2d(channels, width, 1) if channels != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to (n, width, h / stride, w / stride)."""
        branch = self.second(F.silu(self.first(F.silu(x))))
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        return self.skip(x) + branch


class Energy(nn.Module):
    """Residual convolutions with a quadratic head, and a quadratic well around the mean image.

    With features h(x), which grow linearly in x, the head l1(h) l2(h) + l3(h^2) grows like |x|^2, as the energy of
    data under noise must. The well c |x - mean|^2 / 2 with c > 0 is the explicit confining part.

    Args:
        settings: Sizes.
        mean: Mean image (d,), d = size^2.
    """

    mean: Tensor

    def __init__(self, settings: EnergySettings, mean: Tensor):
        super().__init__()
        self.size, self.reference = settings.size, settings.reference
        self.register_buffer("mean", mean.clone())
        self.stem = nn.Conv2d(1, settings.widths[0], 4, stride=2, padding=1)
        channels = (settings.widths[0], *settings.widths)
        blocks = zip(channels, settings.widths, settings.strides, strict=False)
        self.blocks = nn.Sequential(*(Block(*shape) for shape in blocks))
        with torch.no_grad():
            features = self.blocks(self.stem(torch.zeros(1, 1, self.size, self.size))).numel()
        self.heads = nn.ModuleList(nn.Linear(features, 1) for _ in range(3))
        self.well = nn.Parameter(torch.tensor(-1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Energies (n,) of flat images (n, d), at temperature 1."""
        return self.value(x, self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """What the head sees, (n, k), of flat images (n, d)."""
        h = self.blocks(self.stem(x.reshape(-1, 1, self.size, self.size)))
        return F.silu(h).flatten(1)

    def value(self, x: Tensor, h: Tensor) -> Tensor:
        """Energies (n,) of flat images (n, d) with features (n, k)."""
        one, two, three = self.heads
        value = (one(h) * two(h) + three(h * h)).squeeze(1)
        value = value + 0.5 * F.softplus(self.well) * ((x - self.mean) ** 2).sum(1)
        return value / self.reference**2

    def gradient(self, x: Tensor, create_graph: bool = False) -> Tensor:
        """Gradients (n, d) of the energy at flat images (n, d)."""
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_(True)
            return torch.autograd.grad(self(x).sum(), x, create_graph=create_graph)[0]

    def denoise(self, x: Tensor) -> Tensor:
        """The mean clean image (n, d) given noisy ones (n, d), whatever their noise level."""
        return x.detach() - self.reference**2 * self.gradient(x)


def levels(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Noise levels (count, 1), log-uniform between low and high."""
    return low * (high / low) ** torch.rand(count, 1, generator=generator)


def matching_loss(energy: Energy, clean: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """The loss of multi-scale denoising score matching times s0^4 / d: the mean square error of the noise.

    Args:
        energy: The model.
        clean: Images (n, d).
        sigma: Noise levels (n, 1).
        noise: Standard normal (n, d).
    """
    noisy = (clean + sigma * noise).requires_grad_(True)
    gradient = energy.gradient(noisy, create_graph=True)
    return ((energy.reference**2 * gradient / sigma - noise) ** 2).mean()


def fit(settings: EnergySettings, images: Tensor, path: Path, every: int = 500) -> Energy:
    """The trained energy; the training resumes from ``path`` where that exists.

    Args:
        settings: Size and training.
        images: Clean images (n, d) in [0, 1].
        path: Checkpoint, a safetensors file.
        every: Iterations between checkpoints.
    """
    torch.manual_seed(settings.seed)
    energy = Energy(settings, images.mean(0))

    def loss(iteration: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (settings.batch,), generator=generator)
        sigma = levels(settings.batch, settings.smallest, settings.largest, generator)
        noise = torch.randn(settings.batch, images.shape[1], generator=generator)
        return matching_loss(energy, images[rows], sigma, noise)

    training.run(
        energy,
        loss,
        path,
        settings.iterations,
        settings.rate,
        seed=settings.seed,
        decay=settings.decay,
        every=every,
    )
    return energy.eval().requires_grad_(False)
