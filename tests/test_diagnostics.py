"""Kernel Stein discrepancy, drift test, R-hat, effective sample size, Pareto-smoothed importance sampling."""

import math
import warnings

import numpy as np
import pytest

from pyro_dft.evidence.psis import khat_threshold, psis
from pyro_dft.judging.drift import drift
from pyro_dft.judging.rhat import ess, rhat
from pyro_dft.judging.stein import ksd


@pytest.fixture(scope="module")
def arviz():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ 0.23 announces 1.0 at import
        import arviz
    return arviz


class TestKSD:
    @staticmethod
    def naive_stein_kernel(x, y, sx, sy):
        """Stein kernel with the kernel's derivatives written out coordinate by coordinate."""
        c2, beta = 1.0, -0.5
        q = c2 + sum((xi - yi) ** 2 for xi, yi in zip(x, y, strict=True))
        k = q**beta
        total = 0.0
        for xi, yi, sxi, syi in zip(x, y, sx, sy, strict=True):
            dk_dx = beta * q ** (beta - 1) * 2 * (xi - yi)
            dk_dy = -dk_dx
            d2k = -4 * beta * (beta - 1) * q ** (beta - 2) * (xi - yi) ** 2 - 2 * beta * q ** (beta - 1)
            total += sxi * syi * k + sxi * dk_dy + syi * dk_dx + d2k
        return total

    @pytest.mark.parametrize("n", [7, 530])  # the second spans two blocks of rows
    def test_statistics_equal_double_loop(self, n):
        rng = np.random.default_rng(1)
        x, s = rng.normal(size=(n, 3)) + 40.0, rng.normal(size=(n, 3))
        few = range(n) if n < 10 else range(500, 530)
        if n < 10:
            h = np.array([[self.naive_stein_kernel(x[i], x[j], s[i], s[j]) for j in few] for i in few])
            u, v = (h.sum() - np.trace(h)) / (n * (n - 1)), h.mean()
        else:
            diff = x[:, None] - x
            q = 1.0 + (diff**2).sum(-1)
            cross = np.einsum("id,ijd->ij", s, diff) - np.einsum("jd,ijd->ij", s, diff)
            h = s @ s.T / np.sqrt(q) + (cross + 3) / q**1.5 - 3 * (q - 1) / q**2.5
            for i in few:
                assert h[i, 0] == pytest.approx(self.naive_stein_kernel(x[i], x[0], s[i], s[0]), rel=1e-9)
            u, v = (h.sum() - np.trace(h)) / (n * (n - 1)), h.mean()
        result = ksd(x, s, n_boot=10)
        assert result.statistic_u == pytest.approx(u, rel=1e-9, abs=1e-12)
        assert result.statistic_v == pytest.approx(v, rel=1e-9)
        assert result.n == n

    def test_one_pair_in_closed_form(self):
        """Draws 0 and 1 of N(0, 1): s(x) s(y) k + (s(x) - s(y)) (x - y) q^-1.5 + q^-1.5 - 3 q^-2.5."""
        result = ksd([[0.0], [1.0]], [[0.0], [-1.0]], n_boot=10)
        expected = 0.0 - 1 * 2**-1.5 + 2**-1.5 - 3 * 2**-2.5
        assert result.statistic_u == pytest.approx(expected)
        # V adds the diagonal: s^2 + d.
        assert result.statistic_v == pytest.approx((2 * expected + 1.0 + 2.0) / 4)

    def test_p_values_are_uniform_for_exact_draws(self):
        rng = np.random.default_rng(2)
        repeats = 400
        p = np.array(
            [ksd(x, -x, n_boot=199, seed=i).p_value for i, x in enumerate(rng.normal(size=(repeats, 80, 2)))]
        )
        for level in (0.05, 0.25, 0.5, 0.75, 0.95):
            # Four binomial standard errors, and 0.02 for the bootstrap's own error at n = 80.
            tolerance = 4 * math.sqrt(level * (1 - level) / repeats) + 0.02
            assert abs((p <= level).mean() - level) < tolerance

    def test_null_quantile_is_where_five_percent_lie_above(self):
        rng = np.random.default_rng(3)
        above = []
        for i, x in enumerate(rng.normal(size=(300, 80, 2))):
            result = ksd(x, -x, n_boot=200, seed=i)
            above.append(result.statistic_u > result.null_quantile_95)
        assert abs(np.mean(above) - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 300) + 0.02

    def test_rejects_shift_and_scale(self):
        x = np.random.default_rng(4).normal(size=(500, 3))
        for wrong in (x + 0.4, 1.5 * x):
            result = ksd(wrong, -wrong)
            assert result.p_value < 0.01
            assert result.statistic_u > result.null_quantile_95

    def test_subsamples_with_its_seed(self):
        x = np.random.default_rng(5).normal(size=(3000, 2))
        first, again, other = (ksd(x, -x, max_draws=100, n_boot=20, seed=seed) for seed in (1, 1, 2))
        assert first == again
        assert first.n == 100
        assert first.statistic_u != other.statistic_u

    @pytest.mark.parametrize(
        ("x", "s", "message"),
        [
            (np.zeros((3, 2)), np.zeros((3, 1)), "share a shape"),
            (np.zeros(3), np.zeros(3), "share a shape"),
            (np.zeros((1, 2)), np.zeros((1, 2)), "two draws"),
            (np.zeros((3, 2)), np.array([[0, 0], [np.nan, 0], [0, np.inf]]), "2 of 3 .* not finite"),
        ],
    )
    def test_refuses(self, x, s, message):
        with pytest.raises(ValueError, match=message):
            ksd(x, s)


class TestDrift:
    @staticmethod
    def stationary_pair(rng, shape, rho=0.6):
        """Draws of N(0, 1) and their image under an AR(1) kernel that leaves N(0, 1) as it is."""
        before = rng.normal(size=shape)
        return before, rho * before + math.sqrt(1 - rho**2) * rng.normal(size=shape)

    @pytest.mark.parametrize("rho", [0.0, 0.6, 0.98])
    def test_standard_errors_are_calibrated(self, rho):
        before, after = self.stationary_pair(np.random.default_rng(6), (1000, 1200), rho)
        result = drift(before, after)
        assert (result.standard_errors > 0).all()
        for z in result.effects / result.standard_errors:
            # Four standard errors over 1200 independent coordinates: of a mean 0.029, of a sd 0.0204.
            assert abs(z.mean()) < 4 * 0.029
            assert abs(z.std() - 1.0) < 4 * 0.0204

    def test_interval_covers_a_real_shift(self):
        rng = np.random.default_rng(7)
        before = rng.normal(size=(1000, 1200))
        after = 1.0 + 2.0 * (0.5 * before + math.sqrt(0.75) * rng.normal(size=before.shape))
        result = drift(before, after)
        for effect, se, truth in zip(
            result.effects[:2], result.standard_errors[:2], (0.5, math.log(2.0)), strict=True
        ):
            covered = (np.abs(effect - truth) < 1.96 * se).mean()
            assert abs(covered - 0.95) < 4 * math.sqrt(0.05 * 0.95 / 1200)

    def test_quiet_on_exact_draws_and_rms_has_no_floor(self):
        before, after = self.stationary_pair(np.random.default_rng(8), (4000, 50))
        result = drift(before, after)
        assert not result.flagged()
        assert result.worst < 0.1
        # Uncorrected, sampling noise alone gives about 0.013.
        assert result.rms < 0.006

    def test_flags_a_shift_of_the_mean_and_of_the_scale(self):
        before, after = self.stationary_pair(np.random.default_rng(9), (4000, 5))
        moved = after.copy()
        moved[:, 3] += 0.3
        result = drift(before, moved)
        assert result.flagged()
        assert (result.coordinate, result.moment) == (3, "mean")
        # Standard error sqrt(2 - 2 * 0.6) / sqrt(4000) = 0.014.
        assert result.mean_shift[3] == pytest.approx(0.3, abs=4 * 0.0142)
        assert result.worst == pytest.approx(abs(result.mean_shift[3]))
        assert result.worst_lower == result.sure.max()
        assert result.sure[0, 3] == pytest.approx(result.worst - 1.96 * result.mean_se[3])
        assert result.sure[0, 3] == pytest.approx(0.3 - 1.96 * 0.0142, abs=4 * 0.0142)

        narrow = before.copy()
        narrow[:, 1] *= 0.7
        result = drift(narrow, after)
        assert result.flagged()
        # The points of this coordinate move as well.
        assert result.coordinate == 1
        assert result.sure[:, [0, 2, 3, 4]].max() < 0.1
        assert result.log_sd_shift[1] == pytest.approx(-math.log(0.7), abs=4 * 0.0142)

    def test_rms_measures_the_effects(self):
        before, after = self.stationary_pair(np.random.default_rng(10), (4000, 20))
        result = drift(before, after + 0.2)
        assert result.rms == pytest.approx(0.2 / math.sqrt(2), abs=0.01)

    def test_non_finite_and_constant_coordinates(self):
        before, after = self.stationary_pair(np.random.default_rng(11), (100, 5))
        after[3, 1] = np.nan
        before[:, 2] = after[:, 2] = 1.5
        before[:, 3] = 0.0
        result = drift(before, after)
        assert np.isfinite(result.effects[:, [0, 4]]).all()
        assert np.isinf(result.effects[:, [1, 3]]).all()
        assert (result.effects[:, 2] == 0).all()
        assert result.flagged()
        assert math.isinf(result.rms)

    def test_does_not_depend_on_location_and_scale(self):
        before, after = self.stationary_pair(np.random.default_rng(12), (200, 2))
        one, two = drift(before, after), drift(5 + 0.01 * before, 5 + 0.01 * after)
        np.testing.assert_allclose(one.effects, two.effects, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(one.standard_errors, two.standard_errors, rtol=1e-8)

    @pytest.mark.parametrize(("a", "b"), [((5, 2), (5, 3)), ((5,), (5,)), ((2, 2), (2, 2)), ((5, 0), (5, 0))])
    def test_refuses(self, a, b):
        with pytest.raises(ValueError, match="shape"):
            drift(np.zeros(a), np.zeros(b))


def halves(x):
    """Split every chain in two, as ArviZ does before it computes anything."""
    return np.concatenate(np.split(x, 2, axis=1))


def autoregressive(rng, shape, rho):
    x = rng.normal(size=shape)
    for t in range(1, shape[1]):
        x[:, t] = rho * x[:, t - 1] + math.sqrt(1 - rho**2) * x[:, t]
    return x


class TestChains:
    @pytest.mark.parametrize("kind", ["iid", "shifted", "scaled", "cauchy", "discrete", "autoregressive"])
    def test_equal_arviz_on_split_chains(self, kind, arviz):
        rng = np.random.default_rng(13)
        x = autoregressive(rng, (4, 100), 0.9) if kind == "autoregressive" else rng.normal(size=(4, 100))
        x = {
            "shifted": x + np.arange(4)[:, None],
            "scaled": x * np.arange(1, 5)[:, None],
            "cauchy": x / rng.normal(size=x.shape),
            "discrete": np.round(x),
        }.get(kind, x)
        assert rhat(halves(x)) == pytest.approx(float(arviz.rhat(x)), rel=1e-10)
        assert ess(halves(x)) == pytest.approx(float(arviz.ess(x)), rel=1e-10)
        assert ess(halves(x), kind="mean") == pytest.approx(float(arviz.ess(x, method="mean")), rel=1e-10)

    @pytest.mark.parametrize("n", [4, 5, 6, 7, 11])
    def test_ess_equals_arviz_on_short_and_antithetic_chains(self, n, arviz):
        rng = np.random.default_rng(n)
        x = autoregressive(rng, (2, 2 * n), -0.9)
        assert ess(halves(x), kind="mean") == pytest.approx(float(arviz.ess(x, method="mean")), rel=1e-10)

    def test_keep_site_shape_across_blocks(self, monkeypatch):
        x = np.random.default_rng(14).normal(size=(4, 50, 2, 3))
        whole = rhat(x), ess(x)
        monkeypatch.setattr("pyro_dft.judging.rhat._BLOCK_SIZE", 400)
        for statistic, expected in zip((rhat, ess), whole, strict=True):
            blocked = statistic(x)
            assert blocked.shape == (2, 3)
            np.testing.assert_array_equal(blocked, expected)
            assert blocked[1, 2] == statistic(x[..., 1, 2])

    def test_rhat_sees_disagreement_in_location_and_in_scale_alone(self):
        x = np.random.default_rng(15).normal(size=(4, 1000, 3))
        x[0, :, 1] += 1.0
        x[0, :, 2] *= 4.0
        same, location, scale = rhat(x)
        assert same < 1.01
        assert location > 1.05
        assert scale > 1.05

    def test_undefined_where_nothing_can_be_said(self):
        x = np.random.default_rng(16).normal(size=(4, 50, 4))
        x[..., 1] = 0.0
        x[2, 3, 2] = np.nan
        x[..., 3] = np.arange(4)[:, None]
        np.testing.assert_array_equal(np.isnan(rhat(x)), [False, True, True, False])
        assert rhat(x)[3] == np.inf
        np.testing.assert_array_equal(np.isnan(ess(x)), [False, True, True, False])
        assert np.isnan(rhat(x[:1])).all()
        assert np.isnan(rhat(x[:, :3])).all()
        assert np.isnan(ess(x[:, :3])).all()

    def test_ess_of_independent_draws_is_their_number(self):
        x = np.random.default_rng(17).normal(size=(4, 1000, 200))
        for kind in ("bulk", "mean"):
            # The estimate scatters by some 5 % around the number of draws, its mean over 200 elements by
            # 0.4 %, with a small bias from cutting the sum at the first negative pair.
            assert ess(x, kind=kind).mean() == pytest.approx(4000, rel=0.05)

    def test_ess_of_one_chain_and_of_disagreeing_chains(self):
        x = np.random.default_rng(18).normal(size=(4, 1000))
        assert ess(x[:1]) == pytest.approx(1000, rel=0.25)
        assert ess(x + 10 * np.arange(4)[:, None]) < 10

    def test_wrong_shapes_and_kinds_are_refused(self):
        with pytest.raises(ValueError, match="chains, draws"):
            rhat(np.zeros(5))
        with pytest.raises(ValueError, match="kind"):
            ess(np.zeros((2, 5)), kind="tail")


class TestPSIS:
    @pytest.mark.parametrize("scale", [0.1, 0.5, 1.0, 2.0, 5.0])
    # Sizes whose tail is as long in ArviZ 0.x, which rounds min(n / 5, 3 sqrt(n)) up, as in 1.x (down).
    @pytest.mark.parametrize("n", [30, 100, 900, 10_000])
    def test_equals_arviz(self, n, scale, arviz):
        log_weights = scale * np.random.default_rng(n).normal(size=n) + 300.0
        if hasattr(arviz, "psislw"):
            expected, k = arviz.psislw(log_weights.copy())
        else:  # ArviZ 1.x, where the argument is a log likelihood
            from arviz_stats.base import array_stats

            expected, k = array_stats.psislw(-log_weights)
        result = psis(log_weights)
        assert result.k_hat == pytest.approx(float(k), abs=1e-6)
        np.testing.assert_allclose(result.log_weights, expected, atol=1e-8)
        assert np.exp(result.log_weights).sum() == pytest.approx(1.0)

    @pytest.mark.parametrize("shape", [0.2, 0.7, 1.2])
    def test_recovers_a_known_pareto_shape(self, shape):
        """Weights u^-k have a generalised Pareto tail of shape k."""
        n = 100_000
        log_weights = -shape * np.log(np.random.default_rng(19).uniform(size=n))
        # Standard error of the maximum likelihood shape from m = 3 sqrt(n) tail points: (1 + k) / sqrt(m).
        tail = 3 * math.sqrt(n)
        assert psis(log_weights).k_hat == pytest.approx(shape, abs=4 * (1 + shape) / math.sqrt(tail))

    def test_smoothing_improves_a_heavy_tailed_mean(self):
        """Proposal N(0, 1), target N(0, 1.5^2): the smoothed estimate of E[x^2] is nearer to 2.25."""
        rng = np.random.default_rng(20)
        raw, smoothed = [], []
        for x in rng.normal(size=(300, 400)):
            log_weights = x**2 / 2 - x**2 / (2 * 1.5**2)
            w = np.exp(log_weights - log_weights.max())
            raw.append((w * x**2).sum() / w.sum())
            smoothed.append((np.exp(psis(log_weights).log_weights) * x**2).sum())
        errors = [np.mean((np.array(estimate) - 2.25) ** 2) for estimate in (raw, smoothed)]
        assert errors[1] < errors[0]

    def test_ess_and_equal_weights(self):
        k_hat, log_weights, effective = psis(np.full(50, -3.0))
        assert k_hat == -np.inf
        np.testing.assert_allclose(log_weights, -math.log(50))
        assert effective == pytest.approx(50)

    def test_one_dominating_weight(self):
        log_weights = np.zeros(1000)
        log_weights[:6] = [700, 10, 9, 8, 7, 6]
        result = psis(log_weights)
        assert result.k_hat > 0.7
        assert result.ess == pytest.approx(1.0, abs=0.1)

    def test_zero_weights_and_short_input(self):
        log_weights = np.random.default_rng(21).normal(size=200)
        log_weights[:20] = -np.inf
        result = psis(log_weights)
        assert np.isfinite(result.k_hat)
        assert np.isneginf(result.log_weights[:20]).all()
        assert psis([0.0, 1.0]).k_hat == np.inf
        assert psis([0.0]).ess == pytest.approx(1.0)

    def test_ties_in_the_tail_are_no_tail(self):
        log_weights = np.random.default_rng(23).normal(size=200)
        log_weights[:30], log_weights[30:40] = 5.0, np.arange(6.0, 16.0)  # the tail of 40 starts with 30 ties
        assert psis(log_weights).k_hat == np.inf

    def test_does_not_write_into_its_argument(self):
        log_weights = np.random.default_rng(22).normal(size=100)
        kept = log_weights.copy()
        psis(log_weights)
        np.testing.assert_array_equal(log_weights, kept)

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ([[0.0]], "shape"),
            ([], "shape"),
            ([0.0, np.nan], "NaN"),
            ([0.0, np.inf], "inf"),
            ([-np.inf] * 3, "all"),
        ],
    )
    def test_refuses(self, bad, message):
        with pytest.raises(ValueError, match=message):
            psis(bad)

    def test_threshold(self):
        assert khat_threshold(100) == pytest.approx(0.5)
        assert khat_threshold(2200) == pytest.approx(0.7, abs=1e-3)
        assert khat_threshold(10**6) == 0.7


def test_draws_that_remember_their_spread_are_not_still():
    """A tail is entered as slowly as squares are forgotten: draws that only change their sign have not seen it."""
    rng = np.random.default_rng(0)
    before, fresh = rng.normal(size=(2, 4000, 3))
    flipped = before * rng.choice([-1.0, 1.0], size=before.shape)
    found = drift(before, flipped)
    # A correlation of 4,000 independent pairs: standard error 0.016.
    assert np.abs(found.memory[0]).max() < 5 * 0.016
    assert found.memory[1].min() > 0.9
    assert not found.still
    assert drift(before, fresh).still
