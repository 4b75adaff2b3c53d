"""Networks of the user's own, noise levels, and training without a preconditioner: the same in both front doors."""

from __future__ import annotations

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from backends import BACKENDS
from daily import daily
from own_networks import CENTRE, NETS, NOISE, PLAIN, Linear, Shift, gaussian

import pyro_dft.numpyro
from pyro_dft import SettingsError, StorageError
from pyro_dft.experimental import grouped
from pyro_dft.numpyro import Network

pytestmark = pytest.mark.filterwarnings("ignore:the fit is")


SHORT = {**PLAIN, "objective": "kl", "num_steps": 20, "width": 8, "depth": 1, "batch_size": 16}


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


def test_own_networks_are_what_is_trained(backend):
    dft = gaussian(
        backend,
        **NETS[backend.name],
        **grouped({**PLAIN, "objective": "kl", "num_steps": 800, "noise": NOISE, "learning_rate": 1e-2}),
    )
    backend.run(dft)
    z = backend.array(np.zeros((1, 2)))
    found = np.asarray(dft.parts.backend.arrays.numpy(dft.generator(z)))[0]
    # A batch of 256 draws has a mean within .06; the average that Adam makes of them is better by about two.
    assert np.abs(found - CENTRE).max() < 0.06
    draws = dft.parts.backend.arrays.numpy(dft.get_samples(20_000, refine_steps=0)["a"])
    # Means within 4 standard errors beside that, sd within 4 of its own.
    assert np.abs(draws.mean(0) - found).max() < 4 * (1 + NOISE**2) ** 0.5 / 20_000**0.5
    assert np.abs(draws.std(0) / (1 + NOISE**2) ** 0.5 - 1).max() < 4 / 40_000**0.5
    assert {entry.phase for entry in dft.parts.fit.history} == {"kl"}


@pytest.mark.parametrize("chains", [1, 2])
def test_files_and_copies_keep_own_networks(backend, tmp_path, chains):
    dft = gaussian(backend, **NETS[backend.name], **SHORT, num_chains=chains)
    backend.run(dft)
    kept = dft.parts.backend.arrays.numpy(dft.get_samples()["a"])
    path = tmp_path / "own.safetensors"
    dft.save(path)
    like = {"potential_fn": dft.potential_fn, "initial_params": dft.initial_params}
    own = {"generator": NETS[backend.name]["generator"]}
    loaded = backend.DFT.load(path, **like, options=own)
    assert np.array_equal(loaded.parts.backend.arrays.numpy(loaded.get_samples()["a"]), kept)
    z = backend.array(np.ones((3, 2)))
    before, after = (made if chains > 1 else [made] for made in (dft.generator, loaded.generator))
    for one, two in zip(before, after, strict=True):
        assert np.array_equal(dft.parts.backend.arrays.numpy(one(z)), dft.parts.backend.arrays.numpy(two(z)))
    copied = copy.deepcopy(dft)
    assert np.array_equal(copied.parts.backend.arrays.numpy(copied.get_samples()["a"]), kept)
    with pytest.raises(StorageError, match="give it, load"):
        backend.DFT.load(path, **like)


def test_chains_have_networks_of_their_own(backend):
    dft = gaussian(backend, **NETS[backend.name], **SHORT, num_chains=2)
    backend.run(dft)
    z = backend.array(np.zeros((1, 2)))
    first, second = (dft.parts.backend.arrays.numpy(one(z)) for one in dft.generator)
    assert not np.array_equal(first, second)


def test_a_module_is_not_changed_and_a_function_makes_new_ones():
    own = Shift()
    dft = gaussian(BACKENDS[0], generator=own, **SHORT)
    dft.run()
    assert torch.equal(own.shift, torch.zeros(2))
    assert not torch.equal(dft.generator.shift, own.shift)
    made = []
    dft = gaussian(BACKENDS[0], generator=lambda: made.append(Shift()) or made[-1], num_chains=3, **SHORT)
    dft.run()
    assert len(made) == 3


WRONG = {
    "pyro": [Linear(3), torch.nn.Linear(3, 2), lambda: 7],
    "numpyro": [
        Network(lambda key, z: jnp.zeros((2, 3)), lambda w, z: z @ w),
        Network(lambda key, z: jnp.zeros((3, 2)), lambda w, z: z @ w),
        7,
    ],
}


@pytest.mark.parametrize("option", ["generator", "score_network"])
@pytest.mark.parametrize(
    ("which", "message"), [(0, r"shape \(2, 3\)"), (1, r"fails for two points"), (2, r"must be")]
)
def test_networks_that_cannot_be_used_are_named(backend, option, which, message):
    dft = gaussian(backend, **{option: WRONG[backend.name][which]}, **SHORT)
    with pytest.raises(SettingsError, match=f"{option} .*{message}"):
        backend.run(dft)


@pytest.mark.parametrize("option", ["generator", "score_network"])
def test_what_is_no_network_is_named_where_none_would_be_trained_too(backend, option):
    dft = gaussian(backend, **{option: WRONG[backend.name][2]}, **{**SHORT, "train": "auto"})
    with pytest.raises(SettingsError, match=f"{option} must be"):
        backend.run(dft)


def test_there_is_no_generator_where_none_was_given(backend):
    dft = gaussian(backend, **SHORT)
    backend.run(dft)
    for option in ("generator", "score_network"):
        with pytest.raises(SettingsError, match=f"no trained {option}"):
            getattr(dft, option)


def test_trained_networks_can_be_given_on(backend):
    first = gaussian(backend, **NETS[backend.name], **SHORT)
    backend.run(first)
    own = {"generator": first.generator, "score_network": first.score_network}
    second = gaussian(
        backend, **own, **grouped({**SHORT, "objective": "dft-paper", "dft_learning_rate": 1e-9})
    )
    backend.run(second)
    x = backend.array(np.ones((3, 2)))
    # Adam moves by its rate at most.
    assert np.allclose(
        first.parts.backend.arrays.numpy(first.generator(x)),
        second.parts.backend.arrays.numpy(second.generator(x)),
        atol=1e-6,
    )
    other = gaussian(backend, **NETS[backend.name], **{**SHORT, "objective": "dft-paper"})
    backend.run(other)
    assert not np.allclose(
        first.parts.backend.arrays.numpy(first.generator(x)),
        other.parts.backend.arrays.numpy(other.generator(x)),
        atol=1e-3,
    )


# Noise levels

MODES, SHARES = np.array([[-3.0, 0.0], [3.0, 0.0]], np.float32), np.array([0.3, 0.7], np.float32)


LEVELS = grouped({
    **PLAIN, "objective": "kl", "noise_mode": "levels", "noise": 0.1, "noise_start": 5.0, "num_steps": 500, "refine_steps": 0,
})  # fmt: skip


def mixture(backend, **options):
    """Two far modes with unequal weights, and the same with noise added."""
    modes, shares = backend.array(MODES), backend.array(np.log(SHARES))
    lse = torch.logsumexp if backend.name == "pyro" else jax.scipy.special.logsumexp

    def smoothed(z, sigma):
        variance = 0.25 + sigma**2
        square = ((z["a"] - modes) ** 2).sum(-1)
        log = torch.log if backend.name == "pyro" else jnp.log
        return -lse(shares - 0.5 * square / variance, 0) + log(variance)

    zero = backend.array(0.0)
    return backend.DFT(
        potential_fn=lambda z: smoothed(z, zero),
        smoothed_potential_fn=smoothed,
        initial_params={"a": backend.array([0.0, 0.0])},
        disable_progbar=True,
        **options,
    )


@pytest.mark.parametrize("backend", daily(BACKENDS, BACKENDS[0]), ids=str, indirect=True)
def test_noise_levels_find_modes_and_their_weights(backend):
    dft = mixture(backend, **LEVELS)
    backend.run(dft)
    right = (dft.parts.backend.arrays.numpy(dft.get_samples(20_000)["a"])[:, 0] > 0).mean()
    # Monte Carlo error .003; the rest is what training leaves. At one noise level of .1 the weights are not seen at all.
    assert abs(right - 0.7) < 0.05


@pytest.mark.parametrize("backend", daily(BACKENDS, BACKENDS[0]), ids=str, indirect=True)
def test_without_a_search_for_modes_a_fit_is_doubted(backend):
    """The weights of far modes are wrong here, and no transition shows it."""
    dft = mixture(backend, **{**LEVELS, "objective": "dft-paper", "num_steps": 5, "width": 4})
    backend.run(dft)
    assert "no search" in dft.diagnostics()["alarms"]
    assert dft.diagnostics()["status"] != "converged"


def test_own_score_network_is_told_the_noise(backend):
    own = {"score_network": NETS[backend.name]["score_network"]}
    dft = mixture(backend, **own, **{**LEVELS, "num_steps": 5})
    backend.run(dft)
    assert np.isfinite(dft.parts.backend.arrays.numpy(dft.get_samples(100)["a"])).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (grouped({"noise_mode": "levels", "precondition": "never"}), "need each other"),
        ({"smoothed_potential_fn": lambda z, sigma: 0.0}, "need each other"),
        (
            grouped({"noise_mode": "levels", "smoothed_potential_fn": lambda z, s: 0.0}),
            'needs precondition="never"',
        ),
        (grouped({"precondition": "never", "train": "never"}), "nothing to draw from"),
    ],
)
def test_options_that_do_not_fit_together(backend, options, message):
    with pytest.raises(SettingsError, match=message):
        gaussian(backend, **options)


def test_networks_of_numpyro_are_pure_functions_too():
    backend = BACKENDS[1]
    dft = gaussian(backend, **NETS["numpyro"], **SHORT)
    state, losses = dft.fit(jax.random.key(0))
    draws = dft.draw(jax.random.key(1), state, 50)["a"]
    assert draws.shape == (1, 50, 2)
    assert losses.shape == (SHORT["num_steps"],)
    dft.adopt(state)
    assert np.isfinite(np.asarray(dft.generator(jnp.zeros((2, 2))))).all()


def test_pickled_samplers_keep_modules():
    dft = gaussian_module()
    dft.run()
    again = pickle.loads(pickle.dumps(dft))
    assert torch.equal(again.get_samples()["a"], dft.get_samples()["a"])


def unit_potential(z):
    return 0.5 * (z["a"] ** 2).sum()


def gaussian_module():
    options = {"initial_params": {"a": torch.zeros(2)}, "disable_progbar": True, **SHORT}
    return pyro_dft.DFT(potential_fn=unit_potential, generator=Shift(), **options)
