"""How many points are evaluated at once: bounded by what one point takes, and decided by no clock."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from backends import BACKENDS

from pyro_dft.engine_jax.target import Target as JaxTarget
from pyro_dft.engine_jax.target import whitened_score_differentiable
from pyro_dft.engine_torch import recompute
from pyro_dft.engine_torch.target import Target as TorchTarget
from pyro_dft.recipe.memory import CACHED_ELEMENTS, CPU_BYTES, LEAST_POINTS, MOST_POINTS, PointSize

ROWS = 200_000


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


def size_of(backend, dft):
    """What each point takes on the full data, after the first probe."""
    if backend.name == "numpyro":
        return dft.parts.backend.problems[0].target.spec.size
    return dft.parts.backend.problems[0].target._full.cost.size


def set_up(backend, model, *args):
    dft = backend.DFT(model, seed=0)
    if backend.name == "numpyro":
        dft.parts.backend.words = (0, 0)
    dft.parts.training.begin(args, {})
    return dft


def rows_model(backend):
    ppl = backend.ppl

    def model(x, y):
        slopes = ppl.sample("slopes", ppl.distributions.Normal(backend.array(np.zeros(3)), 1.0).to_event(1))
        with ppl.plate("data", len(y)):
            ppl.sample("y", ppl.distributions.Normal(x @ slopes, 1.0), obs=y)

    return model


@pytest.mark.parametrize(
    ("size", "points"),
    [
        (PointSize(10, 1_000), MOST_POINTS),
        (PointSize(2**12, 2**16), CACHED_ELEMENTS // 2**12),
        (PointSize(2**20, 2**23), LEAST_POINTS),
        (PointSize(2**20, CPU_BYTES // 3), 3),
        (PointSize(2**30, 2**33), 1),
    ],
)
def test_points_at_once(size, points):
    assert size.at_once() == points
    assert size.at_once(cpu=False) >= points


def test_compiled_loops_take_fewer_points_in_a_round_unless_the_model_loops_itself():
    rows = PointSize(2**14, 2**20)
    assert rows.at_once(compiled=True) == 4 < rows.at_once()
    assert replace(rows, loops=True).at_once(compiled=True) == rows.at_once()
    assert rows.at_once(cpu=False, compiled=True) == rows.at_once(cpu=False)


def test_many_rows_are_read_by_few_points_at_once(backend):
    x = np.zeros((ROWS, 3), np.float32)
    size = size_of(backend, set_up(backend, rows_model(backend), backend.array(x), backend.array(x[:, 0])))
    # Residuals and their squares have a row each, and the data themselves are no point's own.
    assert size.elements == ROWS
    assert 4 * ROWS < size.total_bytes < 100 * 4 * ROWS
    assert size.at_once() * size.total_bytes <= CPU_BYTES


def test_matrices_that_a_model_makes_count_too(backend):
    """60 rows of data, and a covariance of 3,600 numbers for each point."""
    where, ppl = np.linspace(0, 1, 60, dtype=np.float32), backend.ppl
    module = {"pyro": torch, "numpyro": jnp}[backend.name]

    def model(x, y):
        length = ppl.sample("length", ppl.distributions.LogNormal(0.0, 1.0))
        noise = 0.1 * backend.array(np.eye(60))
        kernel = module.exp(-(((x[:, None] - x) / length) ** 2)) + noise
        ppl.sample("y", ppl.distributions.MultivariateNormal(backend.array(np.zeros(60)), kernel), obs=y)

    size = size_of(backend, set_up(backend, model, backend.array(where), backend.array(np.sin(where))))
    assert size.elements == 60 * 60


def test_draws_are_mapped_in_blocks_that_memory_allows(backend, monkeypatch):
    """The same likelihoods, whether one row of draws is affordable at a time or all of them."""
    dft = backend.fitted(backend.dft("hierarchy"), np.arange(8.0))
    posterior, samples = dft.parts.backend.posteriors[0], dft.get_samples(20, refine_steps=0)
    whole = posterior.log_likelihood(samples)
    monkeypatch.setattr("pyro_dft.recipe.memory.CPU_BYTES", 2_000)
    parts = posterior.log_likelihood(samples)
    for name, values in whole.items():
        np.testing.assert_allclose(
            dft.parts.backend.arrays.numpy(parts[name]),
            dft.parts.backend.arrays.numpy(values),
            rtol=1e-5,
            atol=1e-6,
        )


def test_backward_passes_are_the_same_where_nothing_is_kept(monkeypatch):
    """Hessian-vector products of 40 points, kept in one piece and computed again in chunks, in both engines."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 3)).astype(np.float32)
    x, v = (rng.normal(size=(40, 3)).astype(np.float32) for _ in range(2))
    calls = []
    monkeypatch.setattr(
        "pyro_dft.engine_torch.batched.recomputed",
        lambda *given: calls.append(1) or recompute.recomputed(*given),
    )

    def by_torch():
        data, moving = torch.from_numpy(rows), torch.from_numpy(x).requires_grad_()
        target = TorchTarget(lambda p: torch.cosh(data @ p).log().sum(), 3)
        score = target.evaluate_differentiable(moving)[1]
        return torch.autograd.grad((score * torch.from_numpy(v)).sum(), moving)[0].numpy()

    def by_jax():
        target = JaxTarget(
            lambda p, data: jnp.log(jnp.cosh(data @ p)).sum(), 3, data=jnp.asarray(rows), hvp="exact"
        )
        mean, scale = jnp.zeros((1, 3)), jnp.eye(3)[None]

        def product(u):
            score = whitened_score_differentiable(target.spec, u, mean, scale, target.data, None)[0]
            return (score * v[None]).sum()

        return np.asarray(jax.grad(product)(jnp.asarray(x)[None]))[0]

    kept = by_torch(), by_jax()
    assert not calls
    monkeypatch.setattr("pyro_dft.recipe.memory.CPU_BYTES", 20_000)
    again = by_torch(), by_jax()
    assert len(calls) > 1
    slopes = np.tanh(x @ rows.T)
    exact = -((1 - slopes**2) * (v @ rows.T)) @ rows
    for found in (*kept, *again):
        np.testing.assert_allclose(found, exact, rtol=2e-3, atol=2e-3)


def test_no_choice_depends_on_a_clock(monkeypatch):
    """A machine that is a hundred times slower chooses the same batches, graphs and threads."""
    pyro = BACKENDS[0]
    x = np.random.default_rng(0).normal(size=(3000, 3)).astype(np.float32)

    def chosen():
        dft = set_up(pyro, rows_model(pyro), pyro.array(x), pyro.array(x[:, 0]))
        full = dft.parts.backend.problems[0].target._full
        with torch.no_grad():
            for _ in range(5):
                full(dft.parts.backend.problems[0].starts[0])
        threads = dft.parts.training.trainer.engine.thread_count(dft.parts.backend.problems[0], 128)
        return full.chunk, full.trace, sorted(full._graphs), threads

    expected = chosen()
    ticks = iter(range(10**9))
    for clock in ("perf_counter", "process_time", "monotonic", "time"):
        monkeypatch.setattr(f"time.{clock}", lambda: float(next(ticks)))
    assert chosen() == expected
    assert expected[1]
    assert len(expected[2]) == 1
