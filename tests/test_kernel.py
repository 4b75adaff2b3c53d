"""`DFTKernel` in Pyro's own MCMC: the one-line swap for NUTS."""

from __future__ import annotations

import json
import pickle
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from daily import daily
from pyro.infer import MCMC, NUTS, Predictive
from pyro.infer.mcmc.api import StreamingMCMC
from quick import (
    GAUSSIAN,
    NETWORK,
    all_distinct,
    deadline,
    known_mean,
    known_mean_posterior,
    line,
    line_data,
    mean_error,
)

from pyro_dft import DFT, DFTKernel, ModelError, NotFittedError, SettingsError
from pyro_dft.pyro.backend import PyroBackend

# A fit of a second may be doubted. Whether it is doubted rightly is tested elsewhere.
pytestmark = [pytest.mark.filterwarnings("ignore:the fit is"), pytest.mark.usefixtures("brief_surrogate")]

Y = torch.tensor([1.0, 2.0, 3.0, 2.5, 1.5])
MEAN, SD = known_mean_posterior(Y)


def run(kernel, *args, num_samples=100, warmup_steps=5, num_chains=1, **options):
    mcmc = MCMC(kernel, num_samples, warmup_steps, num_chains=num_chains, disable_progbar=True, **options)
    with deadline(120):
        mcmc.run(*args)
    return mcmc


@pytest.fixture
def sequential(monkeypatch):
    """Chains one after the other: MCMC does that where there are too few processors, with a warning."""
    monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="num_chains=.* is more than available_cpu")
        yield


@pytest.fixture
def parallel(monkeypatch):
    """Chains in worker processes, whatever this machine has."""
    monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: 8)


@pytest.fixture
def trainings(monkeypatch):
    """Iterations that each training in this process has made so far, one entry for each training."""
    made = []
    begin, step = PyroBackend.start, "pyro_dft.recipe.trainer.Trainer.step"

    def start(self):
        made.append(0)
        return begin(self)

    from pyro_dft.recipe.trainer import Trainer

    original = Trainer.step

    def counted(self):
        made[-1] += 1
        return original(self)

    monkeypatch.setattr(PyroBackend, "start", start)
    monkeypatch.setattr(step, counted)
    return made


@pytest.fixture(scope="module")
def fitted():
    """Two chains whose samplers are a long way from each other, so that it shows which one served a draw."""
    dft = DFT(known_mean, num_chains=2, disable_progbar=True, **GAUSSIAN | {"seed": 1})
    dft.run(Y)
    shift = torch.tensor([[[0.0]], [[100.0]]])
    dft.parts.fit.sampler.mean += shift[:, 0]
    dft.parts.result.kept = dft.parts.result.kept + shift
    dft.parts.fit.measurement.steps = 0
    object.__setattr__(dft.settings, "refine_steps", 0)
    return dft


class TestTheSwap:
    def test_names_shapes_and_numbers_are_those_of_nuts(self):
        """The same calls with either kernel give the same names, shapes and, up to noise, numbers."""
        found = {}
        for kernel in (NUTS(line), DFTKernel(line, **GAUSSIAN)):
            torch.manual_seed(0)
            mcmc = run(kernel, *line_data(), num_samples=100, warmup_steps=50)
            samples = mcmc.get_samples()
            found[type(kernel).__name__] = samples
            assert {name: tuple(value.shape) for name, value in samples.items()} == {
                "scale": (100,),
                "slope": (100, 2),
            }
            assert mcmc.get_samples(group_by_chain=True)["slope"].shape == (1, 100, 2)
            assert mcmc.get_samples(50)["slope"].shape == (50, 2)
            mcmc.summary()
            assert set(mcmc.diagnostics()) >= {"slope", "scale", "divergences"}
            assert mcmc.diagnostics()["divergences"] == {"chain 0": []}
        for name in ("slope", "scale"):
            nuts, ours = found["NUTS"][name], found["DFTKernel"][name]
            # 100 draws each, those of NUTS worth perhaps 40: 4 standard errors of the difference.
            error = 4 * nuts.std(0) * (1 / 40 + 1 / 100) ** 0.5
            assert bool(((nuts.mean(0) - ours.mean(0)).abs() < error).all())
        assert bool((found["DFTKernel"]["scale"] > 0).all())

    def test_draws_are_those_of_the_posterior(self):
        mu = run(DFTKernel(known_mean, **GAUSSIAN), Y, num_samples=1500).get_samples()["mu"]
        assert mean_error(mu, MEAN) < 4
        assert abs(float(mu.std()) / SD - 1) < 4 / 3000**0.5
        assert all_distinct(mu)  # kept draws first, new ones after them

    def test_predictive_takes_the_samples(self):
        x, y = line_data()
        samples = run(DFTKernel(line, **GAUSSIAN), x, y).get_samples()
        assert Predictive(line, samples)(x[:3])["y"].shape == (100, 3)

    def test_arviz_takes_the_result(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ArviZ 0.23 announces 1.0 at import
            import arviz
        if not hasattr(arviz, "from_pyro"):  # gone in ArviZ 1.0
            return
        mcmc = run(DFTKernel(known_mean, **GAUSSIAN), Y)
        data = arviz.from_pyro(mcmc)
        assert data.posterior["mu"].shape == (1, 100)
        assert data.log_likelihood["y"].shape == (1, 100, 5)
        assert not data.sample_stats["diverging"].any()
        kernel = DFTKernel(
            potential_fn=lambda z: 0.5 * z["a"] ** 2, initial_params={"a": torch.tensor(0.0)}, **GAUSSIAN
        )
        assert arviz.from_pyro(run(kernel)).posterior["a"].shape == (1, 100)

    def test_validation_may_stay_on(self):
        assert run(DFTKernel(line, **GAUSSIAN), *line_data(), disable_validation=False).get_samples()
        pyro.enable_validation(True)
        assert run(DFTKernel(line, **GAUSSIAN), *line_data(), disable_validation=None).get_samples()
        assert pyro.distributions.is_validation_enabled()

    def test_streaming(self):
        mcmc = StreamingMCMC(DFTKernel(known_mean, **GAUSSIAN), 200, 5, disable_progbar=True)
        mcmc.run(Y)
        statistics = mcmc.get_statistics(group_by_chain=False)["mu"]
        assert int(statistics["count"]) == 200
        assert abs(float(statistics["mean"]) - MEAN) < 4 * SD / 200**0.5

    def test_supports_that_depend_on_other_sites(self):
        def model(y):
            width = pyro.sample("width", dist.LogNormal(0.0, 0.5))
            place = pyro.sample("place", dist.Uniform(-width, width))
            pyro.sample("y", dist.Normal(place, 0.5), obs=y)

        samples = run(DFTKernel(model, **GAUSSIAN), torch.tensor(0.7)).get_samples()
        share = samples["place"] / samples["width"]
        assert float(share.abs().max()) < 1
        assert float(share.mean()) > 0.1  # the datum pulls it up; a wrong transform would centre it


class TestWarmup:
    @pytest.mark.parametrize("warmup_steps", [0, 1, 7, 60, 200])
    def test_the_warm_up_is_the_whole_training(self, warmup_steps, trainings):
        stages = []

        def hook(kernel, params, stage, i):
            stages.append((stage, i, sum(trainings), kernel.logging()))

        run(DFTKernel(known_mean, **NETWORK), Y, num_samples=5, warmup_steps=warmup_steps, hook_fn=hook)
        assert len(trainings) == 1
        assert [(stage, i) for stage, i, *_ in stages] == [
            *[("Warmup", i) for i in range(warmup_steps)],
            *[("Sample", i) for i in range(5)],
        ]
        made = [steps for *_, steps, _ in stages]
        assert made[warmup_steps:] == [made[-1]] * 5
        if warmup_steps:
            assert made[warmup_steps - 1] == made[-1]  # all of it in the warm-up
            # Spread evenly over the plan; what a phase saves is saved at the end of the phase.
            plan = NETWORK["experimental"].precondition_steps + NETWORK["num_steps"]
            assert max(b - a for a, b in zip([0, *made], made, strict=False)) <= plan / warmup_steps + 1
        logs = [log for *_, log in stages]
        assert json.loads(json.dumps(logs)) == logs
        assert logs[-1] == {"phase": "done"}
        if warmup_steps == 60:
            assert {log["phase"] for log in logs} == {"gaussian", "kl", "dft", "done"}
            assert all("loss" in log for log in logs if log["phase"] != "done")

    def test_a_second_run_trains_again_on_its_own_data(self, trainings):
        mcmc = MCMC(DFTKernel(known_mean, **GAUSSIAN), 100, 5, disable_progbar=True)
        for data in (Y, Y + 10, Y[:2]):
            mcmc.run(data)
            assert mean_error(mcmc.get_samples()["mu"], known_mean_posterior(data)[0]) < 4
        assert len(trainings) == 3

    def test_initial_params_are_started_from(self, trainings):
        starts = []

        def hook(kernel, params, stage, i):
            starts.append(params["mu"])

        run(
            DFTKernel(known_mean, **GAUSSIAN), Y,
            num_samples=2, warmup_steps=1, hook_fn=hook, initial_params={"mu": torch.tensor(1.25)},
        )  # fmt: skip
        assert float(starts[0]) == 1.25
        with pytest.raises(ModelError, match="initial_params must hold .*'mu'"):
            run(DFTKernel(known_mean, **GAUSSIAN), Y, initial_params={"nu": torch.tensor(1.25)})

    def test_some_sites_only(self):
        mcmc = run(DFTKernel(line, **GAUSSIAN), *line_data(), save_params=["slope", "scale"])
        expected = run(DFTKernel(line, **GAUSSIAN), *line_data()).get_samples()
        assert all(torch.equal(mcmc.get_samples()[name], expected[name]) for name in expected)
        assert set(run(DFTKernel(line, **GAUSSIAN), *line_data(), save_params=["slope"]).get_samples()) == {
            "slope"
        }
        with pytest.raises(ModelError, match="save_params names \\['slop'\\]"):
            run(DFTKernel(line, **GAUSSIAN), *line_data(), save_params=["slop"])


class TestChains:
    def test_sequential_chains_share_a_training(self, sequential, trainings):
        mcmc = run(DFTKernel(known_mean, **NETWORK), Y, num_chains=3)
        assert len(trainings) == 1
        assert trainings[0] > NETWORK["num_steps"]
        mu = mcmc.get_samples(group_by_chain=True)["mu"]
        assert mu.shape == (3, 100)
        assert all_distinct(mu)
        assert mcmc.diagnostics()["mu"]["r_hat"] < 1.1
        assert set(mcmc.diagnostics()["dft"]) == {"chain 0", "chain 1", "chain 2"}
        mcmc.run(Y)
        assert len(trainings) == 2  # one for each run
        statistics = StreamingMCMC(
            DFTKernel(known_mean, **GAUSSIAN), 20, 5, num_chains=2, disable_progbar=True
        )
        statistics.run(Y)
        assert len(trainings) == 3

    @pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # Python 3.12 on any fork
    @pytest.mark.parametrize("context", daily(["fork", "spawn"], "fork"))
    def test_parallel_chains_train_in_their_workers(self, parallel, trainings, context):
        # A forked worker hangs where it computes with several threads as its parent has done before, unless
        # it takes one: that needs tensors large enough to be shared out.
        torch.set_num_threads(2)
        torch.randn(1000, 1000).exp().sum()
        kernel = DFTKernel(line, **GAUSSIAN | {"num_draws": 4000})
        mcmc = run(kernel, *line_data(), num_chains=2, mp_context=context)
        assert torch.get_num_threads() == 2
        assert trainings == [0]  # set up once here, for the transforms, and never trained
        samples = mcmc.get_samples(group_by_chain=True)
        assert all_distinct(samples["scale"])
        assert bool((samples["scale"] > 0).all())
        reports = mcmc.diagnostics()["dft"]
        assert all(reports[f"chain {i}"]["iterations"] >= 10 for i in range(2))
        with pytest.raises(NotFittedError):
            kernel.diagnostics()

    @pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
    def test_the_first_of_parallel_and_of_sequential_chains_have_the_same_seed(self, monkeypatch):
        found = []
        for processors in (1, 8):
            monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: processors)  # noqa: B023
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="num_chains=.* is more than available_cpu")
                mcmc = run(DFTKernel(known_mean, **GAUSSIAN), Y, num_chains=2, mp_context="fork")
            found.append(mcmc.get_samples(group_by_chain=True)["mu"])
        assert torch.equal(found[0][0], found[1][0])
        assert all_distinct(torch.cat([found[0], found[1][1:]]))

    @pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
    def test_parallel_chains_of_a_potential_are_constrained(self, parallel):
        kernel = DFTKernel(
            potential_fn=half_normal, transforms={"a": dist.transforms.ExpTransform().inv}, **GAUSSIAN
        )
        starts = {"a": torch.tensor([0.1, -0.1])}
        mcmc = run(kernel, num_chains=2, mp_context="fork", initial_params=starts)
        a = mcmc.get_samples()["a"]
        assert a.shape == (200,)
        assert mean_error(a, (2 / torch.pi) ** 0.5) < 4

    @pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
    def test_an_error_in_a_worker_arrives(self, parallel):
        with pytest.raises(ModelError, match="'y' holds 5 NaN"):
            run(DFTKernel(known_mean, **GAUSSIAN), Y * torch.nan, num_chains=2, mp_context="fork")


def half_normal(z):
    """Potential of a half-normal variable in the coordinate log a."""
    return 0.5 * z["a"].exp() ** 2 - z["a"]


class TestAFittedDFT:
    def test_serves_without_training(self, fitted, trainings, sequential):
        mcmc = run(DFTKernel(fitted), Y, num_chains=3, num_samples=1500)
        assert trainings == []
        means = mcmc.get_samples(group_by_chain=True)["mu"].mean(1)
        # Chain i has sampler i modulo 2, and the second one was moved by 100.
        assert [round(float(mean - MEAN) / 100) for mean in means] == [0, 1, 0]
        assert all(all_distinct(chain) for chain in mcmc.get_samples(group_by_chain=True)["mu"])
        assert mcmc.diagnostics()["dft"]["chain 0"]["iterations"] == fitted.diagnostics()["iterations"]

    @pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
    def test_workers_share_the_sampler_and_not_its_random_numbers(self, fitted, parallel):
        mu = run(DFTKernel(fitted), Y, num_chains=3, mp_context="fork").get_samples(group_by_chain=True)["mu"]
        assert [round(float(mean - MEAN) / 100) for mean in mu.mean(1)] == [0, 1, 0]
        assert all_distinct(mu[[0, 2]])  # these share a sampler, not its random numbers
        assert all_distinct(mu[1])

    def test_data_are_those_of_the_fit_or_none(self, fitted):
        assert run(DFTKernel(fitted)).get_samples()["mu"].shape == (100,)
        assert run(DFTKernel(fitted), Y.clone()).get_samples()["mu"].shape == (100,)
        for other in (Y + 0.01, Y[:4]):
            with pytest.raises(ModelError, match="trained on other data"):
                run(DFTKernel(fitted), other)

    def test_takes_no_other_options(self, fitted):
        with pytest.raises(SettingsError, match="a fitted DFT brings its own"):
            DFTKernel(fitted, num_steps=10)
        with pytest.raises(SettingsError, match="a fitted DFT brings its own"):
            DFTKernel(fitted, initial_params={"mu": torch.tensor(0.0)})

    def test_a_dft_before_its_run_is_refused(self):
        with pytest.raises(NotFittedError, match="call run"):
            run(DFTKernel(DFT(known_mean)), Y)


class TestPickle:
    def test_before_and_after_a_run(self):
        kernel = DFTKernel(line, **GAUSSIAN)
        mcmc = MCMC(pickle.loads(pickle.dumps(kernel)), 50, 5, disable_progbar=True)
        mcmc = pickle.loads(pickle.dumps(mcmc))
        mcmc.run(*line_data())
        again = pickle.loads(pickle.dumps(mcmc))
        assert torch.equal(again.get_samples()["slope"], mcmc.get_samples()["slope"])
        again.summary()
        assert again.diagnostics()["dft"] == mcmc.diagnostics()["dft"]
        with pytest.raises(NotFittedError, match="not set up"):
            again.kernel.diagnostics()
        again.run(*line_data())
        assert (
            torch.equal(again.get_samples()["slope"], mcmc.get_samples()["slope"]) is False
        )  # another chain

    def test_a_fitted_dft_goes_along(self):
        dft = DFT(line, disable_progbar=True, **GAUSSIAN)
        dft.run(*line_data())
        kernel = pickle.loads(pickle.dumps(DFTKernel(dft)))
        assert run(kernel, *line_data()).get_samples()["slope"].shape == (100, 2)


class TestOptions:
    @pytest.mark.parametrize("option", [{"num_chains": 2}, {"disable_progbar": True}])
    def test_options_of_mcmc_are_refused(self, option):
        with pytest.raises(SettingsError, match="belongs to MCMC"):
            DFTKernel(line, **option)

    def test_fail_before_any_worker_starts(self):
        with pytest.raises(SettingsError, match="did you mean 'num_steps'"):
            DFTKernel(line, num_step=5)
        with pytest.raises(SettingsError, match="did you mean 'width'"):
            DFTKernel(potential_fn=half_normal, widht=5)
        with pytest.raises(ModelError, match="model or potential_fn"):
            DFTKernel()

    def test_a_potential_needs_initial_values_from_somewhere(self):
        with pytest.raises(ModelError, match="initial_params"):
            run(DFTKernel(potential_fn=half_normal, **GAUSSIAN))
        kernel = DFTKernel(potential_fn=half_normal, **GAUSSIAN)
        samples = run(kernel, initial_params={"a": torch.tensor(0.0)}).get_samples()
        assert bool((samples["a"] < 0).any())  # without a transform MCMC returns log a

    def test_before_a_run(self):
        kernel = DFTKernel(line)
        for use in (
            kernel.logging,
            kernel.diagnostics,
            lambda: kernel.initial_params,
            lambda: kernel.sample({}),
        ):
            with pytest.raises(NotFittedError, match="not set up"):
                use()
