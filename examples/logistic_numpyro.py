"""The NumPyro half of `logistic_regression.py`: model, NUTS and DFT. Its twin is `logistic_pyro.py`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from logistic_data import Data, Seconds
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS

from pyro_dft.numpyro import DFT


def model(x, y=None):
    """Logistic regression with standard normal priors."""
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 1.0))
    coefficients = numpyro.sample("coefficients", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    with numpyro.plate("tumours", len(x)):
        numpyro.sample("benign", dist.Bernoulli(logits=intercept + x @ coefficients), obs=y)


def arguments(data: Data) -> tuple[jax.Array, jax.Array]:
    """Give the model's arguments."""
    return jnp.asarray(data.x_train, float), jnp.asarray(data.y_train, float)


def flat(samples: Mapping[str, jax.Array]) -> np.ndarray:
    """Put intercept and coefficients side by side, shape (..., 31)."""
    return np.concatenate([samples["intercept"][..., None], samples["coefficients"]], axis=-1)


def run_nuts(data: Data, options: argparse.Namespace) -> tuple[np.ndarray, Seconds, Seconds]:
    """Give draws (chains, n, 31), the seconds of compilation and warm-up, and those of sampling."""
    start = Seconds.now()
    mcmc = MCMC(
        NUTS(model),
        num_warmup=options.nuts_warmup,
        num_samples=options.nuts_draws,
        num_chains=options.chains,
        chain_method="sequential",
    )
    keys = jax.random.split(jax.random.key(options.seed), 3)
    x, y = arguments(data)  # once: for other objects `MCMC` compiles again
    mcmc.warmup(keys[0], x, y)
    mcmc.run(keys[1], x, y)
    draws = flat(mcmc.get_samples(group_by_chain=True))
    # As many draws once more: the first time a good part of the seconds is compilation.
    compiled = Seconds.now()
    mcmc.run(keys[2], x, y)
    flat(mcmc.get_samples())
    sampling = Seconds.now() - compiled
    return draws, compiled - start - sampling, sampling


def effective_draws(by_chain: np.ndarray) -> np.ndarray:
    """Give the effective sample size of each parameter."""
    return effective_sample_size(by_chain)


def r_hat(by_chain: np.ndarray) -> np.ndarray:
    """Give the split R-hat of each parameter."""
    return split_gelman_rubin(by_chain)


def train_dft(data: Data, options: argparse.Namespace) -> DFT:
    """Train a sampler."""
    dft = DFT(model)
    dft.run(jax.random.key(options.seed), *arguments(data))
    return dft
