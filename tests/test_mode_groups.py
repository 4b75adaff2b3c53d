"""Which optima make a mode, and their weights: the two must be of the same search."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pyro_dft.recipe.far_starts import FAR
from pyro_dft.recipe.mode_search import _Search
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
