"""Where chains do badly in one set of coordinates, others are tried, and those that cost less go on."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from backends import BACKENDS
from daily import daily

from pyro_dft.recipe import race
from pyro_dft.recipe.fit import Problem
from pyro_dft.recipe.gaussian_phase import GaussianPhase
from pyro_dft.recipe.gaussians import Gaussians

GROUPS = np.random.default_rng(3).normal(0.0, np.sqrt(1.0 + 0.5**2), 40).astype(np.float32)


def bounds(*elbos):
    """A Gaussian phase that has ended with these evidence bounds, None for coordinates that it gave up at once."""
    phase = GaussianPhase.__new__(GaussianPhase)
    phase.chains, phase.problems = 1, [Problem(None, None)] * len(elbos)
    one = np.ones((1, 2))
    phase._fitted = [None if e is None else Gaussians(one, one, np.array([e]), np.zeros(1)) for e in elbos]
    return phase


@pytest.mark.parametrize(
    ("elbos", "problem", "expected"),
    [
        ((-10.0, -9.0, -8.5), 2, 1),  # partly non-centred: wholly
        ((-5.0, -9.0, -8.5), 0, 1),  # the model's own: wholly
        ((-10.0, -8.0, -8.5), 1, 2),  # wholly: partly
        ((-7.0, -9.0, -7.5), 1, 2),  # never the model's own, where a neck may not be seen
        ((-7.0, -9.0), 1, None),
        ((-9.0, -20.0, -9.5), 2, None),  # far below
        ((-9.0, None, -9.5), 2, None),
        ((-9.0,), 0, None),
    ],
)
def test_the_rival_is_the_other_kind_of_coordinates(elbos, problem, expected):
    found = bounds(*elbos).rival(problem)
    assert (None if found is None else found.problem) == expected


@pytest.mark.parametrize(
    ("struggling", "own", "other", "left", "expected", "asked"),
    [
        (False, 1.0, 9.0, 1000, "own", 0),
        (True, 1.0, 9.0, 1000, "other", 1),
        (True, 2.0, 1.0, 1000, "own", 1),
        (True, 1.0, 9.0, 399, "own", 0),  # a limit of gradients that leaves no more for them
    ],
)
def test_the_rival_runs_only_where_it_is_called_for_and_goes_on_only_where_it_is_better(
    monkeypatch, struggling, own, other, left, expected, asked
):
    rates, calls = {"own": own, "other": other}, []

    def particles(subject):
        budget = SimpleNamespace(left=left)
        return SimpleNamespace(
            begin=lambda: None, struggling=struggling, efficiency=rates[subject], spent=100, budget=budget
        )

    def rival():
        calls.append(1)
        return "other"

    monkeypatch.setattr(race, "Particles", particles)
    chosen, fit = race.begun("own", rival, lambda fit: fit)
    assert (chosen.efficiency, fit, len(calls)) == (rates[expected], expected, asked)


def exact_scale(y):
    """Draws of the groups' sd given one value with unit noise for each group, by quadrature; the mean is integrated out."""
    tau = np.linspace(1e-3, 4.0, 4000)
    v = 1.0 + tau**2
    precision, total = len(y) / v + 1 / 25.0, y.sum() / v
    log_p = -0.5 * (tau / 3.0) ** 2 - 0.5 * len(y) * np.log(v) - 0.5 * np.square(y).sum() / v
    log_p += 0.5 * total**2 / precision - 0.5 * np.log(precision)
    cumulative = np.cumsum(np.exp(log_p - log_p.max()))
    return np.interp((np.arange(20_000) + 0.5) / 20_000, cumulative / cumulative[-1], tau)


# With Pyro it takes 20 seconds; the recipe is the same.
@pytest.mark.parametrize("backend", daily(BACKENDS, BACKENDS[1]), ids=repr)
def test_groups_with_little_data_are_right_and_cheap(backend):
    dft = backend.dft(
        "hierarchy", reparam="auto", train="never", refine_steps=None, restarts=6, num_draws=4000
    )
    backend.run(dft, backend.array(GROUPS))
    report = dft.diagnostics()
    assert report["status"] == "converged"
    # Partly non-centred, steps of chains have to be several times as small at the end.
    assert report["gradient_evaluations"] < 300_000
    found, exact = np.asarray(dft.get_samples()["tau"], float), exact_scale(GROUPS.astype(float))
    sd = exact.std()
    # At least 600 effective draws: four standard errors of a mean, of a log sd, and of 5 % and 95 % points, in sds.
    assert abs(found.mean() - exact.mean()) < 4 * 600**-0.5 * sd
    assert abs(np.log(found.std() / sd)) < 4 * 1200**-0.5
    for level in (0.05, 0.95):
        density = np.mean(np.abs(exact - np.quantile(exact, level)) < 0.1 * sd) / 0.2
        error = (level * (1 - level) / 600) ** 0.5 / density
        assert abs(np.quantile(found, level) - np.quantile(exact, level)) < 4 * error * sd
