"""One ensemble across modes whose weights are doubtful, and what chains make of a density that cannot be computed everywhere."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import torch
from backends import BACKENDS
from scipy import stats

import pyro_dft.numpyro
from pyro_dft.recipe import across
from pyro_dft.recipe.gaussians import Gaussians
from pyro_dft.recipe.starts import staying
from pyro_dft.recipe.subject import Origin

WEIGHT = 0.7
LIBRARIES = {"pyro": torch, "numpyro": jnp}


@pytest.fixture(scope="module", params=BACKENDS, ids=repr)
def backend(request):
    return request.param


def two_modes(backend, apart):
    """Unit Gaussians at -apart and apart in the first of two coordinates; the second one holds less."""

    def potential(params):
        x = params["a"]
        first, second = (
            np.log(w) - 0.5 * ((x[0] - sign * apart) ** 2 + x[1] ** 2)
            for w, sign in ((WEIGHT, -1), (1 - WEIGHT, 1))
        )
        return -LIBRARIES[backend.name].logaddexp(first, second)

    return potential


@pytest.mark.parametrize("apart", [2.8, 8.0])
def test_chains_that_pass_between_modes_need_no_weights(backend, apart, monkeypatch):
    """Whatever the weights are: here no k-hat is good enough. Chains that do not pass leave things as they are."""
    monkeypatch.setattr("pyro_dft.recipe.across.GOOD_KHAT", -1.0)
    dft = backend.potential(two_modes(backend, apart), train="auto", refine_steps=None, num_draws=1000)
    backend.run(dft)
    report, draws = dft.diagnostics(), np.asarray(dft.get_samples()["a"], float)
    assert report["status"] == "converged"
    assert (report["modes"] is None) == (apart < 5)
    assert report["gradient_evaluations"] < 400_000
    # Four standard errors.
    error = 4 * np.sqrt(WEIGHT * (1 - WEIGHT) / min(report["ensemble"]["ess"], 1000))
    assert abs((draws[:, 0] < 0).mean() - WEIGHT) < error
    assert abs(draws[:, 1].std() - 1) < 4 / np.sqrt(2 * 500)


MEANS = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
OPTIMA = Gaussians(MEANS, np.tile(np.eye(2), (3, 1, 1)), np.zeros(3), np.zeros(3))


@pytest.mark.parametrize(
    ("light", "count"),
    [
        ([], 0),  # all are at the heavy one, or pass
        ([1], 1),  # a single one, which hardly moves any mean
        ([1, 2, 2], 3),
    ],
)
def test_particles_that_stay_at_a_light_optimum_are_seen(light, count):
    rng = np.random.default_rng(0)
    where = np.zeros((64, 100), int)
    where[40:, :20] = 1 + rng.integers(2, size=(24, 1))  # these were elsewhere for a fifth of the time
    for row, optimum in enumerate(light):
        where[row, 5:] = optimum
    points = MEANS[where] + rng.normal(size=(64, 100, 2))
    assert staying(points, [Origin(OPTIMA, np.full(3, 1 / 3))]) == count


@pytest.mark.parametrize("full", [True, False])
def test_the_gaussian_across_modes_has_their_moments(full):
    scales = (
        np.array([[[1.0, 0.0], [0.5, 2.0]], np.eye(2), 3 * np.eye(2)])
        if full
        else np.array([[1.0, 2.0], [1.0, 1.0], [3.0, 3.0]])
    )
    weights, rng = np.array([0.5, 0.2, 0.3]), np.random.default_rng(1)
    optima = SimpleNamespace(mean=MEANS, scale=scales)
    mean, root = across._moments(SimpleNamespace(optima=optima), np.arange(3), weights)
    which, noise = rng.choice(3, size=200_000, p=weights), rng.normal(size=(200_000, 2))
    draws = MEANS[which] + (np.einsum("nij,nj->ni", scales[which], noise) if full else scales[which] * noise)
    covariance = root @ root.T if full else np.square(root)
    expected = np.cov(draws.T) if full else draws.var(0)
    # Four standard errors of a mean and of a variance of these sizes.
    np.testing.assert_allclose(mean, draws.mean(0), atol=4 * 5 / np.sqrt(len(draws)))
    np.testing.assert_allclose(covariance, expected, atol=4 * 35 / np.sqrt(len(draws)))


def test_where_a_density_cannot_be_computed(backend):
    """Steps of any size lead there: the chains are not made to crawl, and the fit says what it leaves out."""
    edge = 1.5

    def potential(params):
        x = params["a"]
        return 0.5 * (x**2).sum() + 0.0 * LIBRARIES[backend.name].sqrt(edge - x[0])

    dft = backend.potential(potential, train="auto", refine_steps=None, num_draws=1000)
    with pytest.warns(UserWarning, match="log density is not finite"):
        backend.run(dft)
    report, draws = dft.diagnostics(), np.asarray(dft.get_samples()["a"], float)
    assert report["alarms"] == ["divergences"]
    assert report["status"] == "suspect"
    assert report["ensemble"]["nonfinite"] > 0.01
    assert report["gradient_evaluations"] < 200_000
    left = stats.truncnorm(-np.inf, edge)
    assert draws[:, 0].max() < edge
    assert abs(draws[:, 0].mean() - left.mean()) < 4 * left.std() / np.sqrt(
        min(report["ensemble"]["ess"], 1000)
    )
    assert abs(draws[:, 0].std() / left.std() - 1) < 4 / np.sqrt(2 * 500)


def network(x, y):
    first, bias, last = (
        numpyro.sample(name, dist.Normal(0, 1).expand([8])) for name in ("first", "bias", "last")
    )
    noise = numpyro.sample("noise", dist.HalfNormal(1))
    numpyro.sample("y", dist.Normal(jnp.tanh(x[:, None] * first + bias) @ last, noise), obs=y)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the fit is")
def test_a_neural_network_has_the_symmetries_of_its_posterior():
    """Signs and places of hidden units change nothing: all means are zero, and each unit has the sds of the others."""
    rng = np.random.default_rng(15)
    x = rng.uniform(-2, 2, 100)
    y = np.sin(2 * x) + 0.2 * rng.normal(size=100)
    dft = pyro_dft.numpyro.DFT(network, disable_progbar=True)
    dft.run(jax.random.key(1), jnp.array(x), jnp.array(y))
    report, draws = dft.diagnostics(), dft.get_samples()
    assert report["modes"] is None
    assert report["status"] != "failed"
    count = report["ensemble"]["ess"]
    for name in ("first", "bias", "last"):
        own = np.asarray(draws[name], float)
        sds = own.std(0)
        assert np.abs(own.mean(0) / sds).max() < 4 / np.sqrt(count)
        assert np.abs(sds / sds.mean() - 1).max() < 4 / np.sqrt(count)
