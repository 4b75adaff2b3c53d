"""What a file for `python -m pyro_dft.many`, and a worker of a process pool, can import: a model and its data sets."""

import os
import signal
from pathlib import Path

import numpy as np
import numpyro
import numpyro.distributions as dist

framework = "numpyro"
options = {"num_draws": 100, "train": "never", "slice_size": 2, "disable_progbar": True}


def model(y, dies_at=""):
    """A mean; a worker that is the first to see `dies_at`, the name of a file, dies of it."""
    if dies_at and not Path(dies_at).exists():
        Path(dies_at).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def data():
    """Seven data sets: three slices of two, and one of one."""
    return np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
