"""Putting one flat point into a run of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from numpyro.handlers import substitute
from numpyro.primitives import Messenger

from pyro_dft.numpyro import noncentering
from pyro_dft.numpyro.transforms import biject_to, is_identity


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
        noncentered: Sites whose coordinates are standardised given the others.
        given: Name -> transform from constrained to unconstrained values that the user chose.

    Attributes:
        original: Name -> unconstrained coordinates of the model itself of non-centred sites, filled in by a run.
    """

    def __init__(
        self,
        coordinates: Mapping[str, Array],
        noncentered: frozenset[str] = frozenset(),
        given: Mapping[str, Any] | None = None,
    ):
        self.coordinates, self.noncentered, self.given = coordinates, noncentered, given or {}
        self.original: dict[str, Array] = {}

    def __call__(self, site: Any) -> Array | None:
        """The value of a site; its log Jacobian becomes a factor of the model."""
        name = site["name"]
        if site["type"] != "sample" or name not in self.coordinates:
            return None
        y = self.coordinates[name]
        if name in self.noncentered:
            value, self.original[name], log_jacobian = noncentering.forward(site["fn"], y)
            numpyro.factor(f"_{name}_log_det", _sum_events(log_jacobian, site["fn"]))
            return value
        transform = self.given[name].inv if name in self.given else biject_to(site["fn"].support)
        # Inside `scan` the whole sequence is there, and one item is wanted.
        index = site["infer"].get("_scan_current_index")
        if index is not None:
            shift = transform.codomain.event_dim - transform.domain.event_dim
            if jnp.ndim(y) > len(site["fn"].shape()) - shift:
                y = jnp.asarray(y)[index]
        if is_identity(transform):
            return y
        value = transform(y)
        log_jacobian = transform.log_abs_det_jacobian(y, value)
        numpyro.factor(f"_{name}_log_det", _sum_events(log_jacobian, site["fn"]))
        return value


def _sum_events(log_jacobian: Array, fn: Any) -> Array:
    """Sums over event dimensions only: a plate around the site would repeat what is summed already."""
    extra = jnp.ndim(log_jacobian) - len(fn.batch_shape)
    return log_jacobian.sum(tuple(range(-extra, 0))) if extra > 0 else log_jacobian


def placed(model: Callable[..., Any], point: Any) -> Callable[..., Any]:
    """The model with a `Point`, or constrained values by name, at its latent sites."""
    if isinstance(point, Point):
        return substitute(model, substitute_fn=point)
    return substitute(model, data=dict(point))
