"""The networks of the one-step samplers: a convolutional generator, and a score network that knows the noise level.

Both work on flat images (n, d) in pixels' units; they are given to `pyro_dft.DFT` as any user's networks would be.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.paper.mnist.energy import Block


def _shrink(layer: nn.Conv2d, factor: float) -> None:
    """Scales a new last layer down and takes its bias away."""
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.mul_(factor)
        layer.bias.zero_()


class Generator(nn.Module):
    """Latent points (n, d) to images (n, d) in (0, 1): a linear layer, residual blocks at a quarter and half of the side.

    The last layer starts near zero on the logits of the mean image, so the sampler starts at a blurred image of the
    right brightness and not at noise.

    Args:
        mean: Mean image (d,).
        width: Channels at half of the side; twice as many at a quarter.
    """

    logits: Tensor

    def __init__(self, mean: Tensor, width: int = 32):
        super().__init__()
        d = len(mean)
        self.side = math.isqrt(d) // 2
        self.low = (self.side + 1) // 2
        self.register_buffer("logits", mean.clamp(0.02, 0.98).logit())
        self.first = nn.Linear(d, 2 * width * self.low**2)
        self.coarse = Block(2 * width, 2 * width)
        self.fine = nn.Sequential(Block(2 * width, width), Block(width, width))
        self.last = nn.Conv2d(width, 4, 3, padding=1)
        _shrink(self.last, 0.5)

    def forward(self, z: Tensor) -> Tensor:
        """Images (n, d) of latent points (n, d)."""
        h = self.first(z).reshape(len(z), -1, self.low, self.low)
        h = F.interpolate(self.coarse(h), size=(self.side, self.side), mode="nearest")
        h = F.pixel_shuffle(self.last(F.silu(self.fine(h))), 2)
        return torch.sigmoid(self.logits + h.flatten(1))


class LevelBlock(nn.Module):
    """A residual block whose middle gets a shift for each channel from the noise level."""

    def __init__(self, channels: int, width: int, embedding: int):
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(channels, width, 1) if channels != width else nn.Identity()
        self.level = nn.Linear(embedding, width)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """(n, channels, h, w) and embeddings (n, embedding) to (n, width, h, w)."""
        h = self.first(F.silu(x)) + self.level(level)[:, :, None, None]
        return self.skip(x) + self.second(F.silu(h))


class ScoreNetwork(nn.Module):
    """Score of the sampler's draws under noise: s(x, sigma) = (D(x, sigma) - x) / sigma^2 with a denoiser D.

    D is preconditioned as by Karras et al. (2022, Table 1): D = c_skip x + c_out F(c_in x, log sigma / 4), with
    x counted from the mean image. F is a small U-net on 2 x 2 blocks of pixels.

    Args:
        mean: Mean image (d,).
        width: Channels at half of the side; twice as many at a quarter.
        spread: Standard deviation of pixels around the mean image.
    """

    mean: Tensor

    def __init__(self, mean: Tensor, width: int = 32, spread: float = 0.25):
        super().__init__()
        self.size = math.isqrt(len(mean))
        self.spread = spread
        self.register_buffer("mean", mean.clone())
        embedding = 64
        self.embed = nn.Sequential(
            nn.Linear(1, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.first = nn.Conv2d(4, width, 3, padding=1)
        self.down = LevelBlock(width, width, embedding)
        self.middle = LevelBlock(width, 2 * width, embedding)
        self.middle_again = LevelBlock(2 * width, 2 * width, embedding)
        self.up = LevelBlock(3 * width, width, embedding)
        self.last = nn.Conv2d(width, 4, 3, padding=1)
        _shrink(self.last, 0.1)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Clean images (n, d) expected given noisy ones (n, d) of levels sigma (n, 1)."""
        total = (sigma**2 + self.spread**2).sqrt()
        centred = x - self.mean
        level = self.embed(sigma.log() / 4)
        h = F.pixel_unshuffle((centred / total).reshape(-1, 1, self.size, self.size), 2)
        h = self.down(self.first(h), level)
        low = self.middle_again(self.middle(F.avg_pool2d(h, 2, ceil_mode=True), level), level)
        low = F.interpolate(low, size=h.shape[2:], mode="nearest")
        h = self.last(F.silu(self.up(torch.cat([h, low], 1), level)))
        h = F.pixel_shuffle(h, 2).flatten(1)
        skip = (self.spread / total) ** 2
        return self.mean + skip * centred + sigma * self.spread / total * h

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Scores (n, d) at x (n, d) of the draws under noise sigma (n, 1)."""
        return (self.denoise(x, sigma) - x) / sigma**2
