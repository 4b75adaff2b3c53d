"""How good are weights at prediction, and how near the posterior of the yardstick?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Draws that a prediction on a curve averages over, at most.
CURVE_DRAWS = 200
# Draws that are multiplied with the test rows at once: bounds memory.
BLOCK = 100


def probability(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Predictive probability of label 1, (m,): the average over draws.

    Args:
        w: Weights (n, 55).
        x: Predictors (m, 55).
    """
    total = np.zeros(len(x))
    for start in range(0, len(w), BLOCK):
        logits = x @ np.asarray(w[start : start + BLOCK], np.float32).T
        total += (1 / (1 + np.exp(-np.clip(logits, -80, 80)))).sum(1, dtype=np.float64)
    return total / len(w)


def thinned(w: np.ndarray) -> np.ndarray:
    """At most `CURVE_DRAWS` of the draws, evenly spaced."""
    return w[:: max(1, -(-len(w) // CURVE_DRAWS))]


@dataclass(frozen=True)
class Score:
    """Predictions p (m,) held against labels y (m,)."""

    correct: np.ndarray
    log_likelihoods: np.ndarray

    @classmethod
    def of(cls, p: np.ndarray, y: np.ndarray) -> Score:
        """The score of predictive probabilities of label 1."""
        p = np.clip(np.asarray(p, np.float64), 1e-12, 1 - 1e-12)
        return cls((p > 0.5) == (y > 0.5), np.where(y > 0.5, np.log(p), np.log1p(-p)))

    @property
    def accuracy(self) -> float:
        """Share of the test rows whose label has the higher probability."""
        return float(self.correct.mean())

    @property
    def log_likelihood(self) -> float:
        """Mean log predictive probability of a test row, in nats."""
        return float(self.log_likelihoods.mean())

    @property
    def accuracy_error(self) -> float:
        """Standard error of `accuracy` over test rows."""
        return standard_error(self.correct)

    @property
    def log_likelihood_error(self) -> float:
        """Standard error of `log_likelihood` over test rows."""
        return standard_error(self.log_likelihoods)


def standard_error(values: np.ndarray) -> float:
    """Of a mean over rows."""
    return float(np.std(np.asarray(values, np.float64)) / np.sqrt(len(values)))


def paired_error(a: np.ndarray, b: np.ndarray) -> float:
    """Standard error of the difference of two means over the same rows."""
    return standard_error(np.asarray(a, np.float64) - np.asarray(b, np.float64))


def coordinates(alpha: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Draws (n, 56) in unconstrained coordinates: log alpha, then the weights."""
    return np.concatenate([np.log(np.asarray(alpha, float))[:, None], np.asarray(w, float)], 1)


def posterior_errors(draws: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Errors of means in reference sds, and sd ratios, over the coordinates.

    Args:
        draws: (n, d).
        reference: (r, d).
    """
    sd = reference.std(0)
    mean = np.abs(draws.mean(0) - reference.mean(0)) / sd
    ratio = draws.std(0) / sd
    return {
        "worst_mean": float(mean.max()),
        "average_mean": float(mean.mean()),
        "sd_low": float(ratio.min()),
        "sd_high": float(ratio.max()),
        "average_sd": float(np.abs(np.log(np.maximum(ratio, 1e-12))).mean()),
    }
