"""`DFT.to_inference_data`, from a fit to what ArviZ makes of it."""

from __future__ import annotations

import json
import sys
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from quick import GAUSSIAN, known_mean, line, line_data, schools, schools_data

import pyro_dft
from pyro_dft import DFT, ModelError
from pyro_dft.interface.inference_data import LIKELIHOOD_LIMIT

# A fit of a second may be doubted. Whether it is doubted rightly is tested elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:the fit is")

LETTERS = list("ABCDEFGH")


@pytest.fixture(scope="module")
def arviz():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ 0.23 announces 1.0 at import
        import arviz
    return arviz


def fit(model, *args, **changed):
    dft = DFT(model, disable_progbar=True, **{**GAUSSIAN, **changed})
    dft.run(*args)
    return dft


@pytest.fixture(scope="module")
def eight():
    """Two chains of eight schools."""
    return fit(schools, *schools_data(), num_chains=2, num_draws=400)


@pytest.fixture(scope="module")
def full(eight):
    return eight.to_inference_data(
        posterior_predictive=True,
        prior=True,
        constant_data={"error": schools_data()[1]},
        coords={"school": LETTERS},
    )


def groups_of(data):
    """Names of the groups of either kind of object."""
    return set(data.children) if hasattr(data, "children") else set(data.groups())


class TestGroups:
    def test_all_groups_are_there_on_request(self, full):
        assert groups_of(full) == {
            "posterior", "sample_stats", "unconstrained_posterior", "observed_data", "log_likelihood",
            "posterior_predictive", "prior", "prior_predictive", "constant_data",
        }  # fmt: skip

    def test_default_groups(self, eight):
        assert groups_of(eight.to_inference_data(50)) == {
            "posterior", "sample_stats", "unconstrained_posterior", "observed_data", "log_likelihood",
        }  # fmt: skip

    def test_posterior(self, eight, full):
        kept = eight.get_samples(group_by_chain=True)
        assert set(full.posterior) == {"mu", "tau", "raw", "theta"}
        for name, value in kept.items():
            np.testing.assert_array_equal(full.posterior[name], value)
        assert full.posterior["raw"].dims == full.posterior["theta"].dims == ("chain", "draw", "school")
        assert list(full.posterior["school"].values) == LETTERS

    def test_number_of_draws(self, eight):
        data = eight.to_inference_data(30)
        assert data.posterior["mu"].shape == (2, 30)
        assert data.log_likelihood["y"].shape == (2, 30, 8)

    def test_dimensions_of_the_user(self, eight):
        data = eight.to_inference_data(20, dims={"theta": ["town"]}, coords={"town": LETTERS})
        assert data.posterior["theta"].dims == ("chain", "draw", "town")
        assert data.posterior["raw"].dims == ("chain", "draw", "school")

    def test_log_likelihood(self, full):
        effect, error = schools_data()
        theta = torch.tensor(full.posterior["theta"].values)
        expected = torch.distributions.Normal(theta, error).log_prob(effect)
        np.testing.assert_allclose(full.log_likelihood["y"], expected, rtol=1e-4, atol=1e-5)
        assert full.log_likelihood["y"].dims == ("chain", "draw", "school")

    def test_log_density(self, eight, full):
        """`lp` is the density of the unconstrained coordinates, with the Jacobian of the transforms."""
        effect, error = schools_data()
        site = {name: torch.tensor(full.posterior[name].values) for name in full.posterior}
        by_hand = (
            torch.distributions.Normal(0.0, 5.0).log_prob(site["mu"])
            + torch.distributions.HalfNormal(5.0).log_prob(site["tau"])
            + site["tau"].log()
            + torch.distributions.Normal(0.0, 1.0).log_prob(site["raw"]).sum(-1)
            + torch.distributions.Normal(site["theta"], error).log_prob(effect).sum(-1)
        )
        np.testing.assert_allclose(full.sample_stats["lp"], by_hand, rtol=1e-4)
        np.testing.assert_allclose(
            full.unconstrained_posterior["tau"], site["tau"].log(), rtol=1e-3, atol=1e-4
        )

    def test_diverging_is_what_the_transitions_did(self, eight, full):
        assert full.sample_stats["diverging"].shape == (2, 200)
        flags = eight.parts.backend.arrays.numpy(eight.parts.result.statistics()["diverging"])
        np.testing.assert_array_equal(full.sample_stats["diverging"], flags)

    def test_data(self, full):
        effect, error = schools_data()
        np.testing.assert_array_equal(full.observed_data["y"], effect)
        assert full.observed_data["y"].dims == ("school",)
        np.testing.assert_array_equal(full.constant_data["error"], error)

    def test_replicated_data(self, full):
        theta, y = full.posterior["theta"].values, full.posterior_predictive["y"].values
        assert y.shape == (2, 200, 8)
        # One replicate for each draw: (y - theta) / error are 3200 independent standard normals.
        z = (y - theta) / schools_data()[1].numpy()
        assert abs(z.mean()) < 4 / 3200**0.5
        assert abs(z.std() - 1) < 4 / 6400**0.5

    def test_prior(self, full):
        assert set(full.prior) == {"mu", "tau", "raw", "theta"}
        assert full.prior["mu"].shape == (2, 200)
        assert abs(float(full.prior["mu"].std()) / 5 - 1) < 4 / 800**0.5
        assert full.prior_predictive["y"].shape == (2, 200, 8)

    def test_attributes(self, eight, full):
        for attrs in (full.attrs, full.posterior.attrs):
            assert attrs["inference_library"] == "pyro_dft"
            assert attrs["inference_library_version"] == pyro_dft.__version__
            assert attrs["backend"] == "pyro"
            assert json.loads(attrs["settings"]) == eight.settings.to_json()
            assert attrs["sampling_time"] > 0
            assert attrs["status"] == "converged"
            assert "independent draws" in attrs["draws"]

    def test_files(self, full, tmp_path, arviz):
        full.to_netcdf(tmp_path / "fit.nc")
        read = arviz.from_netcdf(tmp_path / "fit.nc")
        np.testing.assert_array_equal(read.posterior["theta"], full.posterior["theta"])
        assert read.posterior.attrs["settings"] == full.posterior.attrs["settings"]


class TestFunctionsOfArviz:
    @pytest.fixture(autouse=True)
    def _quiet(self):
        import matplotlib

        matplotlib.use("Agg")
        with warnings.catch_warnings():
            # What ArviZ and matplotlib warn of among themselves is not what is tested here.
            warnings.simplefilter("ignore")
            yield
            import matplotlib.pyplot

            matplotlib.pyplot.close("all")

    def test_summary(self, arviz, full, eight):
        table = arviz.summary(full, var_names=["mu", "theta"])
        assert list(table.index) == ["mu", *(f"theta[{letter}]" for letter in LETTERS)]
        # ArviZ 0.x rounds to three decimals, 1.x to strings of two significant digits or so.
        mean = eight.summary_table().rows["mu"]["mean"]
        assert float(table.loc["mu", "mean"]) == pytest.approx(mean, abs=0.1)

    def test_plots(self, arviz, full):
        arviz.plot_trace(full, var_names=["mu", "tau"])
        plot_pair = arviz.plot_pair
        if int(arviz.__version__.split(".")[0]) < 1:
            plot_pair(full, var_names=["mu", "tau"], divergences=True)
        else:
            plot_pair(full, var_names=["mu", "tau"])

    def test_loo(self, arviz, full):
        loo = arviz.loo(full)
        assert loo.n_data_points == 8
        assert np.isfinite(loo.iloc[0] if hasattr(loo, "iloc") else loo.elpd)


class TestModelsOfManyKinds:
    def test_enumerated_models(self):
        def mixture(y):
            loc = pyro.sample("loc", dist.Normal(torch.tensor([-2.0, 2.0]), 0.5).to_event(1))
            with pyro.plate("data", len(y)):
                k = pyro.sample("k", dist.Bernoulli(0.5))
                pyro.sample("y", dist.Normal(loc[k.long()], 1.0), obs=y)

        y = torch.tensor([-2.0, -1.5, 2.0, 2.5])
        data = fit(mixture, y).to_inference_data(posterior_predictive=True)
        loc = torch.tensor(data.posterior["loc"].values)[..., None, :]
        expected = torch.distributions.Normal(loc, 1.0).log_prob(y[:, None]).logsumexp(-1) + np.log(0.5)
        np.testing.assert_allclose(data.log_likelihood["y"], expected, rtol=1e-4)
        assert data.posterior_predictive["y"].shape == (1, 200, 4)

    def test_without_a_pointwise_likelihood(self):
        def shared(y):
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
            sign = pyro.sample("sign", dist.Bernoulli(0.5))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(loc + sign, 1.0), obs=y)

        dft = fit(shared, torch.tensor([0.5, 1.0, 1.5]))
        assert "log_likelihood" not in groups_of(dft.to_inference_data(20))
        with pytest.raises(ModelError, match="'y'"):
            dft.to_inference_data(20, log_likelihood=True)

    def test_without_data(self):
        def prior():
            pyro.sample("p", dist.Dirichlet(torch.ones(3)))

        data = fit(prior).to_inference_data(prior=True)
        assert groups_of(data) == {"posterior", "sample_stats", "unconstrained_posterior", "prior"}
        assert data.posterior["p"].shape == (1, 200, 3)
        assert data.unconstrained_posterior["p"].shape == (1, 200, 2)

    def test_a_potential_has_no_groups_that_need_a_model(self):
        dft = DFT(
            potential_fn=lambda z: (0.5 * z["a"] ** 2).sum(),
            initial_params={"a": torch.zeros(2)},
            disable_progbar=True,
            **GAUSSIAN,
        )
        dft.run()
        assert groups_of(dft.to_inference_data()) == {"posterior", "sample_stats", "unconstrained_posterior"}
        for group in ("log_likelihood", "posterior_predictive", "prior"):
            with pytest.raises(ModelError, match="potential_fn"):
                dft.to_inference_data(**{group: True})

    def test_large_likelihoods_on_request_only(self, monkeypatch):
        dft = fit(line, *line_data())
        monkeypatch.setattr("pyro_dft.interface.inference_data.LIKELIHOOD_LIMIT", 200 * 20 - 1)
        assert "log_likelihood" not in groups_of(dft.to_inference_data())
        assert "log_likelihood" in groups_of(dft.to_inference_data(199))
        assert "log_likelihood" in groups_of(dft.to_inference_data(log_likelihood=True))
        assert LIKELIHOOD_LIMIT >= 1e7
        assert "log_likelihood" not in groups_of(dft.to_inference_data(20, log_likelihood=False))


def test_arviz_base_alone(monkeypatch):
    """Where only arviz-base is installed, the same call gives a DataTree."""
    import xarray

    dft = fit(known_mean, torch.tensor([1.0, 2.0]))
    monkeypatch.setitem(sys.modules, "arviz", None)
    data = dft.to_inference_data(posterior_predictive=True, prior=True)
    assert isinstance(data, xarray.DataTree)
    assert {"posterior", "log_likelihood", "prior", "unconstrained_posterior"} <= groups_of(data)
    np.testing.assert_array_equal(data["posterior"]["mu"], dft.get_samples(group_by_chain=True)["mu"])
