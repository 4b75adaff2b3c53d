"""The batched target: values, scores, Hessian-vector products, tracing, bad points, fallback, minibatches."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from potentials import D, curved, one_by_one
from torch._subclasses.fake_tensor import FakeTensorMode

from pyro_dft.engine_torch import batched, garbage, graphs
from pyro_dft.engine_torch.agreement import FEW, agree, differing
from pyro_dft.engine_torch.target import Target
from pyro_dft.errors import ModelError, PerformanceWarning
from pyro_dft.recipe.memory import CPU_BYTES


def branching(x):
    """A number that Python takes out of the point keeps it from being batched."""
    return x.square().sum() if float(x[0].detach()) > 0 else 2 * x.square().sum()


def half_line(x):
    """Not finite where x_0 <= 0: NaN in the value and in every derivative."""
    return x[0] - x[0].log() + 0.5 * (x[1:] * x[0].sqrt()).square().sum()


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


def test_batch_equals_single_points(make, points):
    target, x = make(curved), points(7)
    target.probe(x)
    assert target.vectorised
    log_density, score = target.evaluate(x)
    expected = one_by_one(curved, x)
    torch.testing.assert_close(log_density, expected[0])
    torch.testing.assert_close(score, expected[1])


def test_leading_dimensions_are_kept(make, points):
    target, x = make(curved), points(12)
    flat = target.evaluate(x)
    log_density, score = target.evaluate(x.reshape(2, 3, 2, D))
    assert log_density.shape == (2, 3, 2)
    assert score.shape == (2, 3, 2, D)
    torch.testing.assert_close(log_density.reshape(-1), flat[0])
    torch.testing.assert_close(score.reshape(-1, D), flat[1])


def test_points_of_another_precision_come_back_in_their_own(device):
    target = Target(curved, D, dtype=torch.float32, device=device)
    x = torch.randn(5, D, dtype=torch.float64, device=device)
    log_density, score = target.evaluate(x)
    assert log_density.dtype == score.dtype == torch.float64
    torch.testing.assert_close(log_density, one_by_one(curved, x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trace", [False, True])
def test_backward_pass_is_a_hessian_vector_product(make, points, trace):
    target = make(curved, trace=trace)
    for _ in range(6):  # by the fifth, a batch size that comes back is traced
        x, v = points(7), points(7)
        moving = x.clone().requires_grad_()
        _, score = target.evaluate_differentiable(moving)
        (product,) = torch.autograd.grad((score * v).sum(), moving)
        hessians = torch.stack([torch.autograd.functional.hessian(curved, row) for row in x])
        torch.testing.assert_close(product, -(hessians @ v[..., None]).squeeze(-1))
    assert bool(target._full._graphs) == trace


def test_evaluate_builds_no_graph(make, points):
    moving = points(4).requires_grad_()
    log_density, score = make(curved).evaluate(moving)
    assert not log_density.requires_grad
    assert not score.requires_grad


def test_traced_values_equal_eager_ones_on_new_points(make, points):
    traced, eager = make(curved), make(curved, trace=False)
    for _ in range(8):
        x = points(9)
        for found, expected in zip(traced.evaluate(x), eager.evaluate(x), strict=True):
            torch.testing.assert_close(found, expected)
    assert list(traced._full._graphs) == [9]
    assert not eager._full._graphs
    # Another size is evaluated all the same.
    x = points(4)
    torch.testing.assert_close(traced.evaluate(x)[1], eager.evaluate(x)[1])


def test_tracing_stops_where_it_does_not_reproduce_the_values(make, points):
    """A potential with a hidden state: the graph would freeze what the trace saw."""
    calls = []

    def drifting(x):
        calls.append(None)
        return (1 + 0.1 * len(calls)) * x.square().sum()

    target = make(drifting)
    for _ in range(6):
        target.evaluate(points(3))
    assert target._full.trace is False
    before = len(calls)
    x = points(3)
    log_density, _ = target.evaluate(x)
    assert len(calls) == before + 1
    torch.testing.assert_close(log_density, -(1 + 0.1 * len(calls)) * x.square().sum(-1))


def test_a_graph_is_made_in_one_mode_of_fake_tensors(points, monkeypatch):
    """One for each operation takes more than all the rest of a trace."""
    modes, make_mode = [], FakeTensorMode.__init__

    def counted(self, *args, **kwargs):
        modes.append(self)
        make_mode(self, *args, **kwargs)

    monkeypatch.setattr(FakeTensorMode, "__init__", counted)
    x = points(1)[0]
    graph = graphs.traced(lambda x: (x.sin() * x).sum(), x)
    assert len(modes) == 1
    assert graph(2 * x) == (2 * x * (2 * x).sin()).sum()


@pytest.mark.parametrize(
    ("late", "most", "is_traced"), [(7, 10_000, False), (6, 10_000, True), (6, 0, False)]
)
def test_potentials_of_many_operations_are_traced_late_or_never(
    make, points, monkeypatch, late, most, is_traced
):
    target = make(curved)
    for name, value in (("TRACE_LIMIT", 0), ("LATE", late), ("MOST_OPERATIONS", most)):
        monkeypatch.setattr(batched, name, value)
    target.probe(points(2))
    for _ in range(6):
        target.evaluate(points(3))
    assert bool(target._full._graphs) == is_traced


def test_garbage_is_collected_where_memory_has_grown(monkeypatch):
    made = []
    monkeypatch.setattr(garbage.gc, "collect", lambda: made.append(1))
    sizes = iter([10 * CPU_BYTES, 4 * CPU_BYTES])
    monkeypatch.setattr(garbage, "resident", lambda: next(sizes))
    assert garbage.collected(3 * CPU_BYTES) == 4 * CPU_BYTES
    monkeypatch.setattr(garbage, "resident", lambda: 4 * CPU_BYTES + 1)
    assert garbage.collected(4 * CPU_BYTES) == 4 * CPU_BYTES
    assert len(made) == 1
    monkeypatch.setattr(garbage, "resident", lambda: None)  # where the system does not say
    assert garbage.collected(4 * CPU_BYTES) == 0
    assert len(made) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say")
def test_the_memory_of_this_process_is_known():
    before = garbage.resident()
    kept = torch.ones(2**26)
    assert garbage.resident() - before > 2**27
    assert kept[0] == 1


def test_new_data_after_rebind_are_seen(make, points):
    target, x = make(curved), points(5)
    for _ in range(6):
        target.evaluate(x)
    target.rebind(lambda x: 3 * x.square().sum(), None)
    for _ in range(6):
        torch.testing.assert_close(target.evaluate(x)[1], -6 * x)
    assert not target.minibatch


# Points where the target is not finite.


@pytest.mark.parametrize("trace", [False, True])
def test_bad_points_are_isolated(make, points, trace):
    target = make(half_line, trace=trace)
    for k in range(6):
        x = points(8)
        x[:, 0] = x[:, 0].abs() + 0.1
        x[2, 0], x[5, 0] = -1.0, 0.0
        good = torch.tensor([k not in (2, 5) for k in range(8)], device=x.device)
        log_density, score = target.evaluate(x)
        assert target.nonfinite_evaluations == 2 * (k + 1)
        assert (log_density[~good] == -math.inf).all()
        assert (score[~good] == 0).all()
        expected = one_by_one(half_line, x[good])
        torch.testing.assert_close(log_density[good], expected[0])
        torch.testing.assert_close(score[good], expected[1])


@pytest.mark.parametrize("trace", [True, False])
def test_a_singular_matrix_at_one_point_leaves_the_others(make, points, trace):
    """torch.linalg.solve gives up on the whole batch."""

    def potential(x):
        rows = torch.stack([torch.stack([x[0], x[1]]), torch.stack([x[1], x[0]])])
        return torch.linalg.solve(rows, x[:2]).sum() + x.square().sum()

    target, x = make(potential, trace=trace), points(9)
    target.probe(x[:3])
    assert target.vectorised
    bad = x.clone()
    bad[4] = 1.0
    for _ in range(5):  # often enough to be traced
        expected, scores = target.evaluate(x)
        log_density, score = target.evaluate(bad)
    assert log_density[4] == -torch.inf
    good = torch.arange(9, device=x.device) != 4
    torch.testing.assert_close(log_density[good], expected[good])
    torch.testing.assert_close(score[good], scores[good])
    assert target.nonfinite_evaluations == 5


@pytest.mark.parametrize("trace", [False, True])
def test_bad_points_do_not_poison_the_gradients_of_others(make, points, trace):
    target = make(half_line, trace=trace)
    for _ in range(6):
        x, v = points(6), points(6)
        x[:, 0] = x[:, 0].abs() + 0.1
        x[3, 0] = -2.0
        # One parameter moves all points, as a network's weights do.
        shift = torch.zeros(D, dtype=x.dtype, device=x.device, requires_grad=True)
        _, score = target.evaluate_differentiable(x + shift)
        (found,) = torch.autograd.grad((score * v).sum(), shift)
        good = [0, 1, 2, 4, 5]
        expected = sum(-torch.autograd.functional.hessian(half_line, x[i]) @ v[i] for i in good)
        torch.testing.assert_close(found, expected)
    assert target.nonfinite_evaluations == 6


def test_an_infinite_potential_with_a_finite_gradient_counts_as_bad(make, points):
    target = make(lambda x: torch.where(x[0] > 0, x.square().sum(), torch.inf))
    x = points(6)
    x[:, 0] = x[:, 0].abs()
    x[1, 0] = -1.0
    log_density, score = target.evaluate(x)
    assert log_density[1] == -math.inf
    assert (score[1] == 0).all()
    assert torch.isfinite(log_density).sum() == 5
    assert target.nonfinite_evaluations == 1


def nearly_sure(x):
    """Answers that are guessed or known, at probabilities within some units of the last place of one."""
    able, hard, steep, guess = x[:30, None], x[30:35], x[35:40].exp(), torch.sigmoid(x[40:] - 1.4)
    right = guess + (1 - guess) * torch.sigmoid(steep * (8.0 + able - hard))
    answers = torch.distributions.Bernoulli(probs=right, validate_args=False)
    return x.square().sum() - answers.log_prob(torch.zeros_like(right)).sum()


def test_where_a_few_scores_have_no_digits_all_are_batched_all_the_same():
    target = Target(nearly_sure, 45, dtype=torch.float32, device=torch.device("cpu"))
    x = 0.5 * torch.randn(4, 45, generator=torch.Generator().manual_seed(0))
    log_density, score = target.evaluate(x)
    single = [torch.autograd.grad(nearly_sure(row), row)[0] for row in x.clone().requires_grad_().unbind()]
    assert 0 < differing((score, log_density), (-torch.stack(single), log_density)) <= FEW
    target.probe(x)  # a warning would be an error
    assert target.vectorised


def test_ways_agree_where_a_few_scores_differ_and_none_at_points_that_are_closer_together(points):
    x = points(4, 100)
    looked = []

    def exact(x):
        looked.append(x)
        return -x, 0.5 * x.square().sum(-1)

    def off(share, scale=1.0, everywhere=False):
        def way(y):
            score, value = exact(y)
            wrong = everywhere or torch.equal(x, y)
            score[:, : round(100 * share)] += 0.5 * wrong
            return score, scale * value

        return way

    def found(way):
        return agree(x, way(x), exact(x), way, exact)

    assert found(exact)
    assert found(off(0.02))
    torch.testing.assert_close(looked[-1] - looked[-1].mean(0), 0.25 * (x - x.mean(0)))
    assert not found(off(0.03))
    assert not found(off(0.02, everywhere=True))
    assert not found(off(0.0, scale=1.01))


# Potentials that vmap cannot batch.


def test_a_python_branch_falls_back_to_single_points_with_one_warning(make, points):
    target, x = make(branching), points(6)
    with pytest.warns(PerformanceWarning, match="point by point") as caught:
        target.probe(x)
    assert len(caught) == 1
    assert not target.vectorised
    # filterwarnings = error: any further warning fails the test.
    log_density, score = target.evaluate(x)
    factor = 2 - (x[:, 0] > 0).to(x.dtype)
    torch.testing.assert_close(log_density, -factor * x.square().sum(-1))
    torch.testing.assert_close(score, -2 * factor[:, None] * x)
    moving = x.clone().requires_grad_()
    (product,) = torch.autograd.grad(target.evaluate_differentiable(moving)[1].sum(), moving)
    torch.testing.assert_close(product, (-2 * factor[:, None]).expand_as(x))


def test_the_fallback_survives_rebind(make, points):
    target = make(branching)
    with pytest.warns(PerformanceWarning):
        target.probe(points(3))
    target.rebind(lambda x: 2 * branching(x), None)
    x = points(4)
    torch.testing.assert_close(target.evaluate(x)[0], 2 * one_by_one(branching, x)[0])


def test_batched_values_that_differ_from_single_ones_fall_back(make, points):
    """A potential with a hidden state: single values come first and are right, batched ones differ."""
    calls = []

    def two_faced(x):
        calls.append(None)
        return x.square().sum() * (2.0 if len(calls) in (5, 6, 7) else 1.0)

    target = make(two_faced)
    with pytest.warns(PerformanceWarning, match="batched values differ"):
        target.probe(points(4))
    x = points(4)
    torch.testing.assert_close(target.evaluate(x)[0], -x.square().sum(-1))


def test_the_fallback_isolates_points_that_raise(make, points):
    """A Cholesky factor that does not exist raises at single points, and only these are lost."""

    def factored(x):
        matrix = torch.eye(2, dtype=x.dtype, device=x.device) + torch.stack([x[:2], x[:2].flip(0)])
        if float(x[2].detach()) > 100:
            return x.sum()
        return torch.linalg.cholesky(matrix).diagonal().log().sum() + x.square().sum()

    target = make(factored)
    x = 0.1 * points(5)
    with pytest.warns(PerformanceWarning):
        target.probe(x)
    x[3, 0] = -5.0
    log_density, score = target.evaluate(x)
    assert log_density[3] == -math.inf
    assert (score[3] == 0).all()
    assert torch.isfinite(log_density).sum() == 4
    assert target.nonfinite_evaluations == 1


def test_an_error_at_every_point_is_raised_by_probe(make, points):
    def broken(x):
        raise ValueError("site 'sigma': bad")

    with pytest.raises(ValueError, match="site 'sigma'"):
        make(broken).probe(points(2))


@pytest.mark.parametrize(
    "result", [lambda x: x, lambda x: 1.0, lambda x: None], ids=["vector", "float", "none"]
)
def test_a_potential_must_return_one_number(make, points, result):
    with pytest.raises(ModelError, match="one number"):
        make(result).probe(points(2))


def test_a_constant_potential_has_score_zero(make, points):
    target, x = make(lambda x: 0 * x.sum() + 3.0), points(3)
    log_density, score = target.evaluate(x)
    assert (log_density == -3).all()
    assert (score == 0).all()
