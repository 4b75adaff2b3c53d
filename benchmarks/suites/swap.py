"""A pytest plugin: NUTS and HMC are `DFTKernel` before any test module is imported, and each outcome goes to a file.

Loaded by `-p benchmarks.suites.swap`. `SUITE_BACKEND` names the framework, `SUITE_OUTCOME` the file.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
from pathlib import Path
from typing import Any

# Where test modules may import the kernels from.
PLACES = {
    "numpyro": ("numpyro.infer", "numpyro.infer.hmc"),
    "pyro": ("pyro.infer", "pyro.infer.mcmc", "pyro.infer.mcmc.hmc", "pyro.infer.mcmc.nuts"),
}
_made: list[str] = []  # kernels that were constructed
_outcome: dict[str, Any] = {}


def swap(backend: str) -> None:
    """Puts `DFTKernel` in the places of NUTS and HMC."""
    package = importlib.import_module("pyro_dft" if backend == "pyro" else "pyro_dft.numpyro")
    kernel = package.DFTKernel
    plain = kernel.__init__

    @functools.wraps(plain)
    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        _made.append("made")
        plain(self, *args, **kwargs)

    kernel.__init__ = counted
    for place in PLACES[backend]:
        module = importlib.import_module(place)
        for name in ("NUTS", "HMC"):
            if hasattr(module, name):
                setattr(module, name, kernel)


def pytest_configure() -> None:
    """Before any test module is imported."""
    swap(os.environ["SUITE_BACKEND"])


def pytest_runtest_logreport(report: Any) -> None:
    """Keeps the worst of set-up, call and clean-up."""
    if report.when == "call" or report.outcome != "passed":
        reason = ""
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2]
        elif report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = str(report.longrepr) if crash is None else crash.message
        expected = hasattr(report, "wasxfail")
        _outcome.update(outcome="skipped" if expected else report.outcome, reason=reason)


def pytest_sessionfinish() -> None:
    """Writes what happened."""
    target = os.environ.get("SUITE_OUTCOME")
    if target and _outcome:
        Path(target).write_text(json.dumps({**_outcome, "kernels": len(_made)}))
