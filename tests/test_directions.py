"""Kernels in many dimensions: standard deviations, and the directions in which these say too little."""

from __future__ import annotations

import numpy as np
import pytest
from backends import BACKENDS

from pyro_dft import roots
from pyro_dft.recipe.constants import FULL_RANK_LIMIT

D, K = FULL_RANK_LIMIT + 10, 5
# Of each of a few directions, in units of the others' standard deviations.
STRETCHES = np.array([0.02, 0.05, 0.1, 0.3, 8.0])


def a_root(rng, d=D):
    """Standard deviations and directions, and the same as a matrix."""
    unit = np.linalg.qr(rng.normal(size=(d, K)))[0]
    sd = np.exp(0.5 * rng.normal(size=d))
    matrix = sd[:, None] * (np.eye(d) + (unit * (STRETCHES - 1)) @ unit.T)
    return np.concatenate([sd[:, None], unit * STRETCHES], 1), matrix


@pytest.fixture(scope="module", params=BACKENDS, ids=repr)
def backend(request):
    return request.param


def test_a_root_is_what_it_stands_for():
    rng = np.random.default_rng(0)
    packed, matrix = (a[None] for a in a_root(rng))
    z = rng.normal(size=(1, 7, D))
    np.testing.assert_allclose(roots.coloured(packed, z), z @ matrix.swapaxes(1, 2), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(roots.projected(packed, z), z @ matrix, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(roots.whitened(packed, roots.coloured(packed, z)), z, rtol=1e-10, atol=1e-10)
    mean = np.zeros((1, D))
    np.testing.assert_allclose(roots.log_det(packed, mean), np.linalg.slogdet(matrix)[1], rtol=1e-10)
    assert (roots.without_directions(packed) == packed[..., 0]).all()
    for name in ("coloured", "projected", "whitened"):  # without an axis of samplers
        function = getattr(roots, name)
        np.testing.assert_allclose(function(packed[0], z[0]), function(packed, z)[0], rtol=1e-12)


def test_arrays_of_either_library_are_taken(backend):
    rng = np.random.default_rng(0)
    packed, matrix = (a[None] for a in a_root(rng))
    z = rng.normal(size=(1, 7, D))
    exact = {
        "coloured": z @ matrix.swapaxes(1, 2),
        "projected": z @ matrix,
        "spread": z @ matrix @ matrix.swapaxes(1, 2),
    }
    for name, expected in exact.items():
        found = getattr(roots, name)(backend.array(packed), backend.array(z))
        np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-4, atol=1e-3)


def test_directions_are_found():
    """With them a Gaussian is whitened; draws of 32 particles and 32 transitions each."""
    rng = np.random.default_rng(1)
    _, matrix = a_root(rng)
    states = rng.normal(size=(64, 32, D)) @ matrix.T
    precision = np.linalg.inv(matrix @ matrix.T)
    sd = np.sqrt(np.square(matrix).sum(1))
    columns = roots.directions(states, -states @ precision, sd)
    assert columns.shape == (D, roots.MOST_DIRECTIONS)
    unit = columns / np.linalg.norm(columns, axis=0)
    np.testing.assert_allclose(unit.T @ unit, np.eye(columns.shape[1]), atol=1e-5)

    def spread(root):
        """The widest over the narrowest sd of the whitened Gaussian: how many leapfrog steps it needs."""
        values = np.linalg.svd(np.linalg.solve(root, matrix), compute_uv=False)
        return values.max() / values.min()

    full = sd[:, None] * (np.eye(D) + (unit * (np.linalg.norm(columns, axis=0) - 1)) @ unit.T)
    assert spread(np.diag(sd)) > 100
    assert spread(full) < 3


def test_many_states_give_the_directions_that_all_eigenvectors_give(monkeypatch):
    """Beyond a size leading directions come from iterations. The notable ones are the same to rounding."""
    rng = np.random.default_rng(3)
    dim, notable = 600, 5
    axes = np.linalg.qr(rng.normal(size=(dim, notable)))[0]
    stretch = np.array([12.0, 9.0, 7.0, 5.0, 4.0])
    z = rng.normal(size=(64, 20, dim))
    states = z + (z @ axes) * (stretch - 1) @ axes.T
    scores = -(states + (states @ axes) * (stretch**-2.0 - 1) @ axes.T)
    found = roots.directions(states, scores, np.ones(dim))
    monkeypatch.setattr(roots, "EXACT", 10_000)
    exact = roots.directions(states, scores, np.ones(dim))
    lengths = np.linalg.norm(exact, axis=0)
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), lengths, rtol=1e-3)
    own = lengths > 2
    assert own.sum() == notable
    cosines = np.abs((found[:, own] * exact[:, own]).sum(0)) / lengths[own] ** 2
    assert cosines.min() > 0.999


def test_chance_finds_none():
    """Nor do states that are alike from one to the next, as those of chains."""
    rng = np.random.default_rng(2)
    states = rng.normal(size=(64, 16, D))
    for t in range(1, 16):
        states[:, t] = 0.7 * states[:, t - 1] + np.sqrt(1 - 0.7**2) * states[:, t]
    assert roots.directions(states, -states, np.ones(D)).shape == (D, 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the fit is suspect")
def test_a_stiff_posterior(backend, tmp_path):
    """A random walk in its steps, seen with noise: the precision of a few sums is thousands of times that of the rest."""
    import math

    noise, d = 0.05, D
    y = np.cumsum(0.3 * np.random.default_rng(3).normal(size=d)).astype(np.float32)
    seen = backend.array(y)

    def potential(sites):
        z = sites["z"]
        return (
            0.5 * (z**2).sum()
            + 0.5 * (((0.3 * z).cumsum(0) / math.sqrt(d) - seen / math.sqrt(d)) ** 2).sum() / noise**2
        )

    start = {"z": backend.array(np.zeros(d))}
    options = {"potential_fn": potential, "initial_params": start, "disable_progbar": True}
    dft = backend.DFT(num_draws=1000, seed=0, **options)
    backend.run(dft)
    report = dft.diagnostics()
    assert report["status"] == "converged", report["alarms"]
    assert dft.parts.fit.measurement.scale.shape == (1, d, 1 + roots.MOST_DIRECTIONS)

    weights = 0.3 / math.sqrt(d) * np.tril(np.ones((d, d)))
    covariance = np.linalg.inv(np.eye(d) + weights.T @ weights / noise**2)
    mean = covariance @ weights.T @ (y / math.sqrt(d)) / noise**2
    values, vectors = np.linalg.eigh(covariance)
    dft.save(tmp_path / "fit.safetensors")
    again = type(dft).load(tmp_path / "fit.safetensors", **options)
    for draws, ess in (
        (dft.get_samples()["z"], report["ensemble"]["ess"]),
        (again.get_samples(500)["z"], 500),
    ):
        z = (np.asarray(draws, float) - mean) @ vectors / np.sqrt(values)
        # Five standard errors of so many independent draws, over 310 directions.
        assert np.abs(z.mean(0)).max() < 5 / np.sqrt(ess)
        assert np.abs(np.log(z.std(0))).max() < 5 / np.sqrt(2 * ess)
        assert np.quantile(z, [0.05, 0.95]) == pytest.approx([-1.645, 1.645], abs=0.06)


def test_a_metric_that_rounding_has_made_singular_stays_as_it_is():
    """As of two coordinates of which only the sum has a density: sds of 1e12, and the other direction is lost."""
    root = np.array([[1e12, -1e11], [-1e12, 1e11]])
    states = 1e12 * np.random.default_rng(0).normal(size=(50, 1)) * np.array([1.0, -1.0])
    assert (roots.adapted(states, root, 50.0) == root).all()
    sound = roots.adapted(np.random.default_rng(1).normal(size=(5000, 2)) * [3.0, 1.0], np.eye(2), 5000.0)
    np.testing.assert_allclose(np.diag(sound), [3.0, 1.0], rtol=0.05)  # five standard errors of an sd
