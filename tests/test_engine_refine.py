"""Refinement: exact draws stay exact, wrong ones are repaired, steps are tuned, bad points stay apart."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_dft.engine_torch.refine import refine, tune_step_size, whitening
from pyro_dft.engine_torch.target import Target

SHAPE = 3.0


def skewed(x):
    """x_0 the log of a Gamma(3, 1) variable, x_1 normal around x_0^2 / 2 with sd 1/2 (curved, skewed)."""
    return torch.exp(x[0]) - SHAPE * x[0] + 2 * (x[1] - 0.5 * x[0] ** 2) ** 2


def exact_draws(shape, rng, dtype):
    """Exact draws of `skewed`: Gamma(3, 1) is the sum of three exponentials."""
    uniform = torch.rand(*shape, 3, generator=rng, dtype=torch.float64, device=rng.device)
    first = (-uniform.log().sum(-1)).log()
    second = torch.randn(*shape, generator=rng, dtype=torch.float64, device=rng.device)
    return torch.stack([first, 0.5 * first**2 + 0.5 * second], -1).to(dtype)


def features(x):
    """Numbers whose means say much about a distribution: moments, a cross moment, two tail probabilities."""
    a, b = x[..., 0].double(), x[..., 1].double()
    return torch.stack([a, b, a**2, b**2, a * b, a**3, (a < 0).double(), (b > 2).double()], -1)


@pytest.fixture
def rng(device):
    return torch.Generator(device=device).manual_seed(0)


@pytest.fixture
def target(dtype, device):
    return Target(skewed, 2, dtype=dtype, device=device)


@pytest.fixture
def ones(dtype, device):
    def tensor(*shape):
        return torch.ones(*shape, dtype=dtype, device=device)

    return tensor


def identity(c, d, like):
    return torch.eye(d, dtype=like.dtype, device=like.device).expand(c, d, d)


@pytest.mark.parametrize("step_size", [0.15, 0.5, 0.9])
def test_exact_draws_of_a_curved_target_stay_exact(target, rng, dtype, step_size):
    """Whatever the step size: what is accepted badly is still right. Errors from 20,000 paired draws."""
    draws = exact_draws((1, 20_000), rng, dtype)
    scale = whitening(draws, identity(1, 2, draws))
    sizes = torch.tensor([step_size], dtype=dtype, device=draws.device)
    found = refine(target, draws, scale, sizes, steps=6, leapfrog_steps=5, rng=rng)
    change = (features(found.draws) - features(draws))[0]
    error = change.std(0) / len(change) ** 0.5
    assert (change.mean(0).abs() < 4 * error).all()
    # They have moved, and not all of them in every transition.
    assert found.stuck < 0.1
    assert 0.2 < found.acceptance[0] < 0.999
    correlation = torch.corrcoef(torch.stack([draws[0, :, 0], found.draws[0, :, 0]]))[0, 1]
    assert correlation < 0.8


def test_wrong_draws_are_repaired(target, rng, dtype):
    """Draws of a shifted, much too narrow Gaussian end as draws of the target: 4,000 independent ones."""
    n = 4000
    noise = torch.randn(1, n, 2, generator=rng, dtype=dtype, device=rng.device)
    draws = 0.3 * noise + 2
    scale = identity(1, 2, draws)
    reference = exact_draws((1, 100_000), rng, dtype)[0]
    size = tune_step_size(target, draws, scale, leapfrog_steps=5, rng=rng)
    found = refine(target, draws, scale, size, steps=60, leapfrog_steps=5, rng=rng).draws[0]
    a, b = features(found), features(reference)
    error = (a.var(0) / n + b.var(0) / len(b)).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() < 4 * error).all()
    before = features(draws[0])
    assert ((before.mean(0) - b.mean(0)).abs() > 10 * error).any()


def test_refined_log_density_is_that_of_the_refined_draws(target, rng, dtype, ones):
    draws = exact_draws((2, 50), rng, dtype)
    found = refine(target, draws, identity(2, 2, draws), 0.3 * ones(2), steps=3, leapfrog_steps=4, rng=rng)
    torch.testing.assert_close(found.log_density, target.evaluate(found.draws)[0])
    assert found.draws.shape == draws.shape
    assert found.divergence_rate == 0


def test_no_steps_leave_the_draws(target, rng, dtype, ones):
    draws = exact_draws((1, 10), rng, dtype)
    found = refine(target, draws, identity(1, 2, draws), ones(1), steps=0, leapfrog_steps=5, rng=rng)
    assert torch.equal(found.draws, draws)
    assert found.stuck == 0
    assert found.divergence_rate == 0


def test_gradients_are_those_of_the_leapfrog_steps(target, rng, dtype, ones):
    draws = exact_draws((2, 10), rng, dtype)
    refine(target, draws, identity(2, 2, draws), 0.1 * ones(2), steps=4, leapfrog_steps=5, rng=rng)
    assert target.gradient_evaluations == 20 * (1 + 4 * 5)


def test_the_kernel_is_invariant_to_affine_maps(rng, dtype, ones):
    """In other coordinates, with the scale to match, every draw moves as it did, mapped."""
    matrix = torch.tensor([[2.0, 0.0], [-30.0, 0.1]], dtype=torch.float64, device=rng.device)
    plain = Target(skewed, 2, dtype=torch.float64, device=rng.device)
    moved = Target(lambda y: skewed(torch.linalg.solve(matrix, y)), 2, dtype=torch.float64, device=rng.device)
    draws = exact_draws((1, 40), rng, torch.float64)
    size = 0.3 * ones(1).double()
    options = {"steps": 5, "leapfrog_steps": 5}
    a, b = (torch.Generator(device=rng.device).manual_seed(1) for _ in range(2))
    eye = identity(1, 2, draws)
    first = refine(plain, draws, eye, size, rng=a, **options).draws
    second = refine(moved, draws @ matrix.T, matrix[None], size, rng=b, **options).draws
    torch.testing.assert_close(first @ matrix.T, second, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("d", [1, 10, 60])
def test_step_sizes_are_tuned_to_acceptance(rng, dtype, device, d):
    """Three chains with scales that fit, are half as large and twice as large."""
    target = Target(
        lambda x: 0.5 * x.square().sum() + 0.1 * torch.cosh(x).sum(), d, dtype=dtype, device=device
    )
    noise = 0.9 * torch.randn(3, 600, d, generator=rng, dtype=dtype, device=device)
    scale = identity(3, d, noise) * torch.tensor([1.0, 0.5, 2.0], dtype=dtype, device=device)[:, None, None]
    sizes = torch.full((3,), 0.3, dtype=dtype, device=device)
    start = refine(target, noise, identity(3, d, noise), sizes, steps=10, leapfrog_steps=5, rng=rng)
    draws = start.draws
    size = tune_step_size(target, draws, scale, leapfrog_steps=5, rng=rng)
    acceptance = refine(target, draws, scale, size, steps=10, leapfrog_steps=5, rng=rng).acceptance
    # Of 6,000 transitions; the tuning itself saw 3,000 and aims at 0.8. It is slower to lengthen than to shorten.
    assert abs(acceptance[0] - 0.8) < 0.04
    assert abs(acceptance[2] - 0.8) < 0.04
    assert 0.75 < acceptance[1] < 0.95
    ratio = size[0] / size[1:]
    assert 0.4 < ratio[0] < 0.8
    assert 1.6 < ratio[1] < 2.4


def test_a_step_that_is_far_too_long_diverges_and_leaves_all_in_place(target, rng, dtype, ones):
    draws = exact_draws((1, 100), rng, dtype)
    found = refine(target, draws, identity(1, 2, draws), 50 * ones(1), steps=3, leapfrog_steps=5, rng=rng)
    assert found.divergence_rate > 0.95
    assert found.stuck > 0.95
    assert found.acceptance[0] < 0.05
    assert torch.isfinite(found.draws).all()
    assert torch.isfinite(found.log_density).all()


def test_draws_never_leave_the_support_and_find_their_way_in(rng, dtype, device, ones):
    """Exponential on x > 0, NaN elsewhere: half of the draws start outside."""
    target = Target(lambda x: torch.where(x > 0, x, torch.nan).sum(), 1, dtype=dtype, device=device)
    start = torch.linspace(-1, 1, 400, dtype=dtype, device=device).reshape(1, 400, 1)
    found = refine(target, start, identity(1, 1, start), 0.4 * ones(1), steps=80, leapfrog_steps=5, rng=rng)
    assert (found.draws > 0).all()
    assert torch.isfinite(found.log_density).all()
    # Mean and sd of a unit exponential are 1: standard error 1 / sqrt(400) = 0.05.
    assert abs(float(found.draws.mean()) - 1) < 0.2


def test_a_chain_that_is_not_finite_leaves_the_others_alone(target, rng, dtype, ones):
    draws = exact_draws((3, 30), rng, dtype)
    bad = draws.clone()
    bad[1] = torch.nan
    scale = identity(3, 2, draws)
    runs = []
    for x in (draws, bad):
        seeded = torch.Generator(device=x.device).manual_seed(5)
        size = tune_step_size(target, x, scale, leapfrog_steps=3, rng=seeded)
        runs.append(refine(target, x, scale, size, steps=4, leapfrog_steps=3, rng=seeded))
    others = [0, 2]
    torch.testing.assert_close(runs[0].draws[others], runs[1].draws[others])
    torch.testing.assert_close(runs[0].acceptance[others], runs[1].acceptance[others])
    assert (runs[1].log_density[1] == -math.inf).all()


def test_whitening_is_the_cholesky_factor_of_the_covariance(rng, dtype, device):
    scale = torch.tensor([[100.0, 0.0, 0.0], [5.0, 1e-3, 0.0], [0.0, 1e-4, 1e-3]], dtype=dtype, device=device)
    draws = torch.randn(2, 200, 3, generator=rng, dtype=dtype, device=device) @ scale.T + 7
    found = whitening(draws, identity(2, 3, draws))
    assert found.dtype == dtype
    for c in range(2):
        covariance = torch.cov(draws[c].double().T)
        torch.testing.assert_close((found[c] @ found[c].T).double(), covariance, rtol=1e-4, atol=1e-12)
        assert torch.equal(found[c], found[c].tril())


def test_whitening_falls_back_where_draws_cannot_tell(rng, dtype, device):
    draws = torch.randn(3, 40, 2, generator=rng, dtype=dtype, device=device)
    fallback = torch.randn(3, 2, 2, generator=rng, dtype=dtype, device=device)
    # Too few draws for the dimension.
    assert torch.equal(whitening(draws[:, :7], fallback), fallback)
    # One chain is not finite: it alone falls back.
    draws[1, 3, 0] = torch.inf
    found = whitening(draws, fallback)
    assert torch.equal(found[1], fallback[1])
    assert not torch.equal(found[0], fallback[0])
    assert torch.isfinite(found).all()


def test_same_seed_same_draws(target, rng, dtype, ones):
    draws = exact_draws((2, 20), rng, dtype)
    scale, runs = identity(2, 2, draws), []
    for seed in (1, 1, 2):
        seeded = torch.Generator(device=draws.device).manual_seed(seed)
        runs.append(refine(target, draws, scale, 0.3 * ones(2), steps=3, leapfrog_steps=5, rng=seeded).draws)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
