"""pyro_dft: swap NUTS for a neural posterior sampler. This module holds the names for Pyro users.

NumPyro users import the same names from `pyro_dft.numpyro`. Nothing is loaded before it is used, so neither framework
loads the other one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyro_dft._version import __version__
from pyro_dft.errors import (
    FidelityWarning,
    ModelError,
    NotFittedError,
    PerformanceWarning,
    SettingsError,
    StorageError,
)
from pyro_dft.experimental import Experimental
from pyro_dft.settings import Settings

if TYPE_CHECKING:
    from pyro_dft.many.results import ManyFits, load_many
    from pyro_dft.pyro import DFT, DFTKernel, fit_many

_PYRO = {
    "DFT": "pyro_dft.pyro",
    "DFTKernel": "pyro_dft.pyro",
    "ManyFits": "pyro_dft.many.results",
    "fit_many": "pyro_dft.pyro",
    "load_many": "pyro_dft.many.results",
}

__all__ = [
    "DFT",
    "DFTKernel",
    "Experimental",
    "FidelityWarning",
    "ManyFits",
    "ModelError",
    "NotFittedError",
    "PerformanceWarning",
    "Settings",
    "SettingsError",
    "StorageError",
    "__version__",
    "fit_many",
    "load_many",
]


def __getattr__(name: str) -> Any:
    """Loads the Pyro front door at first use (PEP 562)."""
    if name not in _PYRO:
        raise AttributeError(f"module 'pyro_dft' has no attribute {name!r}")
    try:
        return getattr(import_module(_PYRO[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("torch", "pyro"):
            raise ImportError(f"pyro_dft.{name} needs Pyro: pip install 'pyro-dft[pyro]'") from error
        raise


def __dir__() -> list[str]:
    return sorted(__all__)
