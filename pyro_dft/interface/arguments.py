"""Arguments of a model: are they the same as before, and can they go into a file?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def copied(value: Any, copy_array: Callable[[Any], Any]) -> Any:
    """A copy of arguments, whose arrays later changes from outside do not reach.

    Args:
        value: Nested tuples, lists and dicts of arrays and other values; these others stay the same objects.
        copy_array: Copies an array of the framework; returns anything else as it is.
    """
    if type(value) is dict:
        return {key: copied(item, copy_array) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copied(item, copy_array) for item in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(copied(item, copy_array) for item in value))
    return copy_array(value)


def unchanged(kept: Any, now: Any, same_array: Callable[[Any, Any], bool | None]) -> bool:
    """Whether arguments are still equal to the copy that `copied` made: a buffer may have been filled with other data since.

    Args:
        kept: From `copied`.
        now: Arguments of the present call.
        same_array: Compares two arrays of the framework by what they hold; None where one of them is no array.
    """
    if type(kept) is not type(now):
        return False
    if isinstance(kept, dict):
        return kept.keys() == now.keys() and all(unchanged(kept[key], now[key], same_array) for key in kept)
    if isinstance(kept, list | tuple):
        return len(kept) == len(now) and all(map(partial(unchanged, same_array=same_array), kept, now))
    same = same_array(kept, now)
    if same is not None:
        return same
    return kept is now or (isinstance(kept, bool | int | float | str) and kept == now)


def other_numbers(kept: Any, now: Any, to_numpy: Callable[[Any], np.ndarray | None]) -> bool:
    """Whether some arrays at the same place of two sets of arguments surely differ in their numbers.

    Arrays of different shapes, and arguments in different forms, do not count.
    """
    if isinstance(kept, dict) and isinstance(now, dict):
        return any(other_numbers(kept[key], now[key], to_numpy) for key in kept.keys() & now.keys())
    if isinstance(kept, list | tuple) and isinstance(now, list | tuple):
        return len(kept) == len(now) and any(map(partial(other_numbers, to_numpy=to_numpy), kept, now))
    pair = [value if isinstance(value, np.ndarray) else to_numpy(value) for value in (kept, now)]
    if any(array is None or array.dtype.kind not in "biuf" for array in pair):
        return False
    one, two = (np.asarray(array, np.float64) for array in pair)
    return one.shape == two.shape and not np.array_equal(one, two, equal_nan=True)


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
