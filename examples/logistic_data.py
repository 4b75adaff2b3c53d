"""What both frameworks' halves of `logistic_regression.py` share: the data and a clock. Loads neither framework."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split


@dataclass
class Data:
    """Measurements standardised with the training mean and sd; labels 1.0 (benign) or 0.0 (malignant)."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    names: list[str]


def load_data(seed: int) -> Data:
    """Split the breast cancer data, four fifths for training, and standardise them."""
    raw = load_breast_cancer()
    x_train, x_test, y_train, y_test = train_test_split(
        raw.data, raw.target.astype(float), test_size=0.2, random_state=seed, stratify=raw.target
    )
    mean, sd = x_train.mean(0), x_train.std(0)
    return Data((x_train - mean) / sd, y_train, (x_test - mean) / sd, y_test, list(raw.feature_names))


@dataclass
class Seconds:
    """Wall and CPU seconds; on a busy machine the second is the fairer one."""

    wall: float = 0.0
    cpu: float = 0.0

    @staticmethod
    def now() -> Seconds:
        """Read both clocks."""
        return Seconds(time.perf_counter(), time.process_time())

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall - other.wall, self.cpu - other.cpu)

    def __mul__(self, factor: float) -> Seconds:
        return Seconds(self.wall * factor, self.cpu * factor)
