"""A Pyro model as a function of one flat point, compared with the potential that Pyro's own NUTS uses."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide.initialization import init_to_mean, init_to_median, init_to_sample, init_to_value
from pyro.infer.mcmc.util import initialize_model
from pyro_models import CASES, data, eight_schools, make, mixture, schools_data
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_dft.errors import ModelError
from pyro_dft.pyro.model import PyroProblem


@pytest.fixture(autouse=True)
def _float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)


def problem_of(name: str) -> PyroProblem:
    model, args, _ = make(name)
    return PyroProblem(model, args)


def reference(name_or_model, args=None):
    """Pyro's potential of one flat point, and its transforms."""
    model, args = (name_or_model, args) if args is not None else make(name_or_model)[:2]
    with pyro.validation_enabled(False):
        params, potential, transforms, _ = initialize_model(model, args)
    shapes = {name: params[name].shape for name in sorted(params)}

    def split(x):
        parts, start = {}, 0
        for name, shape in shapes.items():
            parts[name] = x[start : start + shape.numel()].reshape(shape)
            start += shape.numel()
        return parts

    def value_and_gradient(x):
        x = x.clone().requires_grad_()
        with pyro.validation_enabled(False):
            u = potential(split(x))
        (g,) = torch.autograd.grad(u, x)
        return u.detach(), g

    return value_and_gradient, split, transforms


def batched(problem, x, randomness="same"):
    with problem.context():
        g, u = torch.func.vmap(torch.func.grad_and_value(problem.potential), randomness=randomness)(x)
    return u, g


@pytest.mark.parametrize("name", CASES)
def test_potential_and_transforms_equal_pyro(name):
    problem = problem_of(name)
    value_and_gradient, split, transforms = reference(name)
    x = problem.initial_points(3, radius=1.0)
    expected = [value_and_gradient(row) for row in x]
    u, g = problem.values_and_gradients(x)
    if name != "obs_mask":  # there alone the density is not Pyro's: see tests/test_missing_rows.py
        torch.testing.assert_close(u, torch.stack([pair[0] for pair in expected]), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(g, torch.stack([pair[1] for pair in expected]), rtol=1e-7, atol=1e-8)
    sites = problem.constrain(x)
    for i, row in enumerate(x):
        for site, value in split(row).items():
            torch.testing.assert_close(sites[site][i], transforms[site].inv(value), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(problem.unconstrain(sites), x, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2]])
def test_batches_with_and_without_gradient(name):
    problem = problem_of(name)
    assert problem.batchable
    x = problem.initial_points(3, radius=1.0)
    rows = torch.stack([problem.potential(row) for row in x])
    u, _ = batched(problem, x)
    torch.testing.assert_close(u, rows, rtol=1e-10, atol=1e-10)
    with problem.context():
        plain = torch.func.vmap(problem.potential, randomness="same")(x)
    torch.testing.assert_close(plain, rows, rtol=1e-10, atol=1e-10)


# Second derivatives through a graph of plain tensor operations are what training runs on.
@pytest.mark.parametrize(
    "name", ["eight_schools", "mixture", "sequential_plate", "written_in_place", "network"]
)
def test_traces_into_a_graph(name):
    problem = problem_of(name)
    x = problem.initial_points(3, radius=1.0)
    with problem.context():
        function = torch.func.vmap(torch.func.grad_and_value(problem.potential), randomness="same")
        graph = make_fx(lambda z: function(z))(x)
    y = (0.9 * x).requires_grad_()
    g, u = graph(y)
    expected_u, expected_g = batched(problem, y.detach())
    torch.testing.assert_close(u, expected_u)
    torch.testing.assert_close(g, expected_g)
    (hvp,) = torch.autograd.grad(g[0].sum(), y)
    hessian = torch.autograd.functional.hessian(problem.potential, y[0].detach())
    torch.testing.assert_close(hvp[0], hessian.sum(0), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case[2]])
def test_models_that_ask_for_values_are_batched_by_their_answers(name):
    problem = problem_of(name)
    assert problem.batchable
    assert problem._asks
    x = problem.initial_points(6, radius=1.0)
    values, gradients = problem.values_and_gradients(x)
    for row, value, gradient in zip(x, values, gradients, strict=True):
        expected = problem._value_and_gradient(row)
        torch.testing.assert_close((value, gradient), expected)


def test_layout_of_supports():
    problem = problem_of("many_supports")
    kinds = {site.name: (site.transform, site.unconstrained_shape) for site in problem.layout.sites}
    assert kinds == {
        "factor": ("corr_cholesky", (3,)),
        "rate": ("positive", ()),
        "scale": ("positive", (3,)),
        "share": ("unit_interval", ()),
        "weights": ("simplex", (2,)),
    }
    ordinal = {site.name: site.transform for site in problem_of("ordinal").layout.sites}
    assert ordinal == {"angle": "real", "cuts": "ordered_vector", "slope": "real"}
    assert {s.name: s.transform for s in problem_of("bounded").layout.sites}["a"] == "greater_than"


def test_float32_model_stays_float32():
    torch.set_default_dtype(torch.float32)
    problem = problem_of("eight_schools")
    x = problem.initial_points(4)
    assert problem.dtype == x.dtype == torch.float32
    u, g = batched(problem, x)
    assert u.dtype == g.dtype == torch.float32
    assert problem.constrain(x)["theta"].dtype == torch.float32


def test_float64_data_with_float32_latents():
    effect, error = schools_data()
    torch.set_default_dtype(torch.float32)
    problem = PyroProblem(eight_schools, (effect, error))
    x = problem.initial_points(4)
    assert problem.dtype == x.dtype == torch.float32
    assert batched(problem, x)[0].dtype == torch.float32


def test_mixed_latent_dtypes_use_the_wider_one():
    def model():
        a = pyro.sample("a", dist.Normal(torch.zeros(2, dtype=torch.float32), 1.0).to_event(1))
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        assert a.dtype == torch.float32
        assert b.dtype == torch.float64

    problem = PyroProblem(model)
    assert problem.dtype == torch.float64
    torch.testing.assert_close(
        problem.potential(torch.ones(4)), torch.tensor(2 + 2 * torch.log(torch.tensor(2 * torch.pi)).item())
    )


def test_one_bad_covariance_gives_nan_in_its_row_only():
    def model(y):
        c = pyro.sample("c", dist.Normal(0.0, 1.0))
        cov = torch.eye(2) + c * (1 - torch.eye(2))  # positive definite for |c| < 1
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), covariance_matrix=cov), obs=y)

    problem = PyroProblem(model, (torch.ones(2),))
    x = torch.tensor([[0.5], [1.5], [-0.2]])
    u, g = batched(problem, x)
    assert u.isfinite().tolist() == [True, False, True]
    assert g.isfinite().flatten().tolist() == [True, False, True]
    torch.testing.assert_close(u[0], problem.potential(x[0]))
    assert problem.potential(x[1]).isnan()
    assert problem.initial_points(20).abs().max() < 1


def test_linear_algebra_error_at_one_point_counts_as_nan():
    def model():
        c = pyro.sample("c", dist.Normal(0.0, 1.0))
        matrix = torch.stack([torch.stack([c, c]), torch.stack([c, c])])
        solution = torch.linalg.solve(matrix + torch.eye(2) * (c.abs() > 0.5), torch.ones(2))
        pyro.factor("f", -solution.pow(2).sum())

    problem = PyroProblem(model)
    assert problem.potential(torch.tensor([0.1])).isnan()
    x = problem.initial_points(5)
    assert (x.abs() > 0.5).all()


def test_support_that_depends_on_another_site():
    def model():
        top = pyro.sample("top", dist.LogNormal(torch.tensor(0.0), 0.5))
        pyro.sample("u", dist.Uniform(0.0, top))

    problem = PyroProblem(model)
    x = problem.initial_points(50)
    sites = problem.constrain(x)
    assert (sites["u"] < sites["top"]).all()
    torch.testing.assert_close(problem.unconstrain(sites), x, rtol=1e-7, atol=1e-7)
    # log density: LogNormal in log coordinates is Normal(0, .5); the logit of u / top is a standard logistic.
    top, u = x.unbind(-1)
    expected = -dist.Normal(0.0, 0.5).log_prob(top) - dist.Logistic(0.0, 1.0).log_prob(u)
    torch.testing.assert_close(batched(problem, x)[0], expected)


def test_improper_prior():
    def model(y):
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = data(0, 5)
    problem = PyroProblem(model, (y,))
    expected = -dist.Normal(0.3, 1.0).log_prob(y).sum()
    torch.testing.assert_close(problem.potential(torch.tensor([0.3])), expected)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_positive_definite_matrices(side):
    def model():
        pyro.sample("precision", dist.Wishart(torch.tensor(side + 2.0), torch.eye(side)))

    problem = PyroProblem(model)
    assert problem.dim == side * (side + 1) // 2
    assert problem.layout.sites[0].transform == "positive_definite"
    x = data(side, problem.dim)
    rows, columns = torch.tril_indices(side, side)

    def entries(x):
        return problem.transforms["precision"].inv(x)[rows, columns]

    jacobian = torch.autograd.functional.jacobian(entries, x)
    matrix = problem.constrain(x[None])["precision"][0]
    log_prob = dist.Wishart(torch.tensor(side + 2.0), torch.eye(side)).log_prob(matrix)
    torch.testing.assert_close(problem.potential(x), -log_prob - torch.linalg.slogdet(jacobian)[1])
    torch.testing.assert_close(problem.unconstrain(problem.constrain(x[None]))[0], x)


def test_transforms_can_be_given():
    scaled = dist.transforms.AffineTransform(0.0, 0.1)
    plain = PyroProblem(eight_schools, schools_data())
    problem = PyroProblem(eight_schools, schools_data(), transforms={"mu": scaled})
    x = plain.initial_points(1)[0]
    y = x.clone()
    y[0] = x[0] * 0.1
    torch.testing.assert_close(problem.potential(y), plain.potential(x) - torch.log(torch.tensor(10.0)))
    with pytest.raises(ModelError, match="sigma"):
        PyroProblem(eight_schools, schools_data(), transforms={"sigma": scaled})


# Starting points


@pytest.mark.parametrize("strategy", [init_to_median, init_to_sample])
def test_init_strategies(strategy):
    problem = problem_of("eight_schools")
    x = problem.initial_points(4, init_strategy=strategy)
    assert x.shape == (4, 10)
    assert problem.values_and_gradients(x)[0].isfinite().all()


def test_init_to_mean_and_value():
    problem = problem_of("logistic")
    assert (problem.initial_points(3, init_strategy=init_to_mean) == 0).all()
    strategy = init_to_value(values={"mu": torch.tensor(3.0), "tau": torch.tensor(2.0)})
    problem = problem_of("eight_schools")
    sites = problem.constrain(problem.initial_points(4, init_strategy=strategy))
    assert (sites["mu"] == 3.0).all()
    torch.testing.assert_close(sites["tau"], torch.full((4,), 2.0))


def test_default_initial_points_fill_the_box():
    x = problem_of("eight_schools").initial_points(500, radius=0.5)
    assert x.abs().max() <= 0.5
    # The largest of 5000 uniform draws misses the last 1 % of the box with probability .99^5000 < 1e-21.
    assert x.abs().max() > 0.495


def test_init_strategy_of_an_enumerated_model():
    x = PyroProblem(mixture, (data(0, 9),)).initial_points(2, init_strategy=init_to_median)
    assert x.shape == (2, 5)
