"""The formulas of the paper by quadrature: discrete latents by sums, the noise by the trapezoidal rule."""

from __future__ import annotations

import pytest
import torch
from closed_forms import DISTANCES, SQUARED, flat, uniform
from torch import Tensor

from pyro_dft.engine_torch import objectives

# Exact expectations: a latent with finitely many values and the trapezoidal rule over the noise.


class Discrete:
    """The sampler x = m + A z + b z^2 + sigma eps whose latent z takes K values: a mixture of K Gaussians.

    The target has log density sum(-x^2 / 2 - 1.5 cos x) - 0.3 x_1 x_2. Expectations are sums over `nodes`.
    """

    def __init__(self, d: int, seed: int = 0):
        rng = torch.Generator().manual_seed(seed)
        self.d, k = d, 5
        self.z = torch.randn(k, d, generator=rng, dtype=torch.float64)
        self.weights = torch.softmax(torch.randn(k, generator=rng, dtype=torch.float64), 0)
        self.parameters = [
            0.3 * torch.randn(d, generator=rng, dtype=torch.float64),
            torch.eye(d, dtype=torch.float64) + 0.3 * torch.randn(d, d, generator=rng, dtype=torch.float64),
            0.2 * torch.randn(d, generator=rng, dtype=torch.float64),
            uniform(rng, 0.5, 0.8, d).log(),
        ]
        for parameter in self.parameters:
            parameter.requires_grad_()
        # The trapezoidal rule converges geometrically for smooth integrands that vanish at both ends.
        node = torch.linspace(-8.5, 8.5, 801 if d == 1 else 171, dtype=torch.float64)
        grids = torch.meshgrid(*[node] * d, indexing="ij")
        self.eps = torch.stack([g.reshape(-1) for g in grids], 1)
        density = torch.softmax(-0.5 * self.eps.square().sum(-1), 0)
        self.nodes = (self.weights[:, None] * density).reshape(-1)

    @property
    def sigma(self) -> Tensor:
        return self.parameters[3].exp()

    @property
    def centres(self) -> Tensor:
        m, a, b, _ = self.parameters
        return m + self.z @ a.T + b * self.z**2

    def draws(self) -> tuple[Tensor, Tensor]:
        """All pairs (x, eps), (nodes, d)."""
        x = self.centres[:, None] + self.sigma * self.eps
        return x.reshape(-1, self.d), self.eps.expand(len(self.z), -1, -1).reshape(-1, self.d)

    def log_p(self, x: Tensor, centres: Tensor, sigma: Tensor) -> Tensor:
        squares = ((x[:, None] - centres) / sigma).square().sum(-1)
        return torch.logsumexp(self.weights.log() - 0.5 * squares, 1) - sigma.log().sum()

    def score_p(self, x: Tensor, frozen: bool = True) -> Tensor:
        """Exact score of the sampler's density, with its parameters frozen or not."""
        centres, sigma = self.centres, self.sigma
        if frozen:
            centres, sigma = centres.detach(), sigma.detach()
        difference = (centres - x[:, None]) / sigma
        share = torch.softmax(self.weights.log() - 0.5 * difference.square().sum(-1), 1)
        return (share[..., None] * difference).sum(1) / sigma

    def log_q(self, x: Tensor) -> Tensor:
        coupling = 0.3 * x[:, 0] * x[:, 1] if self.d > 1 else 0.0
        return (-0.5 * x**2 - 1.5 * x.cos()).sum(-1) - coupling

    def score_q(self, x: Tensor) -> Tensor:
        score = -x + 1.5 * x.sin()
        return score - 0.3 * x.flip(-1) if self.d > 1 else score

    def mean(self, values: Tensor) -> Tensor:
        return (self.nodes * values).sum()

    def gradient(self, value: Tensor) -> Tensor:
        return flat(torch.autograd.grad(value, self.parameters))


def each(x: Tensor) -> Tensor:
    """(nodes, d) -> (nodes, 1, d): every node a chain with one draw, so that nothing is averaged."""
    return x[:, None]


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("distance", DISTANCES, ids=lambda x: f"{x.name}-{x.scale}")
def test_theorem_1_by_quadrature(d, distance):
    """The gradient of L_full is that of E d(s_p - s_q), for curved samplers, any distance, sigma included."""
    sampler = Discrete(d)
    x, eps = sampler.draws()
    moving = distance.value(sampler.score_p(x, frozen=False) - sampler.score_q(x))
    expected = sampler.gradient(sampler.mean(moving))
    x, eps = sampler.draws()
    score_p = sampler.score_p(x)
    delta = score_p - sampler.score_q(x)
    losses = objectives.fisher_full(each(delta), each(score_p), each(eps), sampler.sigma, distance)
    found = sampler.gradient(sampler.mean(losses))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    # The first term alone is something else.
    x, eps = sampler.draws()
    partial = objectives.fisher_partial(each(sampler.score_p(x) - sampler.score_q(x)), distance)
    assert (sampler.gradient(sampler.mean(partial)) - expected).norm() > 0.1 * expected.norm()


@pytest.mark.parametrize("d", [1, 2])
def test_kl_by_quadrature(d):
    sampler = Discrete(d, seed=1)
    x, _ = sampler.draws()
    divergence = sampler.mean(sampler.log_p(x, sampler.centres, sampler.sigma) - sampler.log_q(x))
    expected = sampler.gradient(divergence)
    x, _ = sampler.draws()
    delta = sampler.score_p(x) - sampler.score_q(x)
    surrogate = sampler.mean(objectives.kl(each(delta), each(x), SQUARED))
    torch.testing.assert_close(sampler.gradient(surrogate), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("d", [1, 2])
def test_score_projection_by_quadrature(d):
    """Lemma 2: s_p + eps / sigma is orthogonal to every function of x."""
    sampler = Discrete(d)
    with torch.no_grad():
        x, eps = sampler.draws()
        for u in (x, x.sin(), x.flip(-1) ** 2, torch.ones_like(x), sampler.score_q(x)):
            inner = (u * (sampler.score_p(x) + eps / sampler.sigma)).sum(-1)
            assert abs(sampler.mean(inner)) < 1e-7


@pytest.mark.parametrize("d", [1, 2])
def test_denoising_losses_are_least_at_the_sampler_score(d):
    """J(s_p + h) - J(s_p) = E 1/2 |h|^2, and the same for the weighted loss with sigma h."""
    sampler = Discrete(d)
    with torch.no_grad():
        x, eps = sampler.draws()
        sigma, score, h = sampler.sigma, sampler.score_p(x), 0.3 * x.sin() - 0.1
        for loss, size in ((objectives.denoising, h), (objectives.denoising_weighted, sigma * h)):
            values = [loss(each(s), each(eps), sigma) for s in (score + h, score)]
            excess = sampler.mean(values[0] - values[1])
            torch.testing.assert_close(excess, sampler.mean(0.5 * size.square().sum(-1)), rtol=1e-7, atol=0)


@pytest.mark.parametrize("d", [1, 2])
def test_fisher_gap_is_a_lower_bound_of_the_fisher_divergence(d):
    """F - gap = E 1/2 |s_phi - s_p|^2, whatever the score network says."""
    sampler = Discrete(d)
    with torch.no_grad():
        x, eps = sampler.draws()
        score_p, score_q = sampler.score_p(x), sampler.score_q(x)
        fisher = sampler.mean(0.5 * (score_p - score_q).square().sum(-1))
        for network in (score_p, score_q, -x, torch.zeros_like(x), score_p + 0.2 * x.cos()):
            gap = sampler.mean(objectives.fisher_gap(each(score_q), each(network), each(eps), sampler.sigma))
            shortfall = sampler.mean(0.5 * (network - score_p).square().sum(-1))
            torch.testing.assert_close(gap, fisher - shortfall, rtol=1e-7, atol=1e-8)
            assert gap <= fisher + 1e-8
