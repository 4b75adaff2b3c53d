"""The Pyro half of `logistic_regression.py`: model, NUTS and DFT. Its twin is `logistic_numpyro.py`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from logistic_data import Data, Seconds
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin

from pyro_dft import DFT


def model(x, y=None):
    """Logistic regression with standard normal priors."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
    coefficients = pyro.sample("coefficients", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("tumours", len(x)):
        pyro.sample("benign", dist.Bernoulli(logits=intercept + x @ coefficients), obs=y)


def arguments(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the model's arguments."""
    dtype = torch.get_default_dtype()
    return torch.as_tensor(data.x_train, dtype=dtype), torch.as_tensor(data.y_train, dtype=dtype)


def flat(samples: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Put intercept and coefficients side by side, shape (n, 31)."""
    return torch.column_stack([samples["intercept"], samples["coefficients"]]).numpy()


def run_nuts(data: Data, options: argparse.Namespace) -> tuple[np.ndarray, Seconds, Seconds]:
    """Give draws (chains, n, 31), the seconds of warm-up, and those of sampling."""
    torch.set_num_threads(options.threads)
    chains, warmup, sampling = [], Seconds(), Seconds()
    for chain in range(options.chains):
        pyro.set_rng_seed(options.seed + chain)
        laps = [Seconds.now()]
        mcmc = MCMC(
            NUTS(model, jit_compile=options.nuts_jit, ignore_jit_warnings=True),
            num_samples=options.nuts_draws,
            warmup_steps=options.nuts_warmup,
            hook_fn=lambda kernel, params, stage, i, laps=laps: laps.append(Seconds.now()),
        )
        mcmc.run(*arguments(data))
        laps.append(Seconds.now())
        warmup += laps[options.nuts_warmup] - laps[0]
        sampling += laps[-1] - laps[options.nuts_warmup]
        chains.append(flat(mcmc.get_samples()))
    return np.stack(chains), warmup, sampling


def effective_draws(by_chain: np.ndarray) -> np.ndarray:
    """Give the effective sample size of each parameter."""
    return effective_sample_size(torch.as_tensor(by_chain)).numpy()


def r_hat(by_chain: np.ndarray) -> np.ndarray:
    """Give the split R-hat of each parameter."""
    return split_gelman_rubin(torch.as_tensor(by_chain)).numpy()


def train_dft(data: Data, options: argparse.Namespace) -> DFT:
    """Train a sampler."""
    dft = DFT(model, seed=options.seed)
    dft.run(*arguments(data))
    return dft
