"""Draws of separate modes, six sds apart, which transitions hardly pass between, and of a far one; in both backends."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from backends import BACKENDS
from corners import WEIGHTS, corners

from pyro_dft.experimental import Experimental
from pyro_dft.recipe import mode_search


@pytest.fixture(scope="module", params=BACKENDS, ids=repr)
def fit(request):
    backend = request.param
    centres, log_weights = (backend.array(v) for v in (corners(), np.log(WEIGHTS)))

    def potential(z):
        each = log_weights - 0.5 * ((z["a"] - centres) ** 2).sum(-1)
        return -torch.logsumexp(each, -1)

    def jax_potential(z):
        return -jax.scipy.special.logsumexp(log_weights - 0.5 * ((z["a"] - centres) ** 2).sum(-1))

    function = potential if backend.name == "pyro" else jax_potential
    start = {"a": backend.array(np.zeros(8))}
    options = {"seed": 1} if backend.name == "pyro" else {}
    dft = backend.potential(
        function, initial_params=start, train="auto", experimental=Experimental(precondition_steps=120),
        num_draws=2000, restarts=4, num_chains=2,
        **options,
    )  # fmt: skip
    backend.run(dft)
    return backend, dft, function, start


def shares(draws):
    nearest = np.square(np.asarray(draws)[:, None] - corners()).sum(-1).argmin(1)
    return np.bincount(nearest, minlength=3) / len(nearest)


def test_all_modes_are_found_with_their_weights(fit):
    _, dft, *_ = fit
    report = dft.diagnostics()
    assert report["status"] == "converged"
    assert sorted(report["modes"]["weights"]) == pytest.approx(WEIGHTS, abs=0.03)
    # The target; standard errors of shares of 10,000 draws are at most .005, of the weights .004.
    for refine_steps in (0, None):
        draws = np.asarray(dft.get_samples(10_000, refine_steps=refine_steps)["a"])
        assert shares(draws) == pytest.approx(WEIGHTS, abs=0.05)
        spread = np.sqrt(1 + np.square(corners()).T @ WEIGHTS - np.square(WEIGHTS @ corners()))
        assert draws.std(0) / spread == pytest.approx(np.ones(8), abs=0.04)
    assert shares(dft.get_samples()["a"]) == pytest.approx(WEIGHTS, abs=0.05)


def test_log_densities_of_kept_draws_are_known_without_an_evaluation(fit):
    """Each draw's own, though the draws of a chain are picked from those of its modes."""
    _, dft, *_ = fit
    before = dft.diagnostics()["gradient_evaluations"]
    data = dft.to_inference_data()
    distances = np.square(np.asarray(data.posterior["a"], float)[..., None, :] - corners()).sum(-1)
    expected = np.log((WEIGHTS * np.exp(-0.5 * distances)).sum(-1))
    np.testing.assert_allclose(np.asarray(data.sample_stats["lp"]), expected, atol=1e-3)
    assert dft.diagnostics()["gradient_evaluations"] == before


def test_chains_and_counts(fit):
    _, dft, *_ = fit
    assert np.asarray(dft.get_samples(501)["a"]).shape == (501, 8)
    assert np.asarray(dft.get_samples(50, group_by_chain=True)["a"]).shape == (2, 50, 8)
    assert np.asarray(dft.get_samples(group_by_chain=True)["a"]).shape == (2, 1000, 8)
    assert "a[0]" in str(dft.summary_table())


def test_saved_and_loaded(fit, tmp_path):
    backend, dft, function, start = fit
    dft.save(tmp_path / "fit.safetensors")
    again = backend.DFT.load(tmp_path / "fit.safetensors", potential_fn=function, initial_params=start)
    assert np.array_equal(np.asarray(again.get_samples()["a"]), np.asarray(dft.get_samples()["a"]))
    assert shares(again.get_samples(5000)["a"]) == pytest.approx(WEIGHTS, abs=0.05)


def test_switched_off_the_missing_modes_are_flagged(fit):
    backend, _, function, start = fit
    options = {"seed": 1} if backend.name == "pyro" else {}
    one = backend.potential(
        function,
        initial_params=start,
        train="never",
        experimental=Experimental(precondition_steps=120),
        restarts=12,  # enough to meet all three
        num_draws=1000,
        modes="never",
        refine_steps=2,
        **options,
    )
    with pytest.warns(UserWarning, match="the fit"):
        backend.run(one)
    assert one.diagnostics()["modes"] is None
    assert one.diagnostics()["status"] == "failed"


# A far mode that holds everything, and that no restart of the first round reaches.


def far_mode(logsumexp, square_sum):
    """A mode of sd .3 at zero, and one of sd .5 at (9, 9) with 60 nats more, where no start within 2 of zero leads to."""

    def potential(z):
        near = -0.5 * square_sum(z["a"] / 0.3)
        far = 60.0 - 0.5 * square_sum((z["a"] - 9.0) / 0.5)
        return -logsumexp(near, far)

    return potential


FAR = {"jax": far_mode(jax.numpy.logaddexp, lambda x: (x**2).sum()),
       "torch": far_mode(torch.logaddexp, lambda x: (x**2).sum())}  # fmt: skip


def fit_far(backend):
    options = {"seed": 1} if backend.name == "pyro" else {}
    dft = backend.potential(
        FAR["torch" if backend.name == "pyro" else "jax"], initial_params={"a": backend.array(np.zeros(2))},
        init_strategy=None, experimental=Experimental(precondition_steps=60), restarts=4, num_draws=1000, num_chains=2,
        refine_steps=4, **options,
    )  # fmt: skip
    backend.run(dft)
    return dft


@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
def test_a_far_mode_with_all_the_weight_is_served(backend):
    dft = fit_far(backend)
    report = dft.diagnostics()
    draws = np.asarray(dft.get_samples()["a"])
    # 1,000 draws: standard errors of a mean .016, of a sd .011.
    assert draws.mean(0) == pytest.approx([9.0, 9.0], abs=0.064)
    assert draws.std(0) == pytest.approx([0.5, 0.5], abs=0.05)
    assert report["status"] == "converged"
    assert report["optima"]["shortfall"] < 1


@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
def test_draws_that_stay_where_there_is_nothing_are_failed(backend, monkeypatch):
    """The second line of defence, with the first one taken away: each chain keeps its own restart."""
    monkeypatch.setattr(mode_search._Search, "starts", lambda self, own, best, light: own)
    with pytest.warns(UserWarning, match="more evidence than the draws account for"):
        report = fit_far(backend).diagnostics()
    assert report["status"] == "failed"
    assert "wrong mode" in report["alarms"]
    # In nats: 60, and the volume of the modes, (.5 / .3)^2.
    assert report["optima"]["shortfall"] == pytest.approx(60 + 2 * np.log(5 / 3), abs=0.5)
