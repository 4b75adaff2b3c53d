"""The Gaussian preconditioner: recovery, invariance, several modes, flat directions, minibatches."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pyro_dft.engine_torch.engine import ENGINE
from pyro_dft.engine_torch.target import Target
from pyro_dft.judging.optima import distinct_optima
from pyro_dft.recipe import constants, gaussian_fit
from pyro_dft.recipe.constants import FULL_RANK_LIMIT, MAX_SD
from pyro_dft.recipe.engine import Forms
from pyro_dft.recipe.gaussian_fit import GaussianFitter
from pyro_dft.recipe.gaussians import Gaussians
from pyro_dft.recipe.known_optima import KnownOptima
from pyro_dft.recipe.natural_gradient import State


def generator(seed, device="cpu"):
    return torch.Generator(device=device).manual_seed(seed)


def gaussian(d, condition, seed=0, device="cpu"):
    """Mean, covariance and potential of a correlated Gaussian with that condition number."""
    rng = generator(seed, device)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=rng, dtype=torch.float64, device=device))[0]
    exponents = torch.linspace(-0.5, 0.5, d, dtype=torch.float64, device=device)
    covariance = rotation * condition**exponents @ rotation.T
    precision = rotation * condition**-exponents @ rotation.T
    mean = 3 * torch.randn(d, generator=rng, dtype=torch.float64, device=device)
    return mean, covariance, lambda x: 0.5 * (x - mean) @ precision @ (x - mean)


def tensors(fitter):
    """What a fitter found, as tensors on its own device."""
    return SimpleNamespace(
        **{k: torch.as_tensor(v, device=fitter.target.device) for k, v in vars(fitter.result()).items()}
    )


def fit(target, starts, scales=None, *, steps=300, seed=1):
    fitter = begun(target, starts, scales, steps=steps, seed=seed)
    while not fitter.done:
        fitter.advance()
    return tensors(fitter), fitter


def begun(target, starts, scales=None, *, steps=300, seed=1, known=None):
    scales = np.ones(len(starts)) if scales is None else np.asarray(scales.cpu())
    rng = generator(seed, starts.device)
    return GaussianFitter(
        ENGINE, target, starts.cpu().numpy()[None], scales, steps=steps, rng=rng, known=known
    )


class Solver(Target):
    """A target whose evaluations take the longer the farther out a point is."""

    adaptive = True


@pytest.mark.parametrize("kind", [Target, Solver])
def test_restarts_far_behind_are_given_up_early_where_batches_take_as_long_as_their_slowest_point(kind):
    """Two separate modes; one of the three starts is on a slope that has far to go, thousands of nats below."""

    def potential(x):
        walls = 0.5 * ((x[0].abs() - 3) / 0.5) ** 2
        return walls + 0.5 * x[1] ** 2 + 50 * torch.nn.functional.relu(x[1] - 20)

    target = kind(potential, 2, dtype=torch.float64)
    starts = torch.tensor([[-2.5, 0.0], [2.5, 0.5], [2.5, 400.0]], dtype=torch.float64)
    fitter = begun(target, starts, 0.1 * torch.ones(3))
    for _ in range(gaussian_fit.ADAPTIVE_STEPS + 1):
        fitter.advance()
    assert np.isneginf(fitter.current().elbo).tolist() == [False, False, kind is Solver]
    while not fitter.done:
        fitter.advance()
    # The others are where they belong.
    assert np.abs(np.abs(fitter.result().mean[:2, 0]) - 3).max() < 0.1


@pytest.mark.parametrize("d", [2, 10, 30])
def test_recovers_badly_conditioned_gaussians_from_far_starts(d, device):
    """Condition number 1e6, starts a thousand sds away, scales from far too small to far too large."""
    mean, covariance, potential = gaussian(d, 1e6, device=device)
    target = Target(potential, d, dtype=torch.float64, device=device)
    starts = 30 * torch.randn(4, d, generator=generator(2, device), dtype=torch.float64, device=device)
    scales = torch.tensor([0.01, 0.1, 1.0, 100.0], device=device)
    found, fitter = fit(target, starts, scales)
    assert fitter.taken <= 300
    arrived = torch.isfinite(
        found.elbo
    )  # those that are still on their way when one has settled may be given up
    assert arrived.any()
    found = SimpleNamespace(**{name: value[arrived] for name, value in vars(found).items()})
    for m, scale in zip(found.mean, found.scale, strict=True):
        # In the target's own standard deviations: the mean, and the covariance in whitened coordinates.
        chol = torch.linalg.cholesky(covariance)
        shift = torch.linalg.solve(chol, m - mean)
        shape = torch.linalg.solve(chol, scale)
        assert shift.abs().max() < 0.05
        torch.testing.assert_close(
            shape @ shape.T, torch.eye(d, dtype=torch.float64, device=device), rtol=0, atol=0.1
        )
    # The bound is tight on a Gaussian: log of its integral, less the entropy's constant d/2 log(2 pi e).
    exact = 0.5 * torch.logdet(covariance) - 0.5 * d
    assert ((found.elbo - exact).abs() < 4 * found.elbo_error + 0.02).all()


def test_settles_early_on_a_gaussian():
    _, _, potential = gaussian(5, 100.0)
    target = Target(potential, 5, dtype=torch.float64)
    _, fitter = fit(target, torch.zeros(3, 5, dtype=torch.float64), steps=1000)
    assert fitter.taken < 500


def test_affine_invariance():
    """The fit in other coordinates is the fit in these, mapped, step for step."""
    d = 4
    rng = generator(3)
    matrix = torch.randn(d, d, generator=rng, dtype=torch.float64) + 2 * torch.eye(d, dtype=torch.float64)
    shift = 10 * torch.randn(d, generator=rng, dtype=torch.float64)

    def potential(x):
        return 0.5 * x.square().sum() + 0.1 * torch.exp(0.5 * x[0]) * x[1] ** 2 + torch.cos(x).prod()

    plain = Target(potential, d, dtype=torch.float64)
    moved = Target(lambda y: potential(torch.linalg.solve(matrix, y - shift)), d, dtype=torch.float64)
    starts = torch.randn(2, d, generator=rng, dtype=torch.float64)
    first = begun(plain, starts, steps=40, seed=4)
    second = begun(moved, starts @ matrix.T + shift, steps=40, seed=4)
    # The same start in both: scale I here is scale `matrix` there.
    second._state.put(second._state.mean, np.tile(matrix.numpy(), (2, 1, 1)))
    for _ in range(12):
        first.advance()
        second.advance()
    a, b = tensors(first), tensors(second)
    torch.testing.assert_close(a.mean @ matrix.T + shift, b.mean, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(matrix @ a.scale, b.scale, rtol=1e-7, atol=1e-7)
    offset = torch.logdet(matrix.T @ matrix) / 2
    torch.testing.assert_close(a.elbo + offset, b.elbo, rtol=1e-7, atol=1e-7)


def test_restarts_find_both_modes_and_their_weights():
    """Modes of different width, a quarter and three quarters of the mass, far apart."""
    centres = torch.tensor([[-8.0, 0.0], [8.0, 2.0]], dtype=torch.float64)
    sds = torch.tensor([0.5, 2.0], dtype=torch.float64)
    masses = torch.tensor([0.25, 0.75], dtype=torch.float64)

    def potential(x):
        squares = ((x - centres) / sds[:, None]).square().sum(-1)
        return -torch.logsumexp(masses.log() - 2 * sds.log() - 0.5 * squares, 0)

    target = Target(potential, 2, dtype=torch.float64)
    starts = torch.tensor([[-9.0, 1], [-6, -1], [7, 0], [9, 3], [-8, 3], [6, 5]], dtype=torch.float64)
    found, _ = fit(target, starts)
    optima = distinct_optima(found.mean.numpy(), found.scale.numpy(), found.elbo.numpy())
    assert len(optima) == 2
    best, other = optima.indices
    assert (found.mean[best] - centres[1]).abs().max() < 0.2
    assert (found.mean[other] - centres[0]).abs().max() < 0.05
    # Monte Carlo error of the two bounds on Gaussian modes is below 0.01.
    torch.testing.assert_close(torch.as_tensor(optima.weight), masses.flip(0), rtol=0, atol=0.02)


@pytest.mark.parametrize("d", [3, FULL_RANK_LIMIT + 1])
def test_a_flat_direction_ends_with_finite_numbers(d):
    """An improper target: the first coordinate has no density to speak of, the others are normal."""
    target = Target(lambda x: 0.5 * (x[1:] - 1).square().sum(), d, dtype=torch.float64)
    restarts = 2
    starts = torch.zeros(restarts, d, dtype=torch.float64)
    found, fitter = fit(target, starts)
    assert torch.isfinite(found.mean).all()
    assert torch.isfinite(found.scale).all()
    assert torch.isfinite(found.elbo).all()
    assert math.isfinite(fitter.current().elbo.max())
    sd = found.scale.square().sum(-1).sqrt() if d <= FULL_RANK_LIMIT else found.scale
    # So wide that the report can say so, and no wider than single precision can square.
    assert (sd[:, 0] > 1e11).all()
    assert (sd[:, 0] <= MAX_SD).all()
    # The directions that are not flat come out right.
    assert (found.mean[:, 1:] - 1).abs().max() < 0.1
    assert (sd[:, 1:] - 1).abs().max() < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_target_without_a_maximum_ends_with_finite_numbers(dtype):
    """Log densities that grow without bound: along a line, and in every direction."""
    for potential in (lambda x: 0.5 * x[1] ** 2 - 0.5 * x[0], lambda x: -0.5 * x.square().sum()):
        target = Target(potential, 2, dtype=dtype)
        found, _ = fit(target, torch.zeros(2, 2, dtype=dtype))
        sd = found.scale.square().sum(-1).sqrt()
        assert (sd.amax(1) > 1e11).all()
        assert (sd <= MAX_SD).all()
        assert torch.isfinite(found.mean.float()).all()
        assert torch.isfinite(found.elbo).all()


def test_a_target_that_is_finite_nowhere_ends(dtype):
    target = Target(lambda x: x.sum() * torch.nan, 2, dtype=dtype)
    found, fitter = fit(target, torch.zeros(2, 2, dtype=dtype), steps=50)
    assert (found.elbo == -math.inf).all()
    assert torch.isfinite(found.mean).all()
    assert torch.isfinite(found.scale).all()
    assert (fitter.current().elbo == -math.inf).all()


def test_points_outside_the_support_pull_back():
    """Gamma(3, 1) without its transform: half of the first draws are at x < 0, where the density is NaN."""
    target = Target(lambda x: (x - 2 * x.log()).sum(), 1, dtype=torch.float64)
    starts = torch.tensor([[1.0], [4.0]], dtype=torch.float64)
    found, _ = fit(target, starts, torch.tensor([1.0, 1.0]))
    # A restart counts as failed while more than a tenth of its draws are outside.
    assert torch.isfinite(found.elbo).any()
    assert (found.mean > 1).all()
    assert (found.mean < 4).all()
    assert (found.scale.abs() < 2).all()
    assert target.nonfinite_evaluations > 0


def test_a_restart_that_is_never_finite_leaves_the_others_alone():
    def potential(x):
        return torch.where(x[0] > 50, torch.nan, 0.5 * x.square().sum())

    target = Target(potential, 2, dtype=torch.float64)
    starts = torch.tensor([[0.5, 0.5], [1000.0, 0.0]], dtype=torch.float64)
    found, _ = fit(target, starts, torch.tensor([1.0, 0.1]))
    assert found.elbo[0] > -1.1
    assert found.mean[0].abs().max() < 0.1
    assert found.elbo[1] == -math.inf or found.mean[1].abs().max() < 0.1
    assert torch.isfinite(found.scale).all()


def test_diagonal_above_the_limit(monkeypatch):
    for module in (gaussian_fit, constants):
        monkeypatch.setattr(module, "FULL_RANK_LIMIT", 2)
    sd = torch.tensor([0.01, 1.0, 300.0], dtype=torch.float64)
    mean = torch.tensor([5.0, -2.0, 1e3], dtype=torch.float64)
    target = Target(lambda x: 0.5 * ((x - mean) / sd).square().sum(), 3, dtype=torch.float64)
    found, _ = fit(target, torch.zeros(2, 3, dtype=torch.float64), steps=400)
    assert found.scale.shape == (2, 3)
    for m, scale in zip(found.mean, found.scale, strict=True):
        assert ((m - mean) / sd).abs().max() < 0.1
        torch.testing.assert_close(scale, sd, rtol=0.1, atol=0)


def test_minibatch_scores_give_the_same_gaussian():
    """Linear regression, 200 rows, minibatches of 20."""
    torch.manual_seed(0)
    rng = generator(5)
    rows = torch.randn(200, 3, generator=rng, dtype=torch.float64)
    y = rows.sum(1) + torch.randn(200, generator=rng, dtype=torch.float64)

    def minibatch(x):
        i = torch.randint(200, (20,))
        return 0.5 * x.square().sum() + 5 * (y[i] - rows[i] @ x).square().sum()

    target = Target(
        lambda x: 0.5 * x.square().sum() + 0.5 * (y - rows @ x).square().sum(),
        3,
        dtype=torch.float64,
        forms=Forms(minibatch, rows=200),
    )
    found, _ = fit(target, torch.zeros(2, 3, dtype=torch.float64))
    precision = torch.eye(3, dtype=torch.float64) + rows.T @ rows
    mean, sd = torch.linalg.solve(precision, rows.T @ y), torch.linalg.inv(precision).diagonal().sqrt()
    assert ((found.mean - mean) / sd).abs().max() < 0.2
    ratio = found.scale.square().sum(-1).sqrt() / sd
    assert (ratio - 1).abs().max() < 0.2


def test_minibatch_scores_find_a_narrow_posterior_from_afar():
    """20,000 rows, minibatches of 100: starts hundreds of posterior sds away, and as much too wide."""
    torch.manual_seed(0)
    rng = generator(6)
    n, d, batch = 20_000, 4, 100
    rows = torch.randn(n, d, generator=rng, dtype=torch.float64)
    y = rows.sum(1) + torch.randn(n, generator=rng, dtype=torch.float64)
    precision = torch.eye(d, dtype=torch.float64) + rows.T @ rows
    mean, sd = torch.linalg.solve(precision, rows.T @ y), torch.linalg.inv(precision).diagonal().sqrt()

    def minibatch(x):
        i = torch.randint(n, (batch,))
        return 0.5 * x.square().sum() + n / batch * 0.5 * (y[i] - rows[i] @ x).square().sum()

    target = Target(
        lambda x: 0.5 * (x - mean) @ precision @ (x - mean),
        d,
        dtype=torch.float64,
        forms=Forms(minibatch, rows=n),
    )
    starts = 4 * torch.rand(4, d, generator=rng, dtype=torch.float64) - 2
    found, _ = fit(target, starts, torch.tensor([0.1, 1.0, 0.1, 1.0]))
    best = int(found.elbo.argmax())
    # Noise of the minibatches is what remains: half a posterior sd, and some widening by it.
    assert ((found.mean[best] - mean) / sd).abs().max() < 1
    ratio = found.scale[best].square().sum(-1).sqrt() / sd
    assert ((ratio > 0.7) & (ratio < 2)).all()


def test_single_precision_targets_are_fitted_in_double():
    _, covariance, potential = gaussian(4, 1e4)
    target = Target(lambda x: potential(x.double()).float(), 4, dtype=torch.float32)
    found, _ = fit(target, torch.zeros(2, 4))
    assert found.mean.dtype == found.scale.dtype == torch.float64
    sd = found.scale.square().sum(-1).sqrt()
    torch.testing.assert_close(sd / covariance.diagonal().sqrt(), torch.ones_like(sd), rtol=0, atol=0.05)


def test_same_seed_same_fit():
    target = Target(lambda x: x.square().sum() + torch.cos(x).prod(), 3, dtype=torch.float64)
    starts = torch.ones(2, 3, dtype=torch.float64)
    a, b, c = (fit(target, starts, steps=30, seed=s)[0] for s in (1, 1, 2))
    assert torch.equal(a.mean, b.mean)
    assert torch.equal(a.scale, b.scale)
    assert torch.equal(a.elbo, b.elbo)
    assert not torch.equal(a.mean, c.mean)


def test_gaussians_can_be_picked_by_index():
    g = Gaussians(np.arange(6.0).reshape(3, 2), np.zeros((3, 2, 2)), np.arange(3.0), np.ones(3))
    picked = g[np.array([2, 0])]
    assert picked.mean.tolist() == [[4, 5], [0, 1]]
    assert picked.elbo.tolist() == [2, 0]


def mixture(weights, means, sds, d):
    """Potential of a mixture of round Gaussians, whose means are those numbers in every coordinate."""
    w, m, s = (torch.tensor(v, dtype=torch.float64) for v in (weights, means, sds))

    def potential(x):
        squares = ((x[None] - m[:, None]) / s[:, None]).square().sum(-1)
        return -torch.logsumexp(w.log() - d * s.log() - 0.5 * squares, 0)

    return potential


@pytest.mark.parametrize("d", [10, 60])
def test_a_restart_that_comes_to_a_known_optimum_ends_there(d):
    """In 60 dimensions while only scales are fitted, which are not those of the whole matrix."""
    mean, _, potential = gaussian(d, 30.0)
    target = Target(potential, d, dtype=torch.float64)
    starts = torch.zeros(1, d, dtype=torch.float64)
    _, first = fit(target, starts)
    known = first.result()
    again = begun(target, starts + 3.0, known=known, seed=2)
    while not again.done:
        again.advance()
    assert again.taken < first.taken
    assert again.result().elbo == known.elbo
    np.testing.assert_array_equal(again.result().mean, known.mean)


def test_a_narrow_mode_within_a_known_one_is_not_taken_for_it():
    d = 5
    target = Target(mixture([0.5, 0.5], [0.0, 0.4], [1.0, 0.03], d), d, dtype=torch.float64)
    wide = Gaussians(np.zeros((1, d)), np.eye(d)[None], np.full(1, np.log(0.5) - d / 2), np.zeros(1))
    fitter = begun(target, torch.full((1, d), 0.4, dtype=torch.float64), torch.full((1,), 0.01), known=wide)
    while not fitter.done:
        fitter.advance()
    np.testing.assert_allclose(np.abs(np.linalg.det(fitter.result().scale)), 0.03**d, rtol=0.2)


def test_restarts_that_waited_are_fitted_as_well():
    """Two modes in 60 dimensions: the second is no worse for having waited for the first."""
    d = 60
    target = Target(mixture([0.3, 0.7], [-2.0, 2.0], [0.5, 0.4], d), d, dtype=torch.float64)
    starts = torch.tensor([[-3.0], [3.0], [2.5]], dtype=torch.float64).expand(3, d)
    found, _ = fit(target, starts)
    expected = torch.tensor([[-2.0], [2.0], [2.0]], dtype=torch.float64).expand(3, d)
    torch.testing.assert_close(found.mean, expected, atol=0.02, rtol=0.0)
    # The bound of a Gaussian target is its log weight, up to a constant.
    weights = torch.exp(found.elbo + d / 2)
    torch.testing.assert_close(
        weights, torch.tensor([0.3, 0.7, 0.7], dtype=torch.float64), atol=0.01, rtol=0.0
    )


def test_a_restart_far_below_a_known_optimum_is_given_up():
    """A curved ridge keeps it going; nothing says that it will gain 60 nats."""
    d = 4

    def potential(x):
        return 60 + 0.5 * (x[0] / 5).square() + 0.5 * (20 * (x[1:] - x[0].square() / 5)).square().sum()

    target = Target(potential, d, dtype=torch.float64)
    start = torch.full((1, d), 8.0, dtype=torch.float64)
    _, alone = fit(target, start)
    known = Gaussians(np.zeros((1, d)), np.eye(d)[None], np.zeros(1), np.zeros(1))
    fitter = begun(target, start, known=known)
    while not fitter.done:
        fitter.advance()
    assert fitter.result().elbo == -np.inf
    assert fitter.taken < alone.taken


def test_scales_alone_are_compared_with_sds_given_all_other_coordinates():
    """Of strongly correlated coordinates: a fit of scales ends at these, five times below the sds. The root is triangular."""
    d, rng = 60, np.random.default_rng(0)
    sd = np.exp(rng.normal(size=d))
    covariance = (0.95 + 0.05 * np.eye(d)) * np.outer(sd, sd)
    root = np.linalg.cholesky(covariance)
    known = KnownOptima(Gaussians(np.zeros((1, d)), root[None], np.zeros(1), np.zeros(1)))
    given_others = np.diag(np.linalg.inv(covariance)) ** -0.5

    def met(scale):
        state = State.start(np.zeros((1, d)), np.ones(1), full=False)
        state.scale, state.best = scale[None], np.zeros(1)
        return known.met(state, 0)

    assert met(given_others) == 0
    assert met(np.sqrt(np.diag(covariance))) is None
