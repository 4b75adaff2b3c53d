"""A model whose distributions get parameters or data that they do not allow says so, whatever its density is."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch
from backends import BACKENDS, Y

from pyro_dft import FidelityWarning, ModelError
from pyro_dft.models import validity


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


def negative_concentration(backend):
    """b ~ Normal(0, 1) is a concentration: the density is finite wherever the gamma functions are positive."""
    ppl, dist = backend.ppl, backend.ppl.distributions

    def model():
        b = ppl.sample("b", dist.Normal(0.0, 1.0))
        ppl.sample("p", dist.Beta(2.0, b), obs=backend.array(0.5))

    return model


def test_parameters_out_of_their_range_fail_the_fit_and_are_named(backend):
    dft = backend.DFT(
        negative_concentration(backend), disable_progbar=True, train="never", num_draws=200, seed=1
    )
    with pytest.warns(FidelityWarning, match="invalid|do not allow"):
        backend.run(dft)
    report = dft.diagnostics()
    assert report["status"] == "failed"
    assert "invalid parameters" in report["alarms"]
    (name,) = {name for name in report["invalid"]["parameters"] if not name.endswith("concentration")} or {""}
    assert name in ("", "p: concentration0")
    assert all(name.startswith("p: ") for name in report["invalid"]["parameters"])
    share = next(iter(report["invalid"]["parameters"].values()))
    b = np.asarray(dft.get_samples()["b"])
    # 64 of 200 draws are looked at: 5 standard errors of their share.
    assert abs(share - (b < -1e-5).mean()) < 5 * (0.25 / validity.DRAWS) ** 0.5
    assert report["invalid"]["data"] == {}


@pytest.mark.filterwarnings("ignore:the fit is")  # a fit of a second may be doubted
def test_a_valid_model_has_nothing_to_name(backend):
    dft = backend.fitted(backend.dft("hierarchy"), Y)
    assert dft.diagnostics()["invalid"] == {"parameters": {}, "data": {}}


def uniform_data(backend, masked):
    """Data between the ends of a Uniform whose upper end is latent; NumPyro's density is finite outside as well."""
    ppl, dist = backend.ppl, backend.ppl.distributions
    mask = torch.tensor([True, False]) if backend.ppl is pyro else np.array([True, False])

    def model(y):
        scale = ppl.sample("scale", dist.LogNormal(0.0, 0.1))
        with ppl.plate("rows", 2):
            fn = dist.Uniform(-scale, scale)
            ppl.sample("y", fn.mask(mask) if masked else fn, obs=y)

    return model


def points(backend, problem):
    x = np.linspace(-0.5, 0.5, 10, dtype=np.float32)[:, None]
    return torch.as_tensor(x) if backend.ppl is pyro else x


@pytest.mark.parametrize("masked", [False, True])
def test_data_outside_of_a_support_that_moves_are_found_at_the_draws(backend, masked):
    from pyro_dft.numpyro.model import NumPyroProblem
    from pyro_dft.pyro.model import PyroProblem

    kind = PyroProblem if backend.ppl is pyro else NumPyroProblem
    problem = kind(uniform_data(backend, masked), (backend.array([0.5, 1.001]),))
    found = problem.invalid(points(backend, problem))
    # scale = exp(x): the second datum is outside for x <= 0, at five of ten points.
    assert found == {"parameters": {}, "data": {} if masked else {"y": 0.5}}


@pytest.mark.parametrize("value", [0.5, -0.5])
def test_pyro_refuses_data_that_no_parameter_allows(value):
    dist = pyro.distributions

    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 2):
            pyro.sample("y", dist.Poisson(a.exp()), obs=y)

    from pyro_dft.pyro.model import PyroProblem

    with pytest.raises(ModelError, match=r"'y' has 1 of 2 values outside of the support .* of Poisson"):
        PyroProblem(model, (torch.tensor([value, 2.0]),))
    with pyro.validation_enabled(False):  # the user's own choice
        assert PyroProblem(model, (torch.tensor([abs(value), 2.0]),)).structure.validated is False


def test_counts_that_are_no_counts_are_refused(backend):
    ppl, dist = backend.ppl, backend.ppl.distributions

    def model(y):
        a = ppl.sample("a", dist.Beta(2.0, 2.0))
        with ppl.plate("rows", 2):
            ppl.sample("y", dist.Bernoulli(a), obs=y)

    dft = backend.DFT(model, disable_progbar=True, train="never", num_draws=200)
    with pytest.raises(ModelError, match=r"'y' (has 1 of 2 values outside|\(1 of 2 terms\))"):
        backend.run(dft, backend.array([0.5, 1.0]))


class Bounds:
    def __init__(self, low=None, high=None):
        self.lower_bound, self.upper_bound = low, high


def test_rounding_is_no_violation():
    value = np.array([-1e-6, 0.0, 1.0, 1 + 1e-6, 1.1, -0.1])
    assert validity.outside(value, Bounds(0.0, 1.0)).tolist() == [False] * 4 + [True, True]
    assert validity.outside(value, Bounds(low=0.0)).tolist() == [False] * 5 + [True]
    assert validity.outside(value, object()) is None


def test_shares_leave_out_what_is_right():
    assert validity.shares({"a": np.array([True, False]), "b": np.array([False, False])}) == {"a": 0.5}
