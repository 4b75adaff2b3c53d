"""Settings of jax that a fit must not depend on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import numpy as np

# What jax does by default, and what puts that in force.
_DEFAULTS = (
    ("jax_numpy_rank_promotion", "allow", jax.numpy_rank_promotion),
    ("jax_numpy_dtype_promotion", "standard", jax.numpy_dtype_promotion),
)


@contextlib.contextmanager
def without_mesh() -> Iterator[None]:
    """Leaves the mesh that `jax.set_mesh` has put in force: arrays say by themselves where they are."""
    # Older versions of jax have no such mesh.
    if not hasattr(jax, "set_mesh") or jax.sharding.get_abstract_mesh().empty:
        yield
        return
    try:
        none = jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ()))
    except (
        ValueError
    ):  # within `jax.pmap` (parallel chains) there is one that nobody has set, and none can be
        yield
        return
    with none:
        yield


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    """Promotes ranks and dtypes as jax does by default, also where the user has forbidden it for code of his own.

    Nothing is entered where nothing is forbidden: programs compiled under another setting are compiled again. May be used
    as a decorator.
    """
    with contextlib.ExitStack() as stack:
        for name, value, setting in _DEFAULTS:
            if getattr(jax.config, name) != value:
                stack.enter_context(setting(value))
        yield
