"""Networks that only raw draws need are trained when somebody asks for them; what is kept stays as it is."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from backends import BACKENDS

from pyro_dft.recipe.trainer import Trainer

# A brief network and brief surrogates: what is tested is when they are trained.
QUICK = {"num_steps": 1000, "width": 16, "depth": 1, "num_draws": 1000, "seed": 0}
# Mean and sd of the log of a Gamma(1) variable: minus Euler's constant, pi / sqrt(6).
MEAN, SD = -0.5772, 1.2825
# Its 5 % and 95 % points, log(-log(1 - p)).
TAILS = np.log(-np.log([0.95, 0.05]))


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


def skewed(backend, **options):
    """Two independent coordinates, each the log of a Gamma(1) variable: far from any Gaussian."""
    exp = backend.array([0.0, 0.0]).exp if backend.name == "pyro" else None

    def potential(sites):
        a = sites["a"]
        return ((a.exp() if exp else np.e**a) - a).sum()

    return backend.DFT(
        potential_fn=potential, initial_params={"a": backend.array([0.0, 0.0])}, disable_progbar=True,
        **{**QUICK, **options},
    )  # fmt: skip


def raw(dft, n):
    return np.asarray(dft.get_samples(n, refine_steps=0)["a"], float)


def test_raw_draws_train_the_network_and_nothing_else_changes(backend):
    dft = skewed(backend)
    backend.run(dft)
    first, before = dft.diagnostics(), np.asarray(dft.get_samples()["a"])
    assert first["objective"] == "gaussian"
    assert first["status"] == "converged"
    assert "kl" not in first["phase_gradients"]
    # New draws that are refined need no network.
    new = np.asarray(dft.get_samples(500)["a"], float)
    assert np.abs(new.mean(0) - MEAN).max() < 5 * SD / np.sqrt(500)
    assert dft.diagnostics()["objective"] == "gaussian"
    drawn = raw(dft, 4000)
    second = dft.diagnostics()
    assert second["objective"] == "kl"
    assert second["movement"]["kl"][0] < second["movement"]["gaussian"][0]
    assert (np.asarray(dft.get_samples()["a"]) == before).all()
    # Ten standard errors of the points of so many draws (about 2 sd / sqrt(n)): the network is small. Those of a Gaussian of the
    # right moments are off by .57 and .44 sd.
    assert np.abs(np.quantile(drawn, [0.05, 0.95], axis=0) - TAILS[:, None]).max() < 10 * 2 * SD / np.sqrt(
        4000
    )


def test_files_and_copies_hold_the_network(backend, tmp_path):
    dft = skewed(backend)
    backend.run(dft)
    kept = np.asarray(dft.get_samples()["a"])
    other = copy.deepcopy(dft)
    assert dft.diagnostics()["objective"] == other.diagnostics()["objective"] != "gaussian"
    dft.save(tmp_path / "fit.safetensors")
    again = type(dft).load(
        tmp_path / "fit.safetensors", potential_fn=dft.potential_fn, initial_params=dft.initial_params
    )
    assert again.diagnostics()["objective"] == dft.diagnostics()["objective"]
    assert (np.asarray(again.get_samples()["a"]) == kept).all()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"train": "always"}, {"checkpoint": True}], ids=["always", "checkpoint"])
def test_what_is_wanted_now_is_trained_now(backend, options, tmp_path):
    if "checkpoint" in options:
        options = {"checkpoint": tmp_path / "fit.checkpoint"}
    dft = skewed(backend, **options)
    backend.run(dft)
    assert dft.diagnostics()["objective"] != "gaussian"


def test_limits_count_the_fit_alone(backend):
    """Draws between the fit and the network are no part of what the fit may cost."""
    dft = skewed(backend, max_gradients=60_000)
    backend.run(dft)
    spent = sum(dft.diagnostics()["phase_gradients"].values())
    while dft.diagnostics()["gradient_evaluations"] < 60_000:
        dft.get_samples(2000)
    raw(dft, 10)
    after = dft.diagnostics()
    assert spent < 60_000 < after["gradient_evaluations"]
    assert after["objective"] == "kl"
    assert after["cut"] is None


@pytest.mark.slow
def test_an_interrupt_leaves_the_networks_put_off(backend, monkeypatch):
    dft = skewed(backend)
    backend.run(dft)
    kept = np.asarray(dft.get_samples()["a"])
    with monkeypatch.context() as patch:

        def interrupted(self):
            raise KeyboardInterrupt

        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            raw(dft, 10)
    assert (np.asarray(dft.get_samples()["a"]) == kept).all()
    assert dft.diagnostics()["objective"] == "gaussian"
    raw(dft, 10)
    assert dft.diagnostics()["objective"] == "kl"
