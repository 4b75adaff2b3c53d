"""Constrained draws to the flat unconstrained vector in which every error is measured.

Latent sites in sorted name order, each raveled, through torch's ``biject_to(support).inv``: the coordinates
of the Pyro front door. NumPyro's transforms of the simplex and of Cholesky factors may differ, so its
constrained draws come through here as well.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch.distributions import biject_to, constraints

from benchmarks.models.case import PyroCase


def supports(benchmark: PyroCase) -> dict[str, constraints.Constraint]:
    """Support of each continuous latent site, in sorted name order."""
    model, args = benchmark.pyro()
    state = torch.random.get_rng_state()
    try:
        pyro.set_rng_seed(0)
        trace = poutine.trace(model).get_trace(*args)
    finally:
        torch.random.set_rng_state(state)
    sites = {k: v for k, v in trace.nodes.items() if v["type"] == "sample" and not v["is_observed"]}
    return {
        name: sites[name]["fn"].support
        for name in sorted(sites)
        if not site_is_subsample(sites[name]) and not sites[name]["fn"].has_enumerate_support
    }


def to_flat(benchmark: PyroCase, samples: Mapping[str, np.ndarray | torch.Tensor]) -> np.ndarray:
    """Flat unconstrained draws (n, d), float64, from constrained draws {site: (n, *shape)}."""
    columns = []
    for name, support in supports(benchmark).items():
        # A copy: torch warns of the read-only views that jax gives.
        value = torch.tensor(np.asarray(samples[name]), dtype=torch.float64)
        u = biject_to(support).inv(value)
        columns.append(u.reshape(len(u), -1))
    return torch.cat(columns, dim=1).numpy()


def coordinate_names(benchmark: PyroCase, samples: Mapping[str, np.ndarray | torch.Tensor]) -> list[str]:
    """Names such as ``theta[0]`` for the columns of :func:`to_flat` (unconstrained shapes)."""
    names = []
    for name, support in supports(benchmark).items():
        shape = (
            biject_to(support)
            .inv(torch.as_tensor(np.asarray(samples[name][:1]), dtype=torch.float64))
            .shape[1:]
        )
        names += [f"{name}[{','.join(map(str, i))}]" if i else name for i in np.ndindex(*shape)]
    return names
