"""A bare potential function, as NumPyro's ``NUTS(potential_fn=...)`` takes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pyro_dft import messages
from pyro_dft.engine_jax.gradients import needs_forward, value_and_gradient
from pyro_dft.errors import ModelError, first_line
from pyro_dft.layout import Layout, SiteInfo
from pyro_dft.models.options import MODEL_ERRORS, check_potential
from pyro_dft.models.supports import support_name
from pyro_dft.numpyro.problem import Problem
from pyro_dft.numpyro.traced import Full, Smoothed, depends, map_rows, point, trace
from pyro_dft.numpyro.transforms import APART


class PotentialProblem(Problem):
    """A posterior given by its potential alone.

    Args:
        potential_fn: Maps a dict name -> unconstrained array to a scalar, the negative log density.
        initial_params: Name -> unconstrained array, one point.
        transforms: Name -> transform from constrained to unconstrained space, whose ``.inv`` constrains draws;
            sites without one are left as they are.
        smoothed_potential_fn: The same as `potential_fn`, with a noise level sigma after the dict: minus the log density
            of the unconstrained values with noise N(0, sigma^2 I) added. Or None.

    Raises:
        ModelError: An argument has the wrong type, or the potential is not a scalar.
    """

    def __init__(
        self,
        potential_fn: Callable[[dict[str, Any]], Any],
        initial_params: Mapping[str, Any],
        transforms: Mapping[str, Any] | None = None,
        smoothed_potential_fn: Callable[[dict[str, Any], Any], Any] | None = None,
    ) -> None:
        self.transforms = dict(transforms or {})
        check_potential(potential_fn, initial_params, self.transforms, "array")
        params = {name: self._checked(name, initial_params[name]) for name in sorted(initial_params)}
        self.dtype = np.result_type(*(value.dtype for value in params.values()))
        if self.dtype.itemsize < 4:
            raise messages.too_coarse(self.dtype)
        self.layout = Layout(tuple(self._site(name, value) for name, value in params.items()))
        self._centre = np.concatenate(
            [np.asarray(value, self.dtype).reshape(-1) for value in params.values()]
        )
        self._own_start = self._centre
        if not self.dim:
            raise messages.no_coordinates(list(params))

        def potential(x: Any) -> Any:
            try:
                value = potential_fn(self.layout.unflatten(x))
            except MODEL_ERRORS as error:
                raise messages.potential_failed("potential_fn", first_line(error)) from error
            except KeyError as error:
                raise messages.potential_failed("potential_fn", f"there is no site {error}") from error
            if isinstance(value, int | float | np.generic | np.ndarray):
                raise messages.no_gradient("potential_fn")
            if not isinstance(value, jax.Array):
                raise messages.no_number("potential_fn", value)
            return self._scalar(value, "potential_fn")

        self.potential, arrays = trace(potential, point(self.dim, self.dtype), kind=Full)
        self.data = {"full": arrays}
        self._check_gradient(potential)
        if smoothed_potential_fn is not None:
            smoothed = smoothed_potential_fn

            def noised(x: Any, sigma: Any) -> Any:
                return self._scalar(smoothed(self.layout.unflatten(x), sigma), "smoothed_potential_fn")

            level = jax.ShapeDtypeStruct((), self.dtype)
            self.smoothed_potential, arrays = trace(noised, point(self.dim, self.dtype), level, kind=Smoothed)
            self.data["smoothed"] = arrays
        self._constrain, self._constrain_data = trace(self._values, point(self.dim, self.dtype))

    def _check_gradient(self, potential: Callable[[Any], Any]) -> None:
        """Refuses a potential whose gradient is zero by construction, as behind `jax.lax.stop_gradient`."""
        at = point(self.dim, self.dtype)
        both = value_and_gradient(potential, needs_forward(potential, at))
        moves = depends(lambda x: {"gradient": both(x)[1]}, [at], 0)["gradient"]
        if not moves and not np.asarray(both(jnp.asarray(self._centre))[1]).any():
            raise messages.no_gradient("potential_fn")

    def _scalar(self, value: Any, name: str) -> Any:
        if jnp.size(value) != 1:
            raise messages.no_number(name, value, f"shape {jnp.shape(value)}")
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise messages.no_number(name, value, f"numbers of type {value.dtype}")
        return value.reshape(()).astype(self.dtype)

    @staticmethod
    def _checked(name: str, value: Any) -> Any:
        if isinstance(value, float):
            value = np.float32(value)
        if not hasattr(value, "dtype") or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ModelError(f"initial_params['{name}'] must be a floating point array")
        return value if jax.config.read("jax_enable_x64") else np.asarray(value, np.float32)

    def _site(self, name: str, value: Any) -> SiteInfo:
        transform = self.transforms.get(name)
        shape = tuple(value.shape)
        constrained = shape if transform is None else tuple(transform.inv.forward_shape(shape))
        kind = "real" if transform is None else support_name(transform.domain, APART)
        return SiteInfo(name, shape, constrained, kind)

    def _values(self, x: Any) -> dict[str, Any]:
        return {
            name: self.transforms[name].inv(value) if name in self.transforms else value
            for name, value in self.layout.unflatten(x).items()
        }

    def constrain(self, x: Any, include_deterministic: bool = True) -> dict[str, Any]:
        """Flat points (n, d) -> values of the sites (n, *shape)."""
        return map_rows(self._constrain, self._constrain_data, x, elements=self.dim)

    def unconstrain(self, samples: Mapping[str, Any]) -> np.ndarray:
        """The inverse of :meth:`constrain`.

        Raises:
            ModelError: A site is missing or has the wrong shape.
        """
        values = self._checked_samples(samples)
        parts = [self.transforms[name](v) if name in self.transforms else v for name, v in values.items()]
        return np.concatenate([np.asarray(part).reshape(len(part), -1) for part in parts], -1)
