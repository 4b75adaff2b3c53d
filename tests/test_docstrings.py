"""Every public name has an example in its docstring, and the examples run."""

from __future__ import annotations

import contextlib
import doctest
import functools
import inspect
import io

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
import torch
from backends import BACKENDS

from pyro_dft import Settings
from pyro_dft.evidence.importance import ImportanceResult
from pyro_dft.judging.summary import Summary
from pyro_dft.judging.verdict import Diagnostics
from pyro_dft.many.results import ManyFits, ManySummary

pytestmark = pytest.mark.usefixtures("brief_surrogate")

# What calls of `DFT` take and return: public as well, although nobody imports some of them.
RESULTS = (ImportanceResult, Diagnostics, ManyFits, ManySummary, Settings, Summary)
# Inherited from the frameworks or plain data.
NOT_OURS = {"__version__"}
FLAGS = doctest.IGNORE_EXCEPTION_DETAIL


def members(cls):
    """Public methods and properties that the package wrote."""
    for name in dir(cls):
        value = inspect.getattr_static(cls, name)
        function = getattr(value, "__func__", getattr(value, "fget", value))
        if (
            name.startswith("_")
            or not callable(function)
            or not getattr(function, "__module__", "").startswith("pyro_dft")
        ):
            continue
        yield name, function


def documented(backend):
    """Name -> object, for everything that a user of one front door can call."""
    found = {}
    for name in sorted(set(backend.package.__all__) - NOT_OURS):
        found[name] = getattr(backend.package, name)
    for cls in (backend.DFT, *RESULTS):
        found[cls.__name__] = cls
        for name, value in members(cls):
            found[f"{cls.__name__}.{name}"] = value
    if backend.name == "numpyro":
        del found["DFT.step"]  # raises, and says what takes its place
    return found


CASES = [(backend, name) for backend in BACKENDS for name in documented(backend)]


@functools.cache
def names_of(backend):
    """What examples may use without saying so: a model, its data, and a fit (docs/api/index.md shows them)."""
    y = backend.array([1.0, 2.0, 3.0])
    ppl = backend.ppl

    def model(y, observed=True):
        mu = ppl.sample("mu", ppl.distributions.Normal(0.0, 10.0))
        with ppl.plate("data", len(y)):
            ppl.sample("y", ppl.distributions.Normal(mu, 1.0), obs=y if observed else None)

    dft = backend.DFT(model, seed=0, disable_progbar=True)
    backend.run(dft, y)
    fits = backend.package.fit_many(model, [y, y + 1, y - 1], disable_progbar=True)
    return {
        "DFT": backend.DFT,
        "fit_many": backend.package.fit_many,
        "load_many": backend.package.load_many,
        "fits": fits,
        "torch": torch,
        "model": model,
        "y": y,
        "dft": dft,
        "jax": jax,
        "jnp": jnp,
        "np": np,
        "Settings": Settings,
    }


# Examples that train anew, and what they call is called every day elsewhere.
LONG = {
    "pyro": {"DFT.score_network"},
    "numpyro": {
        "DFT.score_network",
        "DFT.generator",
        "DFT.adopt",
        "DFT.init",
        "DFT.update",
        "DFT.fit",
        "DFT.draw",
    },
}
PARAMETERS = [
    pytest.param(b, n, id=f"{b}-{n}", marks=pytest.mark.slow if n in LONG[b.name] else []) for b, n in CASES
]


@pytest.mark.parametrize(("backend", "name"), PARAMETERS)
def test_the_example_runs(backend, name):
    matplotlib.use("Agg")
    thing = documented(backend)[name]
    (example,) = doctest.DocTestFinder(recurse=False).find(thing, name, globs=dict(names_of(backend)))
    assert example.examples, f"{name} has no example"
    said = io.StringIO()
    with contextlib.redirect_stderr(io.StringIO()):
        doctest.DocTestRunner(optionflags=FLAGS).run(example, out=said.write)
    assert not said.getvalue()
