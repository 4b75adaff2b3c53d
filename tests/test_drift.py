"""The drift test: tails, false alarms with few draws and many coordinates, and what is left of the raw draws' errors."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import norm

from benchmarks.drift import alarm_table, false_alarms, power_table, student
from pyro_dft.judging import moments
from pyro_dft.judging.drift import FALSE_ALARMS, LIMITS, difference, drift
from pyro_dft.judging.moments import NEAR
from pyro_dft.judging.remains import left_over
from pyro_dft.judging.verdict import drift_entry


def transition(rng, x, memory):
    """Leaves N(0, 1) as it is."""
    return memory * x + math.sqrt(1 - memory**2) * rng.normal(size=x.shape)


def both_beyond(memory, level=0.05):
    """Chance that an autoregression starts and ends below the `level` quantile."""
    z = np.linspace(-9, NormalDist().inv_cdf(level), 4001)
    ends = norm.cdf((z[-1] - memory * z) / math.sqrt(1 - memory**2))
    return np.trapezoid(norm.pdf(z) * ends, z)


class TestStandardErrors:
    @pytest.mark.parametrize("memory", [0.0, 0.6])
    def test_they_are_those_of_the_autoregression(self, memory):
        """In closed form: their size and their sign, for each of the four rows."""
        rng, n = np.random.default_rng(0), 4000
        before = rng.normal(size=(n, 100))
        found = drift(before, transition(rng, before, memory))
        height = norm.pdf(norm.ppf(0.05))
        expected = [
            math.sqrt(2 - 2 * memory),
            math.sqrt(2 * (1 - memory**2)) / math.sqrt(2),
            *[math.sqrt(2 * (0.05 - both_beyond(memory))) / height] * 2,
        ]
        for row, error in enumerate(expected):
            # The density at a point is known to some 7 % in each coordinate, and has 2 % error.
            assert found.standard_errors[row].mean() == pytest.approx(error / math.sqrt(n), rel=0.04)

    def test_limits_allow_for_chance_and_not_the_reverse(self):
        """A sure size is less than the effect: no right coordinate has one, and a wrong one's holds its truth."""
        rng, n = np.random.default_rng(1), 2000
        before = rng.normal(size=(n, 400))
        after = transition(rng, before, 0.5)
        before[:, 200:] -= 0.4
        found = drift(before, after)
        # The mean moves to 0 and the draws forget half of where they were.
        assert found.sure[:, :200].max() <= 0
        moved = found.sure[0, 200:]
        covered = (moved < 0.4).mean()
        assert covered > 0.975 - 4 * math.sqrt(0.025 * 0.975 / 200)
        # sqrt(2 - 2 * 0.5) / sqrt(2000): the limits are 1.96 of these below 0.4 in the middle.
        assert np.median(moved) == pytest.approx(0.4 - 1.96 / math.sqrt(2000), abs=0.01)
        inside = (found.gap_low[0, 200:] < found.gap[0, 200:]) & (
            found.gap[0, 200:] < found.gap_high[0, 200:]
        )
        assert inside.all()

    def test_gap_limits_cover_the_gap(self):
        """One coordinate at a time, the limits of four gaps hold together with 95 % or more."""
        rng, misses = np.random.default_rng(2), 0
        for _ in range(300):
            before = rng.normal(size=(200, 1)) - 0.5
            found = drift(before, transition(rng, before, 0.7))
            misses += not found.gap_low[0, 0] < 0.5 < found.gap_high[0, 0]
        assert misses <= 300 * 0.0125 + 4 * math.sqrt(300 * 0.0125)


class TestTails:
    @pytest.mark.parametrize("bend", [lambda z: z, student, lambda z: np.exp(0.5 * z)])
    @pytest.mark.parametrize("end", [-1, 1])
    def test_a_point_that_is_off_is_seen_in_sds(self, end, bend):
        """Draws whose mean and sd are right and whose 5 or 95 % point is not; other rows keep still."""
        rng, n = np.random.default_rng(3), 100_000
        after = bend(rng.normal(size=(n, 1)))
        point = np.quantile(after, 0.5 + 0.45 * end)
        before = bend(rng.normal(size=(n, 1)))
        sd = after.std()
        near = np.abs(before - point) < 0.3 * sd
        before = np.where(near, before - 0.08 * end * sd, before)
        truth = (point - np.quantile(before, 0.5 + 0.45 * end)) / sd
        found = drift(before, after)
        row = 2 if end < 0 else 3
        assert abs(truth) == pytest.approx(0.08, abs=0.03)
        # A standard error of sqrt(2 * .05 * .95 / 100,000) / .103 = .0095, more in long tails.
        assert found.effects[row, 0] == pytest.approx(truth, abs=4 * found.standard_errors[row, 0] + 0.01)
        assert np.abs(found.effects[:2]).max() < 0.03

    def test_a_missing_tail_is_flagged_where_moments_hardly_move(self):
        """Half of the lowest twentieth is missing: 0.06 of a mean, 0.05 of a log sd."""
        rng, n = np.random.default_rng(4), 20_000
        x = rng.normal(size=(2 * n, 3))
        gone = (x[:, 1] < NormalDist().inv_cdf(0.05)) & (rng.random(2 * n) < 0.6)
        before = x[~gone][:n]
        found = drift(before, transition(rng, before, 0.0))
        assert found.moment == "5 % point"
        assert found.coordinate == 1
        assert found.flagged()
        assert np.abs(found.effects[:2]).max() < 0.1
        entry = drift_entry(found, ["a", "b", "c"])
        assert entry["flagged"]
        assert (entry["coordinate"], entry["moment"]) == ("b", "5 % point")

    def test_memory_of_a_tail_extrapolates(self):
        """Two states: the tail is left with 10 %, and holds 4.9 % of the draws in place of 6 %."""
        rng, n = np.random.default_rng(5), 40_000
        inside = rng.random(n) < 0.049
        leaves, enters = 0.1, 0.1 * 0.06 / 0.94
        later = np.where(inside, rng.random(n) > leaves, rng.random(n) < enters)
        far = -5 - rng.random(n)

        def draws(mask):
            return np.where(mask, far, rng.random(n) - 0.5)[:, None]

        found = drift(draws(inside), draws(later))
        assert found.memory[2, 0] == pytest.approx(1 - leaves - enters, abs=0.05)
        # What enters is about a tenth of the gap.
        assert found.gap[2, 0] / found.effects[2, 0] == pytest.approx(1 / (leaves + enters), rel=0.35)

    def test_no_effect_is_much_larger_than_the_points_are_apart(self):
        rng = np.random.default_rng(6)
        before, after = 3 * rng.normal(size=(4000, 2)), rng.normal(size=(4000, 2))
        found = drift(before, after)
        apart = np.abs(np.quantile(before, [0.05, 0.95], axis=0) - np.quantile(after, [0.05, 0.95], axis=0))
        assert (np.abs(found.effects[2:]) <= apart / after.std(0, ddof=1) + NEAR + 1e-9).all()  # rounding

    def test_discrete_and_stuck_draws_do_no_harm(self):
        rng = np.random.default_rng(7)
        before = rng.integers(2, size=(500, 2)).astype(float)
        found = drift(before, rng.permuted(before, axis=0))
        assert np.isfinite(found.effects).all()
        assert not found.flagged()
        assert not found.gap_flagged


class TestFalseAlarms:
    @pytest.mark.parametrize("memory", [0.2, 0.9])
    @pytest.mark.parametrize(("n", "d"), [(40, 31), (125, 31)])
    def test_right_draws_hardly_ever_sound_one(self, n, d, memory):
        repeats = 50
        count, plain = false_alarms(n, d, memory, student, repeats)
        # 2 % at most, and four standard errors of that share.
        assert count <= 0.02 * repeats + 4 * math.sqrt(0.02 * repeats)
        assert memory > 0.5 or plain > 0.2 * repeats

    def test_significance_is_that_of_all_together(self):
        rng, sounded = np.random.default_rng(8), 0
        for _ in range(400):
            before = rng.normal(size=(60, 5))
            sounded += drift(before, transition(rng, before, 0.3)).significant.any()
        assert sounded <= 400 * FALSE_ALARMS + 4 * math.sqrt(400 * FALSE_ALARMS)

    def test_an_error_of_two_tenths_is_still_seen_with_many_draws(self):
        rng, seen = np.random.default_rng(9), 0
        for _ in range(20):
            before = rng.normal(size=(4000, 12))
            before[:, 7] += 0.2
            found = drift(before, transition(rng, before, 0.0))
            seen += found.flagged()
        assert seen >= 18  # by chance 0.2 is missed by its limit of 0.1 + 1.96 * 0.022 in one of 200

    def test_few_draws_say_how_little_they_see(self):
        rng = np.random.default_rng(10)
        before = rng.normal(size=(40, 5))
        assert drift(before, rng.normal(size=(40, 5))).resolution > 0.15
        before = rng.normal(size=(4000, 5))
        assert drift(before, rng.normal(size=(4000, 5))).resolution < 0.03

    def test_the_benchmark_writes_its_tables(self, monkeypatch):
        monkeypatch.setattr("benchmarks.drift.DRAWS", (40,))
        monkeypatch.setattr("benchmarks.drift.COORDINATES", (1, 2))
        monkeypatch.setattr("benchmarks.drift.POWER_DRAWS", (50,))
        alarming, power = alarm_table(5), power_table(2, d=2)
        assert [line.split("|")[4].strip() for line in alarming[2:]] == ["25", "25"]
        assert len(power) == 2 + 8


class TestLeftOver:
    @staticmethod
    def chain(memory, shift, n=4000, d=2):
        rng = np.random.default_rng(11)
        raw = rng.normal(size=(n, d))
        raw[:, 0] += shift
        half = transition(rng, raw, memory)
        return drift(raw, half), drift(half, transition(rng, half, memory))

    @pytest.mark.parametrize("memory", [0.3, 0.6, 0.9])
    def test_it_is_what_the_transitions_leave(self, memory):
        size, error = left_over(*self.chain(memory, 0.5))
        # The mean is off by 0.5, shrunk by its margin, and `memory` of it is left, with what does not show.
        assert size[0, 0] == pytest.approx(0.5, abs=0.2)
        assert error[0, 0] / size[0, 0] == pytest.approx(memory + 0.15 * (1 - memory), abs=0.06)
        assert error[:, 1:].max() < 0.02

    def test_it_has_no_cliff(self):
        errors = [left_over(*self.chain(0.5, shift))[1].max() for shift in np.linspace(0.0, 0.6, 25)]
        assert errors[0] < 0.01
        assert errors[-1] > 0.2
        assert np.abs(np.diff(errors)).max() < 0.06

    def test_right_draws_leave_nothing(self):
        _, error = left_over(*self.chain(0.5, 0.0))
        assert error.max() == 0

    def test_chance_memory_of_few_chains_leaves_nothing_and_true_memory_does(self):
        """64 chains of 64 states in 100 coordinates, all of whose raw draws were off by one sd; the first one remembers."""
        rng, d, chains, half = np.random.default_rng(12), 100, 64, 32
        remembered = np.zeros((chains, 1, d))
        remembered[:, 0, 0] = np.sqrt(0.8) * rng.normal(size=chains)
        own = np.sqrt(1 - np.where(np.arange(d) == 0, 0.8, 0.0))
        first, second = (remembered + own * rng.normal(size=(chains, half, d)) for _ in range(2))
        refined = drift(first.reshape(-1, d), second.reshape(-1, d), None, half)
        raw = difference(rng.normal(size=(4000, d)) + 1.0, first.reshape(-1, d), half)
        size, error = left_over(raw, refined, chains=True)
        assert size[0].min() > 0.5
        assert error[0, 1:].max() < 0.03
        assert error[0, 0] / size[0, 0] == pytest.approx(0.8, abs=0.15)


def test_limits_of_the_points_are_wider():
    assert LIMITS.ravel().tolist() == [0.1, 0.1, 0.15, 0.15]


@pytest.mark.parametrize("n", [1, 2, 40, 4097])
def test_quantiles_are_those_of_numpy(n):
    x = np.random.default_rng(n).normal(size=(n, 3))
    x[:, 2] = np.round(x[:, 2])  # ties
    for levels in ((0.05, 0.95), (0.0, 0.03, 0.5, 1.0)):
        np.testing.assert_allclose(moments.quantiles(x, levels), np.quantile(x, levels, axis=0), rtol=1e-12)
