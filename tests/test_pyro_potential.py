"""Bare potential functions, as NUTS(potential_fn=...) takes them."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_dft.errors import ModelError
from pyro_dft.pyro.potential import PotentialProblem


@pytest.fixture(autouse=True)
def _float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)


def test_potential_problem():
    transforms = {"scale": dist.transforms.ExpTransform().inv}
    start = {"scale": torch.tensor(0.5), "loc": torch.tensor([1.0, 2.0])}
    problem = PotentialProblem(lambda z: (z["loc"] ** 2).sum() + z["scale"].exp(), start, transforms)
    assert problem.layout.names == ("loc", "scale")
    assert [site.transform for site in problem.layout.sites] == ["real", "positive"]
    x = problem.initial_points(5)
    torch.testing.assert_close(x[0], torch.tensor([1.0, 2.0, 0.5]))
    u, g = problem.values_and_gradients(x)
    torch.testing.assert_close(u, x[:, 0] ** 2 + x[:, 1] ** 2 + x[:, 2].exp())
    torch.testing.assert_close(g[:, :2], 2 * x[:, :2])
    sites = problem.constrain(x)
    torch.testing.assert_close(sites["scale"], x[:, 2].exp())
    torch.testing.assert_close(problem.unconstrain(sites), x)
    assert problem.noncentering_candidates() == ()
    assert torch.equal(problem.original_coordinates(x), x)


@pytest.mark.parametrize(
    "method", ["log_likelihood", "posterior_predictive", "prior_predictive", "observed", "noncentered"]
)
def test_potential_problem_has_no_model(method):
    problem = PotentialProblem(lambda z: (z["a"] ** 2).sum(), {"a": torch.zeros(2)})
    argument = {"prior_predictive": (3,), "observed": (), "noncentered": (("a",),)}.get(method, ({},))
    with pytest.raises(ModelError, match="Pyro model"):
        getattr(problem, method)(*argument)


@pytest.mark.parametrize(
    ("potential_fn", "params", "transforms", "message"),
    [
        (3, {"a": torch.zeros(2)}, None, "potential_fn must be callable"),
        (lambda z: z["a"].sum(), {}, None, "at least one"),
        (
            lambda z: z["a"].sum(),
            {"a": torch.zeros(2, dtype=torch.long)},
            None,
            r"\['a'\] must be a floating",
        ),
        (lambda z: z["a"].sum(), {"a": torch.zeros(2)}, {"b": None}, r"\['b'\]"),
        (lambda z: z["a"], {"a": torch.zeros(2)}, None, r"scalar, got shape \(2,\)"),
    ],
)
def test_potential_problem_errors(potential_fn, params, transforms, message):
    with pytest.raises(ModelError, match=message):
        PotentialProblem(potential_fn, params, transforms)
