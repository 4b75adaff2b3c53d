"""Replicates of a cell (model, fit, backend): made one by one, each kept in a file, so that a killed command resumes."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cache, methods
from benchmarks.sbc.models import MODELS
from benchmarks.sbc.uniformity import DRAWS, rank

FOLDER = cache.FOLDER / "sbc"
# Of what this process loads, whatever happens to the files while it runs.
CODE = methods.code_hash()
# Settings beside the default ones. The Gaussian without a network is the control: its raw draws must fail.
FITS: dict[str, dict[str, Any]] = {**methods.FITS, "simuk": {}}
# In place of a training, where only the machinery is looked at.
QUICK = {
    "num_steps": 20, "width": 8, "depth": 1, "batch_size": 16, "precondition_steps": 40, "restarts": 2,
    "num_draws": 200, "refine_steps": 2,
}  # fmt: skip

Record = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One model under one fit in one framework; raw and refined draws share the fit.

    simuk cannot take two kinds of draws of one fit, nor is it for Pyro: it has a cell of its own.
    """

    model: str
    fit: str
    backend: str

    @property
    def name(self) -> str:
        """Key in the results."""
        return f"{self.model}/{self.fit}/{self.backend}"


CELLS = tuple(
    Cell(model, fit, backend)
    for backend in ("numpyro", "pyro")
    for model, fit in (
        ("schools_noncentred", "dft"), ("schools_centred", "dft"), ("logistic", "dft"), ("logistic", "simuk"),
        ("schools_noncentred", "gaussian"),
    )
    if (fit, backend) != ("simuk", "pyro")
)  # fmt: skip


def key(cell: Cell, seed: int, extra: Mapping[str, Any]) -> str:
    """A new one for every change of the model, its data, the settings or the seed."""
    settings = json.dumps({**FITS[cell.fit], **extra, "seed": seed, "draws": DRAWS}, sort_keys=True)
    text = settings + cache.model_hash(MODELS[cell.model], cell.backend)
    return f"{cell.fit}-{cell.backend}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def make(cell: Cell, seed: int, replicate: int, extra: Mapping[str, Any]) -> Record:
    """Simulates, fits and ranks once. A fit that raises becomes a record without ranks."""
    model, settings = MODELS[cell.model], {**FITS[cell.fit], **extra}
    side = importlib.import_module(f"benchmarks.sbc.in_{cell.backend}")
    record: Record = {"replicate": replicate}
    start = time.process_time()
    try:
        if cell.fit == "simuk":
            report, ranks = side.simuk(model, settings, seed, replicate)
            found = {"refined": ranks}
        else:
            truth, y = side.simulate(model, seed, replicate)
            start = time.process_time()
            dft, draws = side.fit(model, y, settings, seed, replicate)
            report, true = dft.diagnostics(), model.quantities(truth, y)[0]
            found = {kind: rank(model.quantities(d, y), true) for kind, d in draws.items()}
    except Exception as error:  # one failed fit must not end the command: it is counted
        return record | {"error": f"{type(error).__name__}: {error}"[:300]}
    return record | {
        "seconds": time.process_time() - start,
        "status": report["status"],
        "alarms": list(report["alarms"]),
        "objective": report["objective"],
        "refine_steps": report["refine_steps"],
        "ranks": {kind: np.asarray(values).tolist() for kind, values in found.items()},
    }


def run(
    cell: Cell,
    count: int,
    seed: int = 0,
    extra: Mapping[str, Any] | None = None,
    fresh: bool = False,
    folder: Path = FOLDER,
) -> Iterator[Record]:
    """The records of a cell, made where there is no file of them yet."""
    place = folder / cell.model / key(cell, seed, extra or {})
    place.mkdir(parents=True, exist_ok=True)
    for replicate in range(count):
        path = place / f"{replicate:05d}.json"
        if fresh or not path.exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what a fit warns of is in its record
                record = {"code": CODE, **make(cell, seed, replicate, extra or {})}
            # In one step: a killed command leaves no half of a file behind.
            path.with_suffix(".part").write_text(json.dumps(record))
            os.replace(path.with_suffix(".part"), path)
        yield json.loads(path.read_text())
