"""Potentials in jax, one for each kind of geometry: they take one point (d,) and the arrays of their target.

Exact draws of most of them are in `benchmarks.geometry.draws`.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from benchmarks.geometry.draws import RADIUS, VARIANCE, Array

# Curves and rings


def banana(x: Any, bend: Any, spread: Any) -> Any:
    """x1 bends with x0^2: a Gaussian under (spread z0, z1 + bend spread (z0^2 - 1), z2, ...)."""
    z0 = x[0] / spread
    z1 = x[1] - bend * spread * (z0**2 - 1)
    return 0.5 * (z0**2 + z1**2 + (x[2:] ** 2).sum())


def rosenbrock(x: Any) -> Any:
    """Goodman and Weare's scaling: a narrow valley along a parabola ten times as long as it is wide."""
    return ((1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2) / 20


def double_bend(x: Any) -> Any:
    """x1 follows a cubic of x0: a banana bent twice."""
    return x[0] ** 2 / 4.5 + (x[1] - x[0] ** 3 / 3 + 1.5 * x[0]) ** 2 / 0.5


def squiggle(x: Any) -> Any:
    """x1 follows a sine of x0, which has standard deviation sqrt(5)."""
    return 0.1 * x[0] ** 2 + (x[1] + jnp.sin(2 * x[0])) ** 2 / 0.5


def donut(x: Any) -> Any:
    """A ring of radius 2.6, 0.128 thick."""
    return (jnp.sqrt((x**2).sum()) - RADIUS) ** 2 / VARIANCE


# Funnels and hierarchies


def funnel(x: Any) -> Any:
    """Neal's funnel: v ~ N(0, 3), the rest N(0, exp(v / 2))."""
    return x[0] ** 2 / 18 + 0.5 * ((x[1:] ** 2).sum() * jnp.exp(-x[0]) + (len(x) - 1) * x[0])


def funnel_features(x: Array) -> Array:
    """V, and inverse hyperbolic sines of the others: their sds would be made by a few giant draws."""
    return np.column_stack([x[:, 0], np.arcsinh(x[:, 1:])])


def centred_hierarchy(x: Any, y: Any, sigma: Any) -> Any:
    """Groups theta ~ N(mu, tau) with mu ~ N(0, 5), tau ~ C+(5); x = (mu, log tau, theta)."""
    mu, log_tau, theta = x[0], x[1], x[2:]
    prior = 0.5 * (mu / 5) ** 2 + jnp.log1p((jnp.exp(log_tau) / 5) ** 2) - log_tau
    groups = 0.5 * ((theta - mu) * jnp.exp(-log_tau)) ** 2 + log_tau
    return prior + groups.sum() + 0.5 * (((y - theta) / sigma) ** 2).sum()


# Heavy tails and skewness


def student(x: Any, degrees: Any) -> Any:
    """Independent Student-t coordinates; one degree of freedom: Cauchy."""
    return 0.5 * (degrees + 1) * jnp.log1p(x**2 / degrees).sum()


def log_gamma(x: Any, inverse: Any) -> Any:
    """Correlated logarithms of standard exponentials: one tail falls like exp(u), the other like exp(-exp(u))."""
    u = inverse @ x
    return (jnp.exp(u) - u).sum()


def mildly_skewed(x: Any, inverse: Any, shape: Any) -> Any:
    """Correlated logarithms of gamma variables, scaled to sds near one: the larger the shape, the nearer to Gaussian."""
    u = (inverse @ x) / jnp.sqrt(shape)
    return shape * (jnp.exp(u) - u).sum()


def autoregressive(d: int, rho: float) -> Array:
    """Cholesky factor of the correlations rho^|i - j|."""
    return np.linalg.cholesky(rho ** np.abs(np.subtract.outer(np.arange(d), np.arange(d))))


# Gaussians


def gaussian(x: Any, inverse: Any) -> Any:
    """N(0, F F^T), given the inverse of the factor F."""
    return 0.5 * ((inverse @ x) ** 2).sum()


def rotated(d: int, condition: float) -> Array:
    """Factor of a covariance with this condition number, its axes rotated at random."""
    q = np.linalg.qr(np.random.default_rng(d).normal(size=(d, d)))[0]
    return q * np.logspace(-0.25, 0.25, d, base=condition)


def badly_scaled(d: int) -> Array:
    """Factor of a moderately correlated covariance with standard deviations from 1e-3 to 1e3."""
    return np.logspace(-3, 3, d)[:, None] * autoregressive(d, 0.5)


# Separate modes


def mixture(x: Any, centres: Any, log_weights: Any, sd: Any) -> Any:
    """Round Gaussians of equal width."""
    return -logsumexp(log_weights - 0.5 * (((x - centres) / sd) ** 2).sum(-1))


def mixture_components(centres: Array, weights: Array, sd: float) -> Any:
    def components(x: Array) -> Array:
        return np.log(weights) - 0.5 * (((x[:, None] - centres) / sd) ** 2).sum(-1)

    return components


def triangle(d: int, side: float) -> Array:
    """Three points (3, d), each `side` from the others, turned at random."""
    corners = np.zeros((3, d))
    corners[:, :3] = side / math.sqrt(2) * (np.eye(3) - 1 / 3)
    return corners @ np.linalg.qr(np.random.default_rng(3).normal(size=(d, d)))[0]


BANANA_LOG_WEIGHTS = (math.log(0.35), math.log(0.65))


def two_bananas(x: Any) -> Any:
    """Two bananas that bend away from each other, with weights .35 and .65."""
    shift = 0.4 * x[0] ** 2
    up, down = x[1] - 5 - shift, x[1] + 5 + shift
    a, b = BANANA_LOG_WEIGHTS
    return 0.5 * x[0] ** 2 / 2.25 + 0.5 * up**2 - jnp.logaddexp(a, b + 0.5 * (up**2 - down**2))


def two_bananas_components(x: Array) -> Array:
    shift = 5 + 0.4 * x[:, 0] ** 2
    apart = np.stack([-0.5 * (x[:, 1] - shift) ** 2, -0.5 * (x[:, 1] + shift) ** 2], 1)
    return apart + np.array(BANANA_LOG_WEIGHTS)
