"""`DFT`, the inference class, as its users meet it: train, draw, report, save and load."""

from __future__ import annotations

import copy
import doctest
import importlib
import inspect
import json
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
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

from pyro_dft import DFT, FidelityWarning, ModelError, NotFittedError, SettingsError, StorageError
from pyro_dft.interface import storage
from pyro_dft.judging.verdict import Diagnostics

# A fit of a second may be doubted. Whether it is doubted rightly is tested elsewhere.
pytestmark = [pytest.mark.filterwarnings("ignore:the fit is"), pytest.mark.usefixtures("brief_surrogate")]

Y = torch.tensor([1.0, 2.0, 3.0, 2.5, 1.5])
MEAN, SD = known_mean_posterior(Y)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


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

    @pytest.mark.parametrize("objective", ["dft-paper", "kl", "fisher-partial"])
    def test_every_objective_runs_and_is_named(self, objective):
        dft = DFT(known_mean, disable_progbar=True, **NETWORK | {"objective": objective, "dft_fraction": 0.0})
        dft.run(Y)
        report = dft.diagnostics()
        assert report["objective"] == objective
        assert np.isfinite(report["fisher_gap"])
        assert (report["refine_steps"] == 0) == (GAUSSIAN["refine_steps"] == 0)

    def test_minibatches(self):
        y = torch.linspace(-1, 3, 40)
        dft = DFT(minibatched, disable_progbar=True, **GAUSSIAN | {"precondition_steps": 150})
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
        def marked(each, refine_steps):
            yield torch.arange(3.0)[:, None, None].expand(3, each, 1)

        monkeypatch.setattr(chains, "_blocks", marked)
        for count in (1, 2, 4, 6, 8):
            served = torch.bincount(chains.get_samples(count)["mu"].long(), minlength=3)
            assert int(served.sum()) == count
            assert int(served.max() - served.min()) <= 1

    def test_many_draws_are_raw_unless_asked_otherwise(self, fitted):
        limit = fitted.settings.refine_limit

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
        settings = NETWORK | {"precondition_steps": 30}
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
        dft = DFT(scaled, disable_progbar=True, **GAUSSIAN | {"precondition_steps": 90})
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
        assert report["iterations"] <= GAUSSIAN["precondition_steps"]


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


class TestFiles:
    def test_the_same_sampler_comes_back(self, fitted, tmp_path):
        path = tmp_path / "fit.safetensors"
        fitted.save(path)
        loaded = DFT.load(path, line, disable_progbar=True)
        assert equal(loaded.get_samples(), fitted.get_samples())
        assert str(loaded.summary_table()) == str(fitted.summary_table())
        assert loaded.diagnostics()["drift_raw"] == fitted.diagnostics()["drift_raw"]
        assert loaded.settings == fitted.settings
        assert (
            loaded.get_samples(3000)["slope"]
            .mean(0)
            .sub(fitted.get_samples(3000)["slope"].mean(0))
            .abs()
            .max()
            < 0.05
        )
        assert loaded.to_inference_data().observed_data["y"].shape == (20,)
        assert loaded.guide()["slope"].shape == (2,)
        loaded.save(tmp_path / "again.safetensors")
        assert equal(DFT.load(tmp_path / "again.safetensors", line).get_samples(), fitted.get_samples())

    def test_networks_and_chains(self, chains, tmp_path):
        chains.save(tmp_path / "fit")
        loaded = DFT.load(tmp_path / "fit", known_mean)
        assert loaded.num_chains == 3
        assert equal(loaded.get_samples(), chains.get_samples())
        state = chains.parts.backend.rng.get_state()
        loaded.parts.backend.rng.set_state(state)
        new = loaded.get_samples(10, refine_steps=0)
        chains.parts.backend.rng.set_state(state)
        assert equal(new, chains.get_samples(10, refine_steps=0))

    def test_non_centred_samplers(self, tmp_path):
        def centred(y, error):
            mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
            tau = pyro.sample("tau", dist.HalfNormal(5.0))
            with pyro.plate("school", len(y)):
                pyro.sample("y", dist.Normal(pyro.sample("theta", dist.Normal(mu, tau)), error), obs=y)

        dft = DFT(centred, disable_progbar=True, **GAUSSIAN)
        dft.run(*schools_data())
        assert dft.diagnostics()["coordinates"] == ["theta"]
        dft.save(tmp_path / "fit")
        loaded = DFT.load(tmp_path / "fit", centred)
        for name, value in dft.get_samples().items():
            torch.testing.assert_close(loaded.get_samples()[name], value)
        arrays, header = storage.load(tmp_path / "fit")
        header["sampler_layout"] = {"sites": []}
        self.rewrite(tmp_path / "fit", arrays, header)
        with pytest.raises(StorageError, match="coordinates"):
            DFT.load(tmp_path / "fit", centred)

    def test_a_potential(self, tmp_path):
        given = {"potential_fn": lambda z: (0.5 * z["a"] ** 2).sum(), "initial_params": {"a": torch.zeros(2)}}
        dft = DFT(**given, disable_progbar=True, **GAUSSIAN)
        dft.run()
        dft.save(tmp_path / "fit")
        assert equal(DFT.load(tmp_path / "fit", **given).get_samples(), dft.get_samples())
        with pytest.raises(StorageError, match="potential differs"):
            DFT.load(tmp_path / "fit", **given | {"potential_fn": lambda z: (0.6 * z["a"] ** 2).sum()})
        with pytest.raises(StorageError, match="'a'"):
            DFT.load(tmp_path / "fit", **given | {"initial_params": {"a": torch.zeros(3)}})

    def test_without_the_data(self, fitted, tmp_path):
        path = tmp_path / "fit"
        fitted.save(path, data=False)
        assert not any(name.startswith("arguments") for name in storage.load(path)[0])
        x, y = line_data()
        assert equal(DFT.load(path, line, x, y=y).get_samples(), fitted.get_samples())
        with pytest.raises(StorageError, match="does not hold the model's arguments: give them"):
            DFT.load(path, line)
        with pytest.raises(StorageError, match="potential differs"):
            DFT.load(path, line, x, y.roll(1))
        with pytest.raises(StorageError, match="potential differs"):
            DFT.load(path, line, x, y + 1e-3)

    def test_arguments_of_many_kinds(self, tmp_path):
        def model(data, *, scale, note=None, prior=()):
            mu = pyro.sample("mu", dist.Normal(prior[0], float(scale["sd"])))
            with pyro.plate("data", len(data["y"])):
                pyro.sample("y", dist.Normal(mu, 1.0), obs=data["y"])

        dft = DFT(model, disable_progbar=True, **GAUSSIAN)
        dft.run(
            {"y": Y, "n": 5, "flag": True}, scale={"sd": np.float64(2.0)}, note=None, prior=(0.5, "normal")
        )
        dft.save(tmp_path / "fit")
        assert equal(DFT.load(tmp_path / "fit", model).get_samples(), dft.get_samples())
        dft.run({"y": Y}, scale={"sd": 2.0}, note=object(), prior=[0.5])  # an argument that no file can hold
        dft.save(tmp_path / "fit")
        with pytest.raises(StorageError, match="give them"):
            DFT.load(tmp_path / "fit", model)
        DFT.load(tmp_path / "fit", model, {"y": Y}, scale={"sd": 2.0}, prior=[0.5])

    @pytest.mark.parametrize("cut", [0.0, 0.1, 0.9])
    def test_truncated(self, fitted, tmp_path, cut):
        path = tmp_path / "fit"
        fitted.save(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(cut * len(content))])
        with pytest.raises(StorageError, match="truncated"):
            DFT.load(path, line)

    def test_never_pickle(self, fitted, tmp_path):
        path = tmp_path / "fit"
        fitted.save(path)
        assert path.read_bytes()[8:9] == b"{"  # safetensors: a length, then JSON
        path.write_bytes(pickle.dumps({"mean": 1}))
        with pytest.raises(StorageError, match="not a safetensors file"):
            DFT.load(path, line)

    def test_another_model(self, fitted, tmp_path):
        path = tmp_path / "fit"
        fitted.save(path)

        def other_prior(x, y=None):
            slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.1).to_event(1))
            scale = pyro.sample("scale", dist.HalfNormal(1.0))
            with pyro.plate("row", len(x)):
                pyro.sample("y", dist.Normal(x @ slope, scale), obs=y)

        with pytest.raises(StorageError, match="potential differs"):
            DFT.load(path, other_prior)
        with pytest.raises(StorageError, match="does not run on"):
            DFT.load(path, known_mean)
        with pytest.raises(StorageError, match="another model.*'mu'"):
            DFT.load(path, known_mean, Y)

    def rewrite(self, path, arrays, header):
        for key in ("format", "version", "crc32"):
            header.pop(key)
        storage.save(path, arrays, header)
        return path

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda a, h: h["settings"].update(new_setting=1), "new_setting"),
            (lambda a, h: h.pop("settings"), "settings"),
            (lambda a, h: h.pop("layout"), "layout"),
            (lambda a, h: h.pop("diagnostics"), "diagnostics"),
            (lambda a, h: h.pop("objective"), "objective"),
            (lambda a, h: h.update(arguments={"odd": 1}), "odd"),
            (lambda a, h: a.pop("check.values"), "check.values"),
            (lambda a, h: a.pop("scale"), "missing tensors: scale"),
            (lambda a, h: a.pop("measured.raw"), "missing tensors: measured.raw"),
            (lambda a, h: a.update(extra=np.zeros(1)), "unexpected tensors: extra"),
            (lambda a, h: a.update(mean=a["mean"][:, :1]), "mean has shape"),
        ],
    )
    def test_incomplete(self, fitted, tmp_path, change, message):
        path = tmp_path / "fit"
        fitted.save(path)
        arrays, header = storage.load(path)
        change(arrays, header)
        with pytest.raises(StorageError, match=message):
            DFT.load(self.rewrite(path, arrays, header), line)

    def test_a_newer_format(self, fitted, tmp_path, monkeypatch):
        monkeypatch.setattr(storage, "FORMAT", storage.FORMAT + 1)
        fitted.save(tmp_path / "fit")
        monkeypatch.undo()
        with pytest.raises(StorageError, match="newer"):
            DFT.load(tmp_path / "fit", line)

    def test_copies(self, fitted, chains):
        for copied in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
            assert equal(copied.get_samples(), fitted.get_samples())
            assert copied.get_samples(10)["slope"].shape == (10, 2)
        assert equal(copy.copy(chains).get_samples(), chains.get_samples())
        untrained = pickle.loads(pickle.dumps(DFT(line, disable_progbar=True, **GAUSSIAN)))
        with pytest.raises(NotFittedError):
            untrained.get_samples()
        untrained.run(*line_data())


class TestGlobalState:
    def test_the_same_seed_gives_the_same_draws(self):
        def draws(state):
            torch.manual_seed(state)
            dft = DFT(minibatched, disable_progbar=True, **NETWORK)
            dft.run(Y.repeat(4))
            return {**dft.get_samples(), "new": dft.get_samples(50)["mu"]}

        assert equal(draws(1), draws(2))

    def test_without_a_seed_the_global_generator_gives_it(self):
        settings = GAUSSIAN | {"seed": None}

        def draws(state):
            torch.manual_seed(state)
            dft = DFT(known_mean, disable_progbar=True, **settings)
            dft.run(Y)
            return dft.get_samples()

        assert equal(draws(1), draws(1))
        assert not equal(draws(1), draws(2))

    @pytest.mark.parametrize("seed", [0, None])
    def test_the_global_generator_moves_by_one_number_at_most(self, seed, tmp_path):
        numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
        torch.manual_seed(3)
        if seed is None:
            torch.randint(2**31 - 1, ())
        expected = torch.get_rng_state()
        torch.manual_seed(3)
        dft = DFT(minibatched, disable_progbar=True, **NETWORK | {"seed": seed})
        dft.run(torch.linspace(-1.0, 1.0, 20))
        dft.get_samples(100)
        dft.summary_table()
        dft.to_inference_data(posterior_predictive=True, prior=True)
        dft.save(tmp_path / "fit")
        assert torch.equal(torch.get_rng_state(), expected)
        np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002

    @pytest.mark.parametrize("validate", [True, False])
    def test_everything_is_left_as_it_was(self, validate):
        pyro.enable_validation(validate)
        torch.distributions.Distribution.set_default_validate_args(not validate)
        pyro.get_param_store()["mine"] = torch.tensor(1.0)
        torch.set_num_threads(2)
        patched = (torch.linalg.cholesky, torch.distributions.Distribution._validate_sample)
        dft = DFT(known_mean, disable_progbar=True, **NETWORK)
        dft.run(Y)
        dft.get_samples(10)
        assert pyro.distributions.is_validation_enabled() is validate
        assert torch.distributions.Distribution._validate_args is not validate
        assert set(pyro.get_param_store()) == {"mine"}
        assert torch.get_num_threads() == 2
        assert torch.get_default_dtype() == torch.float32
        assert torch.is_grad_enabled()
        assert (torch.linalg.cholesky, torch.distributions.Distribution._validate_sample) == patched

    def test_a_failed_fit_restores_too(self):
        pyro.enable_validation(True)
        before = torch.get_rng_state()
        with pytest.raises(ModelError):
            DFT(known_mean, disable_progbar=True, **GAUSSIAN).run(Y / 0)
        assert pyro.distributions.is_validation_enabled()
        assert torch.equal(torch.get_rng_state(), before)


class TestDevice:
    def test_everything_happens_there(self, tmp_path):
        """Tensors on any other device than the one asked for would be on "meta" here, which cannot compute."""
        seen = set()

        def model(y):
            seen.add(torch.get_default_device())
            known_mean(y)

        torch.set_default_device("meta")
        dft = DFT(model, device="cpu", disable_progbar=True, num_chains=2, **NETWORK)
        dft.run(Y)
        assert dft.get_samples(10)["mu"].device == torch.device("cpu")
        dft.summary_table()
        dft.to_inference_data(posterior_predictive=True, prior=True)
        dft.save(tmp_path / "fit")
        DFT.load(tmp_path / "fit", model, options={"device": "cpu"}).get_samples(10)
        dft.step(Y)
        assert seen == {torch.device("cpu")}
        assert torch.get_default_device() == torch.device("meta")

    def test_a_model_that_lives_elsewhere(self):
        def model():
            pyro.sample("mu", dist.Normal(torch.zeros((), device="cpu"), torch.ones((), device="cpu")))

        with pytest.raises(ModelError, match="device='meta', but the latent sites are on cpu"):
            DFT(model, device="meta", disable_progbar=True, **GAUSSIAN).run()

    @pytest.mark.parametrize("device", ["gpu", 3.5, "cuda:99"])
    def test_a_device_that_is_not_there(self, device):
        with pytest.raises(SettingsError, match="device="):
            DFT(known_mean, device=device)


@pytest.mark.parametrize(
    "name",
    [
        "pyro_dft", "pyro_dft.layout", "pyro_dft.interface.storage", "pyro_dft.export.arviz", "pyro_dft.judging.drift",
        "pyro_dft.pyro.kernel", "pyro_dft.pyro.guide",
    ],
)  # fmt: skip
def test_examples_in_docstrings(name):
    """Of modules that are not public; tests/test_docstrings.py runs those of the public names."""
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0
    assert tried > 0 or name != "pyro_dft.pyro.kernel"
