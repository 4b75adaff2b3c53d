"""What is wrong with a model is said by name, and global state is left as it was found."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro_models import data, make

from pyro_dft.errors import FidelityWarning, ModelError
from pyro_dft.pyro.model import PyroProblem


@pytest.fixture(autouse=True)
def _float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)


def problem_of(name: str) -> PyroProblem:
    model, args, _ = make(name)
    return PyroProblem(model, args)


def _no_latent(y):
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def _only_discrete(y):
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def _poisson(y):
    k = pyro.sample("k", dist.Poisson(torch.tensor(3.0)))
    mu = pyro.sample("mu", dist.Normal(k, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def _sphere(y):
    pyro.sample("direction", dist.ProjectedNormal(torch.zeros(2)))


def _plate_of_ten(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("ten", 10):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def _plate_of_ten_mean(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("ten", 10):
        pyro.sample("y", dist.Normal(mu + 0 * y, 1.0), obs=y)


def _plain(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def _impossible(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("fine", dist.Normal(mu, 1.0), obs=torch.tensor(1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Gamma(mu.exp(), 1.0), obs=-y.abs())


def _index(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("row", 10) as index:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])


@pytest.mark.parametrize(
    ("model", "y", "message"),
    [
        (_no_latent, torch.ones(()), "no latent sites"),
        (_only_discrete, torch.ones(()), r"only discrete latent sites \['z'\]"),
        (_poisson, torch.ones(()), "latent site 'k' has support .*Poisson.*cannot be enumerated"),
        (_sphere, torch.ones(()), "latent site 'direction' has support"),
        (
            _plate_of_ten,
            torch.ones(9),
            r"site 'y' inside plate 'ten' of size 10 .*observed data of shape \(9,\)",
        ),
        (
            _plate_of_ten,
            torch.ones(10, 1),
            r"data of site 'y' has shape \(10, 1\) inside plate 'ten' of size 10",
        ),
        (_plate_of_ten_mean, torch.ones(9), r"plate\('ten'\) at site y dim -1, 10 vs 9"),
        (_plain, torch.tensor([1.0, float("nan")]), "observed data of site 'y' holds 1 NaN of 2"),
        (_index, torch.ones(9), "failed after site 'row': IndexError: index 9 is out of bounds"),
        ("not a model", torch.ones(()), "model must be a callable"),
    ],
)
def test_model_errors_name_what_is_wrong(model, y, message):
    with pytest.raises(ModelError, match=message):
        PyroProblem(model, (y,))


def test_non_finite_potential_names_the_sites():
    problem = PyroProblem(_impossible, (data(0, 4),))
    with pytest.raises(ModelError, match=r"(?m)not finite at: 'y' \(4 of 4 terms\)$"):
        problem.initial_points(3, max_tries=5)


def test_nan_under_a_mask_spoils_the_gradient_and_is_named():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y)), poutine.mask(mask=~y.isnan()):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    problem = PyroProblem(model, (torch.tensor([1.0, float("nan")]),))
    with pytest.raises(ModelError, match=r"\['y'\] holds NaN under a mask"):
        problem.initial_points(3, max_tries=2)


def test_dtype_mix_names_the_argument():
    def model(design, y):
        b = pyro.sample("b", dist.Normal(torch.zeros(2, dtype=torch.float32), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(design @ b, 1.0).to_event(1), obs=y)

    with pytest.raises(
        ModelError, match=r"after site 'b'.*float32 on cpu, but .*: design \(float64 on cpu\)"
    ):
        PyroProblem(model, (data(0, 5, 2), torch.ones(5, dtype=torch.float32)))
    with pytest.raises(ModelError, match=r"(?m)tables\['x'\]\[0\] \(float64 on cpu\)$"):
        PyroProblem(
            lambda tables, y: model(tables["x"][0], y),
            ({"x": [data(0, 5, 2)]}, torch.ones(5, dtype=torch.float32)),
        )


def test_randomness_outside_of_sample_is_reported():
    def model():
        pyro.sample("mu", dist.Normal(torch.randn(()), 1.0))

    with pytest.warns(FidelityWarning, match="random numbers outside of pyro.sample"):
        PyroProblem(model)


def test_other_exceptions_of_the_model_pass_through():
    def model():
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        raise KeyError("user's own")

    with pytest.raises(KeyError, match="user's own"):
        PyroProblem(model)


def test_sites_that_come_and_go():
    def model():
        switch = pyro.sample("switch", dist.Normal(0.0, 1.0))
        if switch > 0:
            pyro.sample("sometimes", dist.Normal(0.0, 1.0))

    with pytest.raises(ModelError, match="(?m)'sometimes'.* only for some values.*in every run$"):
        PyroProblem(model).initial_points(64)


def test_subsample_that_is_drawn_once_and_for_all():
    rows = pyro.plate("rows", 10, subsample_size=3)

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with rows as index:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])

    with pytest.warns(FidelityWarning, match="plate 'rows' was made outside of the model.* 3 of 10 rows"):
        PyroProblem(model, (data(0, 10),))


def test_samples_of_the_wrong_shape():
    problem = problem_of("eight_schools")
    good = problem.constrain(problem.initial_points(3))
    with pytest.raises(ModelError, match=r"lack the latent sites \['tau'\]"):
        problem.unconstrain({name: value for name, value in good.items() if name != "tau"})
    with pytest.raises(ModelError, match=r"'theta' must have shape \(n, 8\), got \(3, 7\)"):
        problem.unconstrain(good | {"theta": good["theta"][:, :7]})
    with pytest.raises(ModelError, match="different numbers of draws"):
        problem.unconstrain(good | {"mu": good["mu"][:2]})


# Global state


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("name", ["mixture", "python_branch", "eight_schools"])
def test_global_state_is_left_as_found(name, validate):
    from pyro.ops import special
    from pyro.poutine.subsample_messenger import SubsampleMessenger

    distribution = torch.distributions.Distribution

    def state():
        return (
            pyro.infer.util.is_validation_enabled(),
            pyro.distributions.is_validation_enabled(),
            pyro.poutine.util.is_validation_enabled(),
            distribution._validate_args,
            distribution._validate_sample,
            special._SafeLog,
            torch.linalg.cholesky,
            torch.cholesky,
            torch.Tensor.cholesky,
            SubsampleMessenger.__dict__["_subsample"],
            torch.get_default_dtype(),
            sorted(pyro.get_param_store()),
            "__iter__" in SubsampleMessenger.__dict__,
            len(poutine.runtime._PYRO_STACK),
            warnings.filters[:],
        )

    with pyro.validation_enabled(validate):
        distribution.set_default_validate_args(not validate)  # torch's flag need not agree with Pyro's
        before = state()
        problem = problem_of(name)
        x = problem.initial_points(2)
        problem.values_and_gradients(x)
        samples = problem.constrain(x)
        problem.log_likelihood(samples)
        problem.posterior_predictive(samples)
        problem.prior_predictive(2)
        assert state() == before
        broken = PyroProblem(_impossible, (data(0, 4),))
        with pytest.raises(ModelError):
            broken.initial_points(1, max_tries=1)
        assert state() == before
    distribution.set_default_validate_args(True)


def test_same_seed_same_points():
    problem = problem_of("eight_schools")
    torch.manual_seed(3)
    first = problem.initial_points(4)
    torch.manual_seed(3)
    assert torch.equal(first, problem.initial_points(4))
