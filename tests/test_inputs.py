"""Odd inputs: each works, or is refused at once with an error that names what is wrong."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pyro
import pytest
import torch
from backends import BACKENDS, Y

from pyro_dft import ModelError, NotFittedError, SettingsError
from pyro_dft.experimental import grouped

pytestmark = [pytest.mark.filterwarnings("ignore:the fit is"), pytest.mark.usefixtures("brief_surrogate")]

PYRO, NUMPYRO = BACKENDS
# A fit as small as can be.
TINY = grouped(
    {"precondition_steps": 20, "restarts": 1, "refine_steps": 1, "num_draws": 20, "modes": "never"}
)


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


def detached(backend, value):
    return value.detach() if backend is PYRO else jax.lax.stop_gradient(value)


def integer(backend, value):
    return value.int() if backend is PYRO else value.astype(int)


def square(z):
    return 0.5 * (z["a"] ** 2).sum()


POTENTIALS = {
    "an int": (lambda b: lambda z: integer(b, square(z)), "potential_fn must return a scalar, got numbers of type .*int"),
    "a complex number": (lambda b: lambda z: square(z) * (1 + 0j), "must return a scalar, got numbers of type .*complex"),
    "None": (lambda b: lambda z: None, "must return a scalar, got NoneType"),
    "a string": (lambda b: lambda z: "x", "must return a scalar, got str"),
    "a tuple": (lambda b: lambda z: (square(z), 1), "must return a scalar, got tuple"),
    "a number of Python": (lambda b: lambda z: 3.0, "does not depend on its argument .*NumPy"),
    "a number of NumPy": (lambda b: lambda z: np.float32(1.0), "does not depend on its argument .*NumPy"),
    "no gradient": (lambda b: lambda z: detached(b, square(z)), "does not depend on its argument .*detached"),
    "an error": (lambda b: lambda z: z["a"].nowhere(), "potential_fn failed at initial_params: AttributeError"),
    "a missing site": (lambda b: lambda z: z["b"].sum(), "failed at initial_params: there is no site 'b'"),
    "two arguments": (lambda b: lambda z, w: square(z), "failed at initial_params: TypeError"),
}  # fmt: skip


@pytest.mark.parametrize("case", POTENTIALS)
@pytest.mark.filterwarnings("ignore:Casting complex")
def test_potentials_that_return_no_differentiable_number(backend, case):
    make, match = POTENTIALS[case]
    with pytest.raises(ModelError, match=match):
        backend.run(backend.potential(make(backend)))


OPTIONS = {
    "transforms": [(3, ModelError, "transforms must be a dict"), ({"mu": 3}, ModelError, r"transforms\['mu'\] must be")],
    "init_strategy": [(3, ModelError, "init_strategy must be callable")],
    "initial_params": [([1.0], ModelError, "must be a dict"), ({0: 1.0}, ModelError, "got the name 0")],
    "checkpoint": [(3, SettingsError, "checkpoint=3"), ("", SettingsError, "checkpoint=''")],
    "callback": [(3, SettingsError, "callback must be callable")],
    "disable_progbar": [("no", SettingsError, "disable_progbar='no'")],
    "num_chains": [(1.5, SettingsError, "num_chains=1.5"), (np.int64(0), SettingsError, "num_chains=")],
}  # fmt: skip


@pytest.mark.parametrize(("name", "case"), [(n, c) for n, cases in OPTIONS.items() for c in cases])
def test_options_of_the_wrong_kind(backend, name, case):
    value, kind, match = case

    def fit():
        dft = backend.DFT(backend.models.known_mean, **{"disable_progbar": True, **TINY, name: value})
        backend.run(dft, backend.array(Y))

    with pytest.raises(kind, match=match):
        fit()


def test_models_that_a_call_does_not_run(backend):
    def generator():
        yield backend.ppl.sample("a", backend.ppl.distributions.Normal(0.0, 1.0))

    async def coroutine():
        backend.ppl.sample("a", backend.ppl.distributions.Normal(0.0, 1.0))

    for model, match in (
        (dict, "the class dict"),
        (generator, "generator function"),
        (coroutine, "coroutine"),
    ):
        with pytest.raises(ModelError, match=match):
            backend.DFT(model)
    with pytest.raises(SettingsError, match="max_plate_nesting=-1"):
        PYRO.run(PYRO.dft(max_plate_nesting=-1), PYRO.array(Y))


def changing(backend, kind):
    """A model that draws another site, or one of another shape, in each call."""
    count, dist = itertools.count(), backend.ppl.distributions

    def model():
        i = next(count)
        name, size = (f"b{i}", 1) if kind == "name" else ("b", 1 + i)
        backend.ppl.sample("a", dist.Normal(0.0, 1.0))
        backend.ppl.sample(name, dist.Normal(backend.array(np.zeros(size)), 1.0).to_event(1))

    return model


@pytest.mark.parametrize("kind", ["name", "shape"])
def test_sites_that_change_from_call_to_call(backend, kind):
    match = (
        "exists only in some runs" if kind == "name" else r"'b' has shape \(\d,\) .* had \(1,\) in the first"
    )
    with pytest.raises(ModelError, match=match):
        backend.run(backend.DFT(changing(backend, kind), disable_progbar=True, **TINY))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # jax's, of lists
def test_arguments_and_data_of_the_wrong_kind(backend):
    with pytest.raises(
        ModelError, match="after site '(mu|twice)': TypeError: object of type 'NoneType' has no len"
    ):
        backend.run(backend.dft(), None)
    with pytest.raises(ModelError, match="'y'"):
        backend.run(backend.dft(), [1.0, 2.0])
    with pytest.raises(ModelError, match="'y'"):
        backend.run(backend.dft(), np.array([1 + 2j, 2.0]))
    with pytest.raises(ModelError, match="'y' .*These arguments are no tensors: y \\(ndarray\\)"):
        PYRO.run(PYRO.dft(), np.array([1.0, 2.0]))


def test_sites_without_elements_and_negative_seeds(backend):
    ppl, dist = backend.ppl, backend.ppl.distributions

    def model(y):
        ppl.sample("none", dist.Normal(backend.array(np.zeros(0)), 1.0).to_event(1))
        mu = ppl.sample("mu", dist.Normal(0.0, 10.0))
        with ppl.plate("data", len(y)):
            ppl.sample("y", dist.Normal(mu, 1.0), obs=y)

    dft = backend.DFT(model, disable_progbar=True, train="never", seed=-1, num_chains=np.int32(2), **TINY)
    backend.run(dft, backend.array(Y))
    for draws, shape in ((dft.get_samples(), (20, 0)), (dft.get_samples(3, group_by_chain=True), (2, 3, 0))):
        assert tuple(draws["none"].shape) == shape
        assert tuple(draws["mu"].shape) == shape[:-1]
    assert "mu" in str(dft.summary_table())
    assert dft.to_inference_data().posterior["mu"].shape == (2, 10)
    # 20 draws of a posterior of sd .45 around 2: 5 standard errors.
    assert abs(float(np.asarray(dft.get_samples()["mu"]).mean()) - 2.0) < 5 * 0.45 / 20**0.5


def test_a_model_that_breaks_in_the_middle_says_when_and_why():
    calls = itertools.count()

    def model():
        a = pyro.sample("a", pyro.distributions.Normal(0.0, 1.0))
        if float(a.detach()) > 1e9 or next(calls) > 150:
            raise RuntimeError("the data base went away")

    dft = PYRO.DFT(model, disable_progbar=True, seed=0, **TINY)
    told = r"the model failed after \d+ evaluations: RuntimeError: the data base went away; raised in phase 'gaussian', after "
    with pytest.warns(match="point by point"), pytest.raises(ModelError, match=told):
        dft.run()
    with pytest.raises(NotFittedError, match="the data base went away; raised in phase 'gaussian'"):
        dft.get_samples()


@pytest.mark.slow  # point by point; in batches every day: tests/test_awkward.py
def test_a_model_that_raises_where_its_density_is_zero_is_fitted():
    def model():
        a = pyro.sample("a", pyro.distributions.Normal(0.0, 1.0))
        if float(a.detach()) < -2.05:  # starting points are above -2
            raise ValueError("outside")

    options = grouped({**TINY, "precondition_steps": 30, "refine_steps": 2, "num_draws": 100})
    dft = PYRO.DFT(model, disable_progbar=True, seed=0, train="never", **options)
    with pytest.warns(match="point by point"):
        dft.run()
    assert dft.diagnostics()["nonfinite_evaluations"] > 0
    a = dft.get_samples()["a"]
    # A normal cut at -2.05 has mean .05 and sd .95; 5 standard errors of 100 draws.
    assert abs(float(a.mean()) - 0.05) < 5 * 0.95 / 100**0.5
    assert abs(float(a.std()) / 0.95 - 1) < 5 / 200**0.5


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_fits_inside_of_modes_without_gradients(mode):
    settings = {"num_steps": 4, "width": 4, "depth": 1, "batch_size": 4, "train": "always", "seed": 3, **TINY}
    found = []
    for context in (torch.enable_grad, mode):
        dft = PYRO.DFT(PYRO.models.known_mean, disable_progbar=True, **settings)
        with context():
            dft.run(PYRO.array(Y))  # in inference mode the data are without gradients too
            found.append(dft.get_samples()["mu"].clone())
            assert dft.get_samples(5)["mu"].shape == (5,)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("name", "value"), [("jax_numpy_rank_promotion", "raise"), ("jax_numpy_dtype_promotion", "strict")]
)
def test_fits_where_promotion_is_forbidden(name, value):
    settings = {
        "num_steps": 4,
        "width": 4,
        "depth": 1,
        "batch_size": 4,
        "train": "always",
        "reparam": "never",
        **TINY,
    }
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        dft = NUMPYRO.DFT(NUMPYRO.models.known_mean, disable_progbar=True, **settings)
        dft.run(jax.random.key(0), jnp.asarray(Y))
        assert dft.get_samples(5)["mu"].shape == (5,)
        assert getattr(jax.config, name) == value
    finally:
        jax.config.update(name, before)


def test_half_precision_is_refused():
    torch.set_default_dtype(torch.float16)
    with pytest.raises(ModelError, match="float16, too coarse"):
        PYRO.run(PYRO.dft(), torch.ones(3, dtype=torch.float16))
