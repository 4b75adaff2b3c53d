"""The generator and the score network, for several independent chains at once.

Every weight has a leading axis for the chains, so that k samplers train in the time of little more than one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChainLinear(nn.Module):
    """A linear layer for each chain: (C, B, inputs) -> (C, B, outputs)."""

    def __init__(
        self, chains: int, inputs: int, outputs: int, *, gain: float, rng: torch.Generator, dtype: torch.dtype
    ):
        super().__init__()
        weight = torch.randn(chains, inputs, outputs, generator=rng, dtype=dtype, device=rng.device)
        self.weight = nn.Parameter(weight * (gain / inputs**0.5))
        self.bias = nn.Parameter(torch.zeros(chains, 1, outputs, dtype=dtype, device=rng.device))

    def forward(self, x: Tensor) -> Tensor:
        """(C, B, inputs) -> (C, B, outputs)."""
        return torch.baddbmm(self.bias, x, self.weight)


class ResidualMLP(nn.Module):
    """SiLU network with a skip around each hidden layer but the first; its output starts near zero."""

    def __init__(
        self,
        chains: int,
        inputs: int,
        outputs: int,
        width: int,
        depth: int,
        *,
        rng: torch.Generator,
        dtype: torch.dtype,
    ):
        super().__init__()
        sizes = [inputs] + [width] * depth
        self.hidden = nn.ModuleList(
            ChainLinear(chains, a, b, gain=1.0, rng=rng, dtype=dtype)
            for a, b in zip(sizes, sizes[1:], strict=False)
        )
        self.last = ChainLinear(chains, width, outputs, gain=0.01, rng=rng, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(C, B, inputs) -> (C, B, outputs)."""
        h = nn.functional.silu(self.hidden[0](x))
        for layer in list(self.hidden)[1:]:
            h = h + nn.functional.silu(layer(h))
        return self.last(h)


class Generator(nn.Module):
    """g(z) = z A + m + MLP(z), started at A = identity, m = 0: the draws start as those of the preconditioner.

    `log_sigma` holds the noise for each whitened coordinate, (C, 1, d); it is trained only where the settings say so.
    """

    rows = 65_536  # of one forward pass; bounds memory when a million draws are asked for

    def __init__(
        self,
        chains: int,
        dim: int,
        width: int,
        depth: int,
        noise: float,
        *,
        rng: torch.Generator,
        dtype: torch.dtype,
    ):
        super().__init__()
        eye = torch.eye(dim, dtype=dtype, device=rng.device)
        self.matrix = nn.Parameter(eye.expand(chains, dim, dim).clone())
        self.shift = nn.Parameter(torch.zeros(chains, 1, dim, dtype=dtype, device=rng.device))
        self.mlp = ResidualMLP(chains, dim, dim, width, depth, rng=rng, dtype=dtype)
        log_sigma = torch.full((chains, 1, dim), noise, dtype=dtype, device=rng.device).log()
        self.log_sigma = nn.Parameter(log_sigma, requires_grad=False)

    @property
    def sigma(self) -> Tensor:
        """Noise standard deviation, (C, 1, d), whitened units."""
        return self.log_sigma.exp()

    def forward(self, z: Tensor) -> Tensor:
        """(C, B, d) latent points -> (C, B, d) whitened points before the noise."""
        return torch.baddbmm(self.shift, z, self.matrix) + self.mlp(z)


class ScoreNetwork(nn.Module):
    """s_phi(x) = -x / (1 + sigma^2) + MLP(x): exact for the generator's starting point."""

    def __init__(
        self, chains: int, dim: int, width: int, depth: int, *, rng: torch.Generator, dtype: torch.dtype
    ):
        super().__init__()
        self.mlp = ResidualMLP(chains, dim, dim, width, depth, rng=rng, dtype=dtype)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(C, B, d) whitened points and the noise (C, 1, d) -> scores (C, B, d)."""
        return self.mlp(x) - x / (1 + sigma.detach().square())


class LevelScoreNetwork(nn.Module):
    """Scores at noise levels that vary from point to point: s_phi(x, sigma) = -x / (1 + sigma^2) + MLP(x, log sigma) / sigma.

    The network sees x / sqrt(1 + sigma^2), of one size at all levels.
    """

    def __init__(
        self, chains: int, dim: int, width: int, depth: int, *, rng: torch.Generator, dtype: torch.dtype
    ):
        super().__init__()
        self.mlp = ResidualMLP(chains, dim + 1, dim, width, depth, rng=rng, dtype=dtype)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(C, B, d) whitened points and their noise (C, B, 1) -> scores (C, B, d)."""
        variance = 1 + sigma.square()
        inputs = torch.cat([x / variance.sqrt(), sigma.log().expand(*x.shape[:-1], 1)], -1)
        return self.mlp(inputs) / sigma - x / variance
