"""An optimum that draws miss: by the transitions that refine draws it is a mode of its own, or it is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from backends import BACKENDS

from pyro_dft.recipe.missed import ends

SD, AWAY = 0.5, 4.0


@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
@pytest.mark.parametrize("separate", [False, True])
def test_where_points_at_a_missed_optimum_come_to(backend, separate):
    """One Gaussian at the origin, or a second one that transitions do not come to: 16 sds away, and not searched for."""

    def potential(z):
        first, second = ((z["a"] - centre) ** 2 / (2 * SD**2) for centre in (0.0, AWAY * separate))
        first, second = first.sum(-1), second.sum(-1)
        return (first + second - abs(first - second)) / 2  # the smaller one

    start = {"a": backend.array([0.1, -0.1])}
    dft = backend.fitted(backend.potential(potential, initial_params=start, modes="never", restarts=1))
    parts = dft.parts
    fit = parts.result.fit
    there = np.full_like(np.asarray(fit.optima.mean, float), AWAY)
    moved = replace(fit, optima=replace(fit.optima, mean=there))
    found = ends(parts.backend.engine, parts.backend.problems[0].target, moved, 0)
    # Of 64 particles: a mean within 4 standard errors, an sd within as many.
    assert found.shape == (64, 2)
    np.testing.assert_allclose(found.mean(0), AWAY * separate, atol=4 * SD / 8)
    np.testing.assert_allclose(found.std(0), SD, rtol=4 / np.sqrt(128))
    assert (
        ends(parts.backend.engine, parts.backend.problems[0].target, replace(moved, cut="max_gradients"), 0)
        is None
    )
