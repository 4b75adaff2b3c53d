"""The benchmark models as a Pyro user writes them. ``numpyro_models.py`` holds the same densities.

Everything is in the default dtype of torch; priors are written with the second argument a standard deviation.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import OrderedTransform
from pyro.infer import config_enumerate
from torch import Tensor


def logistic(x: Tensor, y: Tensor) -> None:
    """Logistic regression, N(0, 1) on every coefficient (the first column of ``x`` is the intercept)."""
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


def eight_schools_centered(y: Tensor, sigma: Tensor) -> None:
    """Rubin's eight schools, the effects sampled directly (a funnel)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_noncentered(y: Tensor, sigma: Tensor) -> None:
    """The same posterior through standardised effects."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        z = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def baseball(at_bats: Tensor, hits: Tensor) -> None:
    """Partial pooling of batting averages on the logit scale, centred, as in Pyro's baseball example."""
    loc = pyro.sample("loc", dist.Normal(-1.0, 1.0))
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    with pyro.plate("players", len(at_bats)):
        alpha = pyro.sample("alpha", dist.Normal(loc, scale))
        pyro.sample("hits", dist.Binomial(at_bats, logits=alpha), obs=hits)


def gaussian_process(t: Tensor, y: Tensor) -> None:
    """GP regression with a squared exponential kernel, the function integrated out."""
    length = pyro.sample("length", dist.LogNormal(1.0, 1.0))
    amplitude = pyro.sample("amplitude", dist.LogNormal(0.0, 1.0))
    noise = pyro.sample("noise", dist.LogNormal(-1.0, 1.0))
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    gap = (t.unsqueeze(-1) - t) / length
    kernel = amplitude**2 * torch.exp(-0.5 * gap**2) + (noise**2 + 1e-5) * torch.eye(len(t))
    pyro.sample("y", dist.MultivariateNormal(level.expand(len(t)), covariance_matrix=kernel), obs=y)


@config_enumerate
def enumerated_mixture(y: Tensor) -> None:
    """Two Gaussians with ordered means; each point's component is a discrete site that is summed out."""
    # Flat on the ordered pairs (a masked proper base, so that it can be drawn), then the normal terms.
    flat = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 2.0).to_event(1), [OrderedTransform()])
    mu = pyro.sample("mu", flat.mask(False))
    pyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum(-1))
    sigma = pyro.sample("sigma", dist.HalfNormal(torch.full((2,), 2.0)).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Categorical(torch.stack([theta, 1.0 - theta])))
        pyro.sample("y", dist.Normal(mu[k], sigma[k]), obs=y)


def lkj_covariance(x: Tensor) -> None:
    """Mean, scales and LKJ correlation of a multivariate normal."""
    d = x.shape[-1]
    mean = pyro.sample("mean", dist.Normal(torch.zeros(d), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfCauchy(torch.full((d,), 2.5)).to_event(1))
    corr = pyro.sample("corr", dist.LKJCholesky(d, torch.tensor(2.0)))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MultivariateNormal(mean, scale_tril=scale.unsqueeze(-1) * corr), obs=x)


def varying_slopes(x: Tensor, y: Tensor, group: Tensor) -> None:
    """Correlated varying intercepts and slopes (LKJ), non-centred."""
    gamma = pyro.sample("gamma", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    tau = pyro.sample("tau", dist.HalfNormal(torch.ones(2)).to_event(1))
    corr = pyro.sample("corr", dist.LKJCholesky(2, torch.tensor(2.0)))
    with pyro.plate("groups", 6):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    coef = gamma + z @ (tau.unsqueeze(-1) * corr).T
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(coef[group, 0] + coef[group, 1] * x, sigma), obs=y)


def dirichlet_multinomial(counts: Tensor) -> None:
    """Multinomial proportions of several groups, pooled by a Dirichlet of unknown centre and strength."""
    n, k = counts.shape
    total = int(counts[0].sum())
    centre = pyro.sample("centre", dist.Dirichlet(torch.ones(k)))
    strength = pyro.sample("strength", dist.LogNormal(1.0, 1.0))
    with pyro.plate("groups", n):
        theta = pyro.sample("theta", dist.Dirichlet(strength * centre))
        pyro.sample("counts", dist.Multinomial(total, probs=theta), obs=counts)


def autoregression(lags: Tensor, y: Tensor) -> None:
    """AR(5), conditional on the first five values."""
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(lags.shape[1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y)


def negative_binomial(x: Tensor, counts: Tensor) -> None:
    """Negative binomial regression of several count outcomes; ``beta`` is a matrix site."""
    n, k = counts.shape
    intercept = pyro.sample("intercept", dist.Normal(torch.full((k,), 3.0), 2.0).to_event(1))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1], k), 1.0).to_event(2))
    shape = pyro.sample("shape", dist.LogNormal(torch.ones(k), 1.0).to_event(1))
    logits = intercept + x @ beta - torch.log(shape)
    with pyro.plate("people", n, dim=-2), pyro.plate("exercises", k, dim=-1):
        pyro.sample("counts", dist.NegativeBinomial(shape, logits=logits), obs=counts)


def horseshoe(x: Tensor, y: Tensor) -> None:
    """Linear regression with a horseshoe prior, half-Cauchy local and global scales, non-centred."""
    d = x.shape[1]
    local = pyro.sample("local", dist.HalfCauchy(torch.ones(d)).to_event(1))
    overall = pyro.sample("overall", dist.HalfCauchy(1.0))
    z = pyro.sample("z", dist.Normal(torch.zeros(d), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    beta = pyro.deterministic("beta", z * local * overall)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)
