"""Parameters and data that are outside of what their distributions allow, at draws of a fit."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from pyro_dft.models import validity
from pyro_dft.numpyro.placement import is_jacobian
from pyro_dft.numpyro.traced import map_rows


def invalid(problem: Any, x: Any) -> dict[str, dict[str, float]]:
    """What is wrong at points (n, d) of a model.

    Returns:
        "parameters" and "data" -> name -> share of the points; see `pyro_dft.models.validity`.
    """

    def one(row: Any) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {"parameters": {}, "data": {}}
        for name, site in problem.run(problem.point_of(row)).items():
            if site["type"] != "sample" or is_jacobian(site):
                continue
            fn = site["fn"]
            for parameter, bad in validity.parameters(fn):
                wrong = validity.unmasked(jnp.asarray(bad), fn)
                found["parameters"][f"{name}{validity.SEPARATOR}{parameter}"] = wrong.any()
            if name in problem.structure.observed:
                bad = validity.outside(site["value"], fn.support)
                if bad is not None:
                    found["data"][name] = validity.unmasked(jnp.asarray(bad), fn).any()
        return found

    function, arrays = problem._function("invalid", one, problem._row())
    found = map_rows(function, arrays, x, elements=problem.structure.elements)
    return {kind: validity.shares(found[kind]) for kind in ("parameters", "data")}
