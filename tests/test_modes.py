"""Separate modes: which optima are modes of their own, and what they weigh."""

from __future__ import annotations

import numpy as np
import pytest
from corners import WEIGHTS, corners

from pyro_dft.errors import StorageError
from pyro_dft.recipe import mode_search
from pyro_dft.recipe.far_starts import FAR, NEAR, further_starts
from pyro_dft.recipe.mode_search import search, separate
from pyro_dft.recipe.mode_weights import Proposal, weigh
from pyro_dft.recipe.modes import Modes


def log_mixture(centres, weights=WEIGHTS, sd=1.0):
    def log_density(x):
        squares = np.square((x[..., None, :] - centres) / sd).sum(-1)
        return np.logaddexp.reduce(np.log(weights) - 0.5 * squares, axis=-1)

    return log_density


def stay(draws, scales):
    return draws


class TestSeparate:
    eye = np.tile(np.eye(8), (3, 1, 1))

    def test_finds_modes_best_first_and_ignores_bad_optima(self):
        centres = corners()
        found = separate(
            centres, self.eye, np.log(WEIGHTS), log_mixture(centres), stay, np.random.default_rng(0)
        )
        assert found.tolist() == [2, 1, 0]
        bounds = np.log([0.2, 0.3 * 1e-4, 0.5])
        found = separate(centres, self.eye, bounds, log_mixture(centres), stay, np.random.default_rng(0))
        assert found.tolist() == [2, 0]

    def test_modes_between_which_draws_pass_are_one(self):
        centres = corners()

        def swap(draws, scales):
            nearest = np.square(draws[..., None, :] - centres).sum(-1).argmin(-1)
            step = np.stack([np.zeros(8), centres[2] - centres[1], centres[1] - centres[2]])
            return draws + np.where(np.arange(draws.shape[1]) % 4 == 0, 1.0, 0.0)[:, None] * step[nearest]

        found = separate(
            centres, self.eye, np.log(WEIGHTS), log_mixture(centres), swap, np.random.default_rng(0)
        )
        assert found.tolist() == [2, 0]  # the first two in order of their bounds, 2 and 1, are one

    def test_without_a_valley_there_is_one_mode(self):
        """A narrow and a wide Gaussian, two sds of the wide one apart: a funnel's neck and mouth."""
        means = np.array([[0.0, 0.0], [2.0, 0.0]])
        scales = np.stack([0.1 * np.eye(2), np.eye(2)])

        def log_density(x):
            neck = np.log(0.5) - 0.5 * np.square(x / 0.1).sum(-1) - 2 * np.log(0.1)
            mouth = np.log(0.5) - 0.5 * np.square(x - [2.0, 0.0]).sum(-1)
            return np.logaddexp(neck, mouth)

        found = separate(means, scales, np.log([0.5, 0.5]), log_density, stay, np.random.default_rng(0))
        assert len(found) == 1

    def test_a_gaussian_over_two_modes_does_not_join_them(self):
        centres = corners(3)[:2]
        means = np.concatenate([centres, centres.mean(0, keepdims=True)])
        scales = np.stack([np.eye(3), np.eye(3), 3.0 * np.eye(3)])

        def fall(draws, scales):
            nearest = np.square(draws[:, :, None] - centres).sum(-1).argmin(-1)
            return np.where(scales[:, :1, :1] > 2.0, centres[nearest], draws)

        log_density = log_mixture(centres, np.array([0.4, 0.6]))
        found = separate(means, scales, np.log([0.4, 0.6, 0.05]), log_density, fall, np.random.default_rng(0))
        assert sorted(found.tolist()) == [0, 1]

    def test_an_optimum_without_density_is_no_mode(self):
        centres = corners()

        def nowhere(x):
            return np.full(x.shape[:-1], -np.inf)

        found = separate(centres, self.eye, np.log(WEIGHTS), nowhere, stay, np.random.default_rng(0))
        assert found.tolist() == [2]


class TestSearch:
    """The search on exact Gaussian modes, each restart going to the mode nearest to its start."""

    centres = 2 * corners(3)

    def run(self, data_size=1, reach=FAR):
        known = [self.centres[:1], np.eye(3)[None], np.log(WEIGHTS[:1])]
        evaluations = [0]
        exact = log_mixture(self.centres)

        def log_density(x):
            evaluations[0] += x[..., 0].size
            return exact(x)

        def restart(starts):
            nearest = np.square(starts[:, None] - self.centres).sum(-1).argmin(1)
            known[0] = np.concatenate([known[0], self.centres[nearest]])
            known[1] = np.concatenate([known[1], np.tile(np.eye(3), (len(starts), 1, 1))])
            known[2] = np.concatenate([known[2], np.log(WEIGHTS)[nearest]])

        known[0], known[1], known[2] = (np.repeat(v, 4, axis=0) for v in known)
        index, found, _ = search(
            lambda: tuple(known), restart, log_density, stay, chains=1, data_size=data_size,
            rng=np.random.default_rng(0), reach=reach,
        )  # fmt: skip
        return known[0][index], found, evaluations[0]

    def test_finds_what_no_first_restart_reached(self):
        means, found, _ = self.run()
        assert np.square(means[:, None] - self.centres).sum(-1).min(0).max() == 0
        nearest = np.square(means[:, None] - self.centres).sum(-1).argmin(1)
        assert (np.abs(found.weights[0] - WEIGHTS[nearest]) < 4 * found.errors[0]).all()

    def test_large_data_are_read_less_often(self):
        assert self.run(data_size=1_000_000)[2] < 0.1 * self.run()[2]

    def test_fewer_points_are_compared_nearby_where_points_far_out_are_dear(self):
        (_, found, many), (_, again, few) = self.run(), self.run(reach=NEAR)
        assert found.count == again.count == len(self.centres)
        assert many - few >= 2 * (FAR.candidates - NEAR.candidates)  # two looks further at least


class TestWeigh:
    @pytest.mark.parametrize("dim", [2, 8])
    def test_weights_and_evidence_of_gaussians(self, dim):
        centres = corners(max(dim, 3))
        eye = np.tile(np.eye(centres.shape[1]), (3, 1, 1))
        # Bounds that are wrong: they only start the search.
        found, _ = weigh(
            Proposal.of(centres, eye, np.zeros(3)), log_mixture(centres), 2, np.random.default_rng(1)
        )
        assert (np.abs(found.weights - WEIGHTS) < 4 * found.errors).all()
        assert (found.errors < 0.01).all()
        assert (found.k_hat < 0.5).all()
        true = 0.5 * centres.shape[1] * np.log(2 * np.pi)
        assert np.abs(found.log_evidence - true).max() < 0.05

    def test_weights_of_modes_that_are_no_gaussians(self):
        """Logarithms of gamma variables: a long tail on one side."""
        centres = 8.0 * corners(3, 1.0)

        def log_density(x):
            u = x[..., None, :] - centres
            return np.logaddexp.reduce(np.log(WEIGHTS) + (2 * u - np.exp(u)).sum(-1), axis=-1)

        scales = np.tile(0.75 * np.eye(3), (3, 1, 1))
        found, _ = weigh(
            Proposal.of(centres + 0.55, scales, np.zeros(3)), log_density, 1, np.random.default_rng(2)
        )
        assert (np.abs(found.weights - WEIGHTS) < 4 * found.errors).all()
        assert found.k_hat[0] < 0.7

    def test_nothing_finite(self):
        proposal = Proposal.of(corners(3), np.tile(np.eye(3), (3, 1, 1)), np.zeros(3))
        nowhere = lambda x: np.full(x.shape[:2], -np.inf)  # noqa: E731
        found, _ = weigh(proposal, nowhere, 1, np.random.default_rng(4))
        assert found.k_hat[0] == np.inf


class TestModes:
    modes = Modes(np.tile(WEIGHTS, (2, 1)), np.full((2, 3), 0.01), np.zeros(2), np.zeros(2))

    def test_rows_have_the_weights(self):
        each, rows = self.modes.rows(20_000, np.random.default_rng(0))
        draws = np.repeat(np.arange(6), each).reshape(6, each, 1)
        served = self.modes.combine(draws, rows)
        assert served.shape == (2, 20_000, 1)
        for chain in range(2):
            share = np.bincount(served[chain, :, 0], minlength=6)[3 * chain : 3 * chain + 3] / 20_000
            # Standard errors of shares of 20,000 draws are at most .0035.
            assert share == pytest.approx(WEIGHTS, abs=0.014)
            assert len(set(rows[chain].tolist())) == 20_000

    def test_kept_rows_are_always_the_same(self):
        draws = np.random.default_rng(0).normal(size=(6, 50, 2))
        assert np.array_equal(self.modes.kept(draws), self.modes.kept(draws))
        index = self.modes.kept_modes(50)
        own = np.repeat(np.arange(3), 50).reshape(1, 150)[0]
        assert np.array_equal(np.sort(index, axis=1), np.sort(own[self.modes._kept_rows(50)], axis=1))

    def test_arrays_and_back(self):
        arrays = self.modes.to_arrays()
        again = Modes.from_arrays("x", arrays, 2)
        assert again is not None
        assert np.array_equal(again.weights, self.modes.weights)
        assert {k: v.shape for k, v in arrays.items()} == self.modes.shapes()
        assert Modes.from_arrays("x", {"mean": np.zeros(2)}, 2) is None

    @pytest.mark.parametrize("spoil", ["chains", "negative", "sum", "missing"])
    def test_bad_files(self, spoil):
        arrays = self.modes.to_arrays()
        if spoil == "negative":
            arrays["modes.weights"] = arrays["modes.weights"] - 0.3
        if spoil == "sum":
            arrays["modes.weights"] = 2 * arrays["modes.weights"]
        if spoil == "missing":
            del arrays["modes.errors"]
        with pytest.raises(StorageError, match="weights of its modes"):
            Modes.from_arrays("x", arrays, 3 if spoil == "chains" else 2)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_further_starts_are_as_many_as_were_asked_for(count):
    centre, eye = np.zeros((1, 8)), np.eye(8)[None]
    log_density = log_mixture(centre, np.ones(1))
    assert further_starts(centre, eye, count, log_density, np.random.default_rng(0)).shape == (count, 8)


def test_further_starts_find_the_mode_that_is_missing():
    """Two of three modes are known; the points that look best lie at the third, and there is but one start for it."""
    centres = 2 * corners(3)
    log_density, eye = log_mixture(centres), np.tile(np.eye(3), (2, 1, 1))
    starts = further_starts(centres[:2], eye, 6, log_density, np.random.default_rng(0))
    assert starts.shape == (6, 3)
    distance = np.sqrt(np.square(starts - centres[2]).sum(1))
    assert distance[0] < 2
    assert np.square(starts[0] - starts[1]).sum() > 9
    alone = further_starts(centres[:1], eye[:1], 5, log_density, np.random.default_rng(1))
    assert alone.shape == (5, 3)
    # Of a box of ten, and of normals of six sds around the known mode: 4,000 in three dimensions stay within five of those.
    assert np.abs(alone).max() < 5 * 6 + np.abs(centres).max()


class TestStarts:
    """Optima at -5 (best), 5 and 15; one mode holds everything. Two chains, whose own restarts are given."""

    means = np.array([[5.0], [-5.0], [15.0], [np.nan]])
    scales, rng = np.ones((4, 1, 1)), np.random.default_rng(0)

    def starts(self, bound, own, light=()):
        elbos = np.array([bound, 0.0, -30.0, -np.inf])
        job = mode_search._Search(
            lambda: (self.means, self.scales, elbos),
            lambda x: None,
            lambda x: x[..., 0],
            stay,
            2,
            1,
            FAR,
            self.rng,
        )
        return job.starts(np.array(own), 1, list(light)).tolist()

    def test_chains_may_disagree_where_bounds_are_comparable(self):
        assert self.starts(-1.0, [0, 1]) == [0, 1]

    def test_nobody_starts_where_there_is_nothing(self):
        assert self.starts(-1.0, [0, 2]) == [0, 1]
        assert self.starts(-7.0, [0, 2]) == [1, 1]
        assert self.starts(-1.0, [0, 1], light=[0]) == [1, 1]

    def test_a_chain_that_failed_is_left_alone(self):
        assert self.starts(-1.0, [3, 2]) == [3, 1]
