"""The sampler and its networks: noise in, draws out; chains apart; arrays in and out."""

from __future__ import annotations

import pytest
import torch

from pyro_dft.engine_torch import sampler as sampler_module
from pyro_dft.engine_torch.networks import ChainLinear, Generator, ResidualMLP, ScoreNetwork
from pyro_dft.engine_torch.sampler import Sampler

C, D = 3, 4


@pytest.fixture
def rng(device):
    return torch.Generator(device=device).manual_seed(0)


@pytest.fixture
def gaussian(rng, dtype, device):
    mean = torch.randn(C, D, generator=rng, dtype=dtype, device=device)
    scale = torch.randn(C, D, D, generator=rng, dtype=dtype, device=device)
    return Sampler(mean, scale)


@pytest.fixture
def trained(gaussian, rng, dtype):
    """A sampler with a network that is no longer near the identity."""
    generator = Generator(C, D, 16, 3, 0.2, rng=rng, dtype=dtype).requires_grad_(False)
    for parameter in generator.parameters():
        parameter.add_(
            0.3 * torch.randn(parameter.shape, generator=rng, dtype=dtype, device=parameter.device)
        )
    return Sampler(gaussian.mean, gaussian.scale, generator)


def test_gaussian_draws_are_mean_plus_scale_times_noise(gaussian, rng):
    z, eps = gaussian.whitened_noise(5, rng)
    assert z.shape == (C, 5, D)
    draws = gaussian.transport(z, eps)
    for c in range(C):
        torch.testing.assert_close(draws[c], gaussian.mean[c] + z[c] @ gaussian.scale[c].T)


def test_network_draws_are_the_formula(trained, rng):
    z, eps = trained.whitened_noise(5, rng)
    generator = trained.generator
    u = generator(z) + generator.log_sigma.exp() * eps
    expected = trained.mean[:, None] + u @ trained.scale.mT
    torch.testing.assert_close(trained.transport(z, eps), expected)
    affine = generator.shift + z @ generator.matrix
    torch.testing.assert_close(generator(z), affine + generator.mlp(z))


def test_draws_have_the_covariance_of_signal_and_noise(gaussian, rng, dtype, device):
    """Without the hidden layers u = z A + sigma eps: covariance A'A + sigma^2."""
    generator = Generator(C, D, 4, 1, 0.5, rng=rng, dtype=dtype).requires_grad_(False)
    for parameter in generator.mlp.parameters():
        parameter.zero_()
    n = 40_000
    eye = torch.eye(D, dtype=dtype, device=device).expand(C, D, D)
    draws = Sampler(torch.zeros_like(gaussian.mean), eye, generator).draw(n, rng)
    covariance = draws.mT @ draws / n
    expected = eye * 1.25
    # Standard error of a covariance: at most sqrt(2 / n) times the variance.
    assert (covariance - expected).abs().max() < 4 * 1.25 * (2 / n) ** 0.5
    assert (draws.mean(1).abs() < 4 * (1.25 / n) ** 0.5).all()


def test_draws_do_not_depend_on_the_chains_beside(trained):
    """A sampler of chain 1 alone transports the same noise to the same draws."""
    rng = torch.Generator(device=trained.mean.device).manual_seed(1)
    z, eps = trained.whitened_noise(6, rng)
    alone = Generator(1, D, 16, 3, 1.0, rng=rng, dtype=trained.dtype).requires_grad_(False)
    alone.load_state_dict({k: v[1:2] for k, v in trained.generator.state_dict().items()})
    one = Sampler(trained.mean[1:2], trained.scale[1:2], alone)
    torch.testing.assert_close(one.transport(z[1:2], eps[1:2])[0], trained.transport(z, eps)[1])


@pytest.mark.parametrize("kind", ["gaussian", "trained"])
def test_arrays_bring_the_sampler_back(kind, request, device):
    sampler = request.getfixturevalue(kind)
    arrays = sampler.to_arrays()
    back = Sampler.from_arrays(arrays, width=16, depth=3, device=device)
    assert back.dtype == sampler.dtype
    assert (back.chains, back.dim) == (C, D)
    z, eps = sampler.whitened_noise(7, torch.Generator(device=device).manual_seed(2))
    assert torch.equal(back.transport(z, eps), sampler.transport(z, eps))
    first, second = (s.draw(11, torch.Generator(device=device).manual_seed(3)) for s in (sampler, back))
    assert torch.equal(first, second)
    # The arrays are copies: what happens to the sampler later does not change them.
    kept = arrays["mean"].copy()
    arrays["mean"] += 1
    assert (back.mean.cpu().numpy() == kept).all()


def test_shapes_of_the_arrays_are_known_beforehand(trained, gaussian):
    found = {k: v.shape for k, v in trained.to_arrays().items()}
    expected = Sampler.generator_shapes(C, D, 16, 3)
    assert found == expected | {"mean": (C, D), "scale": (C, D, D)}
    assert set(gaussian.to_arrays()) == {"mean", "scale"}


def test_draws_come_in_blocks(trained, rng, monkeypatch):
    monkeypatch.setattr(sampler_module, "CHUNK", 30)
    sizes = [block.shape for block in trained.blocks(25, rng)]
    assert sizes == [(C, 10, D), (C, 10, D), (C, 5, D)]
    assert trained.draw(25, rng).shape == (C, 25, D)
    monkeypatch.setattr(sampler_module, "CHUNK", 1)
    assert trained.draw(2, rng).shape == (C, 2, D)


def test_draws_carry_no_graph(trained, rng):
    trained.generator.requires_grad_(True)
    assert not trained.draw(3, rng).requires_grad


def test_the_generator_starts_near_the_identity(rng, dtype, device):
    generator = Generator(C, D, 64, 2, 0.1, rng=rng, dtype=dtype)
    z = torch.randn(C, 500, D, generator=rng, dtype=dtype, device=device)
    assert (generator(z) - z).abs().max() < 0.2
    assert generator.sigma.shape == (C, 1, D)
    torch.testing.assert_close(generator.sigma, torch.full((C, 1, D), 0.1, dtype=dtype, device=device))
    # Sigma is trained on request only.
    assert not generator.log_sigma.requires_grad
    # The chains start from different weights.
    weight = generator.mlp.hidden[0].weight
    assert not torch.equal(weight[0], weight[1])


def test_the_score_network_starts_at_the_score_of_the_generator(rng, dtype, device):
    network = ScoreNetwork(C, D, 64, 2, rng=rng, dtype=dtype)
    x = torch.randn(C, 500, D, generator=rng, dtype=dtype, device=device)
    sigma = torch.full((C, 1, D), 0.5, dtype=dtype, device=device, requires_grad=True)
    score = network(x, sigma)
    assert (score + x / 1.25).abs().max() < 0.2
    # It stands for the score at the present parameters: sigma gets no gradient through it.
    assert torch.autograd.grad(score.sum(), sigma, allow_unused=True) == (None,)


def test_chains_of_a_layer_share_nothing(rng, dtype, device):
    layer = ChainLinear(C, 2, 5, gain=1.0, rng=rng, dtype=dtype)
    x = torch.randn(C, 7, 2, generator=rng, dtype=dtype, device=device)
    out = layer(x)
    assert out.shape == (C, 7, 5)
    (gradient,) = torch.autograd.grad(out[1].sum(), layer.weight)
    assert (gradient[1] != 0).all()
    assert (gradient[[0, 2]] == 0).all()
    with torch.no_grad():
        layer.weight[0] = torch.nan
    assert torch.equal(layer(x)[1:], out[1:])


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_depth_is_the_number_of_hidden_layers(rng, dtype, depth):
    mlp = ResidualMLP(1, 2, 3, 8, depth, rng=rng, dtype=dtype)
    assert len(mlp.hidden) == depth
    assert mlp(torch.zeros(1, 4, 2, dtype=dtype, device=rng.device)).shape == (1, 4, 3)
