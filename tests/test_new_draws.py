"""Draws beyond those that a fit keeps: they are new ones of its sampler, refined by as many transitions as these need."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from backends import BACKENDS
from daily import daily
from test_particles import chains

from pyro_dft import FidelityWarning
from pyro_dft.judging.joint import Joint
from pyro_dft.recipe.ensemble import Ensemble

# What the recipe does in both alike is looked at in one every day.
ONE_A_DAY = daily(BACKENDS, BACKENDS[1])
AMOUNT, DIM = 0.6, 20
# Sd of the coordinates whose scale is exp(AMOUNT tanh(x_0)), by quadrature over x_0.
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
SD = np.sqrt((WEIGHTS * np.exp(2 * AMOUNT * np.tanh(NODES))).sum() / WEIGHTS.sum())


def scales_by_the_first(values):
    """x_0 is standard normal; the others are normal with a log scale that follows it. As a whole it is no Gaussian."""
    x = values["x"]
    e = np.e ** (2 * x[0])
    log_scale = AMOUNT * (e - 1) / (e + 1)
    return 0.5 * x[0] ** 2 + 0.5 * (x[1:] ** 2).sum() / np.e ** (2 * log_scale) + (DIM - 1) * log_scale


@pytest.mark.parametrize("backend", ONE_A_DAY, ids=repr)
def test_new_draws_are_right_where_the_gaussian_is_so_in_each_coordinate_only(backend):
    """Transitions from a Gaussian with the right means and sds first move x_0 by a fifth of its sd: the others are too wide."""
    dft = backend.potential(
        scales_by_the_first, initial_params={"x": backend.array(np.zeros(DIM))}, train="never", refine_steps=None,
        restarts=6, num_draws=4000,
    )  # fmt: skip
    backend.run(dft)
    assert dft.diagnostics()["status"] == "converged"
    for draws in (dft.get_samples(), dft.get_samples(8000)):
        x = np.asarray(draws["x"], float)
        # Four standard errors of 1,000 effective draws, as the kept ones are at least worth.
        assert abs(x[:, 0].mean()) < 4 / 1000**0.5
        assert x[:, 0].std() == pytest.approx(1.0, abs=4 / 2000**0.5)
        assert np.sqrt((x[:, 1:] ** 2).mean()) == pytest.approx(SD, rel=0.05)


RADIUS, THICKNESS = 2.6, 0.13


def ring(values, thickness=THICKNESS):
    x = values["x"]
    return 0.5 * (((x**2).sum() ** 0.5 - RADIUS) / thickness) ** 2


@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
def test_none_stays_far_out_where_no_step_is_short_enough(backend):
    """A Gaussian as wide as a ring has draws out to twice its radius, 20 sds and more away; from there every step is rejected."""
    dft = backend.potential(
        ring, initial_params={"x": backend.array(np.array([1.0, 0.0]))}, train="never", refine_steps=None,
        restarts=2, num_draws=4000,
    )  # fmt: skip
    backend.run(dft)
    # Pyro's kernel takes its draws from `get_samples`, one at a time.
    served = backend.mcmc(backend.DFTKernel(dft), 5_000, 0, 1)
    for draws in (dft.get_samples(20_000), served.get_samples()):
        radius = np.linalg.norm(np.asarray(draws["x"], float), axis=1)
        assert abs(radius - RADIUS).max() < 6 * THICKNESS
        assert radius.std() == pytest.approx(THICKNESS, rel=4 / 2000**0.5)
    # No coordinate shows it: both are right in mean and sd.
    report = dft.diagnostics()
    assert report["drift_raw"]["rms"] < 0.1
    assert report["joint"] > 0.5
    with pytest.warns(FidelityWarning, match="raw draws differ from the posterior.*jointly"):
        dft.get_samples(100, refine_steps=0)
    raw = dft.get_samples(2000, refine_steps=0)["x"]  # once is enough
    assert np.linalg.norm(np.asarray(raw, float), axis=1).std() > 1.0


@pytest.mark.filterwarnings("ignore:raw draws differ")  # so small a network ends within a few tenths of an sd
@pytest.mark.parametrize("backend", ONE_A_DAY, ids=repr)
def test_a_network_is_served_where_the_gaussian_is_right_in_each_coordinate_only(backend):
    """The radius of a Gaussian as wide as a ring has an sd of 1.22; that of the network's draws is nearer to the ring's."""
    dft = backend.potential(
        lambda values: ring(values, 0.5), initial_params={"x": backend.array(np.array([1.0, 0.0]))}, train="auto",
        refine_steps=None, restarts=2, num_draws=1000, num_steps=2500, width=32, depth=1,
    )  # fmt: skip
    backend.run(dft)
    assert dft.diagnostics()["joint"] > 0.5
    raw = np.linalg.norm(np.asarray(dft.get_samples(4000, refine_steps=0)["x"], float), axis=1)
    assert raw.std() < (0.5 + 1.22) / 2
    assert dft.diagnostics()["objective"] == "kl"
    assert dft.diagnostics()["joint"] < 0.5


def joint(difference, weights=((1.0,),), dim=1):
    """Of 64 draws whose log density is so many sds too low, for each sampler."""
    states = np.random.default_rng(1).normal(size=(len(difference), 64 * 256))
    draws = np.random.default_rng(2).normal(size=(len(difference), 64)) - np.asarray(difference)[:, None]
    return Joint.of(draws, states, np.asarray(weights), dim)


def ensemble(memory, gradients_each=10.0, every=1):
    states = chains(64, 256 * every, memory, np.random.default_rng(0))[None]
    window = SimpleNamespace(gradients_each=gradients_each, leapfrog_steps=10, x=states)
    particles = SimpleNamespace(
        count=64, modes=None, target=SimpleNamespace(dim=1), states_in_own_coordinates=lambda x: x
    )
    return Ensemble(particles, window, SimpleNamespace(points=states[:, :, ::every]))  # type: ignore[arg-type]


def transitions(made, effect, wrong_jointly=0.0):
    raw = SimpleNamespace(effects=np.full((4, 1), effect), significance=np.full((4, 1), 9.0))
    return made.transitions(raw, joint([wrong_jointly]), np.zeros((1, 64, 1)), 64)


def test_more_transitions_where_more_is_remembered_or_more_is_wrong():
    """With .8 from one to the next, .3 is remembered after 5.4 of them; of an error of .5 sds .05 is left after 10.3."""
    assert transitions(ensemble(0.0), 0.02) == (2, False)
    assert transitions(ensemble(0.8), 0.02) == (8, False)
    assert transitions(ensemble(0.8), 0.5) == (16, False)
    assert transitions(ensemble(0.8, every=4), 0.5) == (16, False)  # judged by some of its states


def test_transitions_that_are_shorter_than_the_ensembles_are_more():
    """A window whose trajectories are twice as long on average forgets as much with half as many transitions."""
    assert transitions(ensemble(0.8, gradients_each=20.0), 0.02) == (16, False)
    assert transitions(ensemble(0.8, gradients_each=20.0), 0.2) == (16, False)


def test_what_is_wrong_jointly_counts_as_an_error_of_each_coordinate(monkeypatch):
    monkeypatch.setattr(Ensemble, "_settled", lambda self, draws, steps, most: steps)
    assert transitions(ensemble(0.8), 0.02, wrong_jointly=5.0) == (16, False)


def test_new_draws_start_at_kept_ones_where_those_of_the_sampler_are_dear_or_stay_wrong(monkeypatch):
    """Kept draws have nothing to mend: 8 transitions forget them, where an error of a draw of the sampler takes 16 or 32."""
    assert transitions(ensemble(0.8), 8.0) == (8, True)
    monkeypatch.setattr("pyro_dft.recipe.ensemble.DEAR_DRAW", 100)
    assert transitions(ensemble(0.8), 0.02) == (8, False)
    assert transitions(ensemble(0.8), 0.5) == (8, True)
    monkeypatch.setattr(Ensemble, "_settled", lambda self, draws, steps, most: None)
    monkeypatch.setattr("pyro_dft.recipe.ensemble.DEAR_DRAW", 1000)
    assert transitions(ensemble(0.8), 0.02, wrong_jointly=5.0) == (8, True)


def test_log_densities_count_by_the_coordinate_and_by_how_often_a_sampler_serves():
    assert joint([0.0]).agrees(2.5)
    assert not joint([5.0]).agrees(2.5)
    assert joint([0.0]).size[0] < 3 / 64**0.5
    assert joint([0.0]).sure[0] < 1 / 64**0.5
    one = joint([5.0], dim=100)
    assert one.size[0] == pytest.approx(0.05, abs=3 / 64**0.5 / 100)
    assert 0.0 < one.sure[0] < one.size[0]
    # Two chains of two modes: the wrong one serves a tenth of the first chain's draws.
    four = joint([0.0, 5.0, 0.0, 0.0], weights=((0.9, 0.1), (0.5, 0.5)), dim=100)
    assert four.size == pytest.approx([0.005, 0.0], abs=3 / 64**0.5 / 100)
    assert joint([np.inf]).size[0] == Joint.of([[0.0]], [[-np.inf, 0.0]], np.ones((1, 1)), 1).size[0] == 0.7


def test_one_that_is_far_out_does_not_hide_itself_in_the_comparison_of_log_densities():
    """A single one of 64 that is 100 nats down moves the mean by 1.6, twelve standard errors of right ones."""
    values = np.random.default_rng(2).normal(size=(1, 64))
    states = np.random.default_rng(1).normal(size=(1, 64, 256))
    assert Joint.of(values, states, np.ones((1, 1)), 1).agrees(2.5)
    values[0, 0] = -100.0
    assert not Joint.of(values, states, np.ones((1, 1)), 1).agrees(2.5)
