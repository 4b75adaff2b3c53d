"""What users of NumPyro's MCMC ask its kernel for: fields of its state, pytrees, silence, the calls they know."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from daily import daily
from numpyro.infer import MCMC, NUTS

from pyro_dft import SettingsError
from pyro_dft.experimental import grouped
from pyro_dft.numpyro import DFT, DFTKernel
from pyro_dft.numpyro.serving import Beyond
from pyro_dft.numpyro.structure import inspect_model

FIELDS = (
    "num_steps", "accept_prob", "mean_accept_prob", "energy", "potential_energy", "diverging", "adapt_state.step_size",
    "z_grad", "trajectory_length", "z.x", "i",
)  # fmt: skip
QUICK = grouped(
    {"train": "never", "precondition_steps": 40, "restarts": 2, "refine_steps": 2, "num_draws": 200}
)
KEPT, DRAWS = 640, 1000


def model(y):
    x = numpyro.sample("x", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(x.sum(), scale), obs=y)


Y = jnp.array([1.0, 2.0, 0.5, 1.5])


@pytest.fixture(scope="module")
def run():
    """Kept draws, which are states of chains, and new ones after them; with all that was on the screen."""
    quiet = {name: os.environ.pop(name) for name in ("CI", "PYTEST_XDIST_WORKER") if name in os.environ}
    with pytest.warns(UserWarning, match="dense_mass"):
        kernel = DFTKernel(model, dense_mass=[("x",)], num_draws=KEPT, restarts=2, train="never")
    mcmc = MCMC(kernel, num_warmup=0, num_samples=DRAWS, progress_bar=False)
    screen = io.StringIO()
    with contextlib.redirect_stderr(screen), contextlib.redirect_stdout(screen):
        mcmc.run(jax.random.key(0), Y, extra_fields=FIELDS)
    os.environ.update(quiet)
    return SimpleNamespace(mcmc=mcmc, fields=mcmc.get_extra_fields(), kernel=kernel, screen=screen.getvalue())


def test_without_a_bar_nothing_is_on_the_screen(run):
    assert run.screen == ""


def test_fields_have_the_shapes_of_nuts(run):
    nuts = MCMC(NUTS(model), num_warmup=5, num_samples=DRAWS, progress_bar=False)
    nuts.run(jax.random.key(0), Y, extra_fields=[name for name in FIELDS if name != "trajectory_length"])
    theirs, ours = nuts.get_extra_fields(), dict(run.fields)
    ours.pop("trajectory_length")  # NUTS has none

    def kinds(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype.kind), tree)

    assert kinds(ours) == kinds(theirs)
    theirs, ours = (each.last_state.adapt_state for each in (nuts, run.mcmc))
    assert ours.inverse_mass_matrix.keys() == {("x",), ("scale",)}


def test_fields_are_the_numbers_of_the_transitions(run):
    found = {name: jax.tree.map(np.asarray, value) for name, value in run.fields.items()}
    assert (found["i"] == np.arange(1, DRAWS + 1)).all()
    rate = found["accept_prob"]
    assert ((rate >= 0) & (rate <= 1)).all()
    assert 0.6 < rate.mean() < 1
    np.testing.assert_allclose(
        found["mean_accept_prob"], np.cumsum(rate) / np.arange(1, DRAWS + 1), rtol=1e-3
    )
    report = run.kernel.diagnostics[0]
    leapfrogs = report["ensemble"]["leapfrog_steps"]
    # One transition of a chain led to a kept draw; those that refine a new one are counted all.
    assert (found["num_steps"][:KEPT] == leapfrogs).all()
    assert (found["num_steps"][KEPT:] == leapfrogs * report["refine_steps"]).all()
    step_size = found["adapt_state.step_size"]
    np.testing.assert_allclose(found["trajectory_length"], leapfrogs * step_size, rtol=1e-5)
    for some in (slice(0, KEPT), slice(KEPT, None)):
        kinetic = (found["energy"] - found["potential_energy"])[some]
        # Chi-squared with d = 3 degrees of freedom, halved.
        assert (kinetic >= -1e-4).all()
        assert abs(kinetic.mean() - 1.5) < 5 * (1.5 / len(kinetic)) ** 0.5
        assert abs(kinetic.var() / 1.5 - 1) < 5 * (6 / len(kinetic)) ** 0.5


def test_potential_and_gradient_are_those_of_the_draws(run):
    found = run.fields
    z = {"x": found["z.x"], "scale": jnp.log(run.mcmc.get_samples()["scale"])}

    def potential(z):
        log = dist.Normal(0.0, 2.0).log_prob(z["x"]).sum() + dist.Normal(0.0, 0.5).log_prob(z["scale"])
        return -log - dist.Normal(z["x"].sum(), jnp.exp(z["scale"])).log_prob(Y).sum()

    value, gradient = jax.vmap(jax.value_and_grad(potential))(z)
    np.testing.assert_allclose(found["potential_energy"], value, rtol=1e-4, atol=1e-4)
    for name in z:
        np.testing.assert_allclose(found["z_grad"][name], gradient[name], rtol=1e-3, atol=2e-3)


def test_the_mass_matrix_is_the_covariance_of_the_kept_draws(run):
    adapted = run.mcmc.last_state.adapt_state
    x = np.asarray(run.fields["z.x"])[:KEPT]
    np.testing.assert_allclose(adapted.inverse_mass_matrix[("x",)], np.cov(x.T), rtol=1e-3)
    for names, inverse in adapted.inverse_mass_matrix.items():
        root, back = adapted.mass_matrix_sqrt[names], adapted.mass_matrix_sqrt_inv[names]
        if inverse.ndim == 1:
            np.testing.assert_allclose(1 / root**2, inverse, rtol=1e-4)
            np.testing.assert_allclose(root * back, 1.0, rtol=1e-4)
        else:
            np.testing.assert_allclose(np.linalg.inv(root @ root.T), inverse, rtol=1e-3)
            np.testing.assert_allclose(root @ back, np.eye(2), atol=1e-4)


@pytest.mark.parametrize(
    ("field", "options", "reason"),
    [
        ("r", {}, "momenta are drawn anew"), ("adapt_state.window_idx", {}, "nothing is adapted"),
        ("energy", {"refine_steps": 0}, "served raw"), ("nothing", {}, "has no 'nothing'; it has i, z,"),
    ],
)  # fmt: skip
def test_a_field_that_is_not_there_is_told_of_before_the_training(field, options, reason):
    kernel = DFTKernel(model, **QUICK | options)
    mcmc = MCMC(kernel, num_warmup=5, num_samples=5, progress_bar=False)
    with pytest.raises(SettingsError, match=reason):
        mcmc.run(jax.random.key(0), Y, extra_fields=("diverging", field))
    assert kernel.diagnostics == []


def test_a_warm_up_has_a_bar_and_must_be_asked_for_gradients_as_well(monkeypatch, capsys):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    mcmc = MCMC(DFTKernel(model, **QUICK), num_warmup=2, num_samples=5)
    mcmc.warmup(jax.random.key(0), Y)
    assert "gaussian: " in capsys.readouterr().err
    with pytest.raises(SettingsError, match="the warm-up was not asked for it"):
        mcmc.run(jax.random.key(1), Y, extra_fields=("z_grad.x",))


@pytest.mark.parametrize("method", daily(["vectorized", jax.vmap], "vectorized"))
def test_fields_of_several_chains(method):
    mcmc = MCMC(
        DFTKernel(model, **QUICK),
        num_warmup=0,
        num_samples=300,
        num_chains=2,
        chain_method=method,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), Y, extra_fields=FIELDS[:-1])
    found = jax.tree.map(np.asarray, mcmc.get_extra_fields(group_by_chain=True))
    assert found["z_grad"]["x"].shape == (2, 300, 2)
    assert {found[name].shape for name in ("energy", "num_steps", "adapt_state.step_size")} == {(2, 300)}
    means = np.cumsum(found["accept_prob"], 1) / np.arange(1, 301)
    np.testing.assert_allclose(found["mean_accept_prob"], means, rtol=1e-3)
    kinetic = found["energy"] - found["potential_energy"]
    assert (
        abs(kinetic.mean() - 1.5) < 5 * (1.5 / 400) ** 0.5
    )  # mapped chains share the transitions of their kept draws


@pytest.mark.parametrize("method", daily(["vectorized", "sequential"], "vectorized"))
def test_kept_draws_follow_the_warm_up_each_once_and_new_ones_follow_them(method):
    """Two chains of 100 kept draws each, from one training, whatever the warm-up was."""

    def run(warm_up, count):
        kernel = DFTKernel(model, **QUICK | {"num_draws": 200})
        mcmc = MCMC(
            kernel, num_warmup=warm_up, num_samples=count, num_chains=2, chain_method=method, progress_bar=False
        )  # fmt: skip
        mcmc.run(jax.random.key(3), Y)
        return kernel, mcmc.last_state, np.asarray(mcmc.get_samples(group_by_chain=True)["x"])

    kernel, last, kept = run(70, 100)
    _, _, more = run(0, 120)
    np.testing.assert_array_equal(kept, more[:, :100])
    assert np.isfinite(more).all()
    assert len(np.unique(more.reshape(-1, 2), axis=0)) == 2 * 120
    if method == "sequential":  # each state alone is tried below
        last = jax.tree.map(lambda leaf: leaf[0], last)
        kept = kept[:1]
    # A run that needs no new draws has no program for them. Who goes on from its last state gets some.
    after = jax.jit(lambda state: kernel.sample(state, (Y,), {}).z["x"])
    assert bool(jnp.isnan(after(last._replace(beyond=Beyond(False)))).all())
    fresh = np.asarray(after(last))
    assert np.isfinite(fresh).all()
    assert not (fresh[..., None, :] == kept).all(-1).any()


def test_fields_of_traced_data():
    kernel = DFTKernel(
        model, **grouped(QUICK | {"train": "auto", "num_steps": 10, "width": 8, "num_draws": 100})
    )

    @jax.jit
    def run(key, y):
        mcmc = MCMC(kernel, num_warmup=0, num_samples=150, progress_bar=False)
        mcmc.run(key, y, extra_fields=("energy", "num_steps", "accept_prob"))
        return mcmc.get_extra_fields()

    with pytest.warns(UserWarning, match="the data are traced"):
        found = run(jax.random.key(0), Y)
    # The first block are the draws of the measurement, refined twice as much.
    assert set(np.asarray(found["num_steps"][:100])) == {2 * 2 * 5}
    assert set(np.asarray(found["num_steps"][100:])) == {2 * 5}
    assert 0.5 < float(found["accept_prob"].mean()) < 1
    assert bool(jnp.isfinite(found["energy"]).all())


TREES = {
    "bare array": lambda x: x,
    "scalar": lambda x: x[0, 0],
    "tuple": lambda x: (x[0], x[1, 0]),
    "nested": lambda x: {"a": [x[0], {"b": x[1]}], "c": x[1, 1]},
}


@pytest.mark.parametrize("name", daily(TREES, "nested"))
def test_potentials_of_any_pytree(name):
    start = TREES[name](jnp.zeros((2, 2)))

    def potential(z):
        return sum(0.5 * jnp.square((leaf - 1.0) / 0.5).sum() for leaf in jax.tree.leaves(z))

    mcmc = MCMC(DFTKernel(potential_fn=potential, **QUICK), num_warmup=5, num_samples=400, progress_bar=False)
    mcmc.run(jax.random.key(0), init_params=start, extra_fields=("z_grad",))
    samples = mcmc.get_samples()
    assert jax.tree.structure(samples) == jax.tree.structure(start)
    for draws, gradient, first in zip(
        *map(jax.tree.leaves, (samples, mcmc.get_extra_fields()["z_grad"], start)), strict=True
    ):
        assert draws.shape == (400, *first.shape)
        assert np.abs(np.mean(draws, 0) - 1.0).max() < 5 * 0.5 / 400**0.5
        assert np.abs(np.std(draws, 0) / 0.5 - 1.0).max() < 5 / 800**0.5
        np.testing.assert_allclose(gradient, (draws - 1.0) / 0.25, atol=1e-3)
    assert jax.tree.structure(mcmc.last_state.z) == jax.tree.structure(start)


def test_chains_of_a_pytree_start_apart():
    mcmc = MCMC(
        DFTKernel(potential_fn=lambda z: 0.5 * (z[0] ** 2).sum(), **QUICK),
        num_warmup=2, num_samples=20, num_chains=2, chain_method="vectorized", progress_bar=False,
    )  # fmt: skip
    mcmc.run(jax.random.key(0), init_params=(jnp.array([[0.0, 1.0], [1.0, 0.0]]),))
    assert mcmc.get_samples(group_by_chain=True)[0].shape == (2, 20, 2)


def test_a_missing_plate_is_told_of_as_under_nuts():
    def rows():
        x = numpyro.sample("x", dist.Normal(0, 1))
        with numpyro.plate("N", 4):
            numpyro.sample("obs", dist.Normal(x, 1), obs=jnp.ones((3, 4)))

    with pytest.warns(UserWarning, match="Missing a plate statement for batch dimension -2 at site 'obs'"):
        DFT(rows, progress_bar=False, **QUICK).run(jax.random.key(0))


def test_get_samples_and_print_summary_take_what_mcmc_takes(capsys):
    def known(y):
        x = numpyro.sample("x", dist.Normal(0.0, 2.0))
        numpyro.deterministic("twice", 2 * x)
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)

    dft = DFT(known, progress_bar=False, **QUICK)
    dft.run(jax.random.key(0), 1.0)
    assert dft.get_samples(True)["x"].shape == (1, 200)
    assert dft.get_samples(False)["x"].shape == (200,)
    capsys.readouterr()
    dft.print_summary(0.5)
    text = capsys.readouterr().out
    assert "75.0%" in text
    assert "twice" not in text
    assert text.splitlines()[-1].startswith(f"DFT: {dft.diagnostics()['status']}")
    dft.print_summary(exclude_deterministic=False)
    assert "twice" in capsys.readouterr().out


def test_python_numbers_are_no_float64():
    def known(y, scale=1.0):
        x = numpyro.sample("x", dist.Normal(0.0, 2.0))
        numpyro.deterministic("c", np.arange(3.0))
        numpyro.sample("y", dist.Normal(x, scale), obs=y)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="the fit is")
        mcmc = MCMC(DFTKernel(known, **QUICK), num_warmup=0, num_samples=5, progress_bar=False)
        mcmc.run(jax.random.key(0), np.array([1.0, 2.0]), np.float64(1.0), init_params={"x": 0.5})
    assert mcmc.get_samples()["x"].dtype == np.float32
    substituted = numpyro.handlers.substitute(known, data={"x": 10.0})
    assert inspect_model(substituted, (1.0,), {}, {}).latent["x"].dtype == np.float32
