"""The models, written once for both frameworks: their distributions have the same names and arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.hostile.arrays import namespace


def build(name: str, ppl: Any) -> Callable[..., None]:
    """A model as a function of its arguments alone.

    Args:
        name: Of a function below.
        ppl: The module `numpyro` or `pyro`.
    """
    function, m = globals()[name], namespace(ppl.__name__)

    def model(*arguments: Any) -> None:
        function(ppl, ppl.distributions, m, *arguments)

    return model


def funnel(ppl: Any, dist: Any, m: Any, sd: Any, slopes: Any) -> None:
    v = ppl.sample("v", dist.Normal(0.0, sd))
    ppl.sample("x", dist.Normal(0.0, m.exp(slopes * v)).to_event(1))


# Conjugate models


def known_noise(ppl: Any, dist: Any, m: Any, x: Any, y: Any, prior_sd: Any, noise: Any) -> None:
    beta = ppl.sample("beta", dist.Normal(0.0, prior_sd).to_event(1))
    with ppl.plate("row", len(y)):
        ppl.sample("y", dist.Normal(x @ beta, noise), obs=y)


def gamma_poisson(ppl: Any, dist: Any, m: Any, y: Any, exposure: Any, shape: Any, rate: Any) -> None:
    with ppl.plate("group", len(y)):
        intensity = ppl.sample("intensity", dist.Gamma(shape, rate))
        ppl.sample("y", dist.Poisson(intensity * exposure), obs=y)


def beta_binomial(ppl: Any, dist: Any, m: Any, y: Any, trials: Any, a: Any, b: Any) -> None:
    with ppl.plate("group", len(y)):
        p = ppl.sample("p", dist.Beta(a, b))
        ppl.sample("y", dist.Binomial(trials, p), obs=y)


def unknown_noise(ppl: Any, dist: Any, m: Any, x: Any, y: Any, prior_sd: Any, shape: Any, rate: Any) -> None:
    variance = ppl.sample("variance", dist.InverseGamma(shape, rate))
    sd = m.sqrt(variance)
    beta = ppl.sample("beta", dist.Normal(0.0, sd * prior_sd).to_event(1))
    with ppl.plate("row", len(y)):
        ppl.sample("y", dist.Normal(x @ beta, sd), obs=y)


# Hierarchies, centred


def normal_half_normal(ppl: Any, dist: Any, m: Any, y: Any, sigma: Any, mean_sd: Any, scale: Any) -> None:
    _normal_groups(ppl, dist, y, sigma, mean_sd, ppl.sample("tau", dist.HalfNormal(scale)))


def normal_half_cauchy(ppl: Any, dist: Any, m: Any, y: Any, sigma: Any, mean_sd: Any, scale: Any) -> None:
    _normal_groups(ppl, dist, y, sigma, mean_sd, ppl.sample("tau", dist.HalfCauchy(scale)))


def _normal_groups(ppl: Any, dist: Any, y: Any, sigma: Any, mean_sd: Any, tau: Any) -> None:
    mu = ppl.sample("mu", dist.Normal(0.0, mean_sd))
    with ppl.plate("group", len(y)):
        theta = ppl.sample("theta", dist.Normal(mu, tau))
        ppl.sample("y", dist.Normal(theta, sigma), obs=y)


def gamma_groups(ppl: Any, dist: Any, m: Any, y: Any, exposure: Any, shape: Any, a: Any, b: Any) -> None:
    rate = ppl.sample("rate", dist.Gamma(a, b))
    with ppl.plate("group", len(y)):
        intensity = ppl.sample("intensity", dist.Gamma(shape, rate))
        ppl.sample("y", dist.Poisson(intensity * exposure), obs=y)


def beta_groups(ppl: Any, dist: Any, m: Any, y: Any, trials: Any, mean: Any, centre: Any, width: Any) -> None:
    strength = ppl.sample("strength", dist.LogNormal(centre, width))
    with ppl.plate("group", len(y)):
        p = ppl.sample("p", dist.Beta(mean * strength, (1 - mean) * strength))
        ppl.sample("y", dist.Binomial(trials, p), obs=y)


def ridge(ppl: Any, dist: Any, m: Any, x: Any, y: Any, noise: Any, scale: Any) -> None:
    tau = ppl.sample("tau", dist.HalfNormal(scale))
    beta = ppl.sample("beta", dist.Normal(0.0 * x[0], tau).to_event(1))
    with ppl.plate("row", len(y)):
        ppl.sample("y", dist.Normal(x @ beta, noise), obs=y)
