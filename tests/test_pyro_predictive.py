"""Pointwise log-likelihoods, replicated data and dimension names."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.distributions.util import scale_and_mask
from pyro_models import CASES, data, make

from pyro_dft.errors import ModelError
from pyro_dft.pyro import batching
from pyro_dft.pyro.model import PyroProblem

ENUMERATED = {"mixture", "mixture_vindex", "hidden_markov"}


@pytest.fixture(autouse=True)
def _float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)


def problem_and_samples(name, n=4):
    model, args, _ = make(name)
    problem = PyroProblem(model, args)
    return problem, problem.constrain(problem.initial_points(n, radius=1.0))


@pytest.mark.parametrize("name", sorted(set(CASES) - ENUMERATED))
def test_log_likelihood_equals_one_run_per_draw(name):
    problem, samples = problem_and_samples(name)
    result = problem.log_likelihood(samples)
    assert set(result) == set(problem.observed())
    assert problem.without_likelihood() == {}
    for i in range(4):
        values = {site: samples[site][i] for site in problem.layout.names}
        with pyro.validation_enabled(False):
            trace = poutine.trace(poutine.condition(problem.model, values)).get_trace(*problem.args)
            trace.compute_log_prob()
        for site, value in result.items():
            node = trace.nodes[site]
            expected = scale_and_mask(node["unscaled_log_prob"], mask=node["mask"])
            torch.testing.assert_close(value[i], expected, rtol=1e-9, atol=1e-10)


def test_log_likelihood_shapes_and_masks():
    problem, samples = problem_and_samples("logistic")
    assert problem.log_likelihood(samples)["y"].shape == (4, 20)
    problem, samples = problem_and_samples("state_space")
    assert {name: value.shape for name, value in problem.log_likelihood(samples).items()} == {
        f"y_{t}": (4,) for t in range(5)
    }
    mask = torch.arange(7) % 3 != 0
    for name, site in (("poutine_mask", "y"), ("distribution_mask", "y"), ("obs_mask", "y_observed")):
        problem, samples = problem_and_samples(name)
        value = problem.log_likelihood(samples)[site]
        assert ((value != 0) == mask).all()
    problem, samples = problem_and_samples("gaussian_process")
    assert problem.log_likelihood(samples)["y"].shape == (4,)
    problem, samples = problem_and_samples("factor")
    assert problem.log_likelihood(samples) == {}


def test_log_likelihood_ignores_the_subsample():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y), subsample_size=3) as index:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])

    y = data(0, 10)
    problem = PyroProblem(model, (y,))
    mu = torch.tensor([0.1, -0.4])
    result = problem.log_likelihood({"mu": mu})["y"]
    torch.testing.assert_close(result, dist.Normal(mu[:, None], 1.0).log_prob(y))
    assert torch.equal(problem.observed()["y"], y)
    assert problem.posterior_predictive({"mu": mu})["y"].shape == (2, 10)


def test_log_likelihood_sums_out_a_discrete_site_per_datum():
    problem, samples = problem_and_samples("mixture")
    y = problem.observed()["y"]
    by_component = dist.Normal(samples["loc"][:, None], 1.0).log_prob(y[None, :, None])
    expected = torch.logsumexp(samples["weights"].log()[:, None] + by_component, -1)
    torch.testing.assert_close(problem.log_likelihood(samples)["y"], expected)
    problem, samples = problem_and_samples("mixture_vindex")
    y = problem.observed()["y"]
    by_component = dist.Normal(samples["loc"][:, None], 1.0).log_prob(y[None, :, None]).sum(-1)
    expected = torch.logsumexp(samples["weights"].log()[:, None] + by_component, -1)
    torch.testing.assert_close(problem.log_likelihood(samples)["y"], expected)


def test_log_likelihood_of_a_hidden_chain_does_not_exist():
    problem, samples = problem_and_samples("hidden_markov")
    with pytest.raises(ModelError, match=r"no observed site .*'y_0' shares discrete sites with \['y_1'"):
        problem.log_likelihood(samples)


def test_log_likelihood_returns_the_sites_that_have_one():
    def model(y, extra):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        k = pyro.sample("k", dist.Bernoulli(0.3))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(loc[k.long()], 1.0), obs=y)
            pyro.sample("extra", dist.Normal(loc[0], 2.0), obs=extra)

    problem = PyroProblem(model, (data(0, 5), data(1, 5)))
    samples = problem.constrain(problem.initial_points(3))
    result = problem.log_likelihood(samples)
    assert set(result) == {"extra"}
    torch.testing.assert_close(result["extra"], dist.Normal(samples["loc"][:, :1], 2.0).log_prob(data(1, 5)))
    assert problem.without_likelihood() == {
        "y": "depends on sites ['k'] with other plates through discrete sites"
    }


def test_rows_are_batched_in_chunks_with_the_same_result(monkeypatch):
    problem, samples = problem_and_samples("logistic", 7)
    expected = problem.log_likelihood(samples)["y"]
    monkeypatch.setattr("pyro_dft.pyro.problem._CHUNK_ELEMENTS", 3 * problem._elements)
    assert problem._chunk(7) == 3
    torch.testing.assert_close(problem.log_likelihood(samples)["y"], expected)


@pytest.mark.parametrize("name", sorted(CASES))
def test_posterior_predictive_has_the_shape_of_the_data(name):
    problem, samples = problem_and_samples(name, 3)
    result = problem.posterior_predictive(samples)
    assert {site: value.shape for site, value in result.items()} == {
        site: (3, *value.shape) for site, value in problem.observed().items()
    }
    for site, value in result.items():
        assert value.isfinite().all(), site


def test_posterior_predictive_moments():
    problem, samples = problem_and_samples("eight_schools", 1)
    many = {site: value.expand(20000, *value.shape[1:]) for site, value in samples.items()}
    result = problem.posterior_predictive(many)["effect"]
    error = problem.args[1]
    # Mean of 20 000 draws: standard error error / sqrt(20000); sd: error / sqrt(40000). 4.5 of each.
    assert ((result.mean(0) - samples["theta"][0]).abs() < 4.5 * error / 20000**0.5).all()
    assert ((result.std(0) - error).abs() < 4.5 * error / 40000**0.5).all()


def test_posterior_predictive_of_a_vector_scored_by_a_scalar():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    problem = PyroProblem(model, (data(0, 6),))
    draws = problem.posterior_predictive({"mu": torch.zeros(500)})["y"]
    assert draws.shape == (500, 6)
    correlation = torch.corrcoef(draws.T) - torch.eye(6)
    assert correlation.abs().max() < 4.5 / 500**0.5  # independent data: standard error 1 / sqrt(500)


def test_posterior_predictive_draws_discrete_sites_from_their_posterior():
    def model(y):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        with pyro.plate("row", len(y)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.9, 0.1])))
            pyro.sample("y", dist.Normal(loc[z], 0.1), obs=y)

    # Data at the rare component: the prior would put 9 of 10 replicates at the other one.
    problem = PyroProblem(model, (torch.tensor([3.0, -3.0, 3.0]),))
    samples = {"loc": torch.tensor([-3.0, 3.0]).expand(200, 2)}
    draws = problem.posterior_predictive(samples)["y"]
    torch.testing.assert_close(
        draws.mean(0), torch.tensor([3.0, -3.0, 3.0]), atol=4.5 * 0.1 / 200**0.5, rtol=0
    )


def test_prior_predictive():
    problem, _ = problem_and_samples("eight_schools_noncentered")
    result = problem.prior_predictive(4000)
    assert {site: value.shape for site, value in result.items()} == {
        "mu": (4000,), "tau": (4000,), "raw": (4000, 8), "theta": (4000, 8), "effect": (4000, 8)
    }  # fmt: skip
    torch.testing.assert_close(
        result["theta"], result["mu"][:, None] + result["tau"][:, None] * result["raw"]
    )
    # The prior of mu has mean 0 and sd 5: 4.5 standard errors.
    assert result["mu"].mean().abs() < 4.5 * 5 / 4000**0.5
    assert (result["mu"].std() - 5).abs() < 4.5 * 5 / 8000**0.5
    assert not torch.equal(result["effect"][0], result["effect"][1])


@pytest.mark.parametrize("name", sorted(CASES))
def test_prior_predictive_runs(name):
    problem, _ = problem_and_samples(name, 1)
    result = problem.prior_predictive(3)
    assert {len(value) for value in result.values()} == {3}
    assert set(problem.layout.names) | set(problem.observed()) <= set(result)


def test_prior_predictive_of_an_improper_prior():
    def model():
        pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))

    with pytest.raises(ModelError, match="prior cannot be sampled.*ImproperUniform"):
        PyroProblem(model).prior_predictive(3)


@pytest.mark.parametrize("name", ["eight_schools", "mixture", "logistic", "many_likelihoods", "ordinal"])
def test_batched_and_looped_rows_agree(name, monkeypatch):
    problem, samples = problem_and_samples(name)
    fast = problem.log_likelihood(samples)
    calls = []

    def no_vmap(*args, **kwargs):
        calls.append(1)
        raise RuntimeError("not today")

    monkeypatch.setattr(batching.torch.func, "vmap", no_vmap)
    slow = problem.log_likelihood(samples)
    assert calls
    for site in fast:
        torch.testing.assert_close(fast[site], slow[site], rtol=1e-10, atol=1e-12)


def test_plate_dims():
    def model(y):
        with pyro.plate("group", 3, dim=-2):
            a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("time", 4, dim=-1):
                pyro.deterministic("twice", 2 * a[..., 0] + torch.zeros(3, 4))
                pyro.sample("y", dist.MultivariateNormal(a, torch.eye(2)), obs=y)
        pyro.sample("w", dist.Dirichlet(torch.ones(3)))

    problem = PyroProblem(model, (data(0, 3, 4, 2),))
    assert problem.plate_dims() == {
        "a": ["group", "a_dim_1", "a_dim_2"],
        "twice": ["group", "time"],
        "w": ["w_dim_0"],
        "y": ["group", "time", "y_dim_2"],
    }
    assert problem_and_samples("eight_schools")[0].plate_dims() == {
        "effect": ["school"], "mu": [], "tau": [], "theta": ["school"]
    }  # fmt: skip


def test_constrain_leaves_out_values_that_depend_on_discrete_sites():
    def model(y):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.deterministic("gap", loc[1] - loc[0])
        # As many rows as there are components, just where the dimension of the discrete site will be.
        pyro.deterministic("matrix", loc[:, None] + torch.zeros(2, 5))
        with pyro.plate("row", len(y)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2)))
            mean = pyro.deterministic("mean", loc[z])
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    problem = PyroProblem(model, (data(0, 5),))
    sites = problem.constrain(problem.initial_points(4))
    assert set(sites) == {"loc", "gap", "matrix"}
    torch.testing.assert_close(sites["gap"], sites["loc"][:, 1] - sites["loc"][:, 0])
    assert set(problem.constrain(problem.initial_points(4), include_deterministic=False)) == {"loc"}


def test_reparametrised_sites_are_returned():
    problem, sites = problem_and_samples("loc_scale_reparam")
    assert "theta_decentered" in problem.layout.names
    theta = sites["theta_decentered"]
    mu, tau = sites["mu"][:, None], sites["tau"][:, None]
    torch.testing.assert_close(sites["theta"], mu + tau**0.7 * (theta - 0.3 * mu))
