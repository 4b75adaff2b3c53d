"""Value and gradient of a function of one point, in reverse mode or, where jax has none, in forward mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Function = Callable[..., Array]


def value_and_gradient(function: Function, forward: bool) -> Callable[..., tuple[Array, Array]]:
    """As `jax.value_and_grad`.

    Args:
        function: Of a point (d,), and of anything else; returns a number.
        forward: In forward mode, one derivative for each coordinate: it costs about d evaluations, but works for loops
            whose length is not known beforehand (`jax.lax.while_loop`), which reverse mode cannot differentiate.
    """
    if not forward:
        return jax.value_and_grad(function)

    def pushed(x: Array, *others: Any) -> tuple[Array, Array]:
        def along(direction: Array) -> tuple[Array, Array]:
            return jax.jvp(lambda point: function(point, *others), (x,), (direction,))

        # The value is the same for each direction, so that loops under the map end where they do without it.
        return jax.vmap(along, out_axes=(None, 0))(jnp.eye(len(x), dtype=x.dtype))

    return pushed


def needs_forward(function: Function, *arguments: Any) -> bool:
    """Whether only forward mode can differentiate a function at arguments of these shapes.

    Raises:
        Exception: what jax says of reverse mode, where forward mode does not work either.
    """
    try:
        jax.eval_shape(value_and_gradient(function, False), *arguments)
        return False
    except Exception:  # of many types, by what is in the function
        try:
            jax.eval_shape(value_and_gradient(function, True), *arguments)
        except Exception:
            pass
        else:
            return True
        raise
