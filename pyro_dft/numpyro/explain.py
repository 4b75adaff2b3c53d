"""Why a model has no finite density at a point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_dft import messages
from pyro_dft.numpyro.placement import is_jacobian
from pyro_dft.numpyro.traced import map_rows, point, trace

if TYPE_CHECKING:
    from pyro_dft.numpyro.model import NumPyroProblem


def not_finite(problem: NumPyroProblem, x: np.ndarray) -> str | None:
    """Which sites are to blame at a flat point (d,), in words; None where none is."""

    def terms(row: Any) -> dict[str, Any]:
        sites = problem.run(problem.point_of(row))
        return {
            name: site["fn"].log_prob(site["value"])
            for name, site in sites.items()
            if site["type"] == "sample" and not is_jacobian(site)
        }

    function, arrays = trace(terms, point(problem.dim, problem.dtype))
    bad = {}
    for name, value in map_rows(function, arrays, x[None]).items():
        wrong = ~np.isfinite(value)
        if wrong.any():
            bad[name] = (int(wrong.sum()), wrong.size)
    nan = [name for name, value in problem.observed().items() if _has_nan(value)]
    return messages.not_finite(bad, nan)


def _has_nan(value: np.ndarray) -> bool:
    return np.issubdtype(value.dtype, np.floating) and bool(np.isnan(value).any())
