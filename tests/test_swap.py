"""NUTS becomes DFTKernel and nothing else: what users of either framework find, in both backends."""

from __future__ import annotations

import re

import numpy as np
import pytest
from backends import BACKENDS, Y
from quick import GAUSSIAN

from pyro_dft import ModelError
from pyro_dft.interface.progress import ProgressBar
from pyro_dft.recipe.fit import Progress

PYRO = BACKENDS[0]
PRECISION = 0.01 + len(Y)  # of `known_mean`
MEAN, SD = float(Y.sum()) / PRECISION, PRECISION**-0.5


@pytest.fixture(scope="module", params=BACKENDS, ids=repr)
def backend(request):
    return request.param


@pytest.fixture(scope="module")
def fitted(backend):
    """With chains, whose states are kept."""
    return backend.fitted(backend.dft("hierarchy", refine_steps=None, num_draws=1024, num_chains=2), Y)


def check_statistics(data, dim, chains, draws, fresh):
    stats = {name: np.asarray(value) for name, value in data.sample_stats.items()}
    assert stats.keys() == {"lp", "diverging", "acceptance_rate", "n_steps", "step_size", "energy"}
    assert {value.shape for value in stats.values()} == {(chains, draws)}
    assert stats["lp"].dtype == np.float64
    assert stats["diverging"].dtype == bool
    assert stats["n_steps"].dtype.kind == "i"
    rate = stats["acceptance_rate"]
    assert ((rate >= 0) & (rate <= 1)).all()
    assert 0.6 < rate.mean() < 1
    # One transition led to a kept draw, and several to a new one.
    assert (stats["n_steps"] % 2 == 0).all() if fresh else (stats["n_steps"] >= 1).all()
    assert (stats["step_size"] > 0).all()
    # Twice the kinetic energy is chi-squared with d degrees of freedom: transitions leave momenta as they are distributed.
    kinetic = stats["energy"] + stats["lp"]
    assert (kinetic >= -1e-3).all()
    assert abs(kinetic.mean() - dim / 2) < 5 * (dim / 2 / kinetic.size) ** 0.5
    assert abs(kinetic.var() / (dim / 2) - 1) < 5 * ((2 + 12 / dim) / kinetic.size) ** 0.5
    return stats


def test_sample_stats_are_those_of_the_transitions(backend, fitted, tmp_path):
    dim = 2 + len(Y)
    kept = check_statistics(fitted.to_inference_data(), dim, 2, 512, fresh=False)
    report = fitted.diagnostics()
    assert (kept["n_steps"] == round(report["ensemble"]["gradients_each"])).all()
    # The mean over the window, of which the kept draws are a part.
    assert abs(kept["acceptance_rate"].mean() - np.mean(report["acceptance"])) < 0.05
    new = check_statistics(fitted.to_inference_data(300), dim, 2, 300, fresh=True)
    assert (new["n_steps"] == report["refine_steps"] * report["ensemble"]["leapfrog_steps"]).all()
    fitted.save(tmp_path / "fit")
    loaded = backend.DFT.load(tmp_path / "fit", backend.models.hierarchy, disable_progbar=True)
    for name, value in check_statistics(loaded.to_inference_data(), dim, 2, 512, fresh=False).items():
        np.testing.assert_allclose(value, kept[name], rtol=1e-6, err_msg=name)


def test_summaries_end_with_the_verdict(fitted, capsys):
    fitted.summary()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"DFT: {fitted.diagnostics()['status']}")


def test_both_names_of_an_option(backend):
    start, other = {"mu": backend.array(1.0)}, {"mu": backend.array(2.0)}
    dft = backend.DFT(backend.models.known_mean, init_params=start, progress_bar=False)
    assert float(dft.initial_params["mu"]) == 1.0
    assert dft.disable_progbar
    for twice in (
        {"init_params": start, "initial_params": other},
        {"progress_bar": False, "disable_progbar": True},
    ):
        with pytest.raises(ValueError, match="is another name of .*: give one of them"):
            backend.DFT(backend.models.known_mean, **twice)
    with pytest.raises(ValueError, match="progress_bar=1: expected True or False"):
        backend.DFT(backend.models.known_mean, progress_bar=1)


def test_the_bar_names_the_phases_and_promises_nothing(backend, monkeypatch, capsys):
    monkeypatch.delenv("CI", raising=False)
    dft = backend.DFT(backend.models.known_mean, **GAUSSIAN)
    backend.run(dft, backend.array(Y))
    text = capsys.readouterr().err
    named = [
        text.index(f"{name}: ") for name in ("tracing the model", "gaussian", "searching modes", "chains")
    ]
    assert named == sorted(named)
    assert re.search(r"100%\|.*\[\d\d:\d\d, -elbo=", text)
    assert "it/s" not in text
    assert "<" not in text  # no time that is left


def test_the_bar_of_a_training_that_goes_on_begins_where_it_was_left(monkeypatch, capsys):
    monkeypatch.delenv("CI", raising=False)
    with ProgressBar(329) as bar:
        for step in range(130, 330):
            bar.update(Progress(step, 329, "kl", 0.1))
    last = capsys.readouterr().err.split("\r")[-1]
    assert "100%" in last
    assert " 329/329 " in last


def kernel_of(backend, model, *positional, **options):
    with pytest.warns(UserWarning, match="options of NUTS and HMC"):
        return backend.DFTKernel(model, *positional, **options)


def test_a_call_of_hmc_runs_as_it_stands(backend):
    """Its steps are leapfrog steps; a network for four steps would be of no use."""
    few = {"restarts": 2, "num_draws": 200, "seed": 2}
    kernel = kernel_of(backend, backend.models.known_mean, step_size=0.0855, num_steps=4, **few)
    mcmc = backend.mcmc(kernel, 300, 5, 1, backend.array(Y))
    mu = np.asarray(mcmc.get_samples()["mu"])
    # 200 nearly independent kept draws and new ones: standard errors of 300 draws with an ESS of half of that.
    assert abs(mu.mean() - MEAN) < 5 * SD / 150**0.5
    assert abs(mu.std() / SD - 1) < 5 / 300**0.5
    if backend is PYRO:
        assert kernel.num_steps == 4


def half_square(z):
    return 0.5 * (z["a"] ** 2).sum()


def test_a_potential_ignores_data_as_under_nuts(backend):
    kernel = backend.DFTKernel(None, half_square, initial_params={"a": backend.array([0.1, 0.2])}, **GAUSSIAN)
    samples = np.asarray(backend.mcmc(kernel, 300, 5, 1, backend.array(Y)).get_samples()["a"])
    assert samples.shape == (300, 2)
    assert np.abs(samples.mean(0)).max() < 4 / 300**0.5


def models_with_nothing_to_infer(ppl, array):
    dist = ppl.distributions
    return {
        "no site": (lambda: None, {}),
        "deterministic": (lambda: ppl.deterministic("x", array([1.0, 2.0])), {"x": (5, 2)}),
        "discrete": (lambda: ppl.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"}), {}),
        "one point": (lambda: ppl.sample("x", dist.Dirichlet(array([1.0]))), {"x": (5, 1)}),
    }


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the frameworks' own R-hat
@pytest.mark.parametrize("name", ["no site", "deterministic", "discrete", "one point"])
def test_models_with_nothing_to_infer_run(backend, name, capsys):
    model, shapes = models_with_nothing_to_infer(backend.ppl, backend.array)[name]
    if backend is PYRO and name == "deterministic":  # which Pyro's MCMC leaves out under any kernel
        shapes = {}
    mcmc = backend.mcmc(backend.DFTKernel(model), 5, 2, 1)
    samples = {name: np.asarray(value) for name, value in mcmc.get_samples().items()}
    assert {name: value.shape for name, value in samples.items()} == shapes
    assert all((value == value[:1]).all() for value in samples.values())
    (mcmc.summary if backend is PYRO else mcmc.print_summary)()
    assert capsys.readouterr().out.endswith("DFT: nothing to infer, as there is no continuous latent site\n")
    with pytest.raises(ModelError, match="nothing to infer|continuous site must remain"):
        backend.run(backend.DFT(model))  # which says why not


def test_a_model_that_cannot_be_summed_out_says_so(backend):
    with pytest.raises(ModelError, match="cannot be enumerated"):
        backend.mcmc(backend.DFTKernel(backend.models.endless_discrete), 5, 2, 1)


def test_what_a_kernel_does_not_know_is_refused(backend):
    with pytest.raises(ValueError, match="unknown setting 'min_step_size'"):
        backend.DFTKernel(backend.models.known_mean, min_step_size=1e-3)
