"""Fits a slice of data sets, in this process."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from pyro_dft.errors import FidelityWarning, ModelError
from pyro_dft.many import gaussians
from pyro_dft.many.data import Arguments, padded, rows_of, shape_of
from pyro_dft.many.group import FrontDoor, Group, NotStackable, trained
from pyro_dft.many.padding import Rows
from pyro_dft.many.pool import Pool
from pyro_dft.many.record import Record

DOORS = {"numpyro": "pyro_dft.numpyro.many", "pyro": "pyro_dft.pyro.many"}
# Groups of the last calls, by call and shape of the data: their slices compile nothing again.
MOST_KNOWN = 8
_known: OrderedDict[tuple[str, Any], Group] = OrderedDict()
# What follows the rows of their data, by the same.
_rows: dict[tuple[str, Any], Rows] = {}


def door(framework: str) -> FrontDoor:
    """The front door of a framework."""
    return import_module(DOORS[framework])


def words_of(seed: int, row: int) -> tuple[int, ...]:
    """What the random numbers of one posterior follow from: the seed of all, and its own place."""
    return tuple(int(word) for word in np.random.SeedSequence([seed % 2**64, row]).generate_state(2))


def fit_slice(
    framework: str,
    model: Callable[..., Any],
    sets: list[tuple[int, Arguments]],
    options: dict[str, Any],
    *,
    seed: int,
    mask: str | None = None,
    sizes: list[int] | None = None,
    token: str = "",
) -> list[Record]:
    """Fits some data sets.

    Args:
        framework: "numpyro" or "pyro".
        model: The model.
        sets: Number and arguments of each.
        options: Options of `DFT`: "settings", "num_chains", and others.
        seed: Of all data sets of the call.
        mask: Keyword argument that tells which rows are data, see `pyro_dft.many.data.DataSets`.
        sizes: What data sets are padded to, in ascending order: each to the first that is long enough; None takes the longest of
            these.
        token: Of a call of `fit_many`, whose slices share what was compiled. The model may read other things in another call.

    Returns:
        A record of each, in order.
    """
    front, ragged = door(framework), None if mask is None else _Ragged(mask, sets, sizes)
    own = [arguments for _, arguments in sets] if ragged is None else ragged.padded
    own = [front.native(arguments) for arguments in own]
    groups: dict[Any, list[int]] = {}
    for place, arguments in enumerate(own):
        groups.setdefault(shape_of(arguments), []).append(place)
    found: dict[int, Record] = {}
    with warnings.catch_warnings():
        # Each record says what its own warnings would.
        warnings.simplefilter("ignore", FidelityWarning)
        for shape, places in groups.items():
            numbers, mine = [sets[place][0] for place in places], [own[place] for place in places]
            used, key = model, (token, shape)
            if ragged is not None:
                rows = ragged.rows_of(front, model, places, key)
                used = model if rows is None else front.freed(model, rows, ragged.mask)
            group = _group(front, used, mine, options, key)
            for k, record in _fit_group(front, used, mine, numbers, options, seed, group):
                found[places[k]] = record
                if ragged is not None:
                    place = places[k]
                    record.cut(
                        ragged.counts[place], ragged.sizes[place], None if rows is None else rows.plates
                    )
    return [found[place] for place in range(len(sets))]


class _Ragged:
    """Data sets with different numbers of rows, and what they are padded to.

    Args:
        mask: Keyword argument that tells which rows are data.
        sets: Number and arguments of each.
        sizes: See `fit_slice`.
    """

    def __init__(self, mask: str, sets: list[tuple[int, Arguments]], sizes: list[int] | None):
        self.mask, self._sets = mask, [own for _, own in sets]
        self.counts = [rows_of(own) for own in self._sets]
        sizes = [max(1, *self.counts)] if sizes is None else sizes
        self.sizes = [next(size for size in sizes if size >= count) for count in self.counts]
        self.padded = [
            padded([own], mask, size)[0][0] for own, size in zip(self._sets, self.sizes, strict=True)
        ]

    def rows_of(
        self, front: FrontDoor, model: Callable[..., Any], places: list[int], key: tuple[str, Any]
    ) -> Rows | None:
        """What of the model follows the rows, by the first data sets of one shape; None where that cannot be told."""
        if key in _rows:
            return _rows[key]
        for place in places[:3]:
            size = self.sizes[place]
            one, more = (
                front.native(padded([self._sets[place]], self.mask, n)[0][0]) for n in (size, size + 1)
            )
            try:
                found = front.rows(model, one, more, self.mask)
            except Exception:  # the fit will say it, if it is more than that the model has one size
                continue
            if key[0]:
                _rows[key] = found
            return found
        return None


def forget(token: str) -> None:
    """Lets go of what the slices of a call have shared in this process."""
    for known in (_known, _rows):
        for key in [key for key in known if key[0] == token]:
            del known[key]


def _group(
    front: FrontDoor,
    model: Callable[..., Any],
    sets: list[Arguments],
    options: dict[str, Any],
    key: tuple[str, Any],
) -> Group | None:
    """The group of some data sets; None where they have to be done one by one.

    Where the first of them cannot be used, or the model fails, each says so by itself.
    """
    if key in _known:
        _known.move_to_end(key)
        return _known[key].with_sets(sets)
    try:
        group = front.Group(model, sets, options)
    except (NotStackable, ModelError):
        return None
    if not key[0]:
        return group
    _known[key] = group
    while len(_known) > MOST_KNOWN:
        _known.popitem(last=False)
    return group


def _fit_group(
    front: FrontDoor, model: Callable[..., Any], sets: list[Arguments], numbers: list[int], options: dict[str, Any],
    seed: int, group: Group | None,
) -> Iterator[tuple[int, Record]]:  # fmt: skip
    if group is None:
        for k, number in enumerate(numbers):
            yield k, _alone(front, model, sets[k], number, options, seed)
        return

    def fitted(k: int) -> Record:
        member = group.member(k, words_of(seed, numbers[k]))
        with group.surroundings():
            return Record.of(numbers[k], trained(member))

    def answer(key: Any, payloads: list[Any]) -> Any:
        return (
            gaussians.answer(key, payloads, group.answer)
            if key[0] == gaussians.KEY
            else group.answer(key, payloads)
        )

    def full(key: Any) -> int:
        return 1 if key[0] == gaussians.KEY else group.full(key)

    for k, outcome in Pool(answer, group.width, full).run(partial(fitted, k) for k in range(len(sets))):
        yield k, outcome if isinstance(outcome, Record) else Record.of_error(numbers[k], outcome)


def _alone(
    front: FrontDoor,
    model: Callable[..., Any],
    own: Arguments,
    number: int,
    options: dict[str, Any],
    seed: int,
) -> Record:
    try:
        training = front.alone(model, words_of(seed, number), options)
        training.run(*own)
        return Record.of(number, training)
    except Exception as error:  # of one posterior alone
        return Record.of_error(number, error)
