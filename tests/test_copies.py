"""What a fit hands out and what it was given are copies: changing them in place changes nothing in it. Both backends."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from backends import BACKENDS, Y
from quick import GAUSSIAN, NETWORK

from pyro_dft.experimental import Experimental

pytestmark = [pytest.mark.filterwarnings("ignore:the fit is"), pytest.mark.usefixtures("brief_surrogate")]

PYRO, NUMPYRO = BACKENDS


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


@pytest.fixture(scope="module")
def fits():
    return {backend: backend.fitted(backend.dft("known_mean"), Y) for backend in BACKENDS}


@pytest.fixture
def fit(backend, fits):
    return fits[backend]


def spoil(value):
    """Adds 100 to an array in place, where it lets itself be changed."""
    if isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.flags.writeable):
        value += 100


def state_of(fit):
    return {name: np.asarray(value).copy() for name, value in fit.get_samples().items()} | {
        "lp": np.array(fit.to_inference_data().sample_stats["lp"])
    }


def unspoilt(fit, act):
    before = state_of(fit)
    act()
    after = state_of(fit)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


@pytest.mark.parametrize("grouped", [False, True])
def test_kept_draws(fit, grouped):
    unspoilt(fit, lambda: [spoil(value) for value in fit.get_samples(group_by_chain=grouped).values()])


def test_arviz_data_and_what_the_user_gave_for_it(backend, fit):
    constant = np.arange(3.0)
    y = backend.array(Y)

    def act():
        data = fit.to_inference_data(constant_data={"x": constant})
        for group in (
            "posterior",
            "unconstrained_posterior",
            "sample_stats",
            "observed_data",
            "constant_data",
        ):
            for name in list(getattr(data, group)):
                array = getattr(data, group)[name].values
                assert array.flags.writeable
                if array.dtype.kind == "f":
                    array += 100

    unspoilt(fit, act)
    assert constant.tolist() == [0.0, 1.0, 2.0]
    assert np.array_equal(np.asarray(y), Y)


def test_diagnostics_to_their_depth(fit):
    before = fit.diagnostics().to_json()
    report = fit.diagnostics()
    report["status"] = "failed"
    report["warnings"].append("mine")
    report["drift_raw"]["worst"] = 9.0
    report["optima"]["weights"][0] = -1.0
    again = fit.diagnostics().to_json()
    for key in ("status", "warnings", "drift_raw", "optima"):
        assert again[key] == before[key]
    table = fit.summary_table()
    table.rows["mu"]["mean"] = 77.0
    assert fit.summary_table().rows["mu"]["mean"] != 77.0


def test_reports_of_kernels(backend, fit):
    kernel = backend.DFTKernel(fit)
    if backend is NUMPYRO:
        kernel.init(jax.random.key(0), 0, None, (), {})
    else:
        kernel.setup(0)
    for _ in range(2):
        report = kernel.diagnostics[0] if backend is NUMPYRO else kernel.diagnostics()["dft"]
        assert report["status"] == fit.diagnostics()["status"]
        report["status"] = "mine"


def test_hooks_of_pyros_mcmc_may_change_what_they_get(fits):
    fit = fits[PYRO]

    def hook(kernel, params, stage, i):
        spoil(params["mu"])

    def act():
        from pyro.infer import MCMC

        MCMC(PYRO.DFTKernel(fit), 5, 2, hook_fn=hook, disable_progbar=True).run()

    unspoilt(fit, act)
    kernel = PYRO.DFTKernel(PYRO.models.known_mean, **GAUSSIAN)
    from pyro.infer import MCMC

    MCMC(kernel, 300, 2, hook_fn=hook, disable_progbar=True).run(torch.as_tensor(Y))
    kept = kernel._served.dft.get_samples()["mu"]
    assert float(kept.max()) < 50


def test_the_guide(fit, backend):
    def act():
        for value in vars(fit.guide).values():
            for array in value.values() if isinstance(value, dict) else [value]:
                spoil(array)

    unspoilt(fit, act)


@pytest.mark.parametrize(
    ("backend", "container"),
    [(PYRO, "array"), (PYRO, "list"), (NUMPYRO, "array"), (NUMPYRO, "list"), (NUMPYRO, "global")],
)
def test_data_changed_in_place_after_the_run(backend, container):
    """New draws are refined towards the posterior of the run, not towards what the buffer holds now."""
    buffer = Y.copy() if backend is NUMPYRO else torch.as_tensor(Y.copy())
    own = backend.models.known_mean
    model, args = {
        "array": (own, (buffer,)), "list": (lambda data: own(data[0]["y"]), ([{"y": buffer}],)),
        "global": (lambda: own(buffer), ()),
    }[container]  # fmt: skip
    dft = backend.DFT(model, disable_progbar=True, **GAUSSIAN)
    backend.run(dft, *args)
    before = np.asarray(dft.get_samples(1500, refine_steps=10)["mu"])
    dft.reseed(1)
    lp = np.asarray(dft.to_inference_data(50).sample_stats["lp"])
    buffer += 100
    after = np.asarray(dft.get_samples(1500, refine_steps=10)["mu"])
    # Four standard errors of the difference of two means.
    assert abs(after.mean() - before.mean()) < 4 * before.std() * (2 / 1500) ** 0.5
    assert abs(np.log(after.std() / before.std())) < 4 / 1500**0.5
    dft.reseed(1)
    np.testing.assert_array_equal(np.asarray(dft.to_inference_data(50).sample_stats["lp"]), lp)


def test_steps_see_a_buffer_that_was_filled_anew():
    """`step` takes the arguments as they are at each call, also where they are the same objects."""
    dft = PYRO.dft("known_mean", experimental=Experimental(precondition_steps=150))
    buffer = torch.as_tensor(Y.copy())
    dft.step(buffer)
    buffer += 10
    for _ in range(150):
        dft.step(buffer)
    mean = float(dft.get_samples()["mu"].mean())
    exact = float(buffer.sum()) / (0.01 + len(Y))
    assert abs(mean - exact) < 4 * (0.01 + len(Y)) ** -0.5 / 200**0.5
    pure = NUMPYRO.dft("known_mean")
    buffer = Y.copy()
    assert (
        pure.parts.backend.programs.read((buffer,), {})[0]
        is pure.parts.backend.programs.read((buffer,), {})[0]
    )
    before = pure.parts.backend.programs.read((buffer,), {})[1].evaluate(np.ones((1, 1), np.float32))[0]
    buffer += 10
    assert (
        abs(
            pure.parts.backend.programs.read((buffer,), {})[1].evaluate(np.ones((1, 1), np.float32))[0]
            - before
        )
        > 100
    )


def test_initial_params(backend):
    start = {"mu": backend.array(2.0)} if backend is PYRO else {"mu": np.array(2.0, np.float32)}
    dft = backend.dft("known_mean", initial_params=start)
    spoil(start["mu"])
    start["nu"] = start["mu"]
    assert {name: float(value) for name, value in dft.initial_params.items()} == {"mu": 2.0}


def test_trained_networks_that_are_handed_out_are_copies():
    shift = torch.nn.Linear(1, 1)
    torch.nn.init.eye_(shift.weight)
    torch.nn.init.zeros_(shift.bias)
    fit = PYRO.fitted(PYRO.dft("known_mean", generator=shift, **NETWORK), Y)

    def draws():
        noise = torch.zeros(1, 4, 1)
        return fit.parts.fit.sampler.transport(noise, noise)

    before = draws()
    with torch.no_grad():
        spoil(fit.generator.bias)
    assert torch.equal(draws(), before)


def test_draws_that_a_callback_takes_are_new_ones_at_each_call(backend):
    found = []

    def look(progress, draw):
        for _ in range(2):
            values = draw(50)["mu"]
            found.append(np.asarray(values).copy())
            spoil(values)

    backend.fitted(backend.dft("known_mean", callback=look, callback_every=20), Y)
    assert len(found) >= 4
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 5 / 50**0.5
