"""Evidence bounds that are left of a density whose terms have cancelled in single precision are no optima."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.scipy.special import log_ndtr

from pyro_dft.engine_jax.engine import ENGINE as JAX
from pyro_dft.engine_jax.target import Target as JaxTarget
from pyro_dft.engine_torch.engine import ENGINE
from pyro_dft.engine_torch.target import Target
from pyro_dft.recipe import gaussian_fit
from pyro_dft.recipe.gaussian_fit import GaussianFitter
from pyro_dft.recipe.lost_bounds import jumps, lost, sound

GOOD = (-2153.0, 0.05)


@pytest.mark.parametrize(
    ("found", "known", "dtype", "expected"),
    [
        ([GOOD, (3.6e6, 4.8e6)], -np.inf, "float32", [False, True]),
        ([(3.6e6, 4.8e6)], GOOD[0], torch.float32, [True]),
        ([(1.8e14, 5e13), GOOD], -np.inf, torch.float32, [True, False]),
        ([(1.8e14, 5e13), (2e20, 0.0)], -np.inf, "float32", [False, False]),  # improper
        ([(1.8e14, 5e13), (-6e26, 1e25)], -np.inf, "float32", [False, False]),  # nor here
        ([(1.8e14, 5e13), GOOD], -np.inf, "float64", [False, False]),  # which resolves it
        ([(3.6e6, 4.8e6)], -np.inf, "float32", [False]),  # there is nothing else
        ([(1e5, 2e3), GOOD], -np.inf, "float32", [False, False]),  # higher by far more than its error
        ([(-2e10, 0.1), (-5e10, 1e5)], -np.inf, "float32", [False, False]),  # very many rows
        ([(2e7, 0.1), (7e6, 0.1), (-1e9, 1e5)], -np.inf, "float32", [False, False, True]),
        ([(-np.inf, 0.0), GOOD], -np.inf, "float32", [False, False]),
        ([(-np.inf, 0.0)], -np.inf, "float32", [False]),
    ],
)
def test_what_is_left_of_a_density_whose_terms_have_cancelled_is_no_bound(found, known, dtype, expected):
    elbo, error = np.array(found).T
    np.testing.assert_array_equal(lost(elbo, error, known, dtype), expected)


def test_single_precision_loses_a_normal_of_low_rank_where_a_variance_is_tiny():
    """So that such bounds are met at all: the density is higher by a thousand nats than in double precision."""
    rng = np.random.default_rng(0)
    y, loadings = rng.normal(size=(200, 10)), rng.normal(0, 0.8, (10, 2))

    def density(dtype):
        variance = torch.full((10,), 0.25, dtype=dtype)
        variance[0] = 1e-12
        normal = torch.distributions.LowRankMultivariateNormal(
            torch.zeros(10, dtype=dtype), torch.tensor(loadings, dtype=dtype), variance
        )
        return float(normal.log_prob(torch.tensor(y, dtype=dtype)).sum())

    assert density(torch.float32) > density(torch.float64) + 1000


@pytest.mark.parametrize(("dtype", "expected"), [(torch.float32, True), (torch.float64, False)])
def test_a_restart_that_ends_there_is_none_that_ended(dtype, expected, monkeypatch):
    """Of two restarts at two modes, the second of which has such a bound: the first is the best, unless the dtype resolves it."""
    target = Target(lambda x: -torch.logaddexp(-2 * (x - 5) ** 2, -2 * (x + 5) ** 2).sum(), 1, dtype=dtype)
    rng = torch.Generator().manual_seed(0)
    starts = np.array([[[5.0], [-5.0]]])
    fitter = GaussianFitter(ENGINE, target, starts, np.ones(2), steps=100, rng=rng, known=None)
    while not fitter.done:
        fitter.advance()
    assert len(fitter.result().elbo) == 2
    monkeypatch.setattr(
        gaussian_fit, "bound", lambda *_: (np.array([GOOD[0], 1.8e14]), np.array([GOOD[1], 5e13]))
    )
    found = fitter.result()
    assert np.isneginf(found.elbo[1]) == expected
    assert found.elbo[0] == GOOD[0]
    assert list(found.best_of_chains(1)) == [0 if expected else 1]


def test_others_are_held_against_bounds_that_are_known_alone():
    elbo = np.array([GOOD[0], 1e5, 1.8e14, 4e9, -np.inf])
    error = np.array([GOOD[1], 2e3, 0.0, 0.0, 0.0])
    assert list(sound(elbo, error, "float32")) == [True, False, False, True, True]
    assert list(sound(elbo, error, torch.float64)) == [True, False, True, True, True]


def test_a_density_jumps_where_points_next_to_each_other_are_far_apart():
    values = np.array([[1.0, 1.5, 0.5], [1e6, -3e5, 2e6], [-np.inf, 1.0, 2.0], [-np.inf, -np.inf, -np.inf]])
    assert list(jumps(values)) == [False, True, False, False]


def exgaussian(x, y):
    """Potential of a normal and an exponential variable together: mean, log sd, log rate. Terms cancel where the rate is huge."""
    mean, sd, rate = x[0], jnp.exp(x[1]), jnp.exp(x[2])
    z = (mean + rate * sd**2 - y) / sd
    terms = x[2] + rate * (mean + 0.5 * rate * sd**2 - y) + log_ndtr(-z)
    return 0.5 * jnp.square(x / 3).sum() - terms.sum()


@pytest.mark.parametrize("wide", [[0.0, 2.0, 9.0], [0.0, 1.0, 6.0]])
def test_a_good_restart_is_not_given_up_for_one_whose_density_is_rounding_errors(wide):
    """Tolerances: three sds of the posterior and more, which are .03, .2 and .1 with 200 data."""
    rng = np.random.default_rng(0)
    y = (rng.normal(0.5, 0.1, 200) + rng.exponential(0.2, 200)).astype(np.float32)
    target = JaxTarget(exgaussian, 3, data=y)
    starts, sds = np.array([[[0.4, -1.5, 1.0], wide, wide]]), np.array([0.1, 1.0, 2.0])
    fitter = GaussianFitter(JAX, target, starts, sds, steps=200, rng=rng)
    while not fitter.done:
        fitter.advance()
    found = fitter.result()
    best = found.best_of_chains(1)[0]
    assert (np.abs(found.mean[best] - [0.5, np.log(0.1), -np.log(0.2)]) < [0.09, 0.6, 0.3]).all()
    assert 14 < found.elbo[best] < 18
    assert np.isneginf(np.delete(found.elbo, best)).all()


@pytest.mark.parametrize(("jumping", "expected"), [(False, 1e5), (True, -np.inf)])
def test_a_high_bound_that_is_badly_known_counts_where_the_density_does_not_jump(
    jumping, expected, monkeypatch
):
    """Looked at next to the mean of that restart alone: its error is above 1,000 nats."""
    target = Target(
        lambda x: -torch.logaddexp(-2 * (x - 5) ** 2, -2 * (x + 5) ** 2).sum(), 1, dtype=torch.float32
    )
    rng = torch.Generator().manual_seed(0)
    fitter = GaussianFitter(ENGINE, target, np.array([[[5.0], [-5.0]]]), np.ones(2), steps=100, rng=rng)
    while not fitter.done:
        fitter.advance()
    looked = []

    def noted(values):
        looked.append(values)
        return np.full(len(values), True) if jumping else jumps(values)

    monkeypatch.setattr(gaussian_fit, "jumps", noted)
    monkeypatch.setattr(
        gaussian_fit, "bound", lambda *_: (np.array([GOOD[0], 1e5]), np.array([GOOD[1], 2e3]))
    )
    assert list(fitter.result().elbo) == [GOOD[0], expected]
    [values] = looked
    assert values.shape == (1, 8)
    assert np.ptp(values) < 1e-3


def test_rounding_errors_do_not_go_first_with_whole_matrices():
    """Of two restarts in more than fifty dimensions, where scales are fitted first."""
    dim = 60
    target = Target(lambda x: 0.5 * (x**2).sum(), dim, dtype=torch.float32)
    starts = np.stack([np.full(dim, 3.0), np.full(dim, -3.0)])[None]
    fitter = GaussianFitter(
        ENGINE, target, starts, np.ones(2), steps=100, rng=torch.Generator().manual_seed(0)
    )
    fitter._state.best = np.array([-50.0, 1e20])
    fitter._best_go_first()
    assert list(fitter._member) == [0, -1]
    assert list(fitter.current().elbo) == [-50.0, -np.inf]
