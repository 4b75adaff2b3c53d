"""Networks that a user brings, one copy for each sampler, behind the interface of `pyro_dft.engine_torch.networks`."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyro_dft import messages

Source = nn.Module | Callable[[], nn.Module]

_EXPECTED = "a torch.nn.Module, or a function that makes one"


@dataclass(frozen=True)
class Networks:
    """What the user brings; None takes the network of this package.

    Attributes:
        generator: A module that maps latent points (n, d) to points (n, d), or a function without arguments that makes one.
        score_network: The same for the scores (n, d) of noised points (n, d); called with their noise (n, 1) as well
            where it varies.

    Raises:
        SettingsError: one of them is neither.
    """

    generator: Source | None = None
    score_network: Source | None = None

    def __post_init__(self) -> None:
        for name, source in vars(self).items():
            if source is not None and not callable(source):  # modules are callable
                raise messages.no_network(name, _EXPECTED, source)


NO_NETWORKS = Networks()


def _made(source: Source, name: str) -> nn.Module:
    if isinstance(source, nn.Module):
        return copy.deepcopy(source)
    module = source()
    if not isinstance(module, nn.Module):
        raise messages.no_network(name, _EXPECTED, module)
    return module


class _PerChain(nn.Module):
    """A module for each of C samplers."""

    def __init__(self, source: Source, name: str, chains: int, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.nets = nn.ModuleList(_made(source, name).to(device, dtype) for _ in range(chains))
        self._name = name

    def _each(self, x: Tensor, *more: Tensor) -> Tensor:
        return torch.stack([net(x[c], *(m[c] for m in more)) for c, net in enumerate(self.nets)])

    @torch.no_grad()
    def _check(self, dim: int, *more: Tensor) -> None:
        """Raises SettingsError unless points (2, d) become finite numbers (2, d)."""
        for net in self.nets:
            parameter = next(net.parameters(), torch.zeros(()))
            x = torch.zeros(2, dim, dtype=parameter.dtype, device=parameter.device)
            try:
                found = net(x, *more)
            except Exception as error:  # whatever a user's network raises
                raise messages.network_fails(self._name, dim, error) from error
            shape = tuple(getattr(found, "shape", ()))
            if shape != (2, dim) or not bool(torch.isfinite(found).all()):
                raise messages.network_shape(self._name, dim, shape)


class CustomGenerator(_PerChain):
    """The user's generators with the noise `log_sigma` (C, 1, d), as `pyro_dft.engine_torch.networks.Generator`."""

    rows = 1024  # of one forward pass: a network for images can be wide

    def __init__(
        self, source: Source, chains: int, dim: int, noise: float, *, dtype: torch.dtype, device: torch.device
    ):
        super().__init__(source, "generator", chains, dtype, device)
        level = torch.full((chains, 1, dim), math.log(noise), dtype=dtype, device=device)
        self.log_sigma = nn.Parameter(level, requires_grad=False)
        self._check(dim)

    @property
    def sigma(self) -> Tensor:
        """Noise standard deviation, (C, 1, d), whitened units."""
        return self.log_sigma.exp()

    def forward(self, z: Tensor) -> Tensor:
        """(C, B, d) latent points -> (C, B, d) points before the noise."""
        return self._each(z)


class CustomScore(_PerChain):
    """The user's score networks.

    Args:
        source: See `Networks`.
        chains: C.
        dim: d.
        levels: Whether the noise varies from point to point, so that the network has to be told.
        dtype: Of weights and points.
        device: Of weights and points.
    """

    def __init__(
        self, source: Source, chains: int, dim: int, levels: bool, *, dtype: torch.dtype, device: torch.device
    ):
        super().__init__(source, "score_network", chains, dtype, device)
        self.levels = levels
        self._check(dim, *([torch.ones(2, 1, dtype=dtype, device=device)] if levels else []))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(C, B, d) whitened points and their noise, (C, B, 1) where it varies -> scores (C, B, d)."""
        return self._each(x, sigma) if self.levels else self._each(x)


def owner(name: str) -> int | None:
    """The sampler that a parameter belongs to, by its name; None where its first axis runs over the samplers."""
    found = re.match(r"nets\.(\d+)\.", name)
    return int(found[1]) if found else None
