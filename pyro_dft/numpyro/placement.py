"""Putting one flat point into a run of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.handlers import substitute
from numpyro.primitives import Messenger

from pyro_dft import messages
from pyro_dft.numpyro import noncentering
from pyro_dft.numpyro.transforms import biject_to, is_identity

# In the `infer` of a factor: it is a log Jacobian.
_JACOBIAN = "_pyro_dft_jacobian"


class Plates(Messenger):
    """Gives subsampled plates their indices: all rows, or random ones.

    Random rows are one from each of n equal strata, n being the subsample size: every row is as likely, the estimate is
    unbiased, its variance is no larger than with n free draws, and it costs n, where a permutation costs N.

    Args:
        fn: The model.
        key: Key of the random rows; None takes all rows.
        record: Filled with name -> (size, subsample size) of the subsampled plates.
    """

    def __init__(self, fn: Any = None, *, key: Any = None, record: dict[str, tuple[int, int]] | None = None):
        super().__init__(fn)
        self.key, self.record = key, record

    def process_message(self, msg: Any) -> None:
        """Sets the value of a subsampled plate that has none yet."""
        if msg["type"] != "plate" or msg["value"] is not None:
            return
        size, count = msg["args"]
        if self.record is not None:
            self.record[msg["name"]] = (int(size), int(count))
        if self.key is None:
            msg["args"], msg["value"] = (size, None), jnp.arange(size)
            return
        self.key, own = jax.random.split(self.key)
        bounds = np.arange(count) * size
        whole, rest = bounds // count, (bounds % count) / count
        inside = jnp.asarray(rest, jnp.float32) + jax.random.uniform(own, (count,)) * (size / count)
        index = jnp.asarray(whole, jnp.int32) + inside.astype(jnp.int32)
        msg["value"] = jnp.minimum(index, size - 1)


class Default(Messenger):
    """Answers `numpyro.prng_key()` where nobody else does."""

    def process_message(self, msg: Any) -> None:
        """Gives the same key each time."""
        if msg["type"] == "prng_key" and msg["value"] is None:
            msg["value"] = jax.random.key(0)


class Point:
    """A flat point as values of sites, for `numpyro.handlers.substitute`.

    Args:
        coordinates: Name -> unconstrained coordinates.
        noncentered: Site whose coordinates are standardised given the others -> amount, 1 for entirely.
        given: Name -> transform from constrained to unconstrained values that the user chose.
        drawn: Name -> shape of a draw in the first run, which has to stay.

    Attributes:
        original: Name -> unconstrained coordinates of the model itself of non-centred sites outside of
            `scan`, filled in by a run.
    """

    def __init__(
        self,
        coordinates: Mapping[str, Array],
        noncentered: Mapping[str, Any] | None = None,
        given: Mapping[str, Any] | None = None,
        drawn: Mapping[str, tuple[int, ...]] | None = None,
    ):
        self.coordinates, self.noncentered, self.given = coordinates, noncentered or {}, given or {}
        self.drawn = drawn or {}
        self.original: dict[str, Array] = {}
        self._used: set[str] = set()

    def check(self) -> None:
        """Makes sure that a run has used every value.

        Raises:
            ModelError: A site was not there.
        """
        for name in self.coordinates:
            if name not in self._used:
                raise messages.comes_and_goes(name)

    def __call__(self, site: Any) -> Array | None:
        """The value of a site; its log Jacobian becomes a factor of the model."""
        name = site["name"]
        if site["type"] != "sample":
            return None
        if name not in self.coordinates:
            if not (site["is_observed"] or site["fn"].support.is_discrete):
                raise messages.comes_and_goes(name)
            return None
        self._used.add(name)
        shape = tuple(site["fn"].shape())
        if shape != self.drawn.get(name, shape):
            raise messages.changing_shape(name, shape, self.drawn[name])
        y = self.coordinates[name]
        transform = self.given[name].inv if name in self.given else biject_to(site["fn"].support)
        # Inside `scan` the whole sequence is there, and one item is wanted.
        index = site["infer"].get("_scan_current_index")
        if index is not None:
            shift = transform.codomain.event_dim - transform.domain.event_dim
            if jnp.ndim(y) > len(site["fn"].shape()) - shift:
                y = jnp.asarray(y)[index]
        if name in self.noncentered:
            value, original, log_jacobian = noncentering.forward(site["fn"], y, self.noncentered[name])
            if index is None:
                self.original[name] = original
            # The density that it belongs to may be scaled; a log Jacobian is not.
            if site["scale"] is None:
                difference = noncentering.unrounded(site["fn"], y, value, self.noncentered[name])
                log_jacobian = (
                    noncentering.over_events(log_jacobian, len(site["fn"].batch_shape)) + difference
                )
            _add_jacobian(name, log_jacobian, site["fn"])
            return value
        if is_identity(transform):
            return y
        value = transform(y)
        log_jacobian = transform.log_abs_det_jacobian(y, value)
        _add_jacobian(name, log_jacobian, site["fn"])
        return value


def _add_jacobian(name: str, log_jacobian: Array, fn: Any) -> None:
    # Over event dimensions only: a plate around the site would repeat what is summed already.
    log_jacobian = noncentering.over_events(log_jacobian, len(fn.batch_shape))
    unit = dist.Unit(log_jacobian)
    infer = {"is_auxiliary": True, _JACOBIAN: True}
    numpyro.sample(f"_{name}_log_det", unit, obs=unit.sample(None), infer=infer)


def is_jacobian(site: Mapping[str, Any]) -> bool:
    """Whether a site of a run is the log Jacobian of a `Point`."""
    return _JACOBIAN in (site.get("infer") or {})


class Jacobians(Messenger):
    """Frees log Jacobians from the scales and masks that the model puts around their sites.

    `numpyro.handlers.scale` and `mask` change the density p(x) of a site in its own values x. A change of coordinates
    x = T(y) multiplies whatever density there is by |det dT/dy|, once: only then is the posterior of x the same in all
    coordinates. It has to stand outside of everything that the model is wrapped in.
    """

    def process_message(self, msg: Any) -> None:
        """Undoes what handlers inside of this one have done."""
        if msg["type"] == "sample" and is_jacobian(msg):
            msg["scale"], msg["fn"] = None, _unmasked(msg["fn"])


def _unmasked(fn: Any) -> Any:
    if isinstance(fn, dist.MaskedDistribution):
        return _unmasked(fn.base_dist)
    if isinstance(fn, dist.ExpandedDistribution):
        return _unmasked(fn.base_dist).expand(fn.batch_shape)
    return fn


def placed(model: Callable[..., Any], point: Any) -> Callable[..., Any]:
    """The model with a `Point`, or constrained values by name, at its latent sites."""
    if isinstance(point, Point):
        return Jacobians(substitute(model, substitute_fn=point))
    return substitute(model, data=dict(point))
