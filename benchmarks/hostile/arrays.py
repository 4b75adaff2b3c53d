"""The few array functions that the densities need, under one name in NumPy, jax and torch: each density is written once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy.special import logsumexp

Array = np.ndarray
_NAMES = ("abs", "arcsinh", "einsum", "exp", "log1p", "sin", "sinh", "sqrt", "tanh", "where")


def namespace(framework: str) -> Any:
    """Functions by name, and `array`, which makes a float array in the framework's own precision.

    Args:
        framework: "numpy", "numpyro" (jax) or "pyro" (torch).
    """
    if framework == "numpy":
        return _of(np, lambda v: np.asarray(v, np.float64), lambda x: logsumexp(x, axis=-1))
    if framework == "numpyro":
        import jax
        import jax.numpy as jnp

        return _of(jnp, lambda v: jnp.asarray(v, float), lambda x: jax.scipy.special.logsumexp(x, axis=-1))
    import torch

    return _of(
        torch,
        lambda v: torch.tensor(np.asarray(v), dtype=torch.get_default_dtype()),
        lambda x: torch.logsumexp(x, -1),
    )


def _of(module: Any, array: Any, last_logsumexp: Any) -> Any:
    functions = {name: getattr(module, name) for name in _NAMES}
    return SimpleNamespace(**functions, array=array, logsumexp=last_logsumexp)
