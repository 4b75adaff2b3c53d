"""A bare potential function, as Pyro's ``NUTS(potential_fn=...)`` takes it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions.transforms import Transform

from pyro_dft import messages
from pyro_dft.errors import ModelError, first_line
from pyro_dft.layout import Layout, SiteInfo
from pyro_dft.models.options import MODEL_ERRORS, check_potential
from pyro_dft.models.supports import support_name

from .evaluation import patched
from .problem import Problem


class PotentialProblem(Problem):
    """A posterior given by its potential alone.

    Args:
        potential_fn: Maps a dict name -> unconstrained tensor to a scalar, the negative log density.
        initial_params: Name -> unconstrained tensor, one point.
        transforms: Name -> transform from constrained to unconstrained space, whose ``.inv`` constrains
            draws; sites without one are left as they are.
        smoothed_potential_fn: The same as `potential_fn`, with a noise level sigma after the dict: minus the log density
            of the unconstrained values with noise N(0, sigma^2 I) added. Or None.

    Raises:
        ModelError: An argument has the wrong type, or the potential is not a scalar.
    """

    def __init__(
        self,
        potential_fn: Callable[[dict[str, Tensor]], Tensor],
        initial_params: Mapping[str, Tensor],
        transforms: Mapping[str, Transform] | None = None,
        smoothed_potential_fn: Callable[[dict[str, Tensor], Tensor], Tensor] | None = None,
    ) -> None:
        transforms = dict(transforms or {})
        check_potential(potential_fn, initial_params, transforms, "tensor")
        self.potential_fn = potential_fn
        self.smoothed_potential_fn = smoothed_potential_fn
        self.transforms = transforms
        params = {name: self._checked(name, initial_params[name]) for name in sorted(initial_params)}
        self._dtypes = {name: value.dtype for name, value in params.items()}
        self.dtype = functools.reduce(torch.promote_types, self._dtypes.values())
        if torch.finfo(self.dtype).bits < 32:
            raise messages.too_coarse(self.dtype)
        self.device = next(iter(params.values())).device
        self.layout = Layout(tuple(self._site(name, value) for name, value in params.items()))
        self._centre = torch.cat([value.reshape(-1).to(self.dtype) for value in params.values()])
        self._own_start = self._centre
        self._elements = self.layout.dim
        if not self.dim:
            raise messages.no_coordinates(list(params))
        self._check_potential()
        self.find_batching(self._centre)

    def _check_potential(self) -> None:
        """One call: is the result a real number, with a gradient?"""
        point = self._centre.clone().requires_grad_()
        try:
            with torch.inference_mode(False), torch.enable_grad(), patched():
                value = self.potential_fn(self._sites(point))
        except MODEL_ERRORS as error:
            if isinstance(error, torch.linalg.LinAlgError):
                return
            raise messages.potential_failed("potential_fn", first_line(error)) from error
        except KeyError as error:
            raise messages.potential_failed("potential_fn", f"there is no site {error}") from error
        if isinstance(value, int | float | np.generic | np.ndarray):
            raise messages.no_gradient("potential_fn")
        if not isinstance(value, Tensor):
            raise messages.no_number("potential_fn", value)
        if not value.is_floating_point():
            raise messages.no_number("potential_fn", value, f"numbers of type {value.dtype}")
        if value.numel() != 1:
            raise messages.no_number("potential_fn", value, f"shape {tuple(value.shape)}")
        if not value.requires_grad:
            raise messages.no_gradient("potential_fn")

    @staticmethod
    def _checked(name: str, value: Any) -> Tensor:
        if isinstance(value, float):
            value = torch.tensor(value)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ModelError(f"initial_params['{name}'] must be a floating point tensor")
        return value.detach().clone() if value.is_inference() else value.detach()

    def _site(self, name: str, value: Tensor) -> SiteInfo:
        transform = self.transforms.get(name)
        constrained = value if transform is None else transform.inv(value)
        kind = "real" if transform is None else support_name(transform.domain)
        return SiteInfo(name, tuple(value.shape), tuple(constrained.shape), kind)

    def _sites(self, x: Tensor) -> dict[str, Tensor]:
        return {name: value.to(self._dtypes[name]) for name, value in self.layout.unflatten(x).items()}

    def _potential(self, x: Tensor, full: bool) -> Tensor:
        value = torch.as_tensor(self.potential_fn(self._sites(x))).to(self.dtype)
        return value.reshape(()) if value.numel() == 1 else value

    def smoothed_potential(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Negative log density of one point (d,) under the posterior with noise N(0, sigma^2 I) added, up to a constant."""
        assert self.smoothed_potential_fn is not None
        value = torch.as_tensor(self.smoothed_potential_fn(self._sites(x), sigma)).to(self.dtype)
        return value.reshape(()) if value.numel() == 1 else value

    def constrain(self, x: Tensor, include_deterministic: bool = True) -> dict[str, Tensor]:
        """Flat points (n, d) -> values of the sites (n, *shape)."""
        with torch.no_grad():
            return {
                name: self.transforms[name].inv(value) if name in self.transforms else value
                for name, value in self._sites(x).items()
            }

    def unconstrain(self, samples: Mapping[str, Any]) -> Tensor:
        """The inverse of :meth:`constrain`.

        Raises:
            ModelError: A site is missing or has the wrong shape.
        """
        values = self._checked_samples(samples, self._dtypes)
        parts = [self.transforms[name](v) if name in self.transforms else v for name, v in values.items()]
        return torch.cat([part.reshape(len(part), -1).to(self.dtype) for part in parts], -1)
