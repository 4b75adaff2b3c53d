"""The log density of an ensemble says whether its particles are still on their way."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_dft.recipe.window import CLIMB, climb


def chains(rng, particles, steps, memory):
    """Stationary autoregressions of unit variance, (1, particles, steps)."""
    x = rng.normal(size=(1, particles, steps))
    for t in range(1, steps):
        x[..., t] = memory * x[..., t - 1] + (1 - memory**2) ** 0.5 * x[..., t]
    return x


@pytest.mark.parametrize("memory", [0.0, 0.9, 0.99])
def test_chains_at_rest_hardly_ever_climb(memory):
    """Student's t of 63 degrees of freedom is beyond 4 in .02 % of the cases, however slow the chains are."""
    rng = np.random.default_rng(0)
    found = np.array([climb(chains(rng, 64, 64, memory)) for _ in range(500)])
    assert abs(found.mean()) < 4 / 500**0.5
    # The variance of Student's t is 63 / 61; its estimate has a standard error of .065.
    assert found.var() == pytest.approx(63 / 61, abs=4 * 0.065)
    assert (np.abs(found) > CLIMB).sum() <= 2


def test_a_rise_is_seen_where_it_is_less_than_a_standard_deviation():
    rng = np.random.default_rng(1)
    still = chains(rng, 64, 64, 0.5)
    assert climb(still + 0.9 * np.linspace(0, 1, 64)) > CLIMB
    assert climb(still - 0.9 * np.linspace(0, 1, 64)) < -CLIMB


def test_particles_that_are_stuck_outside_say_nothing():
    log_density = chains(np.random.default_rng(2), 64, 64, 0.5)
    log_density[0, :3] = -np.inf
    assert abs(climb(log_density)) < CLIMB
    log_density[0, 3:] = -np.inf
    assert climb(log_density) == 0.0
