"""New draws that start at kept ones: right in means, sds and tails, of all modes, from a file, and through `MCMC`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from backends import BACKENDS
from daily import daily
from scipy import stats
from test_particles import MEAN, VARIANCE, gamma_and_line

from pyro_dft.interface.blocks import new_blocks
from pyro_dft.interface.result import Making

# What the recipe does in both alike is looked at in one every day.
ONE_A_DAY = daily(BACKENDS, BACKENDS[1])
LOGADDEXP = {"pyro": torch.logaddexp, "numpyro": jnp.logaddexp}
# Of the mode at 6, where the second coordinate has an sd of 1/2; the other one is at -6.
SHARE = 0.7
# Standard errors of means of 4,000 kept draws, which are worth 1,000 at least.
ERROR = 1000**-0.5


@pytest.fixture(scope="module", params=BACKENDS, ids=repr)
def backend(request):
    return request.param


@pytest.fixture(autouse=True)
def every_new_draw_is_dear(monkeypatch):
    monkeypatch.setattr("pyro_dft.recipe.ensemble.DEAR_DRAW", 1)


def fitted(backend, potential, dim):
    start = {"x": backend.array(np.zeros(dim))}
    fit = backend.potential(
        potential, initial_params=start, train="auto", refine_steps=None, restarts=6, num_draws=4000
    )
    backend.run(fit)
    assert fit.diagnostics()["status"] == "converged"
    assert fit.diagnostics()["renewed"]
    return fit


@functools.cache
def line(backend):
    return fitted(backend, gamma_and_line, 3)


@pytest.fixture
def fit(backend):
    return line(backend)


def is_right(draws):
    """Means, sds and tails within four standard errors; `draws` (n, 3) of `gamma_and_line`."""
    x = np.asarray(draws, float)
    assert np.isfinite(x).all()
    assert np.abs((x.mean(0) - [MEAN, MEAN, 0.0]) / x.std(0)).max() < 4 * ERROR
    sd = np.sqrt([VARIANCE, VARIANCE + 0.04, 1.0])
    # The log of a gamma variable of shape three has a kurtosis of 3.4.
    assert np.abs(np.log(x.std(0) / sd)).max() < 4 * ERROR
    for level in (0.05, 0.95):
        point = np.log(stats.gamma(3.0).ppf(level))
        assert (x[:, 0] < point).mean() == pytest.approx(level, abs=4 * ERROR * (0.05 * 0.95) ** 0.5)
    return x


def test_new_draws_are_right_and_none_is_a_kept_one(fit):
    steps, leapfrogs = fit.diagnostics()["refine_steps"], fit.diagnostics()["ensemble"]["leapfrog_steps"]
    before = fit.diagnostics()["gradient_evaluations"]
    x = is_right(fit.get_samples(10_000)["x"])
    assert fit.diagnostics()["gradient_evaluations"] - before <= 10_000 * (steps * leapfrogs + 1)
    known = np.asarray(fit.get_samples()["x"], float)
    # A rejected transition leaves a draw where it was: .2 to the power of `steps`, and no more.
    assert steps >= 2
    assert np.isin(x[:, 2], known[:, 2]).mean() < 2 * 0.2**steps
    # A third of what a kept draw is away from the mean may be left in the new one, and draws that share a start share a ninth.
    assert abs(np.corrcoef(x[:4000, 0], x[4000:8000, 0])[0, 1]) < 4 / 4000**0.5


def test_they_start_at_each_kept_draw_once(fit):
    """Without transitions they are the starts themselves."""
    parts = fit.parts
    with parts.backend.session():
        blocks = new_blocks(parts.backend, parts.fit, 4000, Making(0, renewed=True), rng=parts.backend.rng)
        begun = np.concatenate([np.asarray(draws)[0] for draws, _ in blocks])
    assert not np.array_equal(begun, parts.fit.measurement.refined[0])
    np.testing.assert_array_equal(np.sort(begun, 0), np.sort(np.asarray(parts.fit.measurement.refined)[0], 0))


def test_so_do_those_of_numpyros_compiled_loop():
    fit = line(BACKENDS[1])
    kernel = BACKENDS[1].DFTKernel(fit)
    state = kernel.init(jax.random.key(0), 0, None, (), {})
    state = state._replace(trained=state.trained._replace(steps=np.asarray(0, np.int32)))
    begun = np.asarray(kernel.sample(state, (), {}).block)
    kept = np.asarray(fit.get_samples()["x"])
    assert not np.array_equal(begun, kept)
    np.testing.assert_array_equal(np.sort(begun, 0), np.sort(kept, 0))


@pytest.mark.parametrize("backend", ONE_A_DAY, ids=repr, indirect=True)
def test_given_transitions_start_at_draws_of_the_sampler(fit):
    """A single one from there leaves a Gaussian's wrong tails as good as they were: the skewness tells."""
    skew = stats.skew(np.asarray(fit.get_samples(8000, refine_steps=0)["x"], float)[:, 0])
    few = stats.skew(np.asarray(fit.get_samples(8000, refine_steps=1)["x"], float)[:, 0])
    new = stats.skew(np.asarray(fit.get_samples(8000)["x"], float)[:, 0])
    right = float(stats.loggamma(3.0).stats("s"))
    assert abs(new - right) < 0.2
    assert abs(skew - few) < abs(skew - right)


@pytest.mark.parametrize("backend", ONE_A_DAY, ids=repr, indirect=True)
def test_a_file_goes_on_with_them(backend, fit, tmp_path):
    fit.save(tmp_path / "fit.safetensors")
    start = {"x": backend.array(np.zeros(3))}
    again = backend.DFT.load(tmp_path / "fit.safetensors", potential_fn=gamma_and_line, initial_params=start)
    assert again.diagnostics()["renewed"] == fit.diagnostics()["renewed"]
    is_right(again.get_samples(8000)["x"])


def test_mcmc_serves_them_behind_the_kept_ones(backend, fit):
    mcmc = backend.mcmc(backend.DFTKernel(fit), 8000, 0, 1)
    x = is_right(np.asarray(mcmc.get_samples()["x"])[4000:])
    assert len(np.unique(x[:, 2])) > 3900


def test_all_modes_have_their_shares_and_shapes(backend):
    def two_modes(params):
        x = params["x"]
        left, right = -0.5 * ((x[0] + 6) ** 2 + x[1] ** 2), -0.5 * ((x[0] - 6) ** 2 + 4 * x[1] ** 2)
        return -LOGADDEXP[backend.name](left + np.log(1 - SHARE), right + np.log(2 * SHARE))

    fit = fitted(backend, two_modes, 2)
    for new in (
        fit.get_samples(8000)["x"],
        backend.mcmc(backend.DFTKernel(fit), 8000, 0, 1).get_samples()["x"],
    ):
        x = np.asarray(new, float)[-4000:]
        right = x[:, 0] > 0
        assert right.mean() == pytest.approx(SHARE, abs=4 * ERROR * (SHARE * (1 - SHARE)) ** 0.5)
        assert x[right, 1].std() == pytest.approx(0.5, rel=4 * (2 * 1000 * SHARE) ** -0.5)
        assert x[~right, 1].std() == pytest.approx(1.0, rel=4 * (2 * 1000 * (1 - SHARE)) ** -0.5)
