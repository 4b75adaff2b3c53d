"""Conjugate models with data drawn from them: their posteriors are drawn in closed form."""

from __future__ import annotations

import numpy as np

from benchmarks.hostile.arrays import Array
from benchmarks.hostile.grids import logit_beta
from benchmarks.hostile.posterior import Posterior

DIMS = (3, 8)
STYLES = ("regression, known noise", "gamma-Poisson", "beta-binomial", "regression, normal-inverse-gamma")


def make(rng: np.random.Generator, d: int, style: str) -> Posterior:
    """A random conjugate model with d latent numbers; styles: see `STYLES`."""
    makers = (known_noise, gamma_poisson, beta_binomial, unknown_noise)
    return makers[STYLES.index(style)](rng, d)


def design(rng: np.random.Generator, rows: int, k: int) -> Array:
    """Predictors (rows, k), an intercept first, the others correlated."""
    mixed = rng.normal(size=(rows, k)) @ (np.eye(k) + 0.5 * rng.normal(size=(k, k)))
    return np.column_stack([np.ones(rows), mixed[:, 1:]])


def known_noise(rng: np.random.Generator, d: int) -> Posterior:
    """A linear regression: the posterior is Gaussian."""
    rows = 2 * d
    x, prior_sd, noise = (
        design(rng, rows, d),
        np.exp(rng.uniform(-1, 1.5, d)),
        float(np.exp(rng.uniform(-1, 1.5))),
    )
    y = x @ (prior_sd * rng.normal(size=d)) + noise * rng.normal(size=rows)
    covariance = np.linalg.inv(np.diag(prior_sd**-2) + x.T @ x / noise**2)
    mean, factor = covariance @ x.T @ y / noise**2, np.linalg.cholesky(covariance)
    return Posterior(
        f"regression, known noise, {rows} rows", d, lambda r, n: mean + r.normal(size=(n, d)) @ factor.T,
        model="known_noise", arguments=(x, y, prior_sd, np.array(noise)),
    )  # fmt: skip


def gamma_poisson(rng: np.random.Generator, d: int) -> Posterior:
    """Counts in groups: logarithms of gamma variables."""
    shape, rate, exposure = rng.uniform(0.5, 3.0, d), np.exp(rng.uniform(-2, 1, d)), rng.uniform(0.2, 3.0, d)
    y = rng.poisson(rng.gamma(shape) / rate * exposure).astype(float)
    return Posterior(
        f"gamma-Poisson, counts {y.min():.0f} to {y.max():.0f}", d,
        lambda r, n: np.log(r.standard_gamma(shape + y, (n, d))) - np.log(rate + exposure),
        model="gamma_poisson", arguments=(y, exposure, shape, rate),
    )  # fmt: skip


def beta_binomial(rng: np.random.Generator, d: int) -> Posterior:
    """Successes in groups: logits of beta variables."""
    a, b, trials = rng.uniform(0.8, 4.0, d), rng.uniform(0.8, 4.0, d), rng.integers(1, 30, d).astype(float)
    y = rng.binomial(trials.astype(int), rng.beta(a, b)).astype(float)
    return Posterior(
        f"beta-binomial, trials {trials.min():.0f} to {trials.max():.0f}", d,
        lambda r, n: logit_beta(r, np.tile(a + y, (n, 1)), np.tile(b + trials - y, (n, 1))),
        model="beta_binomial", arguments=(y, trials, a, b),
    )  # fmt: skip


def unknown_noise(rng: np.random.Generator, d: int) -> Posterior:
    """A linear regression whose noise is not known: beta and the variance are normal-inverse-gamma."""
    k, rows = d - 1, 2 * d
    x, prior_sd = design(rng, rows, k), np.exp(rng.uniform(-1, 1.5, k))
    shape, rate = rng.uniform(1.5, 4.0), np.exp(rng.uniform(-1, 2))
    sd = np.sqrt(rate / rng.gamma(shape))
    y = x @ (sd * prior_sd * rng.normal(size=k)) + sd * rng.normal(size=rows)
    covariance = np.linalg.inv(np.diag(prior_sd**-2) + x.T @ x)
    mean, factor = covariance @ x.T @ y, np.linalg.cholesky(covariance)
    rest = rate + 0.5 * (y @ y - mean @ x.T @ y)

    def draw(r: np.random.Generator, n: int) -> Array:
        variance = rest / r.standard_gamma(shape + rows / 2, (n, 1))
        return np.column_stack(
            [mean + np.sqrt(variance) * (r.normal(size=(n, k)) @ factor.T), np.log(variance)]
        )

    arguments = (x, y, prior_sd, np.array(shape), np.array(rate))
    return Posterior(
        f"regression, normal-inverse-gamma, {rows} rows", d, draw, model="unknown_noise", arguments=arguments
    )
