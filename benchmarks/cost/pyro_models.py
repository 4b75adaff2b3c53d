"""Cost models as a Pyro user writes them; those of `benchmarks.cost.numpyro_models` have the same names, sites and data."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.util import warn_if_nan
from torch import Tensor


def flips(y: Tensor) -> None:
    """Three coins, each with its own bias."""
    with pyro.plate("coins", y.shape[1]):
        q = pyro.sample("q", dist.Beta(1.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Bernoulli(q), obs=y)


def sir(reported: Tensor, population: float) -> None:
    """A stochastic SIR epidemic in days; transitions are relaxed to logit-normals with binomial spread."""
    rate = pyro.sample("rate", dist.LogNormal(-0.5, 0.5))
    recovery = pyro.sample("recovery", dist.Beta(2.0, 6.0))
    rho = pyro.sample("rho", dist.Beta(10.0, 10.0))
    days = len(reported)
    infect = pyro.sample("infect", dist.Normal(0.0, 1.0).expand([days]).to_event(1))
    recover = pyro.sample("recover", dist.Normal(0.0, 1.0).expand([days]).to_event(1))

    def moved(count: Tensor, p: Tensor, noise: Tensor) -> Tensor:
        spread = 1.0 / torch.sqrt(count * p * (1.0 - p) + 1.0)
        return count * torch.sigmoid(torch.log(p) - torch.log1p(-p) + spread * noise)

    s, i = torch.as_tensor(population - 20.0), torch.as_tensor(20.0)
    for t in range(days):
        new = moved(s, -torch.expm1(-rate * i / population), infect[..., t])
        gone = moved(i, recovery, recover[..., t])
        s, i = s - new, i + new - gone
        warn_if_nan(new, "new infections")
        pyro.sample(f"reported_{t}", dist.Poisson(rho * new), obs=reported[t])


def gp(x: Tensor, y: Tensor) -> None:
    """Gaussian process regression, the process integrated out; priors on the three parameters of the kernel."""
    variance = pyro.sample("variance", dist.LogNormal(0.0, 1.0))
    length = pyro.sample("length", dist.LogNormal(0.0, 1.0))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    kernel = variance * torch.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + (noise + 1e-5) * torch.eye(
        len(x)
    )
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance_matrix=kernel), obs=y)


def gmm(y: Tensor) -> None:
    """Two Gaussians, the second above the first; the component of each point is enumerated."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 0.5)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
    low = pyro.sample("low", dist.Normal(-2.0, 1.0))
    gap = pyro.sample("gap", dist.LogNormal(1.0, 0.5))
    locs = torch.stack([low, low + gap])
    with pyro.plate("data", len(y)):
        which = pyro.sample("which", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(locs[which], scale), obs=y)


def local_level(y: Tensor) -> None:
    """A forecaster's series: a level that walks, a bias and noise."""
    bias = pyro.sample("bias", dist.Normal(0.0, 10.0))
    drift_scale = pyro.sample("drift_scale", dist.LogNormal(-1.0, 1.0))
    noise_scale = pyro.sample("noise_scale", dist.LogNormal(-1.0, 1.0))
    with pyro.plate("time", len(y)):
        drift = pyro.sample("drift", dist.Normal(0.0, drift_scale))
    pyro.sample("y", dist.Normal(bias + drift.cumsum(-1), noise_scale).to_event(1), obs=y)


def hmm_enumerated(states: Tensor, words: Tensor, chains: Tensor) -> None:
    """A hidden Markov model: one chain with known states, many short ones whose states are enumerated."""
    move = pyro.sample("move", dist.Dirichlet(torch.ones(3, 3)).to_event(1))
    emit = pyro.sample("emit", dist.Dirichlet(torch.ones(3, 5)).to_event(1))
    pyro.sample("states", dist.Categorical(move[states[:-1]]).to_event(1), obs=states[1:])
    pyro.sample("words", dist.Categorical(emit[states]).to_event(1), obs=words)
    with pyro.plate("chains", len(chains), dim=-1):
        state: Tensor | int = 0
        for t in pyro.markov(range(chains.shape[1])):
            state = pyro.sample(f"state_{t}", dist.Categorical(move[state]), infer={"enumerate": "parallel"})
            pyro.sample(f"word_{t}", dist.Categorical(emit[state]), obs=chains[:, t])


def _capture(seen: Tensor, survival: Tensor, recapture: Tensor) -> None:
    """Cormack-Jolly-Seber: alive or not, enumerated; survival (times - 1, animals) or (times - 1, 1)."""
    alive: Tensor | float = 1.0
    caught_before = seen[:, 0].bool()
    animals = pyro.plate("animals", len(seen), dim=-1)
    for t in pyro.markov(range(1, seen.shape[1])):
        with animals, poutine.mask(mask=caught_before):
            p_alive = torch.where(caught_before, survival[t - 1] * alive, torch.ones(()))
            alive = pyro.sample(f"z_{t}", dist.Bernoulli(p_alive), infer={"enumerate": "parallel"})
            pyro.sample(f"y_{t}", dist.Bernoulli(recapture * alive), obs=seen[:, t])
        caught_before = caught_before | seen[:, t].bool()


def cjs_1(seen: Tensor, sex: Tensor) -> None:
    """One survival probability and one of recapture."""
    phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
    rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
    _capture(seen, phi.expand(seen.shape[1] - 1, 1), rho)


def cjs_2(seen: Tensor, sex: Tensor) -> None:
    """Survival of its own for each time."""
    rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
    phi = pyro.sample("phi", dist.Uniform(0.0, 1.0).expand([seen.shape[1] - 1]).to_event(1))
    _capture(seen, phi[:, None], rho)


def cjs_3(seen: Tensor, sex: Tensor) -> None:
    """Survival varies at random over times, centred."""
    mean = pyro.sample("phi_mean", dist.Uniform(0.0, 1.0))
    sigma = pyro.sample("phi_sigma", dist.Uniform(0.0, 10.0))
    rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
    centre = torch.log(mean) - torch.log1p(-mean)
    logits = pyro.sample("phi_logit", dist.Normal(centre, sigma).expand([seen.shape[1] - 1]).to_event(1))
    _capture(seen, torch.sigmoid(logits)[:, None], rho)


def cjs_4(seen: Tensor, sex: Tensor) -> None:
    """Survival of its own for each sex."""
    male = pyro.sample("phi_male", dist.Uniform(0.0, 1.0))
    female = pyro.sample("phi_female", dist.Uniform(0.0, 1.0))
    rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
    phi = sex * male + (1.0 - sex) * female
    _capture(seen, phi.expand(seen.shape[1] - 1, len(sex)), rho)


def cjs_5(seen: Tensor, sex: Tensor) -> None:
    """Effects of time and sex on the logits of survival, with vague priors."""
    beta = pyro.sample("phi_beta", dist.Normal(0.0, 10.0))
    rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
    gamma = pyro.sample("phi_gamma", dist.Normal(0.0, 10.0).expand([seen.shape[1] - 1]).to_event(1))
    _capture(seen, torch.sigmoid(gamma[:, None] + beta * sex), rho)
