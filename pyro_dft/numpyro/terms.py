"""The log density of a model site by site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpyro import distributions as dist

from pyro_dft.engine_jax.sharding import row_sums
from pyro_dft.numpyro.families import unwrap
from pyro_dft.numpyro.traced import apply_block, depends, key_words

if TYPE_CHECKING:
    from pyro_dft.numpyro.model import NumPyroProblem

Pair = tuple[np.ndarray, np.ndarray]


def site_terms(problem: NumPyroProblem, x: np.ndarray) -> dict[str, Pair | None]:
    """Log density of each site, summed in double precision; see `Problem.site_terms`."""

    def terms(row: Any, words: Any) -> dict[str, Any]:
        return _terms(problem, row, words)

    function, arrays = problem._function("terms", terms, problem._row(), key_words())
    words = np.zeros((1, 2), np.uint32)
    # One point at a time: each makes as many numbers as there are rows of data.
    rows = [
        {name: row_sums(term) for name, term in apply_block(function, (row[None], words), arrays).items()}
        for row in np.asarray(x, problem.dtype)
    ]
    # Discrete sites are drawn with the key: what depends on them has no density by itself.
    shapes = [problem._row(), key_words()]
    drawn = depends(terms, shapes, 1) if problem.enumerated else dict.fromkeys(rows[0], False)
    found: dict[str, Pair | None] = {}
    for name in rows[0]:
        sums, sizes = (np.concatenate(part) for part in zip(*(row[name] for row in rows), strict=True))
        found[name] = None if drawn[name] else (sums, sizes)
    return found


def _terms(problem: NumPyroProblem, row: Any, words: Any) -> dict[str, Any]:
    """Log densities of all sites at one point (d,), not summed; of its transforms under "log Jacobian"."""
    found: dict[str, Any] = {}
    jacobians = {f"_{name}_log_det" for name in problem.layout.names}
    total: Any = np.zeros((), problem.dtype)
    for name, site in problem.run(problem.point_of(row), words).items():
        if site["type"] != "sample" or name in problem.structure.discrete:
            continue
        fn, value = site["fn"], site["value"]
        if isinstance(unwrap(fn), dist.Delta) and name not in problem.structure.latent:
            continue
        more = site["intermediates"]
        term = fn.log_prob(value, more) if more else fn.log_prob(value)
        term = term if site["scale"] is None else term * site["scale"]
        if name in jacobians:
            total = total + term.sum()
        else:
            found[name] = term
    return {**found, "log Jacobian": total}
