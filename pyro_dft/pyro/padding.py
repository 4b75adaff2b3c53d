"""Latent variables of rows that are padding: see `pyro_dft.many.padding`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pyro_dft.many.data import Arguments
from pyro_dft.many.padding import Rows, parameter_names, row_plates
from pyro_dft.pyro.evaluation import checked_samples, full_index, patched
from pyro_dft.pyro.families import unwrap
from pyro_dft.pyro.structure import uniform_value


def rows(model: Callable[..., Any], own: Arguments, longer: Arguments, mask: str) -> Rows:
    """See `pyro_dft.many.group.FrontDoor`."""

    def run(given: Arguments) -> dict[str, Any]:
        with patched(), checked_samples(), full_index(), torch.no_grad():
            nodes = poutine.trace(InitMessenger(uniform_value)(model)).get_trace(*given[0], **given[1]).nodes
        return {name: site for name, site in nodes.items() if site["type"] == "sample"}

    def frames(sites: dict[str, Any]) -> list[Any]:
        return [frame for site in sites.values() for frame in site["cond_indep_stack"]]

    with torch.random.fork_rng([]):
        first, second, other = run(own), run(own), run(longer)
    plates = row_plates(frames(other), len(longer[1][mask]), frames(first), len(own[1][mask]))
    moved = {}
    for name, site in first.items():
        if not _latent(site) or _dim(site, plates) is None or name not in second:
            continue
        fn, again = unwrap(site["fn"]), unwrap(second[name]["fn"])
        wanted = tuple(p for p in parameter_names(fn) if not _same(getattr(fn, p), getattr(again, p)))
        if wanted and _can(site["fn"], wanted):
            moved[name] = wanted
    return Rows(plates, moved)


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)


def freed(model: Callable[..., Any], found: Rows, mask: str) -> Callable[..., Any]:
    """See `pyro_dft.many.group.FrontDoor`."""

    @functools.wraps(model, updated=())
    def without(*args: Any, **kwargs: Any) -> Any:
        with _Freeing(found, kwargs[mask]):
            return model(*args, **kwargs)

    return without


class _Freeing(Messenger):
    """Gives latent rows of padding priors of their own.

    Args:
        found: What the rows of the model are.
        mask: True where a row is data.
    """

    def __init__(self, found: Rows, mask: Any):
        super().__init__()
        self.found, self.mask = found, torch.as_tensor(mask)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.found.moved or not _latent(msg):
            return
        dim = _dim(msg, self.found.plates)
        assert dim is not None
        mask = self.mask.reshape(-1, *[1] * (-dim - 1))
        msg["fn"] = _freed(msg["fn"], self.found.moved[msg["name"]], mask)


def _latent(site: Mapping[str, Any]) -> bool:
    fn = site["fn"]
    discrete = isinstance(fn, _Subsample) or getattr(fn, "has_enumerate_support", False)
    return not site["is_observed"] and not discrete


def _dim(site: Mapping[str, Any], plates: frozenset[str]) -> int | None:
    """The batch dimension of a site's rows; None without any."""
    found = [frame for frame in site["cond_indep_stack"] if frame.name in plates]
    return int(found[0].dim) if len(found) == 1 and found[0].vectorized else None


def _freed(fn: Any, moved: tuple[str, ...], mask: Tensor) -> Any:
    """A distribution with standard parameters where the mask is False, in the place of those that other sites move."""
    if isinstance(fn, ExpandedDistribution):
        return _freed(fn.base_dist, moved, mask).expand(fn.batch_shape)
    if isinstance(fn, MaskedDistribution):
        return _freed(fn.base_dist, moved, mask).mask(fn._mask)
    if isinstance(fn, torch.distributions.Independent):
        count = fn.reinterpreted_batch_ndims
        return _freed(fn.base_dist, moved, mask[(..., *[None] * count)]).to_event(count)
    values = {name: getattr(fn, name) for name in parameter_names(fn)}
    for name in moved:
        constraint, value = fn.arg_constraints[name], values[name]
        events = constraint.event_dim
        transform = torch.distributions.biject_to(constraint)
        shape = transform.inverse_shape(value.shape[value.dim() - events :])
        neutral = transform(torch.zeros(shape, dtype=value.dtype, device=value.device))
        values[name] = torch.where(mask[(..., *[None] * events)], value, neutral)
    return type(fn)(**values)


def _can(fn: Any, moved: tuple[str, ...]) -> bool:
    """Whether a distribution can be made anew with other parameters."""
    try:
        made = _freed(fn, moved, torch.ones((1,) * len(fn.batch_shape), dtype=torch.bool))
    except Exception:  # it keeps its prior, which is as right
        return False
    return bool(made.batch_shape == fn.batch_shape and made.event_shape == fn.event_shape)
