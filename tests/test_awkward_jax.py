"""Loops of unknown length, scans, differential equations and enumerated chains in NumPyro: scores, products, a fit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from daily import daily
from jax.experimental.ode import odeint
from numpyro.contrib.control_flow import scan

from pyro_dft.engine_jax.target import Target, smoothed_score, whitened_score_differentiable
from pyro_dft.experimental import grouped
from pyro_dft.numpyro import DFT
from pyro_dft.numpyro.model import NumPyroProblem
from pyro_dft.recipe.engine import Forms

RNG = np.random.default_rng(0)
Y = RNG.normal(size=6).astype(np.float32)
CODES = np.array([0, 1, 1])


def root(x):
    """The root of z^3 + z = 2 + x, by Newton's method until it stands still."""

    def step(state):
        z, _ = state
        move = (z**3 + z - 2 - x) / (3 * z**2 + 1)
        return z - move, jnp.abs(move)

    return jax.lax.while_loop(lambda s: s[1] > 1e-6, step, (jnp.ones_like(x), jnp.ones_like(x)))[0]


def exact_root(x):
    """The same by Cardano's formula."""
    half = 1 + x / 2
    square = jnp.sqrt(half**2 + 1 / 27)
    return jnp.cbrt(half + square) + jnp.cbrt(half - square)


def rooted(y, find=root):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    s = numpyro.sample("s", dist.LogNormal(0.0, 0.5))
    numpyro.sample("y", dist.Normal(find(x), s).expand([len(y)]), obs=y)


def bounded(y):
    """A `fori_loop` whose end is computed, and so a `while_loop`."""
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    end = jnp.asarray(len(y)) // 2
    loc = jax.lax.fori_loop(0, end, lambda _, z: jnp.sin(z) + 0.5 * x, x)
    numpyro.sample("y", dist.Normal(loc, 1.0).expand([len(y)]), obs=y)


def scanned(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    _, path = jax.lax.scan(lambda z, _: (jnp.tanh(z + x), z), x, None, length=len(y))
    numpyro.sample("y", dist.Normal(path, 1.0), obs=y)


def decay(y):
    """A differential equation, whose solver has a reverse mode of its own and no forward mode."""
    rate = numpyro.sample("rate", dist.LogNormal(0.0, 0.5))
    start = numpyro.sample("start", dist.Normal(0.0, 1.0))
    path = odeint(lambda z, _, r: -r * z, start, jnp.linspace(0.0, 1.0, len(y)), rate)
    numpyro.sample("y", dist.Normal(path, 0.5), obs=y)


def hidden_chain(codes):
    move = numpyro.sample("move", dist.Dirichlet(jnp.ones((2, 2))).to_event(1))
    emit = numpyro.sample("emit", dist.Beta(jnp.array([2.0, 4.0]), 3.0).to_event(1))

    def step(state, code):
        state = numpyro.sample("z", dist.Categorical(move[state]), infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Bernoulli(emit[state]), obs=code)
        return state, None

    scan(step, 0, codes)


def unrolled_chain(codes):
    move = numpyro.sample("move", dist.Dirichlet(jnp.ones((2, 2))).to_event(1))
    emit = numpyro.sample("emit", dist.Beta(jnp.array([2.0, 4.0]), 3.0).to_event(1))
    weight = jnp.array([1.0, 0.0])
    for code in codes:
        weight = (weight @ move) * jnp.where(code == 1, emit, 1 - emit)
    numpyro.factor("y", jnp.log(weight.sum()))


def two_at_most(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    loc = jnp.sin(jnp.sin(jnp.sin(x) + 0.5 * x) + 0.5 * x) + 0.5 * x
    numpyro.sample("y", dist.Normal(loc, 1.0).expand([len(y)]), obs=y)


def by_formula(y):
    rate = numpyro.sample("rate", dist.LogNormal(0.0, 0.5))
    start = numpyro.sample("start", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(start * jnp.exp(-rate * jnp.linspace(0.0, 1.0, len(y))), 0.5), obs=y)


def unrolled(y):
    z = x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    path = []
    for _ in range(len(y)):
        path.append(z)
        z = jnp.tanh(z + x)
    numpyro.sample("y", dist.Normal(jnp.stack(path), 1.0), obs=y)


# A model, the same posterior without the construct, the data, and whether forward mode is needed.
PAIRS = {
    "while_loop": (rooted, lambda y: rooted(y, exact_root), Y, True),
    "fori_loop": (bounded, two_at_most, Y, True),
    "scan": (scanned, unrolled, Y, False),
    "odeint": (decay, by_formula, Y, False),
    "hidden chain": (hidden_chain, unrolled_chain, CODES, False),
}


def product(target, x, v):
    """A Hessian-vector product of the log density, as training takes it."""
    d = x.shape[-1]
    mean, scale = jnp.zeros((1, d)), jnp.eye(d)[None]

    def total(u):
        return (whitened_score_differentiable(target.spec, u, mean, scale, target.data, None)[0] * v).sum()

    return jax.jit(jax.grad(total))(x[None])[0]


@pytest.mark.parametrize("name", daily(PAIRS, "while_loop", "fori_loop", "scan", "odeint"))
def test_scores_and_products_are_those_of_the_same_model_written_plainly(name):
    model, plain, y, forward = PAIRS[name]
    targets = [NumPyroProblem(m, (y,), {}).target() for m in (model, plain)]
    assert [t.spec.forward for t in targets] == [forward, False]
    rng = np.random.default_rng(1)
    x, v = rng.uniform(-1, 1, (2, 5, targets[0].dim)).astype(np.float32)
    for found, expected in zip(*(t.evaluate(x) for t in targets), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(*(product(t, x, v) for t in targets), rtol=5e-3, atol=5e-3)


def test_a_smoothed_potential_with_a_loop_has_scores_and_products():
    """Of a normal with variance 1 + sigma^2, whose square is added up in a loop."""

    def loop(x, sigma, data):
        def add(state):
            return state[0] + 0.5 * x[state[1]] ** 2 / (1 + sigma**2), state[1] + 1

        return jax.lax.while_loop(lambda s: s[1] < len(x), add, (x.sum() * 0, 0))[0]

    target = Target(lambda x, data: loop(x, 0.0, data), 3, forms=Forms(smoothed=loop))
    assert target.spec.forward
    u, sigma = jnp.arange(6.0).reshape(1, 2, 3), jnp.full((1, 2, 1), 2.0)

    def score(at):
        return smoothed_score(target.spec, at, sigma, jnp.zeros((1, 3)), jnp.eye(3)[None], ())[0]

    np.testing.assert_allclose(score(u), -u / 5, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda at: (score(at) * u).sum())(u), -u / 5, rtol=1e-5)


def test_what_neither_mode_can_differentiate_raises_what_jax_says():
    def neither(x, data):
        return odeint(
            lambda z, _: -z, jax.lax.fori_loop(0, data, lambda _, z: z * 0.9, x.sum()), jnp.ones(2)
        )[-1]

    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        Target(neither, 2, data=jnp.asarray(3))


def fitted(model, objective):
    settings = grouped({
        "precondition_steps": 100, "num_steps": 20, "width": 8, "depth": 1, "num_draws": 1000, "restarts": 2,
    })  # fmt: skip
    dft = DFT(model, disable_progbar=True, seed=0, train="always", objective=objective, **settings)
    dft.run(jax.random.key(0), Y)
    return dft


@pytest.mark.slow  # its scores and products, which is all that a fit asks for, are compared every day
@pytest.mark.parametrize("objective", ["kl", "dft"])
def test_a_fit_of_a_model_with_a_while_loop(objective):
    """Also by the objective that needs Hessian-vector products."""
    dft = fitted(rooted, objective)
    assert np.isfinite(dft.diagnostics()["fisher_gap"]).all()
    draws, n = dft.get_samples(), dft.diagnostics()["ensemble"]["ess"]
    assert 300 <= n <= 1000
    grid_x, grid_s = np.meshgrid(np.linspace(-3, 3, 301), np.linspace(-1.5, 1.5, 301))
    loc = np.asarray(exact_root(grid_x), float)[..., None]
    log = -0.5 * ((Y - loc) ** 2).sum(-1) / np.exp(2 * grid_s) - len(Y) * grid_s
    weight = np.exp(log - 0.5 * grid_x**2 - 0.5 * (grid_s / 0.5) ** 2 - log.max())
    weight /= weight.sum()
    for values, at in ((draws["x"], grid_x), (np.log(draws["s"]), grid_s)):
        mean = (weight * at).sum()
        sd = ((weight * (at - mean) ** 2).sum()) ** 0.5
        # Five standard errors of as many independent draws as the states of the chains are worth.
        assert abs(float(values.mean()) - mean) < 5 * sd / n**0.5
        assert abs(float(values.std()) / sd - 1) < 5 / (2 * n) ** 0.5
