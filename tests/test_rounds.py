"""Chunks of points, and which particles are taken back to the others."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pyro_dft.engine_jax.chunks import in_chunks
from pyro_dft.recipe.memory import PointSize
from pyro_dft.recipe.particles import Particles


@pytest.mark.parametrize("most", [1, 4, 21])
def test_chunks_give_each_point_its_own_value_and_gradient(most):
    x, weights = jnp.arange(21.0), jnp.arange(21.0) + 1.0

    def total(x):
        return in_chunks(lambda rows: rows[0] ** 3 * rows[1], (x, weights), most, PointSize(1, 4))

    np.testing.assert_allclose(total(x), x**3 * weights)
    np.testing.assert_allclose(jax.jacobian(total)(x), np.diag(3 * x**2 * weights))


def test_behind_the_warm_up_only_stuck_particles_of_low_density_are_taken_back():
    """Nine dimensions: 14 nats below the median are far. Particle 0 is stuck far out, 1 in a neck, 2 moves far out."""
    count, steps, dim = 16, 8, 9
    log_density = np.full((1, count, steps), -30.0)
    log_density[0, 0], log_density[0, 1], log_density[0, 2] = -50.0, -10.0, -50.0
    moved = np.ones((1, count, steps), bool)
    moved[0, :2] = False
    x = np.arange(count, dtype=float)[None, :, None, None] * np.ones((1, 1, steps, dim))
    block = SimpleNamespace(x=x, log_density=log_density, moved=moved, diverged=~moved, position=x[:, :, -1])
    engine = SimpleNamespace(numpy=np.asarray, host_rng=lambda rng: rng)
    particles = SimpleNamespace(engine=engine, count=count, rng=np.random.default_rng(0))
    after = Particles._revived(particles, block, warming=False)[0, :, 0]
    assert after[0] not in (0.0, 1.0)
    assert (after[1:] == np.arange(1, count)).all()
    warm = Particles._revived(particles, block)[0, :, 0]
    assert not np.isin(warm[:2], (0.0, 1.0)).any()
    assert (warm[2:] == np.arange(2, count)).all()
