"""One ensemble across modes whose weights are doubtful, and what chains make of a density that cannot be computed everywhere."""

from __future__ import annotations

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
