"""Draws -> ArviZ 1.x: an xarray ``DataTree``, with arviz or with arviz-base alone. ArviZ 0.x: `pyro_dft.export.old_arviz`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_dft._version import __version__
from pyro_dft.export import old_arviz

_DRAWS_NOTE = "independent draws: rank, trace and autocorrelation plots carry no mixing information"

# Groups whose arrays have no chain and draw dimensions.
_DATA_GROUPS = ("observed_data", "constant_data")


def to_inference_data(
    posterior: Mapping[str, ArrayLike],
    *,
    sample_stats: Mapping[str, ArrayLike] | None = None,
    log_likelihood: Mapping[str, ArrayLike] | None = None,
    posterior_predictive: Mapping[str, ArrayLike] | None = None,
    prior: Mapping[str, ArrayLike] | None = None,
    prior_predictive: Mapping[str, ArrayLike] | None = None,
    observed_data: Mapping[str, ArrayLike] | None = None,
    constant_data: Mapping[str, ArrayLike] | None = None,
    unconstrained_posterior: Mapping[str, ArrayLike] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    """Pack draws into the object that the installed ArviZ works with: a ``DataTree``, or on ArviZ 0.x an ``InferenceData``.

    Every group but the two data groups holds arrays of shape (C, n, *site): chains and draws first, also
    where there is one chain. Empty groups are left out. A "/" in a site's name (from a scope) becomes ".",
    because neither netCDF nor a ``DataTree`` can hold it.

    Args:
        posterior: draws by site, constrained.
        sample_stats: per draw, such as "lp"; "diverging" is added (all False) where it is missing, because
            ArviZ's plots and many scripts read it.
        log_likelihood: pointwise, by observed site, for ``az.loo``.
        posterior_predictive: by observed site.
        prior: draws by site.
        prior_predictive: by observed site.
        observed_data: by observed site, without chain and draw dimensions.
        constant_data: by name, without chain and draw dimensions.
        unconstrained_posterior: draws by latent site.
        coords: labels by dimension; ArviZ numbers a dimension without labels.
        dims: names of the leading dimensions (plates) by site; ArviZ names the others.
        attrs: stored with the result and its posterior. Anything but numbers, strings and lists of one kind
            of them is written as JSON (booleans too: netCDF has none), None is left out.

    Returns:
        ``xarray.DataTree``; on ArviZ 0.x ``arviz.InferenceData``, with the same groups and names.

    Raises:
        ImportError: neither arviz nor arviz-base can be imported.
        ValueError: `posterior` is empty, arrays of one group disagree in chains and draws, or two names
            become one.
    """
    arviz = _import_arviz()
    given = {
        "posterior": posterior,
        "sample_stats": {"diverging": _never(posterior), **(sample_stats or {})},
        "log_likelihood": log_likelihood,
        "posterior_predictive": posterior_predictive,
        "prior": prior,
        "prior_predictive": prior_predictive,
        "observed_data": observed_data,
        "constant_data": constant_data,
        "unconstrained_posterior": unconstrained_posterior,
    }
    groups = {name: _arrays(name, values) for name, values in given.items() if values}
    named = {_safe_name(site): [_safe_dim(dim) for dim in names] for site, names in (dims or {}).items()}
    labels = {_safe_dim(dim): list(values) for dim, values in (coords or {}).items()}
    notes = {
        "inference_library": "pyro_dft",
        "inference_library_version": __version__,
        "draws": _DRAWS_NOTE,
        **{key: _sanitise(value) for key, value in (attrs or {}).items() if value is not None},
    }
    # A simplex has one coordinate fewer in unconstrained space: labels of its last dimension would not fit.
    shapes = {name: array.shape for name, array in groups["posterior"].items()}
    unconstrained_dims = {
        site: named[site]
        for site, array in groups.get("unconstrained_posterior", {}).items()
        if site in named and array.shape == shapes.get(site)
    }
    pack = old_arviz.inference_data if old_arviz.is_old(arviz) else _data_tree
    return pack(arviz, groups, labels, named, unconstrained_dims, notes)


def sample_stats(
    log_density: NDArray[Any], statistics: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """The group of that name, in ArviZ's words.

    Args:
        log_density: Of each draw, (C, n).
        statistics: What is known of the transitions that they come from; see `pyro_dft.interface.result.Result.statistics`.
    """
    stats = {"lp": log_density, **{name: value for name, value in statistics.items() if name != "kinetic"}}
    if "kinetic" in statistics:
        stats["energy"] = statistics["kinetic"] - log_density
    return stats


def _import_arviz() -> ModuleType:
    """arviz, or arviz-base where that is all there is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ 0.23 announces 1.0 at import, in every process
        for name in ("arviz", "arviz_base"):
            try:
                return import_module(name)
            except ModuleNotFoundError as error:
                if error.name != name:  # it is there, but something that it needs is not
                    raise
    raise ImportError("to_inference_data needs ArviZ: pip install arviz")


def _data_tree(
    arviz: ModuleType,
    groups: dict[str, dict[str, NDArray[Any]]],
    coords: dict[str, list[Any]],
    dims: dict[str, list[str]],
    unconstrained_dims: dict[str, list[str]],
    attrs: dict[str, Any],
) -> Any:
    """Nested ``from_dict``; dimensions are common to all groups of one call."""
    unconstrained = groups.pop("unconstrained_posterior", None)
    tree = arviz.from_dict(
        groups, coords=coords, dims=dims, attrs={"/": dict(attrs), "posterior": dict(attrs)}
    )
    if unconstrained:
        other = arviz.from_dict(
            {"unconstrained_posterior": unconstrained}, coords=coords, dims=unconstrained_dims
        )
        tree["unconstrained_posterior"] = other["unconstrained_posterior"]
    return tree


def _never(posterior: Mapping[str, ArrayLike]) -> NDArray[np.bool_]:
    """All False, one per draw."""
    if not posterior:
        raise ValueError("posterior holds no sites")
    return np.zeros(np.shape(next(iter(posterior.values())))[:2], dtype=bool)


def _arrays(group: str, values: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
    """Arrays under safe names, with chain and draw dimensions checked."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, value in values.items():
        # A copy: what is done to the result must not move the draws, or the user's own data.
        safe, array = _safe_name(name), np.array(value)
        if safe in arrays:
            raise ValueError(f"{group}: two sites would be called {safe!r}")
        if group not in _DATA_GROUPS:
            first = next(iter(arrays.values()), array)
            if array.ndim < 2 or array.shape[:2] != first.shape[:2]:
                raise ValueError(
                    f"{group}: {name!r} must have shape (chains, draws, ...), here ({first.shape[:2]}, ...), "
                    f"got {array.shape}"
                )
        arrays[safe] = array
    return arrays


def _safe_name(site: str) -> str:
    return site.replace("/", ".")


def _safe_dim(dim: str) -> str:
    """A plate called like one of ArviZ's own dimensions gets a name of its own."""
    safe = _safe_name(dim)
    return f"{safe}_plate" if safe in ("chain", "draw") else safe


def _sanitise(value: Any) -> Any:
    """What netCDF can hold: numbers, strings, lists of one kind of them; JSON for all else."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    if isinstance(value, list | tuple) and value:
        kinds = {type(item) for item in value}
        if kinds <= {int, float} or kinds == {str}:
            return list(value)
    return json.dumps(value, default=str)
