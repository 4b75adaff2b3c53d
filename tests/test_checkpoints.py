"""The training in progress as a file: a run that was killed goes on to the same end."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from backends import BACKENDS
from daily import daily
from own_networks import NETS, PLAIN, gaussian

from pyro_dft import SettingsError, StorageError
from pyro_dft.experimental import grouped

pytestmark = pytest.mark.filterwarnings("ignore:the fit is")


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


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
        b, **NETS[b.name], **grouped({**PLAIN, **PHASES, "checkpoint_every": 50, **k})
    ),
    "averaged": lambda b, **k: CHECKPOINTED["potential"](b, **{"averaging": 0.95, **k}),
    "minibatched": lambda b, **k: b.dft("minibatched", **grouped({**PHASES, "checkpoint_every": 50, **k})),
}


def start(backend, dft):
    backend.run(dft, *([] if dft.model is None else [backend.array(ROWS)]))
    return dft


# NumPyro's minibatches would be compiled once more than anything else here is.
RESUMED = [
    (b, *case) for b in BACKENDS for case in (("potential", 60), ("averaged", 150), ("minibatched", 150))
]


@pytest.mark.parametrize(
    ("backend", "which", "after"),
    daily(RESUMED, RESUMED[0], RESUMED[2], RESUMED[3]),
    ids=str,
    indirect=["backend"],
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
