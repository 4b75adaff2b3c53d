"""The formulas of the paper against closed forms: affine samplers on Gaussians, discrete latents by sums.

Where a gradient is estimated from draws it must lie within 4 Monte Carlo standard errors of the exact one in
every component, with standard errors that are small against the gradient. Where draws can be replaced by
quadrature there is no Monte Carlo error and the tolerance is that of the quadrature.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from closed_forms import DISTANCES, SQUARED, flat, uniform
from torch import Tensor

from pyro_dft.engine_torch import objectives
from pyro_dft.engine_torch.objectives import Distance
from pyro_dft.engine_torch.sampler import Sampler
from pyro_dft.engine_torch.target import Target
from pyro_dft.engine_torch.train import NetworkTrainer
from pyro_dft.experimental import Experimental
from pyro_dft.recipe.engine import Forms
from pyro_dft.settings import Settings

SETTINGS = 20


# Independent batches from which standard errors come; the objectives see them as chains.
BATCHES = 200


def _rotation(rng: torch.Generator, d: int) -> Tensor:
    return torch.linalg.qr(torch.randn(d, d, generator=rng, dtype=torch.float64))[0]


@dataclasses.dataclass
class Affine:
    """The sampler x = m + A z + sigma eps on the target N(mu, P^-1), known in closed form."""

    m: Tensor
    a: Tensor
    sigma: Tensor
    mu: Tensor
    precision: Tensor

    @classmethod
    def random(cls, seed: int, d: int) -> Affine:
        rng = torch.Generator().manual_seed(1000 * d + seed)
        rotation = _rotation(rng, d)
        eigenvalues = uniform(rng, -1.2, 1.2, d).exp()
        a = _rotation(rng, d) * uniform(rng, 0.4, 1.6, d) @ _rotation(rng, d)
        m, mu = (torch.randn(d, generator=rng, dtype=torch.float64) for _ in range(2))
        return cls(m, a, uniform(rng, 0.3, 0.8, 1), mu, rotation * eigenvalues @ rotation.T)

    @property
    def inverse(self) -> Tensor:
        """Inverse covariance of the draws."""
        d = len(self.m)
        return torch.linalg.inv(self.a @ self.a.T + self.sigma**2 * torch.eye(d, dtype=torch.float64))

    def score_q(self, x: Tensor) -> Tensor:
        return (self.mu - x) @ self.precision

    def score_p(self, x: Tensor) -> Tensor:
        """The exact score of the sampler's density at its present, frozen parameters."""
        return (self.m - x) @ self.inverse

    def fisher_gradient(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient in m, A and sigma of the Fisher divergence.

        F = 1/2 tr((P - S^-1) S (P - S^-1)) + 1/2 |P (m - mu)|^2 with S = A A' + sigma^2.
        """
        square, inverse = self.precision @ self.precision, self.inverse
        excess = square - inverse @ inverse
        return square @ (self.m - self.mu), excess @ self.a, self.sigma * excess.trace()

    def kl_gradient(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient of KL(p || q) = 1/2 tr(P S) - 1/2 log det S + 1/2 (m - mu)' P (m - mu) + constant."""
        excess = self.precision - self.inverse
        return self.precision @ (self.m - self.mu), excess @ self.a, self.sigma * excess.trace()

    def estimate(self, objective, draws: int, seed: int) -> tuple[Tensor, Tensor]:
        """Gradient of `objective(x, eps, sigma, rng)` in (m, A, sigma), flat, and its standard errors.

        Each pair of noises eps and -eps shares its z, as in training.
        """
        rng = torch.Generator().manual_seed(seed)
        # Some parts one after the other, so that memory stays small.
        parts = -(-draws // 100_000)
        flat = torch.cat([self._gradients(objective, draws // parts, rng) for _ in range(parts)])
        return flat.mean(0), flat.std(0) / len(flat) ** 0.5

    def _gradients(self, objective, draws: int, rng: torch.Generator) -> Tensor:
        d, pairs = len(self.m), draws // (2 * BATCHES)
        m, a, sigma = (
            p.expand(BATCHES, *p.shape).clone().requires_grad_() for p in (self.m, self.a, self.sigma)
        )
        z, eps = (torch.randn(BATCHES, pairs, d, generator=rng, dtype=torch.float64) for _ in range(2))
        z, eps = torch.cat([z, z], 1), torch.cat([eps, -eps], 1)
        x = m[:, None] + z @ a.mT + sigma[:, None] * eps
        value = objective(x, eps, sigma[:, None], rng)
        assert value.shape == (BATCHES,)
        gradients = torch.autograd.grad(value.sum(), (m, a, sigma))
        return torch.cat([g.reshape(BATCHES, -1) for g in gradients], 1)

    def full(self, x: Tensor, eps: Tensor, sigma: Tensor, _rng: torch.Generator) -> Tensor:
        score_p = self.score_p(x)
        return objectives.fisher_full(score_p - self.score_q(x), score_p, eps, sigma, SQUARED)

    def partial(self, x: Tensor, _eps: Tensor, _sigma: Tensor, _rng: torch.Generator) -> Tensor:
        return objectives.fisher_partial(self.score_p(x) - self.score_q(x), SQUARED)

    def kl(self, x: Tensor, _eps: Tensor, _sigma: Tensor, _rng: torch.Generator) -> Tensor:
        return objectives.kl(self.score_p(x) - self.score_q(x), x, SQUARED)


@dataclasses.dataclass
class Regression(Affine):
    """Linear regression, unit noise, unit normal prior: a Gaussian target whose score is a sum over rows."""

    rows: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))
    y: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))
    batch: int = 5

    @classmethod
    def random(cls, seed: int, d: int) -> Regression:
        rng = torch.Generator().manual_seed(7000 * d + seed)
        # Rows of length about sqrt(d / N) make the likelihood as informative as the prior.
        rows = torch.randn(30, d, generator=rng, dtype=torch.float64) / 30**0.5
        y = rows @ torch.randn(d, generator=rng, dtype=torch.float64)
        y = y + torch.randn(30, generator=rng, dtype=torch.float64)
        precision = torch.eye(d, dtype=torch.float64) + rows.T @ rows
        affine = Affine.random(seed, d)
        mu = torch.linalg.solve(precision, rows.T @ y)
        # Some posterior sds off, so that the gradient is large against the noise of the minibatches.
        m = mu + uniform(rng, 2.0, 3.0, 1) * _rotation(rng, d)[0]
        return cls(m, affine.a, affine.sigma, mu, precision, rows, y)

    def minibatch_score(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """The score from a fresh random minibatch for each point: unbiased for `score_q`."""
        index = torch.randint(len(self.y), (*x.shape[:-1], self.batch), generator=rng)
        rows, y = self.rows[index], self.y[index]
        residual = y - (rows @ x[..., None]).squeeze(-1)
        return -x + len(self.y) / self.batch * (residual[..., None, :] @ rows).squeeze(-2)

    def two(self, x: Tensor, eps: Tensor, sigma: Tensor, rng: torch.Generator) -> Tensor:
        score_p = self.score_p(x)
        deltas = [score_p - self.minibatch_score(x, rng) for _ in range(2)]
        return objectives.fisher_full_two_minibatches(*deltas, score_p, eps, sigma)

    def one(self, x: Tensor, eps: Tensor, sigma: Tensor, rng: torch.Generator) -> Tensor:
        score_p = self.score_p(x)
        return objectives.fisher_full(score_p - self.minibatch_score(x, rng), score_p, eps, sigma, SQUARED)

    def one_kl(self, x: Tensor, _eps: Tensor, _sigma: Tensor, rng: torch.Generator) -> Tensor:
        return objectives.kl(self.score_p(x) - self.minibatch_score(x, rng), x, SQUARED)


def assert_equal_in_distribution(found: Tensor, error: Tensor, exact: Tensor, share: float = 0.02) -> None:
    """Within 4 standard errors in every component; these together under `share` of the gradient's norm."""
    assert error.norm() < share * exact.norm(), f"se {error.norm() / exact.norm():.3f} of the norm"
    z = ((found - exact) / error).abs()
    assert z.max() <= 4, f"component {int(z.argmax())} is {z.max():.1f} standard errors off"


def off_by(found: Tensor, error: Tensor, exact: Tensor) -> float:
    """Distance in standard errors: length of the difference over the standard error along it."""
    difference = found - exact
    along = (difference / difference.norm() * error).norm()
    return float(difference.norm() / along)


@pytest.mark.parametrize("d", [1, 3, 10])
@pytest.mark.parametrize("seed", range(SETTINGS))
def test_full_gradient_is_that_of_the_fisher_divergence(d, seed):
    affine = Affine.random(seed, d)
    found, error = affine.estimate(affine.full, 100_000, seed)
    assert_equal_in_distribution(found, error, flat(affine.fisher_gradient()))


@pytest.mark.parametrize("d", [1, 3, 10])
def test_partial_gradient_is_not_that_of_the_fisher_divergence(d):
    for seed in range(SETTINGS):
        affine = Affine.random(seed, d)
        found, error = affine.estimate(affine.partial, 20_000, seed)
        exact = flat(affine.fisher_gradient())
        assert off_by(found, error, exact) > 15
        assert (found - exact).norm() > 0.1 * exact.norm()


def test_partial_gradient_can_have_the_wrong_sign():
    """A sampler that is too narrow: descent on the divergence widens it, the partial gradient does not."""
    one = torch.ones(1, dtype=torch.float64)
    affine = Affine(0 * one, 0.8 * one[None], 0.1 * one, 0 * one, one[None])
    full, full_error = affine.estimate(affine.full, 20_000, 0)
    partial, partial_error = affine.estimate(affine.partial, 20_000, 0)
    assert affine.fisher_gradient()[1] < 0
    assert full[1] < -10 * full_error[1]
    assert partial[1] > 10 * partial_error[1]


@pytest.mark.parametrize("d", [1, 3, 10])
def test_kl_gradient(d):
    for seed in range(8):
        affine = Affine.random(seed, d)
        found, error = affine.estimate(affine.kl, 100_000, seed)
        assert_equal_in_distribution(found, error, flat(affine.kl_gradient()))


@pytest.mark.parametrize("seed", range(8))
def test_two_minibatches_give_the_full_data_gradient_and_one_does_not(seed):
    d = (1, 3, 10)[seed % 3]
    regression = Regression.random(seed, d)
    exact = flat(regression.fisher_gradient())
    found, error = regression.estimate(regression.two, 200_000 if d == 10 else 100_000, seed)
    assert_equal_in_distribution(found, error, exact)
    found, error = regression.estimate(regression.one, 100_000, seed)
    assert off_by(found, error, exact) > 5


@pytest.mark.parametrize("d", [1, 3, 10])
def test_one_minibatch_gives_the_full_data_kl_gradient(d):
    regression = Regression.random(d, d)
    found, error = regression.estimate(regression.one_kl, 100_000, d)
    assert_equal_in_distribution(found, error, flat(regression.kl_gradient()))


# Identities that hold draw by draw, for any tensors.


@pytest.fixture
def numbers():
    rng = torch.Generator().manual_seed(3)
    delta, other, score_p, eps = (torch.randn(4, 6, 3, generator=rng, dtype=torch.float64) for _ in range(4))
    return delta, other, score_p, eps, uniform(rng, 0.05, 0.5, 4, 1, 3)


def test_full_loss_is_the_difference_of_two_denoising_losses(numbers):
    delta, _, score_p, eps, sigma = numbers
    score_q = score_p - delta
    loss = objectives.fisher_full(delta, score_p, eps, sigma, SQUARED)
    difference = objectives.denoising(score_q, eps, sigma) - objectives.denoising(score_p, eps, sigma)
    assert loss.shape == (4,)
    torch.testing.assert_close(loss, difference, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(
        objectives.fisher_gap(score_q, score_p, eps, sigma), loss, rtol=1e-11, atol=1e-11
    )


def test_two_minibatch_loss_is_the_two_minibatch_gap(numbers):
    delta, other, score_p, eps, sigma = numbers
    loss = objectives.fisher_full_two_minibatches(delta, other, score_p, eps, sigma)
    gap = objectives.fisher_gap(score_p - delta, score_p, eps, sigma, score_p - other)
    torch.testing.assert_close(loss, gap, rtol=1e-11, atol=1e-11)
    same = objectives.fisher_full_two_minibatches(delta, delta, score_p, eps, sigma)
    torch.testing.assert_close(same, objectives.fisher_full(delta, score_p, eps, sigma, SQUARED))


def test_noise_of_two_minibatches_averages_out_and_of_one_does_not(numbers):
    """Scores +xi and -xi with equal probability: the mean over all combinations is the loss without noise."""
    delta, xi, score_p, eps, sigma = numbers
    loss = objectives.fisher_full(delta, score_p, eps, sigma, SQUARED)
    signs = [(a, b) for a in (-1, 1) for b in (-1, 1)]
    two = sum(
        objectives.fisher_full_two_minibatches(delta + a * xi, delta + b * xi, score_p, eps, sigma)
        for a, b in signs
    )
    one = sum(objectives.fisher_full(delta + a * xi, score_p, eps, sigma, SQUARED) for a in (-1, 1))
    torch.testing.assert_close(two / 4, loss, rtol=1e-11, atol=1e-11)
    excess = 0.5 * xi.square().sum(-1).mean(-1)
    torch.testing.assert_close(one / 2 - loss, excess, rtol=1e-11, atol=1e-11)


def test_weighted_denoising_loss_is_sigma_squared_times_the_plain_one(numbers):
    _, _, score, eps, _ = numbers
    sigma = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(
        objectives.denoising_weighted(score, eps, sigma), sigma**2 * objectives.denoising(score, eps, sigma)
    )


def test_kl_surrogate_sends_the_frozen_slope_through_the_draws(numbers):
    delta, x, *_ = numbers
    for distance in DISTANCES:
        moving = x.clone().requires_grad_()
        objectives.kl(delta * moving.detach(), moving, distance).sum().backward()
        torch.testing.assert_close(moving.grad, distance.slope(delta * x) / x.shape[1])


@pytest.mark.parametrize("distance", DISTANCES, ids=lambda x: f"{x.name}-{x.scale}")
def test_slope_is_the_gradient_of_the_distance(numbers, distance):
    delta = (4 * numbers[0]).requires_grad_()
    value = distance.value(delta)
    assert value.shape == delta.shape[:-1]
    (gradient,) = torch.autograd.grad(value.sum(), delta)
    torch.testing.assert_close(distance.slope(delta), gradient, rtol=1e-12, atol=1e-12)


def test_pseudo_huber_tends_to_the_square_and_is_bounded_in_slope(numbers):
    delta = numbers[0]
    errors = []
    for scale in (1.0, 10.0, 100.0):
        huber = Distance("pseudo-huber", scale)
        errors.append(float((huber.value(delta) - SQUARED.value(delta)).abs().max()))
        # c^2 (sqrt(1 + r^2 / c^2) - 1) = r^2 / 2 - r^4 / (8 c^2) + ...
        bound = delta.square().sum(-1) ** 2 / (8 * scale**2 * 3)
        assert (SQUARED.value(delta) - huber.value(delta) <= bound + 1e-9).all()
        assert (huber.slope(1e6 * delta).norm(dim=-1) < scale * 3**0.5).all()
    assert errors[0] > 30 * errors[1] > 900 * errors[2] > 0
    torch.testing.assert_close(Distance("pseudo-huber", 1e4).slope(delta), delta, rtol=1e-6, atol=0)


# The trainer puts the pieces together: whitening, both networks' inputs, sigma, minibatches.


def trainer_gradients(problem: Affine, phase: str, **settings) -> tuple[Tensor, Tensor, Tensor]:
    """One generator step's gradient in (A, m, log sigma), its standard error and the exact gradient.

    The target is seen through a linear change of coordinates, the network parts of the generator are zero,
    and the score network is the exact score of the sampler. The chains are the independent batches.
    """
    d, chains = len(problem.m), 100
    rng = torch.Generator().manual_seed(5)
    scale = torch.randn(d, d, generator=rng, dtype=torch.float64) + 2 * torch.eye(d, dtype=torch.float64)
    mean = torch.randn(d, generator=rng, dtype=torch.float64)
    inverse = torch.linalg.inv(scale)

    def potential(x):
        u = inverse @ (x - mean)
        return 0.5 * (u - problem.mu) @ problem.precision @ (u - problem.mu)

    def minibatch_potential(x):
        u = inverse @ (x - mean)
        index = torch.randint(len(problem.y), (5,))
        residual = problem.y[index] - problem.rows[index] @ u
        return 0.5 * u @ u + len(problem.y) / 10 * residual.square().sum()

    target = Target(
        potential,
        d,
        dtype=torch.float64,
        forms=Forms(minibatch_potential if isinstance(problem, Regression) else None),
    )
    sampler = Sampler(mean.expand(chains, d), scale.expand(chains, d, d))
    # A knee far out makes the bounded KL force the plain one.
    options = Settings(
        batch_size=500,
        width=2,
        depth=1,
        **settings,
        experimental=Experimental(noise_mode="learned", huber_scale=1e6),
    )
    trainer = NetworkTrainer(target, sampler, options, rng)
    generator = trainer.generator
    with torch.no_grad():
        for parameter in generator.mlp.parameters():
            parameter.zero_()
        generator.matrix.copy_(problem.a.T)
        generator.shift.copy_(problem.m)
        generator.log_sigma.copy_(problem.sigma.log())
    trainer.score_network = lambda u, sigma: problem.score_p(u)
    caught = {}
    names = {p: n for n, p in generator.named_parameters()}
    weights = trainer._generator_weights
    weights.apply = lambda gradients, _rate: caught.update(
        {names[p]: g for p, g in zip(weights.parameters, gradients, strict=True)}
    )
    torch.manual_seed(6)
    trainer._generator_step(phase, 0.0, options.batch_size)
    found = torch.cat([caught[n].reshape(chains, -1) for n in ("matrix", "shift", "log_sigma")], 1)
    matrix, shift = (problem.kl_gradient() if phase == "kl" else problem.fisher_gradient())[1::-1]
    square = problem.precision if phase == "kl" else problem.precision @ problem.precision
    inverse_square = problem.inverse if phase == "kl" else problem.inverse @ problem.inverse
    log_sigma = problem.sigma**2 * (square - inverse_square).diagonal()
    return found.mean(0), found.std(0) / chains**0.5, flat((matrix.T, shift, log_sigma))


@pytest.mark.parametrize("phase", ["kl", "dft", "dft-paper"])
def test_trainer_steps_along_the_exact_gradient(phase):
    found, error, exact = trainer_gradients(Affine.random(0, 3), phase)
    assert_equal_in_distribution(found, error, exact)


def test_trainer_with_the_partial_objective_does_not():
    found, error, exact = trainer_gradients(Affine.random(0, 3), "fisher-partial")
    assert off_by(found, error, exact) > 15


@pytest.mark.parametrize("phase", ["kl", "dft"])
def test_trainer_with_minibatches_steps_along_the_full_data_gradient(phase):
    found, error, exact = trainer_gradients(Regression.random(1, 3), phase)
    assert_equal_in_distribution(found, error, exact, share=0.04)
