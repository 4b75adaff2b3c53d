"""Refinement on jax leaves the posterior as it is, from the host and under a trace: moments and tails of exact draws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pyro_dft.engine_jax import functional, networks, random, train
from pyro_dft.engine_jax.refine import refine, whitening
from pyro_dft.engine_jax.target import Target
from pyro_dft.experimental import Experimental
from pyro_dft.settings import Settings

SHAPE = 3.0


def skewed(x, data):
    """x_0 the log of a Gamma(3, 1) variable, x_1 normal around x_0^2 / 2 with sd 1/2 (curved, skewed)."""
    return jnp.exp(x[0]) - SHAPE * x[0] + 2 * (x[1] - 0.5 * x[0] ** 2) ** 2


def exact_draws(n, rng):
    first = np.log(rng.gamma(SHAPE, size=n))
    return np.stack([first, 0.5 * first**2 + 0.5 * rng.normal(size=n)], -1)[None].astype(np.float32)


def features(x):
    """Moments, a cross moment, two tail probabilities."""
    a, b = np.asarray(x, float)[..., 0], np.asarray(x, float)[..., 1]
    return np.stack([a, b, a**2, b**2, a * b, a**3, a < 0, b > 2, a > 1.9], -1)


@pytest.mark.parametrize("step_size", [0.5, 0.9])
def test_exact_draws_of_a_curved_target_stay_exact(step_size):
    """Whatever the step size: what is accepted badly is still right. Errors from 20,000 paired draws."""
    rng = np.random.default_rng(0)
    draws = exact_draws(20_000, rng)
    scale = whitening(draws, np.eye(2)[None])
    target, size = Target(skewed, 2), np.full(1, step_size, np.float32)
    found = refine(target, draws, scale, size, steps=6, leapfrog_steps=5, rng=rng)
    change = (features(found.draws) - features(draws))[0]
    assert (np.abs(change.mean(0)) < 4 * change.std(0) / len(change) ** 0.5).all()
    assert found.stuck < 0.1
    assert 0.2 < found.acceptance[0] < 0.999


@pytest.mark.parametrize("steps", [1, 2])
def test_traced_passes_of_few_steps_leave_a_normal_as_it_is(steps):
    """Two passes of as many steps: with noise in common they would resonate, and the draws get too wide."""
    target = Target(lambda x, data: 0.5 * (x**2).sum(), 4)
    settings = Settings(refine_steps=steps, experimental=Experimental(noise=1e-3))
    schedule = functional.Schedule.of(target.spec, settings)
    words = random.words(jax.random.key(0))
    state = functional.start(schedule, train.Hyper.of(settings), jnp.zeros((1, 2, 4)), words)
    n = 5000
    finish = jax.jit(functional.finish, static_argnums=(0, 4))
    found = finish(schedule, state, target.data, random.words(jax.random.key(1)), n)
    for draws in (found.halfway, found.refined):
        x = np.asarray(draws, float)[0]
        assert np.abs(x.std(0) - 1).max() < 4 / (2 * n) ** 0.5
        assert np.abs(x.mean(0)).max() < 4 / n**0.5
        # Each side of a tail of 5 % has a standard error of (.05 .95 / n)^1/2 for each coordinate.
        for tail in (x > 1.6449, x < -1.6449):
            assert np.abs(tail.mean(0) - 0.05).max() < 4 * (0.05 * 0.95 / n) ** 0.5


def test_traced_drift_test_agrees_with_the_one_on_the_host():
    from pyro_dft.judging.drift import drift

    rng = np.random.default_rng(0)
    before = rng.normal(size=(1, 3000, 3))
    seen, traced = set(), jax.jit(functional.still)
    with jax.enable_x64(True):
        for memory in (0.2, 0.7, 0.99):
            for shift in (0.0, 0.05, 0.5):
                fresh = rng.normal(size=before.shape)
                after = memory * before + (1 - memory**2) ** 0.5 * fresh + shift
                moved = drift(before[0], after[0])
                expected = moved.still
                assert bool(traced(jnp.asarray(before), jnp.asarray(after))) == expected
                seen.add(expected)
        # Draws that forget where they are, but not how far out.
        flipped = before * rng.choice([-1.0, 1.0], size=before.shape)
        assert not traced(jnp.asarray(before), jnp.asarray(flipped))
    assert seen == {True, False}


def test_network_depth_and_shapes():
    weights = networks.init_generator(jnp.array([0, 1], jnp.uint32), 2, 3, 8, 2, 0.1, np.float32)
    assert {k: v.shape for k, v in weights.items()} == networks.generator_shapes(2, 3, 8, 2)
    assert networks.depth_of(weights) == 2
    z = jnp.ones((2, 5, 3))
    # The last layer starts at a hundredth: the generator starts near the identity.
    assert float(jnp.abs(networks.generate(weights, z) - z).max()) < 0.2
