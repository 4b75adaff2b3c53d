"""Putting one flat point into a run of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pyro_dft import messages

from .transforms import bijection

# Drawing n of N rows without replacement costs N. Where n is this much smaller, drawing with replacement is
# as good: it is unbiased as well, and its variance is larger by (N - 1) / (N - n), here at most 2 %.
_WITH_REPLACEMENT = 50


class SiteMap(Protocol):
    """How flat coordinates become the value of a site, given the distribution at its sample statement."""

    def forward(self, fn: Any, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates -> (value, original unconstrained coordinates, log |det d value / d y|)."""
        ...

    def unrounded(self, fn: Any, y: Tensor, value: Tensor) -> Tensor | float:
        """Log density at the exact value less that at the rounded one."""
        ...

    def inverse(self, fn: Any, value: Tensor) -> Tensor:
        """Value -> coordinates."""
        ...


class DynamicSupport:
    """The automatic transform of a support that depends on other sites, as in Uniform(0, other)."""

    def forward(self, fn: Any, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates -> (value, the same coordinates, log Jacobian)."""
        transform = bijection(fn.support)
        value = transform(y)
        return value, y, transform.log_abs_det_jacobian(y, value).sum()

    def unrounded(self, fn: Any, y: Tensor, value: Tensor) -> float:
        """Zero: coordinates do not depend on a location."""
        return 0.0

    def inverse(self, fn: Any, value: Tensor) -> Tensor:
        """Value -> coordinates."""
        return bijection(fn.support).inv(value)


class Place(Messenger):
    """Gives latent sites their values, as ``poutine.condition`` does, and cheap indices to subsampled plates.

    A site in ``maps`` gets its value from its flat coordinates *and* from the distribution that stands at the
    sample statement: that is how a coordinate can depend on other sites.

    Args:
        values: Name -> constrained value.
        maps: Name -> map from coordinates to value, for sites that are not in ``values``.
        coordinates: Name -> flat coordinates, in the unconstrained shape of the site.
        complete: Whether ``values`` and ``maps`` are meant to hold every continuous latent site.

    Attributes:
        indices: Name of a plate -> index of all its rows.
        fixed_shapes: Whether values must have the shape that the model's own draws would have.
        original: Name -> original unconstrained coordinates of mapped sites, filled in by a run.
        log_jacobians: Log Jacobians of mapped sites, filled in by a run.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        maps: Mapping[str, SiteMap] | None = None,
        coordinates: Mapping[str, Tensor] | None = None,
        complete: bool = True,
    ) -> None:
        super().__init__()
        self.values = values
        self.maps = maps or {}
        self.coordinates = dict(coordinates or {})
        self.complete = complete
        self.indices: Mapping[str, Tensor] = {}
        self.fixed_shapes = False
        self.original: dict[str, Tensor] = {}
        self.log_jacobians: list[Tensor] = []

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if isinstance(fn, _Subsample):
            if msg["value"] is None:
                msg["value"] = self._index(name, fn.size, fn.subsample_size, fn.device)
        elif name in self.values:
            self._check_shape(msg, self.values[name])
            msg["value"] = self.values[name]
            msg["is_observed"] = True
        elif name in self.maps:
            own, y = self.maps[name], self.coordinates[name]
            value, original, log_jacobian = own.forward(fn, y)
            self.original[name] = original
            if msg["mask"] is None and isinstance(msg["scale"], float | int) and msg["scale"] == 1:
                # Else the density that it belongs to is scaled or masked, and a log Jacobian is not.
                log_jacobian = log_jacobian + own.unrounded(fn, y, value)
            self.log_jacobians.append(log_jacobian)
            msg["value"] = value
            msg["is_observed"] = True
        elif self.complete and not msg["is_observed"] and not getattr(fn, "has_enumerate_support", False):
            raise messages.comes_and_goes(name)

    def _check_shape(self, msg: Any, value: Tensor) -> None:
        """Makes sure that a value is as large as what the model would have drawn: broadcasting would hide it."""
        fn = msg["fn"]
        # A statement with arguments of its own, or an enumerated site before it, changes the shape of a draw.
        if not self.fixed_shapes or msg["args"] or not hasattr(fn, "batch_shape"):
            return
        shape = tuple(fn.batch_shape + fn.event_shape)
        if shape != tuple(value.shape):
            raise messages.changing_shape(msg["name"], shape, tuple(value.shape))

    def check(self, trace: Any) -> None:
        """Makes sure that a run has used every value.

        Raises:
            ModelError: A site was not there.
        """
        for name in (*self.values, *self.maps):
            if name not in trace.nodes:
                raise messages.comes_and_goes(name)

    def _index(self, name: str, size: int, subsample_size: int | None, device: Any) -> Tensor | None:
        """Index of a plate; None leaves the choice to Pyro."""
        if subsample_size is None or subsample_size >= size:
            index = self.indices.get(name)
            return index if index is not None and len(index) == size else None
        if subsample_size * _WITH_REPLACEMENT < size:
            return torch.randint(size, (subsample_size,), device=device)
        return None
