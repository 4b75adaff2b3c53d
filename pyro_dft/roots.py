"""Square roots of covariances, in NumPy: matrices (..., d, d), or standard deviations alone (..., d).

In many dimensions a matrix is not worth its memory. All functions take either, and tell them apart by the number of axes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


def coloured(root: Array, z: Array) -> Array:
    """The root times each of the vectors (..., n, d)."""
    return z @ root.swapaxes(-1, -2) if root.ndim == z.ndim else z * root[..., None, :]


def projected(root: Array, s: Array) -> Array:
    """The root's transpose times each of the vectors (..., n, d), such as scores."""
    return s @ root if root.ndim == s.ndim else s * root[..., None, :]


def whitened(root: Array, x: Array) -> Array:
    """The root's inverse times each of the vectors (..., n, d).

    Raises:
        numpy.linalg.LinAlgError: a matrix is singular.
    """
    if root.ndim < x.ndim:
        return x / root[..., None, :]
    return np.linalg.solve(root, x.swapaxes(-1, -2)).swapaxes(-1, -2)


def log_det(root: Array, mean: Array) -> Array:
    """Log absolute determinants (...), for means (..., d); -inf where singular."""
    if root.ndim > mean.ndim:
        return np.linalg.slogdet(root)[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(np.abs(root)).sum(-1)


def variances(root: Array, mean: Array) -> Array:
    """Variances (..., d), for means (..., d)."""
    squares = np.square(root)
    return squares.sum(-1) if root.ndim > mean.ndim else squares


def matrices(root: Array) -> Array:
    """Matrices (K, d, d) from those, or from standard deviations (K, d)."""
    return root.copy() if root.ndim == 3 else root[..., None] * np.eye(root.shape[1])


def root_of(covariance: Array) -> Array:
    """A root (d, d) of a covariance (d, d), or (d,) of variances (d,).

    Raises:
        numpy.linalg.LinAlgError: it is not positive definite.
    """
    if covariance.ndim == 2:
        return np.linalg.cholesky(covariance)
    if not (covariance > 0).all():
        raise np.linalg.LinAlgError("a variance is not positive")
    return np.sqrt(covariance)


def covariance(root: Array, mean: Array) -> Array:
    """The covariance (d, d) of one root (d, d), or the variances (d,) of standard deviations; for its mean (d,)."""
    return root @ root.T if root.ndim > mean.ndim else np.square(root)


def adapted(states: Array, root: Array, count: float) -> Array:
    """A root for states (n, d), from one that was near: their covariance, shrunk to what the root has.

    Args:
        states: (n, d).
        root: (d, d) or (d,).
        count: As many independent states as they are worth; the root counts for d + 2 of them, or for one coordinate by
            coordinate.

    Returns:
        The same kind of root; the given one where the covariance cannot be factored.
    """
    dim, centred = states.shape[1], states - states.mean(0)
    if root.ndim == 1:
        return root * np.sqrt((count * (centred / root).var(0) + 1) / (count + 1))
    white = np.linalg.solve(root, centred.T)
    shrunk = (count * np.cov(white) + (dim + 2) * np.eye(dim)) / (count + dim + 2)
    try:
        return root @ np.linalg.cholesky(np.atleast_2d(shrunk))
    except np.linalg.LinAlgError:
        return root
