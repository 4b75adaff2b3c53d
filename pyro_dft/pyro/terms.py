"""The log density of a model site by site."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyro.distributions as dist
import torch
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from .enumeration import likelihood_plan, pointwise
from .evaluation import patched
from .families import unwrap

if TYPE_CHECKING:
    from .model import PyroProblem

Pair = tuple[np.ndarray, np.ndarray]


def site_terms(problem: PyroProblem, x: Tensor) -> dict[str, Pair | None]:
    """Log density of each site, summed in double precision; see `Problem.site_terms`."""
    with patched(), torch.no_grad():
        rows = [{name: _sums(term) for name, term in _terms(problem, row).items()} for row in x]
    found: dict[str, Pair | None] = {}
    for name in rows[0]:
        pairs = [row[name] for row in rows]
        sums = np.array([pair for pair in pairs if pair is not None])
        found[name] = (sums[:, 0], sums[:, 1]) if len(sums) == len(pairs) else None
    return found


def _sums(term: Tensor | None) -> tuple[float, float] | None:
    return None if term is None else (float(term.double().sum()), float(term.double().abs().sum()))


def _terms(problem: PyroProblem, row: Tensor) -> dict[str, Tensor | None]:
    """Log densities of all sites at one point (d,), not summed; of its transforms under "log Jacobian"."""
    place, log_jacobian = problem._place(row)
    trace = problem.run(place)
    trace.compute_log_prob()
    jacobian = sum(place.log_jacobians, torch.as_tensor(log_jacobian, device=row.device))
    found: dict[str, Tensor | None] = {"log Jacobian": torch.as_tensor(jacobian)}
    if problem.enumerated:
        trace.pack_tensors()
        plan = likelihood_plan(trace, problem.structure.observed, problem.enum_dims, problem.ordering)[0]
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or name in problem.structure.discrete:
            continue
        no_data = isinstance(site["fn"], _Subsample) or isinstance(unwrap(site["fn"]), dist.Delta)
        if no_data and name not in problem.structure.latent:
            continue
        if not problem.enumerated or problem.enum_dims.isdisjoint(site["packed"]["log_prob"]._pyro_dims):
            found[name] = site["log_prob"]
        elif name in plan:
            found[name] = pointwise(trace, name, plan[name], problem.enum_dims, problem.ordering[name])
        else:
            found[name] = None
    return found
