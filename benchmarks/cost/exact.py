"""Independent draws of the cost posteriors whose answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def flips(arguments: Sequence[Any], number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Biases (number, 3) of coins with uniform priors: beta distributions."""
    (y,) = arguments
    heads = y.sum(0, dtype=np.float64)
    return {"q": rng.beta(1.0 + heads, 1.0 + len(y) - heads, (number, len(heads)))}


def regression(arguments: Sequence[Any], number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Intercept, slope (N(0, 10^2)) and scale (half-normal, 5) of a linear regression, each (number,).

    Given the scale, the coefficients are Gaussian and integrate out in closed form; the scale itself is drawn by inverting
    its distribution on a fine grid of its logarithm.
    """
    x, y = (np.asarray(a, np.float64) for a in arguments)
    design = np.stack([np.ones_like(x), x], axis=1)
    gram, moment, square = design.T @ design, design.T @ y, y @ y
    best = np.linalg.solve(gram, moment)
    scale, n = np.sqrt((square - moment @ best) / len(y)), len(y)
    grid = np.log(scale) + np.linspace(-12.0, 12.0, 20_001) / np.sqrt(2.0 * n)
    log_density = np.array([_log_marginal(s, gram, moment, square, n) for s in np.exp(grid)]) + grid
    weight = np.exp(log_density - log_density.max())
    mass = np.concatenate([[0.0], np.cumsum((weight[1:] + weight[:-1]) / 2.0)])
    sigma = np.exp(np.interp(rng.uniform(0.0, mass[-1], number), mass, grid))
    # Coefficients given the scale, in the eigenvectors of the Gram matrix: precision value / sigma^2 + 1 / 100.
    values, vectors = np.linalg.eigh(gram)
    precision = values / sigma[:, None] ** 2 + 0.01
    centre = (vectors.T @ moment) / sigma[:, None] ** 2 / precision
    beta = (centre + rng.normal(size=(number, 2)) / np.sqrt(precision)) @ vectors.T
    return {"a": beta[:, 0], "b": beta[:, 1], "sigma": sigma}


def _log_marginal(sigma: float, gram: np.ndarray, moment: np.ndarray, square: float, n: int) -> float:
    """Log density of a scale and the data, the coefficients integrated out, up to a constant."""
    precision = gram / sigma**2 + 0.01 * np.eye(2)
    m = moment / sigma**2
    fit = m @ np.linalg.solve(precision, m) - square / sigma**2 - np.linalg.slogdet(precision)[1]
    return float(0.5 * fit - n * np.log(sigma) - 0.5 * (sigma / 5.0) ** 2)
