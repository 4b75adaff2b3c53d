"""Random walks above `FULL_RANK_LIMIT` steps: scales alone see nothing of their correlations, and may not cost as if they did."""

from __future__ import annotations

import numpy as np
import pytest
from backends import BACKENDS

from pyro_dft.recipe.constants import BLOCK_STEPS, FULL_RANK_LIMIT
from pyro_dft.recipe.particles import (
    LARGE_BUDGET,
    MOST_WARM_UPS,
    PARTICLES,
    TUNING,
    WARM_UP,
)
from pyro_dft.recipe.trajectories import MOST_AT_FIRST, MOST_LEAPFROGS

D = FULL_RANK_LIMIT + 10
DRAWS = 1000


@pytest.fixture(scope="module", params=BACKENDS, ids=repr)
def backend(request):
    return request.param


def walk(backend, ratio):
    """A walk of `D` standard normal steps, seen at each with an error of 1 / ratio steps: its potential, means and covariance.

    The condition number of the precision is about (2 D ratio / pi)^2.
    """
    sums = np.tril(np.ones((D, D)))
    seen = ratio * sums
    y = seen @ np.random.default_rng(0).normal(size=D) + np.random.default_rng(1).normal(size=D)
    covariance = np.linalg.inv(np.eye(D) + seen.T @ seen)
    a, b = backend.array(seen.astype(np.float32)), backend.array(y.astype(np.float32))

    def potential(sites):
        z = sites["z"]
        return 0.5 * (z**2).sum() + 0.5 * ((a @ z - b) ** 2).sum()

    return potential, covariance @ seen.T @ y, covariance


def fitted(backend, potential, **options):
    dft = backend.DFT(
        potential_fn=potential, initial_params={"z": backend.array(np.zeros(D))}, seed=0, disable_progbar=True, **options
    )  # fmt: skip
    backend.run(dft)
    return dft


def test_particles_go_on_where_scales_stop(backend):
    potential, mean, covariance = walk(backend, 0.2)
    dft = fitted(backend, potential, num_draws=DRAWS)
    report = dft.diagnostics()
    assert report["status"] == "converged"
    # Scales alone would go on for 300 steps of 192 gradients in each of three rounds.
    assert report["phase_gradients"]["gaussian"] + report["phase_gradients"]["modes"] < 60_000
    z, sd = np.asarray(dft.get_samples()["z"], float), np.diag(covariance) ** 0.5
    ess = min(report["ensemble"]["ess"], DRAWS)
    # The largest of 310 normal errors is 3.7 standard errors in one of ten thousand.
    assert np.abs((z.mean(0) - mean) / sd).max() < 5.0 / ess**0.5
    assert np.abs(np.log(z.std(0) / sd)).max() < 5.0 / (2 * ess) ** 0.5
    # Where the walk is, which correlations decide: sums of steps.
    path, exact = z.cumsum(1), np.tril(np.ones((D, D))) @ covariance @ np.tril(np.ones((D, D))).T
    assert np.abs(np.log(path.std(0) / np.diag(exact) ** 0.5)).max() < 5.0 / (2 * ess) ** 0.5
    assert np.abs((path.mean(0) - mean.cumsum()) / np.diag(exact) ** 0.5).max() < 5.0 / ess**0.5


@pytest.mark.filterwarnings("ignore:the fit")
def test_chains_that_cannot_be_done_end_the_fit(backend):
    """No network is trained in so many dimensions, and no transitions are counted that none would be enough for."""
    potential, *_ = walk(backend, 100.0)
    report = fitted(backend, potential, num_draws=40).diagnostics()
    assert report["status"] != "converged"
    assert report["objective"] == "gaussian"
    assert "kl" not in report["phase_gradients"]
    # The budget of 600 gradients for each draw bounds what comes after the warm-up, a block of tuning and one of a window.
    least = MOST_WARM_UPS * WARM_UP * MOST_AT_FIRST + (TUNING + BLOCK_STEPS) * MOST_LEAPFROGS
    assert report["phase_gradients"]["refinement"] < LARGE_BUDGET * 40 + PARTICLES * least


@pytest.mark.filterwarnings("ignore:the fit")
def test_a_flat_direction_ends_with_a_verdict(backend):
    """Steps grow there without end, until a trajectory is less than one of them."""
    dft = backend.DFT(
        potential_fn=lambda sites: 2.5 * (sites["a"] + sites["b"] - 2.0) ** 2,
        initial_params={name: backend.array(np.zeros(())) for name in "ab"},
        num_draws=100, train="never", modes="never", seed=1, disable_progbar=True,
    )  # fmt: skip
    backend.run(dft)
    assert dft.diagnostics()["status"] == "failed"
