"""Limits that a verdict holds measured numbers against: how often do they sound a false alarm?"""

from __future__ import annotations

import numpy as np
import pytest

from pyro_dft.judging.rhat import rhat
from pyro_dft.judging.verdict import RHAT_LIMIT, approximation_error, rhat_limit

FITS = 300


class TestApproximationError:
    def test_it_is_in_sds(self):
        rng = np.random.default_rng(0)
        before = 5.0 + 3.0 * rng.normal(size=(1, 40_000, 2))
        after = 5.0 + 3.0 * rng.normal(size=(1, 40_000, 2))
        after[..., 1] += 3.0 * 0.2
        found = approximation_error(before, after)
        assert found.shape == (2,)
        assert found[0] == 0.0
        # A difference of two means: the noise is sqrt(2 / 40000) = 0.007.
        assert found[1] == pytest.approx(0.2, abs=4 * 0.007)

    def test_chains_that_disagree(self):
        rng = np.random.default_rng(1)
        after = rng.normal(size=(4, 10_000, 3))
        shift = np.array([-0.3, -0.1, 0.1, 0.3])
        after[..., 2] += shift[:, None]
        found = approximation_error(after, after)
        np.testing.assert_array_equal(found[:2], 0.0)
        # The mean of four samplers has a quarter of their variance, whose noise is some 0.01 / 0.26.
        assert found[2] == pytest.approx(shift.std(ddof=1) / 2, rel=0.15)

    @pytest.mark.parametrize("chains", [1, 4])
    def test_a_site_without_error_hardly_ever_shows_one(self, chains):
        rng = np.random.default_rng(2)
        shape = (chains, 100, 30)
        alarms = sum(
            approximation_error(rng.normal(size=shape), rng.normal(size=shape)).any() for _ in range(FITS)
        )
        # 10 % at most, and 4 standard errors of that share.
        assert alarms / FITS < 0.1 + 4 * (0.1 * 0.9 / FITS) ** 0.5


class TestRhatLimit:
    def test_many_draws_leave_it_at_one_percent(self):
        assert rhat_limit(chains=4, draws=1000, coordinates=31) == RHAT_LIMIT
        assert rhat_limit(chains=2, draws=2000, coordinates=31) == RHAT_LIMIT

    @pytest.mark.parametrize(("chains", "draws"), [(2, 10), (2, 100), (4, 100), (8, 50)])
    def test_chance_hardly_ever_passes_it(self, chains, draws):
        rng = np.random.default_rng(3)
        limit = rhat_limit(chains, draws, coordinates=10)
        passed = sum(rhat(rng.normal(size=(chains, draws, 10))).max() > limit for _ in range(FITS))
        assert limit > RHAT_LIMIT
        assert passed / FITS < 0.05 + 4 * (0.05 * 0.95 / FITS) ** 0.5
