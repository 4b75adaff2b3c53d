"""What users get wrong, end to end: a clear error that names the site or argument, and nothing lost."""

from __future__ import annotations

import contextlib
import functools
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from daily import daily
from pyro.infer import MCMC
from quick import GAUSSIAN, NETWORK, deadline, known_mean, known_mean_posterior, line, line_data, mean_error

from pyro_dft import DFT, DFTKernel, FidelityWarning, ModelError, NotFittedError, Settings, SettingsError
from pyro_dft.experimental import grouped
from pyro_dft.recipe.selection import Selection
from pyro_dft.recipe.trainer import Trainer

# A fit of a second may be doubted. Whether it is doubted rightly is tested elsewhere.
pytestmark = [pytest.mark.filterwarnings("ignore:the fit is"), pytest.mark.usefixtures("brief_surrogate")]

Y = torch.tensor([1.0, 2.0, 3.0, 2.5, 1.5])


def make(model=known_mean, **changed):
    return DFT(model, disable_progbar=True, **{**GAUSSIAN, **changed})


class TestModels:
    def refused(self, model, *args, match, kernel=True):
        """Both front doors refuse, and leave an object that says why it has nothing to give; or `DFT` alone does."""
        dft = make(model)
        with pytest.raises(ModelError, match=match):
            dft.run(*args)
        with pytest.raises(NotFittedError, match="the last run failed.*ModelError"):
            dft.get_samples()
        mcmc = MCMC(DFTKernel(model, **GAUSSIAN), num_samples=5, warmup_steps=5, disable_progbar=True)
        with pytest.raises(ModelError, match=match) if kernel else contextlib.nullcontext():
            mcmc.run(*args)

    def test_no_latent_sites(self):
        def model(y):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

        self.refused(model, Y[0], match="no latent sites", kernel=False)

    def test_only_discrete_sites(self):
        def enumerable(y):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Normal(k, 1.0), obs=y)

        def counts(y):
            k = pyro.sample("k", dist.Poisson(3.0))
            pyro.sample("y", dist.Normal(k, 1.0), obs=y)

        self.refused(enumerable, Y[0], match="only discrete latent sites \\['k'\\]", kernel=False)
        self.refused(counts, Y[0], match="'k' .*cannot be enumerated")

    def test_potential_that_is_finite_nowhere(self):
        def model(y):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Uniform(mu - 1.0, mu + 1.0), obs=y)

        self.refused(model, torch.tensor(50.0), match="no valid initial point.*'y'")
        dft = DFT(potential_fn=lambda z: z["a"].sum() / 0, initial_params={"a": torch.ones(2)}, **GAUSSIAN)
        with pytest.raises(ModelError, match="no valid initial point"):
            dft.run()

    def test_nan_in_the_data(self):
        y = Y.clone()
        y[3] = torch.nan
        self.refused(known_mean, y, match="observed data of site 'y' holds 1 NaN of 5")

    def test_nan_in_the_predictors(self):
        x, y = line_data()
        x[0, 0] = torch.nan
        self.refused(line, x, y, match="'y'")

    def test_data_of_the_wrong_shape(self):
        x, y = line_data()
        self.refused(line, x, y[:7], match="'y'.*plate 'row' of size 20")
        self.refused(line, x, y[:, None], match="'y' has shape \\(20, 1\\) inside plate 'row'")

    def test_mixed_dtypes(self):
        x, y = line_data()
        self.refused(line, x.double(), y, match="x \\(float64 on cpu\\)")

    def test_latent_site_in_a_subsampled_plate(self):
        def model(y):
            with pyro.plate("data", 20, subsample_size=5) as rows:
                local = pyro.sample("local", dist.Normal(torch.zeros(len(rows)), 1.0))
                pyro.sample("y", dist.Normal(local, 1.0), obs=y[rows])

        self.refused(model, torch.zeros(20), match="'local' is inside the subsampled plate 'data'")

    def test_arguments_that_the_model_does_not_take(self):
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'y'"):
            make().run()
        with pytest.raises(TypeError, match="'z'"):
            make().run(Y, z=1)

    def test_errors_of_the_model_itself_are_not_hidden(self):
        def model():
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            make(model).run()

    @pytest.mark.parametrize(
        ("value", "name"), [("1.0", "'a'"), (torch.tensor([1, 2]), "'a'"), (None, "'a'")]
    )
    def test_initial_params_that_are_no_tensors(self, value, name):
        with pytest.raises(ModelError, match=name):
            DFT(potential_fn=lambda z: 0.0, initial_params={"a": value}).run()

    def test_potential_that_is_no_number(self):
        dft = DFT(potential_fn=lambda z: z["a"], initial_params={"a": torch.zeros(2)}, **GAUSSIAN)
        with pytest.raises(ModelError, match="must return a scalar.*\\(2,\\)"):
            dft.run()

    def test_arguments_for_a_potential(self):
        dft = DFT(potential_fn=lambda z: z["a"] ** 2, initial_params={"a": torch.tensor(0.0)}, **GAUSSIAN)
        with pytest.raises(ModelError, match="takes no model arguments"):
            dft.run(Y)

    def test_transforms_of_unknown_sites(self):
        with pytest.raises(ModelError, match="transforms .*'nu'"):
            make(transforms={"nu": dist.transforms.ExpTransform().inv}).run(Y)

    def test_initial_params_that_do_not_fit(self):
        with pytest.raises(ModelError, match="initial_params must hold .*'mu'"):
            make(initial_params={"mu": torch.zeros(2)}).run(Y)
        with pytest.raises(ModelError, match="initial_params: the potential is not finite"):
            make(initial_params={"mu": torch.tensor(torch.inf)}).run(Y)


class TestImproper:
    """A flat or falling direction has no posterior: the fit ends, and says so."""

    def ends_with_a_warning(self, dft, *args):
        with deadline(200), pytest.warns(FidelityWarning, match="improper|hardly ever accepted|move"):
            dft.run(*args)
        report = dft.diagnostics()
        assert report["status"] == "failed"
        str(dft.summary_table())
        report.to_json()
        assert dft.get_samples(20)

    @pytest.mark.parametrize("settings", [GAUSSIAN, NETWORK, GAUSSIAN | {"num_chains": 2}])
    def test_a_flat_direction(self, settings):
        dft = DFT(
            potential_fn=lambda z: 0.5 * z["a"][0] ** 2,
            initial_params={"a": torch.zeros(2)},
            disable_progbar=True,
            **grouped(settings | {"precondition_steps": 300}),
        )
        self.ends_with_a_warning(dft)

    @pytest.mark.slow  # both front doors every day: tests/test_contract_errors.py
    def test_an_improper_prior(self):
        def model(y):
            a = pyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
            b = pyro.sample("b", dist.ImproperUniform(dist.constraints.real, (), ()))
            pyro.sample("y", dist.Normal(a + b, 1.0).expand([5]).to_event(1), obs=y)

        self.ends_with_a_warning(make(model, **grouped({"compile": "never", "precondition_steps": 300})), Y)

    @pytest.mark.parametrize("power", daily([1, 2, 4], 1, 2))
    def test_a_density_without_bound(self, power):
        dft = DFT(
            potential_fn=lambda z: -(z["a"].abs() ** power).sum(),
            initial_params={"a": torch.ones(2)},
            disable_progbar=True,
            **grouped(GAUSSIAN | {"precondition_steps": 300}),
        )
        self.ends_with_a_warning(dft)


class TestSettings:
    def test_unknown_names_are_listed_with_the_known_ones(self):
        with pytest.raises(SettingsError, match="'num_step' \\(did you mean 'num_steps'\\?\\)") as caught:
            make(num_step=10)
        assert all(name in str(caught.value) for name in Settings().to_json())
        with pytest.raises(SettingsError, match="'num_chain' \\(did you mean 'num_chains'\\?\\)"):
            make(num_chain=2)
        with pytest.raises(SettingsError, match="unknown setting 'zzz'; the settings are"):
            make(zzz=2)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"num_steps": 0}, {"num_steps": 1.5}, {"num_steps": True}, {"objective": "vi"}, {"learning_rate": -1.0},
            {"learning_rate": float("nan")}, {"refine_steps": -1}, {"seed": 1.5},
            {"num_chains": 0}, {"num_chains": 1.5}, {"num_draws": 1},
        ],
    )  # fmt: skip
    def test_values_out_of_range(self, wrong):
        (name,) = wrong
        with pytest.raises(SettingsError, match=name):
            make(**wrong)

    def test_settings_or_single_ones(self):
        assert DFT(known_mean, settings=Settings(num_steps=5)).settings.num_steps == 5
        with pytest.raises(SettingsError, match="num_steps.*not both"):
            DFT(known_mean, settings=Settings(), num_steps=5)

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ({}, "either a model or potential_fn"),
            ({"model": known_mean, "potential_fn": abs, "initial_params": {"a": 1}}, "not both"),
            ({"potential_fn": abs}, "needs initial_params"),
            ({"model": 3}, "must be callable, got int"),
        ],
    )
    def test_what_to_fit(self, arguments, match):
        with pytest.raises(ModelError, match=match):
            DFT(**arguments)


@pytest.fixture(scope="module")
def fitted():
    dft = make()
    dft.run(Y)
    return dft


class TestCounts:
    @pytest.mark.parametrize("count", [0, -3, 2.0, "10", True, float("nan")])
    def test_num_samples(self, fitted, count):
        for draw in (fitted.get_samples, fitted.to_inference_data):
            with pytest.raises(ValueError, match="num_samples=.*integer of at least 1"):
                draw(count)

    @pytest.mark.parametrize("count", [-1, 2.0, False])
    def test_refine_steps(self, fitted, count):
        with pytest.raises(ValueError, match="refine_steps=.*integer of at least 0"):
            fitted.get_samples(10, refine_steps=count)

    def test_prob(self, fitted):
        with pytest.raises(ValueError, match="prob"):
            fitted.summary(prob=1.5)


class TestOrder:
    @pytest.mark.parametrize(
        "used", ["get_samples", "diagnostics", "summary", "to_inference_data", "save", "guide"]
    )
    def test_before_run(self, used, tmp_path):
        dft = make()
        with pytest.raises(NotFittedError, match="call run"):
            getattr(dft, used)(*([tmp_path / "fit"] if used == "save" else []))
        assert list(tmp_path.iterdir()) == []

    def test_a_failed_second_run_leaves_nothing_that_could_be_mistaken(self):
        dft = make()
        dft.run(Y)
        with pytest.raises(ModelError, match="NaN"):
            dft.run(Y * torch.nan)
        with pytest.raises(NotFittedError, match="the last run failed \\(ModelError.*NaN.*call run"):
            dft.get_samples()
        dft.run(Y)
        assert mean_error(dft.get_samples()["mu"], known_mean_posterior(Y)[0]) < 4

    def test_a_failure_in_the_middle_of_training(self, monkeypatch):
        step = Trainer.step

        def fails(self):
            if len(self.history) == 7:
                raise RuntimeError("out of memory")
            return step(self)

        monkeypatch.setattr(Trainer, "step", fails)
        dft = make()
        with pytest.raises(RuntimeError, match="out of memory"):
            dft.run(Y)
        with pytest.raises(NotFittedError, match="the last run failed \\(RuntimeError: out of memory\\)"):
            dft.diagnostics()


class Interrupt:
    """Raises KeyboardInterrupt, as Ctrl-C does, where the engine is at iteration `at`; `times` in a row."""

    def __init__(self, monkeypatch, at, where="step", times=1, part=Trainer):
        self.at, self.left = at, times
        original = getattr(part, where)

        def interrupted(own, *args, **kwargs):
            if len(getattr(own, "history", ())) >= self.at and self.left:
                self.left -= 1
                raise KeyboardInterrupt
            return original(own, *args, **kwargs)

        monkeypatch.setattr(part, where, interrupted)


class TestInterrupt:
    PLAN = grouped(NETWORK | {"precondition_steps": 60, "num_steps": 40})  # of which 32 KL and 8 DFT

    def run_interrupted(self, **options):
        dft = DFT(known_mean, disable_progbar=True, **self.PLAN | options)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dft.run(Y)
        assert "training was interrupted after" in str(caught[0].message)
        assert caught[0].filename == __file__
        return dft

    @staticmethod
    @functools.cache
    def phases():
        """Where each phase begins in an undisturbed run."""
        dft = DFT(known_mean, disable_progbar=True, **TestInterrupt.PLAN)
        dft.run(Y)
        names = [progress.phase for progress in dft.parts.fit.history]
        return {name: names.index(name) for name in ("gaussian", "kl", "dft")}, len(names)

    def test_in_each_phase_the_sampler_trained_so_far_is_kept(self, monkeypatch):
        starts, total = self.phases()
        assert starts["gaussian"] < starts["kl"] < starts["dft"] < total
        for at, objectives in (
            (0, ["gaussian"]),
            (starts["gaussian"] + 5, ["gaussian"]),
            (starts["kl"] + 5, ["kl"]),
            (starts["dft"] + 5, ["kl", "dft"]),
        ):
            with monkeypatch.context() as patch:
                Interrupt(patch, at)
                dft = self.run_interrupted()
            report = dft.diagnostics()
            assert report["objective"] in objectives
            assert report["iterations"] <= max(at, 1) < total
            mu = dft.get_samples()["mu"]
            assert mu.shape == (200,)
            if at > starts["gaussian"] + 5:
                assert report["status"] == "converged"
                assert mean_error(mu, known_mean_posterior(Y)[0]) < 4
            with monkeypatch.context() as patch:
                patch.setattr(Trainer, "step", None)  # nothing trains any more
                assert dft.get_samples(10)["mu"].shape == (10,)

    @pytest.mark.parametrize(
        ("part", "where"), [(Trainer, "_measure"), (Selection, "movement"), (Trainer, "_finish_network")]
    )
    def test_while_the_sampler_is_measured(self, monkeypatch, part, where):
        Interrupt(monkeypatch, 0, where, part=part)
        dft = self.run_interrupted()
        assert dft.diagnostics()["status"] == "converged"
        assert mean_error(dft.get_samples()["mu"], known_mean_posterior(Y)[0]) < 4

    def test_in_the_potential(self):
        left = [2000]

        def potential(z):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return 0.5 * (z["a"] ** 2).sum()

        plan = grouped(self.PLAN | {"precondition_steps": 10_000})
        dft = DFT(potential_fn=potential, initial_params={"a": torch.zeros(2)}, disable_progbar=True, **plan)
        left[0] = 60
        with pytest.warns(FidelityWarning, match="interrupted"):
            dft.run()
        assert dft.get_samples()["a"].shape == (200, 2)
        assert torch.is_grad_enabled()
        assert pyro.distributions.is_validation_enabled()

    def test_twice_ends_at_once_and_still_loses_nothing(self, monkeypatch):
        starts, _ = self.phases()
        at = starts["kl"] + 5
        with monkeypatch.context() as patch:
            Interrupt(patch, at)
            Interrupt(patch, at, "finish")
            dft = DFT(known_mean, disable_progbar=True, **self.PLAN)
            with pytest.raises(KeyboardInterrupt):
                dft.run(Y)
        assert dft.diagnostics()["iterations"] == at  # measured now
        assert mean_error(dft.get_samples()["mu"], known_mean_posterior(Y)[0]) < 4

    def test_in_a_loop_of_steps(self, monkeypatch):
        dft = make()
        for _ in range(60):
            dft.step(Y)
        with monkeypatch.context() as patch:
            Interrupt(patch, 0)
            with pytest.raises(KeyboardInterrupt):
                dft.step(Y)
        assert mean_error(dft.get_samples()["mu"], known_mean_posterior(Y)[0]) < 4
