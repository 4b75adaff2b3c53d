"""Posteriors whose exact draws are known by construction, as Pyro models or bare potentials.

Every draw is a row (d,) of unconstrained coordinates, sites in sorted order. A truth is drawn forward (a
warp of a Gaussian, a conjugate posterior, a one-dimensional grid) or, for small regressions, by importance
sampling from a wide Student-t, so that its own error is far below the limits of the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from benchmarks.geometry import draws
from benchmarks.geometry.draws import Array, Draw


@dataclass(frozen=True)
class Posterior:
    """What is fitted, and what the right answer is.

    Attributes:
        problem: Constructor arguments of `DFT`: the model, or the potential and its initial values.
        draw: (rng, n) -> exact draws (n, d); None where there is no posterior.
        args: Arguments of the model.
        features: Test functions (n, d) -> (n, k) in place of the coordinates, where these do not show all.
        centres: (K, d) separate modes; a draw belongs to the nearest.
        quantiles_only: Whether means and sds do not exist, so that only quantiles can be compared.
    """

    problem: dict[str, Any]
    draw: Draw | None
    args: tuple[Any, ...] = ()
    features: Callable[[Array], Array] | None = None
    centres: Array | None = None
    quantiles_only: bool = False


def bare(potential: Callable[[Tensor], Tensor], d: int, draw: Draw | None, **options: Any) -> Posterior:
    """A posterior of one vector site "x", given by its potential."""
    problem = {"potential_fn": lambda p: potential(p["x"]), "initial_params": {"x": torch.zeros(d)}}
    return Posterior(problem, draw, **options)


def gaussian(d: int = 10) -> Posterior:
    """Correlated, with standard deviations from 0.01 to 100."""
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))[0]
    correlated = (q * np.linspace(0.2, 2.0, d)) @ q.T
    scale = np.logspace(-2, 2, d)[:, None] * np.linalg.cholesky(correlated)
    inverse = torch.tensor(np.linalg.inv(scale), dtype=torch.float32)

    return bare(lambda x: 0.5 * (inverse @ x).square().sum(), d, draws.gaussian(scale))


def banana(d: int = 5, bend: float = 0.5, spread: float = 2.0) -> Posterior:
    """x1 bends with x0^2: a Gaussian under (spread z0, z1 + bend spread (z0^2 - 1), z2, ...)."""

    def potential(x: Tensor) -> Tensor:
        z0 = x[0] / spread
        z1 = x[1] - bend * spread * (z0.square() - 1)
        return 0.5 * (z0.square() + z1.square() + x[2:].square().sum())

    return bare(potential, d, draws.banana(d, bend, spread))


def squiggle() -> Posterior:
    """x1 follows a sine of x0, which has standard deviation sqrt(5)."""

    def potential(x: Tensor) -> Tensor:
        return 0.1 * x[0].square() + (x[1] + torch.sin(2 * x[0])).square() / 0.5

    return bare(potential, 2, draws.squiggle)


def funnel(d: int = 10) -> Posterior:
    """Neal's funnel, v ~ N(0, 3), the rest N(0, exp(v / 2)); nothing non-centres a bare potential."""

    def potential(x: Tensor) -> Tensor:
        return x[0].square() / 18 + 0.5 * (x[1:].square().sum() * torch.exp(-x[0]) + (d - 1) * x[0])

    # The sds of the others are made by a few giant draws; their logarithms say the same with less noise.
    def features(x: Array) -> Array:
        return np.column_stack([x[:, 0], np.log(np.abs(x[:, 1:]) + 1e-300)])

    return bare(potential, d, draws.funnel(d), features=features)


def donut() -> Posterior:
    """A thin ring; the radius is a test function too, since no coordinate shows how thick it is."""

    def potential(x: Tensor) -> Tensor:
        return (x.square().sum().sqrt() - draws.RADIUS).square() / draws.VARIANCE

    def features(x: Array) -> Array:
        return np.column_stack([x, np.linalg.norm(x, axis=1)])

    return bare(potential, 2, draws.donut, features=features)


def mixture(
    centres: list[list[float]], weights: list[float], sd: float = 0.7, apart: bool = True
) -> Posterior:
    """Round Gaussians of equal width; `apart` says whether they count as modes of their own."""
    c, w = np.array(centres), np.array(weights)
    tensor, log_w = torch.tensor(centres), torch.tensor(weights).log()

    def potential(x: Tensor) -> Tensor:
        return -torch.logsumexp(log_w - 0.5 * ((x - tensor) / sd).square().sum(-1), 0)

    return bare(potential, c.shape[1], draws.mixture(c, w, sd), centres=c if apart else None)


def cauchy(d: int = 3) -> Posterior:
    """Independent Cauchy coordinates: no mean, no variance."""
    return bare(
        lambda x: torch.log1p(x.square()).sum(),
        d,
        lambda rng, n: rng.standard_cauchy((n, d)),
        quantiles_only=True,
    )


def flat() -> Posterior:
    """x1 does not appear: improper."""
    return bare(lambda x: 0.5 * x[0].square() + 0.0 * x[1], 2, None)


def separable() -> Posterior:
    """Logistic regression without a prior on separable data: the likelihood rises for ever one way."""
    x = torch.tensor([-2.0, -1.5, -1.0, 0.7, 1.1, 2.0])
    y = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0])
    return bare(lambda w: torch.nn.functional.softplus(-y * (w[0] + w[1] * x)).sum(), 2, None)


def noisy() -> Posterior:
    """A potential that draws random numbers of its own, so that it has a new value at each call."""
    rng = np.random.default_rng(0)
    return bare(lambda x: 0.5 * (1 + 0.5 * rng.normal()) * x.square().sum(), 2, None)


# Hierarchies of normals: exact, since all but the scale can be integrated out.

EIGHT = (np.array([28.0, 8, -3, 7, -1, 1, 18, 12]), np.array([15.0, 10, 16, 11, 9, 11, 10, 18]))
TWENTY = (3.0 * np.random.default_rng(5).normal(size=20), np.full(20, 6.0))


def hierarchy_draws(y: Array, sigma: Array, centred: bool) -> Draw:
    """Draws of (mu, log tau, theta), or of (mu, log tau, theta standardised)."""

    def draw(rng: np.random.Generator, n: int) -> Array:
        log_tau = np.linspace(-14, 7, 40_001)
        tau = np.exp(log_tau)
        precision = 1 / (sigma**2 + tau[:, None] ** 2)
        total = precision.sum(1) + 1 / 25
        mean = (precision * y).sum(1) / total
        log_p = 0.5 * (np.log(precision) - precision * y**2).sum(1)
        log_p += 0.5 * (total * mean**2 - np.log(total)) + log_tau - np.log1p((tau / 5) ** 2)
        cumulative = np.cumsum(np.exp(log_p - log_p.max()))
        at = np.interp(rng.uniform(size=n) * cumulative[-1], cumulative, log_tau)
        i = np.searchsorted(log_tau, at).clip(max=len(tau) - 1)
        mu = mean[i] + rng.normal(size=n) / np.sqrt(total[i])
        # theta = mu + tau t, with t ~ N(0, 1) a priori
        t_precision = 1 + (np.exp(at)[:, None] / sigma) ** 2
        t_mean = np.exp(at)[:, None] / sigma**2 * (y - mu[:, None]) / t_precision
        t = t_mean + rng.normal(size=t_mean.shape) / np.sqrt(t_precision)
        return np.column_stack([mu, at, mu[:, None] + np.exp(at)[:, None] * t if centred else t])

    return draw


def _hierarchy(y: Tensor, sigma: Tensor, centred: bool) -> None:
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("group", len(y)):
        if centred:
            theta = pyro.sample("theta", dist.Normal(mu, tau))
        else:
            theta = mu + tau * pyro.sample("theta_standard", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def hierarchy(data: tuple[Array, Array] = EIGHT, centred: bool = True) -> Posterior:
    """Groups with a common mean and scale, as a Pyro model."""
    args = (*(torch.tensor(a, dtype=torch.float32) for a in data), centred)
    return Posterior({"model": _hierarchy}, hierarchy_draws(*data, centred), args)


def bare_hierarchy(data: tuple[Array, Array] = EIGHT) -> Posterior:
    """The same, centred, as a bare potential: nothing can non-centre it."""
    y, sigma = (torch.tensor(a, dtype=torch.float32) for a in data)

    def potential(x: Tensor) -> Tensor:
        mu, log_tau, theta = x[0], x[1], x[2:]
        prior = 0.5 * (mu / 5).square() + torch.log1p((log_tau.exp() / 5).square()) - log_tau
        groups = 0.5 * ((theta - mu) * torch.exp(-log_tau)).square() + log_tau
        return prior + groups.sum() + 0.5 * ((y - theta) / sigma).square().sum()

    return bare(potential, 2 + len(y), hierarchy_draws(*data, True))


# Small Pyro models of other kinds.


def _unconstrained(constraint: Any, values: Array) -> Array:
    return biject_to(constraint).inv(torch.tensor(values)).numpy()


def student(d: int = 5) -> Posterior:
    """Independent Student-t coordinates with five degrees of freedom."""

    def model() -> None:
        pyro.sample("x", dist.StudentT(5.0, torch.zeros(d), 1.0).to_event(1))

    return Posterior({"model": model}, lambda rng, n: rng.standard_t(5, (n, d)))


def simplex() -> Posterior:
    """Multinomial counts with a Dirichlet prior: the posterior is a Dirichlet."""
    counts = torch.tensor([3.0, 9.0, 1.0, 20.0])

    def model() -> None:
        p = pyro.sample("p", dist.Dirichlet(torch.ones(4)))
        pyro.sample("counts", dist.Multinomial(33, p), obs=counts)

    def draw(rng: np.random.Generator, n: int) -> Array:
        return _unconstrained(constraints.simplex, rng.dirichlet(1 + counts.numpy(), n))

    return Posterior({"model": model}, draw)


def correlation(concentration: float = 2.0) -> Posterior:
    """An LKJ prior on a 3 x 3 correlation matrix: its partial correlations are independent scaled betas."""

    def model() -> None:
        pyro.sample("c", dist.LKJCholesky(3, concentration))

    def draw(rng: np.random.Generator, n: int) -> Array:
        # Row by row; the last is given the first, which costs it half a degree (Lewandowski et al. 2009).
        shape = concentration + np.array([0.5, 0.5, 0.0])
        return np.arctanh(2 * rng.beta(shape, shape, size=(n, 3)) - 1)

    return Posterior({"model": model}, draw)


def importance(log_density: Callable[[Tensor], Tensor], d: int) -> Draw:
    """Draws of a density near to Gaussian: Student-t(5) proposals around its mode, weighted and resampled."""

    def draw(rng: np.random.Generator, n: int) -> Array:
        mode = torch.zeros(d, dtype=torch.float64)
        for _ in range(50):
            gradient = torch.func.grad(log_density)(mode)
            hessian = torch.func.jacrev(torch.func.grad(log_density))(mode)
            mode = mode - torch.linalg.solve(hessian, gradient)
        scale = torch.linalg.cholesky(torch.linalg.inv(-hessian)).numpy()
        count = 4 * n
        z = rng.normal(size=(count, d)) / np.sqrt(rng.chisquare(5, size=(count, 1)) / 5)
        x = mode.numpy() + z @ scale.T
        log_w = torch.func.vmap(log_density)(torch.tensor(x)).numpy()
        log_w += 0.5 * (5 + d) * np.log1p((z**2).sum(1) / 5)
        w = np.exp(log_w - log_w.max())
        w /= w.sum()
        if 1 / (w**2).sum() < 0.2 * count:
            raise ValueError("the proposals do not fit this density")
        return x[rng.choice(count, n, p=w)]

    return draw


@dataclass(frozen=True)
class Rows:
    """Simulated regression data: an intercept and two predictors."""

    n: int
    rate: Callable[[Array, np.random.Generator], Array]
    x: Tensor = field(init=False)
    y: Tensor = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(3)
        x = np.column_stack([np.ones(self.n), rng.normal(size=(self.n, 2))])
        object.__setattr__(self, "x", torch.tensor(x, dtype=torch.float32))
        y = self.rate(x @ np.array([0.5, 1.0, -0.7]), rng)
        object.__setattr__(self, "y", torch.tensor(y, dtype=torch.float32))


def logistic(subsample: int | None = None) -> Posterior:
    """Bayesian logistic regression on 200 rows, three coefficients; with minibatches on request."""
    rows = Rows(200, lambda eta, rng: rng.uniform(size=len(eta)) < 1 / (1 + np.exp(-eta)))

    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 2.0).to_event(1))
        with pyro.plate("rows", len(x), subsample_size=subsample) as i:
            pyro.sample("y", dist.Bernoulli(logits=x[i] @ w), obs=y[i])

    x, sign = rows.x.double(), 2 * rows.y.double() - 1

    def log_density(w: Tensor) -> Tensor:
        return -torch.nn.functional.softplus(-sign * (x @ w)).sum() - w.square().sum() / 8

    return Posterior({"model": model}, importance(log_density, 3), (rows.x, rows.y))


def poisson() -> Posterior:
    """Poisson regression on 60 rows, three coefficients."""
    rows = Rows(60, lambda eta, rng: rng.poisson(np.exp(eta)))

    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 2.0).to_event(1))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Poisson((x @ w).exp()), obs=y)

    x, y = rows.x.double(), rows.y.double()

    def log_density(w: Tensor) -> Tensor:
        return (y * (x @ w) - (x @ w).exp()).sum() - w.square().sum() / 8

    return Posterior({"model": model}, importance(log_density, 3), (rows.x, rows.y))


def ordered() -> Posterior:
    """Three ordered cut points of four observed categories."""
    counts = torch.tensor([5.0, 12.0, 20.0, 8.0])

    def model() -> None:
        base = dist.Normal(torch.zeros(3), 2.0).to_event(1)
        cut = pyro.sample("cut", dist.TransformedDistribution(base, dist.transforms.OrderedTransform()))
        below = torch.cat([torch.zeros(1), torch.sigmoid(cut), torch.ones(1)])
        pyro.sample("counts", dist.Multinomial(45, probs=below.diff()), obs=counts)

    def log_density(z: Tensor) -> Tensor:
        cut = torch.cat([z[:1], z[:1] + z[1:].exp().cumsum(0)])
        below = torch.cat([z.new_zeros(1), torch.sigmoid(cut), z.new_ones(1)])
        return (counts.double() * below.diff().log()).sum() - z.square().sum() / 8

    return Posterior({"model": model}, importance(log_density, 3))
