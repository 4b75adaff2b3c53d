"""Latent variables of rows that are padding: see `pyro_dft.many.padding`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.handlers import seed, substitute
from numpyro.handlers import trace as record_trace
from numpyro.primitives import Messenger

from pyro_dft.interface.exclusive import exclusive
from pyro_dft.many.data import Arguments
from pyro_dft.many.padding import Rows, parameter_names, row_plates
from pyro_dft.numpyro.families import unwrap
from pyro_dft.numpyro.placement import Default, Plates
from pyro_dft.numpyro.structure import uniform_value
from pyro_dft.numpyro.surroundings import lenient
from pyro_dft.numpyro.traced import as_key, depends, key_words


def rows(model: Callable[..., Any], own: Arguments, longer: Arguments, mask: str) -> Rows:
    """See `pyro_dft.many.group.FrontDoor`; nothing is computed."""
    sites: dict[str, Any] = {}
    able: dict[str, bool] = {}

    def run(given: Arguments, words: Any) -> dict[str, Any]:
        inner = substitute(seed(Plates(model), as_key(words)), substitute_fn=uniform_value)
        with Default():
            found = record_trace(inner).get_trace(*given[0], **given[1])
        sites.clear()
        sites.update(found)
        values: dict[str, Any] = {}
        for name, site in found.items():
            fn = unwrap(site["fn"]) if _latent(site) else None
            for parameter in () if fn is None else parameter_names(fn):
                values[_key(name, parameter)] = getattr(fn, parameter)
                able[_key(name, parameter)] = _can(site["fn"], parameter)
        return values

    def frames(given: Arguments) -> list[Any]:
        jax.eval_shape(lambda words: run(given, words), key_words())
        return [frame for site in sites.values() for frame in site.get("cond_indep_stack", ())]

    with exclusive(), lenient():
        plates = row_plates(frames(longer), len(longer[1][mask]), frames(own), len(own[1][mask]))
        moves = depends(lambda words: run(own, words), [key_words()], 0)
    moved = {}
    for name, site in sites.items():
        if not _latent(site) or _dim(site, plates) is None:
            continue
        wanted = tuple(p for p in parameter_names(unwrap(site["fn"])) if moves[_key(name, p)])
        if wanted and all(able[_key(name, parameter)] for parameter in wanted):
            moved[name] = wanted
    return Rows(plates, moved)


def _key(name: str, parameter: str) -> str:
    return f"{name}\n{parameter}"


def freed(model: Callable[..., Any], found: Rows, mask: str) -> Callable[..., Any]:
    """See `pyro_dft.many.group.FrontDoor`."""

    @functools.wraps(model, updated=())
    def without(*args: Any, **kwargs: Any) -> Any:
        return _Freeing(model, found, kwargs[mask])(*args, **kwargs)

    return without


class _Freeing(Messenger):
    """Gives latent rows of padding priors of their own.

    Args:
        fn: The model.
        found: What its rows are.
        mask: True where a row is data.
    """

    def __init__(self, fn: Any, found: Rows, mask: Any):
        super().__init__(fn)
        self.found, self.mask = found, jnp.asarray(mask)

    def process_message(self, msg: Any) -> None:
        """Changes the prior."""
        if msg["type"] != "sample" or msg["name"] not in self.found.moved or not _latent(msg):
            return
        dim = _dim(msg, self.found.plates)
        assert dim is not None
        mask = self.mask.reshape(-1, *[1] * (-dim - 1))
        msg["fn"] = _freed(msg["fn"], self.found.moved[msg["name"]], mask)


def _latent(site: Mapping[str, Any]) -> bool:
    if site["type"] != "sample" or site["is_observed"] or "_scan_current_index" in site["infer"]:
        return False
    return not site["fn"].support.is_discrete


def _dim(site: Mapping[str, Any], plates: frozenset[str]) -> int | None:
    """The batch dimension of a site's rows; None without any."""
    found = [frame.dim for frame in site["cond_indep_stack"] if frame.name in plates]
    return int(found[0]) if len(found) == 1 and found[0] is not None else None


def _freed(fn: Any, moved: tuple[str, ...], mask: Any) -> Any:
    """A distribution with standard parameters where the mask is False, in the place of those that other sites move."""
    if isinstance(fn, dist.ExpandedDistribution):
        return _freed(fn.base_dist, moved, mask).expand(fn.batch_shape)
    if isinstance(fn, dist.MaskedDistribution):
        return _freed(fn.base_dist, moved, mask).mask(fn._mask)
    if isinstance(fn, dist.Independent):
        count = fn.reinterpreted_batch_ndims
        return _freed(fn.base_dist, moved, mask[(..., *[None] * count)]).to_event(count)
    values = {name: getattr(fn, name) for name in parameter_names(fn)}
    for name in moved:
        constraint, value = fn.arg_constraints[name], jnp.asarray(values[name])
        events = constraint.event_dim
        transform = dist.biject_to(constraint)
        shape = transform.inverse_shape(value.shape[value.ndim - events :])
        neutral = transform(jnp.zeros(shape, value.dtype))
        values[name] = jnp.where(mask[(..., *[None] * events)], value, neutral)
    return type(fn)(**values)


def _can(fn: Any, parameter: str) -> bool:
    """Whether a distribution can be made anew with another parameter."""
    try:
        made = _freed(fn, (parameter,), jnp.ones((1,) * len(fn.batch_shape), bool))
    except Exception:  # it keeps its prior, which is as right
        return False
    return tuple(made.shape()) == tuple(fn.shape()) and made.event_shape == fn.event_shape
