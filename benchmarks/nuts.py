"""The baselines: NUTS of either framework as its users run it, 4 sequential chains of 1000 + 1000, one thread.

Pyro (no jit): every chain is its own run with its own seed, stored as soon as it ends, so that a killed command goes
on with the chain that is missing. NumPyro: one run of four chains from a cold cache, which compiles once for all of
them; compilation is part of its seconds. Costs are CPU seconds of this process and evaluations of the potential's
gradient (NumPyro counts those after warm-up only).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.infer.mcmc.hmc
import pyro.infer.mcmc.nuts
import pyro.infer.mcmc.util
import pyro.ops.integrator
import torch
from pyro.infer import MCMC, NUTS

from benchmarks.costs import timed
from benchmarks.models.case import Case, PyroCase

CHAINS, WARMUP, DRAWS = 4, 1000, 1000
FIRST_SEED = 1000

# Every module that holds its own name for the function that evaluates a gradient.
_HOLDERS = (pyro.ops.integrator, pyro.infer.mcmc.hmc, pyro.infer.mcmc.nuts, pyro.infer.mcmc.util)


@contextmanager
def counted_gradients() -> Iterator[list[int]]:
    """Counts evaluations of a potential's gradient by Pyro's integrators; yields a list of one number."""
    original: Callable[..., Any] = pyro.ops.integrator.potential_grad
    count = [0]

    def counting(potential_fn: Callable[..., Any], z: dict[str, torch.Tensor]) -> Any:
        count[0] += 1
        return original(potential_fn, z)

    for module in _HOLDERS:
        module.potential_grad = counting
    try:
        yield count
    finally:
        for module in _HOLDERS:
            module.potential_grad = original


def run_chain(benchmark: PyroCase, chain: int) -> tuple[np.ndarray, dict[str, float]]:
    """One chain: flat draws (DRAWS, d) and its costs."""
    model, args = benchmark.pyro()
    pyro.clear_param_store()
    pyro.set_rng_seed(FIRST_SEED + chain)
    mcmc = MCMC(NUTS(model), num_samples=DRAWS, warmup_steps=WARMUP, disable_progbar=True)
    with counted_gradients() as count:
        start = time.process_time()
        mcmc.run(*args)
        seconds = time.process_time() - start
    divergences = sum(len(v) for v in mcmc.diagnostics()["divergences"].values())
    costs = {"seconds": seconds, "gradients": float(count[0]), "divergences": float(divergences)}
    return benchmark.flat(mcmc.get_samples()), costs


def run_numpyro(benchmark: Case) -> tuple[np.ndarray, dict[str, float]]:
    """All chains of NumPyro's NUTS: flat draws (CHAINS * DRAWS, d) and the costs."""
    import jax
    import numpyro.infer

    model, args = benchmark.numpyro()
    mcmc = numpyro.infer.MCMC(
        numpyro.infer.NUTS(model),
        num_warmup=WARMUP,
        num_samples=DRAWS,
        num_chains=CHAINS,
        chain_method="sequential",
        progress_bar=False,
    )
    jax.clear_caches()

    def sample() -> dict[str, np.ndarray]:
        mcmc.run(jax.random.key(FIRST_SEED), *args, extra_fields=("num_steps", "diverging"))
        return {name: np.asarray(value) for name, value in mcmc.get_samples().items()}

    samples, cost = timed(sample)
    extra = mcmc.get_extra_fields()
    costs = {
        **cost.to_json("numpyro"),
        "gradients": float(extra["num_steps"].sum()),
        "divergences": float(extra["diverging"].sum()),
    }
    return benchmark.flat(samples), costs


def run(
    benchmark: Case, folder: Path, framework: str = "pyro", *, fresh: bool = False
) -> tuple[np.ndarray, dict[str, float]]:
    """All chains, from the cache where they are there.

    Args:
        benchmark: The model.
        folder: Where the chains are kept, one npz and one json for each run.
        framework: "pyro" or "numpyro".
        fresh: Whether chains that are there are run again.

    Returns:
        Flat draws (CHAINS, DRAWS, d) and the summed costs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if framework == "pyro":
        runs = [
            _kept(folder / f"chain{chain}", partial(run_chain, benchmark, chain), fresh)
            for chain in range(CHAINS)
        ]
    else:
        runs = [_kept(folder / "chains", partial(run_numpyro, benchmark), fresh)]
    total = {key: sum(costs[key] for _, costs in runs) for key in runs[0][1]}
    draws = np.concatenate([draws for draws, _ in runs])
    return draws.reshape(CHAINS, DRAWS, -1), total


def _kept(
    stem: Path, sample: Callable[[], tuple[np.ndarray, dict[str, float]]], fresh: bool
) -> tuple[np.ndarray, dict[str, float]]:
    """What a run gave, from the disk if it is there and need not be fresh."""
    npz, meta = stem.with_suffix(".npz"), stem.with_suffix(".json")
    if fresh or not (npz.exists() and meta.exists()):
        draws, costs = sample()
        np.savez(npz, draws=draws.astype(np.float32))
        meta.write_text(json.dumps(costs))
    with np.load(npz) as f:
        return f["draws"].astype(np.float64), json.loads(meta.read_text())


def settings() -> dict[str, int]:
    """What the cache key of a baseline is made of."""
    return {"chains": CHAINS, "warmup": WARMUP, "draws": DRAWS, "seed": FIRST_SEED}
