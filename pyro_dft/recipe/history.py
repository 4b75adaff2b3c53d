"""A training in progress as arrays, and what must hold of such arrays before it goes on from them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pyro_dft.errors import reading


def pack_history(history: Sequence[Any]) -> tuple[np.ndarray, list[list[Any]]]:
    """Losses (n,) and runs [phase, count] of iterations."""
    runs: list[list[Any]] = []
    for entry in history:
        if runs and runs[-1][0] == entry.phase:
            runs[-1][1] += 1
        else:
            runs.append([entry.phase, 1])
    return np.array([entry.loss for entry in history], float), runs


def unpack_history(losses: np.ndarray, runs: Sequence[Sequence[Any]]) -> list[tuple[str, float]]:
    """Phase and loss of each iteration."""
    phases = [str(phase) for phase, count in runs for _ in range(int(count))]
    return list(zip(phases, losses.tolist(), strict=True))


def part(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The arrays below a prefix, without it."""
    return {name.removeprefix(prefix): v for name, v in arrays.items() if name.startswith(prefix)}


@contextlib.contextmanager
def taking_up(path: Any) -> Iterator[None]:
    """Whatever a checkpoint makes the code inside raise becomes a `StorageError`."""
    with reading(path, "the checkpoint cannot be used"):
        yield


def check_like(arrays: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray]) -> None:
    """Makes sure that arrays are of the names, shapes and types of others.

    Raises:
        ValueError: they are not.
    """
    described = [
        {name: (tuple(value.shape), value.dtype) for name, value in own.items()} for own in (arrays, like)
    ]
    if described[0] != described[1]:
        names = sorted(k for k in arrays.keys() | like.keys() if described[0].get(k) != described[1].get(k))
        raise ValueError(f"arrays {', '.join(names[:5])} are not those of this training")
