"""Non-centred coordinates: the same posterior with the right Jacobian, whatever the model."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro_models import CASES, data, eight_schools_noncentered, make, schools_data

from pyro_dft.errors import ModelError
from pyro_dft.pyro.model import PyroProblem


@pytest.fixture(autouse=True)
def _float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)


def check_identity(problem, sites, n=3):
    """potential(y) = original potential(T(y)) - log |det dT/dy|, with the determinant from autograd."""
    moved = problem.noncentered(sites)
    y = problem.initial_points(n, radius=1.0)
    x = moved.original_coordinates(y)
    with moved.context():
        g, u = torch.func.vmap(torch.func.grad_and_value(moved.potential), randomness="same")(y)
    for i, row in enumerate(y):
        jacobian = torch.autograd.functional.jacobian(lambda v: _transport(moved, v), row)
        expected = problem.potential(x[i]) - torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(u[i], expected, rtol=1e-9, atol=1e-9)
        with moved.context():
            by_hand = torch.autograd.functional.jacobian(moved.potential, row)
        torch.testing.assert_close(g[i], by_hand, rtol=1e-8, atol=1e-9)
    # The same values, in both coordinates.
    ours, theirs = moved.constrain(y), problem.constrain(x)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved.unconstrain(ours), y, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(problem.unconstrain(ours), x, rtol=1e-7, atol=1e-7)
    return moved


def _transport(moved, v):
    """original_coordinates of one point, with a gradient."""
    with moved.context():
        place = moved._place(v)[0]
        moved.run(place)
    parts = place.coordinates | place.original
    return torch.cat([parts[name].reshape(-1) for name in moved.layout.names])


def test_eight_schools():
    problem = PyroProblem(make("eight_schools")[0], schools_data())
    assert problem.noncentering_candidates() == ("theta",)
    moved = check_identity(problem, ("theta",))
    assert {site.name: site.transform for site in moved.layout.sites} == {
        "mu": "real", "tau": "positive", "theta": "noncentered"
    }  # fmt: skip
    assert {site.transform for site in problem.layout.sites} == {"real", "positive"}
    # The hand-written non-centred model has the same density up to a constant.
    by_hand = PyroProblem(eight_schools_noncentered, schools_data())
    y = problem.initial_points(5)
    written = torch.cat([y[:, :1], y[:, 2:], y[:, 1:2]], -1)  # its coordinates are mu, raw, tau
    torch.testing.assert_close(moved.values_and_gradients(y)[0], by_hand.values_and_gradients(written)[0])


def test_each_site_of_a_chain_of_parents_is_a_candidate():
    def model(y):
        s0 = pyro.sample("s0", dist.HalfNormal(torch.tensor(2.0)))
        mu = pyro.sample("mu", dist.Normal(1.0, s0))
        tau = pyro.sample("tau", dist.LogNormal(torch.tensor(0.0), s0))
        with pyro.plate("group", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    problem = PyroProblem(model, (data(0, 4),))
    assert problem.noncentering_candidates() == ("mu", "tau", "theta")
    check_identity(problem, ("mu", "tau", "theta"))
    check_identity(problem, ("mu", "theta"))
    step = problem.noncentered(("mu",)).noncentered(("theta", "tau"))
    y = problem.initial_points(3)
    at_once = problem.noncentered(("mu", "tau", "theta"))
    torch.testing.assert_close(step.values_and_gradients(y)[0], at_once.values_and_gradients(y)[0])
    assert step.layout == at_once.layout


@pytest.mark.parametrize(
    "family",
    [
        lambda m, s: dist.Normal(m, s),
        lambda m, s: dist.StudentT(torch.tensor(4.0), m, s),
        lambda m, s: dist.Laplace(m, s),
        lambda m, s: dist.Cauchy(m, s),
        lambda m, s: dist.Gumbel(m, s),
        lambda m, s: dist.Logistic(m, s),
        lambda m, s: dist.LogNormal(m, s),
        lambda m, s: dist.Normal(m, s).expand([3]),
        lambda m, s: dist.Normal(m, s).expand([3]).to_event(1),
        lambda m, s: dist.LogNormal(m, s).expand([3, 2]).to_event(2),
        lambda m, s: dist.Normal(m, s).expand([3]).mask(torch.tensor([True, False, True])),
        lambda m, s: dist.Logistic(m, s).expand([2]).to_event(1).mask(True),
        lambda m, s: dist.MultivariateNormal(m.expand(2), covariance_matrix=s * (torch.eye(2) + 0.5)),
        lambda m, s: dist.MultivariateNormal(torch.zeros(2), s * torch.eye(2)).expand([3]).to_event(1),
    ],
)
def test_non_centred_families_have_the_same_posterior(family):
    def model():
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        s = pyro.sample("s", dist.LogNormal(torch.tensor(0.0), 0.5))
        a = pyro.sample("a", family(m, s))
        pyro.factor("f", -0.5 * a.pow(2).sum())

    problem = PyroProblem(model)
    assert problem.noncentering_candidates() == ("a",)
    check_identity(problem, ("a",))


def test_standardised_coordinates_have_a_standard_prior():
    def model():
        s = pyro.sample("s", dist.LogNormal(torch.tensor(0.0), 2.0))
        with pyro.plate("p", 3):
            pyro.sample("a", dist.Normal(5.0, s))

    moved = PyroProblem(model).noncentered(("a",))
    y = data(0, 4, 4)
    expected = -dist.Normal(0.0, 1.0).log_prob(y[:, :3]).sum(-1) - dist.Normal(0.0, 2.0).log_prob(y[:, 3])
    torch.testing.assert_close(moved.values_and_gradients(y)[0], expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("state_space", ("x_0", "x_1", "x_2", "x_3", "x_4")),
        ("sequential_plate", ("loc_0", "loc_1", "loc_2")),
        ("latent_gaussian_process", ("f",)),
        ("obs_mask", ("y_unobserved",)),
        ("loc_scale_reparam", ("theta_decentered",)),
    ],
)
def test_candidates_of_other_models(name, expected):
    model, args, _ = make(name)
    problem = PyroProblem(model, args)
    assert problem.noncentering_candidates() == expected
    check_identity(problem, expected)


@pytest.mark.parametrize(
    "name", ["logistic", "many_supports", "mixture", "hidden_markov", "gaussian_process"]
)
def test_models_without_candidates(name):
    assert name in CASES
    model, args, _ = make(name)
    problem = PyroProblem(model, args)
    assert problem.noncentering_candidates() == ()
    with pytest.raises(ModelError, match=r"\['nothing'\] cannot be non-centred; those that can are \[\]"):
        problem.noncentered(["nothing"])


def test_sites_with_given_transforms_are_no_candidates():
    double = {"theta": dist.transforms.AffineTransform(0.0, 2.0)}
    problem = PyroProblem(make("eight_schools")[0], schools_data(), transforms=double)
    assert problem.noncentering_candidates() == ()


def test_subsampled_and_masked_model():
    def model(x, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        tau = pyro.sample("tau", dist.HalfNormal(torch.tensor(1.0)))
        with pyro.plate("group", 3):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
        with pyro.plate("row", len(y), subsample_size=4) as index, poutine.mask(mask=y[index] > -1):
            pyro.sample("y", dist.Normal(theta[x[index]], 1.0), obs=y[index])

    problem = PyroProblem(model, (torch.arange(12) % 3, data(0, 12)))
    moved = check_identity(problem, ("theta",))
    y = problem.initial_points(1)
    with moved.context():
        _, u = torch.func.vmap(torch.func.grad_and_value(moved.minibatch_potential), randomness="different")(
            y.expand(2000, -1)
        )
    # The mean of 2000 minibatches against the full potential, 4.5 standard errors.
    assert (u.mean() - moved.potential(y[0])).abs() < 4.5 * u.std() / 2000**0.5


def test_dynamic_support_and_noncentred_site_together():
    def model():
        top = pyro.sample("top", dist.LogNormal(torch.tensor(0.0), 0.5))
        u = pyro.sample("u", dist.Uniform(0.0, top))
        pyro.sample("a", dist.Normal(u, top))

    problem = PyroProblem(model)
    check_identity(problem, ("a",))


def test_samples_and_predictions_do_not_depend_on_the_coordinates():
    problem = PyroProblem(make("eight_schools")[0], schools_data())
    moved = problem.noncentered(("theta",))
    samples = moved.constrain(moved.initial_points(5))
    torch.testing.assert_close(moved.log_likelihood(samples), problem.log_likelihood(samples))
    assert moved.posterior_predictive(samples)["effect"].shape == (5, 8)
    assert moved.plate_dims() == problem.plate_dims()
