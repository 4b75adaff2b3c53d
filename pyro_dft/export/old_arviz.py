"""ArviZ 0.x (Python 3.11 has no newer one), all in this file: what is packed for it is an ``InferenceData``."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from numpy.typing import NDArray


def is_old(arviz: ModuleType) -> bool:
    """Whether a module is ArviZ 0.x, rather than 1.x or arviz-base."""
    # Not by asking for `InferenceData`: ArviZ 1.x answers that with a warning and another class.
    return arviz.__name__ == "arviz" and int(arviz.__version__.split(".")[0]) < 1


def inference_data(
    arviz: ModuleType,
    groups: dict[str, dict[str, NDArray[Any]]],
    coords: dict[str, list[Any]],
    dims: dict[str, list[str]],
    unconstrained_dims: dict[str, list[str]],
    attrs: dict[str, Any],
) -> Any:
    """An ``InferenceData`` of what `pyro_dft.export.arviz.to_inference_data` has checked and named.

    ``arviz.preview`` (the functions of 1.x) takes it as it takes a ``DataTree``.

    Args:
        arviz: ArviZ 0.x.
        groups: Arrays by group and name, (C, n, *site), in the data groups (*site); changed.
        coords: Labels by dimension.
        dims: Names of dimensions by site.
        unconstrained_dims: The same for unconstrained sites.
        attrs: Notes, for the whole and for the posterior.
    """
    # Its flat `from_dict` does not know this group.
    unconstrained = groups.pop("unconstrained_posterior", None)
    data = arviz.from_dict(**groups, coords=coords, dims=dims, attrs=dict(attrs), posterior_attrs=dict(attrs))
    if unconstrained:
        dataset = arviz.dict_to_dataset(unconstrained, coords=coords, dims=unconstrained_dims)
        data.add_groups({"unconstrained_posterior": dataset})
    return data
