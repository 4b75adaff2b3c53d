"""Centred hierarchies as models, with data drawn from their prior; one scale is integrated on a grid, the rest is conjugate."""

from __future__ import annotations

import numpy as np

from benchmarks.hostile import grids
from benchmarks.hostile.conjugate import design
from benchmarks.hostile.posterior import Posterior

DIMS = (7, 14)
STYLES = (
    "normal, half-normal scale",
    "normal, half-Cauchy scale",
    "gamma-Poisson",
    "beta-binomial",
    "ridge regression",
)


def make(rng: np.random.Generator, d: int, style: str) -> Posterior:
    """A random hierarchy with d latent numbers; styles: see `STYLES`."""
    if style.startswith("normal"):
        return normal(rng, d, style == "normal, half-Cauchy scale")
    return {"gamma-Poisson": gamma, "beta-binomial": beta, "ridge regression": ridge}[style](rng, d)


def normal(rng: np.random.Generator, d: int, cauchy: bool) -> Posterior:
    """Groups with normal means and known errors."""
    groups, mean_sd, scale = d - 2, rng.uniform(1.0, 10.0), rng.uniform(0.5, 8.0)
    sigma, tau = np.exp(rng.uniform(0, 2.5, groups)), abs(scale * rng.normal())
    if cauchy:
        tau = min(abs(scale * rng.standard_cauchy()), 20 * scale)
    y = mean_sd * rng.normal() + tau * rng.normal(size=groups) + sigma * rng.normal(size=groups)
    name = "half_cauchy" if cauchy else "half_normal"
    return Posterior(
        f"normal, {name.replace('_', '-')} scale, true scale {tau:.1f}, errors {sigma.min():.1f} to {sigma.max():.1f}",
        d, grids.normal_hierarchy(y, sigma, mean_sd, scale, cauchy), model=f"normal_{name}",
        arguments=(y, sigma, np.array(mean_sd), np.array(scale)),
    )  # fmt: skip


def gamma(rng: np.random.Generator, d: int) -> Posterior:
    """Groups of counts whose intensities have a common unknown rate."""
    groups, shape, prior = d - 1, rng.uniform(1.0, 4.0), (rng.uniform(1.0, 3.0), rng.uniform(0.3, 3.0))
    exposure, rate = rng.uniform(0.2, 5.0, groups), rng.gamma(prior[0]) / prior[1]
    y = rng.poisson(rng.gamma(shape, size=groups) / rate * exposure).astype(float)
    return Posterior(
        f"gamma-Poisson, shape {shape:.1f}, counts {y.min():.0f} to {y.max():.0f}", d,
        grids.gamma_hierarchy(y, exposure, shape, prior), model="gamma_groups",
        arguments=(y, exposure, np.array(shape), np.array(prior[0]), np.array(prior[1])),
    )  # fmt: skip


def beta(rng: np.random.Generator, d: int) -> Posterior:
    """Groups of successes whose rates have a common unknown strength."""
    groups, mean, prior = d - 1, rng.uniform(0.3, 0.7), (2.5, 0.5)
    strength, trials = np.exp(prior[0] + prior[1] * rng.normal()), rng.integers(2, 40, groups).astype(float)
    p = rng.beta(mean * strength, (1 - mean) * strength, groups)
    y = rng.binomial(trials.astype(int), p).astype(float)
    return Posterior(
        f"beta-binomial, strength {strength:.1f}", d, grids.beta_hierarchy(y, trials, mean, prior), model="beta_groups",
        arguments=(y, trials, np.array(mean), np.array(prior[0]), np.array(prior[1])),
    )  # fmt: skip


def ridge(rng: np.random.Generator, d: int) -> Posterior:
    """A linear regression whose coefficients have a common unknown scale."""
    k, rows, noise, scale = d - 1, 2 * d, np.exp(rng.uniform(-1, 2)), rng.uniform(0.5, 5.0)
    x, tau = design(rng, rows, k), abs(scale * rng.normal())
    y = x @ (tau * rng.normal(size=k)) + noise * rng.normal(size=rows)
    return Posterior(
        f"ridge regression, true scale {tau:.1f}, noise {noise:.1f}", d, grids.ridge(x, y, noise, scale),
        model="ridge", arguments=(x, y, np.array(noise), np.array(scale)),
    )  # fmt: skip
