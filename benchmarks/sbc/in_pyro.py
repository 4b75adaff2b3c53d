"""In Pyro: one draw of parameters and data; one fit to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from benchmarks.sbc.models import Model
from benchmarks.sbc.uniformity import DRAWS
from pyro_dft import DFT
from pyro_dft.experimental import grouped

Draws = dict[str, np.ndarray]


def _seeds(seed: int, replicate: int) -> tuple[int, int]:
    """Seeds of the simulation and of the fit: the same one would give both the same normal numbers."""
    first, second = np.random.SeedSequence((seed, replicate)).generate_state(2)
    return int(first), int(second)


def simulate(model: Model, seed: int, replicate: int) -> tuple[Draws, np.ndarray]:
    """Parameters (with a leading axis of one) from the prior, and data given them."""
    function, fixed = model.pyro()
    pyro.set_rng_seed(_seeds(seed, replicate)[0])
    trace = pyro.poutine.trace(function).get_trace(*fixed)
    y = trace.nodes["y"]["value"].numpy()
    return {name: trace.nodes[name]["value"].numpy()[None] for name in model.sites}, y


def fit(
    model: Model, y: np.ndarray, settings: Mapping[str, Any], seed: int, replicate: int
) -> tuple[DFT, dict[str, Draws]]:
    """A trained sampler, and its raw and refined draws."""
    function, fixed = model.pyro()
    dft = DFT(function, seed=_seeds(seed, replicate)[1], disable_progbar=True, **grouped(settings))
    dft.run(*fixed, torch.tensor(y))
    raw, refined = dft.get_samples(DRAWS, refine_steps=0), dft.get_samples(DRAWS)
    return dft, {kind: _numpy(draws) for kind, draws in (("raw", raw), ("refined", refined))}


def _numpy(draws: Mapping[str, Tensor]) -> Draws:
    return {name: value.detach().numpy() for name, value in draws.items()}
