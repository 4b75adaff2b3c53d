"""What the evaluation of a function takes for each point, read from its operations (a jaxpr) before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.extend import core

from pyro_dft.recipe.memory import PointSize

# The compiler makes no array for results of these operations, but computes them where they are used.
FUSED = frozenset(
    {"abs", "add", "add_any", "and", "broadcast_in_dim", "ceil", "clamp", "convert_element_type", "copy", "cos", "digamma",
     "div", "eq", "erf", "erf_inv", "exp", "exp2", "expand_dims", "expm1", "floor", "ge", "gt", "integer_pow", "iota",
     "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "not", "or", "pow",
     "reshape", "rsqrt", "select_n", "sign", "sin", "sqrt", "square", "squeeze", "stop_gradient", "sub", "tan", "tanh"}
)  # fmt: skip
# Reductions of such values are computed with them.
REDUCING = "reduce_"
# Operations that have results of their own beside those of the jaxprs inside them.
LOOPS = frozenset({"scan", "while", "cond"})
ROUNDS = frozenset({"scan", "while"})
# Those of them that end by what they compute.
ADAPTIVE = frozenset({"while"})

# Second derivatives through batched calls of these can block each other for good on a CPU with few cores.
LAPACK = frozenset(
    {"cholesky", "cholesky_update", "eig", "eigh", "geqrf", "householder_product", "hessenberg", "lu", "qr", "schur",
     "svd", "triangular_solve", "tridiagonal_solve"}
)  # fmt: skip


def point_size(function: Callable[..., Any], point: Any, *others: Any, own: int = 1) -> PointSize:
    """What a function of one point takes for each point of a batch.

    Args:
        function: Takes the point first.
        point: Array or shape of it.
        others: Further arguments.
        own: How many of the arguments each point has of its own; the others are shared.
    """
    closed = jax.make_jaxpr(function)(point, *others)
    count = len(jax.tree.leaves((point, *others)[:own]))
    found = size_of(closed.jaxpr, [i < count for i in range(len(closed.jaxpr.invars))])
    loops, adaptive = (any_primitive(closed.jaxpr, names) for names in (ROUNDS, ADAPTIVE))
    return replace(found, loops=loops, adaptive=adaptive)


def size_of(jaxpr: Any, own: list[bool]) -> PointSize:
    """The same of a jaxpr, given which of its inputs each point has of its own."""
    elements, total = 1, 1
    for aval, made in _values(jaxpr, own):
        count = int(np.prod(aval.shape, dtype=float))
        elements = max(elements, count)
        total += count * np.dtype(aval.dtype).itemsize if made else 0
    return PointSize(elements, total)


def _values(jaxpr: Any, own: list[bool]) -> Iterator[tuple[Any, bool]]:
    """Every value that differs from point to point, and whether an array is made for it."""
    touched = {v for v, flag in zip(jaxpr.invars, own, strict=True) if flag}
    fused: dict[Any, bool] = {}  # values that no array has been made for
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inputs = [v for v in equation.invars if not isinstance(v, core.Literal) and v in touched]
        if not inputs:
            continue
        touched.update(equation.outvars)
        if name not in FUSED and not name.startswith(REDUCING):
            for v in inputs:
                if fused.pop(v, False) and _is_array(v.aval):
                    yield v.aval, True
        inner = list(_inside(equation.params))
        for part in inner:
            flags = [not isinstance(v, core.Literal) and v in touched for v in equation.invars]
            yield from _values(part, flags if len(flags) == len(part.invars) else [True] * len(part.invars))
        if inner and name not in LOOPS:
            continue
        for v in equation.outvars:
            if _is_array(v.aval):
                fused[v] = name in FUSED
                yield v.aval, not fused[v]


def _is_array(aval: Any) -> bool:
    """Random keys have a dtype that NumPy does not know; they are small."""
    return hasattr(aval, "shape") and isinstance(getattr(aval, "dtype", None), np.dtype)


def _inside(params: dict[str, Any]) -> Iterator[Any]:
    leaves = jax.tree.leaves(
        list(params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
    )
    for leaf in leaves:
        leaf = getattr(leaf, "jaxpr", leaf)
        if hasattr(leaf, "eqns"):
            yield leaf


def any_primitive(jaxpr: Any, names: frozenset[str]) -> bool:
    """Whether one of these operations is anywhere inside."""
    return any(
        equation.primitive.name in names
        or any(any_primitive(part, names) for part in _inside(equation.params))
        for equation in jaxpr.eqns
    )


def uses_lapack(potential: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a function calls LAPACK routines, anywhere inside."""
    return any_primitive(jax.make_jaxpr(potential)(*arguments).jaxpr, LAPACK)
