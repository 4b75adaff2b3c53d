"""Distinct optima among restarts, and how draws cover them."""

import math

import numpy as np
import pytest

from pyro_dft.judging.optima import distinct_optima, mode_coverage, shortfall

CENTRES = 3.0 * np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
WEIGHTS = np.array([0.4, 0.3, 0.2, 0.1])
SD = 0.7


def noisy_restarts(rng, d, restarts, mean_noise, wishart_draws):
    """Restarts of one optimum whose means and covariances carry noise, in coordinates of many scales."""
    scales = 10.0 ** rng.uniform(-3, 3, d)
    base = scales[:, None] * np.tril(rng.normal(size=(d, d)) / math.sqrt(d), -1) + np.diag(scales)
    means = rng.normal(size=(restarts, d)) * mean_noise @ base.T
    white = rng.normal(size=(restarts, d, wishart_draws)) / math.sqrt(wishart_draws)
    return means, base @ np.linalg.cholesky(white @ white.transpose(0, 2, 1))


class TestDistinctOptima:
    def restarts(self, found):
        """Restarts at the modes in `found`, with the ELBO each mode has: the log of its mass."""
        rng = np.random.default_rng(1)
        found = np.asarray(found)
        means = CENTRES[found] + 0.05 * SD * rng.normal(size=(len(found), 2))
        chols = SD * np.exp(0.03 * rng.normal(size=(len(found), 1, 1))) * np.eye(2)
        elbos = np.log(WEIGHTS[found]) - 0.001 * rng.uniform(size=len(found))
        return means, chols, elbos

    def test_finds_four_modes_and_their_weights(self):
        found = [2, 0, 1, 3, 0, 0, 1, 2, 0, 1]
        result = distinct_optima(*self.restarts(found))
        assert len(result) == 4
        np.testing.assert_allclose(result.weight, WEIGHTS, atol=0.001)
        assert [set(group) for group in result.members] == [{1, 4, 5, 8}, {2, 6, 9}, {0, 7}, {3}]
        assert [group[0] for group in result.members] == result.indices.tolist()
        assert (np.diff(result.elbo) < 0).all()
        assert result.relevant().tolist() == [0, 1, 2, 3]
        assert result.relevant(0.25).tolist() == [0, 1]

    @pytest.mark.parametrize(
        ("d", "mean_noise", "draws"), [(1, 0.3, 300), (10, 0.15, 1000), (100, 0.15, 2000)]
    )
    def test_same_place_with_noise_is_one_optimum(self, d, mean_noise, draws):
        means, chols = noisy_restarts(np.random.default_rng(d), d, 8, mean_noise, draws)
        result = distinct_optima(means, chols, -100.0 + np.arange(8) * 0.1)
        assert len(result) == 1
        assert result.members == ((7, 6, 5, 4, 3, 2, 1, 0),)
        assert result.weight.tolist() == [1.0]

    @pytest.mark.parametrize("d", [2, 20, 100])
    def test_modes_apart_in_one_direction_are_two(self, d):
        means, chols = noisy_restarts(np.random.default_rng(d), d, 4, 0.05, 40 * d)
        means[2:] += 6.0 * chols[0, :, 0]  # six standard deviations along one principal direction
        result = distinct_optima(means, chols, np.zeros(4))
        assert [set(group) for group in result.members] == [{0, 1}, {2, 3}]
        np.testing.assert_allclose(result.weight, [0.5, 0.5])

    def test_a_bad_local_optimum_is_listed_without_weight(self):
        means, chols, elbos = self.restarts([0, 0, 0])
        means[2], chols[2], elbos[2] = [40.0, -25.0], 0.01 * np.eye(2), -446.0
        result = distinct_optima(means, chols, elbos)
        assert result.members[1] == (2,)
        assert result.weight[1] < 1e-100
        assert result.relevant().tolist() == [0]

    def test_same_mean_but_another_scale_is_another_optimum(self):
        chols = np.stack([np.eye(3), 5.0 * np.eye(3), 1.5 * np.eye(3)])
        result = distinct_optima(np.zeros((3, 3)), chols, [-1.0, -2.0, -3.0])
        assert result.members == ((0, 2), (1,))

    def test_invariant_under_a_linear_map(self):
        means, chols, elbos = self.restarts([0, 1, 2, 0])
        linear = np.array([[1e3, 0.0], [2.0, 1e-3]])
        moved = distinct_optima(means @ linear.T + 7.0, linear @ chols, elbos)
        assert moved.members == distinct_optima(means, chols, elbos).members

    def test_any_square_root_will_do(self):
        """Cholesky factors turned from the right by a rotation (of determinant minus one)."""
        means, chols, elbos = self.restarts([0, 1, 2, 0])
        turn = np.array([[0.6, 0.8], [0.8, -0.6]])
        turned, plain = (distinct_optima(means, factors, elbos) for factors in (chols @ turn, chols))
        assert turned.members == plain.members
        draws = CENTRES[[0, 0, 1, 2]]
        coverage = [
            mode_coverage(draws, means[:3], factors[:3], plain.weight) for factors in (chols @ turn, chols)
        ]
        np.testing.assert_allclose(coverage[0].fraction, coverage[1].fraction)

    def test_failed_restarts_are_set_aside(self):
        means, chols, elbos = self.restarts([0, 0, 1, 2, 3])
        elbos[0], means[2, 0], chols[3] = np.nan, np.inf, 0.0
        result = distinct_optima(means, chols, elbos)
        assert result.failed == (0, 2, 3)
        assert result.indices.tolist() == [1, 4]
        with pytest.raises(ValueError, match="no restart"):
            distinct_optima(means, chols, np.full(5, -np.inf))

    def test_refuses_shapes(self):
        with pytest.raises(ValueError, match="shapes"):
            distinct_optima(np.zeros((2, 3)), np.ones((2, 4)), np.zeros(2))

    def test_standard_deviations_are_diagonal_matrices(self):
        rng = np.random.default_rng(3)
        sds = np.exp(0.1 * rng.normal(size=(6, 3)))
        means = np.repeat([[0.0], [9.0]], 3, axis=0) + 0.1 * rng.normal(size=(6, 3))
        one = distinct_optima(means, sds, np.arange(6.0))
        other = distinct_optima(means, sds[..., None] * np.eye(3), np.arange(6.0))
        assert one.members == other.members == ((5, 4, 3), (2, 1, 0))
        draws = means[0] + sds[0] * rng.normal(size=(500, 3))
        shares = [
            mode_coverage(draws, means, s, np.ones(6)).fraction for s in (sds, sds[..., None] * np.eye(3))
        ]
        np.testing.assert_allclose(*shares, atol=1e-12)


class TestModeCoverage:
    chols = SD * np.broadcast_to(np.eye(2), (4, 2, 2))

    def draws(self, weights, n=4000, seed=2):
        rng = np.random.default_rng(seed)
        return CENTRES[rng.choice(4, size=n, p=weights)] + SD * rng.normal(size=(n, 2))

    def test_right_weights(self):
        result = mode_coverage(self.draws(WEIGHTS), CENTRES, self.chols, WEIGHTS)
        # Four binomial standard errors of the largest share.
        assert result.worst < 4 * math.sqrt(0.24 / 4000)
        assert result.missing().size == 0
        # At most 0.1 % each by construction of the region; four standard errors on top.
        assert result.outside < 0.001 + 4 * math.sqrt(0.001 / 4000)
        assert result.fraction.sum() == pytest.approx(1.0)

    def test_a_lost_mode_is_named(self):
        result = mode_coverage(self.draws([0.6, 0.4, 0.0, 0.0]), CENTRES, self.chols, WEIGHTS)
        assert result.missing().tolist() == [2, 3]
        assert result.worst == pytest.approx(0.2, abs=4 * math.sqrt(0.24 / 4000))

    def test_unbiased_where_components_overlap(self):
        centres = CENTRES / 4.0
        rng = np.random.default_rng(3)
        x = centres[rng.choice(4, size=20_000, p=WEIGHTS)] + SD * rng.normal(size=(20_000, 2))
        result = mode_coverage(x, centres, self.chols, WEIGHTS)
        # A share's standard error is below the binomial one: it is a mean of probabilities.
        assert result.worst < 4 * math.sqrt(0.24 / 20_000)

    def test_draws_between_modes_are_outside(self):
        x = self.draws(WEIGHTS, n=1000)
        x[:300] = 0.0
        assert mode_coverage(x, CENTRES, self.chols, WEIGHTS).outside == pytest.approx(0.3, abs=0.005)

    def test_an_optimum_without_weight_gets_no_draws(self):
        result = mode_coverage(self.draws(WEIGHTS), CENTRES, self.chols, [0.5, 0.3, 0.2, 0.0])
        assert result.fraction[3] == 0.0
        assert result.missing().size == 0

    @pytest.mark.parametrize(
        ("x", "weights", "message"),
        [
            (np.zeros((5, 3)), WEIGHTS, "shapes"),
            (np.zeros((5, 2)), WEIGHTS[:3], "shapes"),
            (np.zeros((0, 2)), WEIGHTS, "finite"),
            (np.full((5, 2), np.nan), WEIGHTS, "finite"),
            (np.zeros((5, 2)), -WEIGHTS, "non-negative"),
            (np.zeros((5, 2)), 0 * WEIGHTS, "not all zero"),
        ],
    )
    def test_refuses(self, x, weights, message):
        with pytest.raises(ValueError, match=message):
            mode_coverage(x, CENTRES, self.chols, weights)


class TestShortfall:
    rng = np.random.default_rng(5)

    def gaussian(self, n, sds):
        draws = self.rng.normal(size=(n, len(sds))) * sds
        constant = np.log(sds).sum() + 0.5 * len(sds) * np.log(2 * np.pi)
        return draws, -0.5 * np.square(draws / sds).sum(1) - constant

    @pytest.mark.parametrize(("n", "d"), [(400, 3), (400, 60)])
    def test_draws_of_a_gaussian_fall_short_of_nothing(self, n, d):
        found = [shortfall(*self.gaussian(n, np.geomspace(1e-3, 1e3, d)), 0.0) for _ in range(40)]
        scores = np.array([short / error for short, error in found])
        # Means of 40 have a standard error of .16. The error is that for large n: for 60 coordinates it is somewhat small.
        assert abs(scores.mean()) < 0.7
        assert scores.std() < 1.6

    def test_it_bounds_what_was_lost(self):
        draws, log_p = self.gaussian(2000, np.ones(4))
        short, error = shortfall(draws, log_p, 5.0)
        assert short == pytest.approx(5.0, abs=4 * error)
        assert error < 0.1

    def test_draws_of_other_shapes_never_seem_to_fall_short(self):
        """Two narrow modes far apart, and a Student-t of two degrees of freedom: a Gaussian has more entropy."""
        signs = np.sign(self.rng.normal(size=(2000, 1)))
        draws, log_p = self.gaussian(2000, np.full(1, 0.1))
        assert shortfall(draws + 5 * signs, log_p - np.log(2), 0.0)[0] < -1
        t = self.rng.standard_t(2, size=(2000, 1))
        log_t = -1.5 * np.log1p(t[:, 0] ** 2 / 2) - np.log(2 * np.sqrt(2))
        assert shortfall(t, log_t, 0.0)[0] < 0

    def test_nothing_can_be_said(self):
        for draws, bound in (
            (np.zeros((100, 2)), 0.0),
            (self.rng.normal(size=(7, 2)), 0.0),
            (np.ones((50, 2)), -np.inf),
        ):
            short, error = shortfall(draws, np.zeros(len(draws)), bound)
            assert np.isnan(short)
            assert error == np.inf
