"""Small models and settings that train in about a second, for tests of the interface."""

from __future__ import annotations

import contextlib
import math
import signal

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats

from pyro_dft.experimental import grouped

# The preconditioner alone: a full fit with everything but a network.
GAUSSIAN = grouped({
    "train": "never", "compile": "never", "precondition_steps": 40, "restarts": 2, "refine_steps": 2,
    "num_draws": 200, "seed": 2,
})  # fmt: skip
# Both phases of the network on top of it.
NETWORK = grouped({
    **GAUSSIAN, "train": "always", "num_steps": 20, "width": 8, "depth": 1, "batch_size": 16,
    "dft_fraction": 0.2,
})  # fmt: skip


def known_mean(y):
    """Posterior of `mu` in closed form: see `known_mean_posterior`."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def known_mean_posterior(y):
    """Mean and sd of `mu`: precision 1/100 + n."""
    precision = 0.01 + len(y)
    return float(y.sum()) / precision, precision**-0.5


def line(x, y=None):
    """Linear regression with a deterministic site, written as most people do (`x @ slope`)."""
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("row", len(x)):
        mean = pyro.deterministic("mean", x @ slope)
        pyro.sample("y", dist.Normal(mean, scale), obs=y)


def line_data(n=20):
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(n, 2, generator=rng)
    return x, x @ torch.tensor([1.0, -0.5]) + 0.5 * torch.randn(n, generator=rng)


def schools(y, error):
    """Eight schools, non-centred: a latent site inside a plate, and all of it vectorisable by plates."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pyro.plate("school", len(error)):
        raw = pyro.sample("raw", dist.Normal(torch.zeros(()), 1.0))
        theta = pyro.deterministic("theta", mu + tau * raw)
        pyro.sample("y", dist.Normal(theta, error), obs=y)


def schools_data():
    effect = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    return effect, torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def minibatched(y):
    """`known_mean` that reads 5 rows at a time."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y), subsample_size=5) as rows:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])


def mean_error(draws, mean):
    """Distance of the mean of independent draws from `mean`, in its Monte Carlo standard errors."""
    return abs(float(draws.mean()) - mean) / (float(draws.std()) / math.sqrt(len(draws)))


def all_distinct(draws):
    """Whether no draw of one number is another one's copy, but for ties.

    Of n draws with sd s, n^2 u / (4 sqrt(pi) s) pairs are expected to round to the same float32, whose spacing is u.
    As many are allowed as chance exceeds once in a million; a stream that is read twice repeats far more.
    """
    draws = np.asarray(draws, dtype=np.float32).ravel()
    ties = draws.size**2 * np.spacing(np.abs(draws).max()) / (4 * np.pi**0.5 * draws.std(dtype=np.float64))
    return draws.size - len(np.unique(draws)) <= stats.poisson.isf(1e-6, ties)


@contextlib.contextmanager
def deadline(seconds):
    """Fails where a block hangs."""

    def late(*_):
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
