"""A trained sampler as a file, or as a copy in another process, and the checks on the way back."""

from __future__ import annotations

import contextlib
import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np

from pyro_dft import messages
from pyro_dft.errors import FidelityWarning, StorageError, reading
from pyro_dft.interface import restoring, storage
from pyro_dft.interface.arguments import Arguments, pack, unpack
from pyro_dft.interface.backend import Hooks
from pyro_dft.interface.recognition import Portrait, check_points, unlike
from pyro_dft.judging.verdict import Diagnostics
from pyro_dft.layout import Layout
from pyro_dft.models import amounts
from pyro_dft.settings import check_count

# Of a seed's random numbers: what both frameworks' generators take.
SEED_BITS = 63


class Files(Hooks):
    """Save, load and copy."""

    @abstractmethod
    def diagnostics(self) -> Diagnostics:
        """Numbers that say how good the fit is."""

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
        storage.save(path, *self._contents(data))

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
        loaded._adopt(path, arrays, header, (args, kwargs), seed)
        return loaded

    def reseed(self, seed: int | None = None) -> None:
        """Starts the random numbers of the draws to come anew.

        Loads and copies (`copy`, `pickle`, a fork of the process) have fresh random numbers already; a seed makes the draws
        of one repeatable.

        Args:
            seed: An integer of at least 0; None takes fresh random numbers of the system.

        Raises:
            NotFittedError: before `run`.
            ValueError: `seed` is no such integer.

        Example:
            >>> dft.reseed(1)
            >>> first = dft.get_samples(5)["mu"]
            >>> dft.reseed(1)
            >>> bool((first == dft.get_samples(5)["mu"]).all())
            True
        """
        if seed is not None:
            check_count("seed", seed, 0)
        self._require_fit()
        self._set_seed(seed_of(seed))
        self._process = os.getpid()

    @abstractmethod
    def _require_fit(self) -> None:
        """Raises NotFittedError where there is no trained sampler; measures one that is between single steps."""

    @abstractmethod
    def _complete(self) -> None:
        """Trains networks that were put off."""

    def _contents(self, data: bool, copied: bool = False) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and header of a file; a copy keeps the arguments beside it, and needs no checksums of them."""
        self._require_fit()
        self._complete()
        report = self.diagnostics()
        arrays, header = self._state()
        with self._session():
            kept = self._original(self._kept).reshape(-1, self._layout().dim)
            own = self._portrait(check_points(kept, self._potential_at))
        arrays |= {"check.points": own.points, "check.values": own.values}
        packed: dict[str, np.ndarray] = {}
        arguments = None
        if data:
            with contextlib.suppress(TypeError):
                arguments = pack(self._arguments, packed, self._to_numpy, "arguments")
        return arrays | (packed if arguments else {}), header | {
            "framework": self._framework,
            "layout": self._layout().to_json(),
            "settings": self.settings.to_json(),
            "num_chains": self.num_chains,
            "diagnostics": report.to_json(),
            "arguments": arguments,
            "check": {
                "sites": own.to_json(),
                "arguments": None if copied else self._fingerprints(self._arguments),
            },
        }

    def _adopt(
        self,
        path: Any,
        arrays: dict[str, np.ndarray],
        header: dict[str, Any],
        arguments: Arguments,
        seed: int | None = None,
    ) -> None:
        """Takes over what `_contents` returned, after checking that it belongs to this model and its data."""
        packed = {name: arrays.pop(name) for name in list(arrays) if name.startswith("arguments.")}
        report = restoring.read_report(path, header)
        given = bool(arguments[0] or arguments[1])
        with reading(path):
            points, values = arrays.pop("check.points"), arrays.pop("check.values")
            layout, check, stored = header["layout"], dict(header.get("check") or {}), header["arguments"]
            self._amounts = amounts.read(Layout.from_json(header["sampler_layout"]))
            if not given and stored is not None:
                args, kwargs = unpack(stored, packed, self._from_numpy)
                arguments = (tuple(args), dict(kwargs))
        arguments = self._snapshot(arguments)
        self._read_stored(path, arguments, seed_of(seed), given, stored is not None)
        storage.check_layout(path, layout, self._layout())
        with reading(path):
            before = Portrait.read(points, values, check.get("sites"), self._layout().dim)
        with self._session():
            same = header.get("framework") == self._framework
            trouble = self._unlike(path, before, check.get("arguments"), arguments, same)
            if trouble:
                raise StorageError(messages.another_posterior(path, trouble))
            content = restoring.check_sampler(
                path, arrays, header, [own.layout for own in self._posteriors], self.num_chains, self.settings,
                self._own_shapes,
            )  # fmt: skip
            with reading(path, "its sampler cannot be used"):
                self._trainer = self._restore(content)
        self._seconds, self._cpu_seconds = float(report["seconds"]), float(report["cpu_seconds"])
        self._arguments, self._fit, self._report = arguments, self._trainer.fit, report
        self._kept, self._whole, self._process = self._keep(), True, os.getpid()

    def _read_stored(self, path: Any, arguments: Arguments, seed: int, given: bool, stored: bool) -> None:
        """`_read` for a file: where the arguments are not the caller's, whatever the model raises is the file's fault."""
        try:
            self._read(*arguments, seed)
        except Exception as error:
            if given:
                raise
            hint = "" if stored else "; the file does not hold the model's arguments: give them"
            raise StorageError(
                f"{path}: the model does not run on what the file was saved with{hint} ({error})"
            ) from error

    def _unlike(
        self, path: Any, before: Portrait, checksums: Any, arguments: Arguments, same_framework: bool
    ) -> list[str]:
        """In what the posterior, with these arguments, is not the one it was before; warns where that is mere rounding."""
        precision = max(self._precision(), before.precision)
        now = self._portrait(before.points, precision)
        with reading(path):
            own = self._fingerprints(arguments) if checksums else []
            trouble, rounded = unlike(before, now, (checksums, own), same_framework)
        if rounded:
            warnings.warn(messages.rounded_arguments(rounded), FidelityWarning, stacklevel=5)
        return trouble

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or another process, gets the trained sampler as a file does, and no unfinished training."""
        live = self._live | {"_fit", "_kept", "_trainer", "_checkpoint", "callback"}
        state = {name: value for name, value in self.__dict__.items() if name not in live}
        if self._fit is not None:
            state["contents"] = self._contents(data=False, copied=True)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        contents = state.pop("contents", None)
        self.__dict__.update(state)
        self._trainer = self._fit = self._kept = self._checkpoint = self.callback = None
        if contents is not None:
            arrays, header = contents
            self._adopt("this copy", arrays, header, self._arguments)


def seed_of(seed: int | None) -> int:
    """A seed of 63 bits, from one of any size, or from the system."""
    words = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    return int(words[0]) >> (64 - SEED_BITS)
