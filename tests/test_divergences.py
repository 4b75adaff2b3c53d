"""Diverging transitions: each draw knows of its own, and MCMC's tables name the verdict. Both backends."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from backends import BACKENDS

from pyro_dft.engine_jax import refine as jax_refine
from pyro_dft.engine_jax.target import Target as JaxTarget
from pyro_dft.engine_torch import refine as torch_refine
from pyro_dft.engine_torch.target import Target as TorchTarget
from pyro_dft.experimental import Experimental
from pyro_dft.interface.mcmc_verdict import show_verdict, verdict_line

pytestmark = pytest.mark.filterwarnings("ignore:the fit is")

PYRO, NUMPYRO = BACKENDS


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


def test_the_draws_that_diverged_are_flagged():
    """Flat in x; in y a thousand times narrower than the step for x > 0, and wide elsewhere."""
    start = np.zeros((2, 40, 2), np.float32)
    start[0, ::3, 0], start[1, ::5, 0] = 50.0, 50.0
    start[..., 0] = np.where(start[..., 0] > 0, 50.0, -50.0)
    scale, step = np.tile(np.eye(2, dtype=np.float32), (2, 1, 1)), np.full(2, 0.5, np.float32)
    expected = start[..., 0] > 0

    one = TorchTarget(
        lambda x: 0.5 * x[1] ** 2 * torch.where(x[0] > 0, 1e6, 1.0) + 0 * x[0],
        2,
        dtype=torch.float32,
        device="cpu",
    )
    tensors = map(torch.as_tensor, (start, scale, step))
    found = torch_refine.refine(
        one, *tensors, steps=3, leapfrog_steps=4, rng=torch.Generator().manual_seed(0)
    )
    assert np.array_equal(found.diverged.numpy(), expected)
    assert found.first(7).diverged.shape == (2, 7)
    assert found.divergence_rate == pytest.approx(expected.mean())

    two = JaxTarget(lambda x, data: 0.5 * x[1] ** 2 * jnp.where(x[0] > 0, 1e6, 1.0), 2)
    moved = jax_refine.refine(
        two, start, scale, step, steps=3, leapfrog_steps=4, rng=np.random.default_rng(0)
    )
    assert np.array_equal(moved.diverged, expected)
    assert moved.first(7).diverged.shape == (2, 7)


def wall(backend):
    """A normal variable between walls, ten thousand nats high, that trajectories run into."""
    if backend is PYRO:
        return lambda z: 0.5 * (z["a"] ** 2).sum() + 1e5 * (torch.relu(z["a"].abs() - 1.5) ** 2).sum()
    return lambda z: 0.5 * (z["a"] ** 2).sum() + 1e5 * (jax.nn.relu(jnp.abs(z["a"]) - 1.5) ** 2).sum()


@pytest.fixture(scope="module")
def fits():
    made = {}
    for backend in BACKENDS:
        made[backend] = backend.potential(
            wall(backend),
            experimental=Experimental(precondition_steps=40),
            refine_steps=3,
            num_draws=400,
            num_chains=2,
        )
        backend.run(made[backend])
    return made


def flags(data):
    return np.asarray(data.sample_stats["diverging"])


def test_sample_stats_hold_the_flags_of_the_kept_draws(backend, fits, tmp_path):
    fit = fits[backend]
    found = flags(fit.to_inference_data())
    assert found.shape == (2, 200)
    rate = fit.diagnostics()["divergence_rate"]
    assert rate > 0.01
    # `rate` is that of the second half of 2 S = 6 transitions: a draw has seen as many again before.
    assert rate < found.mean() <= 1 - (1 - min(1, 3 * rate)) ** 6
    np.testing.assert_array_equal(flags(fit.to_inference_data()), found)
    fresh = flags(fit.to_inference_data(300))
    assert fresh.shape == (2, 300)
    # New draws get half as many transitions.
    assert 0 < fresh.mean() < found.mean() + 4 * (found.mean() / found.size) ** 0.5
    fit.save(tmp_path / "fit")
    options = {"potential_fn": wall(backend), "initial_params": fit.initial_params, "disable_progbar": True}
    np.testing.assert_array_equal(
        flags(backend.DFT.load(tmp_path / "fit", **options).to_inference_data()), found
    )


def test_raw_draws_have_none(backend):
    raw = backend.potential(wall(backend), refine_steps=0)
    backend.run(raw)
    assert not flags(raw.to_inference_data()).any()


@pytest.mark.filterwarnings("ignore:num_chains=2 is more than available_cpu")
def test_mcmc_counts_them_and_names_the_verdict(backend, fits, capsys):
    kernel = backend.DFTKernel(fits[backend])
    mcmc = backend.mcmc(kernel, 300, 0, 2)
    capsys.readouterr()
    (mcmc.summary if backend is PYRO else mcmc.print_summary)()
    text = capsys.readouterr().out
    if backend is PYRO:
        counted = sum(map(len, mcmc.diagnostics()["divergences"].values()))
        assert all(0 <= i < 300 for own in mcmc.diagnostics()["divergences"].values() for i in own)
    else:
        counted = int(mcmc.get_extra_fields()["diverging"].sum())
    # As many as new draws of the fit have, within four standard errors.
    expected = flags(fits[backend].to_inference_data(1000)).mean()
    assert abs(counted / 600 - expected) < 4 * (expected / 600) ** 0.5 + 4 * (expected / 2000) ** 0.5
    assert f"Number of divergences: {counted}" in text
    status = fits[backend].diagnostics()["status"]
    assert status != "converged"
    assert f"DFT: {status}" in text
    assert "divergences" in text.splitlines()[-1]


def test_tables_of_other_kernels_stay_as_they_are(capsys):
    class Table:
        """A stand-in for a framework's MCMC."""

        def __init__(self, own):
            self.own = own

        def summary(self, text="table"):
            print(text)
            return 7

    report = {"status": "suspect", "alarms": ["stuck"]}
    show_verdict(Table, "summary", lambda table: table.own, lambda table: [report])
    assert Table(None).summary(text="a") == Table("kernel").summary("b") == 7
    assert capsys.readouterr().out.splitlines() == ["a", "b", verdict_line([report])]
    assert Table.summary.__name__ == "summary"


def test_the_line_is_that_of_the_worst_chain():
    good, bad = {"status": "converged", "alarms": []}, {"status": "failed", "alarms": ["drift", "gap"]}
    assert verdict_line([good, good]).startswith("DFT: converged;")
    assert verdict_line([bad]).startswith("DFT: failed (drift, gap);")
    assert verdict_line([good, bad, good]).startswith("DFT: failed in chain 1 of 3 (drift, gap);")
    assert "no verdict" in verdict_line([])
