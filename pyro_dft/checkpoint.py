"""A training in progress as a file: a run that was killed goes on where it was."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pyro_dft import storage
from pyro_dft.errors import StorageError

KIND = "training"


class Checkpoint:
    """Writes the state of the network phases every so many iterations, and takes it up again.

    What comes before the networks is made again from the same seed, which is quick.

    Args:
        path: The file.
        every: Iterations between two writes.
        owner: What must be the same when a training is taken up: framework, settings, seed, layout of the sites.
        potential: Values of the potential at points that depend on the seed alone; by them model and data are recognised.
        close: Whether two sets of such values agree.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        every: int,
        owner: Mapping[str, Any],
        potential: np.ndarray,
        close: Callable[[np.ndarray, np.ndarray], bool],
    ):
        self.path, self.every, self.owner = path, every, dict(owner)
        self._potential, self._close = potential, close
        self._written = 0

    def resume(self, trainer: Any) -> None:
        """Hands a training what the file holds; nothing where there is no file.

        Raises:
            StorageError: the file is damaged, or of another training.
        """
        if not os.path.exists(self.path):
            return
        arrays, header = storage.load(self.path)
        different = [key for key, value in self.owner.items() if header.get(key) != value]
        if header.get("kind") != KIND or different:
            raise StorageError(
                f"{self.path}: not a checkpoint of this training ({', '.join(different) or 'kind'} "
                "differs); remove it, or give another path"
            )
        if not self._close(self._potential, arrays.pop("check.values")):
            raise StorageError(f"{self.path}: the checkpoint is of another model, or of other data")
        try:
            trainer.resume(arrays, header)
        except (KeyError, ValueError, RuntimeError) as error:
            raise StorageError(f"{self.path}: the checkpoint cannot be used ({error!r})") from error
        self._written = int(header["network_steps"])

    def after_step(self, trainer: Any) -> None:
        """Writes the file if it is time to."""
        if trainer.done:
            self.remove()
            return
        done = trainer.network_steps
        if done - self._written < self.every:
            return
        state = trainer.training_state()
        if state is None:  # the networks are done, or in the middle of a compiled chunk
            return
        arrays, header = state
        arrays |= {"check.values": self._potential}
        storage.save(self.path, arrays, header | self.owner | {"kind": KIND})
        self._written = done

    def remove(self) -> None:
        """Takes the file away: the training is complete."""
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.path)


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
