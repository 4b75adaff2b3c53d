"""Pyro models of many kinds, each with small data, for tests of everything that reads a model."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.infer.reparam import LocScaleReparam, TransformReparam
from pyro.nn import PyroModule, PyroSample
from pyro.ops.indexing import Vindex


def data(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.get_default_dtype())


def schools_data() -> tuple[torch.Tensor, torch.Tensor]:
    effect = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=torch.get_default_dtype())
    return effect, torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=torch.get_default_dtype())


def eight_schools(effect, error):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0)))
    with pyro.plate("school", len(effect)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("effect", dist.Normal(theta, error), obs=effect)


def eight_schools_noncentered(effect, error):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0)))
    with pyro.plate("school", len(effect)):
        raw = pyro.sample("raw", dist.Normal(torch.tensor(0.0), 1.0))
        theta = pyro.deterministic("theta", mu + tau * raw)
        pyro.sample("effect", dist.Normal(theta, error), obs=effect)


def logistic(x, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    alpha = pyro.sample("alpha", dist.Normal(0.0, 2.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=alpha + x @ beta), obs=y)


def many_supports(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    factor = pyro.sample("factor", dist.LKJCholesky(3, torch.tensor(2.0)))
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros(3), 0.5).to_event(1))
    rate = pyro.sample("rate", dist.HalfCauchy(torch.tensor(1.0)))
    share = pyro.sample("share", dist.Beta(torch.tensor(2.0), 3.0))
    with pyro.plate("row", len(y)):
        loc = rate * weights + share
        pyro.sample("y", dist.MultivariateNormal(loc, scale_tril=scale.unsqueeze(-1) * factor), obs=y)


def mixture(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("component", 3):
        loc = pyro.sample("loc", dist.Normal(torch.tensor(0.0), 2.0))
    with pyro.plate("row", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(loc[z], 1.0), obs=y)


def mixture_vindex(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2, 2), 2.0).to_event(2))
    with pyro.plate("row", len(y)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(Vindex(loc)[z, :], 1.0).to_event(1), obs=y)


def mixture_same_family(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, 1.0)), obs=y)


def state_space(y):
    drift = pyro.sample("drift", dist.HalfNormal(torch.tensor(1.0)))
    x = torch.zeros(())
    for t in pyro.markov(range(len(y))):
        x = pyro.sample(f"x_{t}", dist.Normal(x, drift))
        pyro.sample(f"y_{t}", dist.Normal(x, 0.5), obs=y[t])


def hidden_markov(y):
    move = pyro.sample("move", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    z = 0
    for t in pyro.markov(range(len(y))):
        z = pyro.sample(f"z_{t}", dist.Categorical(Vindex(move)[z]))
        pyro.sample(f"y_{t}", dist.Normal(Vindex(loc)[z], 1.0), obs=y[t])


def discrete_hmm(y):
    start = pyro.sample("start", dist.Dirichlet(torch.ones(2)))
    move = pyro.sample("move", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    pyro.sample("y", dist.DiscreteHMM(start.log(), move.log(), dist.Normal(loc, 1.0)), obs=y)


def poutine_mask(y, mask):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(torch.tensor(1.0)))
    with pyro.plate("row", len(y)), poutine.mask(mask=mask):
        pyro.sample("y", dist.Normal(loc, scale), obs=y)


def distribution_mask(y, mask):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(torch.tensor(1.0)))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(loc, scale).mask(mask), obs=y)


def obs_mask(y, mask):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(torch.tensor(1.0)))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(loc, scale), obs=y, obs_mask=mask)


def many_likelihoods(y, count):
    loc = pyro.sample("loc", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    df = pyro.sample("df", dist.Gamma(torch.tensor(2.0), 0.5))
    total = pyro.sample("total", dist.Exponential(torch.tensor(1.0)))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.StudentT(df, loc[0], 1.0), obs=y)
        pyro.sample("a", dist.NegativeBinomial(total, logits=loc[1]), obs=count)
        pyro.sample("b", dist.GammaPoisson(total, df), obs=count)


def gaussian_process(x, y):
    amplitude = pyro.sample("amplitude", dist.HalfNormal(torch.tensor(1.0)))
    length = pyro.sample("length", dist.InverseGamma(torch.tensor(5.0), torch.tensor(5.0)))
    noise = pyro.sample("noise", dist.HalfNormal(torch.tensor(0.5)))
    square = (x[:, None] - x[None, :]).pow(2)
    cov = amplitude**2 * torch.exp(-0.5 * square / length**2) + (noise**2 + 1e-4) * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance_matrix=cov), obs=y)


def latent_gaussian_process(x, y):
    amplitude = pyro.sample("amplitude", dist.HalfNormal(torch.tensor(1.0)))
    cov = amplitude**2 * torch.exp(-0.5 * (x[:, None] - x[None, :]).pow(2)) + 1e-3 * torch.eye(len(x))
    f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(len(x)), covariance_matrix=cov))
    pyro.sample("y", dist.Normal(f, 0.5).to_event(1), obs=y)


def factor():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    pyro.factor("curve", -0.5 * (b - a**2) ** 2)


def sequential_plate(y):
    scale = pyro.sample("scale", dist.HalfNormal(torch.tensor(1.0)))
    for i in pyro.plate("group", len(y)):
        loc = pyro.sample(f"loc_{i}", dist.Normal(0.0, scale))
        pyro.sample(f"y_{i}", dist.Normal(loc, 1.0), obs=y[i])


def nested_plates(y):
    row_plate, column_plate = pyro.plate("r", y.shape[0], dim=-2), pyro.plate("c", y.shape[1], dim=-1)
    with row_plate:
        a = pyro.sample("a", dist.Normal(torch.tensor(0.0), 1.0))
    with column_plate:
        b = pyro.sample("b", dist.Normal(torch.tensor(0.0), 1.0))
    with row_plate, column_plate:
        pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)


class Network(PyroModule):
    def __init__(self):
        super().__init__()
        self.hidden = PyroModule[torch.nn.Linear](2, 3)
        self.hidden.weight = PyroSample(dist.Normal(torch.tensor(0.0), 1.0).expand([3, 2]).to_event(2))
        self.hidden.bias = PyroSample(dist.Normal(torch.tensor(0.0), 1.0).expand([3]).to_event(1))
        self.out = PyroModule[torch.nn.Linear](3, 1, bias=False)
        self.out.weight = PyroSample(dist.Normal(torch.tensor(0.0), 1.0).expand([1, 3]).to_event(2))

    def forward(self, x, y):
        loc = self.out(torch.tanh(self.hidden(x))).squeeze(-1)
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(loc, 0.5), obs=y)


def low_rank(y):
    a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    d = pyro.sample("d", dist.Gamma(torch.ones(3), 1.0).to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.LowRankMultivariateNormal(torch.zeros(3), a.unsqueeze(-1), d + 0.1), obs=y)


def bounded(y, count):
    a = pyro.sample("a", dist.Pareto(torch.tensor(0.5), 2.0))
    b = pyro.sample("b", dist.Uniform(torch.tensor(-1.0), 3.0))
    c = pyro.sample("c", dist.TruncatedPolyaGamma(torch.tensor(1.0)))
    with pyro.plate("row", len(y)):
        pyro.sample("count", dist.BetaBinomial(a, c, 10), obs=count)
        pyro.sample("y", dist.Logistic(b, a), obs=y)


def ordinal(x, grade):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    cuts = pyro.sample(
        "cuts", dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [
            dist.transforms.OrderedTransform()
        ])
    )  # fmt: skip
    angle = pyro.sample("angle", dist.VonMises(torch.tensor(0.0), 2.0))
    with pyro.plate("row", len(x)):
        pyro.sample("grade", dist.OrderedLogistic(slope * x + angle, cuts), obs=grade)


def python_branch(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    scale = 1.0 if mu > 0 else 2.0
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mu, scale), obs=y)


def python_item(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0 + abs(mu.item())), obs=y)


def written_in_place(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    missing = pyro.sample("missing", dist.Normal(mu, 1.0))
    loc = torch.zeros(len(y))
    loc[0] = mu
    for t in range(1, len(y)):
        loc[t] = mu**t
    filled = y.clone()
    filled[1] = missing
    scale = y.new_ones(len(y))
    scale[-1] = mu.exp()
    pyro.deterministic("loc", loc)
    pyro.sample("y", dist.Normal(loc, scale).to_event(1), obs=filled)


def multinomial(counts):
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("row", len(counts)):
        pyro.sample("counts", dist.Multinomial(10, probs=shares), obs=counts)


def loc_scale_reparam(effect, error):
    config = {"theta": LocScaleReparam(centered=0.3)}
    return poutine.reparam(eight_schools, config)(effect, error)


def transform_reparam(y):
    def inner(y):
        scale = pyro.sample(
            "scale",
            dist.TransformedDistribution(
                dist.Normal(torch.tensor(0.0), 1.0), [dist.transforms.ExpTransform()]
            ),
        )
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(torch.tensor(0.0), scale), obs=y)

    return poutine.reparam(inner, {"scale": TransformReparam()})(y)


def with_param(y):
    shift = pyro.param("shift", torch.tensor(0.7))
    mu = pyro.sample("mu", dist.Normal(shift, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def vector_without_event(y):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2, 3), 1.0))
    pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def scaled(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(y)), poutine.scale(scale=0.3):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def _counts(n: int) -> torch.Tensor:
    return (data(5, n).abs() * 3).floor()


def _mask(n: int) -> torch.Tensor:
    return torch.arange(n) % 3 != 0


# name -> (model, function that makes its arguments, whether vmap can batch it)
CASES = {
    "eight_schools": (eight_schools, schools_data, True),
    "eight_schools_noncentered": (eight_schools_noncentered, schools_data, True),
    "logistic": (logistic, lambda: (data(0, 20, 3), (data(1, 20) > 0).to(data(0, 1).dtype)), True),
    "many_supports": (many_supports, lambda: (data(0, 6, 3),), True),
    "mixture": (mixture, lambda: (data(0, 9),), True),
    "mixture_vindex": (mixture_vindex, lambda: (data(0, 6, 2),), True),
    "mixture_same_family": (mixture_same_family, lambda: (data(0, 9),), True),
    "state_space": (state_space, lambda: (data(0, 5),), True),
    "hidden_markov": (hidden_markov, lambda: (data(0, 4),), True),
    "discrete_hmm": (discrete_hmm, lambda: (data(0, 7),), True),
    "poutine_mask": (poutine_mask, lambda: (data(0, 7), _mask(7)), True),
    "distribution_mask": (distribution_mask, lambda: (data(0, 7), _mask(7)), True),
    "obs_mask": (obs_mask, lambda: (data(0, 7), _mask(7)), True),
    "many_likelihoods": (many_likelihoods, lambda: (data(0, 7), _counts(7)), True),
    "gaussian_process": (gaussian_process, lambda: (data(0, 6), data(1, 6)), True),
    "latent_gaussian_process": (latent_gaussian_process, lambda: (data(0, 5), data(1, 5)), True),
    "factor": (factor, lambda: (), True),
    "sequential_plate": (sequential_plate, lambda: (data(0, 3),), True),
    "nested_plates": (nested_plates, lambda: (data(0, 3, 4),), True),
    "network": (Network, lambda: (data(0, 8, 2), data(1, 8)), True),
    "low_rank": (low_rank, lambda: (data(0, 5, 3),), True),
    "bounded": (bounded, lambda: (data(0, 5), _counts(5).clamp(max=10)), True),
    "ordinal": (ordinal, lambda: (data(0, 8), torch.arange(8) % 3), True),
    "python_branch": (python_branch, lambda: (data(0, 4),), False),
    "python_item": (python_item, lambda: (data(0, 4),), False),
    "written_in_place": (written_in_place, lambda: (data(0, 4),), True),
    "multinomial": (multinomial, lambda: (torch.tensor([[2.0, 3, 5], [0, 10, 0]]),), True),
    "loc_scale_reparam": (loc_scale_reparam, schools_data, True),
    "transform_reparam": (transform_reparam, lambda: (data(0, 5),), True),
    "with_param": (with_param, lambda: (data(0, 5),), True),
    "vector_without_event": (vector_without_event, lambda: (data(0, 2, 3),), True),
    "scaled": (scaled, lambda: (data(0, 5),), True),
}


def make(name: str):
    """(model, args, whether vmap can batch it) in the present default dtype."""
    model, arguments, batchable = CASES[name]
    return model() if isinstance(model, type) else model, arguments(), batchable
