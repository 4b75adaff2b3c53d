"""A trained sampler as a file, or as a copy in another process, and the checks on the way back."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from pyro_dft import messages
from pyro_dft.errors import FidelityWarning, StorageError, reading, warn
from pyro_dft.interface import restoring, storage
from pyro_dft.interface.arguments import Arguments, pack, unpack
from pyro_dft.interface.recognition import Portrait, check_points, unlike
from pyro_dft.interface.training import Training, seed_of
from pyro_dft.layout import Layout
from pyro_dft.models import amounts


class Store:
    """Writes a trained sampler to arrays and a header, for a file or a copy, and reads it back.

    Args:
        training: Whose result it is.
    """

    def __init__(self, training: Training):
        self._training, self._backend = training, training.backend

    def contents(self, data: bool, copied: bool = False) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and header of a file.

        Args:
            data: Whether to store the model's arguments.
            copied: Whether it is for a copy, which keeps the arguments beside it and needs no checksums of them.

        Raises:
            NotFittedError: there is no trained sampler.
        """
        training, backend = self._training, self._backend
        fit = training.complete().fit
        report = training.report()
        arrays, header = backend.state(fit)
        with backend.session():
            kept = backend.original(fit.problem, training.trained().kept).reshape(-1, backend.layout.dim)
            own = backend.portrait(check_points(kept, backend.potential_at))
        arrays |= {"check.points": own.points, "check.values": own.values}
        packed: dict[str, np.ndarray] = {}
        arguments = None
        if data:
            with contextlib.suppress(TypeError):
                arguments = pack(training.arguments, packed, backend.arrays.to_numpy, "arguments")
        sums = None if copied else backend.fingerprints(training.arguments)
        return arrays | (packed if arguments else {}), header | {
            "framework": backend.framework,
            "layout": backend.layout.to_json(),
            "settings": backend.options.settings.to_json(),
            "num_chains": backend.options.num_chains,
            "diagnostics": report.to_json(),
            "arguments": arguments,
            "check": {"sites": own.to_json(), "arguments": sums},
        }

    def adopt(
        self,
        path: Any,
        contents: tuple[dict[str, np.ndarray], dict[str, Any]],
        arguments: Arguments,
        seed: int | None = None,
    ) -> None:
        """Takes over what `contents` returned, after checking that it belongs to this model and its data.

        Args:
            path: Where it comes from, for messages.
            contents: Arrays and header.
            arguments: Arguments of the model that the caller gives; empty ones where the file holds them.
            seed: Of the draws to come; None takes fresh random numbers of the system.

        Raises:
            StorageError: it is damaged, or of another model or other data.
        """
        (arrays, header), backend = contents, self._backend
        packed = {name: arrays.pop(name) for name in list(arrays) if name.startswith("arguments.")}
        report = restoring.read_report(path, header)
        given = bool(arguments[0] or arguments[1])
        with reading(path):
            points, values = arrays.pop("check.points"), arrays.pop("check.values")
            layout, check, stored = header["layout"], dict(header.get("check") or {}), header["arguments"]
            backend.amounts = amounts.read(Layout.from_json(header["sampler_layout"]))
            if not given and stored is not None:
                args, kwargs = unpack(stored, packed, backend.from_numpy)
                arguments = (tuple(args), dict(kwargs))
        arguments = backend.snapshot(arguments)
        self._read(path, arguments, seed_of(seed), given, stored is not None)
        storage.check_layout(path, layout, backend.layout)
        with reading(path):
            before = Portrait.read(points, values, check.get("sites"), backend.layout.dim)
        with backend.session():
            same = header.get("framework") == backend.framework
            trouble = self._unlike(path, before, check.get("arguments"), arguments, same)
            if trouble:
                raise StorageError(messages.another_posterior(path, trouble))
            content = restoring.check_sampler(
                path, arrays, header, [own.layout for own in backend.posteriors], backend.options.num_chains,
                backend.options.settings, backend.own_shapes,
            )  # fmt: skip
            with reading(path, "its sampler cannot be used"):
                trainer = backend.restored(content)
        self._training.adopt(trainer, arguments, report)

    def _read(self, path: Any, arguments: Arguments, seed: int, given: bool, stored: bool) -> None:
        """`Backend.read` for a file: where the arguments come from it, errors of the model become a `StorageError`."""
        try:
            self._backend.read(*arguments, seed)
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
        """How the posterior, with these arguments, differs from the saved one, in words; warns where that is rounding only."""
        precision = max(self._backend.precision, before.precision)
        now = self._backend.portrait(before.points, precision)
        with reading(path):
            own = self._backend.fingerprints(arguments) if checksums else []
            trouble, rounded = unlike(before, now, (checksums, own), same_framework)
        if rounded:
            warn(messages.rounded_arguments(rounded), FidelityWarning)
        return trouble
