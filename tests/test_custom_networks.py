"""Networks of the user's own, noise levels, and training without a preconditioner: the same in both front doors."""

from __future__ import annotations

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from backends import BACKENDS
from daily import daily

import pyro_dft.numpyro
from pyro_dft import SettingsError, StorageError
from pyro_dft.numpyro import Network

pytestmark = pytest.mark.filterwarnings("ignore:the fit is")

CENTRE, NOISE = np.array([0.5, -1.0], np.float32), 0.1
PLAIN = {
    "precondition": "never", "train": "always", "refine_steps": 2, "num_draws": 400, "reparam": "never", "seed": 3,
}  # fmt: skip
SHORT = {**PLAIN, "objective": "kl", "num_steps": 20, "width": 8, "depth": 1, "batch_size": 16}


class Shift(torch.nn.Module):
    """g(z) = z + b."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(2))

    def forward(self, z):
        return z + self.shift


class Linear(torch.nn.Module):
    """x -> A x + b (+ c log sigma), the exact form of the score of any Gaussian at one noise level."""

    def __init__(self, outputs=2):
        super().__init__()
        self.linear = torch.nn.Linear(2, outputs)

    def forward(self, x, *sigma):
        return self.linear(x) / (sigma[0] if sigma else 1.0)


def linear_init(key, x, *sigma):
    return {"a": jax.random.normal(key, (2, 2)) / 2, "b": jnp.zeros(2)}


def linear_apply(weights, x, *sigma):
    return (x @ weights["a"] + weights["b"]) / (sigma[0] if sigma else 1.0)


NETS = {
    "pyro": {"generator": Shift(), "score_network": Linear()},
    "numpyro": {
        "generator": Network(lambda key, z: {"shift": jnp.zeros(2)}, lambda w, z: z + w["shift"]),
        "score_network": Network(linear_init, linear_apply),
    },
}


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


def gaussian(backend, **options):
    """N(CENTRE, 1 + NOISE^2): what g(z) = z + b and its noise can reproduce."""
    centre = backend.array(CENTRE)
    options = {"initial_params": {"a": backend.array([0.0, 0.0])}, **options}
    return backend.DFT(
        potential_fn=lambda z: 0.5 * ((z["a"] - centre) ** 2).sum() / (1 + NOISE**2),
        disable_progbar=True,
        **options,
    )


def test_own_networks_are_what_is_trained(backend):
    dft = gaussian(
        backend,
        **NETS[backend.name],
        **{**PLAIN, "objective": "kl", "num_steps": 800, "noise": NOISE, "learning_rate": 1e-2},
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
    second = gaussian(backend, **own, **{**SHORT, "objective": "dft-paper", "dft_learning_rate": 1e-9})
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
LEVELS = {
    **PLAIN, "objective": "kl", "noise_mode": "levels", "noise": 0.1, "noise_start": 5.0, "num_steps": 800, "refine_steps": 0,
}  # fmt: skip


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
        ({"noise_mode": "levels", "precondition": "never"}, "need each other"),
        ({"smoothed_potential_fn": lambda z, sigma: 0.0}, "need each other"),
        ({"noise_mode": "levels", "smoothed_potential_fn": lambda z, s: 0.0}, 'needs precondition="never"'),
        ({"precondition": "never", "train": "never"}, "nothing to draw from"),
    ],
)
def test_options_that_do_not_fit_together(backend, options, message):
    with pytest.raises(SettingsError, match=message):
        gaussian(backend, **options)


# The training in progress as a file


class Killed(Exception):
    pass


def killed(backend, monkeypatch, after, **options):
    """A run that dies after so many network iterations."""
    from pyro_dft.interface.checkpoint import Checkpoint

    write = Checkpoint.after_step

    def die(self, trainer):
        write(self, trainer)
        if trainer.network_steps >= after:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "after_step", die)
        dft = CHECKPOINTED[options.pop("which")](backend, **options)
        with pytest.raises(Killed):
            start(backend, dft)


ROWS = np.linspace(-1.0, 3.0, 40, dtype=np.float32)
PHASES = {
    "num_steps": 200,
    "dft_fraction": 0.5,
    "width": 8,
    "depth": 1,
    "batch_size": 16,
    "train": "always",
    "num_draws": 100,
}
CHECKPOINTED = {
    "potential": lambda b, **k: gaussian(
        b, **NETS[b.name], **{**PLAIN, **PHASES, "checkpoint_every": 50, **k}
    ),
    "averaged": lambda b, **k: CHECKPOINTED["potential"](b, **{"averaging": 0.95, **k}),
    "minibatched": lambda b, **k: b.dft("minibatched", **{**PHASES, "checkpoint_every": 50, **k}),
}


def start(backend, dft):
    backend.run(dft, *([] if dft.model is None else [backend.array(ROWS)]))
    return dft


# NumPyro's minibatches would be compiled once more than anything else here is.
RESUMED = [
    (b, *case) for b in BACKENDS for case in (("potential", 60), ("averaged", 150), ("minibatched", 150))
]


@pytest.mark.parametrize(
    ("backend", "which", "after"), daily(RESUMED, *RESUMED[:-1]), ids=str, indirect=["backend"]
)
def test_a_killed_training_goes_on_to_the_same_end(backend, monkeypatch, tmp_path, which, after):
    path = tmp_path / "checkpoint.safetensors"
    whole = start(backend, CHECKPOINTED[which](backend))
    killed(backend, monkeypatch, after, which=which, checkpoint=path)
    assert path.exists()
    again = start(backend, CHECKPOINTED[which](backend, checkpoint=path))
    for name, value in whole.get_samples().items():
        assert np.array_equal(
            whole.parts.backend.arrays.numpy(value),
            again.parts.backend.arrays.numpy(again.get_samples()[name]),
        )
    assert [(p.step, p.phase, p.loss) for p in again.parts.fit.history] == [
        (p.step, p.phase, p.loss) for p in whole.parts.fit.history
    ]
    assert not path.exists()


def test_a_loop_of_steps_resumes_too(tmp_path):
    """Torch only: training by steps is pure functions in NumPyro, whose state the user keeps."""
    path = tmp_path / "checkpoint.safetensors"
    make = functools.partial(CHECKPOINTED["potential"], BACKENDS[0])
    whole, first, second = make(), make(checkpoint=path), make(checkpoint=path)
    assert whole.progress is None
    for _ in range(200):
        whole.step()
    for _ in range(110):
        first.step()
    assert first.progress.step == 110
    assert torch.isfinite(first.generator(torch.zeros(1, 2))).all()
    second.step()
    assert second.progress.step == 101  # on from the last file
    while second.progress.step < second.progress.total:
        second.step()
    assert not path.exists()
    assert torch.equal(whole.generator.shift, second.generator.shift)
    assert second.progress.phase == "dft"


@pytest.mark.parametrize("backend", daily(BACKENDS, BACKENDS[0]), ids=str, indirect=True)
def test_a_checkpoint_of_another_training_is_refused(backend, monkeypatch, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    killed(backend, monkeypatch, 60, which="minibatched", checkpoint=path)
    for options, message in (
        ({"learning_rate": 1e-3}, "settings differs"),
        ({"num_chains": 2}, "num_chains"),
    ):
        with pytest.raises(StorageError, match=message):
            start(backend, CHECKPOINTED["minibatched"](backend, checkpoint=path, **options))
    other = CHECKPOINTED["minibatched"](backend, checkpoint=path)
    with pytest.raises(StorageError, match="another model, or of other data"):
        backend.run(other, backend.array(ROWS + 1))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StorageError):
        start(backend, CHECKPOINTED["minibatched"](backend, checkpoint=path))


def test_a_checkpoint_needs_a_seed_and_a_run(backend, tmp_path):
    with pytest.raises(SettingsError, match="checkpoint_every"):
        backend.dft(checkpoint=tmp_path / "c", checkpoint_every=0)
    if backend.name == "pyro":  # NumPyro's run always has a key
        with pytest.raises(SettingsError, match="seed"):
            backend.dft(checkpoint=tmp_path / "c", seed=None)
    with pytest.raises(SettingsError, match="DFTKernel writes none"):
        backend.DFTKernel(backend.models.known_mean, checkpoint=tmp_path / "c", seed=0)


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
