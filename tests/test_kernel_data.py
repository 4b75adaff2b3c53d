"""`DFTKernel` and the data: new ones retrain or raise, a new key gives new draws, a fitted sampler serves its own posterior."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from backends import BACKENDS, Y
from numpyro.infer import MCMC
from quick import GAUSSIAN, known_mean_posterior

from pyro_dft import FidelityWarning, ModelError, NotFittedError
from pyro_dft.interface.arguments import copied, other_numbers, unchanged

pytestmark = pytest.mark.filterwarnings("ignore:the fit is")

PYRO, NUMPYRO = BACKENDS
OPTIONS = {name: value for name, value in GAUSSIAN.items() if name != "seed"}
FIRST, SECOND = np.full(20, 1.0, np.float32), np.full(20, 1.5, np.float32)


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


def close_to_posterior(draws, y):
    """Mean and sd within four standard errors of that many independent draws."""
    mean, sd = known_mean_posterior(torch.as_tensor(y))
    draws = np.asarray(draws, float).reshape(-1)
    return (
        abs(draws.mean() - mean) < 4 * sd / len(draws) ** 0.5
        and abs(draws.std() / sd - 1) < 4 / (2 * len(draws)) ** 0.5
    )


def numpyro_mcmc(kernel=None, **options):
    kernel = kernel or NUMPYRO.DFTKernel(NUMPYRO.models.known_mean, **OPTIONS)
    options = {"num_warmup": 10, "num_samples": 300, "progress_bar": False} | options
    return MCMC(kernel, **options)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param({"jit_model_args": True}, id="jit_model_args", marks=pytest.mark.slow),
        pytest.param(
            {"num_chains": 2, "chain_method": "vectorized"}, id="vectorized", marks=pytest.mark.slow
        ),
        pytest.param({"num_chains": 2, "chain_method": jax.vmap}, id="vmap", marks=pytest.mark.slow),
    ],
)
def test_after_a_warm_up_new_keys_give_new_draws_and_new_data_raise(options):
    mcmc = numpyro_mcmc(**options)
    first, second = jnp.asarray(FIRST), jnp.asarray(SECOND)
    mcmc.warmup(jax.random.key(0), first)
    found = []
    for seed in (1, 2, 1):
        mcmc.run(jax.random.key(seed), first)
        found.append(np.asarray(mcmc.get_samples()["mu"]))
        assert close_to_posterior(found[-1], FIRST)
    assert len(np.intersect1d(found[0], found[1])) < 0.05 * len(found[0])
    np.testing.assert_array_equal(found[0], found[2])
    with pytest.raises(ModelError, match="trained on other data.*warmup again"):
        mcmc.run(jax.random.key(3), second)


def test_new_data_train_again_and_only_the_state_tells_whose_draws_it_has():
    mcmc = numpyro_mcmc()
    states = []
    for seed, y in enumerate((FIRST, SECOND)):
        mcmc.run(jax.random.key(seed), y)
        assert close_to_posterior(mcmc.get_samples()["mu"], y)
        states.append(mcmc.last_state)
    # Both trainings are known to the kernel. A state of the first one has no draws for the data of the second.
    mcmc.post_warmup_state = states[0]
    mcmc.run(jax.random.key(2), SECOND)
    assert np.isnan(np.asarray(mcmc.get_samples()["mu"])).all()


def test_a_second_run_of_pyro_on_new_data_trains_again():
    kernel = PYRO.DFTKernel(PYRO.models.known_mean, **GAUSSIAN)
    found = []
    for y in (FIRST, SECOND, SECOND):
        found.append(PYRO.mcmc(kernel, 300, 10, 1, torch.as_tensor(y)).get_samples()["mu"])
        assert close_to_posterior(found[-1], y)
    assert len(np.intersect1d(found[1], found[2])) < 15


def test_a_global_that_the_model_reads_counts_as_data():
    data = {"y": FIRST}

    def model():
        NUMPYRO.models.known_mean(data["y"])

    mcmc = numpyro_mcmc(NUMPYRO.DFTKernel(model, **OPTIONS))
    mcmc.warmup(jax.random.key(0))
    data["y"] = SECOND
    with pytest.raises(ModelError, match="trained on other data"):
        mcmc.run(jax.random.key(1))


@pytest.fixture(scope="module")
def fitted():
    return {backend: backend.fitted(backend.dft("known_mean"), Y) for backend in BACKENDS}


def test_a_fitted_sampler_takes_its_own_data_or_none(backend, fitted):
    kernel = backend.DFTKernel(fitted[backend])
    for data in ((backend.array(Y),), ()):
        assert close_to_posterior(backend.mcmc(kernel, 400, 2, 1, *data).get_samples()["mu"], Y)
    # One number in the last place: what a log density summed over many rows would hardly show.
    for other in (Y + np.float32([0, 0, 0, 0, 1e-6]), Y[:4]):
        with pytest.raises(ModelError, match="trained on other data"):
            backend.mcmc(backend.DFTKernel(fitted[backend]), 10, 2, 1, backend.array(other))


def test_whole_numbers_are_the_same_data_as_floats(backend):
    whole = np.array([1, 2, 3, 2, 1])
    dft = backend.fitted(backend.dft("known_mean"), whole)
    given = torch.as_tensor(whole) if backend is PYRO else jnp.asarray(whole)
    draws = backend.mcmc(backend.DFTKernel(dft), 400, 2, 1, given).get_samples()["mu"]
    assert close_to_posterior(draws, whole)


def test_traced_data_are_told_that_there_is_no_verdict():
    kernel = NUMPYRO.DFTKernel(
        NUMPYRO.models.known_mean, **OPTIONS | {"num_steps": 5, "width": 4, "depth": 1}
    )

    @jax.jit
    def first_draw(y):
        state = kernel.init(jax.random.key(0), 0, None, (y,), {})
        return kernel.sample(state, (y,), {}).z["mu"]

    with pytest.warns(FidelityWarning, match=r"nothing judges.*DFT\.adopt"):
        draw = first_draw(jnp.asarray(FIRST))
    assert jnp.isfinite(draw)
    assert kernel.diagnostics == []


@pytest.mark.slow  # compiled as one program; a single chain under a trace is tested every day, above
@pytest.mark.filterwarnings("ignore:.*nothing judges:pyro_dft.FidelityWarning")
def test_vectorized_chains_are_trained_under_a_trace_each_by_its_own_key():
    """Two samplers of a brief training: right draws, in their blocks and beyond, and no chain is the copy of another."""
    count = 150
    settings = {"num_steps": 5, "width": 4, "depth": 1, "num_draws": count - 50}
    kernel = NUMPYRO.DFTKernel(NUMPYRO.models.known_mean, **OPTIONS | settings)

    @jax.jit
    def drawn(key, y):
        mcmc = MCMC(
            kernel, num_warmup=1, num_samples=count, num_chains=2, chain_method="vectorized",
            progress_bar=False,
        )  # fmt: skip
        mcmc.run(key, y)
        return mcmc.get_samples(group_by_chain=True)["mu"]

    draws = np.asarray(drawn(jax.random.key(3), jnp.asarray(FIRST)))
    assert draws.shape == (2, count)
    assert close_to_posterior(draws, FIRST)
    assert abs(np.corrcoef(draws)[0, 1]) < 4 / count**0.5
    assert kernel.diagnostics == []


def test_a_fitted_sampler_is_not_served_for_traced_data(fitted):
    kernel = NUMPYRO.DFTKernel(fitted[NUMPYRO])
    with pytest.raises(NotFittedError, match="they could be any"):
        jax.jit(lambda y: kernel.init(jax.random.key(0), 0, None, (y,), {}))(jnp.asarray(Y))


def test_arguments_are_compared_by_what_they_hold():
    def to_numpy(value):
        return value.numpy() if isinstance(value, torch.Tensor) else None

    def same(a, b):
        return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else None

    y = torch.tensor([1.0, 2.0])
    kept = copied(
        ((y, [y, 3]), {"a": {"b": y}, "name": "x"}), lambda v: v.clone() if isinstance(v, torch.Tensor) else v
    )
    assert unchanged(kept, ((y, [y, 3]), {"a": {"b": y}, "name": "x"}), same)
    for other in (
        ((y, [y, 4]), {"a": {"b": y}, "name": "x"}),
        ((y, [y, 3]), {"a": {"b": y}, "name": "z"}),
        ((y,), {}),
    ):
        assert not unchanged(kept, other, same)
    y += 1
    assert not unchanged(kept, ((y, [y, 3]), {"a": {"b": y}, "name": "x"}), same)
    assert other_numbers((y, {"a": 1}), (y + 1, {}), to_numpy)
    assert other_numbers([{"a": y}], [{"a": y.double() * 2}], to_numpy)
    assert not other_numbers((y, "x"), (y.double(), "z"), to_numpy)
    assert not other_numbers((y,), (y[:1],), to_numpy)  # says nothing; the potential will
