"""Many data sets, one after the other, in whichever form they were given.

=====================================  ====================================================================================
what is given                          what the model gets for data set i
=====================================  ====================================================================================
an array                               its i-th row, as the only argument
a tuple of arrays                      the i-th row of each, as positional arguments
a dict of arrays                       the i-th row of each, as keyword arguments
any other iterable (a list, a          its i-th item: an array, a tuple of arguments, a dict of keyword arguments, or a pair
generator)                             of both, ``((...), {...})``
=====================================  ====================================================================================
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from pyro_dft.errors import ModelError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def is_array(value: Any) -> bool:
    """Whether it is an array of any framework, or a NumPy number."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def leaves(value: Any) -> list[Any]:
    """What nested tuples, lists and dicts hold, in order."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value, key=str) for leaf in leaves(value[key])]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """Nested tuples, lists and dicts with a function applied to what they hold, in the order of `leaves`."""
    if isinstance(value, dict):
        made = {key: mapped(value[key], function) for key in sorted(value, key=str)}
        return {key: made[key] for key in value}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, function) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(mapped(item, function) for item in value)
    return function(value)


def shape_of(value: Any) -> Any:
    """What two data sets must have in common for one compiled program to serve both; may be hashed."""
    if isinstance(value, dict):
        return ("dict", *((key, shape_of(value[key])) for key in sorted(value, key=str)))
    if isinstance(value, list | tuple):
        return (type(value).__name__, *(shape_of(item) for item in value))
    if is_array(value):
        return ("array", tuple(value.shape), str(value.dtype))
    try:
        hash(value)
    except TypeError:
        return ("object", id(value))
    return ("value", type(value).__name__, value)


class DataSets:
    """All data sets of a call.

    Args:
        data: In one of the forms above.
        shared: Keyword arguments that are the same for all.
        mask: Keyword argument of the model that tells which rows are data: arrays of one data set may then have other
            numbers of rows than those of another, and are padded along their first axis.

    Attributes:
        count: How many there are; None where only the end of an iterable shows it.

    Raises:
        ModelError: there are none, or arrays of a stack have different lengths.
    """

    def __init__(self, data: Any, shared: dict[str, Any] | None = None, mask: str | None = None):
        self._data, self.shared, self.mask = data, dict(shared or {}), mask
        self.stacked = is_array(data) or isinstance(data, tuple | dict)
        self.count: int | None = None
        if self.stacked:
            self.count = self._length()
        elif hasattr(data, "__len__"):
            self.count = len(data)
        if self.count == 0:
            raise ModelError("there are no data sets")

    def _length(self) -> int:
        arrays = [leaf for leaf in leaves(self._data) if is_array(leaf)]
        if not arrays or len(arrays) < len(leaves(self._data)):
            raise ModelError(
                "a stack of data sets is an array, or a tuple or dict of arrays, each with one row for each data set; what is "
                "the same for all goes into shared={...}. A list holds one data set in each item"
            )
        lengths = {tuple(array.shape)[:1] for array in arrays}
        if len(lengths) > 1 or () in lengths:
            shapes = [tuple(array.shape) for array in arrays]
            raise ModelError(f"the arrays of a stack must have equally many rows, got shapes {shapes}")
        return int(lengths.pop()[0])

    def __iter__(self) -> Iterator[Arguments]:
        if self.stacked:
            items: Iterable[Any] = (self._row(i) for i in range(self.count or 0))
        else:
            items = iter(self._data)
        for item in items:
            args, kwargs = arguments(item)
            yield args, {**kwargs, **self.shared}

    def _row(self, i: int) -> Any:
        return mapped(self._data, lambda array: array[i])


def arguments(item: Any) -> Arguments:
    """One data set as positional and keyword arguments."""
    if isinstance(item, dict):
        return (), dict(item)
    if isinstance(item, tuple):
        if len(item) == 2 and isinstance(item[0], tuple) and isinstance(item[1], dict):
            return item[0], dict(item[1])
        return item, {}
    return (item,), {}


def rows_of(own: Arguments) -> int:
    """How many rows a data set has: the length of its first array that has an axis.

    Raises:
        ModelError: it has no such array.
    """
    for leaf in leaves(own):
        if is_array(leaf) and len(leaf.shape):
            return int(leaf.shape[0])
    raise ModelError("mask: a data set has no array with rows")


def padded(sets: list[Arguments], mask: str, rows: int) -> tuple[list[Arguments], list[int]]:
    """Data sets of one shape, with a mask of which rows are data.

    All arrays of a data set whose first axis is as long as that of its first array are padded; others stay as they are. Padding
    repeats the last row, so that it lies in the support of whatever the rows do; zeros stand in for it where there is none.

    Args:
        sets: Their arguments.
        mask: Keyword argument that gets a boolean array (rows,).
        rows: Of all of them.

    Returns:
        Arguments, and how many rows each had.
    """
    counts = [rows_of(own) for own in sets]
    out: list[Arguments] = []
    for own, count in zip(sets, counts, strict=True):

        def longer(leaf: Any, count: int = count) -> Any:
            if not is_array(leaf) or len(leaf.shape) < 1 or leaf.shape[0] != count:
                return leaf
            array = np.asarray(leaf)
            if not count:
                return np.zeros((rows, *array.shape[1:]), array.dtype)
            return array[np.minimum(np.arange(rows), count - 1)]

        args, kwargs = mapped(own, longer)
        out.append((args, {**kwargs, mask: np.arange(rows) < count}))
    return out, counts


def checksum(own: Arguments) -> int:
    """Of all arrays and values of a data set."""
    total = 0
    for leaf in leaves(own):
        content = np.ascontiguousarray(np.asarray(leaf)).tobytes() if is_array(leaf) else repr(leaf).encode()
        total = zlib.crc32(content, zlib.crc32(repr(shape_of(leaf)).encode(), total))
    return total
