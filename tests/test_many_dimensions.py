"""Above `FULL_RANK_LIMIT` samplers and kernels hold standard deviations alone: everything a fit is used for, in both backends."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from backends import BACKENDS
from quick import NETWORK

from pyro_dft.experimental import grouped
from pyro_dft.recipe.constants import FULL_RANK_LIMIT

pytestmark = [
    pytest.mark.filterwarnings("ignore:the fit is suspect"),
    pytest.mark.usefixtures("brief_surrogate"),
]

D = FULL_RANK_LIMIT + 10
# Standard deviations from .1 to 10, and means of 3 sds.
SD = np.logspace(-1, 1, D).astype(np.float32)
DRAWS = 1000


@pytest.fixture(scope="module", params=BACKENDS, ids=repr)
def backend(request):
    return request.param


@pytest.fixture(scope="module")
def fitted(backend):
    sd = backend.array(SD)

    def potential(sites):
        return 0.5 * (((sites["a"] - 3 * sd) / sd) ** 2).sum()

    start = {"a": backend.array(np.zeros(D))}
    dft = backend.DFT(
        potential_fn=potential, initial_params=start, num_draws=DRAWS, seed=0, disable_progbar=True
    )
    backend.run(dft)
    return dft, potential, start


def right(draws):
    """Whether means and sds are those of the target, by five standard errors of so many draws."""
    draws = np.asarray(draws, float)
    n = len(draws)
    assert np.abs((draws.mean(0) - 3 * SD) / SD).max() < 5 / np.sqrt(n)
    assert np.abs(np.log(draws.std(0) / SD)).max() < 5 / np.sqrt(2 * n)
    # One coordinate's 5 and 95 % points have standard errors of about 2.1 / sqrt(n) sds; over all of them together, far less.
    z = (draws - 3 * SD) / SD
    assert np.quantile(z, [0.05, 0.95]) == pytest.approx([-1.645, 1.645], abs=0.05)


def test_no_matrices_are_held(fitted):
    dft, *_ = fitted
    fit = dft.parts.fit
    assert fit.sampler.scale.shape == (1, D)
    assert fit.measurement.scale.shape == (1, D)
    assert fit.optima.scale.ndim == 2


def test_draws_are_right(fitted):
    dft, *_ = fitted
    assert dft.diagnostics()["status"] == "converged"
    right(dft.get_samples()["a"])
    right(dft.get_samples(DRAWS)["a"])
    right(dft.get_samples(DRAWS, refine_steps=0)["a"])


def test_files_and_copies(fitted, tmp_path):
    dft, potential, start = fitted
    dft.save(tmp_path / "fit.safetensors")
    again = type(dft).load(
        tmp_path / "fit.safetensors", potential_fn=potential, initial_params=start, disable_progbar=True
    )
    for other in (again, copy.deepcopy(dft)):
        assert (np.asarray(other.get_samples()["a"]) == np.asarray(dft.get_samples()["a"])).all()
        right(other.get_samples(DRAWS)["a"])


def test_importance_sampling(fitted):
    """The log evidence is the Gaussian's normalising constant."""
    dft, *_ = fitted
    found = dft.importance_sampling(500)
    exact = float(np.log(SD).sum() + D / 2 * np.log(2 * np.pi))
    assert found.log_evidence == pytest.approx(exact, abs=5 * found.log_evidence_error + 0.1)


@pytest.mark.slow
def test_a_network_can_be_trained(backend):
    sd = backend.array(SD)
    dft = backend.dft(
        None, potential_fn=lambda sites: 0.5 * ((sites["a"] / sd) ** 2).sum(),
        initial_params={"a": backend.array(np.zeros(D))}, **grouped(
            {**NETWORK, "num_draws": 200, "num_steps": 3, "dft_fraction": 0.0}
        ),
    )  # fmt: skip
    backend.run(dft)
    assert np.isfinite(np.asarray(dft.get_samples(50, refine_steps=0)["a"])).all()
