"""The ensemble of exact chains: what it serves is right, what it says of itself is true, and it costs little."""

from __future__ import annotations

import math
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from backends import BACKENDS
from scipy import special

from pyro_dft import DFT, FidelityWarning
from pyro_dft.experimental import Experimental
from pyro_dft.judging.drift import difference, drift
from pyro_dft.judging.mixing import effective_draws, memory_at
from pyro_dft.recipe import budget, enough, particles, window
from pyro_dft.recipe.bank import Bank, Substitute, usable
from pyro_dft.recipe.constants import BLOCK_STEPS
from pyro_dft.recipe.trajectories import calls

SHAPE = 3.0


def gamma_and_line(z):
    """x_0 is the log of a gamma variable of shape 3; x_1 is normal around x_0 with sd .2; x_2 is standard normal."""
    x = z["x"]
    gamma = np.e ** x[0] - SHAPE * x[0]
    return gamma + 12.5 * (x[1] - x[0]) ** 2 + 0.5 * x[2] ** 2


def banana(z):
    x = z["x"]
    return 0.5 * x[0] ** 2 + 8 * (x[1] - x[0] ** 2) ** 2


MEAN, VARIANCE = special.digamma(SHAPE), special.polygamma(1, SHAPE)


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


@pytest.fixture(scope="module")
def fits():
    return {}


@pytest.fixture
def fit(backend, fits):
    if backend not in fits:
        start = {"x": backend.array(np.zeros(3))}
        fits[backend] = backend.potential(gamma_and_line, initial_params=start, train="never", refine_steps=None,
                                          restarts=6, num_draws=4000)  # fmt: skip
        backend.run(fits[backend])
    return fits[backend]


@pytest.mark.filterwarnings("ignore::pyro_dft.PerformanceWarning")
def test_a_potential_that_draws_random_numbers_of_its_own_fails():
    """In torch each call has its own; jax fixes them when it traces the potential."""
    rng = np.random.default_rng(0)
    dft = DFT(
        potential_fn=lambda z: 0.5 * (1 + 0.5 * rng.normal()) * z["x"].square().sum(),
        initial_params={"x": torch.zeros(2)}, train="never", modes="never", restarts=1, num_draws=100,
        disable_progbar=True, seed=0,
    )  # fmt: skip
    with pytest.warns(FidelityWarning, match="random numbers outside of sample statements"):
        dft.run()
    assert dft.diagnostics()["status"] == "failed"
    assert "noise" in dft.diagnostics()["alarms"]


def test_states_are_right_in_means_sds_and_tails(fit):
    report = fit.diagnostics()
    assert report["status"] == "converged"
    x = np.asarray(fit.get_samples()["x"], float)
    assert x.shape == (4000, 3)
    n = report["ensemble"]["ess"]
    assert n > 1200
    means, sds = np.array([MEAN, MEAN, 0.0]), np.sqrt([VARIANCE, VARIANCE + 0.04, 1.0])
    assert np.abs((x.mean(0) - means) / sds).max() < 4 / n**0.5
    # A log sd has a standard error of sqrt((kurtosis - 1) / 4 n), with kurtosis up to 4.2 here (trigamma and its derivatives).
    assert np.abs(np.log(x.std(0) / sds)).max() < 4 * (3.2 / (4 * n)) ** 0.5
    for share in (0.05, 0.95):
        exact = np.log(special.gammaincinv(SHAPE, share))
        assert abs((x[:, 0] < exact).mean() - share) < 4 * (0.05 * 0.95 / n) ** 0.5


def test_a_small_model_costs_few_gradients_and_each_is_booked(fit):
    report = fit.diagnostics()
    assert report["gradient_evaluations"] < 45_000
    booked = sum(report["phase_gradients"].values())
    assert booked == report["gradient_evaluations"]


def test_fresh_draws_follow_from_the_gaussian_with_the_moments_of_the_states(fit):
    raw = np.asarray(fit.get_samples(4000, refine_steps=0)["x"], float)
    x = np.asarray(fit.get_samples()["x"], float)
    n = min(fit.diagnostics()["ensemble"]["ess"], 4000)
    assert np.abs((raw.mean(0) - x.mean(0)) / x.std(0)).max() < 5 * (2 / n) ** 0.5
    fresh = np.asarray(fit.get_samples(8000)["x"], float)
    assert np.abs((fresh.mean(0) - [MEAN, MEAN, 0.0]) / x.std(0)).max() < 4 / 8000**0.5 + 0.05
    assert len(np.unique(fresh[:, 2])) > 7900


def test_a_window_that_is_judged_by_some_of_its_states(backend, monkeypatch):
    """All of them are still served. The first coordinates are slow: the window goes on."""
    monkeypatch.setattr(window, "MOST_NUMBERS", 1)
    monkeypatch.setattr(window, "LEAST_STATES", 16)
    start = {"x": backend.array(np.zeros(3))}
    fit = backend.potential(gamma_and_line, initial_params=start, train="never", refine_steps=None,
                            restarts=6, num_draws=1200, experimental=Experimental(leapfrog_steps=1))  # fmt: skip
    backend.run(fit)
    found = fit.diagnostics()
    assert found["status"] == "converged"
    shape = fit.parts.training.trained().measurement.ensemble.judged.points.shape
    assert found["ensemble"]["transitions"] >= 2 * shape[2] >= 2 * math.ceil(1200 / 64)
    n = found["ensemble"]["ess"]
    assert n <= 64 * shape[2]
    x = np.asarray(fit.get_samples()["x"], float)
    assert len(x) == 1200
    assert np.abs(x.mean(0) - [MEAN, MEAN, 0.0]).max() < 4 * (VARIANCE + 0.04) ** 0.5 / n**0.5
    # The standard error of a variance has the excess kurtosis of the log of a gamma variable, .85, in it.
    sd = np.array([VARIANCE, VARIANCE + 0.04, 1.0]) ** 0.5
    assert np.abs(x.std(0) / sd - 1).max() < 4 * ((2 + 0.85) / (4 * n)) ** 0.5


def test_a_limit_of_gradients_ends_the_fit_and_is_said(backend):
    start = {"x": backend.array(np.zeros(3))}
    dft = backend.potential(gamma_and_line, initial_params=start, train="never", refine_steps=None, restarts=6,
                            num_draws=4000, max_gradients=15_000)  # fmt: skip
    with pytest.warns(UserWarning, match="ended at its max_gradients"):
        backend.run(dft)
    report = dft.diagnostics()
    assert report["cut"] == "max_gradients"
    assert "cut" in report["alarms"]
    # The least is a warm-up and one block of transitions: 48 of 64 particles, with a few gradients each.
    assert report["gradient_evaluations"] < 15_000 + 48 * 64 * 6


@pytest.mark.filterwarnings("ignore::pyro_dft.FidelityWarning")
def test_a_limit_of_time_ends_the_fit_within_a_window(backend, monkeypatch):
    """A window may take minutes; it ends at the next block. The clock here goes on by a second with each call of the engine."""
    added, calls_made = Bank.add, []

    def count(bank, *states):
        calls_made.append(1)
        return added(bank, *states)

    def transitions(**limit):
        calls_made.clear()
        fit = backend.potential(gamma_and_line, initial_params={"x": backend.array(np.zeros(3))}, train="never",
                                refine_steps=None, num_draws=4000, **limit)  # fmt: skip
        backend.run(fit)
        report = fit.diagnostics()
        return report["cut"], report["ensemble"]["transitions"], len(calls_made)

    monkeypatch.setattr(Bank, "add", count)
    monkeypatch.setattr(budget, "time", SimpleNamespace(perf_counter=lambda: float(len(calls_made))))
    cut, whole, calls_of_all = transitions()
    assert cut is None
    assert whole > 2 * BLOCK_STEPS
    cut, taken, _ = transitions(max_seconds=calls_of_all - 1.5)
    assert cut == "max_seconds"
    assert taken == whole - BLOCK_STEPS


@pytest.mark.parametrize(("before", "now", "expected"), [
    ((64, 1.0), (128, 1.9), True), ((64, 1.0), (128, 1.1), False),
    ((128, 2.0), (256, 2.4), True),  # fewer than twice as many by chance
    ((64, 2.0), (64, 0.9), True), ((64, 0.9), (64, 0.6), False),  # with smaller steps
])  # fmt: skip
def test_particles_mix_where_longer_windows_are_worth_more(before, now, expected):
    assert enough.mixes(before, now, now[1]) == expected


def test_particles_that_stay_in_a_neck_do_not_mix_though_their_means_do():
    assert not enough.mixes((128, 4.4), (256, 4.0), 1.6)


@pytest.mark.parametrize(("steps", "each", "expected"), [(16, 64, [16]), (16, 64 * 256, [4] * 4), (5, 1e9, [1] * 5),
                                                         (16, 13_000, [5, 5, 5, 1])])  # fmt: skip
def test_long_trajectories_are_made_in_several_calls(steps, each, expected):
    assert calls(steps, int(each)) == expected


def test_several_chains_share_the_particles_and_agree(backend):
    start = {"x": backend.array(np.zeros(3))}
    dft = backend.potential(gamma_and_line, initial_params=start, train="never", refine_steps=None, restarts=6,
                            num_draws=4000, num_chains=4)  # fmt: skip
    backend.run(dft)
    report = dft.diagnostics()
    assert report["status"] == "converged"
    assert report["ensemble"]["chains"] == 64
    x = np.asarray(dft.get_samples(group_by_chain=True)["x"], float)
    assert x.shape == (4, 1000, 3)
    n = report["ensemble"]["ess"] / 4
    sd = np.sqrt([VARIANCE, VARIANCE + 0.04, 1.0])
    assert np.abs((x.mean(1) - [MEAN, MEAN, 0.0]) / sd).max() < 4.5 / n**0.5
    assert np.abs(np.log(x.std(1) / sd)).max() < 4.5 * (3.2 / (4 * n)) ** 0.5


@pytest.fixture
def trained(backend, fits):
    """A network on the surrogate, whatever the Gaussian is worth."""
    if (backend, "network") not in fits:
        start = {"x": backend.array(np.zeros(3))}
        fits[backend, "network"] = dft = backend.potential(
            gamma_and_line, initial_params=start, train="always", refine_steps=None, restarts=6,
            num_draws=4000, num_steps=600, width=48, batch_size=64,
        )  # fmt: skip
        backend.run(dft)
    return fits[backend, "network"]


def test_a_network_trained_on_the_surrogate_has_the_right_tails(trained):
    report = trained.diagnostics()
    assert report["objective"] == "kl"
    # Three times 256 scores of the model, and nothing else.
    assert report["phase_gradients"]["kl"] == 768
    assert report["surrogate_error"] < 0.1
    raw = np.asarray(trained.get_samples(20_000, refine_steps=0)["x"], float)
    sd = np.sqrt([VARIANCE, VARIANCE + 0.04, 1.0])
    # Standard errors of 20,000 draws are below .01 for means and sds; the rest is what a short training leaves.
    assert np.abs((raw.mean(0) - [MEAN, MEAN, 0.0]) / sd).max() < 0.06
    assert np.abs(np.log(raw.std(0) / sd)).max() < 0.06
    # The Gaussian with the same moments has shares of .058 and .028 beyond these points, on 20,000 draws +- .0015.
    exact = np.log(special.gammaincinv(SHAPE, [0.05, 0.95]))
    beyond = [(raw[:, 0] < exact[0]).mean(), (raw[:, 0] > exact[1]).mean()]
    assert np.abs(np.array(beyond) - 0.05).max() < 0.015


def test_the_surrogate_is_the_score_where_the_particles_are(trained):
    x = np.asarray(trained.parts.fit.measurement.refined, float)[:, ::20]
    substitute = Substitute(
        trained.parts.training.trainer.engine, trained.parts.training.trainer.target, trained.parts.fit.sampler,
        trained.parts.fit.measurement.ensemble.particles.bank, trained.settings, trained.parts.backend.rng,
    )  # fmt: skip
    first, second, third = np.moveaxis(x, -1, 0)
    slope = 25 * (second - first)
    score = np.stack([SHAPE - np.exp(first) + slope, -slope, -third], -1)
    whitened = score @ substitute.scale
    u = np.linalg.solve(substitute.scale, (x - substitute.mean[:, None]).swapaxes(1, 2)).swapaxes(1, 2)
    wrong = np.square(substitute.surrogate.scores(u) - whitened).sum(-1) / np.square(whitened).sum(-1).mean()
    assert np.median(wrong) < 0.01
    assert np.quantile(wrong, 0.95) < 0.1


def test_rows_of_the_bank_that_cannot_be_used_repeat_others():
    bank = Bank()
    points = np.random.default_rng(0).normal(size=(2, 50, 3))
    scores = -points.copy()
    scores[0, 7], scores[1, 3:5] = np.nan, 1e9
    bank.add(points, scores)
    found = bank.arrays()
    assert found[0].shape == (2, 50, 3)
    u, s = usable(*(part.astype(float) for part in found))
    np.testing.assert_allclose(s, -u, rtol=1e-6)
    assert (np.abs(u).sum(-1) > 0).all()


def test_the_drift_test_keeps_to_the_limit_of_gradients(backend):
    """A banana that is too bent for the chains, and needs many transitions of draws one by one."""
    limit = 150_000
    dft = backend.potential(banana, initial_params={"x": backend.array(np.zeros(2))}, train="auto", refine_steps=None,
                            num_steps=20, width=8, num_draws=4000, max_gradients=limit)  # fmt: skip
    with pytest.warns(UserWarning, match="the fit is"):
        backend.run(dft)
    assert dft.diagnostics()["gradient_evaluations"] < 1.25 * limit


# Statistics


def chains(p, t, memory, rng):
    """P chains of a first-order autoregression with unit variance, (P, T, 1)."""
    x = np.empty((p, t, 1))
    x[:, 0] = rng.normal(size=(p, 1))
    for k in range(1, t):
        x[:, k] = memory * x[:, k - 1] + (1 - memory**2) ** 0.5 * rng.normal(size=(p, 1))
    return x


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.8])
def test_effective_draws_are_those_of_an_autoregression(memory):
    """The integrated time of x is (1 + r) / (1 - r), that of x squared has r^2 in place of r."""
    x = chains(64, 256, memory, np.random.default_rng(0))
    found = effective_draws(x, np.zeros(64, int))
    for value, r in zip(found[:2], (memory, memory**2), strict=True):
        assert value / (64 * 256) == pytest.approx((1 - r) / (1 + r), rel=0.15)
    assert memory_at(x, 2)[0] == pytest.approx(memory**2, abs=0.04)


def test_chains_that_disagree_are_worth_one_draw_each():
    rng = np.random.default_rng(1)
    x = chains(32, 64, 0.0, rng) + 5 * rng.normal(size=(32, 1, 1))
    assert effective_draws(x, np.zeros(32, int))[0] < 64


def test_halves_of_chains_at_rest_are_still_and_creeping_ones_are_not():
    rng = np.random.default_rng(2)
    alarms = 0
    for _ in range(40):
        x = np.concatenate([chains(64, 64, 0.5, rng) for _ in range(5)], 2)
        alarms += drift(x[:, :32].reshape(-1, 5), x[:, 32:].reshape(-1, 5), together=32).restless
    assert alarms <= 2
    creeping = chains(64, 64, 0.5, rng) + np.linspace(0, 1, 64)[None, :, None]
    assert drift(creeping[:, :32].reshape(-1, 1), creeping[:, 32:].reshape(-1, 1), together=32).restless
    stuck = chains(64, 64, 0.0, rng) * 0.2 + rng.normal(size=(64, 1, 1))
    assert drift(stuck[:, :32].reshape(-1, 1), stuck[:, 32:].reshape(-1, 1), together=32).restless


def test_draws_against_particles_have_honest_errors():
    """Standardised effects of right draws have unit variance; a shift and a narrow scale are found, with their size."""
    rng = np.random.default_rng(3)
    scores = []
    for _ in range(150):
        found = difference(rng.normal(size=(1000, 1)), chains(64, 32, 0.6, rng).reshape(-1, 1), 32)
        scores.append(found.effects[:, 0] / found.standard_errors[:, 0])
    # An sd of 150 values has a relative error of 6 %, and so has each of the four.
    assert np.abs(np.std(scores, 0) - 1).max() < 0.25
    wrong = difference(0.8 * rng.normal(size=(4000, 1)) + 0.3, chains(64, 64, 0.0, rng).reshape(-1, 1), 64)
    assert wrong.effects[0, 0] == pytest.approx(-0.3, abs=0.08)
    assert wrong.effects[1, 0] == pytest.approx(-np.log(0.8), abs=0.06)
    assert wrong.significant[:2].all()


SHARE, APART = 0.08, 12.0


def jax_light_mode(z):
    squares = [((z["x"] - s * APART) ** 2).sum() / 2 for s in (1, 0)]
    return -jnp.logaddexp(np.log(SHARE) - squares[0], np.log(1 - SHARE) - squares[1])


def torch_light_mode(z):
    squares = [((z["x"] - s * APART) ** 2).sum() / 2 for s in (1, 0)]
    shares = torch.tensor([SHARE, 1 - SHARE]).log()
    return -torch.logaddexp(shares[0] - squares[0], shares[1] - squares[1])


def test_a_light_mode_serves_states_of_all_its_chains(backend):
    potential = jax_light_mode if backend.name == "numpyro" else torch_light_mode
    dft = backend.potential(potential, initial_params={"x": backend.array(np.zeros(2))}, train="never", restarts=6,
                            refine_steps=None, experimental=Experimental(precondition_steps=100), num_draws=2000)  # fmt: skip
    backend.run(dft)
    x = np.asarray(dft.get_samples()["x"], float)
    light = x[x[:, 0] > APART / 2]
    assert abs(len(light) / len(x) - SHARE) < 4 * (SHARE * (1 - SHARE) / len(x)) ** 0.5 + 0.01
    # 160 states of 64 chains are worth that many draws; of the 5 chains that come first they would be worth a third.
    assert np.abs(light.mean(0) - APART).max() < 4 / len(light) ** 0.5
    assert dft.parts.fit.measurement.refined.shape[1] == 2000
    kept = np.asarray(dft.parts.fit.measurement.refined)[:, :160]
    neighbours = np.abs(np.diff(kept, axis=1)).mean()
    assert neighbours > 1.0  # of independent normal numbers 1.13
    assert dft.diagnostics()["refine_steps"] <= 8


@pytest.mark.parametrize("least", [200, pytest.param(1e9, marks=pytest.mark.slow)])
def test_chains_that_agree_are_served_where_going_on_costs_too_much(backend, monkeypatch, least):
    """What they are asked for here is beyond their budget. Without the rule a network's draws would be served."""
    monkeypatch.setattr(enough, "ENOUGH_DRAWS", ((0, 20.0),))
    monkeypatch.setattr(particles, "BUDGET", 10)
    monkeypatch.setattr(particles, "LAST_BUDGET", 10)
    monkeypatch.setattr(particles, "LEAST_SERVED", least)
    start = {"x": backend.array(np.zeros(3))}
    dft = backend.potential(gamma_and_line, initial_params=start, train="auto", refine_steps=None, restarts=6,
                            num_draws=4000, num_steps=60, width=8)  # fmt: skip
    backend.run(dft)
    report = dft.diagnostics()
    if least > 1e6:
        assert report["ensemble"] is None
        return
    assert report["status"] == "converged"
    assert 200 <= report["ensemble"]["ess"] < 20 * 4000
    x = np.asarray(dft.get_samples()["x"], float)
    assert np.abs(x.mean(0) - [MEAN, MEAN, 0.0]).max() < 4 / report["ensemble"]["ess"] ** 0.5
    # One window and what it goes on by, within ten gradients for each draw.
    assert report["phase_gradients"]["refinement"] < 60_000


@pytest.mark.parametrize(
    ("each", "kind", "expected"),
    [
        (0, {}, 2400), (10, {}, 1200), (100, {}, 600),
        (0, {"large": True}, 2400), (10, {"large": True}, 800), (100, {"large": True}, 400),
        (0, {"apart": True}, 2400), (10, {"apart": True}, 400), (100, {"apart": True}, 400),
        (10, {"large": True, "apart": True}, 400),
    ],
)  # fmt: skip
def test_fewer_draws_are_enough_once_they_have_cost_much(each, kind, expected):
    assert enough.enough(4000, each, **{"large": False, "apart": False, **kind}) == expected
    assert enough.at_last(4000) == 600


@pytest.mark.parametrize(
    ("times", "before", "now", "expected"),
    [
        (1.5, 8.0, 8.0, 80),  # 1.1 times 64 transitions, in blocks of 16
        (4.0, 8.0, 8.0, 128),  # as many again, and then it is looked at
        (1.01, 8.0, 8.0, 16),
        (1.5, 8.0, 16.0, 48),  # longer trajectories are worth twice as much
        (1.5, 16.0, 8.0, 80),
    ],
)
def test_a_window_goes_on_by_what_it_lacks(times, before, now, expected):
    assert enough.missing(128, times, before, now) == expected
