"""How far sites are non-centred: less where the data say much about them, and for good once it is fitted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch

from pyro_dft.experimental import Experimental
from pyro_dft.models import amounts
from pyro_dft.numpyro import DFT
from pyro_dft.numpyro import amounts as jax_amounts
from pyro_dft.numpyro import backend as front
from pyro_dft.numpyro.model import NumPyroProblem
from pyro_dft.pyro import amounts as torch_amounts
from pyro_dft.pyro.model import PyroProblem

Y = np.random.default_rng(3).normal(size=12).astype(np.float32)


def two_hierarchies(ppl):
    """Each value of the first group is measured to a twentieth of its spread, each of the second to three times of it."""
    dist = ppl.distributions

    def model(y, z):
        s = ppl.sample("s", dist.HalfNormal(2.0))
        q = ppl.sample("q", dist.HalfNormal(2.0))
        m = ppl.sample("m", dist.Normal(0.0, 3.0))
        with ppl.plate("first", len(y)):
            a = ppl.sample("a", dist.Normal(m, s))
            ppl.sample("y", dist.Normal(a, 0.05), obs=y)
        with ppl.plate("second", len(z)):
            b = ppl.sample("b", dist.Normal(m, q))
            ppl.sample("z", dist.Normal(b, 6.0), obs=z)

    return model


@pytest.mark.parametrize("where", ["pyro", "numpyro"])
def test_amounts_are_small_where_the_data_say_much(where):
    if where == "pyro":
        problem = PyroProblem(two_hierarchies(pyro), (torch.as_tensor(Y), 2 * torch.as_tensor(Y)))
        found = torch_amounts.fitted(problem, ("a", "b"))
        again = torch_amounts.fitted(problem, ("a", "b"))
    else:
        problem = NumPyroProblem(two_hierarchies(numpyro), (jnp.asarray(Y), 2 * jnp.asarray(Y)))
        found, again = jax_amounts.fitted(problem, ("a", "b")), jax_amounts.fitted(problem, ("a", "b"))
    assert found["a"] <= 0.5
    assert found["b"] >= 0.75
    assert found == again


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(lambda s: s > 0, id="all points agree"),
        pytest.param(lambda s: s < 1, id="some do not", marks=pytest.mark.slow),
    ],
)
def test_a_pyro_model_that_asks_for_its_values_has_the_same_amounts(asked):
    model = two_hierarchies(pyro)

    def asking(y, z):
        with pyro.poutine.trace() as trace:
            model(y, z)
        s = trace.trace.nodes["s"]["value"]
        if asked(s):
            pyro.factor("nothing", torch.zeros(()))

    data = torch.as_tensor(Y), 2 * torch.as_tensor(Y)
    found = torch_amounts.fitted(PyroProblem(asking, data), ("a", "b"))
    assert found == torch_amounts.fitted(PyroProblem(model, data), ("a", "b"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pyro_dft.errors.FidelityWarning")
def test_a_saved_sampler_finds_its_coordinates_again(tmp_path, monkeypatch):
    brief = Experimental(precondition_steps=50)
    fit = DFT(two_hierarchies(numpyro), train="never", num_draws=200, experimental=brief, num_chains=1)
    fit.run(jax.random.key(0), Y, 2 * Y)
    assert fit.parts.backend.amounts
    assert len(fit.parts.backend.posteriors) == 3
    fit.save(tmp_path / "fit")
    monkeypatch.setattr(front, "fitted_amounts", None)  # nothing is fitted again
    other = DFT.load(tmp_path / "fit", two_hierarchies(numpyro))
    assert other.parts.posterior.layout == fit.parts.posterior.layout
    again = other.get_samples()
    for name, value in fit.get_samples().items():
        assert np.allclose(value, again[name], rtol=1e-6, atol=1e-6)


def test_amounts_that_are_no_other_coordinates_are_not_tried():
    assert amounts.worth_a_try({"a": 0.5}, ("a",))
    assert amounts.worth_a_try({"a": 1.0}, ("a", "b"))
    for useless in ({}, {"a": 0.0}, {"a": 1.0}, {"z": 0.5}, {"a": float("nan")}, {"a": 7.5}):
        assert not amounts.worth_a_try(useless, ("a",))
