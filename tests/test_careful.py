"""Divergences are looked at again with smaller steps: bends that make a few transitions diverge, and necks that go on."""

from __future__ import annotations

import pytest
import torch

from pyro_dft.engine_torch.engine import ENGINE
from pyro_dft.engine_torch.target import Target
from pyro_dft.experimental import Experimental
from pyro_dft.judging.alarms import CAREFUL_LIMIT, DIVERGENCE_LIMIT
from pyro_dft.recipe.measure import CAREFUL_STEPS, SOME_DIVERGENCES, carefully
from pyro_dft.recipe.subject import Subject
from pyro_dft.settings import Settings

N, STEPS = 2000, 4
SETTINGS = Settings(experimental=Experimental(leapfrog_steps=5))


def bend(x):
    """x_0 of sd 1, x_1 around 3 x_0^2 with sd .1."""
    return 0.5 * x[0] ** 2 + 50 * (x[1] - 3 * x[0] ** 2) ** 2


def bent(rng):
    z = torch.randn(1, N, 2, generator=rng, dtype=torch.float64)
    return torch.stack([z[..., 0], 3 * z[..., 0] ** 2 + 0.1 * z[..., 1]], -1)


def neck(x):
    """log sd of x_1 is normal with sd 4: whatever the step, some draws are in a neck that is narrower."""
    return x[0] ** 2 / 32 + 0.5 * x[1] ** 2 * torch.exp(-2 * x[0]) + x[0]


def necked(rng):
    z = torch.randn(1, N, 2, generator=rng, dtype=torch.float64)
    return torch.stack([4 * z[..., 0], torch.exp(4 * z[..., 0]) * z[..., 1]], -1)


def look(potential, draws, step, rng):
    """Divergence rate of the usual transitions, and what is left of it."""
    target = Target(potential, 2, dtype=torch.float64)
    scale, sizes = torch.eye(2, dtype=torch.float64)[None], torch.full((1,), step, dtype=torch.float64)
    kernel = {"steps": STEPS, "leapfrog_steps": SETTINGS.fixed_leapfrog_steps, "rng": rng}
    refined = ENGINE.refine(target, draws, scale, sizes, **kernel)
    before = target.gradient_evaluations
    subject = Subject(ENGINE, target, None, N, SETTINGS, rng, lambda x: x)
    left, moved = carefully(subject, refined, 500, scale, sizes, steps=STEPS)
    return refined.divergence_rate, left, moved, target.gradient_evaluations - before


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def test_with_small_steps_a_bend_diverges_no_more(rng):
    rate, left, moved, gradients = look(bend, bent(rng), 0.02, rng)
    assert rate > 2 * DIVERGENCE_LIMIT
    assert left < DIVERGENCE_LIMIT
    assert moved.worst_lower < CAREFUL_LIMIT
    assert gradients == 500 * (CAREFUL_STEPS * 4 * SETTINGS.fixed_leapfrog_steps + 1)


def test_with_small_steps_a_neck_still_diverges(rng):
    rate, left, _, _ = look(neck, necked(rng), 0.3, rng)
    assert rate > 2 * DIVERGENCE_LIMIT
    assert left > 2 * DIVERGENCE_LIMIT


def test_draws_that_lack_a_narrow_part_are_moved_by_small_steps(rng):
    """Draws that are five times too wide in a narrow direction: smaller steps carry them into it."""
    draws = torch.randn(1, N, 2, generator=rng, dtype=torch.float64) * torch.tensor([1.0, 0.25])
    rate, _, moved, _ = look(lambda x: 0.5 * x[0] ** 2 + 200 * x[1] ** 2, draws, 0.3, rng)
    assert rate > SOME_DIVERGENCES
    assert moved.flagged()
    assert moved.coordinate == 1


def test_no_divergences_cost_nothing(rng):
    rate, left, moved, gradients = look(bend, bent(rng), 0.003, rng)
    assert rate == left < SOME_DIVERGENCES
    assert moved is None
    assert gradients == 0
