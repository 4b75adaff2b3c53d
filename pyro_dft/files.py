"""A trained sampler as a file, or as a copy in another process, and the checks on the way back."""

from __future__ import annotations

import contextlib
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np

from pyro_dft import storage
from pyro_dft.arguments import Arguments, pack, unpack
from pyro_dft.errors import ModelError, StorageError
from pyro_dft.hooks import Hooks
from pyro_dft.settings import Settings
from pyro_dft.verdict import Diagnostics

# Points at which a file keeps the potential, to recognise the model and its data.
CHECK_POINTS = 4


class Files(Hooks):
    """Save, load and copy."""

    @abstractmethod
    def diagnostics(self) -> Diagnostics:
        """Numbers that say how good the fit is."""

    def save(self, path: str | os.PathLike[str], *, data: bool = True) -> None:
        """Writes the trained sampler to a safetensors file with a JSON header (no pickle).

        The file holds the sampler's weights and kept draws, the layout of the sites, the settings, the
        diagnostics, the arguments of the model, and the potential at a few points, by which `load` recognises
        the model and its data.

        Args:
            path: Where to write; an existing file is replaced at the last moment.
            data: Whether to store the model's arguments: arrays, numbers and strings, nested in tuples, lists
                and dicts. Others (a data frame, a module) are left out in any case. Without them, `load` must
                be given them.

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
        **kwargs: Any,
    ) -> Self:
        """Reads a sampler that `save` wrote.

        Args:
            path: The file.
            model: The model that it was trained for; or give `potential_fn`, `initial_params`, `transforms`.
            *args: The model's arguments at training, where the file does not hold them.
            potential_fn: As in the constructor.
            initial_params: As in the constructor.
            transforms: As in the constructor.
            disable_progbar: As in the constructor.
            options: Further options of the constructor, such as `{"device": "cuda"}`.
            **kwargs: The model's keyword arguments at training, where the file does not hold them.

        Raises:
            StorageError: the file is damaged, of another version, or of another model or other data.

        Example:
            >>> import pathlib, tempfile
            >>> path = pathlib.Path(tempfile.mkdtemp()) / "fit.safetensors"
            >>> dft.save(path)
            >>> again = DFT.load(path, model)
            >>> bool((again.get_samples()["mu"] == dft.get_samples()["mu"]).all())
            True
        """
        arrays, header = storage.load(path)
        try:
            settings, chains = Settings.from_kwargs(**header["settings"]), int(header["num_chains"])
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{path}: its header cannot be used ({error})") from error
        make: Callable[..., Self] = cls
        loaded = make(
            model, potential_fn=potential_fn, initial_params=initial_params, transforms=transforms,
            num_chains=chains, disable_progbar=disable_progbar, settings=settings, **(options or {}),
        )  # fmt: skip
        loaded._adopt(path, arrays, header, (args, kwargs))
        return loaded

    def _contents(self, data: bool) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and header of a file."""
        report = self.diagnostics()
        arrays, header = self._state()
        with self._session():
            kept = self._original(self._kept).reshape(-1, self._layout().dim)
            points = kept[:: max(1, len(kept) // CHECK_POINTS)][:CHECK_POINTS]
            arrays |= {"check.points": points, "check.values": self._potential_at(points)}
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
        }

    def _adopt(
        self, path: Any, arrays: dict[str, np.ndarray], header: dict[str, Any], arguments: Arguments
    ) -> None:
        """Takes over what `_contents` returned, after checking that it belongs to this model and its data."""
        packed = {name: arrays.pop(name) for name in list(arrays) if name.startswith("arguments.")}
        given = bool(arguments[0] or arguments[1])
        try:
            layout, report = header["layout"], Diagnostics(header["diagnostics"])
            points, values = arrays.pop("check.points"), arrays.pop("check.values")
            if not given and header["arguments"] is not None:
                args, kwargs = unpack(header["arguments"], packed, self._from_numpy)
                arguments = (tuple(args), dict(kwargs))
            self._seconds, self._cpu_seconds = float(report["seconds"]), float(report["cpu_seconds"])
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{path}: its header cannot be used ({error!r})") from error
        arguments = self._snapshot(arguments)
        try:
            self._read(*arguments)
        except (ModelError, TypeError) as error:
            if given:
                raise
            hint = "" if header["arguments"] else "; the file does not hold the model's arguments: give them"
            raise StorageError(
                f"{path}: the model does not run on what the file was saved with{hint} ({error})"
            ) from error
        storage.check_layout(path, layout, self._layout())
        with self._session():
            if not self._close(self._potential_at(points), values):
                raise StorageError(
                    f"{path}: the potential differs from the saved one: another model, or other data"
                )
            self._trainer = self._restore(path, arrays, header)
        self._arguments, self._fit, self._report = arguments, self._trainer.fit, report
        self._kept, self._whole = self._keep(), True

    def _close(self, now: np.ndarray, before: np.ndarray) -> bool:
        """Whether two evaluations of a potential agree, up to the rounding of sums with larger terms."""
        tolerance = 1e3 * self._precision() * max(1.0, float(np.abs(before).max(initial=0.0)))
        return now.shape == before.shape and bool(np.allclose(now, before, rtol=0.0, atol=tolerance))

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or another process, gets the trained sampler as a file does, and no unfinished training."""
        live = self._live | {"_fit", "_kept", "_trainer", "_checkpoint", "callback"}
        state = {name: value for name, value in self.__dict__.items() if name not in live}
        if self._fit is not None:
            state["contents"] = self._contents(data=False)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        contents = state.pop("contents", None)
        self.__dict__.update(state)
        self._trainer = self._fit = self._kept = self._checkpoint = self.callback = None
        if contents is not None:
            arrays, header = contents
            self._adopt("this copy", arrays, header, self._arguments)
