"""A training in progress as a file, from which a run that was killed can be resumed."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from pyro_dft import messages
from pyro_dft.errors import StorageError, warn
from pyro_dft.interface import storage
from pyro_dft.interface.recognition import Portrait, unlike
from pyro_dft.recipe.history import taking_up
from pyro_dft.settings import in_present_form

KIND = "training"


class Checkpoint:
    """Writes the state of the network phases every so many iterations, and resumes from it.

    What comes before the networks is computed again from the same seed, which is quick.

    Args:
        path: The file.
        every: Iterations between two writes.
        owner: What must be the same when a training is taken up: framework, settings, seed, layout of the sites.
        portrait: The posterior at points that depend on the seed alone, with its rounding errors.
        checksums: Of the model's arguments. By these and the portrait, model and data are recognised.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        every: int,
        owner: Mapping[str, Any],
        portrait: Portrait,
        checksums: list[dict[str, Any]],
    ):
        self.path, self.every, self.owner = path, every, dict(owner)
        self._portrait, self._checksums = portrait, checksums
        self._written = 0
        self._warned = False

    def resume(self, trainer: Any) -> None:
        """Resumes a training from the file, if there is one. Temporary files that killed writes left are removed.

        Raises:
            StorageError: the file is damaged, or of another training.
        """
        storage.clean(self.path)
        if not os.path.exists(self.path):
            return
        arrays, header = storage.load(self.path)
        kept = {**header, "settings": in_present_form(header.get("settings"))}
        different = [key for key, value in self.owner.items() if kept.get(key) != value]
        if header.get("kind") != KIND or different:
            raise StorageError(
                f"{self.path}: not a checkpoint of this training ({', '.join(different) or 'kind'} "
                "differs); remove it, or give another path"
            )
        with taking_up(self.path):
            check, points = dict(header.get("check") or {}), self._portrait.points
            sites = check.get("sites")
            before = Portrait.read(points, arrays.pop("check.values"), sites, points.shape[1])
            trouble = unlike(before, self._portrait, (check.get("arguments"), self._checksums))[0]
            if trouble:
                raise StorageError(
                    f"{self.path}: the checkpoint is of another model, or of other data ({'; '.join(trouble)})"
                )
            steps = _check_state(arrays, header, self.owner["settings"]["num_steps"])
            # The engine takes it up when the networks are due, and names the file if it cannot.
            trainer.resume(arrays, header | {"path": str(self.path)})
        self._written = steps

    def after_step(self, trainer: Any) -> None:
        """Writes the file where `every` iterations were made since the last write.

        Warns:
            RuntimeWarning: it cannot be written; once only, and the training goes on.
        """
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
        arrays |= {"check.values": self._portrait.values}
        check = {"sites": self._portrait.to_json(), "arguments": self._checksums}
        self._written = done
        try:
            storage.save(self.path, arrays, header | self.owner | {"kind": KIND, "check": check})
        except OSError as error:
            if not self._warned:
                warn(messages.checkpoint_not_written(self.path, error), RuntimeWarning)
            self._warned = True

    def remove(self) -> None:
        """Takes the file away: the training is complete.

        Warns:
            RuntimeWarning: it cannot be removed.
        """
        try:
            os.remove(self.path)
        except FileNotFoundError:
            return
        except OSError as error:
            warn(messages.checkpoint_not_removed(self.path, error), RuntimeWarning)


def check_folder(path: str | os.PathLike[str]) -> None:
    """Makes sure, before a training, that its checkpoint can be written.

    Raises:
        SettingsError: the folder is missing or cannot be written to.
    """
    try:
        storage.check_folder(path)
    except OSError as error:
        raise messages.no_checkpoint_folder(path, error) from error


def _check_state(arrays: Mapping[str, np.ndarray], header: Mapping[str, Any], num_steps: int) -> int:
    """Number of iterations made, after checking the counts that the engine will read.

    Raises:
        ValueError: counts do not fit each other.
    """
    steps, problem, losses = header["network_steps"], header["problem"], arrays["losses"]
    counts = [count for _, count in header["phases"]]
    if any(type(count) is not int or count < 0 for count in [steps, problem, *counts]):
        raise ValueError("its counts are not counts")
    if steps > num_steps or losses.ndim != 1 or losses.dtype.kind != "f" or sum(counts) != len(losses):
        raise ValueError(f"{steps} of {num_steps} iterations, {sum(counts)} in its phases")
    costs = [*header["phase_seconds"].values(), *header.get("phase_gradients", {}).values()]
    if not all(math.isfinite(cost) for cost in costs):
        raise ValueError("its costs are not finite")
    return steps
