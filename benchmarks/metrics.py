"""How far draws are from a reference, in units of the reference's posterior sds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.references import QUANTILES, Reference

PROJECTIONS = 64
GRID = (np.arange(1000) + 0.5) / 1000


def unconstrained(dft: Any, draws: int | None = None) -> np.ndarray:
    """The draws that a fit kept, or so many new ones of each chain as it serves them, (n, d), sites in sorted order."""
    group = dft.to_inference_data(draws, log_likelihood=False)["unconstrained_posterior"]
    sites = [np.asarray(group[name].values, float) for name in sorted(group.data_vars)]
    return np.concatenate([s.reshape(s.shape[0] * s.shape[1], -1) for s in sites], 1)


@dataclass(frozen=True)
class Errors:
    """Errors over the d unconstrained coordinates; sds are the reference's.

    Attributes:
        worst_mean: Largest |mean - reference mean| / sd.
        average_mean: The average of the same.
        sd_low: Smallest sd ratio.
        sd_high: Largest sd ratio.
        worst_quantile: Largest |quantile - reference quantile| / sd over 5, 50 and 95 % and all coordinates.
        average_quantile: The average of the same.
        sliced_w2: Sliced Wasserstein-2 distance in coordinates whitened by the reference covariance.
        worst_coordinate: Name of the coordinate with the largest mean error.
        worst_sd_coordinate: Name of the coordinate whose log sd ratio is farthest from 0.
        non_finite: Draws that were left out because a coordinate was not finite.
    """

    worst_mean: float
    average_mean: float
    sd_low: float
    sd_high: float
    worst_quantile: float
    average_quantile: float
    sliced_w2: float
    worst_coordinate: str
    worst_sd_coordinate: str
    non_finite: int

    def to_dict(self) -> dict[str, float | str | int]:
        """A plain dict."""
        return asdict(self)


def projected_quantiles(x: np.ndarray, covariance: np.ndarray, seed: int = 0) -> np.ndarray:
    """Quantiles of draws along random directions, (1000, 64).

    Args:
        x: Draws (n, d).
        covariance: (d, d); the draws are whitened by its Cholesky factor.
        seed: Of the directions.
    """
    chol = np.linalg.cholesky(covariance)
    directions = np.random.default_rng(seed).normal(size=(x.shape[1], PROJECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    return np.quantile(x @ np.linalg.solve(chol.T, directions), GRID, axis=0)


def sliced_wasserstein2(x: np.ndarray, y: np.ndarray, covariance: np.ndarray, seed: int = 0) -> float:
    """Sliced W2: root mean square over random directions of the 1-D W2 distance, on a quantile grid.

    Args:
        x: Draws (n, d).
        y: Draws (m, d).
        covariance: (d, d); both samples are whitened by its Cholesky factor.
        seed: Of the 64 directions.
    """
    a, b = projected_quantiles(x, covariance, seed), projected_quantiles(y, covariance, seed)
    return float(np.sqrt(((a - b) ** 2).mean()))


def errors(draws: np.ndarray, reference: Reference) -> Errors:
    """Errors of draws (n, d), flat and unconstrained."""
    draws = np.asarray(draws, dtype=np.float64).reshape(-1, len(reference.mean))
    keep = np.isfinite(draws).all(1)
    x = draws[keep]
    mean = np.abs(x.mean(0) - reference.mean) / reference.sd
    ratio = x.std(0) / reference.sd
    quantile = np.abs(np.quantile(x, QUANTILES, axis=0) - reference.quantiles) / reference.sd
    return Errors(
        worst_mean=float(mean.max()),
        average_mean=float(mean.mean()),
        sd_low=float(ratio.min()),
        sd_high=float(ratio.max()),
        worst_quantile=float(quantile.max()),
        average_quantile=float(quantile.mean()),
        sliced_w2=sliced_wasserstein2(x, reference.draws, reference.covariance),
        worst_coordinate=reference.names[int(mean.argmax())],
        worst_sd_coordinate=reference.names[int(np.abs(np.log(ratio)).argmax())],
        non_finite=int((~keep).sum()),
    )
