"""Minibatches of models with a subsampled plate, and their full data."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro_models import data

from pyro_dft.errors import ModelError
from pyro_dft.pyro.model import PyroProblem


@pytest.fixture(autouse=True)
def _float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)


def regression(x, y, size=None):
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(torch.tensor(1.0)))
    with pyro.plate("row", len(y), subsample_size=size) as index:
        pyro.sample("y", dist.Normal(x[index] @ b, scale), obs=y[index])


def sub_mixture(y, size=None):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    with pyro.plate("row", len(y), subsample_size=size) as index:
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(loc[z], 1.0), obs=y[index])


# 50 of 2520 rows is drawn with replacement, the others without.
@pytest.mark.parametrize(("n", "size", "enumerated"), [(60, 12, False), (2520, 50, False), (60, 12, True)])
def test_minibatch_potential_is_unbiased(n, size, enumerated):
    model, args = (sub_mixture, (data(1, n),)) if enumerated else (regression, (data(0, n, 2), data(1, n)))
    full = PyroProblem(model, args)
    problem = PyroProblem(model, (*args, size))
    assert not full.minibatch
    assert full.data_size == 1
    assert problem.minibatch
    assert (problem.data_size, problem.minibatch_size) == (n, size)
    x = full.initial_points(1, radius=1.0)[0]
    torch.testing.assert_close(problem.potential(x), full.potential(x))
    with problem.context():
        one = torch.func.grad_and_value(problem.minibatch_potential)
        g, u = torch.func.vmap(one, randomness="different")(x.expand(1500, -1))
    _, g_full = full.values_and_gradients(x[None])
    u_full = full.potential(x)
    draws, target = torch.cat([u[:, None], g], -1), torch.cat([u_full[None], g_full[0]])
    error = draws.std(0) / 1500**0.5
    # The largest of up to six z-scores; 4.5 standard errors are passed by chance once in 20 000 runs.
    assert ((draws.mean(0) - target).abs() < 4.5 * error + 1e-9).all()
    assert (u.std() > 0.01 * u_full.abs() / n**0.5).item()


def test_minibatch_is_shared_by_a_batch():
    problem = PyroProblem(regression, (data(0, 60, 2), data(1, 60), 6))
    x = problem.initial_points(1)[0]
    with problem.context():
        u = torch.func.vmap(problem.minibatch_potential, randomness="same")(x.expand(20, -1))
        again = torch.func.vmap(problem.minibatch_potential, randomness="same")(x.expand(20, -1))
    torch.testing.assert_close(u, u[:1].expand(20), rtol=1e-12, atol=0)
    assert (u[0] - again[0]).abs() > 1e-3


def test_subsampled_plate_of_a_sequential_loop():
    def model(y, size):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in pyro.plate("row", len(y), subsample_size=size):
            pyro.sample(f"y_{i}", dist.Normal(mu, 1.0), obs=y[i])

    y = data(0, 8)
    problem, full = PyroProblem(model, (y, 2)), PyroProblem(model, (y, None))
    x = torch.tensor([0.3])
    torch.testing.assert_close(problem.potential(x), full.potential(x))
    assert len({problem.minibatch_potential(x).item() for _ in range(20)}) > 3


def test_explicit_subsample_is_kept():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("row", 10, subsample=torch.arange(len(y))):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = data(0, 5)
    problem = PyroProblem(model, (y,))
    assert not problem.minibatch
    expected = (
        -dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.3)) - 2 * dist.Normal(0.3, 1.0).log_prob(y).sum()
    )
    torch.testing.assert_close(problem.potential(torch.tensor([0.3])), expected)


def test_latent_site_in_a_subsampled_plate():
    def model(y):
        with pyro.plate("person", len(y), subsample_size=2) as index:
            skill = pyro.sample("skill", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("y", dist.Normal(skill, 1.0), obs=y[index])

    with pytest.raises(ModelError, match="'skill' is inside the subsampled plate 'person'"):
        PyroProblem(model, (data(0, 6),))


def test_global_discrete_site_cannot_be_subsampled():
    def model(y):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        with pyro.plate("row", len(y), subsample_size=2) as index:
            pyro.sample("y", dist.Normal(loc[z], 1.0), obs=y[index])

    with pytest.raises(ModelError, match="'z': 1.0, 'y': 3.0"):
        PyroProblem(model, (data(0, 6),))
