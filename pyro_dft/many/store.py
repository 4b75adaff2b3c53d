"""Where the records of many posteriors are kept: in memory, or slice by slice in a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pyro_dft.errors import StorageError, reading
from pyro_dft.interface import storage
from pyro_dft.many.record import Record
from pyro_dft.settings import in_present_form

_NAME = re.compile(r"slice-(\d{6,})\.safetensors")


class Store(Protocol):
    """Records by slice."""

    @property
    def slices(self) -> int | None:
        """How many there will be; None where that is not known."""

    def write(self, number: int, records: list[Record], sums: list[int]) -> None:
        """Keeps a slice, all of it or nothing."""

    def holds(self, number: int, sums: list[int]) -> bool:
        """Whether a slice is there already.

        Raises:
            StorageError: it is there, but of other data, or of another call.
        """

    def numbers(self) -> list[int]:
        """Slices that are there, in order."""

    def read(self, number: int) -> list[Record]:
        """A slice."""

    def header(self, number: int) -> list[dict[str, Any]]:
        """What `Record.header` says of each record of a slice."""


class Memory:
    """Keeps all records in memory."""

    slices = None

    def __init__(self) -> None:
        self._slices: dict[int, list[Record]] = {}

    def write(self, number: int, records: list[Record], sums: list[int]) -> None:
        """See `Store.write`."""
        self._slices[number] = records

    def holds(self, number: int, sums: list[int]) -> bool:
        """Never: each call begins with nothing."""
        return False

    def numbers(self) -> list[int]:
        """See `Store.numbers`."""
        return sorted(self._slices)

    def read(self, number: int) -> list[Record]:
        """See `Store.read`."""
        return self._slices[number]

    def header(self, number: int) -> list[dict[str, Any]]:
        """See `Store.header`."""
        return [record.header() for record in self._slices[number]]


class Folder:
    """Keeps each slice in a file of its own, which appears when it is complete.

    Args:
        path: The folder; it is made if it is not there.
        call: What the results follow from besides the data: slices of another call are refused. None takes what is there.
    """

    def __init__(self, path: str | os.PathLike[str], call: dict[str, Any] | None = None):
        self.path, self.call = Path(path), call
        self._last: tuple[int, list[Record]] | None = None
        if call is not None:
            self.path.mkdir(parents=True, exist_ok=True)
        elif not self.path.is_dir():
            raise StorageError(f"{self.path}: there is no such folder")

    def file(self, number: int) -> Path:
        """Of a slice."""
        return self.path / f"slice-{number:06d}.safetensors"

    def write(self, number: int, records: list[Record], sums: list[int]) -> None:
        """See `Store.write`."""
        arrays = {
            f"{record.row}/{kind}/{name}": value
            for record in records
            for kind in ("samples", "stats")
            for name, value in getattr(record, kind).items()
        }
        header = {"records": [record.header() for record in records], "sums": sums, "call": self.call}
        storage.save(self.file(number), arrays, header)

    def holds(self, number: int, sums: list[int]) -> bool:
        """See `Store.holds`."""
        path = self.file(number)
        if not path.exists():
            return False
        header = storage.load_header(path)
        call = dict(header.get("call") or {})
        if "settings" in call:
            call["settings"] = in_present_form(call["settings"])
        if call != self.call:
            raise StorageError(
                f"{path}: holds posteriors of another call: its settings, seed, slices or model arguments differ. Give another "
                "folder, or remove this one"
            )
        if header.get("sums") != sums:
            raise StorageError(
                f"{path}: holds posteriors of other data. Give another folder, or remove this one"
            )
        return True

    def numbers(self) -> list[int]:
        """See `Store.numbers`."""
        names = (_NAME.fullmatch(entry.name) for entry in self.path.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def read(self, number: int) -> list[Record]:
        """See `Store.read`; the last one is remembered."""
        if self._last is None or self._last[0] != number:
            path = self.file(number)
            arrays, header = storage.load(path)
            with reading(path):
                self._last = number, _records(arrays, header)
        return self._last[1]

    def header(self, number: int) -> list[dict[str, Any]]:
        """See `Store.header`."""
        path = self.file(number)
        with reading(path):
            return list(storage.load_header(path)["records"])

    @property
    def framework(self) -> str:
        """Of the call that wrote the slices; "" where there are none."""
        return str(self._written().get("framework", ""))

    @property
    def slices(self) -> int | None:
        """See `Store`."""
        found = self._written().get("slices")
        return None if found is None else int(found)

    def _written(self) -> dict[str, Any]:
        """The call that wrote the first slice."""
        numbers = self.numbers()
        if not numbers:
            return {}
        path = self.file(numbers[0])
        with reading(path):
            return dict(storage.load_header(path)["call"])


def _records(arrays: dict[str, np.ndarray], header: dict[str, Any]) -> list[Record]:
    found = {own["row"]: Record(**own) for own in header["records"]}
    for name, value in arrays.items():
        row, kind, site = name.split("/", 2)
        getattr(found[int(row)], kind)[site] = value
    return [found[own["row"]] for own in header["records"]]
