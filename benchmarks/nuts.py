"""The baseline: Pyro's NUTS as its users run it, 4 sequential chains of 1000 + 1000, one thread, no jit.

Every chain is its own run with its own seed, stored as soon as it ends, so that a killed command goes on with
the chain that is missing. Costs are CPU seconds of this process and evaluations of the potential's gradient.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

from benchmarks.flat import to_flat
from benchmarks.models.registry import Benchmark

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


def run_chain(benchmark: Benchmark, chain: int) -> tuple[np.ndarray, dict[str, float]]:
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
    return to_flat(benchmark, mcmc.get_samples()), costs


def run(benchmark: Benchmark, folder: Path) -> tuple[np.ndarray, dict[str, float]]:
    """All chains, from the cache where they are there.

    Args:
        benchmark: The model.
        folder: Where the chains are kept, one npz and one json each.

    Returns:
        Flat draws (CHAINS, DRAWS, d) and the summed costs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draws: list[np.ndarray] = []
    total = {"seconds": 0.0, "gradients": 0.0, "divergences": 0.0}
    for chain in range(CHAINS):
        npz, meta = folder / f"chain{chain}.npz", folder / f"chain{chain}.json"
        if not (npz.exists() and meta.exists()):
            x, costs = run_chain(benchmark, chain)
            np.savez(npz, draws=x.astype(np.float32))
            meta.write_text(json.dumps(costs))
        costs = json.loads(meta.read_text())
        with np.load(npz) as f:
            draws.append(f["draws"].astype(np.float64))
        total = {k: total[k] + costs[k] for k in total}
    return np.stack(draws), total


def settings() -> dict[str, int]:
    """What the cache key of a baseline is made of."""
    return {"chains": CHAINS, "warmup": WARMUP, "draws": DRAWS, "seed": FIRST_SEED}
