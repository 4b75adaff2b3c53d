"""Modes that are exact copies of others are not missed."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_dft.judging.symmetry import is_copy
from pyro_dft.judging.verdict import Restarts, Served, optima_entry

MEAN = np.array([3.0, -1.0, 0.0, 7.0])
FACTOR = np.diag([0.5, 1.0, 2.0, 0.1])
ORDER, SIGNS = np.array([3, 0, 2, 1]), np.array([1.0, -1.0, 1.0, -1.0])


def density(mean, factor):
    return lambda x: -0.5 * np.square((x - mean) / np.diagonal(factor)).sum(-1)


class TestIsCopy:
    other = SIGNS * MEAN[ORDER]
    other_factor = np.diag(np.diagonal(FACTOR)[ORDER])

    def test_exchanged_and_flipped(self):
        # The fits that means and sds come from are not exact.
        for shift in (0.0, 0.2):
            mean = self.other + shift * np.diagonal(self.other_factor)
            assert is_copy(MEAN, FACTOR, mean, 1.1 * self.other_factor, self.invariant)

    def test_in_many_dimensions_by_standard_deviations(self):
        """310 coordinates: four of them exchanged and flipped as above, the others the same."""
        more = np.linspace(-2.0, 2.0, 306)
        one, other = np.append(MEAN, more), np.append(self.other, more)
        sds = np.append(np.diagonal(FACTOR), np.ones(306))
        other_sds = np.append(np.diagonal(self.other_factor), np.ones(306))

        def log_density(x):
            return self.invariant(x[:, :4]) - 0.5 * np.square(x[:, 4:] - more).sum(-1)

        assert is_copy(one, sds, other, other_sds, log_density)
        assert not is_copy(one, sds, other, other_sds, lambda x: log_density(x) - 0.01 * x[:, 0] ** 2)

    @staticmethod
    def invariant(x):
        return -0.5 * np.square(np.sort(np.abs(x), -1) - np.sort(np.abs(MEAN))).sum(-1)

    def test_another_mode_of_the_same_mass_is_none(self):
        other = density(self.other, self.other_factor)

        def log_density(x):
            return np.logaddexp(density(MEAN, FACTOR)(x), other(x) - 0.01 * np.square(x).sum(-1))

        assert not is_copy(MEAN, FACTOR, self.other, self.other_factor, log_density)


def entry(log_density, ends=lambda _: None, passed=()):
    """Two optima, at (3, -1) and at (-1, 3), and draws of the first one."""
    means, scales = np.array([[3.0, -1.0], [-1.0, 3.0]]), np.tile(0.3 * np.eye(2), (2, 1, 1))
    draws = means[0] + 0.3 * np.random.default_rng(0).normal(size=(400, 2))
    served = Served(draws, draws, log_density(draws))
    return optima_entry(Restarts(means, scales, np.zeros(2), np.zeros(2)), served, log_density, ends, passed)


def test_a_missed_optimum_in_many_dimensions():
    """Where roots of covariances are standard deviations, (K, d)."""
    means = np.stack([np.full(310, 3.0), np.full(310, -3.0)])
    draws = means[0] + 0.3 * np.random.default_rng(0).normal(size=(400, 310))
    sds = np.full((2, 310), 0.3)

    def log_density(x, lean):
        ends = [-0.5 * np.square((x - mean) / 0.3).sum(-1) for mean in means]
        return np.logaddexp(ends[0], ends[1] + lean * x[:, 0])

    for lean, missing in ((0.0, []), (-0.1, [1])):
        served = Served(draws, draws, log_density(draws, lean))
        restarts = Restarts(means, sds, np.zeros(2), np.zeros(2))
        found = optima_entry(restarts, served, lambda x, lean=lean: log_density(x, lean), lambda _: None)
        assert found["missing"] == missing
        assert found["copies"] == ([] if missing else [1])


def mixture(*shares):
    means = np.array([[3.0, -1.0], [-1.0, 3.0]])

    def log_density(x):
        return np.logaddexp.reduce(
            np.log(shares) - 0.5 * np.square((x[:, None] - means) / 0.3).sum(-1), axis=-1
        )

    return log_density


def test_an_exact_copy_is_not_missing():
    report = entry(mixture(0.5, 0.5))
    assert (report["missing"], report["copies"]) == ([], [1])


def test_a_mode_of_another_weight_is_missing():
    report = entry(mixture(0.5, 0.49))
    assert (report["missing"], report["copies"]) == ([1], [])


def test_an_optimum_that_transitions_leave_for_the_draws_is_not_missing():
    """As the evidence bounds have it, it holds half of the posterior: on a ridge they are no guide."""
    noise = np.random.default_rng(1).normal(size=(64, 2))
    here, there, elsewhere = (np.array(at) + 0.3 * noise for at in [(3.0, -1.0), (-1.0, 3.0), (9.0, -9.0)])
    report = entry(mixture(0.5, 0.49), lambda restart: here)
    assert (report["missing"], report["left"]) == ([], [1])
    for ends in (there, elsewhere, np.full_like(here, np.nan)):
        report = entry(mixture(0.5, 0.49), lambda restart, ends=ends: ends)
        assert (report["missing"], report["left"]) == ([1], [])


@pytest.mark.parametrize(("passed", "missing"), [([], [1]), ([0], [1]), ([1], []), ([0, 1], [])])
def test_an_optimum_that_chains_started_at_and_pass_from_is_not_missing(passed, missing):
    report = entry(mixture(0.5, 0.49), passed=passed)
    assert (report["missing"], report["left"]) == (missing, [] if missing else [1])
