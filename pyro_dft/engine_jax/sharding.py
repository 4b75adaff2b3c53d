"""Data that are spread over devices, also over those of several processes.

The arrays that a posterior reads say by themselves where their rows are (`jax.sharding.NamedSharding`). The compiler then lets
each device evaluate its own rows and adds up potentials and gradients, 1 + d numbers for each point. What is left to do here: to
leave the rows where they are, to spread points over the axes of the mesh that no array uses, and to read results that no process
has all of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Placement:
    """Where the rows of the data are, and where points go.

    Attributes:
        mesh: The devices.
        axes: Names of the mesh's axes that points are spread over: those that no array uses.
        rows: Devices that share the rows of the data.
    """

    mesh: Mesh
    axes: tuple[str, ...]
    rows: int

    @classmethod
    def of(cls, data: Any) -> Placement | None:
        """Of the arrays (a tree) that a posterior reads; None where they are on one device."""
        placed = [s for s in map(_named, jax.tree.leaves(data)) if s is not None]
        if not placed:
            return None
        mesh = max((s.mesh for s in placed), key=lambda own: own.size)
        used = {name for s in placed for name in _axes(s.spec)}
        free = tuple(name for name in mesh.axis_names if name not in used and mesh.shape[name] > 1)
        return cls(_automatic(mesh), free, mesh.size // math.prod(mesh.shape[name] for name in free))

    @property
    def points(self) -> int:
        """Devices that share the points."""
        return self.mesh.size // self.rows

    def spread(self, tree: Any) -> Any:
        """Arrays (n, ...) of points, spread over the axes that are theirs; for compiled functions."""
        own = NamedSharding(self.mesh, PartitionSpec(self.axes or None))
        return jax.tree.map(lambda value: jax.lax.with_sharding_constraint(value, own), tree)

    def whole(self, tree: Any) -> Any:
        """Arrays as every device has them; for compiled functions."""
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(lambda value: jax.lax.with_sharding_constraint(value, everywhere), tree)


def _named(leaf: Any) -> NamedSharding | None:
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return None
    own = leaf.sharding
    return own if isinstance(own, NamedSharding) and own.mesh.size > 1 else None


def _axes(spec: PartitionSpec) -> Iterator[str]:
    for part in spec:
        yield from (part,) if isinstance(part, str) else part or ()


def _automatic(mesh: Any) -> Mesh:
    """The mesh with axes along which the compiler chooses; models are not written for any other kind."""
    return Mesh(mesh.devices, mesh.axis_names)


def automatic(value: Any) -> Any:
    """An array whose mesh leaves choices to the compiler, with its pieces where they are; anything else as it is."""
    own = _named(value)
    if own is None or own.mesh == (mesh := _automatic(own.mesh)):
        return value
    pieces = [shard.data for shard in value.addressable_shards]
    return jax.make_array_from_single_device_arrays(
        value.shape, NamedSharding(mesh, own.spec), pieces, dtype=value.dtype
    )


def row_shards(data: Any) -> int:
    """How many devices share the rows of the arrays in a tree."""
    placement = Placement.of(data)
    return 1 if placement is None else placement.rows


def is_spread(value: Any) -> bool:
    """Whether an array is in pieces on several devices."""
    return _named(value) is not None and not value.is_fully_replicated


def host(value: Any) -> np.ndarray:
    """An array on the host of each process; every process has to ask for it where no one has all of it."""
    if isinstance(value, jax.Array) and not value.is_fully_addressable and not value.is_fully_replicated:
        return np.asarray(multihost_utils.process_allgather(value, tiled=True))
    return np.asarray(value)


def pieces(value: Any) -> list[tuple[tuple[slice, ...], np.ndarray]]:
    """What this process has of an array, piece by piece on the host, with the place of each; nothing comes twice.

    Of pieces that several devices hold, one of them gives its own. The pieces of all processes together are the array.
    """
    if not is_spread(value):
        return [((), np.asarray(value))] if jax.process_index() == 0 or not _is_global(value) else []
    return [(s.index, np.asarray(s.data)) for s in value.addressable_shards if s.replica_id == 0]


def _is_global(value: Any) -> bool:
    return isinstance(value, jax.Array) and not value.is_fully_addressable


def in_row_order(value: Any) -> Iterator[np.ndarray] | None:
    """Pieces of a spread array, one at a time on the host, that follow each other row by row; None where they do not.

    They do where this process has all of them, and only the first axis is divided.
    """
    if not value.is_fully_addressable:
        return None
    own = [shard for shard in value.addressable_shards if shard.replica_id == 0]
    if any(shard.data.shape[1:] != value.shape[1:] for shard in own):
        return None
    own.sort(key=lambda shard: shard.index[0].start or 0)
    return (np.asarray(shard.data) for shard in own)


def over_processes(value: Any, numbers: np.ndarray) -> np.ndarray:
    """Sums over processes what each of them found of its pieces of an array; the numbers themselves where it has all."""
    if not _is_global(value):
        return numbers
    return gathered(numbers).sum(0)


def gathered(numbers: np.ndarray) -> np.ndarray:
    """The numbers (...) of each process, (processes, ...); every process has to ask."""
    # In 32-bit words: jax may have no wider numbers.
    words = np.ascontiguousarray(numbers, np.float64).view(np.uint32)
    return np.ascontiguousarray(multihost_utils.process_allgather(words)).view(np.float64)


def count_nan(value: Any) -> int:
    """Entries of an array that are no number."""
    if not is_spread(value):
        return int(np.isnan(np.asarray(value)).sum())
    with jax.ensure_compile_time_eval():  # where the array is, whatever is being traced around it
        return int(_count_nan(value))


@jax.jit
def _count_nan(value: Any) -> Any:
    return jnp.isnan(value).sum()


def row_sums(value: Any) -> Pair:
    """Sums (n,) in double precision over all but the first axis of an array (n, ...): of its entries, and of their sizes."""
    sums = np.zeros((2, len(value)))
    for place, piece in pieces(value):
        rows = np.asarray(piece, np.float64).reshape(len(piece), -1)
        at = place[0] if place else slice(None)
        sums[0, at] += rows.sum(1)
        sums[1, at] += abs(rows).sum(1)
    first, second = over_processes(value, sums)
    return first, second
