"""Parameters and data that are outside of what their distributions allow, at draws of a fit."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pyro_dft.models import validity

from .batching import map_rows


def invalid(problem: Any, x: Tensor) -> dict[str, dict[str, float]]:
    """What is wrong at points (n, d) of a model.

    Returns:
        "parameters" and "data" -> name -> share of the points; see `pyro_dft.models.validity`.
    """

    def one(row: dict[str, Tensor]) -> dict[str, Tensor]:
        trace = problem.run(problem._place(row["x"])[0])
        found = {}
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or isinstance(site["fn"], _Subsample):
                continue
            fn, mask = site["fn"], site["mask"]
            for parameter, bad in validity.parameters(fn):
                wrong = validity.unmasked(bad, fn, mask)
                found[f"parameters{name}{validity.SEPARATOR}{parameter}"] = wrong.any()
            if name in problem.structure.observed and problem.structure.validated:
                bad = validity.outside(site["value"], fn.support)
                if bad is not None:
                    found[f"data{name}"] = validity.unmasked(bad, fn, mask).any()
        return found | {"": torch.zeros((), dtype=torch.bool)}

    with torch.no_grad():
        flags = {k: v.cpu() for k, v in map_rows(one, {"x": x}, chunk=problem._chunk(len(x))).items()}
    shares = validity.shares(flags)
    return {
        kind: {name.removeprefix(kind): s for name, s in shares.items() if name.startswith(kind)}
        for kind in ("parameters", "data")
    }
