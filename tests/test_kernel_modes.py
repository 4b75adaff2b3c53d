"""`DFTKernel` serves all separate modes with their weights, in every block of draws: both backends, every chain method."""

from __future__ import annotations

import functools
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from backends import BACKENDS
from daily import daily
from numpyro.infer import MCMC as NumPyroMCMC
from pyro.infer import MCMC as PyroMCMC

from pyro_dft.experimental import grouped

PYRO, NUMPYRO = BACKENDS
SHARE, CENTRE, BLOCK = 0.3, 5.0, 400
OPTIONS = grouped({
    "train": "never", "precondition_steps": 80, "restarts": 6, "num_draws": BLOCK, "disable_progbar": True,
})  # fmt: skip


def jax_potential(z):
    squares = [((z["x"] - s * CENTRE) ** 2).sum() / 2 for s in (1, -1)]
    return -jnp.logaddexp(jnp.log(SHARE) - squares[0], jnp.log(1 - SHARE) - squares[1])


def torch_potential(z):
    squares = [((z["x"] - s * CENTRE) ** 2).sum() / 2 for s in (1, -1)]
    shares = torch.tensor([SHARE, 1 - SHARE]).log()
    return -torch.logaddexp(shares[0] - squares[0], shares[1] - squares[1])


def options_of(backend):
    potential = torch_potential if backend is PYRO else jax_potential
    seed = {"seed": 0, "compile": "never"} if backend is PYRO else {}
    start = {"x": backend.array(np.zeros(2))}
    return {"potential_fn": potential, "initial_params": start, **grouped({**OPTIONS, **seed})}


@pytest.fixture(scope="module")
def fitted():
    """A fit of each backend, made when it is asked for."""

    @functools.cache
    def make(backend):
        made = backend.DFT(num_chains=2, **options_of(backend))
        backend.run(made)
        assert len(made.diagnostics()["modes"]["weights"]) == 2
        return made

    return make


def kernel_of(backend, own, fitted):
    if not own:
        return backend.DFTKernel(fitted(backend))
    options = options_of(backend)
    if backend is PYRO:
        del options["disable_progbar"]
    return backend.DFTKernel(**options)


def check(draws, block=BLOCK):
    """Draws (chains, n, 2): the share of a mode and the spread within it, in each block."""
    draws = np.asarray(draws, float)
    assert np.isfinite(draws).all()
    for chain in draws:
        assert len(np.unique(chain[:, 0])) > 0.98 * len(chain)  # float32 has ties
        for part in np.split(chain, len(chain) // block):
            share = (part[:, 0] > 0).mean()
            # Four standard errors of a share of so many draws, and .02 for the error of the weight itself.
            assert abs(share - SHARE) < 4 * (SHARE * (1 - SHARE) / len(part)) ** 0.5 + 0.02
        within = draws - CENTRE * np.sign(draws[..., :1])
        # Of n independent draws the sd has a relative standard error of (2 n)^-1/2, and the mean one of n^-1/2.
        assert np.abs(within.std((0, 1)) - 1).max() < 4 / (2 * draws[..., 0].size) ** 0.5
        assert np.abs(within.mean((0, 1))).max() < 4 / draws[..., 0].size ** 0.5


METHODS = {"sequential": "sequential", "vectorized": "vectorized", "vmap": jax.vmap}
# How chains are run, and whether the kernel trains or serves a fit: each of them every day, not each pair.
PAIRS = daily(
    [(m, o) for m in METHODS for o in ("own", "fitted")], ("sequential", "fitted"), ("vectorized", "own")
)


@pytest.mark.parametrize(("method", "own"), PAIRS)
def test_mcmc_of_numpyro_draws_both_modes_by_their_weights(method, own, fitted):
    chain_method, kernel = METHODS[method], kernel_of(NUMPYRO, own == "own", fitted)
    options = {"num_warmup": 0, "num_samples": 3 * BLOCK, "num_chains": 2, "progress_bar": False}
    mcmc = NumPyroMCMC(kernel, chain_method=chain_method, **options)
    mcmc.run(jax.random.key(1))
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
    check(draws)
    assert len(np.intersect1d(draws[0, :, 0], draws[1, :, 0])) < 0.02 * BLOCK
    # Each of them has a verdict.
    assert {report["status"] for report in kernel.diagnostics} == {"converged"}


@pytest.mark.parametrize("method", daily(["sequential", "vectorized"], "sequential"))
def test_chains_of_numpyro_go_on_in_both_modes(method):
    """From their last state: draws that the first run had not, and as many from each mode."""
    options = {"num_warmup": 0, "num_samples": BLOCK, "num_chains": 2, "progress_bar": False}
    mcmc = NumPyroMCMC(NUMPYRO.DFTKernel(**options_of(NUMPYRO)), chain_method=method, **options)
    mcmc.run(jax.random.key(1))
    first = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.post_warmup_state.rng_key)
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
    check(draws)
    for chain in draws[..., 0]:
        assert len(np.intersect1d(first[..., 0], chain)) < 0.02 * BLOCK
    assert len(np.intersect1d(draws[0, :, 0], draws[1, :, 0])) < 0.02 * BLOCK


PARALLEL = """
import numpyro
numpyro.set_host_device_count(2)
import sys
sys.path.insert(0, sys.argv[1])
import jax, numpy as np
from numpyro.infer import MCMC
from test_kernel_modes import BLOCK, NUMPYRO, check, options_of

options = options_of(NUMPYRO)
if sys.argv[2] == "own":
    kernel = NUMPYRO.DFTKernel(**options)
else:
    fit = NUMPYRO.DFT(num_chains=2, **options)
    fit.run(jax.random.key(0))
    kernel = NUMPYRO.DFTKernel(fit)
mcmc = MCMC(kernel, num_warmup=0, num_samples=3 * BLOCK, num_chains=2, chain_method="parallel", progress_bar=False)
mcmc.run(jax.random.key(1))
draws = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
check(draws)
assert len(np.intersect1d(draws[0, :, 0], draws[1, :, 0])) < 0.02 * BLOCK
assert kernel.diagnostics[-1]["status"] == "converged"
print(mcmc.chain_method, jax.local_device_count())
"""


@pytest.mark.slow
@pytest.mark.parametrize("own", daily(["own", "fitted"], "own"))
def test_numpyro_in_parallel_on_two_devices(own):
    """The devices must be there before jax starts: a process of its own."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        PARALLEL,
        str(Path(__file__).parent),
        own,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["parallel", "2"], done.stderr[-2000:]


PYRO_PAIRS = daily(
    [(m, o) for m in ("sequential", "parallel") for o in ("own", "fitted")],
    ("sequential", "fitted"), ("parallel", "own"),
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(("method", "own"), PYRO_PAIRS)
def test_mcmc_of_pyro_draws_both_modes_by_their_weights(method, own, fitted, monkeypatch):
    processors = 8 if method == "parallel" else 1
    monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: processors)
    kernel = kernel_of(PYRO, own == "own", fitted)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="num_chains=.* is more than available_cpu")
        mcmc = PyroMCMC(
            kernel,
            3 * BLOCK,
            1,
            num_chains=2,
            disable_progbar=True,
            mp_context="fork" if processors > 1 else None,
        )
        torch.manual_seed(3)
        mcmc.run()
    check(mcmc.get_samples(group_by_chain=True)["x"])
    assert all(own["status"] == "converged" for own in mcmc.diagnostics()["dft"].values())
