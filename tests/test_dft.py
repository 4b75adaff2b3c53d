"""`DFT`, the inference class, as its users meet it: train, draw, report, save and load."""

from __future__ import annotations

import inspect
import json
import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from dft_fits import Y, equal
from pyro.infer import Predictive
from quick import (
    GAUSSIAN,
    NETWORK,
    known_mean,
    known_mean_posterior,
    line,
    line_data,
    mean_error,
    minibatched,
    schools,
    schools_data,
)

from pyro_dft import DFT, FidelityWarning, ModelError
from pyro_dft.experimental import grouped
from pyro_dft.judging.verdict import Diagnostics

# A fit of a second may be doubted. Whether it is doubted rightly is tested elsewhere.
pytestmark = [pytest.mark.filterwarnings("ignore:the fit is"), pytest.mark.usefixtures("brief_surrogate")]


MEAN, SD = known_mean_posterior(Y)


@pytest.fixture(scope="module")
def fitted():
    """One chain, Gaussian only."""
    dft = DFT(line, disable_progbar=True, **GAUSSIAN)
    dft.run(*line_data())
    return dft


@pytest.fixture(scope="module")
def chains():
    """Three chains with networks."""
    dft = DFT(known_mean, disable_progbar=True, num_chains=3, **NETWORK)
    dft.run(Y)
    return dft


class TestRun:
    @pytest.mark.parametrize("refine_steps", [0, None])
    def test_draws_are_those_of_the_posterior(self, chains, refine_steps):
        mu = chains.get_samples(6000, refine_steps=refine_steps)["mu"]
        # Monte Carlo error of the sd is SD / sqrt(2 n). The raw sampler was hardly trained: 0.1 sd on top.
        slack = 0.1 if refine_steps == 0 else 0.0
        assert abs(float(mu.mean()) - MEAN) < (slack + 4 / 6000**0.5) * SD
        assert abs(float(mu.std()) / SD - 1) < slack + 4 / 12000**0.5

    def test_the_progress_bar_shows_phase_and_loss(self, monkeypatch, capsys):
        monkeypatch.delenv("CI", raising=False)
        DFT(known_mean, **NETWORK).run(Y)
        shown = capsys.readouterr().err
        for text in ("gaussian", "-elbo=", "kl", "dft", "fisher gap=", "measuring", "100%"):
            assert text in shown
        assert "it/s" not in shown  # iterations of different phases have no common rate

    def test_the_progress_bar_says_how_far_chains_have_come(self, monkeypatch, capsys):
        monkeypatch.delenv("CI", raising=False)
        DFT(known_mean, train="never", num_draws=400).run(Y)
        shown = capsys.readouterr().err
        assert re.search(r"chains \([\d,]+ gradients\)", shown)
        time = r"[\d.]+ (µs|ms|s)"
        assert re.search(rf"chains \([\d,]+ gradients of {time}, [\d,]+ of [\d,]+ effective draws", shown)

    @pytest.mark.parametrize("quiet", ["argument", "environment"])
    def test_the_progress_bar_can_be_hidden(self, monkeypatch, capsys, quiet):
        monkeypatch.delenv("CI", raising=False)
        if quiet == "environment":
            monkeypatch.setenv("CI", "1")
        DFT(known_mean, disable_progbar=quiet == "argument", **GAUSSIAN).run(Y)
        assert capsys.readouterr().err == ""

    def test_a_second_run_forgets_the_first(self):
        dft = DFT(known_mean, disable_progbar=True, **GAUSSIAN)
        dft.run(Y)
        first = dft.diagnostics()["gradient_evaluations"]
        dft.run(Y + 10)
        assert mean_error(dft.get_samples()["mu"], known_mean_posterior(Y + 10)[0]) < 4
        assert dft.diagnostics()["gradient_evaluations"] < 2 * first

    @pytest.mark.parametrize("objective", ["dft-paper", "kl", "dft"])
    def test_every_objective_runs_and_is_named(self, objective):
        dft = DFT(
            known_mean,
            disable_progbar=True,
            **grouped(NETWORK | {"objective": objective, "dft_fraction": 0.0}),
        )
        dft.run(Y)
        report = dft.diagnostics()
        assert report["objective"] == objective
        assert np.isfinite(report["fisher_gap"])
        assert (report["refine_steps"] == 0) == (GAUSSIAN["refine_steps"] == 0)

    def test_minibatches(self):
        y = torch.linspace(-1, 3, 40)
        dft = DFT(minibatched, disable_progbar=True, **grouped(GAUSSIAN | {"precondition_steps": 150}))
        dft.run(y)
        mean, sd = known_mean_posterior(y)
        mu = dft.get_samples(2000)["mu"]
        assert mean_error(mu, mean) < 4
        assert abs(float(mu.std()) / sd - 1) < 4 / 4000**0.5

    def test_enumerated_sites(self):
        def mixture(y):
            loc = pyro.sample("loc", dist.Normal(torch.tensor([-2.0, 2.0]), 0.5).to_event(1))
            with pyro.plate("data", len(y)):
                k = pyro.sample("k", dist.Bernoulli(0.5))
                pyro.sample("y", dist.Normal(loc[k.long()], 1.0), obs=y)

        dft = DFT(mixture, disable_progbar=True, **GAUSSIAN)
        dft.run(torch.tensor([-2.0, -1.5, 2.0, 2.5]))
        assert set(dft.get_samples()) == {"loc"}

    def test_float64(self):
        torch.set_default_dtype(torch.float64)
        dft = DFT(known_mean, disable_progbar=True, **NETWORK)
        dft.run(Y.double())
        assert dft.get_samples(10, refine_steps=0)["mu"].dtype == torch.float64

    def test_initial_params_are_started_from(self):
        seen = []

        def strategy(site):
            seen.append(site["name"])
            return torch.tensor(0.0)

        def far(y):
            mu = pyro.sample("mu", dist.Normal(0.0, 1000.0))
            pyro.sample("y", dist.Cauchy(mu, 1e-3), obs=y)

        # From the default start, 900 sds of the posterior away, the score of a Cauchy likelihood hardly
        # points anywhere.
        dft = DFT(far, initial_params={"mu": torch.tensor(900.0)}, disable_progbar=True, **GAUSSIAN)
        dft.run(torch.tensor(900.0))
        assert abs(float(dft.get_samples()["mu"].median()) - 900.0) < 0.01
        DFT(known_mean, init_strategy=strategy, disable_progbar=True, **GAUSSIAN).run(Y)
        assert set(seen) == {"mu"}

    def test_a_potential_takes_the_place_of_a_model(self):
        def potential(z):
            return 0.5 * ((z["a"] - 3.0) ** 2).sum() + (0.5 * z["b"] ** 2 / 0.25).sum()

        dft = DFT(
            potential_fn=potential,
            initial_params={"a": torch.zeros(2), "b": torch.zeros(())},
            transforms={"b": dist.transforms.ExpTransform().inv},
            disable_progbar=True,
            **GAUSSIAN,
        )
        dft.run()
        draws = dft.get_samples(3000)
        assert {name: value.shape for name, value in draws.items()} == {"a": (3000, 2), "b": (3000,)}
        assert mean_error(draws["a"][:, 0], 3.0) < 4
        assert mean_error(draws["b"].log(), 0.0) < 4
        assert abs(float(draws["b"].log().std()) / 0.5 - 1) < 4 / 6000**0.5


class TestGetSamples:
    def test_shapes(self, chains, fitted):
        kept = GAUSSIAN["num_draws"] // 3 * 3
        assert chains.get_samples()["mu"].shape == (kept,)
        assert chains.get_samples(group_by_chain=True)["mu"].shape == (3, kept // 3)
        assert chains.get_samples(7, group_by_chain=True)["mu"].shape == (3, 7)
        assert chains.get_samples(refine_steps=1)["mu"].shape == (GAUSSIAN["num_draws"],)
        shapes = {name: tuple(value.shape) for name, value in fitted.get_samples(5).items()}
        assert shapes == {"slope": (5, 2), "scale": (5,), "mean": (5, 20)}

    def test_none_returns_the_kept_draws_and_a_number_new_ones(self, fitted):
        assert equal(fitted.get_samples(), fitted.get_samples())
        assert not equal(fitted.get_samples(200), fitted.get_samples(200))

    def test_chains_share_any_number_of_draws_evenly(self, chains, monkeypatch):
        def marked(backend, fit, each, refine_steps, *, rng):
            yield torch.arange(3.0)[:, None, None].expand(3, each, 1), {}

        monkeypatch.setattr("pyro_dft.interface.drawing.new_blocks", marked)
        for count in (1, 2, 4, 6, 8):
            served = torch.bincount(chains.get_samples(count)["mu"].long(), minlength=3)
            assert int(served.sum()) == count
            assert int(served.max() - served.min()) <= 1

    def test_many_draws_are_raw_unless_asked_otherwise(self, fitted):
        limit = fitted.settings.experimental.refine_limit

        def gradients(*args, **kwargs):
            before = fitted.diagnostics()["gradient_evaluations"]
            fitted.get_samples(*args, **kwargs)
            return fitted.diagnostics()["gradient_evaluations"] - before

        each = GAUSSIAN["refine_steps"] * fitted.settings.fixed_leapfrog_steps + 1
        assert gradients(100) == 100 * each
        assert gradients(100, refine_steps=0) == gradients(limit + 1) == 0

    def test_deterministic_sites_belong_to_the_draws(self, fitted):
        x, _ = line_data()
        draws = fitted.get_samples()
        torch.testing.assert_close(draws["mean"], draws["slope"] @ x.T)


class TestStep:
    def test_a_loop_in_place_of_run(self):
        dft = DFT(known_mean, disable_progbar=True, **NETWORK)
        losses = [dft.step(Y) for _ in range(100)]
        assert all(isinstance(loss, float) and np.isfinite(loss) for loss in losses)
        report = dft.diagnostics()
        assert report["iterations"] < 100  # the plan is complete, and the other calls trained no more
        assert report["objective"] in ("kl", "dft")
        assert mean_error(dft.get_samples(1000)["mu"], MEAN) < 4

    @pytest.mark.parametrize("first", [3, 20])  # within the Gaussian phase, and within the network's
    def test_draws_on_the_way_do_not_end_the_training(self, first):
        settings = grouped(NETWORK | {"precondition_steps": 30})
        dft, undisturbed = (DFT(known_mean, disable_progbar=True, **settings) for _ in range(2))
        for _ in range(first):
            dft.step(Y)
            undisturbed.step(Y)
        assert dft.get_samples()["mu"].shape == (200,)
        assert dft.diagnostics()["iterations"] == first
        for _ in range(60 - first):
            dft.step(Y)
            undisturbed.step(Y)
        assert dft.diagnostics()["iterations"] == undisturbed.diagnostics()["iterations"] > first
        assert mean_error(dft.get_samples(1000)["mu"], MEAN) < 4

    def test_minibatches_and_full_data_at_the_end(self):
        def scaled(y, size):
            mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
            with pyro.plate("data", len(y)), pyro.poutine.scale(scale=size / len(y)):
                pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

        y = torch.linspace(-1.0, 3.0, 30)[torch.randperm(30, generator=torch.Generator().manual_seed(0))]
        dft = DFT(scaled, disable_progbar=True, **grouped(GAUSSIAN | {"precondition_steps": 90}))
        for i in range(90):
            dft.step(y[i % 3 * 10 :][:10], 30)
        dft.step(y, 30)
        mean, sd = known_mean_posterior(y)
        mu = dft.get_samples()["mu"]  # refined twice on the full data: within 0.2 sd whatever came before
        assert abs(float(mu.mean()) - mean) < (0.2 + 4 / 200**0.5) * sd

    def test_unusable_data_leave_the_training_alone(self):
        # Enough transitions that a short fit is right.
        dft = DFT(schools, disable_progbar=True, **GAUSSIAN | {"refine_steps": 20})
        effect, error = schools_data()
        dft.step(effect, error)
        with pytest.raises(ModelError, match="change the latent sites"):
            dft.step(effect[:4], error[:4])
        with pytest.raises(ModelError, match="'y' holds 1 NaN"):
            dft.step(effect.clone().index_fill_(0, torch.tensor(2), torch.nan), error)
        for _ in range(40):
            dft.step(effect, error)
        assert dft.diagnostics()["status"] == "converged"
        assert dft.get_samples()["raw"].shape == (200, 8)

    def test_after_run_a_new_training_starts(self):
        dft = DFT(known_mean, disable_progbar=True, **GAUSSIAN)
        dft.run(Y)
        dft.step(Y + 50)
        with pytest.warns(FidelityWarning):  # one step is not enough
            assert dft.diagnostics()["iterations"] == 1

    def test_new_data_after_the_training_are_measured_anew(self):
        dft = DFT(known_mean, disable_progbar=True, **GAUSSIAN)
        for _ in range(60):
            dft.step(Y)
        assert dft.diagnostics()["status"] == "converged"
        dft.step(Y + 50)
        with pytest.warns(FidelityWarning, match="move|hardly ever accepted"):
            dft.diagnostics()


class TestReports:
    def test_summary_is_printed(self, fitted, capsys):
        fitted.summary()
        text = capsys.readouterr().out
        assert all(name in text for name in ("mean", "mcse", "approx_error", "slope[1]", "scale"))
        rows = fitted.summary_table(prob=0.5).rows
        kept = fitted.get_samples()
        assert rows["scale"]["mean"] == pytest.approx(float(kept["scale"].mean()), rel=1e-5)
        assert "25.0%" in rows["scale"]

    def test_r_hat_is_not_available_with_one_chain(self, fitted, chains):
        assert "n/a" in str(fitted.summary_table())
        assert fitted.diagnostics()["r_hat"] is None
        assert "n/a" not in str(chains.summary_table())
        assert chains.diagnostics()["r_hat"] < 1.05

    def test_summary_compares_the_two_errors(self, fitted, monkeypatch):
        monkeypatch.setattr(
            "pyro_dft.judging.verdict.approximation_error", lambda before, after: 0.05 + 0 * after[0, 0]
        )
        table = fitted.summary_table()
        # 200 independent draws: an mcse of 0.07 sd.
        assert "exceeds" not in str(table)
        monkeypatch.setattr(
            "pyro_dft.judging.verdict.approximation_error", lambda before, after: 0.1 + 0 * after[0, 0]
        )
        table = fitted.summary_table()
        assert "approx_error exceeds mcse for" in str(table)
        assert table.rows["scale"]["approx_error"] == pytest.approx(0.1)

    def test_every_key_of_the_diagnostics_is_documented(self, chains, fitted):
        documented = inspect.getdoc(Diagnostics).split("Keys:")[1]
        for report in (chains.diagnostics(), fitted.diagnostics()):
            assert {key for key in report if key not in documented} == set()
            assert {key for key in report if key not in str(report)} == {"warnings"}  # there are none
            assert json.loads(json.dumps(report.to_json())) == report.to_json()
            assert report.to_json().keys() == report.keys()

    def test_costs_are_counted(self, fitted):
        report = fitted.diagnostics()
        assert 0 < sum(report["phase_seconds"].values()) <= report["seconds"]
        assert set(report["phase_gradients"]) >= {"start", "gaussian", "refinement"}
        assert 0 < sum(report["phase_gradients"].values()) <= report["gradient_evaluations"]
        assert report["cpu_seconds"] > 0
        assert report["iterations"] <= GAUSSIAN["experimental"].precondition_steps


class TestGuide:
    def test_new_predictors_of_another_length(self, fitted):
        x = line_data()[0][:7]
        drawn = Predictive(line, guide=fitted.guide, num_samples=50)(x)
        assert drawn["y"].shape == (50, 7)
        slope = drawn["slope"].reshape(50, 2)
        torch.testing.assert_close(drawn["mean"], slope @ x.T)

    @pytest.mark.parametrize("parallel", [False, True])
    def test_whole_draws_are_served(self, parallel):
        dft = DFT(schools, disable_progbar=True, **GAUSSIAN)
        dft.run(*schools_data())
        drawn = Predictive(schools, guide=dft.guide, num_samples=100, parallel=parallel)(
            None, schools_data()[1]
        )
        assert drawn["y"].shape == (100, 8)
        # 100 of 200 draws, with replacement: 79 different ones expected, with an sd of 3.
        assert len(torch.unique(drawn["mu"])) > 65
        kept = dft.get_samples()
        for i in range(100):
            (j,) = torch.nonzero(kept["mu"] == drawn["mu"].flatten()[i])[0]
            torch.testing.assert_close(drawn["raw"].reshape(100, 8)[i], kept["raw"][j])
            torch.testing.assert_close(drawn["theta"].reshape(100, 8)[i], kept["theta"][j])

    def test_as_a_posterior_for_predictive(self, fitted):
        x, _ = line_data()
        samples = {name: fitted.get_samples(30)[name] for name in ("slope", "scale")}
        assert Predictive(line, samples)(x)["y"].shape == (30, 20)
