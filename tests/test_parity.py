"""Both engines compute the same thing: same weights and same noise, in float64, to 1e-10."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from daily import daily

from pyro_dft.engine_jax import networks as jax_networks
from pyro_dft.engine_jax import objectives as jax_objectives
from pyro_dft.engine_jax import precondition as jax_precondition
from pyro_dft.engine_jax import refine as jax_refine
from pyro_dft.engine_jax import train as jax_train
from pyro_dft.engine_jax.sampler import Sampler as JaxSampler
from pyro_dft.engine_jax.target import Target as JaxTarget
from pyro_dft.engine_torch import objectives as torch_objectives
from pyro_dft.engine_torch import refine as torch_refine
from pyro_dft.engine_torch import train as torch_train
from pyro_dft.engine_torch.networks import LevelScoreNetwork
from pyro_dft.engine_torch.sampler import Sampler as TorchSampler
from pyro_dft.engine_torch.target import Target as TorchTarget
from pyro_dft.recipe.natural_gradient import State
from pyro_dft.settings import Settings

C, B, D = 2, 12, 3
SETTINGS = {
    "width": 7,
    "depth": 2,
    "batch_size": B,
    "final_batch_factor": 1,
    "score_steps": 1,
    "compile": "never",
}
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def torch_potential(x):
    return 0.5 * x[0] ** 2 + 2 * (x[1] - x[0] ** 2) ** 2 + torch.cos(x[2]) + 0.25 * x[2] ** 4


def jax_potential(x, data):
    return 0.5 * x[0] ** 2 + 2 * (x[1] - x[0] ** 2) ** 2 + jnp.cos(x[2]) + 0.25 * x[2] ** 4


def jax_target(hvp="exact"):
    return JaxTarget(jax_potential, D, dtype=np.float64, hvp=hvp)


def torch_target():
    return TorchTarget(torch_potential, D, dtype=torch.float64, trace=False)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def close(a, b):
    a = a.detach().numpy() if isinstance(a, torch.Tensor) else np.asarray(a)
    b = b.detach().numpy() if isinstance(b, torch.Tensor) else np.asarray(b)
    return a.shape == b.shape and np.allclose(a, b, **TOLERANCE)


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


def torch_trainer(phase, distance="squared", averaging=0.0):
    objective = "auto" if phase in ("kl", "dft") else phase
    settings = Settings(**SETTINGS, objective=objective, distance=distance, averaging=averaging)
    scale = numbers(C, D, D, seed=3) * 0.3 + np.eye(D)
    sampler = TorchSampler(torch.as_tensor(numbers(C, D, seed=4)), torch.as_tensor(scale))
    rng = torch.Generator().manual_seed(0)
    trainer = torch_train.NetworkTrainer(torch_target(), sampler, settings, rng)
    with torch.no_grad():  # weights away from the special start
        for k, p in enumerate([*trainer.generator.parameters(), *trainer.score_network.parameters()]):
            p.add_(0.1 * torch.as_tensor(numbers(*p.shape, seed=10 + k)))
    return trainer, settings


def weights_of(module):
    return {k: jnp.asarray(v.detach().numpy()) for k, v in module.state_dict().items()}


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
    settings = Settings(settle_fraction=settle)

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
        assert [float(r) for r in jax_train.rates(phase, jax_train.Hyper.of(only), done)] == pytest.approx(
            alone, rel=1e-6
        )
        assert not jax_train.Plan.of(only).after_kl(phase)
    hyper = jax_train.Hyper(*(float(getattr(settings, name)) for name in jax_train.Hyper._fields))
    assert [float(r) for r in jax_train.rates(phase, hyper, done, after_kl=phase == "dft")] == pytest.approx(
        expected, rel=1e-9
    )


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
    target, hyper = jax_target(), jax_train.Hyper(*(float(v) for v in jax_train.Hyper.of(settings)))
    hyper = hyper._replace(learning_rate=settings.learning_rate, dft_learning_rate=settings.dft_learning_rate,
                           score_learning_rate=settings.score_learning_rate,
                           settle_fraction=settings.settle_fraction)  # fmt: skip
    noise = numbers(2, 2, C, B, D, seed=2)  # score step, generator step; z, eps
    mean, scale = (jnp.asarray(v.numpy()) for v in (trainer.mean, trainer.scale))

    # The losses and their gradients.
    distance_of = jax_objectives.Distance(distance, settings.huber_scale)

    def generator_loss(weights):
        return jax_train.generator_loss(
            target.spec, phase, distance_of, (), mean, scale, weights, score, noise[1, 0], noise[1, 1], None
        )[0].sum()  # fmt: skip

    seen = []
    for weights in (trainer._score_weights, trainer._generator_weights):
        weights.apply = lambda gradients, rate, own=weights.apply: (
            seen.append(gradients) or own(gradients, rate)
        )
    score_gradient = jax.grad(lambda w: jax_train.score_loss(w, generator, noise[0, 0], noise[0, 1]).sum())(
        score
    )
    feed(noise[0, 0], noise[0, 1], noise[1, 0], noise[1, 1])
    done = 0.25
    loss = trainer.step(phase, done)
    for gradient, (name, _) in zip(seen[0], trainer.score_network.named_parameters(), strict=True):
        assert close(gradient, score_gradient[name])

    # The whole step: Adam, clipping, learning rates.
    plan = jax_train.Plan.of(settings)
    state = jax_train.NetworkState(
        generator, score, jax_train.GENERATOR_ADAM.init(generator), jax_train.SCORE_ADAM.init(score),
        jnp.full(C, jnp.nan), jnp.zeros((), jnp.int32), average,
    )  # fmt: skip
    original = jax_train.random.normal
    jax_train.random.normal = lambda *_: jnp.asarray(noise[::-1])  # first the generator's, then the score's
    try:
        state, gap = jax_train.step(
            target.spec, plan, phase, (), mean, scale, state, hyper, done, jnp.zeros(2, jnp.uint32)
        )
    finally:
        jax_train.random.normal = original
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
        **SETTINGS, objective=phase, precondition="never", noise_mode="levels", noise_start=2.0
    )
    sampler = TorchSampler(
        torch.as_tensor(numbers(C, D, seed=4)), torch.eye(D, dtype=torch.float64).expand(C, D, D)
    )
    target = TorchTarget(
        torch_potential, D, dtype=torch.float64, trace=False, smoothed_potential=torch_smoothed
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
    spec = JaxTarget(jax_potential, D, dtype=np.float64, hvp="exact", smoothed_potential=jax_smoothed).spec
    level = jnp.asarray(settings.noise * (settings.noise_start / settings.noise) ** share)
    mean, scale = (jnp.asarray(v.numpy()) for v in (trainer.mean, trainer.scale))
    distance = jax_objectives.Distance("squared", settings.huber_scale)

    def loss(weights):
        return jax_train.generator_loss(
            spec, phase, distance, (), mean, scale, weights, score, z, eps, None, level
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
