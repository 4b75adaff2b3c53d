"""The batched target: chunks, counters, context, minibatches."""

from __future__ import annotations

import contextlib

import pytest
import torch
from potentials import D, curved, one_by_one

from pyro_dft.engine_torch.batched import BatchedPotential
from pyro_dft.engine_torch.target import Target
from pyro_dft.errors import PerformanceWarning
from pyro_dft.recipe.engine import Forms


@pytest.fixture
def points(dtype, device):
    rng = torch.Generator(device=device).manual_seed(0)

    def draw(n, d=D):
        return torch.randn(n, d, generator=rng, dtype=dtype, device=device)

    return draw


@pytest.fixture
def make(dtype, device):
    def target(potential, d=D, **options):
        return Target(potential, d, dtype=dtype, device=device, **options)

    return target


# Chunks, counters, context.


def test_long_batches_run_in_chunks(make, points, monkeypatch):
    target, sizes = make(curved), []
    target.probe(points(2))
    target._full.chunk = 8
    one_chunk = BatchedPotential._one_chunk
    monkeypatch.setattr(
        BatchedPotential, "_one_chunk", lambda self, x: sizes.append(len(x)) or one_chunk(self, x)
    )
    x = points(21).requires_grad_()
    log_density, score = target.evaluate_differentiable(x)
    assert sizes == [8, 8, 5]
    expected = one_by_one(curved, x.detach())
    torch.testing.assert_close(log_density, expected[0])
    torch.testing.assert_close(score, expected[1])
    (product,) = torch.autograd.grad(score[20, 1], x)
    assert (product[20] != 0).any()
    assert (product[:20] == 0).all()


def test_evaluations_are_counted(make, points):
    target = make(curved)
    target.evaluate(points(5).reshape(5, 1, D))
    assert target.gradient_evaluations == 5
    target.evaluate_differentiable(points(4))
    assert target.gradient_evaluations == 5 + 3 * 4
    assert target.nonfinite_evaluations == 0


def test_every_evaluation_runs_inside_the_context(make, points):
    held = []

    @contextlib.contextmanager
    def context():
        held.append(True)
        yield
        held.pop()

    def watched(x):
        assert held
        return curved(x)

    target = make(watched, context=context, trace=False)
    target.probe(points(3))
    target.evaluate(points(3))
    target.evaluate_differentiable(points(3).requires_grad_())
    assert not held


# Minibatches.


@pytest.fixture
def regression(dtype, device):
    """Potentials of one point for 40 rows: on all of them, and on 4 of them at random, scaled up."""
    rng = torch.Generator(device=device).manual_seed(1)
    rows = torch.randn(40, D, generator=rng, dtype=dtype, device=device)
    y = rows.sum(1) + torch.randn(40, generator=rng, dtype=dtype, device=device)

    def full(x):
        return 0.5 * x.square().sum() + 0.5 * (y - rows @ x).square().sum()

    def minibatch(x):
        index = torch.randint(40, (4,), device=device)
        return 0.5 * x.square().sum() + 5 * (y[index] - rows[index] @ x).square().sum()

    return full, minibatch


@pytest.mark.parametrize("trace", [False, True])
def test_minibatch_scores_are_fresh_and_unbiased(make, points, regression, trace):
    torch.manual_seed(0)
    full, minibatch = regression
    target = make(full, forms=Forms(minibatch), trace=trace)
    assert target.minibatch
    x = points(1)
    same = x.expand(500, D)
    scores = [target.evaluate(same, minibatch=True)[1] for _ in range(8)]
    assert bool(target._minibatch._graphs) == trace
    for first, second in zip(scores, scores[1:], strict=False):
        assert not torch.equal(first, second)
    # One point, 500 times: each has a minibatch of its own.
    assert len(torch.unique(scores[-1], dim=0)) > 450
    found = torch.cat(scores)
    error = found.std(0) / len(found) ** 0.5
    exact = target.evaluate(x)[1][0]
    assert ((found.mean(0) - exact).abs() < 4 * error).all()
    # The noise is real: a single one is many times further off.
    assert (found.std(0) > 20 * error).all()


def test_minibatch_scores_are_differentiable_and_independent(make, points, regression):
    torch.manual_seed(0)
    full, minibatch = regression
    target = make(full, forms=Forms(minibatch))
    x = points(1).expand(4000, D).clone().requires_grad_()
    v = torch.ones(D, dtype=x.dtype, device=x.device)
    products = []
    for _ in range(2):
        _, score = target.evaluate_differentiable(x, minibatch=True)
        products.append(torch.autograd.grad((score @ v).sum(), x)[0])
    exact = -torch.autograd.functional.hessian(full, x[0].detach()) @ v
    for product in products:
        error = product.std(0) / len(product) ** 0.5
        assert ((product.mean(0) - exact).abs() < 4 * error).all()
    centred = [p - p.mean(0) for p in products]
    correlation = (centred[0] * centred[1]).mean(0) / (products[0].std(0) * products[1].std(0))
    assert (correlation.abs() < 4 / 4000**0.5).all()


def test_full_data_where_nothing_else_is_asked_for(make, points, regression):
    full, minibatch = regression
    target, x = make(full, forms=Forms(minibatch)), points(5)
    torch.testing.assert_close(target.evaluate(x)[0], one_by_one(full, x)[0])
    plain = make(full)
    assert not plain.minibatch
    torch.testing.assert_close(plain.evaluate(x, minibatch=True)[0], one_by_one(full, x)[0])


def test_minibatches_of_a_potential_with_a_branch(make, points, regression):
    torch.manual_seed(0)
    full, minibatch = regression

    def branch(potential):
        return lambda x: potential(x) if float(x[0].detach()) < 100 else x.sum()

    target = make(branch(full), forms=Forms(branch(minibatch)))
    with pytest.warns(PerformanceWarning):
        target.probe(points(2))
    x = points(1)
    scores = target.evaluate(x.expand(600, D), minibatch=True)[1]
    error = scores.std(0) / 600**0.5
    assert len(torch.unique(scores, dim=0)) > 500
    assert ((scores.mean(0) - target.evaluate(x)[1][0]).abs() < 4 * error).all()
