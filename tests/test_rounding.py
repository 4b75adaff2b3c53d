"""Values are rounded, to the digits of their location or to the ends of a simplex; the density of coordinates must not be."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro.distributions
import pyro.distributions
import pytest
import torch
from backends import BACKENDS
from scipy import special, stats

from pyro_dft.numpyro import noncentering
from pyro_dft.numpyro.transforms import biject_to
from pyro_dft.pyro.noncentering import NonCentered
from pyro_dft.pyro.transforms import bijection

LOC, Z = -9.33, np.linspace(-3, 3, 7)
FAMILIES = {
    "Normal": stats.norm, "StudentT": stats.t(4.0), "Cauchy": stats.cauchy, "Laplace": stats.laplace,
    "Logistic": stats.logistic, "Gumbel": stats.gumbel_r,
}  # fmt: skip


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


def numpyro_density(family, scale, y, amount, wrap):
    more = (4.0,) if family == "StudentT" else ()
    fn = wrap(
        getattr(numpyro.distributions, family)(*more, jnp.float32(LOC), jnp.float32(scale)).expand([len(y)])
    )
    y = jnp.asarray(y, jnp.float32)
    value, _, log_jacobian = noncentering.forward(fn, y, amount)
    parts = fn.log_prob(value), log_jacobian, noncentering.unrounded(fn, y, value, amount)
    return sum(
        float(jnp.sum(jnp.broadcast_to(part, part.shape if part.ndim else ())))
        for part in map(jnp.asarray, parts)
    )


def pyro_density(family, scale, y, amount, wrap):
    more = (4.0,) if family == "StudentT" else ()
    fn = wrap(
        getattr(pyro.distributions, family)(*more, torch.tensor(LOC), torch.tensor(scale)).expand([len(y)])
    )
    y = torch.as_tensor(y, dtype=torch.float32)
    coordinates = NonCentered(amount)
    value, _, log_jacobian = coordinates.forward(fn, y)
    return float(fn.log_prob(value).sum() + log_jacobian + coordinates.unrounded(fn, y, value))


DENSITIES = {"numpyro": numpyro_density, "pyro": pyro_density}


@pytest.mark.parametrize("amount", [1.0, 0.7])
@pytest.mark.parametrize("scale", [0.5, 1e-8])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_density_is_that_of_the_coordinates(backend, family, scale, amount):
    y = np.float32((1 - amount) * LOC + scale ** (1 - amount) * Z)
    exact = scale ** (amount - 1) * (y.astype(float) - (1 - amount) * np.float32(LOC).astype(float))
    expected = FAMILIES[family].logpdf(exact).sum() + (amount - 1) * np.log(scale) * len(Z)
    for wrap in (lambda fn: fn, lambda fn: fn.to_event(1)):
        found = DENSITIES[repr(backend)](family, scale, y, amount, wrap)
        # Seven terms of up to 20; with partial amounts the coordinates have six digits, and exact ones are up to 300 sds long.
        assert found == pytest.approx(expected, rel=2e-5, abs=2e-2 if amount == 1.0 or scale == 0.5 else 2.0)


def groups_of(ppl, shape):
    """A hierarchy of six groups, whose effects are by themselves, one vector, or vectors in a plate."""

    def model(y):
        dist = ppl.distributions
        mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
        tau = ppl.sample("tau", dist.HalfNormal(3.0))
        plate, event = shape
        fn = dist.Normal(mu, tau)
        if event:
            fn = fn.expand([event]).to_event(1)
        if plate:
            with ppl.plate("group", plate):
                theta = ppl.sample("theta", fn)
        else:
            theta = ppl.sample("theta", fn)
        ppl.sample("y", dist.Normal(theta.reshape(-1), 1.0).to_event(1), obs=y)

    return model


@pytest.mark.parametrize("shape", [(6, 0), (0, 6), (2, 3), (3, 2), (6, 1), (1, 6)], ids=str)
def test_a_neck_is_a_neck_down_to_the_smallest_scale(backend, shape):
    """Without the correction the density at log tau = -17 is 25 nats too high, and the scores of z are zero."""
    y = np.linspace(-12.0, -6.0, 6).astype(np.float32)
    dft = backend.DFT(groups_of(backend.ppl, shape))
    dft.parts.backend.read((backend.array(y),), {}, 0)
    own, standard = (dft.parts.backend.problems[i].target for i in (0, 1))
    names = dft.parts.backend.posteriors[0].layout.coordinate_names()
    z = np.linspace(-2, 2, len(y))
    levels = []
    for log_tau in (-8.0, -12.0, -17.0):
        x = np.array([{"mu": LOC, "tau": log_tau}.get(name, 0.0) for name in names], np.float32)
        groups = [i for i, name in enumerate(names) if name.startswith("theta")]
        x[groups] = z
        log_density, score = (np.asarray(v) for v in standard.evaluate(backend.array(x)[None, None]))
        levels.append(float(log_density.ravel()[0]) - log_tau)
        # What the data say of z is below tau times 3 errors.
        np.testing.assert_allclose(score.reshape(-1)[groups], -z, atol=0.01)
    np.testing.assert_allclose(levels, levels[0], atol=0.02)
    assert own.dim == standard.dim


SPARSE = np.array([0.1, 0.2, 0.1, 0.3])


def sparse_log_density(x):
    """Of Dirichlet(SPARSE) in stick-breaking coordinates (3,), in double precision."""
    z = x - np.log([3.0, 2.0, 1.0])
    left = special.log_expit(-z)
    shares = np.append(special.log_expit(z), 0.0) + np.append(0.0, np.cumsum(left))
    constant = special.gammaln(SPARSE.sum()) - special.gammaln(SPARSE).sum()
    return constant + ((SPARSE - 1) * shares).sum() + (shares[:-1] + left).sum()


@pytest.mark.parametrize("x", [(0.5, -1.0, 2.0), (-40.0, 17.0, -60.0), (20.0, 25.0, -3.0), (3.0, 30.0, 30.0)])
def test_a_sparse_simplex_has_its_tails(backend, x):
    """The frameworks' own density is flat below -87, and above 16 it falls ten times too fast."""
    log_density, score = sparse(backend, x)
    assert log_density == pytest.approx(sparse_log_density(np.array(x)), rel=1e-5, abs=1e-4)
    step = 1e-4 * np.eye(3)
    expected = [(sparse_log_density(x + e) - sparse_log_density(x - e)) / 2e-4 for e in step]
    np.testing.assert_allclose(score, expected, atol=2e-3)


def test_beyond_the_smallest_number_a_simplex_has_little_mass(backend):
    levels = [sparse(backend, (x, 0.0, 0.0))[0] for x in (-80.0, -100.0, -150.0)]
    assert levels[0] > levels[1] + 5 > levels[2] + 40


def sparse(backend, x):
    """Log density and score (3,) of the model at one point."""
    dft = backend.dft("sparse")
    dft.parts.backend.read((), {}, 0)
    (problem,) = dft.parts.backend.problems
    log_density, score = problem.target.evaluate(backend.array(x)[None, None])
    return float(np.asarray(log_density).ravel()[0]), np.asarray(score).ravel()


REGISTRIES = {
    "pyro": (torch.distributions.biject_to, torch.distributions.constraints, torch.distributions.transforms, bijection),
    "numpyro": (
        numpyro.distributions.biject_to, numpyro.distributions.constraints, numpyro.distributions.transforms, biject_to,
    ),
}  # fmt: skip


def test_a_simplex_transform_that_a_user_has_registered_is_left_alone(backend):
    registry, constraints, transforms, ours = REGISTRIES[backend.name]
    own = type("Own", (transforms.StickBreakingTransform,), {})
    plain = transforms.StickBreakingTransform
    for support in (constraints.simplex, constraints.independent(constraints.simplex, 1)):
        innermost = ours(support) if support is constraints.simplex else ours(support).base_transform
        assert isinstance(innermost, plain)
        assert type(innermost) is not plain
    registry.register(constraints.simplex, lambda _: own())
    try:
        assert type(ours(constraints.simplex)) is own
    finally:
        registry.register(constraints.simplex, lambda _: plain())
