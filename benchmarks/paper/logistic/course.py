"""What a method costs on the way: seconds, data passes and predictions, kept as one cell on the disk."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.methods import code_hash
from benchmarks.paper.logistic import judge
from benchmarks.paper.logistic.problem import Split


@dataclass
class Course:
    """The run of one method with one seed.

    Time stands still while predictions are made: they are ours, not the method's.

    Attributes:
        split: The data.
        wall: Seconds at each mark.
        cpu: The same of this process.
        passes: Data passes so far: evaluations of the gradient times rows, over training rows.
        probability: Predictive probabilities (m,) of the test rows at each mark.
        raw: (n, 56) draws before refinement, where there is any.
    """

    split: Split
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    passes: list[float] = field(default_factory=list)
    probability: list[np.ndarray] = field(default_factory=list)
    raw: np.ndarray | None = None
    _spent: tuple[float, float] = (0.0, 0.0)
    _since: tuple[float, float] | None = None

    def start(self) -> Course:
        """Starts the clock."""
        self._since = time.perf_counter(), time.process_time()
        return self

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock meanwhile."""
        assert self._since is not None, "not started"
        now = time.perf_counter(), time.process_time()
        self._spent = tuple(s + n - o for s, n, o in zip(self._spent, now, self._since, strict=True))  # type: ignore[assignment]
        try:
            yield
        finally:
            self.start()

    def keep(self, alpha: np.ndarray, w: np.ndarray) -> None:
        """Keeps draws that are not the final ones: raw draws before refinement."""
        self.raw = judge.coordinates(alpha, w).astype(np.float32)

    def mark(self, passes: float, w: Any, thin: bool = True) -> None:
        """Notes costs so far and what weights predict.

        Args:
            passes: Data passes so far.
            w: Weights (n, 55), or a function that makes them while the clock stands still.
            thin: Whether `judge.CURVE_DRAWS` of them are enough.
        """
        with self.paused():
            self.wall.append(self._spent[0])
            self.cpu.append(self._spent[1])
            self.passes.append(float(passes))
            draws = np.asarray(w() if callable(w) else w)
            draws = judge.thinned(draws) if thin else draws
            self.probability.append(judge.probability(draws, self.split.x_test).astype(np.float32))


@dataclass(frozen=True)
class Run:
    """A finished course.

    Attributes:
        method: Its key.
        seed: Its seed.
        wall: (k,) seconds.
        cpu: (k,) CPU seconds.
        passes: (k,) data passes, NaN where they are not known.
        probability: (k, m) predictive probabilities; the last row is from the final draws.
        draws: (n, 56) final draws: log alpha, then the weights.
        raw: (n, 56) the same before refinement; the final draws where there was none.
        notes: Anything else.
    """

    method: str
    seed: int
    wall: np.ndarray
    cpu: np.ndarray
    passes: np.ndarray
    probability: np.ndarray
    draws: np.ndarray
    raw: np.ndarray
    notes: dict[str, Any]


# A method: the data, a seed, settings -> alpha (n,), w (n, 55), notes; it starts and marks the course itself.
Method = Callable[[Course, int, Mapping[str, Any]], tuple[np.ndarray, np.ndarray, dict[str, Any]]]


def cell(folder: Path, method: str, seed: int, settings: Mapping[str, Any], split: Split) -> Path:
    """Where a run is kept, without suffix: a new place for every change of data or settings."""
    text = json.dumps(dict(settings), sort_keys=True) + split.digest()
    return folder / f"{method}-{seed}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def exists(folder: Path, method: str, seed: int, settings: Mapping[str, Any], split: Split) -> bool:
    """Whether a run is on the disk."""
    stem = cell(folder, method, seed, settings, split)
    return all(stem.with_suffix(suffix).exists() for suffix in (".npz", ".json"))


def run(
    folder: Path, name: str, method: Method, seed: int, settings: Mapping[str, Any], split: Split, fresh: bool = False
) -> Run:  # fmt: skip
    """A run, from the disk if it is there.

    Args:
        folder: Where cells are kept.
        name: Key of the method.
        method: What to run.
        seed: Its seed.
        settings: Its settings.
        split: The data.
        fresh: Run again in any case.
    """
    stem = cell(folder, name, seed, settings, split)
    npz, meta = stem.with_suffix(".npz"), stem.with_suffix(".json")
    if fresh or not exists(folder, name, seed, settings, split):
        folder.mkdir(parents=True, exist_ok=True)
        course = Course(split)
        alpha, w, notes = method(course, seed, settings)
        draws = judge.coordinates(alpha, w).astype(np.float32)
        raw = draws if course.raw is None else course.raw
        np.savez_compressed(
            npz, wall=course.wall, cpu=course.cpu, passes=course.passes, probability=course.probability, draws=draws,
            raw=raw,
        )  # fmt: skip
        kept = {"settings": dict(settings), "notes": notes, "code": code_hash()}
        meta.write_text(json.dumps(kept, default=str))
    with np.load(npz) as f:
        arrays = {key: f[key] for key in f.files}
    return Run(name, seed, **arrays, notes=json.loads(meta.read_text())["notes"])
