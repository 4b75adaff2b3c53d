"""The Covertype data for the notebooks: is a plot of forest lodgepole pine? Loads neither framework."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Covertype:
    """Features with a column of ones in front, the ten numeric ones standardised on the training rows; labels 0.0 or 1.0."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def _raw() -> tuple[np.ndarray, np.ndarray]:
    """Features (n, 54) and classes 1 to 7, from a local file, or else all 581,012 rows as scikit-learn fetches them."""
    folder = Path(os.environ.get("PYRO_DFT_DATA", ROOT.parent / "shared" / "data"))
    if (folder / "covertype.npz").exists():
        with np.load(folder / "covertype.npz") as data:
            return data["X"], data["y7"]
    from sklearn.datasets import fetch_covtype

    return fetch_covtype(return_X_y=True)


def load(train: int, test: int, seed: int = 0) -> Covertype:
    """Random rows, split.

    Args:
        train: Training rows.
        test: Test rows.
        seed: Of the choice.

    Returns:
        float32 arrays of shapes (train, 55), (train,), (test, 55), (test,).

    Raises:
        ValueError: the data have fewer rows.
    """
    features, classes = _raw()
    if len(features) < train + test:
        raise ValueError(
            f"{train} training and {test} test rows asked for, but the data have {len(features)}"
        )
    rows = np.random.default_rng(seed).permutation(len(features))[: train + test]
    x = features[rows].astype(np.float64)
    y = (classes[rows] == 2).astype(np.float32)
    mean, sd = x[:train, :10].mean(0), x[:train, :10].std(0)
    x[:, :10] = (x[:, :10] - mean) / sd
    x = np.concatenate([np.ones((len(x), 1)), x], axis=1).astype(np.float32)
    return Covertype(x[:train], y[:train], x[train:], y[train:])
