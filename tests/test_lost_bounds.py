"""Evidence bounds that are left of a density whose terms have cancelled in single precision are no optima."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyro_dft.engine_torch.engine import ENGINE
from pyro_dft.engine_torch.target import Target
from pyro_dft.recipe import gaussian_fit
from pyro_dft.recipe.gaussian_fit import GaussianFitter, lost

GOOD = (-2153.0, 0.05)


@pytest.mark.parametrize(
    ("found", "known", "dtype", "expected"),
    [
        ([GOOD, (3.6e6, 4.8e6)], -np.inf, "float32", [False, True]),
        ([(3.6e6, 4.8e6)], GOOD[0], torch.float32, [True]),
        ([(1.8e14, 5e13), GOOD], -np.inf, torch.float32, [True, False]),
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
