"""One contract for both front doors: what cannot work fails with the same error, in the same words."""

from __future__ import annotations

import re

import backends
import numpy as np
import pytest
from backends import BACKENDS, ROWS, Y

from pyro_dft import FidelityWarning, ModelError, NotFittedError, SettingsError, StorageError
from pyro_dft.experimental import Experimental
from pyro_dft.interface import storage


@pytest.fixture(scope="module", params=BACKENDS, ids=repr)
def backend(request):
    return request.param


@pytest.fixture(scope="module")
def fitted(backend):
    return backend.fitted(backend.dft(), Y)


ERRORS = {
    "no latent site": (
        lambda b: b.run(b.dft("no_latent"), b.array(1.0)),
        ModelError, "the model has no latent sites: there is nothing to infer",
    ),
    "only discrete sites": (
        lambda b: b.run(b.dft("only_discrete")),
        ModelError, r"the model has only discrete latent sites \['k'\]: .* must remain",
    ),
    "no finite support": (
        lambda b: b.run(b.dft("endless_discrete")),
        ModelError, r"latent site 'k' has support .* \(Poisson\), which cannot be enumerated: .* sum it out",
    ),
    "finite nowhere": (
        lambda b: b.run(b.dft("finite_nowhere"), b.array(50.0)),
        ModelError, "no valid initial point: the potential or its gradient is not finite at any of 200 points. "
        r"At one of them the log-probability is not finite at: 'y' \(1 of 1 terms\)",
    ),
    "potential finite nowhere": (
        lambda b: b.run(b.potential(lambda z: z["a"].sum() / 0)),
        ModelError, "no valid initial point: .* 200 points. At one of them the potential is -?inf",
    ),
    "potential of a wrong shape": (
        lambda b: b.run(b.potential(lambda z: z["a"])),
        ModelError, r"potential_fn must return a scalar, got shape \(2,\)",
    ),
    "potential from no array": (
        lambda b: b.run(b.potential(lambda z: z["a"], initial_params={"a": 3})),
        ModelError, r"initial_params\['a'\] must be a floating point array",
    ),
    "potential with arguments": (
        lambda b: b.run(b.potential(lambda z: z["a"].sum()), 1),
        ModelError, r"potential_fn takes no model arguments: run\(\) must be called without any",
    ),
    "potential with a strategy": (
        lambda b: b.run(b.potential(lambda z: z["a"].sum(), init_strategy=abs)),
        ModelError, "init_strategy needs a Pyro model; with potential_fn, set initial_params",
    ),
    "NaN in the data": (
        lambda b: b.run(b.dft(), b.array([1.0, np.nan, 2.0])),
        ModelError, "observed data of site 'y' holds 1 NaN of 3 values: remove them, or mask them .* in their place",
    ),
    "too few data": (
        lambda b: b.run(b.dft("five_rows"), b.array(Y[:3])),
        ModelError, r"site 'y' inside plate 'data' of size 5 with distribution of batch_shape \(5,\) and event_shape "
        r"\(\) cannot score its observed data of shape \(3,\): \w+Error: .*",
    ),
    "a column of data": (
        lambda b: b.run(b.dft("five_rows"), b.array(Y[:, None])),
        ModelError, r"observed data of site 'y' has shape \(5, 1\) inside plate 'data' of size 5 \(dim -1\): it would "
        r"be broadcast to \(5, 5\) terms\. .*",
    ),
    "latent site in a subsampled plate": (
        lambda b: b.run(b.dft("local"), b.array(ROWS)),
        ModelError, r"latent site 'own' is inside the subsampled plate 'data' \(subsample_size=5 of 40\): .*",
    ),
    "shapes that do not fit": (
        lambda b: b.run(b.dft("broken"), b.array(Y)),
        ModelError, r"the model failed after site 'mu': \w+Error: .*",
    ),
    "two sites of one name": (
        lambda b: b.run(b.dft("twice_the_name"), b.array(Y)),
        ModelError, r"the model failed after site 'mu': \w+Error: .*",
    ),
    "an error of the model's own": (lambda b: b.run(b.dft("own_error")), KeyError, "'mine'"),
    "a missing argument": (
        lambda b: b.run(b.dft()), TypeError, ".*known_mean.* missing 1 required positional argument: 'y'",
    ),
    "an argument too many": (
        lambda b: b.run(b.dft(), b.array(Y), z=1), TypeError, ".*known_mean.* unexpected keyword argument 'z'",
    ),
    "a transform of no site": (
        lambda b: b.run(b.dft(transforms={"nu": None}), b.array(Y)),
        ModelError, r"transforms names \['nu'\], but the latent sites are \['mu'\]",
    ),
    "a start of another shape": (
        lambda b: b.run(b.dft(initial_params={"mu": b.array(Y)}), b.array(Y)),
        ModelError, r"initial_params must hold .* with shapes {'mu': \(\)}, got {'mu': \(5,\)}",
    ),
    "a start that is not finite": (
        lambda b: b.run(b.dft(initial_params={"mu": b.array(np.inf)}), b.array(Y)),
        ModelError, "initial_params: the potential is not finite there",
    ),
    "model and potential": (
        lambda b: b.dft(potential_fn=abs, initial_params={"a": 1}),
        ModelError, "give either a model or potential_fn, and not both",
    ),
    "neither": (lambda b: b.DFT(), ModelError, "give either a model or potential_fn, and not both"),
    "neither in a kernel": (
        lambda b: b.DFTKernel(), ModelError, "give either a model or potential_fn, and not both",
    ),
    "no initial_params": (
        lambda b: b.DFT(potential_fn=abs), ModelError, "potential_fn needs initial_params: .*",
    ),
    "no model": (lambda b: b.DFT(3), ModelError, "model must be callable, got int"),
    "unknown setting": (
        lambda b: b.dft(num_step=3),
        SettingsError, r"unknown setting 'num_step' \(did you mean 'num_steps'\?\); the settings are: .*",
    ),
    "a setting out of range": (
        lambda b: b.dft(num_steps=0), SettingsError, "num_steps=0: expected an integer of at least 1",
    ),
    # Of Pyro's NUTS, of NumPyro's and of both.
    **{
        f"an option of NUTS: {name}": (
            lambda b, name=name: b.DFT(b.models.known_mean, **{name: 1}),
            SettingsError, f"{name}: an option of NUTS that means nothing here; drop it",
        )
        for name in ("full_mass", "dense_mass", "step_size", "min_stepsize")
    },
    "an option of MCMC": (
        lambda b: b.DFTKernel(b.models.known_mean, num_chains=2),
        SettingsError, r"num_chains belongs to MCMC: MCMC\(DFTKernel\(model\), num_chains=...\)",
    ),
    **{
        f"{name} before run": (
            lambda b, name=name: getattr(b.dft(), name)(*(["nowhere"] if name == "save" else [])),
            NotFittedError, r"the sampler is not trained yet: call run\(...\) first",
        )
        for name in ("get_samples", "diagnostics", "summary", "to_inference_data", "guide", "save")
    },
}  # fmt: skip


def neutral(message):
    """A message without its framework's own name, and its word for arrays."""
    return re.sub(r"\bNumPyro\b", "Pyro", message).replace("floating point tensor", "floating point array")


def check_error(caught, kind, pattern):
    assert type(caught.value) is kind
    assert re.fullmatch(pattern, neutral(str(caught.value)), re.DOTALL), str(caught.value)


@pytest.mark.parametrize("case", ERRORS)
def test_errors_have_the_same_types_and_words(backend, case):
    call, kind, pattern = ERRORS[case]
    with pytest.raises(kind) as caught:
        call(backend)
    check_error(caught, kind, pattern)


@pytest.mark.parametrize("count", [0, -3, 1.5, True])
@pytest.mark.parametrize("method", ["get_samples", "to_inference_data"])
def test_wrong_counts_of_draws(backend, fitted, method, count):
    if (backend.name, method, count) == (
        "numpyro",
        "get_samples",
        True,
    ):  # which is its MCMC's group_by_chain
        assert fitted.get_samples(True)["mu"].shape == (1, 200)
        return
    with pytest.raises(ValueError, match="num_samples") as caught:
        getattr(fitted, method)(count)
    check_error(caught, ValueError, f"num_samples={count}: expected an integer of at least 1")


def test_after_a_failed_run_nothing_is_left(backend):
    dft = backend.fitted(backend.dft(), Y)
    with pytest.raises(ModelError):
        backend.run(dft, backend.array(Y * np.nan))
    with pytest.raises(NotFittedError) as caught:
        dft.get_samples()
    pattern = r"there is no trained sampler: the last run failed \(ModelError: .*5 NaN of 5.*\); call run\(...\) again"
    check_error(caught, NotFittedError, pattern)


def test_an_improper_posterior_ends_with_a_warning(backend):
    dft = backend.dft("improper", experimental=Experimental(precondition_steps=300))
    with pytest.warns(FidelityWarning) as caught:
        backend.run(dft, backend.array(Y))
    (warning,) = caught
    expected = (
        r"the fit is failed:\n  - exact transitions from the draws are hardly ever accepted .*improper.*"
    )
    assert re.fullmatch(expected, str(warning.message), re.DOTALL)
    assert warning.filename == backends.__file__  # the line that called run
    assert dft.diagnostics()["status"] == "failed"


def test_unusable_files(backend, fitted, tmp_path, monkeypatch):
    path, models = tmp_path / "fit", backend.models

    def refused(pattern, *args):
        with pytest.raises(StorageError) as caught:
            backend.DFT.load(path, *args)
        check_error(caught, StorageError, f"{re.escape(str(path))}: {pattern}")

    fitted.save(path)
    refused(r"saved for another model .* sites differ: \['tau', 'theta'\] only here.*", models.hierarchy)
    changed = backend.array(Y + 1)
    refused(
        r"the potential differs from the saved one: another model, or other data \(argument 'y' is another; the log density "
        r"of site 'y' by [\d.]+; the potential by [\d.]+\)",
        models.known_mean,
        changed,
    )
    refused("the model does not run on what the file was saved with .*", lambda: None)
    content = path.read_bytes()
    path.write_bytes(content[:-50])
    refused(r"truncated \(\d+ of \d+ bytes\)", models.known_mean)
    monkeypatch.setattr(storage, "FORMAT", storage.FORMAT + 1)
    fitted.save(path)
    monkeypatch.undo()
    refused(r"file format \d+, written by pyro_dft .*, is newer than .*; upgrade pyro-dft", models.known_mean)
