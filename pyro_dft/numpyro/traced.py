"""Functions of a model, traced once, with the data taken out: equal ones share compiled programs.

Tracing turns a model and its arguments into a list of operations (a jaxpr) and the arrays that it reads. Two traces with the
same operations differ in nothing but those arrays, which become arguments of the compiled program. So a second data set of
the same shapes compiles nothing, and a model whose global data changed is never mistaken for the one before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.extend import core

from pyro_dft.engine_jax.cost import size_of
from pyro_dft.engine_jax.sharding import host, pieces, row_shards
from pyro_dft.numpyro.trees import is_traced
from pyro_dft.recipe.memory import PointSize

# Elements of one tensor that a batched evaluation may fill.
MAX_ELEMENTS = 2**23
MAX_ROWS = 8192


class Traced:
    """The operations of a function, without the arrays that it reads; compares and hashes by what it computes.

    Args:
        jaxpr: The operations, with the arrays as first arguments.
        tree: Structure of the result.
    """

    def __init__(self, jaxpr: Any, tree: Any):
        self._jaxpr, self._tree = jaxpr, tree
        digest = hashlib.sha256(f"{jaxpr}|{tree}".encode())
        # The text rounds numbers and leaves out arrays, so they are added as they are.
        for part in _numbers(jaxpr):
            digest.update(part)
        self._key = digest.digest()

    @cached_property
    def row_size(self) -> PointSize:
        """What one row takes, as if the arrays that all rows read were its own."""
        return size_of(self._jaxpr, [True] * len(self._jaxpr.invars))

    @property
    def digest(self) -> bytes:
        """What it compares by."""
        return self._key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Traced) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __call__(self, *arguments: Any) -> Any:
        """The function at its arguments, the last of which are the arrays that `trace` returned."""
        *own, arrays = arguments
        return jax.tree.unflatten(self._tree, jax.core.eval_jaxpr(self._jaxpr, arrays, *jax.tree.leaves(own)))


class Smoothed(Traced):
    """As `Traced`, of a point and the noise added to it."""

    def __call__(self, x: Any, sigma: Any, arrays: Any) -> Any:
        """The function at a point and a noise level."""
        return super().__call__(x, sigma, arrays["smoothed"])


class Batched(Traced):
    """As `Traced`, from (data, key): the order in which the engine passes a minibatch's key."""

    def __call__(self, x: Any, arrays: Any, key: Any) -> Any:
        """The function at a point and the words of a key."""
        return super().__call__(x, key, arrays["minibatch"])


class Full(Traced):
    """As `Traced`, with its arrays under the name "full"."""

    def __call__(self, x: Any, arrays: Any) -> Any:
        """The function at a point."""
        return super().__call__(x, arrays["full"])


def trace(function: Callable[..., Any], *shapes: Any, kind: type[Traced] = Traced) -> tuple[Any, list[Any]]:
    """Traces a function.

    Args:
        function: Takes arrays, returns a tree of arrays.
        shapes: Its arguments, as `jax.ShapeDtypeStruct`.
        kind: How it is called later.

    Returns:
        The operations, and the arrays that they read.
    """
    closed, out = jax.make_jaxpr(function, return_shape=True)(*shapes)
    return kind(closed.jaxpr, jax.tree.structure(out)), [
        # A copy: the user may change an array in place that the model reads from outside.
        c if isinstance(c, jax.Array) else np.array(c)
        for c in closed.consts
    ]


def _numbers(jaxpr: Any) -> Iterator[bytes]:
    """All literal numbers and arrays inside a jaxpr, in order."""
    for equation in jaxpr.eqns:
        for variable in equation.invars:
            if isinstance(variable, core.Literal):
                yield np.asarray(variable.val).tobytes()
        for value in equation.params.values():
            yield from _inside(value)


def _inside(value: Any) -> Iterator[bytes]:
    if isinstance(value, core.ClosedJaxpr):
        for constant in value.consts:
            for place, piece in pieces(constant):
                yield f"{place}".encode() + piece.tobytes()
        yield from _numbers(value.jaxpr)
    elif isinstance(value, core.Jaxpr):
        yield from _numbers(value)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _inside(item)
    elif isinstance(value, np.ndarray | float):
        yield np.asarray(value).tobytes()


def depends(function: Callable[..., Any], shapes: list[Any], argument: int) -> dict[str, bool]:
    """Which entries of a function's result (a dict of arrays) may depend on one of its arguments."""
    closed, out = jax.make_jaxpr(function, return_shape=True)(*shapes)
    touched = [i == argument for i in range(len(closed.jaxpr.invars))]
    return dict(zip(sorted(out), _touched(closed.jaxpr, touched), strict=True))


def _touched(jaxpr: Any, inputs: list[bool]) -> list[bool]:
    """Which results of some operations may depend on those of their inputs that are marked."""
    known = {variable for variable, mark in zip(jaxpr.invars, inputs, strict=True) if mark}

    def marked(variables: Any) -> list[bool]:
        return [not isinstance(v, core.Literal) and v in known for v in variables]

    for equation in jaxpr.eqns:
        marks = marked(equation.invars)
        if not any(marks):
            continue
        found = [True] * len(equation.outvars)
        inner = equation.params.get("jaxpr")
        if equation.primitive.name == "scan":
            # What one step carries on the next one may use, until nothing is added.
            first, carried = equation.params["num_consts"], equation.params["num_carry"]
            while True:
                found = _touched(inner.jaxpr, marks)
                after = [a or b for a, b in zip(marks[first : first + carried], found, strict=False)]
                if after == marks[first : first + carried]:
                    break
                marks[first : first + carried] = after
        elif equation.primitive.name in ("pjit", "jit"):
            found = _touched(inner.jaxpr, marks)
        known.update(v for v, mark in zip(equation.outvars, found, strict=True) if mark)
    return marked(jaxpr.outvars)


@partial(jax.jit, static_argnums=0)
def apply_block(function: Traced, rows: tuple[Any, ...], arrays: Any) -> Any:
    """A function of one row at all rows at once, compiled; the results stay on their devices."""
    return jax.vmap(lambda *own: function(*own, arrays))(*rows)


def map_rows(function: Traced, arrays: Any, *rows: Any, elements: int = 1) -> Any:
    """Applies a function of one row to every row.

    Args:
        function: Traced function.
        arrays: What it reads.
        rows: Arrays (n, ...), n > 0, or trees of them; they may be traced themselves.
        elements: Numbers that one row makes, which bounds how many are evaluated at a time.

    Returns:
        The function's result with leading dimension n, in NumPy arrays unless something is traced.
    """
    n = len(jax.tree.leaves(rows)[0])
    if is_traced((rows, arrays)):
        return jax.vmap(lambda *own: function(*own, arrays))(*rows)
    shards = row_shards(arrays)
    affordable = function.row_size.shared(shards).affordable(jax.default_backend() == "cpu")
    limit = int(min(MAX_ROWS, max(1, MAX_ELEMENTS * shards // max(1, elements)), affordable))
    # Sizes are powers of two, so that few are compiled.
    size = min(limit, 1 << (n - 1).bit_length())
    given = jax.tree.map(np.asarray, rows)
    whole: Any = None
    for start in range(0, n, size):
        count = min(size, n - start)
        index = np.minimum(np.arange(start, start + size), n - 1)
        block = jax.tree.map(lambda a, index=index: a[index], given)
        result = apply_block(function, block, arrays)
        part = jax.tree.map(lambda a, count=count: host(a)[:count], result)
        if count == n:
            return part
        # Written into the whole as it comes: parts that are joined at the end would stand in memory twice.
        if whole is None:
            whole = jax.tree.map(lambda a: np.empty((n, *a.shape[1:]), a.dtype), part)
        for array, values in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
            array[start : start + count] = values
    return whole


def point(dim: int, dtype: Any) -> jax.ShapeDtypeStruct:
    """Shape of one flat point."""
    return jax.ShapeDtypeStruct((dim,), dtype)


def key_words() -> jax.ShapeDtypeStruct:
    """Shape of the words of a random key."""
    return jax.ShapeDtypeStruct((2,), np.uint32)


def as_key(words: Array) -> Array:
    """A random key of jax from two words, for models that draw."""
    return jax.random.wrap_key_data(words, impl="threefry2x32")
