"""Weights of separate modes: their errors against their spread over seeds, heavy tails, and components that were missed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pyro_dft.recipe import mode_weights
from pyro_dft.recipe.mode_search import search
from pyro_dft.recipe.mode_weights import GOOD_KHAT, Proposal, weigh

SEEDS = 60


def log_mixture(centres, weights, sds):
    """Log density of Gaussians with diagonal covariances, sds (K, d)."""

    def log_density(x):
        each = -0.5 * np.square((x[..., None, :] - centres) / sds).sum(-1) - np.log(sds).sum(-1)
        return np.logaddexp.reduce(np.log(weights) + each, axis=-1)

    return log_density


def spread_of_scores(estimates, truth):
    """Root mean square of (estimate - truth) / standard error over seeds, for each weight."""
    scores = [(one.weights[0] - truth) / one.errors[0] for one in estimates]
    return np.sqrt(np.square(scores).mean(0))


def line_of(count, dim, distance):
    """Centres (count, dim), neighbours a distance apart, not along an axis."""
    return distance * np.arange(count)[:, None] * np.ones(dim) / np.sqrt(dim)


class TestErrorsAgainstTheSpreadOverSeeds:
    """With 60 seeds the root mean square of standard scores has a standard error of 9 %: four of them are allowed, and errors
    that are too small by a factor of .3 would give 3.3.
    """

    def check(self, estimates, truth):
        spread = spread_of_scores(estimates, truth)
        assert (spread < 1.37).all()
        assert (spread > 0.63).all()

    @pytest.mark.parametrize(("dim", "distance"), [(3, 9.0), (12, 9.0), (3, 3.5)])
    def test_gaussians_that_are_too_narrow(self, dim, distance):
        """At 3.5 sds the modes overlap: a share then depends on what the other Gaussian explains."""
        weights, centres = np.array([0.2, 0.3, 0.5]), line_of(3, dim, distance)
        log_density = log_mixture(centres, weights, np.ones((3, dim)))
        # Scales that are wrong make the weights vary. Where modes overlap, the shares are those of the true Gaussians.
        scales = np.tile((0.85 if distance > 5 else 1.0) * np.eye(dim), (3, 1, 1))
        proposal = Proposal.of(centres, scales, np.zeros(3))
        found = [
            weigh(proposal, log_density, 1, np.random.default_rng(seed), 400)[0] for seed in range(SEEDS)
        ]
        self.check(found, weights)

    def test_modes_of_several_gaussians(self):
        """Two modes, the first of which is two Gaussians that overlap, 2.5 sds apart."""
        centres = np.array([[0.0, 0, 0, 0], [2.5, 0, 0, 0], [0, 12.0, 0, 0]])
        weights = np.array([0.4, 0.35, 0.25])
        log_density = log_mixture(centres, weights, np.ones((3, 4)))
        scales = np.tile(np.eye(4), (3, 1, 1))
        proposal = Proposal.of(centres, scales, np.zeros(3), np.array([0, 0, 1]))
        found = [
            weigh(proposal, log_density, 1, np.random.default_rng(seed), 400)[0] for seed in range(SEEDS)
        ]
        self.check(found, np.array([0.75, 0.25]))


class TestHeavyTails:
    centres, weights = line_of(3, 3, 8.0), np.array([0.2, 0.3, 0.5])
    narrow = np.tile(0.1 * np.eye(3), (3, 1, 1))

    def log_density(self, x):
        return log_mixture(self.centres, self.weights, np.ones((3, 3)))(x)

    def test_narrow_gaussians_are_seen_and_said_not_to_know(self):
        rng = np.random.default_rng(3)
        found, _ = weigh(
            Proposal.of(self.centres, self.narrow, np.zeros(3)), self.log_density, 1, rng, adapt=False
        )
        assert found.k_hat[0] > GOOD_KHAT
        assert found.errors.max() > 0.03
        assert (np.abs(found.weights - self.weights) < 4 * found.errors).all()

    def test_they_are_adapted(self):
        rng = np.random.default_rng(3)
        found, _ = weigh(Proposal.of(self.centres, self.narrow, np.zeros(3)), self.log_density, 2, rng)
        # The limits of the alarm "mode weights".
        assert found.k_hat.max() < GOOD_KHAT
        assert found.errors.max() < 0.03
        assert (np.abs(found.weights - self.weights) < 4 * found.errors).all()

    def test_nothing_is_drawn_anew_where_the_tail_is_light(self):
        points = []

        def counted(x):
            points.append(x[..., 0].size)
            return self.log_density(x)

        scales = np.tile(np.eye(3), (3, 1, 1))
        weigh(Proposal.of(self.centres, scales, np.zeros(3)), counted, 2, np.random.default_rng(0), 500)
        assert points == [1500, 1500]

    @pytest.mark.parametrize(
        ("khats", "rounds"),
        [
            # In vain four times in turn after the first, with weights that have no mean.
            ([2.0] * 10, 5),
            # That there is one is worth all rounds: the best may come late.
            ([0.9] * 10, 10),
            ([2.0, 2.0, 2.0, 0.9, *[2.0] * 6], 10),
            ([2.0, 2.1, 1.5, *[2.0] * 7], 7),
            ([2.0, 0.2], 2),
        ],
    )
    def test_adaptation_ends_where_it_is_in_vain(self, monkeypatch, khats, rounds):
        real, ahead = mode_weights.draw, iter(khats)
        made = []

        def drawn(proposal, *args, **options):
            made.append(proposal)
            return replace(real(proposal, *args, **options), k_hat=next(ahead))

        rng = np.random.default_rng(0)
        start = Proposal.of(self.centres, self.narrow, np.zeros(3))
        first = real(start, self.log_density, 100, rng)
        monkeypatch.setattr(mode_weights, "draw", drawn)
        found = mode_weights.adapted(start, first, self.log_density, 100, rng)
        assert len(made) == rounds
        assert found is made[int(np.argmin(khats[:rounds]))]


class TestMissedComponents:
    """Four Gaussians in 16 dimensions, one of them known from the start and one more in sight: restarts only go to a component
    that is near, else to one of the first two, so that the third and fourth are found from weighted draws alone.
    """

    weights = np.array([0.57, 0.27, 0.12, 0.04])
    centres = np.zeros((4, 16))
    centres[1, 0] = 9.0
    centres[2, :2] = 9.0, 5.5
    centres[3, :3] = 9.0, 0.0, 5.5

    def search(self, seed):
        exact = log_mixture(self.centres, self.weights, np.ones((4, 16)))
        known = [np.zeros((0, 16)), np.zeros((0, 16, 16)), np.zeros(0)]

        def restart(starts):
            squares = np.square(starts[:, None] - self.centres).sum(-1)
            index = np.where(squares.min(1) < 60, squares.argmin(1), np.arange(len(starts)) % 2)
            known[0] = np.concatenate([known[0], self.centres[index]])
            known[1] = np.concatenate([known[1], np.tile(np.eye(16), (len(index), 1, 1))])
            known[2] = np.concatenate([known[2], np.log(self.weights)[index]])

        restart(np.full((6, 16), 50.0))
        index, found, _ = search(
            lambda: tuple(known), restart, exact, lambda draws, _: draws, chains=2, data_size=1,
            rng=np.random.default_rng(seed),
        )  # fmt: skip
        return np.square(known[0][index][:, None] - self.centres).sum(-1).argmin(1), found

    @pytest.mark.parametrize("seed", range(3))
    def test_they_are_found_where_the_weights_are_large(self, seed):
        component, found = self.search(seed)
        assert sorted(component[:4]) == [0, 1, 2, 3]
        assert component.tolist() == [*component[:4], *component[:4]]
        truth = self.weights[component[:4]]
        assert found.k_hat.max() < GOOD_KHAT
        assert (np.abs(found.weights - truth) < 4 * found.errors).all()
        assert found.errors.max() < 0.01
