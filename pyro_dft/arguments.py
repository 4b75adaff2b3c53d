"""Arguments: is a count one, are those of the model the same as before, and can they go into a file?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def check_count(name: str, value: Any, least: int, error: type[ValueError] = ValueError) -> None:
    """Raises `error` where a value is no integer, or below the least."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise error(f"{name}={value!r}: expected an integer of at least {least}")


def same_objects(a: Arguments, b: Arguments) -> bool:
    """Whether two sets of (args, kwargs) hold the very same objects: enough to notice a new minibatch."""
    (args_a, kwargs_a), (args_b, kwargs_b) = a, b
    return (
        len(args_a) == len(args_b)
        and kwargs_a.keys() == kwargs_b.keys()
        and all(x is y for x, y in zip(args_a, args_b, strict=True))
        and all(value is kwargs_b[name] for name, value in kwargs_a.items())
    )


def pack(
    value: Any, arrays: dict[str, np.ndarray], to_numpy: Callable[[Any], np.ndarray | None], name: str
) -> Any:
    """Splits arguments into arrays and a JSON description of the rest.

    Args:
        value: Nested tuples, lists and string-keyed dicts of arrays, numbers, strings, booleans and None.
        arrays: Filled with the arrays found.
        to_numpy: Turns an array of the framework into a NumPy array; None for anything else.
        name: Names of the arrays start with this.

    Raises:
        TypeError: `value` holds something else.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if isinstance(value, list | tuple):
        items = [pack(item, arrays, to_numpy, f"{name}.{i}") for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: pack(item, arrays, to_numpy, f"{name}.{key}") for key, item in value.items()}}
    native = to_numpy(value)
    array = value if isinstance(value, np.ndarray | np.generic) else native
    if array is None or np.asarray(array).dtype.kind not in "biuf" or np.asarray(array).itemsize > 8:
        raise TypeError(f"{name} is a {type(value).__name__}, which a file cannot hold")
    # A copy: the arrays of a file must not change with the user's own.
    arrays[name] = np.array(array)
    return {"numpy" if native is None else "native": name}


def unpack(packed: Any, arrays: Mapping[str, np.ndarray], from_numpy: Callable[[np.ndarray], Any]) -> Any:
    """The inverse of `pack`; NumPy arrays come back as such, the framework's through `from_numpy`.

    Raises:
        KeyError: an array is missing.
        ValueError: `packed` is not what `pack` returns.
    """
    if not isinstance(packed, dict) or len(packed) != 1:
        raise ValueError("arguments are not in the expected form")
    ((kind, content),) = packed.items()
    if kind == "value":
        return content
    if kind in ("tuple", "list"):
        items = [unpack(item, arrays, from_numpy) for item in content]
        return tuple(items) if kind == "tuple" else items
    if kind == "dict":
        return {key: unpack(item, arrays, from_numpy) for key, item in content.items()}
    if kind in ("numpy", "native"):
        return arrays[content] if kind == "numpy" else from_numpy(arrays[content])
    raise ValueError(f"arguments hold an unknown kind {kind!r}")
