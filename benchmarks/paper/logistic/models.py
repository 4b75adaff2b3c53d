"""The model in both frameworks, with the data in a plate that can be subsampled.

alpha ~ Gamma(1, 0.01) is the precision of the weights, w ~ N(0, 1/alpha) the 55 weights with the intercept first, y ~
Bernoulli(sigmoid(x w)): the model of Gershman, Hoffman and Blei (2012) and Liu and Wang (2016). `batch=None` reads all rows.
"""

from __future__ import annotations

from typing import Any


def numpyro_model(x: Any, y: Any, batch: int | None = None) -> None:
    """The model in NumPyro.

    Args:
        x: Predictors (n, 55), ones first.
        y: Labels (n,), 0 or 1.
        batch: Rows of a minibatch, or None for all.
    """
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    alpha = numpyro.sample("alpha", dist.Gamma(1.0, 0.01))
    w = numpyro.sample("w", dist.Normal(jnp.zeros(x.shape[1]), alpha**-0.5).to_event(1))
    with numpyro.plate("data", x.shape[0], subsample_size=batch):
        rows = numpyro.subsample(x, event_dim=1)
        labels = numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Bernoulli(logits=rows @ w), obs=labels)


def pyro_model(x: Any, y: Any, batch: int | None = None) -> None:
    """The model in Pyro; arguments as for `numpyro_model`."""
    import pyro
    import pyro.distributions as dist
    import torch

    alpha = pyro.sample("alpha", dist.Gamma(1.0, 0.01))
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), alpha[..., None] ** -0.5).to_event(1))
    with pyro.plate("data", x.shape[0], subsample_size=batch):
        rows = pyro.subsample(x, event_dim=1)
        labels = pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Bernoulli(logits=rows @ w), obs=labels)
