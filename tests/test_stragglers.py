"""Particles that are not where the posterior is: which they are, and that windows go on without them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from backends import BACKENDS

from pyro_dft.recipe.starts import starting_points
from pyro_dft.recipe.stragglers import left_behind, replaced, stranded

COUNT, STEPS, DIM = 64, 32, 50


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_a_particle_on_its_way_up_is_left_behind_and_one_in_a_tail_is_not(rng):
    log_density = -100 + 5 * rng.normal(size=(1, COUNT, 8))
    log_density[0, 0] = np.linspace(-400, -300, 8)  # rises
    log_density[0, 1] = -300  # stays
    log_density[0, 2, -1] = -115  # a draw three sds down
    far, rising = left_behind(log_density, DIM)
    assert np.flatnonzero(far[0]).tolist() == [0, 1]
    assert np.flatnonzero(rising[0]).tolist() == [0]


def states(rng, sds, levels):
    """States and log densities of particles in Gaussians of their own, whose maxima have these log densities."""
    noise = rng.normal(size=(1, COUNT, STEPS, DIM))
    return noise * np.reshape(sds, (1, -1, 1, 1)), np.reshape(levels, (1, -1, 1)) - 0.5 * np.square(
        noise
    ).sum(-1)


def test_what_holds_nothing_is_stranded_however_dense_or_wide(rng):
    """Evidence is the maximum times the volume, sd^50: a wide part is no worse for its low density, nor a narrow one better."""
    sds, levels = np.ones(COUNT), np.zeros(COUNT)
    sds[0], levels[0] = 3.0, -DIM * np.log(3.0)  # wide, of the same evidence
    sds[1], levels[1] = 0.1, DIM * np.log(10.0)  # narrow, of the same evidence
    sds[2], levels[2] = 3.0, -DIM * np.log(3.0) - 60.0  # wide, with next to nothing
    sds[3], levels[3] = 0.1, DIM * np.log(10.0) - 60.0  # narrow and dense, with next to nothing
    levels[4] = 60.0  # much more than the others: it is they that may be wrong
    gone = stranded(*states(rng, sds, levels))
    assert np.flatnonzero(gone[0]).tolist() == [2, 3]


def test_those_that_go_take_the_places_of_others_of_their_sampler(rng):
    positions = np.arange(2 * 5, dtype=float).reshape(2, 5, 1)
    gone = np.array([[True, False, False, True, False], [False] * 5])
    after = replaced(positions, gone, rng)
    assert (after[1] == positions[1]).all()
    assert (after[0, ~gone[0]] == positions[0, ~gone[0]]).all()
    assert np.isin(after[0, gone[0]], positions[0, ~gone[0]]).all()


def test_a_mode_with_next_to_nothing_in_which_particles_start_is_not_served(backend, monkeypatch):
    """Twelve dimensions; the second mode, 12 sds away, holds e^-25 of the posterior, and no transition leaves it."""
    far = 12.0
    logaddexp = torch.logaddexp if backend.name == "pyro" else jnp.logaddexp

    def potential(z):
        x = z["x"]
        rest = 0.5 * (x[1:] ** 2).sum()
        return rest - logaddexp(-0.5 * x[0] ** 2, -0.5 * (x[0] - far) ** 2 - 25.0)

    def four_of_them_there(subject, count):
        points = subject.engine.numpy(starting_points(subject, count)).copy()
        points[:, :4, 0] += far
        return subject.engine.native(subject.target, points)

    monkeypatch.setattr("pyro_dft.recipe.particles.starting_points", four_of_them_there)
    start = {"x": backend.array(np.zeros(12))}
    dft = backend.potential(potential, initial_params=start, train="never", refine_steps=None, num_draws=4000)
    backend.run(dft)
    assert dft.diagnostics()["status"] == "converged"
    assert np.asarray(dft.get_samples()["x"])[:, 0].max() < far / 2
