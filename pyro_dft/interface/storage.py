"""Save and load: arrays in a safetensors file with a JSON header. No pickle, so loading runs no code.

The header sits in the metadata of the file under the key "pyro_dft". Besides what the caller puts there it
holds "format" (an integer that grows when files change in a way that old readers cannot understand),
"version" (of the library that wrote it) and "crc32" (of names, types, shapes and bytes of all arrays: a
posterior that was damaged on the way must not load). Beside it, under "pyro_dft_crc32", stands the checksum of
the header's own text. Files of early versions have none; since no other key may be there, one that is damaged
cannot pass for one that is missing.
"""

from __future__ import annotations

import contextlib
import glob
import json
import operator
import os
import secrets
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from pyro_dft._version import __version__
from pyro_dft.errors import StorageError, reading
from pyro_dft.layout import Layout

FORMAT = 1

_KEY, _KEY_SUM = "pyro_dft", "pyro_dft_crc32"
_RESERVED = ("format", "version", "crc32")
_LENGTH_BYTES = 8  # a safetensors file starts with the length of its JSON header, little-endian
# A write removes temporary files of earlier writes that were killed, once they are older than this (seconds).
_STALE = 3600.0


def save(path: str | os.PathLike[str], tensors: Mapping[str, ArrayLike], header: Mapping[str, Any]) -> None:
    """Write arrays and a header to one file, atomically.

    The file appears under its name only when it is complete on disk: an interrupted call leaves the old file,
    or none.

    Args:
        path: where to write; an existing file is replaced, missing folders are not made.
        tensors: arrays of numbers or booleans, by name. Written in C order.
        header: what JSON can hold; NumPy scalars and arrays become numbers and lists.

    Raises:
        ValueError: `header` has one of the reserved keys "format", "version", "crc32".
        TypeError: an array has a type that the file cannot hold, or the header something that JSON cannot.
        OSError: the file cannot be written.
    """
    reserved = [key for key in _RESERVED if key in header]
    if reserved:
        raise ValueError(f"header keys {reserved} are reserved")
    arrays = {name: _as_storable(name, value) for name, value in tensors.items()}
    full = {**header, "format": FORMAT, "version": __version__, "crc32": _checksum(arrays)}
    text = json.dumps(full, default=_to_json)
    content = to_safetensors(arrays, metadata={_KEY: text, _KEY_SUM: _text_checksum(text)})
    clean(path, _STALE)
    _write_atomically(Path(os.path.realpath(path)), content)


def load(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read a file that :func:`save` wrote.

    Returns:
        (tensors, header). The header includes "format", "version" and "crc32".

    Raises:
        StorageError: not a safetensors file, truncated, damaged, not written by this library, or in a newer
            format.
        OSError: the file does not exist or cannot be read.
    """
    _check_container(path)
    try:
        with reading(path), safe_open(os.fspath(path), framework="np") as file:
            header = _read_header(path, file.metadata() or {})
            # Only now: the arrays of a file in an unknown format mean nothing.
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise StorageError(f"{path}: not a valid safetensors file ({error})") from error
    if header.get("crc32") != _checksum(tensors):
        raise StorageError(
            f"{path}: damaged, the checksum of the arrays does not match; restore it from a copy"
        )
    return tensors, header


def load_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The header of a file that :func:`save` wrote, without its arrays, whose checksum is not checked.

    Raises:
        StorageError: as for :func:`load`.
        OSError: the file does not exist or cannot be read.
    """
    _check_container(path)
    try:
        with reading(path), safe_open(os.fspath(path), framework="np") as file:
            return _read_header(path, file.metadata() or {})
    except SafetensorError as error:
        raise StorageError(f"{path}: not a valid safetensors file ({error})") from error


def clean(path: str | os.PathLike[str], age: float = 0.0) -> None:
    """Removes temporary files that writes to this path have left behind, because they were killed.

    Args:
        path: where the writes went to.
        age: seconds since the last change of a file, at least: another process may be writing this moment.
    """
    target = Path(os.path.realpath(path))
    for found in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 8}.tmp"):
        with contextlib.suppress(OSError):  # another process was quicker, or the file is not ours to remove
            if time.time() - found.stat().st_mtime >= age:
                found.unlink()


def check_folder(path: str | os.PathLike[str]) -> None:
    """Makes sure that a file can be written there, by writing one next to it.

    Raises:
        OSError: the folder is missing or cannot be written to, or the path is that of a folder.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder")
    temporary = _temporary(target)
    with open(temporary, "xb"):
        pass
    temporary.unlink()


def check_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, NDArray[Any]],
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    """Check that exactly the expected arrays are there, with the expected shapes.

    Args:
        path: the file they came from, for the message.
        tensors: arrays by name, as :func:`load` returns them.
        expected: shapes by name.

    Raises:
        StorageError: arrays are missing or unexpected, or a shape differs; the message names all of them.
    """
    missing = sorted(expected.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - expected.keys())
    shapes = [
        f"{name} has shape {tensors[name].shape}, expected {tuple(expected[name])}"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != tuple(expected[name])
    ]
    problems = [
        *([f"missing tensors: {', '.join(missing)}"] if missing else []),
        *([f"unexpected tensors: {', '.join(unexpected)}"] if unexpected else []),
        *shapes,
    ]
    if problems:
        raise StorageError(f"{path}: {'; '.join(problems)}")


def check_layout(path: str | os.PathLike[str], saved: Mapping[str, Any], expected: Layout) -> None:
    """Check that a saved parameter layout is the one of the present model.

    Args:
        path: the file it came from, for the message.
        saved: layout from the header, as ``Layout.to_json`` wrote it.
        expected: layout of the present model.

    Raises:
        StorageError: `saved` is no layout, or a site is missing, new or different; the message names it.
    """
    with reading(path, "its layout cannot be read"):
        found = Layout.from_json(saved)
    mismatch = expected.mismatch(found)
    if mismatch is not None:
        raise StorageError(f"{path}: saved for another model (here: the model, there: the file); {mismatch}")


def _as_storable(name: str, value: ArrayLike) -> NDArray[Any]:
    array = np.asarray(value, order="C")
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(f"tensor {name!r} has type {array.dtype}, which the file cannot hold")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _to_json(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"header holds a {type(value).__name__}, which JSON cannot: {value!r}")


def _text_checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _checksum(tensors: Mapping[str, NDArray[Any]]) -> int:
    crc = 0
    for name in sorted(tensors):
        array = tensors[name]
        crc = zlib.crc32(f"{name}|{array.dtype.name}|{array.shape}".encode(), crc)
        crc = zlib.crc32(array.tobytes(), crc)
    return crc


def _temporary(path: Path) -> Path:
    # In the same folder, because a rename is atomic only within one file system.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = _temporary(path)
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # an interrupt too must not leave litter
        temporary.unlink(missing_ok=True)
        raise


def _check_container(path: str | os.PathLike[str]) -> None:
    """Tell a truncated file from one of another kind, which safetensors' own messages do not."""
    with open(path, "rb") as file:
        start = file.read(_LENGTH_BYTES + 1)
        size = os.fstat(file.fileno()).st_size
        if size <= _LENGTH_BYTES:
            raise StorageError(f"{path}: truncated or not a safetensors file ({size} bytes)")
        if start[_LENGTH_BYTES:] != b"{":
            raise StorageError(f"{path}: not a safetensors file")
        end_of_header = _LENGTH_BYTES + int.from_bytes(start[:_LENGTH_BYTES], "little")
        if end_of_header > size:
            raise StorageError(f"{path}: truncated within its header ({size} of {end_of_header} bytes)")
        file.seek(_LENGTH_BYTES)
        with reading(path, "not a safetensors file: its header cannot be read"):
            entries = json.loads(file.read(end_of_header - _LENGTH_BYTES))
            ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
            end_of_data = end_of_header + max(map(operator.index, ends), default=0)
        if end_of_data > size:
            raise StorageError(f"{path}: truncated ({size} of {end_of_data} bytes)")


def _read_header(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> dict[str, Any]:
    if _KEY not in metadata:
        raise StorageError(
            f"{path}: a safetensors file, but not one that pyro_dft wrote (no {_KEY!r} header)"
        )
    own_sum = _text_checksum(metadata[_KEY])
    unknown = metadata.keys() - {_KEY, _KEY_SUM}
    if unknown or metadata.get(_KEY_SUM, own_sum) != own_sum:
        raise StorageError(
            f"{path}: damaged, the checksum of the header does not match; restore it from a copy"
        )
    with reading(path, "its pyro_dft header is not JSON"):
        header = json.loads(metadata[_KEY])
    found = header.get("format") if isinstance(header, dict) else None
    if type(found) is not int:
        raise StorageError(f"{path}: its pyro_dft header names no format")
    if found > FORMAT:
        raise StorageError(
            f"{path}: file format {found}, written by pyro_dft {header.get('version')}, is newer than format "
            f"{FORMAT} that pyro_dft {__version__} reads; upgrade pyro-dft"
        )
    return header
