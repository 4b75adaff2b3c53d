"""Both engines compute the same thing: same weights and same noise, in float64, to 1e-10."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from both_engines import (
    SETTINGS,
    TOLERANCE,
    B,
    C,
    D,
    close,
    numbers,
    torch_potential,
    torch_target,
    torch_trainer,
    weights_of,
)
from daily import daily

from pyro_dft.engine_jax import objectives as jax_objectives
from pyro_dft.engine_jax import precondition as jax_precondition
from pyro_dft.engine_jax import refine as jax_refine
from pyro_dft.engine_jax import step as jax_step
from pyro_dft.engine_jax.sampler import Sampler as JaxSampler
from pyro_dft.engine_jax.target import Target as JaxTarget
from pyro_dft.engine_torch import refine as torch_refine
from pyro_dft.engine_torch import train as torch_train
from pyro_dft.engine_torch.sampler import Sampler as TorchSampler
from pyro_dft.engine_torch.target import Target as TorchTarget
from pyro_dft.experimental import grouped
from pyro_dft.recipe.engine import Forms
from pyro_dft.recipe.natural_gradient import State
from pyro_dft.settings import Settings


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def jax_potential(x, data):
    return 0.5 * x[0] ** 2 + 2 * (x[1] - x[0] ** 2) ** 2 + jnp.cos(x[2]) + 0.25 * x[2] ** 4


def jax_target(hvp="exact"):
    return JaxTarget(jax_potential, D, dtype=np.float64, hvp=hvp)


@pytest.fixture
def feed(monkeypatch):
    """Feeds arrays to torch's random functions, in order."""

    def start(*arrays):
        queue = [torch.as_tensor(a) for a in arrays]

        def serve(*shape, **_):
            shape = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else tuple(shape)
            value = queue.pop(0)
            assert tuple(value.shape) == shape
            return value.clone()

        monkeypatch.setattr(torch, "randn", serve)
        monkeypatch.setattr(torch, "rand", serve)
        return queue

    return start


PHASES = [
    *((phase, 0.0) for phase in ("kl", "dft", "dft-paper", "fisher-partial")), ("kl", 0.1), ("dft", 0.9),
]  # fmt: skip


STEPS = [(*one, distance) for one in PHASES for distance in ("squared", "pseudo-huber")]


OTHER_DISTANCE = ("dft", 0.0, "pseudo-huber")


@pytest.mark.parametrize(
    ("phase", "averaging", "distance"),
    daily(STEPS, OTHER_DISTANCE, *(one for one in STEPS if one[2] == "squared")),
)
def test_a_training_step_agrees(phase, averaging, distance, feed):
    trainer, settings = torch_trainer(phase, distance, averaging)
    generator, score = weights_of(trainer.generator), weights_of(trainer.score_network)
    average = weights_of(trainer.average) if averaging else ()
    target, hyper = jax_target(), jax_step.Hyper(*(float(v) for v in jax_step.Hyper.of(settings)))
    hyper = hyper._replace(learning_rate=settings.learning_rate, dft_learning_rate=settings.experimental.dft_learning_rate,
                           score_learning_rate=settings.experimental.score_learning_rate,
                           settle_fraction=settings.experimental.settle_fraction)  # fmt: skip
    noise = numbers(2, 2, C, B, D, seed=2)  # score step, generator step; z, eps
    at = jax_step.Whitened((), *(jnp.asarray(v.numpy()) for v in (trainer.mean, trainer.scale)))

    # The losses and their gradients.
    distance_of = jax_objectives.Distance(distance, settings.experimental.huber_scale)

    def generator_loss(weights):
        return jax_step.generator_loss(
            target.spec, phase, distance_of, at, weights, score, jax_step.Noise(noise[1, 0], noise[1, 1]), None
        )[0].sum()  # fmt: skip

    seen = []
    for weights in (trainer._score_weights, trainer._generator_weights):
        weights.apply = lambda gradients, rate, own=weights.apply: (
            seen.append(gradients) or own(gradients, rate)
        )
    score_gradient = jax.grad(
        lambda w: jax_step.score_loss(w, generator, jax_step.Noise(noise[0, 0], noise[0, 1])).sum()
    )(score)
    feed(noise[0, 0], noise[0, 1], noise[1, 0], noise[1, 1])
    done = 0.25
    loss = trainer.step(phase, done)
    for gradient, (name, _) in zip(seen[0], trainer.score_network.named_parameters(), strict=True):
        assert close(gradient, score_gradient[name])

    # The whole step: Adam, clipping, learning rates.
    plan = jax_step.Plan.of(settings)
    state = jax_step.NetworkState(
        generator, score, jax_step.GENERATOR_ADAM.init(generator), jax_step.SCORE_ADAM.init(score),
        jnp.full(C, jnp.nan), jnp.zeros((), jnp.int32), average,
    )  # fmt: skip
    original = jax_step.random.normal
    jax_step.random.normal = lambda *_: jnp.asarray(noise[::-1])  # first the generator's, then the score's
    try:
        state, gap = jax_step.step(target.spec, plan, phase, at, state, hyper, done, jnp.zeros(2, jnp.uint32))
    finally:
        jax_step.random.normal = original
    assert np.allclose(loss, float(gap), **TOLERANCE)
    for name, value in trainer.generator.state_dict().items():
        assert close(value, state.generator[name]), name
    for name, value in trainer.score_network.state_dict().items():
        assert close(value, state.score[name]), name
    for name, value in trainer.trained.state_dict().items():
        assert close(value, state.trained[name]), name
        keep = min(averaging, 2 / 11)  # the first step's
        expected = keep * average[name] + (1 - keep) * state.generator[name] if averaging else value
        assert close(value, expected), name

    # The generator's gradient, at the score network after its step.
    score = state.score
    expected = jax.grad(generator_loss)(generator)
    for gradient, (name, _) in zip(
        seen[1], [(n, p) for n, p in trainer.generator.named_parameters() if p.requires_grad], strict=True
    ):
        assert close(gradient, expected[name])


@pytest.mark.parametrize("phase", ["kl", "dft-paper", "fisher-partial"])
def test_gradients_at_noise_levels_agree(phase, feed):
    def torch_smoothed(x, sigma):
        return torch_potential(x) / (1 + sigma**2)

    def jax_smoothed(x, sigma, data):
        return jax_potential(x, data) / (1 + sigma**2)

    settings = Settings(
        **grouped(
            {
                **SETTINGS,
                "objective": phase,
                "precondition": "never",
                "noise_mode": "levels",
                "noise_start": 2.0,
            }
        )
    )
    sampler = TorchSampler(
        torch.as_tensor(numbers(C, D, seed=4)), torch.eye(D, dtype=torch.float64).expand(C, D, D)
    )
    target = TorchTarget(
        torch_potential, D, dtype=torch.float64, trace=False, forms=Forms(smoothed=torch_smoothed)
    )
    trainer = torch_train.NetworkTrainer(target, sampler, settings, torch.Generator().manual_seed(0))
    share, z, eps = (
        np.random.default_rng(0).uniform(size=(C, B, 1)),
        numbers(C, B, D, seed=1),
        numbers(C, B, D, seed=2),
    )
    generator, score = weights_of(trainer.generator), weights_of(trainer.score_network)
    seen = []
    trainer._generator_weights.apply = lambda gradients, rate: seen.extend(gradients)
    feed(z, eps, share)
    trainer._generator_step(phase, 0.0, B)
    spec = JaxTarget(jax_potential, D, dtype=np.float64, hvp="exact", forms=Forms(smoothed=jax_smoothed)).spec
    own = settings.experimental
    level = jnp.asarray(own.noise * (own.noise_start / own.noise) ** share)
    at = jax_step.Whitened((), *(jnp.asarray(v.numpy()) for v in (trainer.mean, trainer.scale)))
    distance = jax_objectives.Distance("squared", settings.experimental.huber_scale)

    def loss(weights):
        return jax_step.generator_loss(
            spec, phase, distance, at, weights, score, jax_step.Noise(z, eps, level), None
        )[0].sum()  # fmt: skip

    expected = jax.grad(loss)(generator)
    names = [name for name, p in trainer.generator.named_parameters() if p.requires_grad]
    for name, gradient in zip(names, seen, strict=True):
        assert close(gradient, expected[name]), name


@pytest.mark.parametrize("averaging", [None, 3])
@pytest.mark.parametrize("full", [True, False])
def test_preconditioner_steps_agree(full, averaging):
    starts, sds = numbers(4, D, seed=5), np.array([0.1, 1.0, 0.5, 2.0])
    own = State.start(starts, sds, full=full)
    limit = jax_precondition.FULL_RANK_LIMIT
    jax_precondition.FULL_RANK_LIMIT = limit if full else 0
    try:
        state = jax_precondition.start(starts, sds, 100)
    finally:
        jax_precondition.FULL_RANK_LIMIT = limit
    spec = jax_target().spec
    for k in range(6):
        half = numbers(4, 32, D, seed=20 + k)
        both = np.concatenate([half, -half], 1)
        log_q, score = (v.numpy() for v in torch_target().evaluate(torch.as_tensor(own.points(both))))
        own.advance(both, log_q, score, averaging, minibatch=False)
        noise = jnp.asarray(both)
        log_q, score = spec.evaluate(jax_precondition.draw(state, noise), ())
        state = jax_precondition.advance(
            state, noise, log_q, score, jnp.asarray(-1 if averaging is None else averaging), minibatch=False
        )
        assert close(own.mean, state.mean)
        if full:  # the square root itself depends on the signs of eigenvectors, which no library promises
            assert close(own.scale @ own.scale.swapaxes(1, 2), state.scale @ state.scale.mT)
            state = state._replace(scale=jnp.asarray(own.scale), last=jnp.asarray(own.last))
        else:
            assert close(own.scale, state.scale)
        for name in ("rate", "best", "log_det", "reach"):
            assert close(getattr(own, name), getattr(state, name)), name


def test_a_refinement_step_agrees(feed):
    x, scale = numbers(C, B, D, seed=6), numbers(C, D, D, seed=7) * 0.2 + np.eye(D)
    stretch, accept = np.random.default_rng(8).uniform(size=(2, C, B))
    momentum, step_size = numbers(C, B, D, seed=9), np.array([0.3, 0.6])
    feed(stretch, momentum, accept)
    target, points = torch_target(), torch.as_tensor(x)
    position = (points, *target.evaluate(points))
    kernel = torch_refine.Kernel(target, position, torch.as_tensor(scale), 5, torch.Generator())
    take, probability, error = kernel.transition(torch.as_tensor(step_size))
    spec = jax_target().spec
    position = jax_refine.Position(jnp.asarray(x), *spec.evaluate(jnp.asarray(x), ()))
    noise = tuple(map(jnp.asarray, (stretch, momentum, accept)))
    found = jax_refine.transition(spec, (), position, jnp.asarray(scale), jnp.asarray(step_size), noise, 5)
    assert close(kernel.x, found[0].x)
    assert close(kernel.log_q, found[0].log_q)
    assert close(take, found[1])
    assert close(probability, found[2])
    assert close(error, found[3])
    assert 0 < int(take.sum()) < take.numel()


def test_whitening_agrees():
    draws = numbers(C, 50, D, seed=3) @ (numbers(D, D, seed=4) + 2 * np.eye(D))
    one = torch_refine.whitening(torch.as_tensor(draws), torch.eye(D, dtype=torch.float64).expand(C, -1, -1))
    assert close(one, jax_refine.whitening(draws, np.tile(np.eye(D), (C, 1, 1))))


def test_sampler_arrays_of_one_engine_draw_alike_in_the_other():
    trainer, settings = torch_trainer("kl")
    one = trainer.sampler()
    two = JaxSampler.from_arrays(one.to_arrays())
    z, eps = numbers(2, C, 20, D, seed=1)
    draws = one.transport(torch.as_tensor(z), torch.as_tensor(eps))
    assert close(draws, two.transport(z, eps))
    back = TorchSampler.from_arrays(two.to_arrays(), width=settings.width, depth=settings.depth)
    assert close(draws, back.transport(torch.as_tensor(z), torch.as_tensor(eps)))
