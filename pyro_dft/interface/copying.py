"""Calls of a `DFT` that write and read files, and copies of it in this process and in others."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Self

from pyro_dft import messages
from pyro_dft.interface import restoring, storage
from pyro_dft.interface.parts import Parts
from pyro_dft.settings import check_count


class Copying:
    """Save, load and copy, and the random numbers of the draws of a copy."""

    parts: Parts

    def save(self, path: str | os.PathLike[str], *, data: bool = True) -> None:
        """Writes the trained sampler to a safetensors file with a JSON header (no pickle).

        The file holds the sampler's weights and kept draws, the layout of the sites, the settings, the
        diagnostics, the arguments of the model with their checksums, and the log density of each site at a few points, by
        which `load` recognises the model and its data.

        Args:
            path: Where to write; an existing file is replaced at the last moment.
            data: Whether to store the model's arguments: arrays, numbers and strings, nested in tuples, lists
                and dicts. Others (a data frame, a module) are left out in any case. Without them, `load` must
                be given them. Checksums and densities are stored in any case.

        Raises:
            NotFittedError: before `run`.
            OSError: the file cannot be written.

        Example:
            >>> import pathlib, tempfile
            >>> path = pathlib.Path(tempfile.mkdtemp()) / "fit.safetensors"
            >>> dft.save(path)
            >>> path.exists()
            True
        """
        storage.save(path, *self.parts.store.contents(data))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: Callable[..., Any] | None = None,
        *args: Any,
        potential_fn: Callable[[dict[str, Any]], Any] | None = None,
        initial_params: Mapping[str, Any] | None = None,
        transforms: Mapping[str, Any] | None = None,
        disable_progbar: bool = False,
        options: Mapping[str, Any] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> Self:
        """Reads a sampler that `save` wrote.

        Each load draws new draws of its own: processes that load one file do not repeat each other. (The kept draws,
        `get_samples()` without a number, are those of the file.)

        Args:
            path: The file.
            model: The model that it was trained for; or give `potential_fn`, `initial_params`, `transforms`.
            *args: The model's arguments at training, where the file does not hold them.
            potential_fn: As in the constructor.
            initial_params: As in the constructor.
            transforms: As in the constructor.
            disable_progbar: As in the constructor.
            options: Further options of the constructor, such as `{"device": "cuda"}`.
            seed: Of the new draws, where they are to be repeated; None takes fresh random numbers of the system. The seed
                of the training, in the settings, has no say in them.
            **kwargs: The model's keyword arguments at training, where the file does not hold them.

        Raises:
            StorageError: the file is damaged, of another version, or of another model or other data.
            ValueError: `seed` is not an integer of at least 0.

        Warns:
            FidelityWarning: arguments are not the same to the last bit, although the log density agrees within rounding.

        Example:
            >>> import pathlib, tempfile
            >>> path = pathlib.Path(tempfile.mkdtemp()) / "fit.safetensors"
            >>> dft.save(path)
            >>> again = DFT.load(path, model)
            >>> bool((again.get_samples()["mu"] == dft.get_samples()["mu"]).all())
            True
        """
        if seed is not None:
            check_count("seed", seed, 0)
        arrays, header = storage.load(path)
        settings, chains = restoring.read_settings(path, arrays, header)
        make: Callable[..., Self] = cls
        loaded = make(
            model, potential_fn=potential_fn, initial_params=initial_params, transforms=transforms,
            num_chains=chains, disable_progbar=disable_progbar, settings=settings, **(options or {}),
        )  # fmt: skip
        loaded.parts.store.adopt(path, (arrays, header), (args, kwargs), seed)
        return loaded

    def reseed(self, seed: int | None = None) -> None:
        """Starts the random numbers of the draws to come anew.

        Loads and copies (`copy`, `pickle`, a fork of the process) have fresh random numbers already; a seed makes the draws
        of one repeatable.

        Args:
            seed: An integer of at least 0; None takes fresh random numbers of the system.

        Raises:
            NotFittedError: before `run`.
            ValueError: `seed` is not an integer of at least 0.

        Example:
            >>> dft.reseed(1)
            >>> first = dft.get_samples(5)["mu"]
            >>> dft.reseed(1)
            >>> bool((first == dft.get_samples(5)["mu"]).all())
            True
        """
        if seed is not None:
            check_count("seed", seed, 0)
        self.parts.training.trained()
        self.parts.training.reseed(seed)

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or another process, gets the trained sampler as a file does, and no unfinished training."""
        training = self.parts.training
        if self.parts.options.process_group is not None:
            raise messages.not_copied()
        return {
            "backend": type(self.parts.backend),
            "options": replace(self.parts.options, callback=None),
            "arguments": training.arguments,
            "failure": training.failure,
            "seconds": (training.seconds, training.cpu_seconds),
            "contents": None
            if training.result is None
            else self.parts.store.contents(data=False, copied=True),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.parts = Parts.of(state["backend"](state["options"]))
        training = self.parts.training
        training.arguments, training.failure = state["arguments"], state["failure"]
        training.seconds, training.cpu_seconds = state["seconds"]
        if state["contents"] is not None:
            self.parts.store.adopt("this copy", state["contents"], training.arguments)
