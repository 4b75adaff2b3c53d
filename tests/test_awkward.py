"""Models with checks of values, branches, masks, functions of their own: many points at once, each as by itself."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import awkward_processes  # noqa: F401  (registers its models)
import pyro
import pytest
import torch
from awkward_models import MODELS, OldPower, Y, asserts_what_may_fail, normal, observe, raises_what_may_fail
from daily import daily

from pyro_dft.engine_torch import branches
from pyro_dft.engine_torch.target import Target
from pyro_dft.errors import ModelError, PerformanceWarning
from pyro_dft.pyro.model import PyroProblem
from pyro_dft.recipe.engine import Forms


@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def posterior(model, *args):
    problem = PyroProblem(model, args)
    return problem, Target(problem.potential, problem.dim, dtype=problem.dtype, context=problem.context)


def one_by_one(target):
    """The same target, evaluated point by point."""
    other = copy.copy(target)
    other._full = copy.copy(target._full)
    other._full.vectorised = False
    return other


def hessian_vector_products(target, x):
    moving = x.clone().requires_grad_()
    score = target.evaluate_differentiable(moving)[1]
    return torch.autograd.grad((score * torch.cos(x)).sum(), moving)[0]


ELSEWHERE = (
    "collapses_conjugate"  # a process has one backend of funsor, which is jax's where NumPyro was imported
)


# Those of which another one, that takes a fraction of the time, does the same to the engine: enumerated chains, matrices
# factorised along a path, densities by series, inducing points.
LONG = {"capture_recapture", "gaussian_hmm", "linear_hmm", "directional", "gp_sparse", "changepoint", "sir"}
NAMES = sorted(set(MODELS) - {ELSEWHERE})


@pytest.mark.parametrize("name", daily(NAMES, *(name for name in NAMES if name not in LONG)))
def test_batched_values_are_those_of_single_points(name):
    model, args = MODELS[name]()
    problem, target = posterior(model, *args)
    # Of many proposed points at once: next to none are feasible in a model of an epidemic.
    starts = problem.initial_points(200, max_tries=2)
    target.probe(starts[:4])  # a warning would be an error
    assert target.vectorised
    x = starts[:3]
    x = torch.cat([x, 0.9 * x + 0.2])
    single = one_by_one(target)
    expected = single.evaluate(x)
    assert torch.isfinite(expected[0]).sum() >= 3
    for _ in range(5):  # the fourth one and those after it by graphs, where that can be
        torch.testing.assert_close(target.evaluate(x), expected, rtol=1e-5, atol=1e-5)
    products = [hessian_vector_products(t, x) for t in (target, single)]
    torch.testing.assert_close(*products, rtol=1e-5, atol=1e-5)


@pytest.mark.slow  # another process
def test_a_site_that_funsor_integrates_out_is_batched():
    code = (
        "import torch, test_awkward as t; torch.set_default_dtype(torch.float64); "
        "t.test_batched_values_are_those_of_single_points(t.ELSEWHERE)"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("model", [asserts_what_may_fail, raises_what_may_fail])
def test_points_at_which_a_check_fails_have_no_density_and_the_others_keep_theirs(model):
    problem, target = posterior(model, Y)
    starts = problem.initial_points(8)  # some of those that are proposed fail
    assert (starts > -0.6).all()
    target.probe(starts[:4])
    assert target.vectorised
    x = torch.linspace(-2.0, 2.0, 9)[:, None]
    for _ in range(5):
        log_density, score = target.evaluate(x)
        allowed = x[:, 0] > -0.6
        expected = -0.5 * x[:, 0] ** 2 - 0.5 * ((Y - x) ** 2).sum(-1)
        differences = (log_density - expected)[allowed]
        torch.testing.assert_close(differences, differences[:1].expand_as(differences))
        torch.testing.assert_close(score[allowed], (Y.sum() - 6 * x)[allowed])
        assert (log_density[~allowed] == -torch.inf).all()
        assert (score[~allowed] == 0).all()


def test_a_check_that_fails_everywhere_is_raised():
    def model(y):
        x = normal("x")
        assert x.abs() < 1e-9, "x is too large"
        observe(y, x)

    with pytest.raises(ModelError, match="x is too large"):
        posterior(model, Y)[0].initial_points(2, max_tries=2)


def test_a_number_that_python_takes_is_left_to_single_points_and_says_where_and_what_it_costs():
    def model(y):
        x = normal("x")
        observe(y, x if float(x.detach()) > 0 else 2 * x)

    problem, target = posterior(model, Y)
    with pytest.warns(PerformanceWarning) as caught:
        target.probe(problem.initial_points(4))
    assert len(caught) == 1
    said = str(caught[0].message)
    assert "point by point" in said
    assert "test_awkward.py, line" in said
    assert "`observe(y, x if float(x.detach()) > 0 else 2 * x)`" in said
    assert "One gradient takes" in said
    assert not target.vectorised
    assert target.evaluate(torch.tensor([[1.0], [-1.0]]))[0].isfinite().all()


def test_whatever_a_batch_needs_is_put_back_even_after_an_error():
    names = {torch.autograd.Function: "apply", torch.utils.checkpoint: "CheckpointFunction"}
    before = {owner: vars(owner)[name] for owner, name in names.items()}

    def model(y):
        x = OldPower.apply(normal("x").exp(), 2)
        if within:
            assert vars(torch.autograd.Function)["apply"] is not before[torch.autograd.Function]
            raise KeyError("inside")
        observe(y, x)

    within = False
    problem, _ = posterior(model, Y)
    problem.values_and_gradients(torch.zeros(3, 1))
    within = True
    with pytest.raises(KeyError, match="inside"):
        problem.values_and_gradients(torch.zeros(3, 1))
    assert {owner: vars(owner)[name] for owner, name in names.items()} == before


class Halved(torch.autograd.Function):
    """Saves a tensor that is neither input nor output, and leaves another on its context."""

    @staticmethod
    def forward(ctx, x, y):
        root = x.exp().sqrt()
        ctx.save_for_backward(root, y)
        ctx.root = 2 * root
        return root * y, root - y

    @staticmethod
    def backward(ctx, first, second):
        root, y = ctx.saved_tensors
        return (first * y + second) * ctx.root / 4, first * root - second


def test_old_functions_with_several_results_and_their_own_tensors():
    def model(y):
        product, difference = Halved.apply(normal("a"), normal("b"))
        observe(y, product + difference**2)

    problem, target = posterior(model, Y)
    target.probe(problem.initial_points(4))
    assert target.vectorised
    x = torch.randn(5, 2)
    torch.testing.assert_close(target.evaluate(x), one_by_one(target).evaluate(x))


def test_values_of_many_draws_take_one_run_for_each_way_through_the_model():
    runs = []

    def model(y):
        x = normal("x")
        runs.append(1)
        observe(y, pyro.deterministic("z", x if x > 0 else 2 * x))

    problem, _ = posterior(model, Y)
    x = torch.randn(100, 1)
    runs.clear()
    values = problem.constrain(x)
    torch.testing.assert_close(values["z"], torch.where(x > 0, x, 2 * x)[:, 0])
    assert problem.invalid(x) == {"parameters": {}, "data": {}}
    assert len(runs) < 30


# Answers, without a model.


def test_points_are_told_apart_by_what_they_answer():
    vmapped = branches.Vmapped(lambda x: x.sum() if x[0] > 0 else 2 * x.sum(), "same")
    vmapped.asks = True
    with pytest.raises(branches.Disagreement) as raised:
        vmapped(torch.tensor([[1.0], [-1.0], [2.0]]))
    assert raised.value.group.tolist() == [1, 0, 1]
    gradient, value = vmapped(torch.tensor([[1.0], [2.0]]))
    assert (gradient.tolist(), value.tolist()) == ([[1.0], [1.0]], [1.0, 2.0])


def test_nan_answers_like_nan():
    vmapped = branches.Vmapped(lambda x: x.sum() * len(x.detach().log().tolist()), "same")
    vmapped.asks = True
    vmapped(torch.tensor([[-1.0], [-2.0]]))
    with pytest.raises(branches.Disagreement) as raised:
        vmapped(torch.tensor([[-1.0], [1.0], [-2.0]]))
    assert raised.value.group[0] == raised.value.group[2]


def test_a_vmap_of_the_models_own_is_not_answered_for():
    def potential(x):
        return torch.func.vmap(lambda t: t if t > 0 else -t)(x).sum()

    vmapped = branches.Vmapped(potential, "same")
    vmapped.asks = True
    with pytest.raises(RuntimeError, match="vmap"):
        vmapped(torch.ones(3, 2))


def test_graphs_follow_points_onto_other_ways():
    """After a trace where all go one way, points go the other: they are right, and traced in the end."""
    target = Target(lambda x: x.square().sum() if x[0] > 0 else 3 * x.square().sum(), 1, dtype=torch.float64)
    target.probe(torch.tensor([[1.0], [-1.0], [2.0], [-0.5]]))
    for _ in range(5):
        target.evaluate(torch.ones(4, 1))
    full = target._full
    assert len(full._graphs[4].graphs) == 1
    x = torch.tensor([[-1.0], [2.0], [-3.0], [4.0]])
    seen = set()
    for _ in range(40):
        torch.testing.assert_close(target.evaluate(x)[1], -2 * x * torch.where(x > 0, 1.0, 3.0))
        seen.add(len(full._graphs[4].graphs) if 4 in full._graphs else 0)
    assert 2 in seen
    moving = x.clone().requires_grad_()
    (product,) = torch.autograd.grad(target.evaluate_differentiable(moving)[1].sum(), moving)
    torch.testing.assert_close(product, -2 * torch.where(x > 0, 1.0, 3.0))


def test_minibatches_of_points_that_disagree_are_drawn_one_by_one():
    """Which rows are drawn decides the answer here, half of the time: estimates stay unbiased."""
    rows = torch.tensor([0.0, 1.0])

    def minibatch(x):
        row = rows[torch.randint(2, ())]
        return x.sum() * (3.0 if row + 0 * x.sum() > 0.5 else 1.0)

    target = Target(
        lambda x: (2.0 if x.sum() < 9 else 1) * x.sum(), 1, dtype=torch.float64, forms=Forms(minibatch)
    )
    target.probe(torch.tensor([[1.0], [2.0]]))
    assert target.vectorised
    scores = target.evaluate(torch.ones(400, 1), minibatch=True)[1]
    assert set(scores.flatten().tolist()) == {-1.0, -3.0}
    # The sd of one is 1.
    assert abs(float(scores.mean()) + 2) < 5 / 400**0.5
