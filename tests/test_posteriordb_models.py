"""The posteriordb models: coordinates, data to arguments, twin densities, Stein identities over the references."""

import jax
import numpy as np
import pyro
import pytest
import torch
from torch.distributions import biject_to

from benchmarks import data
from benchmarks.posteriordb import check, numpyro_models, pyro_models
from benchmarks.posteriordb.posteriors import (
    POSTERIORS,
    Posterior,
    coordinate_names,
    numpyro_model,
    pyro_model,
    reference_columns,
    reference_draws,
    unconstrain,
)

ALL_KINDS = Posterior(
    "made-up",
    "none",
    lambda d: (),
    (
        ("a", "real"),
        ("b", "positive"),
        ("c", "unit"),
        ("d", "simplex2"),
        ("e", "ordered"),
        ("f", "positive_ordered"),
    ),
    pyro=False,
)


def _have_data() -> bool:
    try:
        data.posteriordb_path("data/kidiq.json.zip")
    except FileNotFoundError:
        return False
    return True


needs_data = pytest.mark.skipif(not _have_data(), reason="posteriordb's files are not there")


@pytest.fixture
def float64():
    """Double precision in both frameworks, put back afterwards."""
    before, x64 = torch.get_default_dtype(), jax.config.jax_enable_x64
    torch.set_default_dtype(torch.float64)
    jax.config.update("jax_enable_x64", True)
    yield
    torch.set_default_dtype(before)
    jax.config.update("jax_enable_x64", x64)


def constrain(u: np.ndarray) -> dict[str, np.ndarray]:
    """The inverse of `unconstrain` for `ALL_KINDS` with ``a`` of shape (n, 2, 1)."""
    share, first = 1 / (1 + np.exp(-u[:, 4])), np.exp(u[:, 7])
    return {
        "a": u[:, :2].reshape(-1, 2, 1),
        "b": np.exp(u[:, 2]),
        "c": 1 / (1 + np.exp(-u[:, 3])),
        "d": np.stack([share, 1 - share], 1),
        "e": np.stack([u[:, 5], u[:, 5] + np.exp(u[:, 6])], 1),
        "f": np.stack([first, first + np.exp(u[:, 8])], 1),
    }


def test_coordinates_are_those_of_the_constrained_values():
    u = np.random.default_rng(0).normal(size=(50, 9))
    back = unconstrain(ALL_KINDS, constrain(u))
    assert back.dtype == np.float64
    np.testing.assert_allclose(back, u, atol=1e-12)


def test_values_rounded_to_the_boundary_stay_finite_with_a_warning():
    values = {k: v.astype(np.float32) for k, v in constrain(np.zeros((3, 9))).items()}
    values["b"][0] = 0.0
    values["c"][1] = 1.0
    values["d"][1] = [1.0, 0.0]
    values["e"][2] = [7.0, 7.0]
    with pytest.warns(RuntimeWarning, match="1 of 3 values lie on the boundary"):
        u = unconstrain(ALL_KINDS, values)
    assert np.isfinite(u).all()
    assert u[0, 2] == pytest.approx(np.log(np.finfo(np.float32).tiny))
    assert 16 < u[1, 3] < 18  # half the spacing of float32 at one
    assert -15 < u[2, 6] < -14


def test_values_outside_of_the_support_are_refused_and_nan_is_kept():
    values = constrain(np.zeros((3, 9)))
    values["b"][0] = np.nan
    u = unconstrain(ALL_KINDS, values)
    assert np.flatnonzero(np.isnan(u)).tolist() == [2]
    values["b"][1] = -1.0
    with pytest.raises(ValueError, match="b: 1 values are outside"):
        unconstrain(ALL_KINDS, values)


def test_the_table_is_complete():
    assert len(POSTERIORS) == 36
    assert len({p.reference_name() for p in POSTERIORS.values()}) == 35
    for posterior in POSTERIORS.values():
        assert hasattr(numpyro_models, posterior.function)
        assert hasattr(pyro_models, posterior.function) == posterior.pyro


@needs_data
def test_every_posterior_has_arguments_and_coordinates():
    for posterior in POSTERIORS.values():
        for argument in numpyro_model(posterior)[1]:
            assert np.isfinite(argument).all(), posterior.name
        names = coordinate_names(posterior)
        simplices = sum(kind == "simplex2" for _, kind in posterior.sites)
        assert len(set(names)) == sum(map(len, reference_columns(posterior).values())) - simplices


@needs_data
def test_reference_draws_are_named_and_finite():
    for name in ("hmm_example-hmm_example", "low_dim_gauss_mix-low_dim_gauss_mix"):
        draws = reference_draws(POSTERIORS[name])
        assert draws.shape == (10, 1000, len(coordinate_names(POSTERIORS[name])))
        assert np.isfinite(draws).all()
    assert coordinate_names(POSTERIORS["hmm_example-hmm_example"]) == [
        "logit theta1[1]",
        "logit theta2[1]",
        "log mu[1]",
        "log(mu[2]-mu[1])",
    ]
    with pytest.raises(ValueError, match="no Pyro model"):
        pyro_model(POSTERIORS["hudson_lynx_hare-lotka_volterra"])


@needs_data
@pytest.mark.parametrize(
    "name", ["mesquite-logmesquite_logvas", "arma-arma11", "bball_drive_event_0-hmm_drive_0"]
)
def test_pyro_and_numpyro_densities_are_the_same(name, float64):
    assert check.twin_gap(POSTERIORS[name], points=3) < 1e-8


@needs_data
def test_supports_of_pyro_are_those_of_the_sites(float64):
    """Equal densities do not show a support that is too wide, as a transformed distribution's may be."""
    inside = {
        "real": lambda x: torch.isfinite(x).all() and (x < 0).any(),
        "positive": lambda x: (x > 0).all(),
        "unit": lambda x: ((x > 0) & (x < 1)).all(),
        "simplex2": lambda x: (x > 0).all() and torch.allclose(x.sum(-1), torch.ones(100)),
        "ordered": lambda x: (x[:, 0] < x[:, 1]).all() and (x[:, 0] < 0).any(),
    }
    for posterior in {p.function: p for p in POSTERIORS.values() if p.pyro}.values():
        model, args = pyro_model(posterior)
        pyro.set_rng_seed(0)
        trace = pyro.poutine.trace(model).get_trace(*args)
        kinds = {f"{k}_steps" if v == "positive_ordered" else k: v for k, v in posterior.sites}
        for name in trace.stochastic_nodes:
            if name not in kinds:  # a plate, or the standardised form of a site
                continue
            support, value = trace.nodes[name]["fn"].support, trace.nodes[name]["value"]
            shape = biject_to(support).inv(value).shape
            draws = biject_to(support)(torch.randn(100, *shape))
            assert draws.shape[1:] == value.shape
            assert inside[kinds[name].replace("positive_ordered", "positive")](draws), (posterior.name, name)


@needs_data
@pytest.mark.parametrize(
    "name",
    ["kidiq-kidscore_momhs", "eight_schools-eight_schools_noncentered", "hmm_example-hmm_example"],
)
def test_reference_draws_obey_the_stein_identities_of_the_model(name, float64):
    mean, outer = check.stein(POSTERIORS[name], draws=200)
    assert np.abs(mean).max() < check.LIMIT
    assert np.abs(outer).max() < check.LIMIT


@needs_data
def test_a_missing_prior_shows(float64, monkeypatch):
    monkeypatch.setattr(numpyro_models, "half_cauchy_regression", numpyro_models.blr)
    mean, outer = check.stein(POSTERIORS["kidiq-kidscore_momhs"], draws=200)
    assert max(np.abs(mean).max(), np.abs(outer).max()) > 2 * check.LIMIT
