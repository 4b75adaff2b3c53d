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
from quick import all_distinct
from safetensors.numpy import save_file
from saved import ROWS, TINY, fitted, load, normal

from pyro_dft import FidelityWarning, StorageError
from pyro_dft.interface import storage
from pyro_dft.interface.recognition import Portrait, changed_arguments, differences, fingerprints, unlike
from pyro_dft.numpyro.model import NumPyroProblem
from pyro_dft.pyro.arrays import TorchArrays
from pyro_dft.pyro.model import PyroProblem

pytestmark = pytest.mark.filterwarnings("ignore:the fit is")


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


def mixture(backend, sd=10.0):
    ppl, dist = backend.ppl, backend.ppl.distributions

    def model(y):
        mu = ppl.sample("mu", dist.Normal(0.0, sd))
        with ppl.plate("rows", len(y)):
            k = ppl.sample("k", dist.Bernoulli(0.3))
            ppl.sample("y", dist.Normal(mu + 3.0 * k, 1.0), obs=y)

    return model


@pytest.fixture
def path(backend, tmp_path):
    fitted(backend).save(tmp_path / "fit", data=False)
    return tmp_path / "fit"


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
    assert all_distinct(refined)
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
        return fingerprints((args, kwargs), model, TorchArrays())

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
