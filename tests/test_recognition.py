"""Files, copies and checkpoints: new draws of their own, and no other model or data than those they were made from."""

import copy
import functools
import os
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from backends import BACKENDS
from safetensors.numpy import save_file

from pyro_dft import FidelityWarning, SettingsError, StorageError, checkpoint, restoring, storage
from pyro_dft.numpyro.model import NumPyroProblem
from pyro_dft.pyro.model import PyroProblem
from pyro_dft.recognition import Portrait, changed_arguments, differences, fingerprints, unlike

pytestmark = pytest.mark.filterwarnings("ignore:the fit is")

ROWS = (2 + np.random.default_rng(0).normal(size=2000)).astype(np.float32)
# Few steps on one start: nothing here asks for a good fit.
TINY = {"precondition_steps": 20, "restarts": 1, "modes": "never", "num_draws": 100}
FIVE = np.array([1.0, 2.0, 3.0, 2.5, 1.5], np.float32)


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


def normal(backend, loc=0.0, sd=10.0, noise=1.0):
    ppl, dist = backend.ppl, backend.ppl.distributions

    def model(y):
        mu = ppl.sample("mu", dist.Normal(loc, sd))
        with ppl.plate("rows", len(y)):
            ppl.sample("y", dist.Normal(mu, noise), obs=y)

    return model


def mixture(backend, sd=10.0):
    ppl, dist = backend.ppl, backend.ppl.distributions

    def model(y):
        mu = ppl.sample("mu", dist.Normal(0.0, sd))
        with ppl.plate("rows", len(y)):
            k = ppl.sample("k", dist.Bernoulli(0.3))
            ppl.sample("y", dist.Normal(mu + 3.0 * k, 1.0), obs=y)

    return model


@functools.cache
def fitted(backend):
    dft = backend.DFT(normal(backend), disable_progbar=True, train="never", refine_steps=2, seed=2, **TINY)
    return backend.fitted(dft, ROWS)


@pytest.fixture
def path(backend, tmp_path):
    fitted(backend).save(tmp_path / "fit", data=False)
    return tmp_path / "fit"


def load(backend, path, model=None, rows=ROWS, **options):
    return backend.DFT.load(
        path, model or normal(backend), backend.array(rows), disable_progbar=True, **options
    )


def draws(dft, n=2000, refine_steps=0):
    return np.asarray(dft.get_samples(n, refine_steps=refine_steps)["mu"])


# New draws


def test_loads_and_copies_draw_afresh(backend, path):
    dft = fitted(backend)
    others = [load(backend, path), load(backend, path), copy.deepcopy(dft), copy.copy(dft)]
    found = np.stack([draws(each) for each in (dft, *others)])
    correlation = np.corrcoef(found) - np.eye(5)
    assert np.abs(correlation).max() < 4.5 / 2000**0.5  # of ten pairs, in standard errors
    refined = np.stack([draws(each, 50, refine_steps=2) for each in others])
    assert len(np.unique(refined)) == refined.size
    kept = [np.asarray(each.get_samples()["mu"]) for each in (dft, *others)]
    assert all(np.array_equal(kept[0], each) for each in kept)


def test_draws_of_two_fits_have_nothing_in_common(backend, tmp_path):
    other = backend.DFT(normal(backend), disable_progbar=True, train="never", refine_steps=2, seed=3, **TINY)
    backend.fitted(other, ROWS).save(tmp_path / "other")
    fitted(backend).save(tmp_path / "fit")
    one, two = (load(backend, tmp_path / name) for name in ("fit", "other"))
    assert abs(np.corrcoef(draws(one), draws(two))[0, 1]) < 4 / 2000**0.5


def test_a_seed_repeats_them(backend, path):
    one, two, other = (load(backend, path, seed=seed) for seed in (10**30, 10**30, 1))
    first = draws(one)
    assert np.array_equal(first, draws(two))
    assert np.array_equal(draws(one, 20, 2), draws(two, 20, 2))
    assert len(np.intersect1d(first, draws(other))) < 20
    copied = copy.deepcopy(one)
    copied.reseed(7)
    one.reseed(7)
    assert np.array_equal(draws(copied), draws(one))
    for wrong in (-1, 1.5, True, "a"):
        with pytest.raises(ValueError, match="seed"):
            load(backend, path, seed=wrong)
        with pytest.raises(ValueError, match="seed"):
            one.reseed(wrong)


def test_a_load_leaves_the_global_random_numbers_alone(path, backend):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    load(backend, path).get_samples(10)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_fork_does_not_repeat_its_parent(backend, path, monkeypatch):
    parent, child = load(backend, path, seed=1), load(backend, path, seed=1)
    monkeypatch.setattr(os, "getpid", lambda: -7)
    there = draws(child)
    assert not np.array_equal(there, draws(child))
    monkeypatch.undo()
    assert len(np.intersect1d(there, draws(parent))) < 20


# Other models and other data


def loaded_without_a_word(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load(*arguments, **options)


def test_other_models_and_data_are_refused(backend, path):
    loaded_without_a_word(backend, path)
    sd = len(ROWS) ** -0.5
    replaced = np.concatenate([ROWS[:1] + 0.3, ROWS[1:]])
    for model, rows, message in (
        (normal(backend, sd=11.0), ROWS, "the log density of site 'mu'"),
        (normal(backend, loc=0.3), ROWS, "the log density of site 'mu'"),
        (normal(backend, noise=1.01), ROWS, "the log density of site 'y'"),
        (None, ROWS + np.float32(0.1 * sd), "argument 'y' is another"),
        (None, replaced, "argument 'y' is another"),
        (None, ROWS[:-1], "argument 'y' is another"),
    ):
        with pytest.raises(StorageError, match=f"another model, or other data .*{message}"):
            load(backend, path, model, rows)


def test_rounding_is_told_and_taken(backend, path):
    moved = np.nextafter(ROWS, np.float32(9))
    with pytest.warns(FidelityWarning, match=r"arguments 'y' are not the same, to the last bit"):
        load(backend, path, rows=moved)


def test_files_of_early_versions_load_and_know_their_data(backend, path):
    arrays, header = storage.load(path)
    header.pop("check")
    arrays |= {f"check.{name}": arrays[f"check.{name}"][:4] for name in ("points", "values")}
    header["crc32"] = storage._checksum(arrays)
    save_file(arrays, path, metadata={"pyro_dft": storage.json.dumps(header)})
    again = loaded_without_a_word(backend, path)
    assert np.array_equal(*(np.asarray(d.get_samples()["mu"]) for d in (again, fitted(backend))))
    for rows in (ROWS + 0.01, ROWS[:-1]):
        with pytest.raises(StorageError, match="another model, or other data"):
            load(backend, path, rows=rows)


@pytest.mark.parametrize("reader", BACKENDS, ids=repr)
def test_files_cross_between_frameworks_with_their_checks(backend, reader, path):
    loaded_without_a_word(reader, path)
    with pytest.raises(StorageError, match="the log density of site 'mu'"):
        load(reader, path, normal(reader, sd=11.0))
    with pytest.raises(StorageError, match="argument 'y' is another"):
        load(reader, path, rows=ROWS[::-1] + np.float32(0.001))


def problem(backend, model, rows):
    made = {"pyro": PyroProblem, "numpyro": NumPyroProblem}[backend.name](model, (backend.array(rows),))
    x = (lambda p: torch.as_tensor(p, dtype=made.dtype)) if backend.name == "pyro" else (lambda p: p)

    def potential(points):
        if backend.name == "pyro":
            return made.values_and_gradients(x(points))[0].double().numpy()
        return -np.asarray(made.target().evaluate(points)[0], float)

    return SimpleNamespace(potential=potential, terms=lambda points: made.site_terms(x(points)))


POINTS = np.array([[2.0], [2.004], [1.991], [2.01]], np.float32)


@pytest.mark.parametrize("kind", [normal, mixture])
def test_terms_add_up_to_the_potential(backend, kind):
    if kind is mixture and backend.name == "numpyro":
        pytest.importorskip("funsor")
    own = problem(backend, kind(backend), ROWS)
    terms = own.terms(POINTS)
    if kind is mixture and backend.name == "numpyro":
        # Discrete sites are summed out together there: only the prior stands alone.
        assert terms["y"] is None
        terms.pop("y")
        assert set(terms) == {"mu", "log Jacobian"}
        assert np.allclose(terms["mu"][0], -3.2215 - POINTS[:, 0] ** 2 / 200, atol=1e-4)
        return
    assert set(terms) == {"mu", "y", "log Jacobian"}
    total = sum(values for values, _ in terms.values())
    assert np.allclose(total, -own.potential(POINTS), rtol=1e-6)


def test_many_rows_do_not_drown_a_prior(backend):
    """With 100,000 rows the potential is some 140,000 nats, and its last digit a hundredth of one."""
    rows = (2 + np.random.default_rng(0).normal(size=100_000)).astype(np.float32)
    portrait = functools.partial(problem, backend)
    own, other = portrait(normal(backend), rows), portrait(normal(backend, sd=11.0), rows)
    before = Portrait.of(POINTS, own.potential, own.terms)
    eps = float(np.finfo(np.float32).eps)
    now, else_ = (Portrait.with_rounding(POINTS, p.potential, p.terms, eps) for p in (own, other))
    assert differences(before, now, True)[0] == []
    found, resolution = differences(before, else_, True)
    assert [line[:32] for line in found] == ["the log density of site 'mu' by "]
    assert resolution < 1.0
    replaced = portrait(normal(backend), np.concatenate([np.full(3, 5.0, np.float32), rows[3:]]))
    three = Portrait.with_rounding(POINTS, replaced.potential, replaced.terms, eps)
    assert [line[:31] for line in differences(before, three, True)[0]] == ["the log density of site 'y' by "]
    # Where no site stands alone, as where discrete sites are summed out, the potential itself is compared.
    alone = [Portrait(p.points, p.values, {}, eps, {"": p.rounding[""]}) for p in (now, three)]
    assert differences(Portrait(before.points, before.values, {}, eps), alone[0], True)[0] == []
    assert (
        "the potential" in differences(Portrait(before.points, before.values, {}, eps), alone[1], True)[0][0]
    )


def test_arguments_that_changed_have_names():
    def model(x, y, *, scale=1.0, note=None):
        pass

    def marks(*args, **kwargs):
        return fingerprints(
            (args, kwargs), model, lambda v: v.numpy() if isinstance(v, torch.Tensor) else None
        )

    x, y = np.arange(6.0).reshape(2, 3), torch.tensor([0.1, 0.2])
    before = marks(x, {"a": y, "b": [1, 2.5]}, scale=2, note="one")
    same = [
        marks(x.astype(np.float32), y={"b": (1.0, 2.5), "a": y.double()}, scale=np.float32(2), note="one"),
        marks(x=torch.as_tensor(x), y={"a": y.numpy(), "b": [np.int32(1), 2.5]}, scale=2, note="one"),
    ]
    # float32 0.1 as float64 is that number, so it is the same in the narrower kind.
    assert [changed_arguments(before, own) for own in same] == [[], []]
    other = [
        (marks(x + 1e-6, {"a": y, "b": [1, 2.5]}, scale=2, note="one"), ["x"]),
        (marks(x.T, {"a": y, "b": [1, 2.5]}, scale=2, note="one"), ["x"]),
        (marks(x, {"a": y.flip(0), "b": [1, 2]}, scale=2, note="two"), ["y['a']", "y['b'][1]", "note"]),
        (marks(x, {"a": y, "b": [1, 2.5]}, scale=True, note="one"), ["scale"]),
    ]
    for own, names in other:
        assert changed_arguments(before, own) == names
    # What no file can hold, or other arguments altogether: nothing is known.
    assert changed_arguments(before, marks(x, {"a": object(), "b": [1, 2.5]}, scale=2, note="one")) == []
    assert changed_arguments(before, marks(x, y)) == []
    assert changed_arguments(None, before) == []


def test_changed_data_are_refused_where_the_density_cannot_tell():
    def portrait(rounding):
        values = np.zeros(4)
        return Portrait(POINTS, values, {"y": values}, 1e-7, {"y": values + rounding, "": values})

    sums = [{"name": "y", "f4": "1"}], [{"name": "y", "f4": "2"}]
    assert unlike(portrait(0), portrait(1e-3), sums) == ([], ["y"])
    assert unlike(portrait(0), portrait(1.0), sums) == (["argument 'y' is another"], [])
    assert unlike(portrait(0), portrait(1.0), (sums[0], sums[0])) == ([], [])


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
    layouts, settings = [fitted(backend)._layout()], fitted(backend).settings
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
    dft._words = (0, 0)  # the key of NumPyro's `run`
    dft._prepare((backend.array(rows),), {})
    dft._resume()
    return dft


def test_a_checkpoint_of_another_prior_is_refused(backend, tmp_path):
    """Five rows: the starts are far out, where the likelihood is large."""
    path = tmp_path / "training"
    prepared(backend, path)._checkpoint.after_step(Half())
    assert prepared(backend, path)._trainer._resumed is not None
    for options in ({"sd": 11.0}, {"rows": FIVE + np.float32(1e-3)}, {"rows": FIVE[:4]}):
        with pytest.raises(StorageError, match="of another model, or of other data"):
            prepared(backend, path, **options)


def test_a_checkpoint_that_cannot_be_written_is_told_once(backend, tmp_path, monkeypatch):
    path = tmp_path / "training"
    own = prepared(backend, path)._checkpoint

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
    net = {"precondition": "never", "train": "always", "width": 4, "depth": 1, "batch_size": 8}
    own = prepared(BACKENDS[0], path, **net)
    for _ in range(7):
        own._trainer.step()
    own._checkpoint.after_step(own._trainer)
    arrays, header = content(path)
    assert header["network_steps"] == 7
    refused = []
    for _ in range(150):
        storage.save(path, arrays, damaged(header, rng))
        refused.append(loads_or_refuses(lambda: own._checkpoint.resume(own._trainer)))
    assert 75 < sum(refused) < 150
    for name in ("network.mean", "network.generator.shift", "network.generator_adam.0.exp_avg", "losses"):
        storage.save(path, arrays | {name: arrays[name][..., None]}, header)
        with pytest.raises(StorageError, match="checkpoint cannot be used"):
            own._checkpoint.resume(own._trainer)


def test_headers_of_checkpoints_are_read_with_care(backend, tmp_path):
    path, rng = tmp_path / "training", np.random.default_rng(3)
    own, half = prepared(backend, path)._checkpoint, Half()
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
    with pytest.raises(StorageError, match="cannot be used"), checkpoint.taking_up("f"):
        raise RecursionError
