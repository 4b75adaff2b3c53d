"""Both front doors behind one adapter, with the same small models for each of them."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import torch
from numpyro.infer import MCMC as NumPyroMCMC
from numpyro.infer import NUTS as NumPyroNUTS
from pyro.infer import MCMC as PyroMCMC
from pyro.infer import NUTS as PyroNUTS
from quick import GAUSSIAN

import pyro_dft
import pyro_dft.numpyro
from pyro_dft import Experimental

Y = np.array([1.0, 2.0, 3.0, 2.5, 1.5], np.float32)
ROWS = np.linspace(-1.0, 3.0, 40, dtype=np.float32)


def models_of(ppl, dist, array):
    """The same models for both frameworks, whose primitives and distributions have the same names."""

    def known_mean(y):
        mu = ppl.sample("mu", dist.Normal(0.0, 10.0))
        ppl.deterministic("twice", 2 * mu)
        with ppl.plate("data", len(y)):
            ppl.sample("y", dist.Normal(mu, 1.0), obs=y)

    def hierarchy(y):
        mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
        tau = ppl.sample("tau", dist.HalfNormal(3.0))
        with ppl.plate("group", len(y)):
            theta = ppl.sample("theta", dist.Normal(mu, tau))
            ppl.sample("y", dist.Normal(theta, 1.0), obs=y)

    def regression(x, y):
        slope = ppl.sample("slope", dist.Normal(array([0.0, 0.0, 0.0]), 1.0).to_event(1))
        with ppl.plate("data", len(y)):
            ppl.sample("y", dist.Normal(x @ slope, 1.0), obs=y)

    def minibatched(y):
        mu = ppl.sample("mu", dist.Normal(0.0, 10.0))
        with ppl.plate("data", len(y), subsample_size=5) as rows:
            ppl.sample("y", dist.Normal(mu, 1.0), obs=y[rows])

    def constrained():
        ppl.sample("simplex", dist.Dirichlet(array([1.0, 2.0, 3.0])))
        ppl.sample("cholesky", dist.LKJCholesky(3, 2.0))
        base = dist.Normal(array([0.0, 0.0, 0.0]), 1.0).to_event(1)
        ppl.sample("ordered", dist.TransformedDistribution(base, dist.transforms.OrderedTransform()))
        ppl.sample("matrix", dist.Wishart(array(5.0), array(np.eye(2))))
        ppl.sample("interval", dist.Uniform(-1.0, 2.0))

    def sparse():
        ppl.sample("shares", dist.Dirichlet(array([0.1, 0.2, 0.1, 0.3])))

    def improper(y):
        a = ppl.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
        b = ppl.sample("b", dist.ImproperUniform(dist.constraints.real, (), ()))
        with ppl.plate("data", len(y)):
            ppl.sample("y", dist.Normal(a + b, 1.0), obs=y)

    def no_latent(y):
        ppl.sample("y", dist.Normal(0.0, 1.0), obs=y)

    def only_discrete():
        ppl.sample("k", dist.Bernoulli(0.5))

    def endless_discrete():
        ppl.sample("k", dist.Poisson(3.0))

    def finite_nowhere(y):
        mu = ppl.sample("mu", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Uniform(mu - 1.0, mu + 1.0), obs=y)

    def five_rows(y):
        mu = ppl.sample("mu", dist.Normal(0.0, 10.0))
        with ppl.plate("data", 5):
            ppl.sample("y", dist.Normal(mu, 1.0), obs=y)

    def local(y):
        mu = ppl.sample("mu", dist.Normal(0.0, 10.0))
        with ppl.plate("data", len(y), subsample_size=5) as rows:
            own = ppl.sample("own", dist.Normal(mu, 1.0))
            ppl.sample("y", dist.Normal(own, 1.0), obs=y[rows])

    def broken(y):
        ppl.sample("mu", dist.Normal(0.0, 10.0))
        return y + y[:-1]

    def twice_the_name(y):
        ppl.sample("mu", dist.Normal(0.0, 1.0))
        ppl.sample("mu", dist.Normal(0.0, 1.0))

    def own_error():
        raise KeyError("mine")

    return SimpleNamespace(**{name: value for name, value in locals().items() if callable(value)})


def joined(brief, options):
    """Both, the second first; of its group for experiments only what differs from the defaults."""
    own = options.get("experimental", Experimental())
    if not isinstance(own, Experimental):
        return {**brief, **options}
    changed = {k: v for k, v in dataclasses.asdict(own).items() if v != getattr(Experimental(), k)}
    group = dataclasses.replace(brief["experimental"], **changed)
    return {**brief, **options, "experimental": group}


class Backend:
    """A front door: its names, its arrays, and how it is run."""

    def __init__(self, name, package, ppl, array, nuts):
        self.name, self.package, self.ppl, self.array, self.NUTS = name, package, ppl, array, nuts
        self.DFT, self.DFTKernel = package.DFT, package.DFTKernel
        self.models = models_of(ppl, ppl.distributions, array)

    def __repr__(self):
        return self.name

    def dft(self, model="known_mean", **options):
        model = {"model": getattr(self.models, model)} if model else {}
        return self.DFT(**model, disable_progbar=True, **joined(GAUSSIAN, options))

    def potential(self, function, **options):
        start = {"a": self.array([1.0, 1.0])}
        return self.dft(None, potential_fn=function, **{"initial_params": start, **options})

    def fitted(self, dft, *args):
        self.run(dft, *map(self.array, args))
        return dft


class Pyro(Backend):
    def __init__(self):
        def array(value):
            return torch.as_tensor(np.array(value, np.float32))

        super().__init__("pyro", pyro_dft, pyro, array, PyroNUTS)

    def run(self, dft, *args, **kwargs):
        dft.run(*args, **kwargs)

    def mcmc(self, kernel, num_samples, warmup, chains, *args):
        mcmc = PyroMCMC(kernel, num_samples, warmup, num_chains=chains, disable_progbar=True)
        mcmc.run(*args)
        return mcmc


class NumPyro(Backend):
    def __init__(self):
        def array(value):
            return jnp.asarray(np.array(value, np.float32))

        super().__init__("numpyro", pyro_dft.numpyro, numpyro, array, NumPyroNUTS)

    def run(self, dft, *args, **kwargs):
        dft.run(jax.random.key(0), *args, **kwargs)

    def mcmc(self, kernel, num_samples, warmup, chains, *args):
        options = {"num_chains": chains, "chain_method": "sequential", "progress_bar": False}
        mcmc = NumPyroMCMC(kernel, num_warmup=warmup, num_samples=num_samples, **options)
        mcmc.run(jax.random.key(0), *args)
        return mcmc


BACKENDS = (Pyro(), NumPyro())
