"""Scales, masks and subsampled plates around sites: every coordinate system has the density that the model states."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch
from backends import BACKENDS
from numpyro.contrib.control_flow import scan
from scipy import stats

from pyro_dft.numpyro.model import NumPyroProblem
from pyro_dft.pyro.model import PyroProblem

Y = np.array([2.0, -1.0, 0.5, 3.0, 1.0, 0.0, -0.5, 1.5], np.float32)
GROUPS = 4
# Numbers of single precision are added up, the largest of them about 100.
ROUNDING = 1e-4
SCALES = {"no scale": None, "one scale": 0.8, "a scale for each": np.array([0.5, 1.0, 2.0, 1.5], np.float32)}
MASKS = {"no mask": None, "all masked": False, "some masked": np.array([True, False, True, False])}
FAMILIES = {"Normal": stats.norm, "LogNormal": lambda loc, scale: stats.lognorm(s=scale, scale=np.exp(loc))}


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


def handlers_of(backend, scale, mask):
    """The context of a scale and a mask, as the model's author writes it."""
    handlers = pyro.poutine if backend.ppl is pyro else numpyro.handlers

    def array(value):
        if not isinstance(value, np.ndarray):
            return value
        return torch.as_tensor(value) if backend.ppl is pyro else jnp.asarray(value)

    stack = contextlib.ExitStack()
    if scale is not None:
        stack.enter_context(handlers.scale(scale=array(scale)))
    if mask is not None:
        stack.enter_context(handlers.mask(mask=array(mask)))
    return stack


def hierarchy(backend, scale, mask, family="Normal", subsample_size=None):
    """theta ~ family(0.3, tau) under a scale and a mask, tau ~ HalfNormal(1.5) under one of 0.7, data under one of 0.5."""
    ppl, dist = backend.ppl, backend.ppl.distributions

    def model(y):
        with handlers_of(backend, 0.7, None):
            tau = ppl.sample("tau", dist.HalfNormal(1.5))
        with ppl.plate("group", GROUPS), handlers_of(backend, scale, mask):
            theta = ppl.sample("theta", getattr(dist, family)(0.3, tau))
        with (
            ppl.plate("rows", len(Y), subsample_size=subsample_size) as rows,
            handlers_of(backend, 0.5, None),
        ):
            ppl.sample("y", dist.Normal(theta.sum(), 3.0), obs=y[rows])

    return model


class Coordinates:
    """A posterior of one backend: its potential at one point, with equal minibatches for equal seeds."""

    def __init__(self, backend, problem):
        self.torch, self.problem = backend.ppl is pyro, problem

    @classmethod
    def of(cls, backend, model, data=Y):
        kind = PyroProblem if backend.ppl is pyro else NumPyroProblem
        return cls(backend, kind(model, (backend.array(data),)))

    def noncentered(self):
        moved = object.__new__(Coordinates)
        moved.torch = self.torch
        moved.problem = self.problem.noncentered(self.problem.noncentering_candidates())
        return moved

    def log_density(self, x, seed=None):
        if not self.torch:
            if seed is None:
                return -float(self.problem.potential(x, self.problem.data))
            words = np.array([seed, 1], np.uint32)
            return -float(self.problem.minibatch_potential(x, self.problem.data, words))
        torch.manual_seed(seed or 0)
        potential = self.problem.potential if seed is None else self.problem.minibatch_potential
        return -float(potential(torch.as_tensor(x)))

    def original(self, x):
        rows = torch.as_tensor(x[None]) if self.torch else x[None]
        return np.asarray(self.problem.original_coordinates(rows))[0]

    def values(self, x):
        rows = torch.as_tensor(x[None]) if self.torch else x[None]
        return {name: np.asarray(value)[0] for name, value in self.problem.constrain(rows).items()}


def start_of(layout, name):
    """Where the coordinates of a site begin."""
    start = 0
    for site in layout.sites:
        if site.name == name:
            return start
        start += int(np.prod(site.unconstrained_shape))
    raise KeyError(name)


CROSSED = [
    (scale, mask, "Normal") for scale in SCALES for mask in MASKS if (scale, mask) != ("no scale", "no mask")
]


@pytest.mark.parametrize(
    ("scale", "mask", "family"), [*CROSSED, ("a scale for each", "some masked", "LogNormal")]
)
def test_the_density_of_the_values_is_the_one_that_the_model_states(backend, scale, mask, family):
    own = Coordinates.of(backend, hierarchy(backend, SCALES[scale], MASKS[mask], family))
    moved = own.noncentered()
    assert moved.problem.noncentering_candidates() == ("theta",)
    rng = np.random.default_rng(1)
    for y in rng.normal(size=(3, GROUPS + 1)).astype(np.float32):
        x = moved.original(y)
        values = own.values(x)
        tau, theta = float(values["tau"]), values["theta"].astype(float)
        weight = np.ones(GROUPS) if SCALES[scale] is None else SCALES[scale]
        weight = weight * (1 if MASKS[mask] is None else np.asarray(MASKS[mask]))
        log_density = 0.7 * stats.halfnorm(scale=1.5).logpdf(tau)
        log_density += (weight * FAMILIES[family](0.3, tau).logpdf(theta)).sum()
        log_density += 0.5 * stats.norm(theta.sum(), 3.0).logpdf(Y).sum()
        log_jacobian = np.log(tau) + (np.log(theta).sum() if family == "LogNormal" else 0)
        assert abs(own.log_density(x) - log_density - log_jacobian) < ROUNDING
        log_jacobian += GROUPS * np.log(tau)
        assert abs(moved.log_density(y) - log_density - log_jacobian) < ROUNDING


@pytest.mark.parametrize(
    ("scale", "mask"), [("no scale", "all masked"), ("one scale", "no mask"), CROSSED[-1][:2]]
)
def test_minibatches_have_the_same_log_jacobian(backend, scale, mask):
    own = Coordinates.of(backend, hierarchy(backend, SCALES[scale], MASKS[mask], subsample_size=3))
    moved = own.noncentered()
    y = np.random.default_rng(2).normal(size=GROUPS + 1).astype(np.float32)
    x = moved.original(y)
    log_tau = float(x[start_of(own.problem.layout, "tau")])
    values = []
    for seed in (1, 2, 3):
        values.append(own.log_density(x, seed))
        assert abs(moved.log_density(y, seed) - values[-1] - GROUPS * log_tau) < ROUNDING
    assert len(set(values)) == 3
    assert abs(moved.log_density(y) - own.log_density(x) - GROUPS * log_tau) < ROUNDING


def test_scales_and_masks_inside_a_scan():
    steps = 3
    mask = jnp.array([True, False])

    def model(y):
        s = numpyro.sample("s", numpyro.distributions.HalfNormal(1.0))

        def step(carry, own):
            with (
                numpyro.plate("pair", 2),
                numpyro.handlers.scale(scale=0.3),
                numpyro.handlers.mask(mask=mask),
            ):
                z = numpyro.sample("z", numpyro.distributions.LogNormal(carry, s))
            numpyro.sample("y", numpyro.distributions.Normal(z.sum(), 1.0), obs=own)
            return carry + 0.1, z

        with numpyro.handlers.scale(scale=0.5):
            scan(step, jnp.zeros(()), y)

    problem = NumPyroProblem(model, (jnp.asarray(Y[:steps]),))
    x = np.random.default_rng(3).normal(size=problem.dim).astype(np.float32)
    values = {name: np.asarray(value)[0].astype(float) for name, value in problem.constrain(x[None]).items()}
    z, s = values["z"], float(values["s"])
    assert z.shape == (steps, 2)
    expected = stats.halfnorm.logpdf(s) + np.log(s) + np.log(z).sum()
    for t in range(steps):
        expected += 0.5 * 0.3 * FAMILIES["LogNormal"](0.1 * t, s).logpdf(z[t, 0])
        expected += 0.5 * stats.norm(z[t].sum(), 1.0).logpdf(Y[t])
    assert abs(-float(problem.potential(x, problem.data)) - expected) < ROUNDING


def test_pyro_minibatches_of_scaled_discrete_sites_are_unbiased():
    dist = pyro.distributions
    y = torch.tensor([2.0, -1.0, 0.5, 3.0])

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("rows", len(y), subsample_size=2) as rows, pyro.poutine.scale(scale=0.4):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Normal(mu + 3 * k, 1.0), obs=y[rows])

    problem = PyroProblem(model, (y,))
    x = torch.tensor([0.7])
    torch.manual_seed(0)
    values = np.array([float(problem.minibatch_potential(x)) for _ in range(400)])
    # 5 standard errors of the mean over 400 minibatches of two rows.
    assert values.std() > 0.1
    assert abs(values.mean() - float(problem.potential(x))) < 5 * values.std() / 400**0.5


def test_the_posterior_does_not_depend_on_the_coordinates():
    """jax traces a transformed site and its base alike: a scaled LogNormal is the exponential of a scaled density."""

    def model():
        with numpyro.handlers.scale(scale=0.25):
            numpyro.sample("x", numpyro.distributions.LogNormal(0.0, 1.0))

    problem = NumPyroProblem(model)
    grid = jnp.linspace(-30.0, 30.0, 6001)[:, None]
    log_p = -jax.vmap(lambda u: problem.potential(u, problem.data))(grid)
    weight = np.exp(np.asarray(log_p, float) - float(log_p.max()))
    mean = (weight * np.asarray(grid[:, 0])).sum() / weight.sum()
    # p(x)^(1/4) dx in u = log x: exp(-u^2 / 8 - u / 4 + u), a normal of mean 4 * 3 / 4 and sd 2.
    assert abs(mean - 3.0) < 1e-3
