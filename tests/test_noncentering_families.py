"""Non-centred coordinates of every family: the density that the model states, and a prior that parents do not move.

One contract for both frameworks. The log Jacobian is compared with one from automatic differentiation, at several amounts.
"""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch
from numpyro.contrib.control_flow import scan
from numpyro.distributions import transforms as jax_transforms
from pyro.distributions import transforms as torch_transforms

from pyro_dft.models import amounts
from pyro_dft.numpyro import noncentering as jax_maps
from pyro_dft.numpyro.model import NumPyroProblem
from pyro_dft.numpyro.transforms import biject_to
from pyro_dft.pyro import noncentering as torch_maps
from pyro_dft.pyro.model import PyroProblem
from pyro_dft.pyro.transforms import bijection

AMOUNTS = (1.0, 0.4, 0.0)
# Values of two parents: a location and a positive number.
PARENTS = ((0.3, 0.7), (-0.8, 2.0))


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True):
        yield


def families(dist, t, array, ones, eye, tril):
    """Name -> (distribution given a location m and a scale s, whether the prior of y is the same for all of them)."""

    def transformed(base, *steps):
        return dist.TransformedDistribution(base, list(steps))

    k = array(1.5)
    return {
        "Normal": (lambda m, s: dist.Normal(m, s), True),
        "StudentT": (lambda m, s: dist.StudentT(k, m, s), True),
        "Laplace": (lambda m, s: dist.Laplace(m, s), True),
        "Cauchy": (lambda m, s: dist.Cauchy(m, s), True),
        "Gumbel": (lambda m, s: dist.Gumbel(m, s), True),
        "Logistic": (lambda m, s: dist.Logistic(m, s), True),
        "SoftLaplace": (lambda m, s: dist.SoftLaplace(m, s), True),
        "AsymmetricLaplace": (lambda m, s: dist.AsymmetricLaplace(m, s, k), True),
        "LogNormal": (lambda m, s: dist.LogNormal(m, s), True),
        "HalfNormal": (lambda m, s: dist.HalfNormal(s), True),
        "HalfCauchy": (lambda m, s: dist.HalfCauchy(s), True),
        "Exponential": (lambda m, s: dist.Exponential(s), True),
        "Pareto": (lambda m, s: dist.Pareto(s, k), True),
        "Weibull": (lambda m, s: dist.Weibull(s, array(2.0) + m), True),
        "Gamma": (lambda m, s: dist.Gamma(k, s), True),
        "InverseGamma": (lambda m, s: dist.InverseGamma(k, s), True),
        "Gamma of two": (lambda m, s: dist.Gamma(s, s + m + 2), False),
        "Beta": (lambda m, s: dist.Beta(s, s + m + 2), False),
        "Folded": (lambda m, s: dist.FoldedDistribution(dist.Normal(m, s)), False),
        "expand": (lambda m, s: dist.Normal(m, s).expand([3]), True),
        "to_event": (lambda m, s: dist.LogNormal(m, s).expand([3, 2]).to_event(1), True),
        "expand twice": (lambda m, s: dist.Normal(m * ones(3), s).to_event(1).expand([2]), True),
        "mask": (lambda m, s: dist.HalfNormal(s).expand([3]).mask(array([True, False, True])), True),
        "affine": (lambda m, s: transformed(dist.Normal(0 * ones(3), 1.0), t.AffineTransform(m, s)), True),
        "two affine": (
            lambda m, s: transformed(
                dist.Normal(m, 1.0), t.AffineTransform(0.0, s), t.AffineTransform(m, 2.0)
            ),
            True,
        ),
        "logit-normal": (lambda m, s: transformed(dist.Normal(m, s), t.SigmoidTransform()), True),
        "turned": (lambda m, s: transformed(dist.Normal(0 * m, 1.0), t.AffineTransform(m, -s)), True),
        "softplus": (lambda m, s: transformed(dist.Normal(m, s), t.SoftplusTransform()), True),
        "sums": (
            lambda m, s: transformed(
                dist.Normal(m, s).expand([4]).to_event(1), t.LowerCholeskyAffine(0 * ones(4), tril(4))
            ),
            True,
        ),
        "MultivariateNormal": (
            lambda m, s: dist.MultivariateNormal(m * ones(2), s * (eye(2) + 0.5)).expand([3]).to_event(1),
            True,
        ),
        "MultivariateStudentT": (
            lambda m, s: dist.MultivariateStudentT(array(5.0), m * ones(2), s * tril(2)), True
        ),
        "LowRankMultivariateNormal": (
            lambda m, s: dist.LowRankMultivariateNormal(m * ones(3), s * ones(3, 1), s * ones(3)), True
        ),
    }  # fmt: skip


def only_numpyro(dist):
    """As `families`, of those that only NumPyro has."""
    path = jnp.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    found = {
        "GaussianRandomWalk": (lambda m, s: dist.GaussianRandomWalk(s, 4), True),
        "many walks": (lambda m, s: dist.GaussianRandomWalk(s * jnp.array([1.0, 2.0, 3.0]), 4).to_event(1), True),
        "GaussianStateSpace": (
            lambda m, s: dist.GaussianStateSpace(4, jnp.eye(2) / 2, scale_tril=s * jnp.eye(2)), True
        ),
        "ZeroSumNormal": (lambda m, s: dist.ZeroSumNormal(s, (4,)), True),
        "CAR": (lambda m, s: dist.CAR(m * jnp.ones(3), 0.5, s, path), True),
        "Levy": (lambda m, s: dist.Levy(m, s), True),
        "Gompertz": (lambda m, s: dist.Gompertz(1.0, s), True),
        "half by truncation": (lambda m, s: dist.TruncatedNormal(m, s, low=m), True),
        "truncated, all move": (lambda m, s: dist.TruncatedNormal(m, s, low=m - s, high=m + 2 * s), True),
    }  # fmt: skip
    for base in ("Normal", "Cauchy", "Logistic"):
        family = getattr(dist, base)
        found[f"left {base}"] = (lambda m, s, f=family: dist.LeftTruncatedDistribution(f(m, s), -1.0), False)
        found[f"right {base}"] = (lambda m, s, f=family: dist.RightTruncatedDistribution(f(m, s), 1.0), False)
        found[f"both {base}"] = (
            lambda m, s, f=family: dist.TwoSidedTruncatedDistribution(f(m, s), -1.0, 2.0), False
        )  # fmt: skip
    return found


def _torch_ones(*shape):
    return torch.ones(shape)


FAMILIES = {
    "pyro": families(
        pyro.distributions, torch_transforms, torch.as_tensor, _torch_ones, torch.eye, lambda n: torch.ones(n, n).tril()
    ),
    "numpyro": families(
        numpyro.distributions,
        SimpleNamespace(
            AffineTransform=jax_transforms.AffineTransform,
            SigmoidTransform=jax_transforms.SigmoidTransform,
            SoftplusTransform=jax_transforms.SoftplusTransform,
            LowerCholeskyAffine=jax_transforms.LowerCholeskyAffine,
        ),
        jnp.asarray, lambda *shape: jnp.ones(shape), jnp.eye, lambda n: jnp.tril(jnp.ones((n, n))),
    )
    | only_numpyro(numpyro.distributions),
}  # fmt: skip
ALL = [(where, name) for where, found in FAMILIES.items() for name in found]


class Map:
    """The maps of one distribution, in NumPy."""

    def __init__(self, where, name, parents):
        self.torch = where == "pyro"
        family, self.same = FAMILIES[where][name]
        self.fn = family(*(self.array(value) for value in parents))
        self.bijection = (bijection if self.torch else biject_to)(self.fn.support)
        shape = tuple(self.fn.shape())
        self.shape = tuple(self.bijection.inverse_shape(shape))

    def array(self, value):
        return torch.as_tensor(value) if self.torch else jnp.asarray(value)

    def forward(self, y, amount):
        """(value, unconstrained coordinates, summed log Jacobian)."""
        if self.torch:
            value, x, log_jacobian = torch_maps.NonCentered(amount).forward(self.fn, y)
        else:
            value, x, log_jacobian = jax_maps.forward(self.fn, y, amount)
        return value, x, log_jacobian.sum()

    def inverse(self, value, amount):
        if self.torch:
            return torch_maps.NonCentered(amount).inverse(self.fn, value)
        return jax_maps.inverse(self.fn, value, amount)

    def everything(self, y):
        """At each amount: value, value by way of the unconstrained coordinates, y again, log Jacobian, d x / d y, that of x."""

        def all_amounts(y):
            found = []
            for amount in AMOUNTS:
                value, x, log_jacobian = self.forward(y, amount)
                jacobian = (torch.func.jacrev if self.torch else jax.jacrev)(
                    lambda v, amount=amount: self.forward(v.reshape(self.shape), amount)[1].reshape(-1)
                )(y.reshape(-1))
                outer = self.bijection.log_abs_det_jacobian(x, value).sum()
                found.append(
                    (value, self.bijection(x), self.inverse(value, amount), log_jacobian, jacobian, outer)
                )
            return found

        return all_amounts(y) if self.torch else jax.jit(all_amounts)(y)

    def log_prior(self, y):
        """Log densities of non-centred coordinates (n, ...)."""
        fn = self.fn
        while type(fn).__name__ == "MaskedDistribution":
            fn = fn.base_dist

        def one(y):
            value, _, log_jacobian = self.forward(y, 1.0)
            return fn.log_prob(value).sum() + log_jacobian

        y = self.array(y)
        return np.stack([one(row) for row in y]) if self.torch else np.asarray(jax.jit(jax.vmap(one))(y))


@pytest.mark.parametrize(("where", "name"), ALL)
def test_log_jacobian_and_round_trip(where, name):
    found = Map(where, name, PARENTS[0])
    y = found.array(np.random.default_rng(0).uniform(-1.5, 1.5, found.shape))
    for value, again, back, log_jacobian, jacobian, outer in found.everything(y):
        assert np.allclose(value, again, rtol=1e-9, atol=1e-9)
        assert abs(float(log_jacobian) - np.linalg.slogdet(np.asarray(jacobian))[1] - float(outer)) < 1e-6
        assert np.allclose(back, y, atol=1e-6)


@pytest.mark.parametrize(("where", "name"), [(w, n) for w, n in ALL if FAMILIES[w][n][1]])
def test_parents_do_not_move_the_prior(where, name):
    one, other = (Map(where, name, parents) for parents in PARENTS)
    y = np.random.default_rng(1).uniform(-1.0, 1.0, (3, *one.shape))
    a, b = one.log_prior(y), other.log_prior(y)
    assert np.allclose(a, b, atol=1e-6)
    assert np.ptp(a) > 1e-3


@pytest.mark.parametrize(("where", "name"), [(w, n) for w, n in ALL if not FAMILIES[w][n][1]])
def test_parents_move_other_priors_much_less(where, name):
    """Where the form of the prior changes too: its quartiles stay where they are, more or less."""
    grid = np.linspace(-12.0, 12.0, 481)
    for parents in ((0.0, 1.0), (3.0, 0.3), (-1.5, 0.2)):
        if name in ("Gamma of two", "Beta") and parents[0] < 0:
            continue
        log_p = Map(where, name, parents).log_prior(grid)
        share = np.cumsum(np.exp(log_p - log_p.max()))
        low, middle, high = np.interp([0.25, 0.5, 0.75], share / share[-1], grid)
        assert abs(middle) < 1.2
        assert 1 / 3 < (high - low) / 1.35 < 3  # 1.35 for a standard normal


def many_families(ppl, handlers, array, walk):
    """A model of several families under a scale and a mask; with NumPyro, a walk and a site inside of a scan."""
    dist = ppl.distributions

    def model():
        m = ppl.sample("m", dist.Normal(0.0, 1.0))
        s = ppl.sample("s", dist.LogNormal(array(0.0), 0.5))
        k = ppl.sample("k", dist.Gamma(array(3.0), s))
        some = array([True, False, True])
        with handlers.scale(scale=0.6):
            with ppl.plate("outer", 2, dim=-2), ppl.plate("inner", 3, dim=-1), handlers.mask(mask=some):
                a = ppl.sample("a", dist.Normal(m, s))
                ppl.sample("b", dist.HalfNormal(k))
                ppl.sample("c", dist.Beta(k, k + s))
                ppl.sample(
                    "d", dist.MultivariateNormal(m + array([0.0, 1.0]), k * array([[1.0, 0.3], [0.3, 1.0]]))
                )
            ppl.sample("e", dist.StudentT(array(4.0), m, s).expand([3]).mask(some).to_event(1))
            if walk:
                ppl.sample("w", dist.GaussianRandomWalk(s, 4))
                ppl.sample("t", dist.TruncatedNormal(m, k, low=m - s).expand([2]))
                scan(step, m, jnp.arange(3.0) + s)
        ppl.factor("f", -0.05 * (a * a).sum())

    def step(carry, width):
        x = ppl.sample("x", dist.Normal(carry, width))
        ppl.sample("z", dist.HalfCauchy(width).expand([2]).to_event(1))
        return x, None

    return model


@pytest.mark.parametrize("where", ["pyro", pytest.param("numpyro", marks=pytest.mark.slow)])
def test_models_have_the_same_density_in_all_coordinates(where):
    """Batches of points, with the determinant from central differences of the map from one set of coordinates to the other."""
    if where == "pyro":
        problem = PyroProblem(many_families(pyro, pyro.poutine, torch.as_tensor, walk=False))
    else:
        problem = NumPyroProblem(many_families(numpyro, numpyro.handlers, jnp.asarray, walk=True))
    names = problem.noncentering_candidates()
    assert set(names) == set(problem.layout.names) - {"m", "s"}
    moved = problem.noncentered({name: AMOUNTS[i % 2] for i, name in enumerate(names)})
    array = torch.as_tensor if where == "pyro" else np.asarray
    y = np.random.default_rng(2).uniform(-1, 1, (3, problem.dim))
    x = np.asarray(moved.original_coordinates(array(y)))

    def log_density(own, points):
        if where == "pyro":
            return -own.values_and_gradients(array(points))[0].numpy()
        return np.asarray(own.target().evaluate(points)[0])

    step = 1e-5
    sides = (y[:, None] + side * step * np.eye(problem.dim) for side in (1, -1))
    high, low = (
        np.asarray(moved.original_coordinates(array(rows.reshape(-1, problem.dim)))) for rows in sides
    )
    jacobian = ((high - low) / (2 * step)).reshape(3, problem.dim, problem.dim)
    change = log_density(moved, y) - log_density(problem, x)
    # An error of the differences of the order of step^2 in each of the coordinates.
    assert np.allclose(change, np.linalg.slogdet(jacobian)[1], atol=1e-6)
    assert np.ptp(change) > 0.1
    ours, theirs = moved.constrain(array(y)), problem.constrain(array(x))
    for name, value in ours.items():
        assert np.allclose(value, theirs[name], rtol=1e-9, atol=1e-9)
    assert np.allclose(moved.unconstrain(ours), y, atol=1e-7)


def test_sites_of_a_scan_depend_on_what_their_steps_read():
    dist = numpyro.distributions

    def model():
        m = numpyro.sample("m", dist.Normal(0.0, 1.0))

        def step(carry, _):
            numpyro.sample("still", dist.Normal(0.0, 2.0))
            first = numpyro.sample("first", dist.LogNormal(carry[0], 1.0))
            # Depends on the other one from the second step on.
            second = numpyro.sample("second", dist.Normal(carry[1], 1.0))
            return (0.0 * carry[0], jnp.tanh(first)), second

        scan(step, (m, 0.0), None, length=3)

    assert NumPyroProblem(model).noncentering_candidates() == ("first", "second")


def test_amounts_are_part_of_the_layout():
    layout = NumPyroProblem(many_families(numpyro, numpyro.handlers, jnp.asarray, walk=True)).layout
    moved = amounts.moved(layout, {"a": 1.0, "w": 0.25, "x": 0.5})
    assert amounts.read(moved) == {"a": 1.0, "w": 0.25, "x": 0.5}
    assert amounts.read(layout) == {}
    assert {site.name: site.transform for site in moved.sites}["a"] == "noncentered"
    assert (
        len({str(own.to_json()) for own in (layout, moved, amounts.moved(layout, {"a": 1.0, "w": 0.25}))})
        == 3
    )
