"""How small steps get: rates of divergences, window after window, and what follows from them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pyro_dft.judging.divergences import CHAIN_DIVERGENCES, CHANCE, too_many
from pyro_dft.recipe.carefulness import Carefulness
from pyro_dft.recipe.constants import BLOCK_STEPS
from pyro_dft.recipe.trajectories import LENGTH, MOST_AT_FIRST, MOST_LEAPFROGS, Trajectories

# Transitions of a window.
MANY = 8192


def after(*rates):
    """What is known after windows with these rates, each of which is followed by smaller steps where they are due."""
    found = Carefulness()
    for rate in rates:
        found.saw(rate)
        if found.due(rate, MANY):
            found.go_on()
    return found


@pytest.mark.parametrize(
    ("rates", "acceptance", "in_vain"),
    [
        ((0.0002,), 0.8, False),
        ((0.02,), 0.95, False),
        ((0.02, 0.01), 0.99, False),
        ((0.02, 0.01, 0.005), 0.99, False),
        ((0.05, 0.0001), 0.95, False),
        ((0.001, 0.0015), 0.99, False),  # by chance
        ((0.05, 0.05), 0.95, True),
        ((0.05, 0.046), 0.95, True),
        ((0.05, 0.044), 0.99, False),
        ((0.05, 0.044, 0.044), 0.99, True),
    ],
)
def test_steps_get_smaller_while_that_helps(rates, acceptance, in_vain):
    found = after(*rates)
    assert (found.acceptance, found.in_vain) == (acceptance, in_vain)


def test_steps_have_their_usual_size_again_once():
    """What diverged before scales were adapted need not do so with them."""
    found = after(0.02)
    found.saw(0.0)
    assert found.relent()
    assert found.acceptance == Carefulness().acceptance
    assert not found.due(0.0, MANY)
    found.saw(1 / MANY)
    assert found.due(1 / MANY, MANY)  # one is enough: what diverged before does so still
    found.go_on()
    assert not found.due(1 / MANY, MANY)
    found.saw(0.0)
    assert not found.relent()
    assert found.acceptance == 0.95


@pytest.mark.parametrize("rates", [(), (0.02, 0.0001), (0.02, 0.01, 0.0)])
def test_steps_stay_as_small_as_they_are_where_it_takes_that(rates):
    """None is smaller; some still diverge; it took the smallest ones."""
    found = after(*rates)
    before = found.acceptance
    assert not found.relent()
    assert found.acceptance == before


def test_what_diverges_with_the_smallest_steps_is_no_hindrance():
    for rates in ((0.02, 0.01, 0.005), (0.05, 0.05)):
        found = after(*rates)
        assert found.next is None
        assert not found.due(0.5, MANY)  # exact chains go on, and the verdict tells of it
    assert after(0.02).due(0.001, MANY)


@pytest.mark.parametrize("transitions", [4096, 8192, 16_384, 100_000, 3_000_000])
def test_as_many_divergences_count_as_chance_does_not_explain(transitions):
    expected = CHAIN_DIVERGENCES * transitions
    counts = (
        (expected + np.arange(-5, 9) * expected**0.5).clip(0).round()
    )  # the last ones are surely too many
    found = [too_many(count / transitions, transitions) for count in counts]
    np.testing.assert_array_equal(found, stats.poisson.sf(counts - 1, expected) < CHANCE)
    assert not too_many(CHAIN_DIVERGENCES, transitions)


def test_lengths_of_trajectories():
    sizes = np.array([0.1, 0.2])
    found = Trajectories(None)
    assert found.lengths(sizes) == [round(LENGTH / 0.1)]
    assert found.lengths(np.array([1e-4])) == [MOST_LEAPFROGS]
    assert found.lengths(np.array([1e-4]), tune=1.5) == [MOST_AT_FIRST]
    # One number of them for all, and none is longer than it should be.
    whole = found.whole(np.array([0.3, 0.2]))
    assert whole.max() * round(LENGTH / whole.min()) == pytest.approx(LENGTH)
    found.stretch(10, 100)
    assert found.lengths(sizes) == [32, 16]
    found.stretch(30, 100)  # enough of them
    found.stretch(10, 100)
    found.stretch(10, 100)
    assert found.lengths(sizes) == [64, 16]
    assert [found.next(sizes) for _ in range(3)] == [64, 16, 64]
    assert found.mean(sizes, BLOCK_STEPS) == 16
    assert found.mean(sizes, 2 * BLOCK_STEPS) == 40
    fixed = Trajectories(7)
    assert fixed.lengths(sizes) == [7]
    np.testing.assert_array_equal(fixed.whole(sizes), sizes)
