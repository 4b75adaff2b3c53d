"""The densities of ``pyro_models.py`` again, in NumPyro: they make the float64 references.

Functions of the same name have the same sites and the same joint density up to a constant (tested). Those
named ``*_reference`` are easier forms of the same posterior, used where plain NUTS would get a funnel wrong.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints


def logistic(x: Array, y: Array) -> None:
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(x.shape[1]), 1.0).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


def eight_schools_centered(y: Array, sigma: Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_noncentered(y: Array, sigma: Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(y)):
        z = numpyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def baseball(at_bats: Array, hits: Array) -> None:
    loc = numpyro.sample("loc", dist.Normal(-1.0, 1.0))
    scale = numpyro.sample("scale", dist.HalfCauchy(1.0))
    with numpyro.plate("players", len(at_bats)):
        alpha = numpyro.sample("alpha", dist.Normal(loc, scale))
        numpyro.sample("hits", dist.Binomial(at_bats, logits=alpha), obs=hits)


def baseball_reference(at_bats: Array, hits: Array) -> None:
    """Non-centred: 45 at-bats say little about one player."""
    loc = numpyro.sample("loc", dist.Normal(-1.0, 1.0))
    scale = numpyro.sample("scale", dist.HalfCauchy(1.0))
    with numpyro.plate("players", len(at_bats)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        alpha = numpyro.deterministic("alpha", loc + scale * z)
        numpyro.sample("hits", dist.Binomial(at_bats, logits=alpha), obs=hits)


def gaussian_process(t: Array, y: Array) -> None:
    length = numpyro.sample("length", dist.LogNormal(1.0, 1.0))
    amplitude = numpyro.sample("amplitude", dist.LogNormal(0.0, 1.0))
    noise = numpyro.sample("noise", dist.LogNormal(-1.0, 1.0))
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    gap = (t[:, None] - t) / length
    kernel = amplitude**2 * jnp.exp(-0.5 * gap**2) + (noise**2 + 1e-5) * jnp.eye(len(t))
    numpyro.sample("y", dist.MultivariateNormal(jnp.full(len(t), level), covariance_matrix=kernel), obs=y)


def enumerated_mixture(y: Array) -> None:
    """The component sites summed out by hand: the same density without enumeration."""
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    numpyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum(-1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(jnp.full(2, 2.0)).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(probs=jnp.stack([theta, 1.0 - theta]))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


def mixture_of_components(y: Array) -> None:
    """The same with its component sites, which are summed out by funsor."""
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    numpyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum(-1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(jnp.full(2, 2.0)).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    with numpyro.plate("data", len(y)):
        k = numpyro.sample("k", dist.Bernoulli(1.0 - theta), infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Normal(mu[k], sigma[k]), obs=y)


def lkj_covariance(x: Array) -> None:
    d = x.shape[-1]
    mean = numpyro.sample("mean", dist.Normal(jnp.zeros(d), 1.0).to_event(1))
    scale = numpyro.sample("scale", dist.HalfCauchy(jnp.full(d, 2.5)).to_event(1))
    corr = numpyro.sample("corr", dist.LKJCholesky(d, 2.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.MultivariateNormal(mean, scale_tril=scale[:, None] * corr), obs=x)


def varying_slopes(x: Array, y: Array, group: Array) -> None:
    gamma = numpyro.sample("gamma", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    tau = numpyro.sample("tau", dist.HalfNormal(jnp.ones(2)).to_event(1))
    corr = numpyro.sample("corr", dist.LKJCholesky(2, 2.0))
    with numpyro.plate("groups", 6):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    coef = gamma + z @ (tau[:, None] * corr).T
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(coef[group, 0] + coef[group, 1] * x, sigma), obs=y)


def dirichlet_multinomial(counts: Array) -> None:
    n, k = counts.shape
    centre = numpyro.sample("centre", dist.Dirichlet(jnp.ones(k)))
    strength = numpyro.sample("strength", dist.LogNormal(1.0, 1.0))
    with numpyro.plate("groups", n):
        theta = numpyro.sample("theta", dist.Dirichlet(strength * centre))
        numpyro.sample("counts", dist.Multinomial(counts[0].sum(), probs=theta), obs=counts)


def autoregression(lags: Array, y: Array) -> None:
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(lags.shape[1]), 10.0).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    with numpyro.plate("time", len(y)):
        numpyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y)


def negative_binomial(x: Array, counts: Array) -> None:
    n, k = counts.shape
    intercept = numpyro.sample("intercept", dist.Normal(jnp.full(k, 3.0), 2.0).to_event(1))
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros((x.shape[1], k)), 1.0).to_event(2))
    shape = numpyro.sample("shape", dist.LogNormal(jnp.ones(k), 1.0).to_event(1))
    mean = jnp.exp(intercept + x @ beta)
    with numpyro.plate("people", n, dim=-2), numpyro.plate("exercises", k, dim=-1):
        numpyro.sample("counts", dist.NegativeBinomial2(mean, shape), obs=counts)


def horseshoe(x: Array, y: Array) -> None:
    d = x.shape[1]
    local = numpyro.sample("local", dist.HalfCauchy(jnp.ones(d)).to_event(1))
    overall = numpyro.sample("overall", dist.HalfCauchy(1.0))
    z = numpyro.sample("z", dist.Normal(jnp.zeros(d), 1.0).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    beta = numpyro.deterministic("beta", z * local * overall)
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)
