"""Where particles start: at all optima of a mode, in proportion to what each holds."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from backends import BACKENDS

from pyro_dft.recipe.far_starts import FAR
from pyro_dft.recipe.gaussians import Gaussians
from pyro_dft.recipe.mode_search import _grouped, _Search
from pyro_dft.recipe.starts import DISPERSION, starting_points
from pyro_dft.recipe.subject import Origin

# Three normals with unit sds in four dimensions: two of them are so near to each other that transitions pass now and then.
CENTRES = np.array([[0.0, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0], [9.0, 5.4, 0.0, 0.0]])
SHARES = np.array([0.5, 0.3, 0.2])


def potential(z):
    """The mixture, in the framework of its argument."""
    x = z["x"]
    if isinstance(x, torch.Tensor):
        centres, shares = torch.as_tensor(CENTRES, dtype=x.dtype), torch.as_tensor(SHARES, dtype=x.dtype)
        return -torch.logsumexp(shares.log() - 0.5 * ((x - centres) ** 2).sum(-1), 0)
    return -jax.nn.logsumexp(np.log(SHARES) - 0.5 * ((x - CENTRES) ** 2).sum(-1))


def subject(origins, modes=None, count=2):
    """Samplers of standard normals, one for each origin (or one)."""
    rng = np.random.default_rng(0)
    engine = SimpleNamespace(numpy=np.asarray, native=lambda target, x: x, host_rng=lambda rng: rng)
    sampler = SimpleNamespace(draw=lambda n, rng: rng.normal(size=(max(1, len(origins)), n, count)))
    return SimpleNamespace(engine=engine, target=None, sampler=sampler, rng=rng, origins=origins, modes=modes)


def test_each_optimum_has_its_share_of_the_particles():
    means = np.array([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    scales = np.stack([np.eye(2), 0.1 * np.eye(2), np.eye(2)])
    own = Origin(Gaussians(means, scales, np.zeros(3), np.zeros(3)), np.array([0.7, 0.29, 0.01]))
    points = starting_points(subject([own], modes="some"), 64)[0]
    nearest = np.square(points[:, None] - means).sum(-1).argmin(1)
    counts = np.bincount(nearest, minlength=3)
    assert counts.sum() == 64
    np.testing.assert_allclose(counts, 64 * own.shares, atol=1)
    # As wide as its own Gaussian: five sds.
    assert np.abs(points[nearest == 1] - means[1]).max() < 0.5


def test_a_single_mode_is_left_by_every_second_particle_from_around_its_own_optimum():
    means = np.array([[0.0, 0.0], [200.0, 0.0]])
    optima = Gaussians(means, np.stack([np.eye(2)] * 2), np.zeros(2), np.zeros(2))
    own = Origin(optima, np.array([0.5, 0.5]))
    points = starting_points(subject([own]), 4000)[0]
    away = points - means[np.square(points[:, None] - means).sum(-1).argmin(1)]
    # Sds of 2,000 x 2 normal numbers: standard error .011 of one.
    np.testing.assert_allclose(away[::2].std(), 1.0, rtol=0.05)
    np.testing.assert_allclose(away[1::2].std(), DISPERSION, rtol=0.05)


def test_an_optimum_is_moved_once_in_all_looks():
    means, scales = CENTRES.copy(), np.stack([np.eye(4)] * 3)
    asked = []

    def log_density(x):
        return np.logaddexp.reduce(np.log(SHARES) - 0.5 * np.square(x[..., None, :] - CENTRES).sum(-1), -1)

    def move(draws, factors):
        asked.append(draws.mean((0, 1)))
        return draws

    tried, rng = {}, np.random.default_rng(0)
    first = _grouped(means[:2], scales[:2], np.log(SHARES[:2]), log_density, move, rng, tried)
    again = _grouped(means, scales, np.log(SHARES), log_density, move, rng, tried)
    assert (first, again) == ([[0], [1]], [[0], [1], [2]])
    assert len(asked) == 3
    # A restart that ends at a known optimum, with a higher bound, is no new one.
    means, scales = np.concatenate([means, means[:1]]), np.concatenate([scales, scales[:1]])
    bounds = np.log([*SHARES, 0.51])
    assert _grouped(means, scales, bounds, log_density, move, rng, tried) == [[3], [1], [2]]
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("scale", "affordable", "known"), [(1.0, 10**6, True), (0.1, 10**6, False), (1.0, 200, False)]
)
def test_shares_are_those_of_the_posterior_where_weights_can_tell(scale, affordable, known):
    """Not those of the bounds, which are equal here; none from Gaussians that are too narrow, or a few draws."""
    fitted = CENTRES, scale * np.stack([np.eye(4)] * 3), np.zeros(3)

    def log_density(x):
        return np.logaddexp.reduce(np.log(SHARES) - 0.5 * np.square(x[..., None, :] - CENTRES).sum(-1), -1)

    job = _Search(lambda: fitted, None, log_density, None, 1, affordable, FAR, np.random.default_rng(0))
    assert job.shares([[0], [1], [2]]) == []
    found = job.shares([[0], [2, 1]])
    if not known:
        assert found == []
        return
    assert [list(own) for own in found] == [[0], [2, 1]]
    # 1,000 draws of the two: four standard errors.
    np.testing.assert_allclose([found[1][1], found[1][2]], [0.6, 0.4], atol=4 * (0.6 * 0.4 / 1000) ** 0.5)
    np.testing.assert_allclose([sum(own.values()) for own in found], 1.0)


@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
def test_a_mode_of_two_normals_between_which_transitions_pass_rarely_is_right(backend):
    start = {"x": backend.array(np.zeros(4))}
    dft = backend.potential(potential, initial_params=start, train="never", refine_steps=None, num_draws=4000)
    backend.run(dft)
    report = dft.diagnostics()
    assert report["status"] == "converged"
    x = np.asarray(dft.get_samples()["x"], float)
    nearest = np.square(x[:, None] - CENTRES).sum(-1).argmin(1)
    found = np.bincount(nearest, minlength=3) / len(x)
    # At least 200 effective draws: four standard errors.
    assert (np.abs(found - SHARES) < 4 * np.sqrt(SHARES * (1 - SHARES) / 200)).all()
    assert report["gradient_evaluations"] < 2e6
