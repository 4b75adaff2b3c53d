"""The fit: phases in order, when the network is trained, what is kept, chains apart, early ends, same seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fits import (
    SMALL,
    banana,
    banana_errors,
    draws_of,
    gaussian,
    gaussian_draws,
    phases,
    run,
    starts,
    trainers,
)

from pyro_dft.engine_torch.engine import ENGINE
from pyro_dft.engine_torch.sampler import Sampler
from pyro_dft.engine_torch.target import Target
from pyro_dft.engine_torch.threads import WORTH, threads, worthwhile
from pyro_dft.engine_torch.train import NetworkTrainer
from pyro_dft.experimental import Experimental, grouped
from pyro_dft.judging.rhat import rhat
from pyro_dft.recipe.engine import Forms
from pyro_dft.recipe.fit import FittedTrainer, Problem, Restored
from pyro_dft.recipe.selection import Selection
from pyro_dft.recipe.trainer import Trainer
from pyro_dft.settings import Settings


@pytest.fixture
def trainer(dtype, device, brief_surrogate):
    """See `fits.trainers`."""
    return trainers(dtype, device)


# Phases.


def test_phases_come_in_order_with_the_planned_steps(trainer):
    t = trainer(banana, train="always", num_steps=50, dft_fraction=0.2)
    assert t.phase == "gaussian"
    assert not t.done
    assert t.total == 60 + 50
    fit = run(t)
    found = phases(fit.history)
    assert [p for p, _ in found] == ["gaussian", "kl", "dft"]
    assert found[0][1] <= 60
    assert found[1:] == [("kl", 40), ("dft", 10)]
    assert t.total == len(fit.history)
    assert [p.step for p in fit.history] == list(range(1, len(fit.history) + 1))
    assert all(math.isfinite(p.loss) for p in fit.history)
    assert set(fit.seconds) >= {"gaussian", "kl", "dft", "selection", "refinement"}
    assert all(s >= 0 for s in fit.seconds.values())
    # A step too many changes nothing.
    assert t.phase == "done"
    assert t.step() is fit.history[-1]
    assert len(t.history) == len(fit.history)


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, ["gaussian", "kl"]), (1.0, ["gaussian", "dft"])])
def test_share_of_the_dft_phase(trainer, fraction, expected):
    fit = run(trainer(banana, train="always", num_steps=20, dft_fraction=fraction))
    assert [p for p, _ in phases(fit.history)] == expected
    assert len(fit.history) - phases(fit.history)[0][1] == 20
    assert fit.objective[0] in ("kl", "dft")


@pytest.mark.parametrize("objective", ["kl", "dft"])
def test_other_objectives_behind_the_gaussian(trainer, objective):
    fit = run(trainer(banana, objective=objective, train="always", num_steps=20))
    assert [p for p, _ in phases(fit.history)] == ["gaussian", objective]
    assert fit.objective == [objective]
    assert fit.sampler.generator is not None


def test_the_paper_objective_starts_without_a_gaussian(trainer):
    t = trainer(gaussian, objective="dft-paper", num_steps=30, chains=2)
    assert t.total == 30
    fit = run(t)
    assert phases(fit.history) == [("dft-paper", 30)]
    assert fit.objective == ["dft-paper"] * 2
    assert (fit.sampler.mean == 0).all()
    assert fit.measurement is not None


@pytest.mark.parametrize("minibatch", [False, True])
def test_the_loss_is_the_fisher_gap_and_falls(dtype, device, minibatch):
    """The gap of the Gaussian on the banana is large; that of the trained sampler is a fraction of it."""
    target = Target(banana, 2, dtype=dtype, device=device, forms=Forms(banana if minibatch else None))
    settings = Settings(**{**SMALL, "num_steps": 300, "train": "always", "width": 32, "batch_size": 64})
    rng = torch.Generator(device=device).manual_seed(0)
    fit = run(Trainer(ENGINE, [Problem(target, starts(1, 2, 2, dtype, device))], settings, rng))
    losses = [p.loss for p in fit.history if p.phase in ("kl", "dft")]
    assert np.mean(losses[-50:]) < 0.5 * np.mean(losses[:20])
    # The smoothed value that is reported: an average of the last ones.
    assert min(losses[-150:]) < fit.fisher_gap[0] < max(losses[-150:])


# When the network is trained, and what is kept.


def test_training_never_stops_at_the_gaussian(trainer):
    fit = run(trainer(banana, train="never", chains=2))
    assert [p for p, _ in phases(fit.history)] == ["gaussian"]
    assert fit.objective == ["gaussian"] * 2
    assert fit.sampler.generator is None
    assert np.isnan(fit.fisher_gap).all()


def test_the_gate_stops_at_a_gaussian_that_is_right(trainer):
    fit = run(trainer(gaussian, num_draws=2000))
    assert [p for p, _ in phases(fit.history)] == ["gaussian"]
    assert fit.objective == ["gaussian"]
    assert fit.sampler.generator is None
    assert fit.movement["gaussian"] < 0.03
    x = draws_of(fit)[0]
    covariance = torch.linalg.inv(torch.tensor([[1.0, 0.4], [0.4, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(torch.cov(x.T), covariance, rtol=0, atol=0.12)
    # Not `atol=0.12` by chance: five standard errors of 4,000 draws, and the error of the fit itself.
    assert (x.mean(0) - 1).abs().max() < 0.12


def test_training_always_trains_where_the_gaussian_is_right(trainer):
    fit = run(trainer(gaussian, train="always"))
    assert [p for p, _ in phases(fit.history)] == ["gaussian", "kl", "dft"]
    assert fit.sampler.generator is not None


@pytest.fixture(scope="module")
def banana_fit(dtype, device):
    """Three chains on the banana, trained long enough to be good."""
    settings = Settings(
        num_steps=1200,
        experimental=Experimental(dft_fraction=0.2, precondition_steps=100),
        width=48,
        batch_size=96,
        restarts=2,
        num_draws=6000,
    )
    target = Target(banana, 2, dtype=dtype, device=device)
    points = starts(3, 2, 2, dtype, device)
    t = Trainer(ENGINE, [Problem(target, points)], settings, torch.Generator(device=device).manual_seed(1))
    return run(t)


@pytest.mark.slow
def test_the_network_is_trained_on_a_banana_and_beats_the_gaussian(banana_fit):
    fit = banana_fit
    assert [p for p, _ in phases(fit.history)] == ["gaussian", "kl", "dft"]
    assert all(o in ("kl", "dft") for o in fit.objective)
    final = np.minimum(fit.movement["kl"], fit.movement["dft"])
    assert final.mean() < 0.7 * fit.movement["gaussian"].mean()
    for trained, simple in zip(draws_of(fit), gaussian_draws(fit), strict=True):
        assert banana_errors(trained).abs().mean() < 0.5 * banana_errors(simple).abs().mean()


@pytest.mark.slow
def test_refined_draws_are_right(banana_fit):
    """The draws that the fit keeps: mean, sd and quantile errors within 4 standard errors of 6,000 draws, and 0.05."""
    x = banana_fit.measurement.refined.double().cpu().reshape(-1, 2)
    # Standard errors in sds: of a mean 1 / sqrt(n), of a log sd sqrt((kurtosis - 1) / 4n) with kurtosis up to 15,
    # of the 95 % quantile in the long tail 5 / sqrt(n).
    errors = banana_errors(x).abs()
    assert (errors < 0.05 + 4 * 5 / len(x) ** 0.5).all()
    assert errors.mean() < 0.06


@pytest.mark.slow
def test_independently_trained_chains_agree(banana_fit):
    x = banana_fit.measurement.refined.double().cpu().numpy()
    assert x.shape == (3, 2000, 2)
    assert not np.array_equal(x[0], x[1])
    # Under agreement R-hat - 1 is of order 1 / n.
    assert rhat(x).max() < 1.02


def test_the_dft_phase_is_kept_chain_by_chain_where_it_moves_less(trainer, monkeypatch):
    """Movement measured by decree: chain 0 was better before the DFT phase, chain 1 after it."""
    decree = {"kl": np.array([0.1, 0.3]), "dft": np.array([0.2, 0.2])}
    monkeypatch.setattr(Selection, "movement", lambda self, name, sampler: decree[name])
    t = trainer(banana, train="always", chains=2, num_steps=30, dft_fraction=0.5)
    while t.phase != "dft":
        t.step()
    network = t._network.networks
    before = network.snapshot()
    while t.network_steps < 29:
        t.step()
    captured = {}
    restore = network.restore

    def spy(state, mask=None, otherwise=None):
        if mask is not None:
            captured.update(state)
        restore(state, mask, otherwise)

    monkeypatch.setattr(network, "restore", spy)
    fit = run(t)
    assert fit.objective == ["kl", "dft"]
    found = fit.sampler.generator.state_dict()
    for name, value in found.items():
        assert torch.equal(value[0], before[name][0])
        assert torch.equal(value[1], captured[name][1])
    assert not torch.equal(before["matrix"][1], captured["matrix"][1])


def test_the_gaussian_is_kept_where_the_network_moves_more(trainer, monkeypatch):
    monkeypatch.setattr(Selection, "movement", lambda self, name, sampler: np.array([1e6]))
    t = trainer(banana, num_steps=20)
    fit = run(t)
    assert [p for p, _ in phases(fit.history)] == ["gaussian", "kl", "dft"]
    assert fit.objective == ["gaussian"]
    assert fit.sampler.generator is None


def test_movements_are_compared_on_the_same_random_numbers(trainer):
    t = trainer(banana, train="always", num_steps=10)
    while t.phase != "kl":
        t.step()
    sampler = t.fit.sampler
    selection = Selection(ENGINE, t.problems[0], t.settings, 3, t.fit)
    selection._kernel = selection._kernel_of(sampler)
    first, second = selection.movement("kl", sampler).copy(), selection.movement("dft", sampler).copy()
    assert np.array_equal(first, second)


# Coordinates, seeds, stored fits.


def test_the_coordinates_with_the_higher_evidence_are_kept(dtype, device):
    """A funnel, and the same in coordinates where it is a unit Gaussian; the map leads back."""

    def funnel(x):
        return 0.5 * x[0] ** 2 / 4 + 0.5 * (x[1] * torch.exp(-0.5 * x[0])) ** 2 + 0.5 * x[0]

    def plain(u):
        return 0.5 * u[0] ** 2 / 4 + 0.5 * u[1] ** 2

    def original(u):
        return torch.stack([u[:, 0], u[:, 1] * torch.exp(0.5 * u[:, 0])], 1)

    points = starts(1, 2, 2, dtype, device)
    problems = [
        Problem(Target(funnel, 2, dtype=dtype, device=device), points),
        Problem(Target(plain, 2, dtype=dtype, device=device), points, original),
    ]
    settings = Settings(**grouped({**SMALL, "precondition_steps": 150, "num_draws": 2000, "train": "never"}))
    t = Trainer(ENGINE, problems, settings, torch.Generator(device=device).manual_seed(0))
    assert t.total == 2 * 150
    fit = run(t)
    assert fit.problem == 1
    assert t.target is problems[1].target
    assert fit.elbos[1] > fit.elbos[0] + 0.05
    x = original(fit.measurement.refined.reshape(-1, 2)).double()
    assert abs(float(x[:, 0].std()) - 2) < 4 * 2 / 4000**0.5


def test_same_seed_same_draws(trainer):
    fits = [run(trainer(banana, seed=seed, num_steps=30, train="always")) for seed in (1, 1, 2)]
    first, again, other = (draws_of(fit, 200) for fit in fits)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(fits[0].measurement.refined, fits[1].measurement.refined)
    assert [p.loss for p in fits[0].history] == [p.loss for p in fits[1].history]


def test_the_default_precision_of_torch_does_not_matter(trainer, dtype):
    found = []
    for default in (torch.float32, torch.float64):
        torch.set_default_dtype(default)
        fit = run(trainer(banana, num_steps=10, train="always"))
        assert fit.sampler.dtype == dtype
        found.append(draws_of(fit, 50))
    assert torch.equal(found[0], found[1])


def test_an_improper_target_ends(trainer):
    """A flat direction: the fit ends with finite numbers, and with a spread that gives it away."""
    fit = run(trainer(lambda x: 0.5 * x[1] ** 2, precondition_steps=150))
    assert torch.isfinite(fit.measurement.refined).all()
    assert torch.isfinite(draws_of(fit, 100)).all()
    assert float(fit.measurement.refined[..., 0].std()) > 1e9
    assert 0.5 < float(fit.measurement.refined[..., 1].std()) < 2


def test_a_target_that_is_finite_nowhere_ends(trainer):
    fit = run(trainer(lambda x: x.sum() * torch.nan, num_steps=10, num_draws=40))
    assert (fit.optima.elbo == -math.inf).all()
    assert torch.isfinite(draws_of(fit, 10)).all()
    assert (fit.measurement.log_density == -math.inf).all()


def test_pseudo_huber_distance_trains_too(trainer):
    fit = run(trainer(banana, train="always", distance="pseudo-huber", num_steps=40, dft_fraction=0.5))
    assert all(math.isfinite(p.loss) for p in fit.history)
    assert torch.isfinite(draws_of(fit, 100)).all()


def test_one_data_pass_is_counted_for_every_minibatch(dtype, device):
    """KL needs a score of each of two minibatches, and so does DFT, with their derivatives: 3 evaluations each."""
    counts = {}
    for phase in ("kl", "dft"):
        target = Target(banana, 2, dtype=dtype, device=device, forms=Forms(banana))
        eye = torch.eye(2, dtype=dtype, device=device)[None]
        sampler = Sampler(torch.zeros(1, 2, dtype=dtype, device=device), eye)
        rng = torch.Generator(device=device).manual_seed(0)
        network = NetworkTrainer(target, sampler, Settings(width=4, batch_size=8), rng)
        before = target.gradient_evaluations  # the noise of minibatches was measured
        network.step(phase, 0.0)
        counts[phase] = target.gradient_evaluations - before
    assert counts == {"kl": 2 * 16, "dft": 2 * 3 * 16}


def test_a_stored_fit_is_complete(banana_fit, dtype, device):
    measured = banana_fit.measurement
    kept = {
        "raw": measured.raw, "halfway": measured.halfway, "refined": measured.refined,
        "scale": measured.scale, "step_size": measured.step_size, "diverged": measured.diverged,
    }  # fmt: skip
    problem = Problem(Target(banana, 2, dtype=dtype, device=device), starts(3, 2, 2, dtype, device))
    content = Restored(
        0, measured.steps, measured.renewed, measured.leapfrog_steps, 0, banana_fit.objective, None, {}, kept
    )
    t = FittedTrainer(ENGINE, [problem], banana_fit.sampler, content)
    assert t.done
    assert t.phase == "done"
    fit = t.finish()
    assert fit.sampler is banana_fit.sampler
    assert fit.objective == banana_fit.objective
    assert fit.measurement.steps == measured.steps
    torch.testing.assert_close(fit.measurement.log_density, measured.log_density)


def test_threads_are_used_where_they_help_and_put_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert [worthwhile(elements) for elements in (1, WORTH - 1, WORTH)] == [1, 1, 2]
        with threads(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
