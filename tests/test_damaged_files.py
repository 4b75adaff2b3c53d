"""Damaged headers are refused, whatever they hold; checkpoints of another training too, and a failed write loses none."""

import os
import warnings

import numpy as np
import pytest
import torch
from backends import BACKENDS
from saved import FIVE, TINY, fitted, normal

from pyro_dft import FidelityWarning, SettingsError, StorageError
from pyro_dft.experimental import grouped
from pyro_dft.interface import restoring, storage
from pyro_dft.recipe import history

pytestmark = [pytest.mark.filterwarnings("ignore:the fit is"), pytest.mark.usefixtures("brief_surrogate")]


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


# Damaged headers


def mutated(value, rng):
    """A header with one entry, somewhere inside, replaced by something else."""
    odd = [
        None,
        True,
        -1,
        0,
        10**30,
        1.5,
        float("nan"),
        float("inf"),
        "",
        "x",
        [],
        {},
        [[1]],
        {"a": 1},
        10**400,
    ]
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = str(rng.choice(sorted(value)))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: mutated(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        i = int(rng.integers(len(value)))
        return [*value[:i], mutated(value[i], rng), *value[i + 1 :]]
    return odd[int(rng.integers(len(odd)))]


def damaged(header, rng):
    key = str(rng.choice(sorted(header)))
    return header | {key: mutated(header[key], rng)}


RESERVED = ("format", "version", "crc32")


def content(path):
    arrays, header = storage.load(path)
    return arrays, {key: value for key, value in header.items() if key not in RESERVED}


def loads_or_refuses(action):
    """Whether it was refused; anything but a StorageError fails."""
    try:
        action()
    except StorageError:
        return True
    return False


def test_no_header_does_anything_but_load_or_be_refused(backend, tmp_path):
    fitted(backend).save(tmp_path / "fit")
    arrays, header = content(tmp_path / "fit")
    layouts, settings = [fitted(backend).parts.backend.layout], fitted(backend).settings
    rng = np.random.default_rng(1)

    def check(changed):
        restoring.read_settings("f", arrays, changed)
        restoring.read_report("f", changed)
        own = {k: v for k, v in arrays.items() if not k.startswith(("check.", "arguments."))}
        restoring.check_sampler("f", own, changed, layouts, 1, settings, lambda *_: None)

    refused = [loads_or_refuses(lambda: check(damaged(header, rng))) for _ in range(600)]
    assert 60 < sum(refused) < 600
    refused = []
    for _ in range(25):
        storage.save(tmp_path / "odd", arrays, damaged(header, rng))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FidelityWarning)
            refused.append(
                loads_or_refuses(
                    lambda: backend.DFT.load(tmp_path / "odd", normal(backend), disable_progbar=True)
                )
            )
    assert sum(refused) > 3


def nested(depth):
    value = {"value": 1}
    for _ in range(depth):
        value = {"list": [value]}
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["settings"].update(depth=10**5), "the arrays|sampler|network"),
        (lambda h: h.update(num_chains=10**12), "num_chains"),
        (lambda h: h.update(measured_steps=10**9), "measured_steps"),
        (lambda h: h.update(arguments=nested(400)), "header"),
        (lambda h: h["diagnostics"].update(status="fine"), "expected form"),
        (lambda h: h["diagnostics"].update(seconds=float("nan")), "expected form"),
        (lambda h: h["check"].update(sites={"mu": [1.0]}), "site 'mu'"),
    ],
)
def test_headers_that_ask_for_too_much(backend, tmp_path, change, message):
    fitted(backend).save(tmp_path / "fit")
    arrays, header = content(tmp_path / "fit")
    if "network" in message:
        # Its Gaussian becomes a network of one array.
        arrays["generator.shift"] = np.zeros((1, 1, 1), np.float32)
    change(header)
    storage.save(tmp_path / "odd", arrays, header)
    with pytest.raises(StorageError, match=message):
        backend.DFT.load(tmp_path / "odd", normal(backend))


# Checkpoints


class Half:
    """Stands in for a trainer in the middle of its networks."""

    done, network_steps = False, 10

    def __init__(self):
        self.resumed = None

    def training_state(self):
        header = {"network_steps": 10, "problem": 0, "phases": [["kl", 10]], "phase_seconds": {"kl": 0.1}}
        return {"losses": np.zeros(10)}, header

    def resume(self, arrays, header):
        self.resumed = header


def prepared(backend, path, sd=10.0, rows=FIVE, **options):
    """A training that no step has been made of, and its checkpoint."""
    options = {"seed": 0, "checkpoint": path, "checkpoint_every": 5, "num_steps": 100, **TINY, **options}
    dft = backend.DFT(normal(backend, sd=sd), disable_progbar=True, **options)
    dft.parts.backend.words = (0, 0)  # the key of NumPyro's `run`
    dft.parts.training.prepare((backend.array(rows),), {})
    dft.parts.training.resume()
    return dft


def test_a_checkpoint_of_another_prior_is_refused(backend, tmp_path):
    """Five rows: the starts are far out, where the likelihood is large."""
    path = tmp_path / "training"
    prepared(backend, path).parts.training.checkpoint.after_step(Half())
    assert prepared(backend, path).parts.training.trainer._resumed is not None
    for options in ({"sd": 11.0}, {"rows": FIVE + np.float32(1e-3)}, {"rows": FIVE[:4]}):
        with pytest.raises(StorageError, match="of another model, or of other data"):
            prepared(backend, path, **options)


def test_a_checkpoint_that_cannot_be_written_is_told_once(backend, tmp_path, monkeypatch):
    path = tmp_path / "training"
    own = prepared(backend, path).parts.training.checkpoint

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.warns(RuntimeWarning, match=r"could not be written .*No space left"):
            own.after_step(Half())
        own._written = 0
        own.after_step(Half())  # a second warning would be an error
    assert list(tmp_path.iterdir()) == []
    own._written = 0
    own.after_step(Half())  # and then there is space again
    assert path.exists()
    with monkeypatch.context() as patch:
        patch.setattr(os, "remove", full)
        with pytest.warns(RuntimeWarning, match="could not be removed"):
            own.remove()


def test_a_training_without_its_checkpoint_goes_on(tmp_path, monkeypatch):
    backend = BACKENDS[0]
    path = tmp_path / "training"
    options = {"train": "always", "num_steps": 20, "width": 4, "depth": 1, "batch_size": 8, "seed": 0, **TINY}
    model = normal(backend)
    whole = backend.fitted(backend.DFT(model, disable_progbar=True, **options), FIVE)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError("read only")))
    dft = backend.DFT(model, disable_progbar=True, checkpoint=path, checkpoint_every=5, **options)
    with pytest.warns(RuntimeWarning, match="read only"):
        backend.run(dft, backend.array(FIVE))
    assert torch.equal(dft.get_samples()["mu"], whole.get_samples()["mu"])


def test_the_folder_is_checked_before_the_training(backend, tmp_path):
    def untouched(y):
        raise AssertionError("the model was run")

    for path in (tmp_path / "none" / "training", tmp_path):
        dft = backend.DFT(untouched, checkpoint=path, seed=0, disable_progbar=True)
        with pytest.raises(SettingsError, match="checkpoint=.* cannot be written"):
            backend.run(dft, backend.array(FIVE))
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_behind_is_cleaned_up(backend, tmp_path):
    names = [".training.0123abcd.tmp", ".training2.0123abcd.tmp", ".training.txt"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    prepared(backend, tmp_path / "training")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names[1:])
    storage.save(tmp_path / "training2", {}, {})
    assert (tmp_path / names[1]).exists()  # it may be another process's, just being written
    os.utime(tmp_path / names[1], (0, 0))
    storage.save(tmp_path / "training2", {}, {})
    assert not (tmp_path / names[1]).exists()


def test_no_header_of_a_checkpoint_does_anything_but_resume_or_be_refused(tmp_path):
    """In torch; the other engine's training would have to be compiled, and reads the same header."""
    path, rng = tmp_path / "training", np.random.default_rng(2)
    net = grouped({"precondition": "never", "train": "always", "width": 4, "depth": 1, "batch_size": 8})
    own = prepared(BACKENDS[0], path, **net)
    for _ in range(7):
        own.parts.training.trainer.step()
    own.parts.training.checkpoint.after_step(own.parts.training.trainer)
    arrays, header = content(path)
    assert header["network_steps"] == 7
    refused = []
    for _ in range(150):
        storage.save(path, arrays, damaged(header, rng))
        refused.append(
            loads_or_refuses(lambda: own.parts.training.checkpoint.resume(own.parts.training.trainer))
        )
    assert 75 < sum(refused) < 150
    for name in ("network.mean", "network.generator.shift", "network.generator_adam.0.exp_avg", "losses"):
        storage.save(path, arrays | {name: arrays[name][..., None]}, header)
        with pytest.raises(StorageError, match="checkpoint cannot be used"):
            own.parts.training.checkpoint.resume(own.parts.training.trainer)


def test_headers_of_checkpoints_are_read_with_care(backend, tmp_path):
    path, rng = tmp_path / "training", np.random.default_rng(3)
    own, half = prepared(backend, path).parts.training.checkpoint, Half()
    own.after_step(half)
    arrays, header = content(path)
    for change in (
        {"phases": [["kl", 10**12]]},
        {"phases": [["kl", 5]]},
        {"network_steps": 10**30},
        {"network_steps": float("nan")},
        {"phase_seconds": {"kl": float("inf")}},
        {"check": [1]},
    ):
        storage.save(path, arrays, header | change)
        with pytest.raises(StorageError):
            own.resume(half)
    assert half.resumed is None
    for _ in range(300):
        storage.save(path, arrays, damaged(header, rng))
        loads_or_refuses(lambda: own.resume(half))
    with pytest.raises(StorageError, match="cannot be used"), history.taking_up("f"):
        raise RecursionError


@pytest.mark.parametrize(("version", "objective"), [("0.1.0", "auto"), ("0.2.0", "dft")])
def test_the_recipe_of_early_files_has_its_present_name(version, objective):
    header = {"settings": {"objective": "dft"}, "num_chains": 1, "version": version}
    settings, chains = restoring.read_settings("f", {"mean": np.zeros((1, 2))}, header)
    assert (settings.objective, chains) == (objective, 1)
