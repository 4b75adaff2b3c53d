"""Runs one example in this process, which its parent started for it alone.

The parent gives a JSON text: folder, backend, the fields of the example, kernel ("nuts" or "dft") and the file for what comes
out.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.examples import data
from benchmarks.examples.catalogue import Example
from benchmarks.examples.record import cpu, record
from benchmarks.examples.source import program

# Packages that draw or that show: whatever is asked of them does nothing. What examples draw is not judged.
SILENT = ("seaborn", "graphviz", "IPython", "IPython.display")


class Silent(types.ModuleType):
    """A module, and everything in it, that takes any call."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Silent(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Silent:
        return Silent("value")

    def __getitem__(self, key: Any) -> Silent:
        return Silent("item")

    def __iter__(self) -> Any:
        return iter(())

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def no_pictures() -> None:
    """Nothing is shown, and styles that a newer Matplotlib lacks are no error."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.style

    matplotlib.style.use = lambda *_: None
    sys.modules.update({name: Silent(name) for name in SILENT})
    shell = sys.modules["IPython"]
    shell.__dict__.update(get_ipython=lambda: None, version_info=(9, 0))  # Matplotlib asks for both


def no_downloads(backend: str) -> None:
    """Whatever an example would download comes from `benchmarks.examples.data`."""
    import pandas

    def held(plain: Any) -> Any:
        def read(source: Any, *args: Any, **kwargs: Any) -> Any:
            name = str(source).rsplit("/", 1)[-1]
            if not str(source).startswith("http"):
                return plain(source, *args, **kwargs)
            if name in data.FRAMES:
                return data.FRAMES[name]()
            return plain(data.data_path(f"pyro_datasets/{name}"), *args, **kwargs)

        return read

    for name in ("read_csv", "read_stata"):
        setattr(pandas, name, held(getattr(pandas, name)))
    repository = types.ModuleType("ucimlrepo")
    features, targets = data.credit()
    table = types.SimpleNamespace(data=types.SimpleNamespace(features=features, targets=targets))
    repository.fetch_ucirepo = lambda **_: table  # type: ignore[attr-defined]
    sys.modules["ucimlrepo"] = repository
    if backend == "numpyro":
        from numpyro.examples import datasets

        datasets._load = lambda dset, *_: data.NUMPYRO[dset.name]()


def as_of(folder: Path, backend: str) -> None:
    """The installed package says the version that the folder's examples ask for."""
    stated = {"numpyro": "numpyro/version.py", "pyro": "pyro/__init__.py"}[backend]
    package = importlib.import_module(backend)
    for line in (folder / stated).read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(" = ")
        if name in ("__version__", "version_prefix"):
            package.__version__ = value.strip().strip('"')


def seeded(backend: str) -> None:
    """Both kernels see the same data where an example makes them from generators that it does not seed."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what they draw from
    if backend == "pyro":
        import torch

        torch.manual_seed(0)


def watch(backend: str, kernel: str) -> list[dict[str, Any]]:
    """Swaps the kernel, or not, and has each run recorded."""
    if kernel == "dft":
        from benchmarks.suites.swap import swap

        swap(backend)
    ours = importlib.import_module(f"pyro_dft.{backend}.kernel")
    calls: list[dict[str, Any]] = []

    def reports(mcmc: Any) -> Any:
        return [] if ours._kernel_of(mcmc) is None else ours._reports_of(mcmc)

    record(importlib.import_module(f"{backend}.infer").MCMC, reports, calls)
    return calls


def run(folder: Path, backend: str, example: Example, kernel: str) -> dict[str, Any]:
    """Runs an example to its end, or to its error; a row without the CPU seconds of the whole process."""
    source = program(folder, example)
    no_pictures()
    no_downloads(backend)
    as_of(folder, backend)
    calls = watch(backend, kernel)
    path = folder / example.path.partition("::")[0]
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=str(path), display=lambda *_: None)
    sys.modules["__main__"] = main
    sys.argv = [str(path), *example.arguments]
    sys.path.insert(0, str(path.parent))
    seeded(backend)
    before, error = cpu(), ""
    try:
        exec(compile(source, str(path), "exec"), main.__dict__)
    except SystemExit as left:
        error = "" if left.code in (None, 0) else f"leaves with {left.code}"
    except BaseException as raised:
        import traceback

        traceback.print_exc()
        error = f"{type(raised).__name__}: {raised}"
    return {"error": " ".join(error.split())[:300], "calls": calls, "seconds": cpu() - before}


def main() -> None:
    """Reads what is asked for, and writes what came out."""
    asked = json.loads(sys.argv[1])
    example = Example(**asked["example"])
    os.environ.pop("CI", None)
    if example.smoke:
        os.environ["CI"] = "1"
    target = Path(asked["target"])
    target.write_text(json.dumps(run(Path(asked["folder"]), asked["backend"], example, asked["kernel"])))
