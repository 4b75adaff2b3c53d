"""One contract for both front doors: the same calls, on the same models, give the same kinds of things."""

from __future__ import annotations

import contextlib
import functools
import inspect

import numpy as np
import pytest
import torch
from backends import BACKENDS, ROWS, Y
from daily import daily
from quick import GAUSSIAN, NETWORK

import pyro_dft
import pyro_dft.numpyro
from pyro_dft import SettingsError
from pyro_dft.experimental import Experimental
from pyro_dft.interface import storage
from pyro_dft.interface.dft import Inference

# A fit of a second may be doubted. Whether it is doubted rightly is tested elsewhere.
pytestmark = [pytest.mark.filterwarnings("ignore:the fit is"), pytest.mark.usefixtures("brief_surrogate")]

FITS = {
    "network": lambda b: b.fitted(b.dft(num_chains=2, **{**NETWORK, "seed": 1}), Y),
    # A Gaussian is far off in the tail of log tau, and 2 transitions leave much of that.
    "hierarchy": lambda b: b.fitted(b.dft("hierarchy", refine_steps=20), Y),
    "minibatched": lambda b: b.fitted(
        b.dft("minibatched", experimental=Experimental(precondition_steps=150)), ROWS
    ),
    "constrained": lambda b: b.fitted(b.dft("constrained")),
    "potential": lambda b: b.fitted(b.potential(lambda z: 0.5 * ((z["a"] - 3.0) ** 2).sum())),
}


@pytest.fixture(params=BACKENDS, ids=repr)
def backend(request):
    return request.param


@pytest.fixture(scope="module")
def fit():
    """Each sampler is trained once."""
    return functools.cache(lambda backend, name: FITS[name](backend))


@pytest.fixture(params=[name for name in FITS if name != "constrained"])
def pair(request, fit):
    """One of the samplers, trained by each backend."""
    return [fit(backend, request.param) for backend in BACKENDS]


# Names and signatures

# Whatever only one of the two front doors has.
ONLY = {
    # jax compiles, and may keep what it has compiled; PyTorch has nothing of the kind to keep, and its networks are modules.
    "names": {"pyro": set(), "numpyro": {"enable_compilation_cache", "Network"}},
    # PyTorch trains by changing state, as pyro.infer.SVI.step; jax by pure functions, as numpyro.infer.SVI.
    "methods": {"pyro": {"step"}, "numpyro": {"init", "update", "fit", "draw", "adopt", "print_summary"}},
    "options": {
        # jax places arrays by itself (jax.default_device; rows on a mesh), and NumPyro knows its plates without being told.
        "pyro": {"device", "max_plate_nesting", "process_group"},
        "numpyro": set(),
    },
}
KEY = "rng_key"  # jax has no global generator: NumPyro's users pass a key


def parameters(function):
    return [
        (p.name, p.kind, p.default)
        for p in inspect.signature(function).parameters.values()
        if p.name not in ("self", KEY)
    ]


def takes_key(function):
    return callable(function) and KEY in inspect.signature(function).parameters


def members(cls):
    """Public name -> parameters of a method, "property" or "value"."""
    found = {}
    for name in dir(cls):
        value = inspect.getattr_static(cls, name)
        if not name.startswith("_"):
            value = value.__func__ if isinstance(value, classmethod) else value
            kind = "property" if isinstance(value, property) else "value"
            found[name] = parameters(value) if callable(value) else kind
    return found


def test_the_packages_have_the_same_names():
    found = {backend.name: set(backend.package.__all__) for backend in BACKENDS}
    assert {name: names & ONLY["names"][name] for name, names in found.items()} == ONLY["names"]
    one, two = (names - ONLY["names"][name] for name, names in found.items())
    assert one == two
    for name in one - {
        "DFT",
        "DFTKernel",
        "fit_many",
    }:  # the same objects, `Settings` too: one `except` is for both
        assert getattr(pyro_dft, name) is getattr(pyro_dft.numpyro, name), name


def test_dft_has_the_same_methods_and_properties():
    methods = ONLY["methods"]
    extra = methods["pyro"] | methods["numpyro"]
    found = [members(backend.DFT) for backend in BACKENDS]
    for backend, own in zip(BACKENDS, found, strict=True):
        assert methods[backend.name] <= own.keys()
        assert {name for name in extra if hasattr(backend.dft(), name)} == methods[backend.name]
    extra = extra.union(*ONLY["options"].values())
    one, two = ({name: own[name] for name in own.keys() - extra} for own in found)
    assert one == two
    keyed = [{name for name in one if takes_key(getattr(backend.DFT, name))} for backend in BACKENDS]
    assert keyed == [set(), {"run"}]


def test_dft_has_the_same_options_with_the_same_defaults():
    shared = dict(inspect.signature(Inference).parameters)
    for backend in BACKENDS:
        own = {**shared, **inspect.signature(backend.DFT).parameters}
        assert {n for n in own.keys() - shared.keys() if n != "options"} == ONLY["options"][backend.name]
        assert all(own[name].default == p.default for name, p in shared.items())
        assert backend.dft().settings == BACKENDS[0].dft().settings


def test_kernels_have_the_same_constructor():
    # Their methods are what the MCMC class of each framework calls: nothing is alike there.
    one, two = (parameters(backend.DFTKernel) for backend in BACKENDS)
    assert one == two
    # NumPyro's MCMC has no bar while a kernel sets itself up; Pyro's shows the training as its warm-up.
    for backend, refused in zip(BACKENDS, (True, False), strict=True):
        with pytest.raises(SettingsError) if refused else contextlib.nullcontext():
            backend.DFTKernel(backend.models.known_mean, disable_progbar=True)


# What a fit gives


def kinds(value):
    """A report without its numbers."""
    if isinstance(value, dict):
        return {key: kinds(item) for key, item in value.items()}
    if isinstance(value, list):
        return [kinds(value[0])] if value else []
    return "number" if type(value) in (int, float) else type(value).__name__


def test_diagnostics_have_the_same_keys_and_kinds_of_values(pair):
    reports = [dict(dft.diagnostics()) for dft in pair]
    for report in reports:  # one name, or one for each chain where they differ
        assert set(np.atleast_1d(report.pop("objective"))) <= {"gaussian", "kl", "dft"}
        assert report["status"] == "converged"
    one, two = map(kinds, reports)
    assert one == two
    assert list(one) == list(two)
    for key in ("refine_steps", "r_hat_limit", "num_draws", "coordinates", "vectorised", "alarms"):
        assert reports[0][key] == reports[1][key], key


def test_numbers_are_close_for_an_easy_posterior(backend, fit):
    dft = fit(backend, "network")
    report, precision = dft.diagnostics(), 0.01 + len(Y)
    mean, sd = Y.sum() / precision, precision**-0.5
    mu = np.asarray(dft.get_samples(2000)["mu"])
    # 5 standard errors of 2000 draws, and what 20 steps of training may leave behind after refinement.
    assert abs(mu.mean() - mean) < (5 / 2000**0.5 + 0.05) * sd
    assert abs(mu.std() / sd - 1) < 5 / 4000**0.5 + 0.05
    # 200 draws: a standard error of 0.05.
    assert abs(report["spread"] / sd - 1) < 0.25
    assert abs(report["acceptance"] - 0.8) < 0.1
    assert report["r_hat"] < report["r_hat_limit"]
    assert report["left"]["error"] < 0.08
    assert report["unsettled"] is False
    assert report["optima"]["weights"] == [1.0]
    assert abs(report["fisher_gap"]) < 1.0
    assert report["nonfinite_evaluations"] == report["noise"] == report["divergence_rate"] == 0


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({}, (200,)),
        ({"num_samples": 7}, (7,)),
        ({"num_samples": 7, "refine_steps": 0}, (7,)),
        ({"refine_steps": 1}, (200,)),
        ({"group_by_chain": True}, (2, 100)),
        ({"num_samples": 7, "group_by_chain": True}, (2, 7)),
        ({"group_by_chain": True, "refine_steps": 0}, (2, 100)),
    ],
)
def test_draws_have_the_same_shapes(backend, fit, arguments, shape):
    draws = fit(backend, "network").get_samples(**arguments)
    assert {name: tuple(value.shape) for name, value in draws.items()} == {"mu": shape, "twice": shape}
    assert {type(value) for value in draws.values()} == {type(backend.array(0.0))}


def test_sites_have_the_same_shapes_and_order(pair):
    one, two = ([(name, tuple(v.shape)) for name, v in dft.get_samples(3).items()] for dft in pair)
    assert one == two


def test_summaries_have_the_same_rows_and_columns(pair):
    one, two = ([(name, list(row)) for name, row in dft.summary_table().rows.items()] for dft in pair)
    assert one == two


def test_weighted_draws_have_the_same_kinds_and_the_known_evidence(fit):
    kinds_of = []
    for backend in BACKENDS:
        found = fit(backend, "network").importance_sampling(1000)
        kinds_of.append({name: (tuple(v.shape), str(v.dtype)[-7:]) for name, v in found.samples.items()})
        assert found.reliable
        covariance = 100 + np.eye(len(Y))
        log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
        truth = -0.5 * (Y @ np.linalg.solve(covariance, Y) + log_det)
        assert abs(found.log_evidence - truth) < 4 * found.log_evidence_error + 1e-4  # single precision
    assert kinds_of[0] == kinds_of[1] == dict.fromkeys(("mu", "twice"), ((1000,), "float32"))


def groups_of(data):
    """ArviZ data without draws: (group, variable) -> dimensions, shape, type; coordinates; attributes."""
    names = data.groups() if callable(data.groups) else [g.strip("/") for g in data.groups if g != "/"]
    groups = {name: data[name] for name in names}
    variables = {(g, v): (a.dims, a.shape, a.dtype) for g, ds in groups.items() for v, a in ds.items()}
    coords = {(g, c): a.values.tolist() for g, ds in groups.items() for c, a in ds.coords.items()}
    return list(names), variables, coords


@pytest.mark.parametrize("name", ["network", "hierarchy", "potential"])
def test_arviz_data_have_the_same_groups_dims_coords_and_attributes(name, fit):
    options = {} if name == "potential" else {"posterior_predictive": True, "prior": True}
    data = [fit(backend, name).to_inference_data(**options) for backend in BACKENDS]
    one, two = map(groups_of, data)
    assert one == two
    attributes = [dict(each.posterior.attrs) for each in data]
    assert attributes[0].keys() == attributes[1].keys()
    assert [own.pop("backend") for own in attributes] == ["pyro", "numpyro"]
    for key in ("created_at", "sampling_time", "objective"):
        attributes[0].pop(key), attributes[1].pop(key)
    assert attributes[0] == attributes[1]


# Files


def test_files_have_the_same_format(pair, tmp_path):
    contents = []
    for dft in pair:
        dft.save(tmp_path / "fit")
        contents.append(storage.load(tmp_path / "fit"))
    one, two = ({name: (v.shape, v.dtype) for name, v in arrays.items()} for arrays, _ in contents)
    assert one == two
    headers = [header for _, header in contents]
    assert headers[0].keys() == headers[1].keys()
    assert [header["framework"] for header in headers] == ["pyro", "numpyro"]
    for key in ("format", "version", "layout", "settings", "num_chains", "arguments"):
        assert headers[0][key] == headers[1][key], key
    # Which coordinates win the race may differ: each has random numbers of its own.
    sites = [[(s["name"], s["unconstrained_shape"]) for s in h["sampler_layout"]["sites"]] for h in headers]
    assert sites[0] == sites[1]


# NumPyro reads the last one and does not train it: to compile its training takes longer than all else here.
@pytest.mark.filterwarnings("ignore:raw draws differ")
@pytest.mark.parametrize(
    ("name", "writer", "reader"),
    [(name, *order) for name in ("network", "hierarchy") for order in (BACKENDS, BACKENDS[::-1])]
    # Every day tests/test_density.py finds the evidence of the same file one, which the transforms must agree for.
    + [pytest.param("constrained", *BACKENDS, marks=pytest.mark.slow)],
)
def test_files_of_one_framework_load_in_the_other(name, writer, reader, fit, tmp_path):
    written = fit(writer, name)
    model = "known_mean" if name == "network" else name

    def hand_over(dft, backend):
        dft.save(tmp_path / "fit")
        return backend.DFT.load(tmp_path / "fit", getattr(backend.models, model), disable_progbar=True)

    read = hand_over(written, reader)
    back = hand_over(read, writer)
    noise = np.random.default_rng(0).normal(
        size=(2, written.num_chains, 30, written.parts.backend.layout.dim)
    )
    draws, kept = [], []
    for dft, backend in ((written, writer), (read, reader), (back, writer)):
        draws.append(np.asarray(dft.parts.fit.sampler.transport(*map(backend.array, noise))))
        kept.append({site: np.asarray(value) for site, value in dft.get_samples().items()})
        assert dft.get_samples(5, refine_steps=0)[next(iter(kept[0]))].shape[0] == 5
        assert dft.diagnostics().to_json()["optima"] == written.diagnostics().to_json()["optima"]
    for other, values in zip(draws[1:], kept[1:], strict=True):
        assert np.allclose(draws[0], other, rtol=1e-5, atol=1e-5)
        assert list(values) == list(kept[0])
        # The transforms agree: simplex, Cholesky factors, ordered vectors and matrices come out alike.
        for site, value in values.items():
            assert np.allclose(value, kept[0][site], rtol=1e-4, atol=1e-5), site


# MCMC


@pytest.mark.filterwarnings("ignore:num_chains=2 is more than available_cpu")  # and so they are sequential
@pytest.mark.parametrize(
    "backend", daily(BACKENDS, BACKENDS[0]), ids=str, indirect=True
)  # the other: test_numpyro_dft.py
def test_the_kernel_takes_the_place_of_nuts(backend, monkeypatch):
    monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: 1)
    model, y = backend.models.known_mean, backend.array(Y)
    found = []
    for kernel in (backend.NUTS(model), backend.DFTKernel(model, **GAUSSIAN)):  # the settings for speed only
        mcmc = backend.mcmc(kernel, 50, 20, 2, y)
        together, apart = mcmc.get_samples(), mcmc.get_samples(group_by_chain=True)
        assert tuple(together["mu"].shape) == (100,)
        assert tuple(apart["mu"].shape) == (2, 50)
        assert len(np.unique(apart["mu"])) > 90 or not found  # draws of NUTS may stay where they are
        found.append({name: (tuple(value.shape), value.dtype) for name, value in together.items()})
    assert found[0] == found[1]


def test_a_start_without_a_gradient_gives_way_to_points_around_it(backend):
    """A ring, whose middle is the caller's own start: with one restart there is no other point beside it."""
    dft = backend.potential(
        lambda z: 4 * ((z["a"] ** 2).sum() ** 0.5 - 3.0) ** 2,
        initial_params={"a": backend.array([0.0, 0.0])},
        restarts=1,
    )
    backend.fitted(dft)
    radii = np.linalg.norm(dft.parts.backend.arrays.numpy(dft.get_samples(refine_steps=20)["a"]), axis=1)
    # On the ring r ~ N(3, .35^2), all but a few thousandths between 2 and 4.
    assert ((radii > 1.9) & (radii < 4.1)).mean() > 0.9
