"""What users of Pyro's MCMC ask its kernel for, by the names that HMC and NUTS have."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam import LatentStableReparam
from quick import GAUSSIAN, line, line_data

from pyro_dft import DFTKernel, NotFittedError

KEPT, DRAWS = 640, 900


@pytest.fixture(scope="module")
def mcmc():
    """Kept draws, which are states of chains, and new ones after them."""
    with pytest.warns(UserWarning, match="full_mass"):
        kernel = DFTKernel(line, full_mass=[("slope",)], num_draws=KEPT, restarts=2, train="never", seed=1)
    mcmc = MCMC(kernel, DRAWS, 5, disable_progbar=True)
    mcmc.run(*line_data())
    return mcmc


def test_diagnostics_have_the_acceptance_rate(mcmc):
    found = mcmc.diagnostics()
    rate = found["acceptance rate"]["chain 0"]
    assert 0.6 < rate < 1
    # Kept draws and new ones come from the same transitions; the report has the mean over the whole window.
    assert abs(rate - np.mean(found["dft"]["chain 0"]["acceptance"])) < 0.1


def test_what_the_transitions_are(mcmc):
    kernel = mcmc.kernel
    assert kernel.num_steps == mcmc.diagnostics()["dft"]["chain 0"]["ensemble"]["leapfrog_steps"]
    assert 0 < kernel.step_size < 4
    blocks = kernel.inverse_mass_matrix
    assert {names: tuple(block.shape) for names, block in blocks.items()} == {
        ("slope",): (2, 2),
        ("scale",): (1,),
    }
    kept = mcmc.get_samples()["slope"][:KEPT]
    torch.testing.assert_close(blocks["slope",], kept.T.cov(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(
        blocks["scale",][0], mcmc.get_samples()["scale"][:KEPT].log().var(), rtol=1e-4, atol=1e-7
    )


def test_the_potential_is_that_of_nuts(mcmc):
    _, potential, transforms, _ = initialize_model(line, line_data())
    last = {name: value[-1] for name, value in mcmc.get_samples().items()}
    z = {name: transforms[name](value) if name in transforms else value for name, value in last.items()}
    torch.testing.assert_close(mcmc.kernel.potential_fn(z), potential(z), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mcmc.kernel._potential_energy_last, potential(z), rtol=1e-4, atol=1e-4)


def test_by_hand_as_with_nuts():
    """Set up, and called, without MCMC."""

    def potential(z):
        return 0.5 * ((z["z"] - 5.0) ** 2).sum()

    kernel = DFTKernel(None, potential, **GAUSSIAN)
    assert kernel.potential_fn is potential
    kernel.initial_params = samples = {"z": torch.tensor(0.0)}
    kernel.setup(20)
    assert float(kernel._potential_energy_last) == 12.5
    with pytest.raises(NotFittedError, match="not trained yet"):
        _ = kernel.step_size
    for _ in range(20):
        samples = kernel(samples)
    draws = []
    for _ in range(300):
        kernel.clear_cache()
        samples = kernel(samples)
        draws.append(samples["z"])
    found = torch.stack(draws)
    assert abs(float(found.mean()) - 5.0) < 5 / 300**0.5
    assert float(kernel._potential_energy_last) == pytest.approx(float(potential(samples)), rel=1e-5)


def test_before_a_setup():
    kernel = DFTKernel(line)
    assert kernel.potential_fn is None
    for name in ("step_size", "num_steps", "inverse_mass_matrix", "_potential_energy_last"):
        with pytest.raises(NotFittedError, match="not set up"):
            getattr(kernel, name)


def test_a_potential_of_nothing():
    seen = []
    kernel = DFTKernel(potential_fn=lambda z: torch.tensor(0.0), transforms={})
    mcmc = MCMC(
        kernel, 3, 2, initial_params={}, disable_progbar=True,
        hook_fn=lambda kernel, samples, stage, i: seen.append((stage, i, samples)),
    )  # fmt: skip
    mcmc.run(None)
    assert mcmc.get_samples() == {}
    assert seen == [("Warmup", 0, {}), ("Warmup", 1, {}), *(("Sample", i, {}) for i in range(3))]
    with pytest.raises(NotFittedError, match="nothing to infer"):
        _ = kernel.step_size


def test_a_reparametrisation_may_replace_what_nobody_chose():
    @poutine.reparam(config={"z": LatentStableReparam()})
    def model():
        z = pyro.sample("z", dist.Stable(1.5, 0.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="the fit is")
        mcmc = MCMC(DFTKernel(model, max_plate_nesting=0, **GAUSSIAN), 5, 2, disable_progbar=True)
        mcmc.run()
    assert set(mcmc.get_samples()) == {"z_uniform", "z_exponential"}
