"""The posteriordb models as a Pyro user writes them: twins of ``numpyro_models.py`` without the two ODEs.

Everything is in the default dtype of torch; scales are standard deviations. A flat prior is a proper
distribution with ``.mask(False)``, which keeps the support and drops the density: ``ImproperUniform`` cannot
be sampled, so a plain run of the model would fail. Recursions in time take log(n) steps instead of n.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import OrderedTransform
from torch import Tensor

# The same two models stand in the other benchmark.
from benchmarks.models.pyro_models import eight_schools_centered, eight_schools_noncentered  # noqa: F401

# On the diagonal of the Gaussian process kernel. It needs float64: the smallest eigenvalues are of this size.
JITTER = 1e-10


def flat(*shape: int) -> dist.TorchDistribution:
    """Flat on the real line, as an event of this shape."""
    return dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape)).mask(False)


def flat_positive(*shape: int) -> dist.TorchDistribution:
    """Flat on the positive numbers (in the value itself, not in its logarithm), as an event of this shape."""
    return dist.LogNormal(0.0, 1.0).expand(shape).to_event(len(shape)).mask(False)


def flat_ordered() -> dist.TorchDistribution:
    """Flat on increasing pairs."""
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    return dist.TransformedDistribution(base, [OrderedTransform()]).mask(False)


def positive_ordered(name: str) -> Tensor:
    """A deterministic site, flat on increasing pairs of positive numbers, from a site of its two steps.

    Another transform behind the ordering one would not do: the support of a transformed distribution is what
    its last transform says, which knows of no order.
    """
    steps = pyro.sample(f"{name}_steps", flat_positive(2))
    return pyro.deterministic(name, steps.cumsum(-1))


def flat_regression(x: Tensor, y: Tensor) -> None:
    """Linear regression, flat in the coefficients and in the residual sd."""
    beta = pyro.sample("beta", flat(x.shape[1]))
    sigma = pyro.sample("sigma", flat_positive())
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def half_cauchy_regression(x: Tensor, y: Tensor) -> None:
    """Linear regression, flat in the coefficients, half-Cauchy residual sd."""
    beta = pyro.sample("beta", flat(x.shape[1]))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def blr(x: Tensor, y: Tensor) -> None:
    """Linear regression with proper priors and no intercept."""
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def diamonds(x: Tensor, y: Tensor) -> None:
    """Log price on 24 centred columns; the intercept is that of the centred design."""
    b = pyro.sample("b", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    intercept = pyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = pyro.sample("sigma", dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(intercept + x @ b, sigma), obs=y)


def autoregression(lags: Tensor, y: Tensor) -> None:
    """AR(5) on its lag matrix, conditional on the first five values."""
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(lags.shape[1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y)


def arma(y: Tensor) -> None:
    """ARMA(1, 1); before the series the value is its mean and the error zero.

    The recursion of the errors is linear, (1 + theta L) e = r with L the lag, and its inverse is a product of
    few factors: 1 - theta L, 1 + theta^2 L^2, 1 + theta^4 L^4, and so on up to the length of the series.
    """
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    error = y - mu - phi * torch.cat([mu.reshape(1), y[:-1]])
    lag, power = 1, -theta
    while lag < len(y):
        error = torch.cat([error[:lag], error[lag:] + power * error[:-lag]])
        lag, power = 2 * lag, power**2
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(y - error, sigma), obs=y)


def gp_pois_regr(x: Tensor, k: Tensor) -> None:
    """Poisson counts with a Gaussian process as log rate, in standardised coordinates."""
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
    gap = (x.unsqueeze(-1) - x) / rho
    kernel = alpha**2 * torch.exp(-0.5 * gap**2) + JITTER * torch.eye(len(x))
    f = pyro.deterministic("f", torch.linalg.cholesky(kernel) @ z)
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Poisson(f.exp()), obs=k)


def gauss_mix(y: Tensor) -> None:
    """Two Gaussians with ordered means, the component of each point summed out."""
    mu = pyro.sample("mu", flat_ordered())
    pyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum(-1))
    sigma = pyro.sample("sigma", dist.HalfNormal(torch.full((2,), 2.0)).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(torch.stack([theta, 1.0 - theta]))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


def transitions(rows: Tensor, steps: int) -> Tensor:
    """Log transition probabilities (steps, 2, 2) of a ``DiscreteHMM`` whose first state is uniform.

    The distribution moves once before its first observation; a uniform first move makes the first state so.
    """
    return torch.cat([torch.zeros(1, 2, 2), rows.log().expand(steps - 1, 2, 2)])


def hmm_example(y: Tensor) -> None:
    """Two hidden states that emit unit Gaussians."""
    theta1 = pyro.sample("theta1", dist.Dirichlet(torch.ones(2)))
    theta2 = pyro.sample("theta2", dist.Dirichlet(torch.ones(2)))
    mu = positive_ordered("mu")
    pyro.factor("mu_prior", dist.Normal(torch.tensor([3.0, 10.0]), 1.0).log_prob(mu).sum(-1))
    moves = transitions(torch.stack([theta1, theta2]), len(y))
    pyro.sample("y", dist.DiscreteHMM(torch.zeros(2), moves, dist.Normal(mu, 1.0)), obs=y)


def hmm_drive(u: Tensor, v: Tensor, alpha: Tensor) -> None:
    """Two hidden states of a basketball drive that emit exponential inverse speeds and hoop distances."""
    theta1 = pyro.sample("theta1", dist.Dirichlet(alpha[0]))
    theta2 = pyro.sample("theta2", dist.Dirichlet(alpha[1]))
    rates = []
    for name in ("phi", "lambda"):
        rate = positive_ordered(name)
        pyro.factor(f"{name}_prior", dist.Normal(torch.tensor([0.0, 3.0]), 1.0).log_prob(rate).sum(-1))
        rates.append(rate)
    moves = transitions(torch.stack([theta1, theta2]), len(u))
    emission = dist.Exponential(torch.stack(rates, -1)).to_event(1)
    pyro.sample("uv", dist.DiscreteHMM(torch.zeros(2), moves, emission), obs=torch.stack([u, v], -1))
