"""A compiled function of many rows, some at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pyro_dft.recipe.memory import PointSize


def on_cpu() -> bool:
    """Whether programs run on a CPU."""
    return jax.default_backend() == "cpu"


def in_chunks(
    function: Callable[[Any], Any], rows: tuple[Array, ...], most: int, size_of_one: PointSize
) -> Any:
    """A function of rows at `most` of them at a time, one loop for all.

    Args:
        function: Of arrays (m, ...), returns arrays (m, ...).
        rows: Arrays (n, ...).
        most: Rows at once.
        size_of_one: What each of them takes.
    """
    n = len(rows[0])
    if n <= most:
        return function(rows)
    if size_of_one.keeps_too_much(n, on_cpu()):
        # A loop keeps what the backward passes of all its rounds need, unless they compute it again.
        function = jax.checkpoint(function)
    count = -(-n // most)
    size = -(-n // count)
    # The last chunk repeats rows: one size, one compilation.
    index = jnp.minimum(jnp.arange(count * size), n - 1)
    chunks = jax.tree.map(lambda a: a[index].reshape((count, size, *a.shape[1:])), rows)
    results = _mapped(function, chunks)
    return jax.tree.map(lambda a: a.reshape((count * size, *a.shape[2:]))[:n], results)


def _mapped(function: Callable[[Any], Any], chunks: Any) -> Any:
    """As `jax.lax.map`, but each chunk is an array of its own when the function sees it.

    In `jax.lax.map` a chunk is a slice by the loop's counter, which XLA merges on a CPU into every loop that reads the chunk.
    Those are then not vectorised, and models that broadcast small parameters over tables take eight times as long.
    """

    def step(chunk: Any, following: Any) -> tuple[Any, Any]:
        return following, function(chunk)

    first = jax.tree.map(lambda a: a[0], chunks)
    following = jax.tree.map(lambda a: jnp.concatenate([a[1:], a[:1]]), chunks)
    return jax.lax.scan(step, first, following)[1]
