"""More small Pyro models with constructs that a batch of points may stumble over: linear algebra, chains, processes."""

from __future__ import annotations

import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from awkward_models import Y, case, data, lognormal, made, normal, observe
from pyro.contrib.conjugate.infer import GammaPoissonPair, collapse_conjugate
from pyro.contrib.epidemiology import CompartmentalModel, binomial_dist, infection_dist
from pyro.infer.reparam import LinearHMMReparam, StableReparam, StudentTReparam, SymmetricStableReparam
from pyro.nn import PyroModule, PyroSample

# Linear algebra.


def _covariance(y):
    scale, length = lognormal("scale"), lognormal("length")
    t = torch.arange(float(len(y)), dtype=y.dtype)
    kernel = scale * (-((t[:, None] - t) ** 2) / (2 * length**2)).exp()
    return kernel + 0.1 * torch.eye(len(y), dtype=y.dtype)


@case(Y)
def cholesky(y):
    factor = torch.linalg.cholesky(_covariance(y))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(y), scale_tril=factor), obs=y)


@case(Y)
def covariance(y):
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(y), _covariance(y)), obs=y)


@case(Y)
def precision(y):
    fn = dist.MultivariateNormal(torch.zeros_like(y), precision_matrix=_covariance(y))
    pyro.sample("y", fn, obs=y)


@case(Y)
def solves(y):
    c = _covariance(y)
    quadratic = y @ torch.linalg.solve(c, y) + y @ torch.linalg.inv(c) @ y
    pyro.factor("y", -0.5 * quadratic - torch.linalg.slogdet(c)[1] - torch.logdet(c))


@case(Y)
def decomposes(y):
    c = _covariance(y)
    values = torch.linalg.eigvalsh(c)
    q, r = torch.linalg.qr(c)
    pyro.factor("y", -values.log().sum() - r.diagonal().abs().log().sum() - torch.linalg.svdvals(c).sum())


@case(Y)
def solves_triangular(y):
    factor = torch.linalg.cholesky_ex(_covariance(y))[0]
    z = torch.linalg.solve_triangular(factor, y[:, None], upper=False)
    w = torch.cholesky_solve(y[:, None], factor)
    pyro.factor("y", -z.square().sum() - w.square().sum() - torch.linalg.matrix_exp(-factor).sum())


@case(Y)
def low_rank(y):
    w = normal("w", 5, 2)
    fn = dist.LowRankMultivariateNormal(torch.zeros_like(y), w, torch.ones_like(y))
    pyro.sample("y", fn, obs=y)


class Wishart(torch.distributions.Wishart, dist.torch_distribution.TorchDistributionMixin):
    """torch's, as Pyro takes it."""


@case()
def wishart():
    eye = torch.eye(2, dtype=torch.float64)
    pyro.sample("w", Wishart(torch.tensor(4.0, dtype=torch.float64), eye))


# Time series.


@case((data(1, 4) > 0).long())
def hmm(y):
    p = pyro.sample("p", dist.Dirichlet(torch.eye(2, dtype=torch.float64) * 4 + 1).to_event(1))
    q = pyro.sample("q", dist.Beta(torch.tensor([2.0, 4.0], dtype=torch.float64), 3.0).to_event(1))
    x = 0
    for t in pyro.markov(range(len(y))):
        x = pyro.sample(f"x_{t}", dist.Categorical(p[x]), infer={"enumerate": "parallel"})
        pyro.sample(f"y_{t}", dist.Bernoulli(q[x]), obs=y[t].double())


@case(data(1, 4))
def vectorised_markov(y):
    p = pyro.sample("p", dist.Dirichlet(torch.eye(2, dtype=torch.float64) * 4 + 1).to_event(1))
    loc = normal("loc", 2)
    x_prev = torch.zeros((), dtype=torch.long)
    for t in pyro.markov(range(4), history=1):
        x_prev = pyro.sample(f"x_{t}", dist.Categorical(p[x_prev]), infer={"enumerate": "parallel"})
        pyro.sample(f"y_{t}", dist.Normal(loc[x_prev], 1.0), obs=y[t])


@case((data(1, 4) > 0).long())
def discrete_hmm(y):
    p = pyro.sample("p", dist.Dirichlet(torch.eye(2, dtype=torch.float64) * 4 + 1).to_event(1))
    q = pyro.sample("q", dist.Beta(torch.tensor([2.0, 4.0], dtype=torch.float64), 3.0).to_event(1))
    start = torch.zeros(2, dtype=torch.float64)
    pyro.sample("y", dist.DiscreteHMM(start, p.log(), dist.Bernoulli(q), duration=4), obs=y.double())


def _matrices():
    eye = torch.eye(2, dtype=torch.float64)
    trans = lognormal("trans") * 0.5 * eye
    noise = dist.MultivariateNormal(torch.zeros(2, dtype=torch.float64), lognormal("noise") * eye)
    return eye, trans, noise


@case(data(2, 3, 2))
def gaussian_hmm(y):
    eye, trans, noise = _matrices()
    pyro.sample("y", dist.GaussianHMM(noise, trans, noise, eye, noise, duration=3), obs=y)


@case(data(2, 3, 2))
def linear_hmm(y):
    eye, trans, noise = _matrices()
    fn = dist.LinearHMM(noise, trans, noise, eye, noise, duration=3)
    with poutine.reparam(config={"y": LinearHMMReparam()}):
        pyro.sample("y", fn, obs=y)


@case(torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [1, 0, 1, 0.0]], dtype=torch.float64))
def capture_recapture(captured):
    """Pyro's example cjs: who was captured may have died since, in enumerated states along a chain."""
    phi = pyro.sample("phi", dist.Uniform(torch.tensor(0.0, dtype=torch.float64), 1.0))
    rho = pyro.sample("rho", dist.Uniform(torch.tensor(0.0, dtype=torch.float64), 1.0))
    with pyro.plate("animals", len(captured), dim=-1):
        z = torch.ones(len(captured), dtype=torch.float64)
        first = torch.zeros(len(captured), dtype=torch.bool)
        for t in pyro.markov(range(captured.shape[1])):
            with poutine.mask(mask=first):
                z = pyro.sample(f"z_{t}", dist.Bernoulli(phi * z), infer={"enumerate": "parallel"})
                pyro.sample(f"y_{t}", dist.Bernoulli(rho * z), obs=captured[:, t])
            first = first | captured[:, t].bool()


@case(data(3, 8))
def gaussian_mixture(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2, dtype=torch.float64)))
    loc, scale = normal("loc", 2), lognormal("scale")
    with pyro.plate("row", len(y)):
        k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(loc[k], scale), obs=y)


@case(Y[:3])
def ode(y):
    """Lotka and Volterra's equations by Runge and Kutta."""
    rate = torch.stack([lognormal(n) for n in "abcd"])
    state, states = torch.ones(2, dtype=y.dtype), []

    def slope(s):
        u, v = s
        return torch.stack([u * (rate[0] - rate[1] * v), v * (rate[2] * u - rate[3])])

    for _ in range(3):
        k1 = slope(state)
        k2 = slope(state + 0.05 * k1)
        k3 = slope(state + 0.05 * k2)
        k4 = slope(state + 0.1 * k3)
        state = state + 0.1 / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        states.append(state[0])
    observe(y, torch.stack(states), 0.5)


class Sir(CompartmentalModel):
    """Discrete time, susceptible, infected, recovered."""

    def __init__(self, counts):
        super().__init__(("S", "I"), len(counts), 100)
        self.data = counts

    def global_model(self):
        return lognormal("rate"), pyro.sample("rho", dist.Beta(torch.tensor(2.0), 2.0))

    def initialize(self, params):
        return {"S": 99, "I": 1}

    def transition(self, params, state, t):
        rate, rho = params
        births = infection_dist(
            individual_rate=rate / 5.0, num_susceptible=state["S"], num_infectious=state["I"], population=100
        )
        births = pyro.sample(f"S2I_{t}", births)
        gone = pyro.sample(f"I2R_{t}", binomial_dist(state["I"], 1 / 5.0))
        state["S"] = state["S"] - births
        state["I"] = state["I"] + births - gone
        seen = isinstance(t, slice) or t < self.duration
        pyro.sample(f"obs_{t}", binomial_dist(births, rho), obs=self.data[t] if seen else None)


def _epidemic():
    model = Sir(torch.tensor([0.0, 1.0, 0.0]))
    model._clear_plates()
    model.num_quant_bins = 4
    return model


@made
def sir():
    return _epidemic()._quantized_model, ()


@made
def sir_relaxed():
    return _epidemic()._relaxed_model, ()


# Gaussian processes.


def _kernel():
    kernel = gp.kernels.RBF(1)
    kernel.variance = PyroSample(dist.LogNormal(torch.tensor(0.0), 0.5))
    kernel.lengthscale = PyroSample(dist.LogNormal(torch.tensor(0.0), 0.5))
    return kernel


@made
def gp_regression():
    return gp.models.GPRegression(data(4, 6), data(5, 6), _kernel()).model, ()


@made
def gp_sparse():
    x = data(4, 6)
    model = gp.models.SparseGPRegression(x, data(5, 6), _kernel(), Xu=x[:3].clone())
    return model.model, ()


@case(data(4, 6), (data(5, 6) > 0).double())
def gp_latent(x, y):
    variance, length = lognormal("a"), lognormal("b")
    covariance = gp.kernels.RBF(1, variance=variance, lengthscale=length)(x) + 1e-4 * torch.eye(
        len(x), dtype=x.dtype
    )
    f = torch.linalg.cholesky(covariance) @ normal("f", 6)
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=f), obs=y)


# Reparametrisations and distributions of Pyro's own.


@case(data(6, 4).abs())
def stable_reparam(y):
    stability = pyro.sample("stability", dist.Uniform(torch.tensor(1.1, dtype=torch.float64), 1.9))
    with poutine.reparam(config={"z": StableReparam()}), pyro.plate("row", len(y)):
        z = pyro.sample("z", dist.Stable(stability, 0.5, 1.0, 0.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


@case(data(6, 4))
def symmetric_stable(y):
    scale = lognormal("scale")
    with poutine.reparam(config={"z": SymmetricStableReparam()}), pyro.plate("row", len(y)):
        z = pyro.sample("z", dist.Stable(torch.tensor(1.5, dtype=torch.float64), 0.0, scale, 0.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


@case(data(6, 4))
def stable_density(y):
    stability = pyro.sample("stability", dist.Uniform(torch.tensor(1.1, dtype=torch.float64), 1.9))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.StableWithLogProb(stability, torch.tensor(0.5).double(), 1.0, 0.0), obs=y)


@case(data(6, 4))
def student_t_reparam(y):
    df = lognormal("df") + 2
    with poutine.reparam(config={"z": StudentTReparam()}), pyro.plate("row", len(y)):
        z = pyro.sample("z", dist.StudentT(df, 0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


@case(torch.tensor([3.0, 5.0, 2.0], dtype=torch.float64))
def collapses_conjugate(y):
    """Pyro's `collapse`: a rate is integrated out by funsor."""
    a, b = lognormal("a"), lognormal("b")
    with poutine.collapse(), pyro.plate("row", len(y)):
        rate = pyro.sample("rate", dist.Gamma(a, b))
        pyro.sample("y", dist.Poisson(rate), obs=y)


@made
def collapses_a_pair():
    """Pyro's `collapse_conjugate`: a rate is integrated out by formula, and drawn all the same."""

    def model(y):
        a, b = lognormal("a"), lognormal("b")
        pair = GammaPoissonPair()
        rate = pyro.sample("rate", pair.latent(a, b))
        with pyro.plate("row", len(y)):
            pyro.sample("y", pair.conditional(rate), obs=y)

    return collapse_conjugate(model), (torch.tensor([3.0, 5.0, 2.0], dtype=torch.float64),)


@case(torch.tensor([3.0, 5.0, 2.0], dtype=torch.float64))
def beta_binomial(y):
    a, b = lognormal("a"), lognormal("b")
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.ExtendedBetaBinomial(a, b, torch.tensor(6.0).double()), obs=y)


@case(data(7, 4))
def directional(y):
    x, k = pyro.sample("x", dist.VonMises(torch.zeros((), dtype=torch.float64), 1.0)), lognormal("k")
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.VonMises(x, k), obs=y)


@case(data(7, 4))
def spline_flow(y):
    x = normal("x", 11)
    flow = dist.transforms.ConditionalSpline(
        lambda context: (context[:4].reshape(1, 4), context[4:8].reshape(1, 4), context[8:].reshape(1, 3)),
        1, 4, order="quadratic",
    ).condition(x)  # fmt: skip
    base = dist.Normal(torch.zeros(1, dtype=x.dtype), 1.0).to_event(1)
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.TransformedDistribution(base, [flow]), obs=y[:, None].clamp(-2, 2))


@case(data(7, 4))
def masked_data(y):
    scale = lognormal("scale")
    seen = torch.where(y > 0, y, torch.nan)
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.NanMaskedNormal(scale, scale), obs=seen)


class Network(PyroModule):
    """A small Bayesian network."""

    def __init__(self):
        super().__init__()
        self.layer = PyroModule[torch.nn.Linear](1, 3)
        self.layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand([3, 1]).to_event(2))
        self.layer.bias = PyroSample(dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    def forward(self, y):
        hidden = self.layer(y[:, None])
        norm = torch.nn.functional.layer_norm(hidden, (3,)).sum(-1)
        observe(y, norm + torch.nn.functional.gelu(hidden).sum(-1))


@made
def network():
    return Network(), (Y,)
