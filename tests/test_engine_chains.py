"""The fit: chains apart, noise, early ends."""

from __future__ import annotations

import math

import pytest
import torch
from daily import daily
from fits import (
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

from pyro_dft.engine_torch import train
from pyro_dft.engine_torch.sampler import Sampler
from pyro_dft.engine_torch.target import Target
from pyro_dft.engine_torch.train import NetworkTrainer, Trained
from pyro_dft.errors import SettingsError
from pyro_dft.experimental import Experimental
from pyro_dft.judging.optima import distinct_optima
from pyro_dft.judging.rhat import rhat
from pyro_dft.settings import Settings


@pytest.fixture
def trainer(dtype, device, brief_surrogate):
    """See `fits.trainers`."""
    return trainers(dtype, device)


# Several chains.


def test_each_chain_chooses_among_its_own_restarts(trainer, dtype, device):
    """Two far modes; the starts of chain 0 are at one, those of chain 1 at the other."""

    def two_modes(x):
        modes = torch.stack([(x - 6).square().sum(), (x + 6).square().sum()])
        return -torch.logsumexp(
            torch.tensor([0.2, 0.8], dtype=x.dtype, device=x.device).log() - 0.5 * modes, 0
        )

    points = starts(2, 3, 2, dtype, device) * 0.5
    points[0] += 6
    points[1] -= 6
    fit = run(trainer(two_modes, chains=2, points=points, restarts=3, train="never", modes="never"))
    assert fit.modes is None
    assert 0 <= fit.chosen[0] < 3 <= fit.chosen[1] < 6
    assert (fit.sampler.mean[0] > 5).all()
    assert (fit.sampler.mean[1] < -5).all()
    optima = distinct_optima(fit.optima.mean, fit.optima.scale, fit.optima.elbo)
    assert len(optima) == 2
    assert optima.weight == pytest.approx([0.8, 0.2], abs=0.02)
    x = fit.measurement.refined.double().cpu().numpy()
    assert rhat(x).min() > 2


def test_a_chain_that_is_not_finite_leaves_the_others_alone(trainer, dtype, device):
    """Chain 1 starts, and stays, where the potential is NaN."""

    def partial(x):
        return torch.where(x[0] > 50, torch.nan, banana(x))

    points = starts(3, 2, 2, dtype, device)
    points[1] += 1e4
    t = trainer(partial, chains=3, points=points, num_steps=200, width=32, batch_size=64)
    fit = run(t)
    assert fit.optima.elbo[fit.chosen[1]] == -math.inf
    assert fit.sampler.generator is not None
    x, plain = draws_of(fit), gaussian_draws(fit)
    for chain in (0, 2):
        assert fit.objective[chain] in ("kl", "dft")
        assert torch.isfinite(x[chain]).all()
        assert banana_errors(x[chain]).abs().mean() < 0.8 * banana_errors(plain[chain]).abs().mean()
    assert t.problems[0].target.nonfinite_evaluations > 0


def test_training_of_one_chain_does_not_depend_on_another(dtype, device):
    """With NaN weights in chain 1, chain 0 takes bit for bit the steps that it takes otherwise."""
    settings = Settings(width=8, batch_size=16)
    eye = torch.eye(2, dtype=dtype, device=device).expand(2, 2, 2)
    found = []
    for poison in (False, True):
        target = Target(banana, 2, dtype=dtype, device=device)
        rng = torch.Generator(device=device).manual_seed(0)
        network = NetworkTrainer(
            target, Sampler(torch.zeros(2, 2, dtype=dtype, device=device), eye), settings, rng
        )
        if poison:
            with torch.no_grad():
                network.generator.matrix[1] = torch.nan
        for phase in ("kl", "kl", "dft", "dft", "dft-paper"):
            network.step(phase, 0.3)
        found.append(network.snapshot())
        assert torch.isfinite(network.smoothed_gap()[0].item() * torch.ones(1)).all()
    for name, value in found[0].items():
        torch.testing.assert_close(value[0], found[1][name][0], rtol=1e-6, atol=1e-7)
        assert torch.isfinite(value).all()


def test_gradients_are_clipped_for_each_chain_on_its_own(dtype, device):
    """A gradient a million times too long is cut to the limit, the other chain's is left as it is."""
    network = torch.nn.Module()
    parameter = network.stacked = torch.nn.Parameter(torch.zeros(2, 3, dtype=dtype, device=device))
    # A user's modules have parameters for each chain in place of a leading axis.
    network.nets = torch.nn.ModuleList(torch.nn.Linear(1, 1, bias=False) for _ in range(2)).to(device, dtype)
    weights = Trained(network, 2, (0.9, 0.99), torch.device(device))
    weights.adam = torch.optim.SGD(weights.parameters, lr=1.0)
    before = [net.weight.item() for net in network.nets]
    gradient = torch.ones(2, 3, dtype=dtype, device=device)
    gradient[1] *= 1e6
    own = [torch.full((1, 1), size, dtype=dtype, device=device) for size in (2.0, 0.0)]
    weights.apply([gradient, *own], 1.0)
    torch.testing.assert_close(parameter[0], -gradient[0])
    assert parameter[1].norm().item() == pytest.approx(train.MAX_GRADIENT_NORM, rel=1e-5)
    after = [net.weight.item() for net in network.nets]
    assert [b - a for a, b in zip(after, before, strict=True)] == pytest.approx([2.0, 0.0], abs=1e-5)
    weights.apply([gradient * torch.nan, *own], 1.0)  # not finite: no step
    assert [net.weight.item() for net in network.nets] == after


# Noise.


def test_constant_noise(trainer):
    fit = run(trainer(banana, train="always", noise=0.2, num_steps=10))
    torch.testing.assert_close(fit.sampler.generator.sigma, torch.full_like(fit.sampler.generator.sigma, 0.2))


def test_annealed_noise_falls_from_start_to_end(trainer):
    t = trainer(
        banana,
        train="always",
        noise=0.1,
        noise_start=0.6,
        noise_mode="annealed",
        num_steps=40,
        dft_fraction=0.25,
    )
    seen = []
    while not t.done:
        if t._network is not None:
            seen.append(float(t._network.networks.generator.sigma.mean()))
        t.step()
    fit = t.finish()
    assert seen[0] == pytest.approx(0.6)
    assert seen[1] == pytest.approx(0.6)
    assert all(b <= a + 1e-6 for a, b in zip(seen, seen[1:], strict=False))
    # Done after 60 % of the first phase, and constant in the second.
    assert seen[-12:] == pytest.approx([0.1] * 12)
    torch.testing.assert_close(fit.sampler.generator.sigma, torch.full_like(fit.sampler.generator.sigma, 0.1))


def test_dft_alone(trainer):
    """Theorem 1 from the first step, in the Gaussian's coordinates; nothing is chosen behind the user's back."""
    t = trainer(banana, objective="dft", train="always", num_steps=20)
    fit = run(t)
    assert [p for p, _ in phases(fit.history)] == ["gaussian", "dft"]
    assert fit.objective == ["dft"]
    assert fit.sampler.generator is not None


def test_a_share_of_dft_belongs_to_the_recipe():
    with pytest.raises(SettingsError, match='objective="auto"'):
        Settings(objective="dft", experimental=Experimental(dft_fraction=0.2))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["kl", "auto"])
def test_learned_noise_moves_and_stays_above_its_floor(trainer, monkeypatch, objective):
    options = {
        "train": "always",
        "noise_mode": "learned",
        "noise": 0.3,
        "num_steps": 40,
        "objective": objective,
    }
    fit = run(trainer(banana, **options))
    sigma = fit.sampler.generator.sigma
    assert sigma.shape == (1, 1, 2)
    assert (sigma - 0.3).abs().min() > 1e-4
    monkeypatch.setattr(train, "MIN_SIGMA", 0.5)
    fit = run(trainer(banana, **options))
    assert (fit.sampler.generator.sigma >= 0.5 - 1e-6).all()


# Early ends.


# When it ends, and whether the network is trained in any case.
ENDS = daily(
    [
        (mode, steps)
        for mode in ("auto", "always")
        for steps in (0, 1, 30, "kl", "kl+10", "dft", "dft+5", "done")
    ],
    *[("auto", steps) for steps in (0, "kl", "dft+5")],
    *[("always", steps) for steps in (1, "done")],
)


@pytest.mark.parametrize(("train_mode", "steps"), ENDS)
def test_an_early_end_leaves_a_usable_sampler(trainer, steps, train_mode):
    """As on Ctrl-C: whatever the phase, there is a sampler with finite draws, measured like a complete one."""
    t = trainer(banana, chains=2, train=train_mode, num_steps=40, dft_fraction=0.5)
    phase, _, more = str(steps).partition("+")
    if isinstance(steps, int):
        for _ in range(steps):
            t.step()
    else:
        while t.phase != phase:
            t.step()
        for _ in range(int(more or 0)):
            t.step()
    made = len(t.history)
    fit = t.finish()
    assert t.done
    assert t.finish() is fit
    assert made <= len(fit.history) <= made + 1
    assert torch.isfinite(draws_of(fit, 100)).all()
    assert torch.isfinite(fit.measurement.refined).all()
    allowed = {"kl": {"kl", "gaussian"}, "dft": {"kl", "dft", "gaussian"}, "done": {"kl", "dft", "gaussian"}}
    assert set(fit.objective) <= allowed.get(phase, {"gaussian"})
    assert t.step() is fit.history[-1] if fit.history else True


def test_an_early_end_of_the_paper_objective(trainer):
    fit = trainer(gaussian, objective="dft-paper").finish()
    assert torch.isfinite(draws_of(fit, 50)).all()
    assert fit.history == []


def test_a_branch_is_finished_while_the_training_goes_on(trainer):
    """Looking at the sampler in the middle of the training changes neither its weights nor its plan."""
    t = trainer(banana, train="always", num_steps=40, dft_fraction=0.5)
    looks = 0
    while not t.done:
        t.step()
        if len(t.history) % 15 == 0 and not t.done:
            phase, made = t.phase, len(t.history)
            weights = t._network.networks.snapshot() if t._network else {}
            look = t.branch().finish()
            assert torch.isfinite(draws_of(look, 50)).all()
            assert (t.phase, len(t.history), t.done) == (phase, made, False)
            for name, value in weights.items():
                assert torch.equal(t._network.networks.generator.state_dict()[name], value)
            looks += 1
    assert looks >= 4
    assert [p for p, _ in phases(t.finish().history)] == ["gaussian", "kl", "dft"]
    assert phases(t.history)[1:] == [("kl", 20), ("dft", 20)]
