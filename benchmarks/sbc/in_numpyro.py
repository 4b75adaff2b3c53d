"""In NumPyro: one draw of parameters and data; one fit to them, by ``DFT`` or by simuk through ``DFTKernel``."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from numpyro.infer import Predictive

from benchmarks.sbc.models import Model
from benchmarks.sbc.uniformity import DRAWS
from pyro_dft.experimental import grouped
from pyro_dft.numpyro import DFT, DFTKernel

Draws = dict[str, np.ndarray]


def _keys(seed: int, replicate: int) -> Array:
    """Keys of the simulation and of the fit: the draws must know nothing of the truth but through the data."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), replicate))


def simulate(model: Model, seed: int, replicate: int) -> tuple[Draws, np.ndarray]:
    """Parameters (with a leading axis of one) from the prior, and data given them."""
    function, fixed = model.numpyro()
    sites = Predictive(function, num_samples=1)(_keys(seed, replicate)[0], *fixed)
    return {name: np.asarray(sites[name]) for name in model.sites}, np.asarray(sites["y"])[0]


def fit(
    model: Model, y: np.ndarray, settings: Mapping[str, Any], seed: int, replicate: int
) -> tuple[DFT, dict[str, Draws]]:
    """A trained sampler, and its raw and refined draws."""
    function, fixed = model.numpyro()
    dft = DFT(function, disable_progbar=True, **grouped(settings))
    dft.run(_keys(seed, replicate)[1], *fixed, y)
    raw, refined = dft.get_samples(DRAWS, refine_steps=0), dft.get_samples(DRAWS)
    return dft, {kind: _numpy(draws) for kind, draws in (("raw", raw), ("refined", refined))}


def _numpy(draws: Mapping[str, Any]) -> Draws:
    return {name: np.asarray(value) for name, value in draws.items()}


def simuk(
    model: Model, settings: Mapping[str, Any], seed: int, replicate: int
) -> tuple[dict[str, Any], np.ndarray]:
    """One replicate by simuk, which simulates, runs NumPyro's MCMC and ranks, all by itself.

    It keeps nothing between processes, so each replicate is a run of its own with its own seed. It gives the key of the
    simulation to the sampler as well; DFT makes other numbers of a key (Philox) than NumPyro does (Threefry).

    Returns:
        Diagnostics of the fit, and the ranks of the coordinates. simuk has no further test quantities.
    """
    from simuk import SBC

    function, fixed = model.numpyro()
    # simuk takes for data what its arguments name like an observed site.
    data = {model.argument: fixed[0], "y": simulate(model, seed, replicate)[1]}
    kernel = DFTKernel(function, disable_progbar=True, **grouped(settings))
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar with one step
        sbc = SBC(
            kernel,
            num_simulations=1,
            sample_kwargs={"num_warmup": 0, "num_samples": DRAWS},
            seed=int(np.random.SeedSequence((seed, replicate)).generate_state(1)[0]),
            data_dir=data,
        )
        sbc.run_simulations()
    found = sbc.simulations["prior_sbc"]
    return dict(kernel.diagnostics[0]), np.concatenate([np.ravel(found[site]) for site in model.sites])
