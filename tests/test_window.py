"""The log density of an ensemble says whether its particles are still on their way."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pyro_dft.judging.mixing import effective_draws
from pyro_dft.recipe.window import CLIMB, COMPARED_STATES, LEAST_STATES, climb, picked, spacing


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


@pytest.mark.parametrize(
    ("shape", "asked", "every"),
    [
        ((1, 64, 64, 1200), 4000, 1),
        ((1, 64, 1024, 100), 4000, 1),  # few coordinates
        ((1, 64, 800, 1200), 4000, 6),
        ((1, 64, 800, 1200), 16_000, 3),  # as many as are asked for
        ((1, 64, 4096, 50), 4000, 2),
        ((4, 16, 1024, 300), 1000, 3),
    ],
)
def test_long_windows_of_many_coordinates_are_judged_by_some_states(shape, asked, every):
    assert spacing(shape, asked) == every
    judged = math.ceil(shape[2] / every)
    if every > 1:
        assert judged * shape[1] >= asked
        assert judged >= LEAST_STATES


@pytest.mark.parametrize(
    ("shape", "every"), [((1, 64, 64, 2000), 1), ((1, 64, 64, 5003), 2), ((1, 64, 130, 20_000), 4)]
)
def test_moments_of_many_coordinates_are_compared_by_fewer_states(shape, every):
    assert spacing(shape, least=COMPARED_STATES) == every
    assert spacing(shape) == 1


def test_particles_are_copied_only_where_some_are_left_out():
    states = np.arange(24.0).reshape(4, 3, 2)
    assert picked(states, np.arange(4)) is states
    for rows in ([0, 1, 2], [1, 0, 2, 3], [0, 0, 1, 2]):
        np.testing.assert_array_equal(picked(states, np.array(rows)), states[rows])


def test_slow_chains_are_worth_as_many_draws_by_some_of_their_states():
    """Sixty-four chains of 1,024 states, each worth some five independent ones."""
    slow = chains(np.random.default_rng(3), 64, 1024, 0.99)[0, :, :, None]
    group = np.zeros(64, int)
    whole = effective_draws(slow, group)
    assert whole.max() < 1500
    np.testing.assert_allclose(effective_draws(slow[:, ::8], group), whole, rtol=0.1)
