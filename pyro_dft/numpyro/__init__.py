"""The NumPyro front door: the names of `pyro_dft`, on jax. Never loads torch."""

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
    from pyro_dft.engine_jax.custom import Network
    from pyro_dft.many.results import ManyFits, load_many
    from pyro_dft.numpyro.compilation import enable_compilation_cache
    from pyro_dft.numpyro.dft import DFT
    from pyro_dft.numpyro.kernel import DFTKernel
    from pyro_dft.numpyro.many import fit_many

_MODULES = {
    "DFT": "pyro_dft.numpyro.dft",
    "DFTKernel": "pyro_dft.numpyro.kernel",
    "ManyFits": "pyro_dft.many.results",
    "Network": "pyro_dft.engine_jax.custom",
    "enable_compilation_cache": "pyro_dft.numpyro.compilation",
    "fit_many": "pyro_dft.numpyro.many",
    "load_many": "pyro_dft.many.results",
}

__all__ = [
    "DFT",
    "DFTKernel",
    "Experimental",
    "FidelityWarning",
    "ManyFits",
    "ModelError",
    "Network",
    "NotFittedError",
    "PerformanceWarning",
    "Settings",
    "SettingsError",
    "StorageError",
    "__version__",
    "enable_compilation_cache",
    "fit_many",
    "load_many",
]


def __getattr__(name: str) -> Any:
    """Loads the front door at first use (PEP 562), so that a missing NumPyro gives a message that helps."""
    if name not in _MODULES:
        raise AttributeError(f"module 'pyro_dft.numpyro' has no attribute {name!r}")
    try:
        return getattr(import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("jax", "numpyro", "optax"):
            raise ImportError(
                f"pyro_dft.numpyro.{name} needs NumPyro: pip install 'pyro-dft[numpyro]'"
            ) from error
        raise


def __dir__() -> list[str]:
    return sorted(__all__)
