"""The data of the experiment: split, scaled and with an intercept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from benchmarks import data

# Columns of Covertype that are numbers; the others are one-hot.
NUMERIC = slice(0, 10)
SPLIT_SEED, TRAIN_SHARE = 42, 0.8


@dataclass(frozen=True)
class Split:
    """Training and test rows, float32, the intercept in column 0.

    Attributes:
        x: Training predictors (n, 55).
        y: Training labels (n,), 0 or 1.
        x_test: Test predictors (m, 55).
        y_test: Test labels (m,).
        source: Where the rows come from, a sentence.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    source: str

    @property
    def rows(self) -> int:
        """Training rows n."""
        return len(self.y)

    def digest(self) -> str:
        """Changes with the data."""
        h = hashlib.sha256()
        for array in (self.x, self.y, self.x_test, self.y_test):
            h.update(array.tobytes())
        return h.hexdigest()[:12]


def load(sample: bool = False, rows: int | None = None, test_rows: int | None = None) -> Split:
    """Covertype in two parts, 80 % to train on.

    Args:
        sample: Take the 16 % sample where the full set could be had too.
        rows: Keep this many training rows only; which is chance, as the rows are shuffled.
        test_rows: The same for the test rows.
    """
    raw = data.covertype(sample)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(raw["y"]))
    count = int(TRAIN_SHARE * len(order))
    train, test = order[:count][:rows], order[count:][:test_rows]
    return split(raw["x"], raw["y"], train, test, str(raw["source"]))


def split(x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, source: str) -> Split:
    """Training and test rows by index; numbers are scaled to mean 0 and sd 1 over the training rows.

    Args:
        x: Raw predictors (n, 54).
        y: Labels (n,).
        train: Indices.
        test: Indices.
        source: Where the rows come from.
    """
    x, y = np.array(x, dtype=np.float64), np.asarray(y, np.float32)
    numbers = x[train][:, NUMERIC]
    x[:, NUMERIC] = (x[:, NUMERIC] - numbers.mean(0)) / numbers.std(0)
    x = data.with_intercept(x).astype(np.float32)
    return Split(x[train], y[train], x[test], y[test], source)
