"""Which optima make a mode, and their weights: the two must be of the same search."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pyro_dft.recipe.far_starts import FAR
from pyro_dft.recipe.mode_search import TEST_DRAWS, _grouped, _Search
from pyro_dft.recipe.modes import Modes


class _Job(_Search):
    """Optima 0, 1 and 2, whose parting into modes differs from look to look; the weights call for a repair that finds nothing."""

    def __init__(self, k_hat):
        means, scales = np.zeros((3, 2)), np.ones((3, 2))
        super().__init__(
            lambda: (means, scales, np.zeros(3)),
            lambda starts: None,
            None,
            None,
            1,
            100,
            FAR,
            np.random.default_rng(0),
        )
        self.k_hat = k_hat

    def groups(self):
        return [[0], [1], [2]]

    def weighed(self, groups, adapt):
        k, one = len(groups), np.ones(1)
        drawn = SimpleNamespace(suspicious=True, k_hat=self.k_hat, points=np.zeros((4, 2)), log_w=np.zeros(4))
        return Modes(np.full((1, k), 1 / k), np.zeros((1, k)), one, one), drawn


@pytest.mark.parametrize("k_hat", [0.3, 0.9])
def test_weights_are_those_of_the_modes_that_are_returned(k_hat, monkeypatch):
    monkeypatch.setattr("pyro_dft.recipe.mode_search.overlooked", lambda *given: np.zeros((1, 2)))
    groups, found, light = _Job(k_hat).with_weights([[0, 1], [2]])
    assert len(groups) == found.count
    assert light == []


def grouped(to_first, to_second):
    """Groups of optima at -6, 6 and 0, from the last of which so many in a hundred pass to the others; nothing else moves."""
    means, scales, elbos = np.array([[-6.0], [6.0], [0.0]]), np.ones((3, 1, 1)), np.array([0.0, -0.1, -1.0])

    def valleys(x):
        # Below the ends of any line, so that lines say nothing of who belongs together.
        return np.where(np.isin(x[..., 0], means), 0.0, -10.0)

    def move(draws, scale):
        moved = draws.copy()
        if abs(draws.mean()) < 3.0:
            middle = np.flatnonzero(np.abs(draws[0, :, 0]) < 3.0)
            moved[0, middle[:to_first]] = -6.0
            moved[0, middle[to_first : to_first + to_second]] = 6.0
        return moved

    return _grouped(means, scales, elbos, valleys, move, np.random.default_rng(0), {})


def test_an_optimum_between_two_modes_joins_both_where_it_joins_one():
    """Counted with one of them alone, its share would be that one's, whose chains end up on one side."""
    assert TEST_DRAWS == 100
    assert grouped(0, 0) == [[0], [1], [2]]
    assert grouped(9, 9) == [[0], [1], [2]]  # most stay: it is a mode of its own
    assert grouped(0, 20) == [[0], [1, 2]]
    assert grouped(3, 20) == [[0], [1, 2]]
    assert grouped(9, 20) == [[0, 1, 2]]
