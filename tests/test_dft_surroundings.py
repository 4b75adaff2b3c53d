"""`DFT` as its users meet it: global state, devices, and the examples in docstrings."""

from __future__ import annotations

import doctest
import importlib

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from dft_fits import Y, equal
from pyro import poutine
from pyro.infer import MCMC
from quick import (
    GAUSSIAN,
    NETWORK,
    known_mean,
    minibatched,
)

from pyro_dft import DFT, DFTKernel, ModelError, SettingsError

# A fit of a second may be doubted. Whether it is doubted rightly is tested elsewhere.
pytestmark = [pytest.mark.filterwarnings("ignore:the fit is"), pytest.mark.usefixtures("brief_surrogate")]


OUTSIDE = {
    "scale": lambda: poutine.scale(scale=0.5),
    "mask": lambda: poutine.mask(mask=False),
    "do": lambda: poutine.do(data={"mu": torch.tensor(7.0)}),
    "condition": lambda: poutine.condition(data={"mu": torch.tensor(7.0)}),
    "trace": lambda: poutine.trace(),
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
}


class TestWhatIsOutside:
    """Effect handlers around the call do not reach the model, as with Pyro's `MCMC.run`."""

    @pytest.mark.parametrize("outside", OUTSIDE)
    @pytest.mark.parametrize("way", ["run", "step", "kernel"])
    def test_it_changes_nothing(self, outside, way):
        def draws():
            if way == "kernel":
                mcmc = MCMC(DFTKernel(known_mean, **GAUSSIAN), 50, 10, disable_progbar=True)
                mcmc.run(Y)
                return mcmc.get_samples()
            dft = DFT(known_mean, disable_progbar=True, **GAUSSIAN)
            if way == "run":
                dft.run(Y)
            else:
                for _ in range(5):
                    dft.step(Y)
            return {"kept": dft.get_samples()["mu"], "new": dft.get_samples(50)["mu"]}

        expected = draws()
        with OUTSIDE[outside]():
            assert equal(draws(), expected)


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
    def test_all_tensors_are_on_the_device_asked_for(self, tmp_path):
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
