"""Exact draws where one number is drawn by the inverse of its distribution function on a grid, and the rest given it."""

from __future__ import annotations

import numpy as np
from scipy.special import betaln

from benchmarks.hostile.arrays import Array
from benchmarks.hostile.posterior import Draw

# Logarithms of a scale: no prior here has a share of 1e-6 outside.
LOG_SCALES = np.linspace(-16.0, 12.0, 56_001)


def inverse_cdf(rng: np.random.Generator, n: int, grid: Array, log_density: Array) -> Array:
    """Draws (n,) of a density that is known on an even grid, up to a constant."""
    density = np.exp(log_density - log_density.max())
    cumulative = np.append(0.0, np.cumsum(0.5 * (density[1:] + density[:-1])))
    return np.interp(rng.uniform(size=n) * cumulative[-1], cumulative, grid)


def log_scale_prior(log_scale: Array, scale: float, cauchy: bool) -> Array:
    """Log density of log tau, up to a constant, for tau half-Cauchy or half-normal of this scale."""
    ratio = (np.exp(log_scale) / scale) ** 2
    return log_scale - (np.log1p(ratio) if cauchy else 0.5 * ratio)


def normal_hierarchy(y: Array, sigma: Array, mean_sd: float, scale: float, cauchy: bool) -> Draw:
    """Draws of (mu, log tau, theta): y ~ N(theta, sigma), theta ~ N(mu, tau), mu ~ N(0, mean_sd); mu and theta integrate out."""

    def draw(rng: np.random.Generator, n: int) -> Array:
        precision = 1 / (sigma**2 + np.exp(2 * LOG_SCALES)[:, None])
        total = precision.sum(1) + mean_sd**-2
        mean = (precision * y).sum(1) / total
        log_p = 0.5 * (np.log(precision) - precision * y**2).sum(1) + 0.5 * (total * mean**2 - np.log(total))
        log_tau = inverse_cdf(rng, n, LOG_SCALES, log_p + log_scale_prior(LOG_SCALES, scale, cauchy))
        tau = np.exp(log_tau)[:, None]
        precision = 1 / (sigma**2 + tau**2)
        total = precision.sum(1) + mean_sd**-2
        mu = (precision * y).sum(1) / total + rng.normal(size=n) / np.sqrt(total)
        # theta = mu + tau t, with t ~ N(0, 1) a priori
        t_precision = 1 + (tau / sigma) ** 2
        t_mean = tau / sigma**2 * (y - mu[:, None]) / t_precision
        t = t_mean + rng.normal(size=t_mean.shape) / np.sqrt(t_precision)
        return np.column_stack([mu, log_tau, mu[:, None] + tau * t])

    return draw


def gamma_hierarchy(y: Array, exposure: Array, shape: float, prior: tuple[float, float]) -> Draw:
    """Draws of (log intensities, log rate): y ~ Poisson(exposure l), l ~ Gamma(shape, rate), rate ~ Gamma(prior)."""

    def draw(rng: np.random.Generator, n: int) -> Array:
        each = shape * LOG_SCALES[:, None] - (shape + y) * np.log(np.exp(LOG_SCALES)[:, None] + exposure)
        log_p = prior[0] * LOG_SCALES - prior[1] * np.exp(LOG_SCALES) + each.sum(1)
        log_rate = inverse_cdf(rng, n, LOG_SCALES, log_p)
        size = rng.standard_gamma(shape + y, (n, len(y)))
        return np.column_stack([np.log(size) - np.log(np.exp(log_rate)[:, None] + exposure), log_rate])

    return draw


def beta_hierarchy(y: Array, trials: Array, mean: float, prior: tuple[float, float]) -> Draw:
    """Draws of (logit p, log strength): y ~ Binomial(trials, p), p ~ Beta with this mean, log strength ~ N(prior)."""

    def draw(rng: np.random.Generator, n: int) -> Array:
        k = np.exp(LOG_SCALES)[:, None]
        each = betaln(y + mean * k, trials - y + (1 - mean) * k) - betaln(mean * k, (1 - mean) * k)
        log_p = each.sum(1) - 0.5 * ((LOG_SCALES - prior[0]) / prior[1]) ** 2
        log_k = inverse_cdf(rng, n, LOG_SCALES, log_p)
        k = np.exp(log_k)[:, None]
        return np.column_stack([logit_beta(rng, y + mean * k, trials - y + (1 - mean) * k), log_k])

    return draw


def ridge(x: Array, y: Array, noise: float, scale: float) -> Draw:
    """Draws of (beta, log tau): y ~ N(x beta, noise), beta ~ N(0, tau), tau half-normal of this scale."""

    def draw(rng: np.random.Generator, n: int) -> Array:
        # In the axes of x^T x everything is independent given tau.
        values, axes = np.linalg.eigh(x.T @ x / noise**2)
        projected = axes.T @ x.T @ y / noise**2
        precision = values + np.exp(-2 * LOG_SCALES)[:, None]
        log_p = 0.5 * (projected**2 / precision - np.log(precision) - 2 * LOG_SCALES[:, None]).sum(1)
        log_tau = inverse_cdf(rng, n, LOG_SCALES, log_p + log_scale_prior(LOG_SCALES, scale, False))
        precision = values + np.exp(-2 * log_tau)[:, None]
        turned = projected / precision + rng.normal(size=precision.shape) / np.sqrt(precision)
        return np.column_stack([turned @ axes.T, log_tau])

    return draw


def logit_beta(rng: np.random.Generator, a: Array, b: Array) -> Array:
    """Logits of draws of Beta(a, b), as a difference of logarithms of gamma variables: nothing rounds to one."""
    return np.log(rng.standard_gamma(a)) - np.log(rng.standard_gamma(b))
