"""Funnels of random sizes, bare and as models, and centred hierarchies as bare potentials, which nothing can non-centre."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.hostile.arrays import Array
from benchmarks.hostile.grids import normal_hierarchy
from benchmarks.hostile.posterior import Draw, Posterior

DIMS = (3, 6, 12)
STYLES = ("bare funnel", "funnel as a model", "bare hierarchy")


def make(rng: np.random.Generator, d: int, style: str) -> Posterior:
    """A random funnel in d coordinates; styles: see `STYLES`."""
    if style == "bare hierarchy":
        return _bare_hierarchy(rng, d)
    sd, slopes = float(rng.uniform(0.5, 2.5)), rng.uniform(0.3, 1.0, d - 1)
    words, draw = f"{style}, sd {sd:.1f}, slopes to {slopes.max():.1f}", _draws(sd, slopes)
    if style == "funnel as a model":
        return Posterior(words, d, draw, model="funnel", arguments=(np.array(sd), slopes))
    return Posterior(words, d, draw, potential, {"sd": np.array(sd), "slopes": slopes})


def potential(m: Any, x: Any, p: Mapping[str, Any]) -> Any:
    """V ~ N(0, sd), the others N(0, exp(slope v)) each."""
    log_sd = p["slopes"] * x[..., :1]
    z = x[..., 1:] * m.exp(-log_sd)
    return 0.5 * (x[..., 0] / p["sd"][0]) ** 2 + (0.5 * z * z + log_sd).sum(-1)


def _draws(sd: float, slopes: Array) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> Array:
        v = sd * rng.normal(size=(n, 1))
        return np.concatenate([v, np.exp(slopes * v) * rng.normal(size=(n, len(slopes)))], 1)

    return draw


def _bare_hierarchy(rng: np.random.Generator, d: int) -> Posterior:
    mean_sd, scale, cauchy = 5.0, rng.uniform(1.0, 8.0), bool(rng.integers(2))
    sigma, tau = np.exp(rng.uniform(0, 2.5, d - 2)), scale * abs(rng.normal())
    y = mean_sd * rng.normal() + tau * rng.normal(size=d - 2) + sigma * rng.normal(size=d - 2)
    p = {
        "y": y,
        "sigma": sigma,
        "mean_sd": np.array(mean_sd),
        "scale": np.array(scale),
        "cauchy": np.array(float(cauchy)),
    }
    words = f"bare hierarchy, {d - 2} groups, {'half-Cauchy' if cauchy else 'half-normal'}"
    return Posterior(words, d, normal_hierarchy(y, sigma, mean_sd, scale, cauchy), centred_hierarchy, p)


def centred_hierarchy(m: Any, x: Any, p: Mapping[str, Any]) -> Any:
    """The density of x = (mu, log tau, theta), with the priors of `grids.normal_hierarchy`."""
    mu, log_tau, theta = x[..., 0], x[..., 1], x[..., 2:]
    ratio = (m.exp(log_tau) / p["scale"][0]) ** 2
    prior = (
        0.5 * (mu / p["mean_sd"][0]) ** 2
        + m.where(p["cauchy"][0] > 0.5, m.log1p(ratio), 0.5 * ratio)
        - log_tau
    )
    t = (theta - mu[..., None]) * m.exp(-log_tau)[..., None]
    data = (p["y"] - theta) / p["sigma"]
    return prior + theta.shape[-1] * log_tau + 0.5 * (t * t + data * data).sum(-1)
