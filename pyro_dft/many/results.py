"""The posteriors of many data sets: verdicts, draws, tables."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_dft.errors import NotFittedError
from pyro_dft.export.arviz import to_inference_data
from pyro_dft.many.record import Record
from pyro_dft.many.store import Folder, Store

# Posteriors that a printed table shows of those that are not converged, and of all.
_SHOWN = 20


@dataclass(frozen=True)
class ManySummary:
    """A table with one line for each posterior; `print` it for its head.

    Attributes:
        rows: Of each posterior, what there is of it by column: "posterior", "status", "alarm" (the first one), "ess" (effective
            draws), "gradients", and "<element> mean" and "<element> std" of each element of each latent or deterministic site.

    Example:
        >>> table = fits.summary()
        >>> table.rows[0]["status"]
        'converged'
    """

    rows: list[dict[str, Any]]

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in order of their first appearance.

        Example:
            >>> fits.summary().columns[:3]
            ['posterior', 'status', 'alarm']
        """
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes the table to a file.

        Example:
            >>> import pathlib, tempfile
            >>> path = pathlib.Path(tempfile.mkdtemp()) / "table.csv"
            >>> fits.summary().to_csv(path)
            >>> path.read_text().split(",")[0]
            'posterior'
        """
        import csv

        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def __str__(self) -> str:
        names = self.columns[:12]
        lines = [names, *([_short(row.get(name)) for name in names] for row in self.rows[:_SHOWN])]
        widths = [max(len(line[k]) for line in lines) for k in range(len(names))]
        text = [
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
        ]
        more = len(self.rows) - _SHOWN
        return "\n".join([*text, *([f"... and {more} more"] if more > 0 else [])])


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class ManyFits:
    """The posteriors of many data sets, from `fit_many` or `load_many`.

    Each has a verdict of its own. Posteriors are counted from 0, in the order of the data. Draws that were written to a folder
    are read from there when they are asked for, a slice at a time.

    Example:
        >>> len(fits), fits.counts
        (3, {'converged': 3, 'suspect': 0, 'failed': 0})
    """

    def __init__(self, store: Store, framework: str):
        self._store, self.framework = store, framework
        self._place: dict[int, tuple[int, int]] = {}
        status: list[str] = []
        self._warnings: list[list[str]] = []
        self.indices: list[int] = []
        for number in store.numbers():
            for k, own in enumerate(store.header(number)):
                self._place[own["row"]] = number, k
                self.indices.append(own["row"])
                status.append(own["status"])
                self._warnings.append(own["warnings"])
        self.status = np.array(status, dtype="<U9")

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {status}" for status, count in self.counts.items())
        return f"<{len(self)} posteriors: {counts}>"

    @property
    def counts(self) -> dict[str, int]:
        """How many posteriors have each status.

        Example:
            >>> fits.counts["failed"]
            0
        """
        found = Counter(self.status.tolist())
        return {status: found[status] for status in ("converged", "suspect", "failed")}

    def failed(self, status: tuple[str, ...] = ("failed", "suspect")) -> dict[int, list[str]]:
        """Posteriors that are not converged, with what is wrong with each, in words.

        Args:
            status: Which ones.

        Example:
            >>> fits.failed()
            {}
        """
        return {
            row: warnings
            for row, own, warnings in zip(self.indices, self.status, self._warnings, strict=True)
            if own in status
        }

    def missing(self) -> list[int]:
        """Slices that are not there, though a later one is, or though there are more data sets.

        Example:
            >>> fits.missing()
            []
        """
        numbers, slices = self._store.numbers(), self._store.slices
        count = max(numbers, default=-1) + 1 if slices is None else slices
        return sorted(set(range(count)) - set(numbers))

    def _record(self, i: int) -> Record:
        if i not in self._place:
            raise IndexError(f"there is no posterior {i}: {len(self)} are here")
        number, k = self._place[i]
        return self._store.read(number)[k]

    def _drawn(self, i: int) -> Record:
        record = self._record(i)
        if not record.samples:
            raise NotFittedError(f"posterior {i} could not be fitted: {'; '.join(record.warnings)}")
        return record

    def records(self) -> Iterator[Record]:
        """All records, one slice in memory at a time.

        Example:
            >>> [record.status for record in fits.records()]
            ['converged', 'converged', 'converged']
        """
        for i in self.indices:
            yield self._record(i)

    def diagnostics(self, i: int) -> dict[str, Any]:
        """What `DFT.diagnostics` says of a posterior, in plain numbers; with the reason alone where it could not be fitted.

        Args:
            i: Which one.

        Example:
            >>> fits.diagnostics(0)["status"]
            'converged'
        """
        record = self._record(i)
        return record.report or {
            "status": record.status, "warnings": record.warnings, "alarms": record.alarms
        }  # fmt: skip

    def get_samples(self, i: int, group_by_chain: bool = False) -> dict[str, np.ndarray]:
        """Draws of a posterior, by site, as NumPy arrays.

        Args:
            i: Which one.
            group_by_chain: Whether to keep a leading chain dimension.

        Raises:
            NotFittedError: it could not be fitted; the message says why.

        Example:
            >>> fits.get_samples(0)["mu"].shape
            (1000,)
        """
        samples = self._drawn(i).samples
        if group_by_chain:
            return {name: value.copy() for name, value in samples.items()}
        return {
            name: value.reshape((value.shape[0] * value.shape[1], *value.shape[2:])).copy()
            for name, value in samples.items()
        }

    def to_inference_data(self, i: int) -> Any:
        """A posterior as ArviZ data, with the groups posterior and sample_stats.

        Args:
            i: Which one.

        Raises:
            NotFittedError: it could not be fitted; the message says why.
            ImportError: neither ArviZ nor arviz-base is installed.

        Example:
            >>> dict(fits.to_inference_data(0).posterior["mu"].sizes)
            {'chain': 1, 'draw': 1000}
        """
        record = self._drawn(i)
        attrs = {"backend": self.framework, "status": record.status, "warnings": record.warnings, "index": i}
        return to_inference_data(record.samples, sample_stats=record.stats, dims=record.dims, attrs=attrs)

    def summary(self) -> ManySummary:
        """A table with one line for each posterior: verdict, effective draws, means and standard deviations.

        Example:
            >>> fits.summary().columns
            ['posterior', 'status', 'alarm', 'ess', 'gradients', 'mu mean', 'mu std']
        """
        return ManySummary([_line(record) for record in self.records()])

    def dataset(self) -> Any:
        """All draws in one `xarray.Dataset`, with the dimension "posterior" first and the verdicts as a coordinate.

        Where sites of posteriors have other shapes, or a posterior could not be fitted, NaN fills up. It is all in memory at
        once; ``.to_zarr(path)`` and ``.to_netcdf(path)`` write it.

        Raises:
            ImportError: xarray is not installed.

        Example:
            >>> dict(fits.dataset().sizes)
            {'posterior': 3, 'chain': 1, 'draw': 1000}
        """
        import xarray

        shapes: dict[str, list[tuple[int, ...]]] = {}
        dtypes: dict[str, Any] = {}
        names: dict[str, list[str]] = {}
        for record in self.records():
            for site, value in record.samples.items():
                shapes.setdefault(site, []).append(value.shape)
                dtypes[site] = value.dtype if value.dtype.kind == "f" else np.dtype(float)
                names.setdefault(
                    site, record.dims.get(site, [f"{site}_dim_{k}" for k in range(value.ndim - 2)])
                )
        whole = {
            site: np.full((len(self), *np.max(found, 0)), np.nan, dtypes[site])
            for site, found in shapes.items()
        }
        for k, record in enumerate(self.records()):
            for site, value in record.samples.items():
                whole[site][k][tuple(slice(size) for size in value.shape)] = value
        labels = _labels(names, whole)
        return xarray.Dataset(
            {
                site.replace("/", "."): (("posterior", "chain", "draw", *labels[site]), value)
                for site, value in whole.items()
            },
            coords={"posterior": self.indices, "status": ("posterior", self.status)},
            attrs={"inference_library": "pyro_dft", "backend": self.framework},
        )


def _labels(names: dict[str, list[str]], whole: dict[str, np.ndarray]) -> dict[str, list[str]]:
    """Names of the dimensions of each site; one that has another size in another site is that of no plate any more."""
    sizes: dict[str, set[int]] = {"posterior": {-1, 0}, "chain": {-1, 0}, "draw": {-1, 0}}
    for site, own in names.items():
        for name, size in zip(own, whole[site].shape[3:], strict=True):
            sizes.setdefault(name, set()).add(size)
    return {
        site: [name if len(sizes[name]) == 1 else f"{site}_dim_{k}" for k, name in enumerate(own)]
        for site, own in names.items()
    }


def _line(record: Record) -> dict[str, Any]:
    ensemble = record.report.get("ensemble") or {}
    line: dict[str, Any] = {
        "posterior": record.row, "status": record.status, "alarm": record.alarms[0] if record.alarms else "",
        "ess": ensemble.get("ess"), "gradients": record.report.get("gradient_evaluations"),
    }  # fmt: skip
    for site, value in record.samples.items():
        mean, sd = value.mean((0, 1), dtype=float), value.std((0, 1), dtype=float)
        for index in np.ndindex(mean.shape):
            name = f"{site}[{','.join(map(str, index))}]" if index else site
            line |= {f"{name} mean": float(mean[index]), f"{name} std": float(sd[index])}
    return line


def load_many(folder: str | os.PathLike[str]) -> ManyFits:
    """The posteriors that `fit_many` wrote to a folder, whether all of them or some.

    Args:
        folder: The folder.

    Raises:
        StorageError: there is no such folder, or a file in it is damaged.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> _ = fit_many(model, [y, y + 1], folder=folder, disable_progbar=True)
        >>> load_many(folder).counts["converged"]
        2
    """
    store = Folder(folder)
    return ManyFits(store, store.framework)
