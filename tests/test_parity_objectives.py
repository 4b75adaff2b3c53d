"""Both engines compute the same objectives: same weights and same noise, in float64, to 1e-10."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from both_engines import B, C, D, close, numbers, torch_trainer, weights_of

from pyro_dft.engine_jax import networks as jax_networks
from pyro_dft.engine_jax import objectives as jax_objectives
from pyro_dft.engine_jax import step as jax_step
from pyro_dft.engine_torch import objectives as torch_objectives
from pyro_dft.engine_torch import train as torch_train
from pyro_dft.engine_torch.networks import LevelScoreNetwork
from pyro_dft.experimental import Experimental
from pyro_dft.settings import Settings


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def test_networks_agree():
    trainer, _ = torch_trainer("kl")
    z = numbers(C, B, D, seed=1)
    generator, score = weights_of(trainer.generator), weights_of(trainer.score_network)
    assert {k: v.shape for k, v in generator.items()} == jax_networks.generator_shapes(C, D, 7, 2)
    assert close(trainer.generator(torch.as_tensor(z)), jax_networks.generate(generator, z))
    sigma = trainer.generator.sigma
    assert close(sigma, jax_networks.sigma(generator))
    assert close(
        trainer.score_network(torch.as_tensor(z), sigma),
        jax_networks.score(score, z, jax_networks.sigma(generator)),
    )


FORMULAS = {
    "denoising": (3, ()),
    "denoising_weighted": (3, ()),
    "fisher_full": (4, ("distance",)),
    "fisher_full_two_minibatches": (5, ()),
    "fisher_partial": (1, ("distance",)),
    "kl": (2, ("distance",)),
    "kl_levels": (3, ("distance",)),
    "fisher_gap": (4, ()),
}


@pytest.mark.parametrize(
    ("name", "distance"),
    [
        (name, distance)
        for name, (_, extra) in sorted(FORMULAS.items())
        for distance in (("squared", "pseudo-huber") if extra else ("squared",))
    ],
)
def test_objectives_and_their_gradients_agree(name, distance):
    count, extra = FORMULAS[name]
    arrays = [numbers(C, B, D, seed=k) for k in range(count)]
    if name in (
        "denoising",
        "denoising_weighted",
        "fisher_full",
        "fisher_full_two_minibatches",
        "fisher_gap",
        "kl_levels",
    ):
        arrays[-1] = np.exp(0.3 * numbers(C, 1, D, seed=9))  # sigma
    options = [("distance", distance)] if extra else []
    one = [torch_objectives.Distance(distance, 2.0) for _ in options]
    two = [jax_objectives.Distance(distance, 2.0) for _ in options]
    inputs = [torch.as_tensor(a).requires_grad_() for a in arrays]
    value = getattr(torch_objectives, name)(*inputs, *one)
    gradients = torch.autograd.grad(value.sum(), inputs, allow_unused=True)

    def function(*own):
        return getattr(jax_objectives, name)(*own, *two)

    assert close(value, function(*map(jnp.asarray, arrays)))
    found = jax.grad(lambda *own: function(*own).sum(), argnums=tuple(range(count)))(
        *map(jnp.asarray, arrays)
    )
    for a, b in zip(gradients, found, strict=True):
        assert close(torch.zeros(b.shape, dtype=torch.float64) if a is None else a, b)


@pytest.mark.parametrize("name", ["denoising", "fisher_full", "fisher_partial", "fisher_gap"])
def test_levels_are_weighted_alike(name):
    """A weight for each point, which multiplies what that point adds."""
    count, extra = FORMULAS[name]
    arrays = [numbers(C, B, D, seed=k) for k in range(count)]
    if name != "fisher_partial":
        arrays[-1] = np.exp(0.3 * numbers(C, B, 1, seed=9))
    weight = np.exp(numbers(C, B, seed=8))
    one = torch_objectives.Distance("pseudo-huber", 2.0)
    two = jax_objectives.Distance("pseudo-huber", 2.0)
    left = [torch.as_tensor(a) for a in arrays] + ([one] if extra else [])
    right = [jnp.asarray(a) for a in arrays] + ([two] if extra else [])
    weighted = getattr(torch_objectives, name)(*left, weight=torch.as_tensor(weight))
    assert close(weighted, getattr(jax_objectives, name)(*right, weight=jnp.asarray(weight)))
    # By hand: the same function of one point at a time.
    each = [
        getattr(torch_objectives, name)(
            *(v[:, i : i + 1] if isinstance(v, torch.Tensor) else v for v in left)
        )
        for i in range(B)
    ]
    assert close(weighted, (torch.stack(each, 1) * torch.as_tensor(weight)).mean(1))


def test_score_networks_of_levels_agree():
    rng = torch.Generator().manual_seed(0)
    network = LevelScoreNetwork(C, D, 7, 2, rng=rng, dtype=torch.float64)
    x, sigma = numbers(C, B, D, seed=1), np.exp(numbers(C, B, 1, seed=2))
    found = jax_networks.score(weights_of(network), x, jnp.asarray(sigma), levels=True)
    assert close(network(torch.as_tensor(x), torch.as_tensor(sigma)), found)
    started = jax_networks.init_mlp(jnp.zeros(2, jnp.uint32), C, D, 7, 2, np.float64, 1)
    assert {k: v.shape for k, v in started.items()} == {k: v.shape for k, v in weights_of(network).items()}


@pytest.mark.parametrize("done", [0.0, 0.4, 0.79, 0.8, 0.9, 0.999])
@pytest.mark.parametrize("settle", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("phase", ["kl", "dft", "dft-paper", "fisher-partial"])
def test_learning_rates(phase, settle, done):
    """Written out once more; both engines have these."""
    settings = Settings(experimental=Experimental(settle_fraction=settle))

    def cosine(share):
        return 0.5 * (1 + np.cos(np.pi * share))

    if phase == "kl" and done >= 1 - settle and settle > 0:
        share = (done - 1 + settle) / settle
        expected = 1e-4 * (0.01 + 0.99 * cosine(share)), 9e-4 * (0.05 + 0.95 * cosine(share))
    elif phase == "kl":
        share = done / (1 - settle)
        expected = 3e-3 * (0.01 + 0.99 * cosine(share)), 3e-3 * (0.05 + 0.95 * cosine(share))
    else:
        factor = 0.3 if phase == "dft" else 1.0
        expected = factor * 3e-4 * (0.1 + 0.9 * cosine(done)), factor * 3e-3 * (0.05 + 0.95 * cosine(done))
    assert torch_train.rates(phase, settings, done) == pytest.approx(expected, rel=1e-9)
    if phase == "dft":  # alone, it has no trained networks to follow
        alone = [rate / factor for rate in expected]
        only = replace(settings, objective="dft")
        assert torch_train.rates(phase, only, done) == pytest.approx(alone, rel=1e-9)
        assert [float(r) for r in jax_step.rates(phase, jax_step.Hyper.of(only), done)] == pytest.approx(
            alone, rel=1e-6
        )
        assert not jax_step.Plan.of(only).after_kl(phase)
    groups = (settings, settings.experimental)
    hyper = jax_step.Hyper(*(
        next(float(getattr(group, name)) for group in groups if hasattr(group, name))
        for name in jax_step.Hyper._fields
    ))  # fmt: skip
    assert [float(r) for r in jax_step.rates(phase, hyper, done, after_kl=phase == "dft")] == pytest.approx(
        expected, rel=1e-9
    )
