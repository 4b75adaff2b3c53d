"""The race between sets of coordinates: who is given up, and who is averaged as he stands."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pyro_dft.engine_torch.engine import ENGINE
from pyro_dft.engine_torch.target import Target
from pyro_dft.recipe.constants import AVERAGING
from pyro_dft.recipe.gaussian_fit import MORE_STEPS, TIMES, GaussianFitter
from pyro_dft.recipe.gaussian_phase import GaussianPhase
from pyro_dft.settings import Settings


class Scripted:
    """A fitter whose bound is what a script says."""

    def __init__(self, bound, settles_at=math.inf):
        self.bound, self.settles_at, self.taken, self.ends_at = bound, settles_at, 0, math.inf
        self.target = SimpleNamespace(minibatch=False)

    @property
    def settled(self):
        return self.taken >= self.settles_at

    @property
    def done(self):
        return self.taken >= min(self.settles_at, self.ends_at)

    def advance(self):
        self.taken += 1
        return [self.bound]

    def settle(self):
        self.ends_at = min(self.ends_at, self.taken + AVERAGING)

    @property
    def settled_bound(self):
        return self.bound

    def current(self):
        return SimpleNamespace(elbo=np.array([self.bound]), final=False)

    def result(self):
        return SimpleNamespace(elbo=np.array([self.bound]), final=True)


@pytest.mark.parametrize(
    ("bound", "final"), [(-5.0, True), (-10.5, True), (-25.0, False), (-math.inf, False)]
)
def test_coordinates_that_do_not_settle_are_averaged_unless_they_are_far_below(bound, final):
    problems = [SimpleNamespace(target=None, starts=np.zeros((1, 1, 1)))] * 2
    phase = GaussianPhase(ENGINE, problems, Settings(), None, None)
    first, second = phase._fitters = [Scripted(-10.0, settles_at=20), Scripted(bound)]
    while not phase.complete:
        phase.advance()
    late = math.floor(TIMES * first.taken + MORE_STEPS) + 1
    assert second.taken == late + AVERAGING * final
    assert phase._fitted[1].final == final
    assert phase._fitted[0].final


@pytest.mark.parametrize(("other", "chosen"), [(-9.0, 1), (-11.9, 1), (-12.1, 0), (3e20, 0)])
def test_the_own_coordinates_have_to_lead(other, chosen):
    """Where bounds are as good as equal, a funnel's neck is served by the non-centred ones only. Rounding errors do not count."""
    problems = [SimpleNamespace(target=SimpleNamespace(dtype="float32"), starts=np.zeros((1, 1, 1)))] * 2
    phase = GaussianPhase(ENGINE, problems, Settings(), None, None)
    phase._fitted = [
        SimpleNamespace(elbo=np.array([bound]), best_of_chains=lambda chains: np.arange(chains))
        for bound in (-10.0, other)
    ]
    assert phase.choose(search=False).problem == chosen


def test_a_fit_that_is_told_to_settle_ends_where_its_bound_was_highest():
    # A Gaussian with a heavy tail in one direction: steps of few points jump away from the optimum, now and then.
    def potential(x):
        return 0.5 * (x[0] - 2 * x[1]).square() * torch.exp(-x[1]) + 0.5 * x.square().sum()

    target = Target(potential, 2, dtype=torch.float64, trace=False)
    rng = torch.Generator().manual_seed(3)
    fitter = GaussianFitter(ENGINE, target, np.zeros((1, 1, 2)), np.ones(1), steps=200, rng=rng)
    for _ in range(5):
        fitter.advance()
    assert fitter._averaging_from is None
    highest, at = fitter._state.best.copy(), fitter._state.kept_mean.copy()
    fitter.settle()
    assert np.array_equal(fitter._state.mean, at)
    while not fitter.done:
        fitter.advance()
    assert fitter.taken == 5 + AVERAGING
    found = fitter.result()
    # Both are estimates of a bound: that of the end from 256 points, the highest of five from 16 points each.
    assert found.elbo[0] > highest[0] - 3 * found.elbo_error[0] - 1.0
    assert np.abs(found.mean[0] - at[0]).max() < 0.5
