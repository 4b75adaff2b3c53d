"""Chains of `MCMC` that run in one process share a training: each is served kept draws of its own, and then new ones."""

from __future__ import annotations

import warnings

import jax
import numpy as np
import pyro
import pytest
import torch
from backends import BACKENDS, Y
from numpyro.infer import MCMC as NumPyroMCMC
from pyro.infer import MCMC as PyroMCMC
from quick import all_distinct, known_mean_posterior
from scipy import stats

from pyro_dft import ModelError, Settings
from pyro_dft.interface.mcmc_run import MOST_KEPT, Asked, Part, kept_draws
from pyro_dft.recipe.trainer import Trainer

PYRO, NUMPYRO = BACKENDS
# By ensembles: the rest of the recipe as it is.
OPTIONS = {"train": "never", "restarts": 2}
SERVED = [(PYRO, "sequential"), (NUMPYRO, "sequential"), (NUMPYRO, "vectorized")]


@pytest.fixture(params=SERVED, ids=lambda one: f"{one[0]}-{one[1]}")
def served(request, monkeypatch):
    """Runs chains of a model in `MCMC`: (the kernel, draws of `mu` (chains, draws))."""
    backend, method = request.param
    monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: 1)

    def run(chains, draws, warm_up=3, model="known_mean", data=Y, **options):
        seed = {"seed": 3} if backend is PYRO else {}
        kernel = backend.DFTKernel(getattr(backend.models, model), **OPTIONS, **seed, **options)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="num_chains=.* is more than available_cpu")
            if backend is PYRO:
                mcmc = PyroMCMC(kernel, draws, warm_up, num_chains=chains, disable_progbar=True)
                mcmc.run(torch.as_tensor(data))
            else:
                mcmc = NumPyroMCMC(
                    kernel, num_warmup=warm_up, num_samples=draws, num_chains=chains, chain_method=method, progress_bar=False
                )  # fmt: skip
                mcmc.run(jax.random.key(3), data)
        return kernel, np.asarray(mcmc.get_samples(group_by_chain=True)["mu"], float)

    return run


@pytest.fixture
def trainings(monkeypatch):
    """The number of draws that each training keeps."""
    made, plain = [], Trainer.finish

    def finish(self):
        found = plain(self)
        made.append(found.measurement.refined.shape[1])
        return found

    monkeypatch.setattr(Trainer, "finish", finish)
    return made


def test_parts_are_all_draws_once():
    rows = np.arange(4003)
    parts = [rows[Part(i, 4).rows(len(rows))] for i in range(4)]
    assert [len(part) for part in parts] == [1000] * 4
    np.testing.assert_array_equal(np.concatenate(parts), rows[:4000])
    np.testing.assert_array_equal(rows[Part().rows(len(rows))], rows)
    # Fewer draws than chains: each chain has one.
    assert [Part(i, 7).rows(3) for i in range(7)][5] == slice(2, 3)


@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
def test_as_many_draws_are_kept_as_a_run_asks_for(backend, monkeypatch):
    def kept(chains, draws, data=Y, **options):
        fit = backend.DFT(backend.models.known_mean, **options)
        arguments = ((backend.array(data),), {})
        return kept_draws(options, fit.settings, fit.parts.backend, Asked(chains, draws), arguments)

    assert kept(4, 1000) == {}  # what is kept anyway
    assert kept(4, 2000) == {"num_draws": 8000}
    assert kept(1, MOST_KEPT) == {"num_draws": MOST_KEPT}
    assert kept(2, MOST_KEPT) == {"num_draws": MOST_KEPT}
    monkeypatch.setattr("pyro_dft.interface.mcmc_run.MOST_NUMBERS", 5000)
    assert kept(4, 2000) == {"num_draws": 5000}
    monkeypatch.setattr("pyro_dft.interface.mcmc_run.MOST_NUMBERS", 3000)
    assert kept(4, 2000) == {}
    monkeypatch.undo()
    assert kept(4, None) == {}
    assert kept(4, 2000, num_draws=500) == {}
    assert kept(4, 2000, settings=Settings()) == {}


def test_each_chain_has_draws_of_its_own(served, trainings):
    kernel, mu = served(4, 1500)
    assert trainings == [6000]
    report = kernel.diagnostics()["dft"] if callable(kernel.diagnostics) else kernel.diagnostics[-1]
    assert report["status"] == "converged"
    for i in range(4):  # float32 has ties, and a state is repeated where a transition is rejected
        assert len(np.intersect1d(mu[i], np.delete(mu, i, 0))) < 0.02 * mu[i].size
    mean, sd = known_mean_posterior(torch.as_tensor(Y))
    # The fit ends with .3 of its draws effective, at the least over means, squares and tails; so has each chain its share.
    effective = 0.3 * mu.size
    assert abs(mu.mean() - mean) < 4 * sd / effective**0.5
    assert abs(mu.std() / sd - 1) < 4 / (2 * effective) ** 0.5
    for tail in (0.05, 0.95):
        share = (mu < stats.norm.ppf(tail, mean, sd)).mean()
        assert abs(share - tail) < 4 * (0.05 * 0.95 / effective) ** 0.5
    spread = mu.mean(1).std(ddof=1) / (sd / (effective / 4) ** 0.5)
    assert (
        0 < spread < (stats.chi2.isf(1e-4, 3) / 3) ** 0.5
    )  # the chains differ, and no more than they should


def test_what_is_beyond_the_kept_draws_is_new(served, trainings):
    _, few = served(2, 100, num_draws=200)
    _, more = served(2, 160, num_draws=200)
    assert trainings == [200, 200]
    np.testing.assert_array_equal(more[:, :100], few)
    assert all_distinct(more)
    assert np.isfinite(more).all()


def test_bad_data_are_refused_before_any_chain(served):
    with pytest.raises(ModelError, match="NaN"):
        served(3, 20, data=np.full(5, np.nan, np.float32))


@pytest.mark.filterwarnings("ignore:the fit is")
@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
def test_new_draws_are_made_in_partly_noncentred_coordinates_too(backend, monkeypatch):
    """One hierarchy is known well and one hardly: each is moved by its own amount, and new draws follow the kept ones."""
    dist, sample = backend.ppl.distributions, backend.ppl.sample
    y = backend.array(np.random.default_rng(0).normal(size=12))
    monkeypatch.setattr(
        f"pyro_dft.{backend.name}.backend.fitted_amounts", lambda own, sites: {"a": 0.0, "b": 0.75}
    )

    def model(y):
        mu, t, s = (sample(name, prior) for name, prior in (
            ("mu", dist.Normal(0.0, 5.0)), ("t", dist.HalfNormal(2.0)), ("s", dist.HalfNormal(2.0)),
        ))  # fmt: skip
        with backend.ppl.plate("few", 6):
            a = sample("a", dist.Normal(mu, t))
            sample("y", dist.Normal(a, 0.15), obs=y[:6])
        with backend.ppl.plate("many", 6):
            sample("z", dist.Normal(sample("b", dist.Normal(mu, s)), 3.0), obs=y[6:])

    kernel = backend.DFTKernel(
        model, train="never", num_draws=2000, **({"seed": 0} if backend is PYRO else {})
    )
    samples = backend.mcmc(kernel, 4000, 2, 1, y).get_samples()
    for name in ("mu", "t", "a", "b"):
        kept, new = np.split(np.asarray(samples[name], float).reshape(4000, -1), 2)
        # Kept draws are worth some 500.
        assert np.abs(kept.mean(0) - new.mean(0)).max() < 4 * (kept.std(0) * (2 / 500) ** 0.5).max()
        assert np.abs(np.log(kept.std(0) / new.std(0))).max() < 0.25


def test_a_chain_that_is_seeded_by_itself_is_what_its_seed_says(monkeypatch, trainings):
    """As Pyro's own tests ask of kernels: whichever chain comes first, and whatever ran before it."""
    monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: 1)

    def run(*seeds):
        left = list(seeds)

        class Seeded(PYRO.DFTKernel):
            def setup(self, *args, **kwargs):
                pyro.set_rng_seed(left.pop(0))
                super().setup(*args, **kwargs)

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="num_chains=.* is more than available_cpu")
            kernel = Seeded(PYRO.models.known_mean, **OPTIONS)
            mcmc = PyroMCMC(kernel, 100, 3, num_chains=len(seeds), disable_progbar=True)
            mcmc.run(torch.as_tensor(Y))
        return np.asarray(mcmc.get_samples(group_by_chain=True)["mu"])

    first, second = run(1, 2), run(2, 1)
    assert len(trainings) == 4
    np.testing.assert_array_equal(first, second[::-1])
    assert (first[0] != first[1]).all()
    # Chains that follow one of these without a seed of their own share its training.
    third = run(2, 2, 1)
    assert len(trainings) == 6
    assert (third[0] != third[1]).any()
