"""Square roots of covariances, in NumPy, of three kinds.

Matrices (..., d, d); in many dimensions, where they are not worth their memory, standard deviations alone (..., d); or
these and k directions in which the covariance, in units of them, is not one: (..., d, 1 + k). A direction is a column
as long as the standard deviation along it; the columns are orthogonal. Functions tell the kinds apart by their shapes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

# Directions of a root: they cost little beside the model, and one number of them means one compiled program.
MOST_DIRECTIONS = 64
# Variances or precisions along a direction in units of the standard deviations: smaller ones are left at one.
NOTABLE = 2.0
# Narrower ones are taken as this wide: in single precision the square of a stretch is lost beside one.
NARROWEST = 0.003
# States that directions are found from, at most.
MOST_STATES = 4096
# Up to so many states or coordinates leading directions come from all eigenvectors, beyond by iterations with some more vectors
# than directions: those that are notable stand out, and the others do not matter.
EXACT, MORE_VECTORS, ITERATIONS = 512, 16, 6


def has_directions(root: Any, vectors: int) -> bool:
    """Whether a root has standard deviations and directions; `vectors` (..., n, d) that it is for have so many axes."""
    return root.ndim == vectors and root.shape[-1] != root.shape[-2]


def stretched(root: Any, z: Any, power: int = 1) -> Any:
    """Vectors (..., n, d) stretched along the directions of a root (..., d, 1 + k), or what undoes it (`power` is -1).

    With unit directions v and standard deviations r along them the map is I + sum (r - 1) v v^T. For arrays of any library.
    """
    columns = root[..., 1:]
    squares = (columns * columns).sum(-2)
    along = (z @ columns) * ((squares ** (power / 2) - 1) / squares)[..., None, :]
    return z + along @ columns.swapaxes(-1, -2)


def coloured(root: Any, z: Any) -> Any:
    """The root times each of the vectors (..., n, d). For arrays of any library."""
    if has_directions(root, z.ndim):
        return stretched(root, z) * root[..., None, :, 0]
    return z @ root.swapaxes(-1, -2) if root.ndim == z.ndim else z * root[..., None, :]


def projected(root: Any, s: Any) -> Any:
    """The root's transpose times each of the vectors (..., n, d), such as scores. For arrays of any library."""
    if has_directions(root, s.ndim):
        return stretched(root, s * root[..., None, :, 0])
    return s @ root if root.ndim == s.ndim else s * root[..., None, :]


def spread(root: Any, s: Any) -> Any:
    """The root times its transpose, the covariance, times each of the vectors (..., n, d). For arrays of any library.

    Matrices are taken one after the other: their product would lose digits in single precision. With directions it is one map.
    """
    if has_directions(root, s.ndim):
        sd = root[..., None, :, 0]
        return stretched(root, s * sd, 2) * sd
    return coloured(root, projected(root, s))


def whitened(root: Array, x: Array) -> Array:
    """The root's inverse times each of the vectors (..., n, d).

    Raises:
        numpy.linalg.LinAlgError: a matrix is singular.
    """
    if has_directions(root, x.ndim):
        return stretched(root, x / root[..., None, :, 0], -1)
    if root.ndim < x.ndim:
        return x / root[..., None, :]
    return np.linalg.solve(root, x.swapaxes(-1, -2)).swapaxes(-1, -2)


def log_det(root: Array, mean: Array) -> Array:
    """Log absolute determinants (...), for means (..., d); -inf where singular."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if has_directions(root, mean.ndim + 1):
            along = 0.5 * np.log(np.square(root[..., 1:]).sum(-2)).sum(-1)
            return np.log(np.abs(root[..., 0])).sum(-1) + along
        if root.ndim > mean.ndim:
            return np.linalg.slogdet(root)[1]
        return np.log(np.abs(root)).sum(-1)


def variances(root: Array, mean: Array) -> Array:
    """Variances (..., d) of matrices or of standard deviations alone, for means (..., d)."""
    squares = np.square(root)
    return squares.sum(-1) if root.ndim > mean.ndim else squares


def without_directions(root: Array) -> Array:
    """Standard deviations (C, d) of roots (C, d) or (C, d, 1 + k); matrices (C, d, d) as they are."""
    return root[..., 0] if has_directions(root, 3) else root


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
        The same kind of root; the given one where it is singular (an improper posterior: one sd so large that another is lost in
        rounding), or the covariance cannot be factored.
    """
    if root.ndim == 1:
        variance = states.var(0, dtype=np.float64) / np.square(root, dtype=np.float64)
        return root * np.sqrt((count * variance + 1) / (count + 1))
    dim, centred = states.shape[1], states - states.mean(0)
    try:
        white = np.linalg.solve(root, centred.T)
        shrunk = (count * np.cov(white) + (dim + 2) * np.eye(dim)) / (count + dim + 2)
        return root @ np.linalg.cholesky(np.atleast_2d(shrunk))
    except np.linalg.LinAlgError:
        return root


def directions(states: Array, scores: Array, sd: Array) -> Array:
    """The directions in which a density is much narrower or wider than its standard deviations say, (d, k) columns.

    Narrow ones are the leading eigenvectors of the scores' covariance (of a Gaussian its precision), wide ones those of the
    states', what is left of them. How many are notable, and how much, is measured on particles that they were not found from,
    so that chance finds none.

    Args:
        states: (P, T, d), of P particles.
        scores: The same of their scores.
        sd: Standard deviations (d,).

    Returns:
        (d, 0) where none is notable. Else k is `MOST_DIRECTIONS`, or less where there are few states: narrow, wide, then
        others of length one, along which nothing is stretched.
    """
    thin = max(1, states.shape[0] * states.shape[1] // MOST_STATES)
    values = [_standard(v[:, ::thin], sd, power) for v, power in ((scores, 1), (states, -1))]
    most = min(MOST_DIRECTIONS, values[0][::2, :, 0].size // 4, len(sd) // 4)
    unit, stretch = np.empty((len(sd), 0), np.float32), np.empty(0)
    for value, power in zip(values, (-0.5, 0.5), strict=True):  # precisions, then variances
        first, second, whole = (
            _without(unit, some.reshape(-1, len(sd))) for some in (value[::2], value[1::2], value)
        )
        # In sample the leading ones of d >> n coordinates vary by far more than they do.
        variance = (second @ _leading(first, most)).var(0)
        notable = min(int(np.cumprod(variance > NOTABLE).sum()), most - unit.shape[1])
        found = _leading(whole, notable)
        stretch = np.append(stretch, np.maximum(variance[:notable] ** power, NARROWEST))
        unit = np.concatenate([unit, found], 1)
    if not len(stretch):
        return unit
    rest = np.random.default_rng(0).normal(size=(len(sd), most - len(stretch)))
    filled = np.linalg.qr(_without(unit, rest.T).T)[0]
    return np.concatenate([unit * stretch, filled], 1)


def unstretched(columns: Array, k: int) -> Array:
    """K columns (d, k) of length one that are orthogonal to the given ones (d, j), behind these; j at most k."""
    d, j = columns.shape
    if j == k:
        return columns
    units = np.eye(d, k - j)
    along = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-30)
    return np.concatenate([columns, np.linalg.qr(units - along @ (along.T @ units))[0]], 1)


def _standard(values: Array, sd: Array, power: int) -> Array:
    """Centred values (P, T, d) in units of the standard deviations, or of their inverses."""
    found = np.subtract(values, values.mean((0, 1)), dtype=np.float32)
    found *= np.asarray(sd**power, np.float32)
    return found


def _without(vectors: Array, values: Array) -> Array:
    """Values (n, d) less their parts along orthonormal vectors (d, k)."""
    return values - (values @ vectors) @ vectors.T if vectors.shape[1] else values


def _leading(values: Array, k: int) -> Array:
    """The k leading right singular vectors (d, k) of values (n, d).

    By inner products of the shorter sides where these are few, else by subspace iteration (Halko, Martinsson and Tropp, Finding
    structure with randomness, 2011, algorithm 4.4).
    """
    n, d = values.shape
    if k == 0:
        return np.empty((d, 0), values.dtype)
    if min(n, d) > EXACT:
        start = np.random.default_rng(0).normal(size=(n, k + MORE_VECTORS)).astype(values.dtype)
        basis = np.linalg.qr(values.T @ start)[0]
        for _ in range(ITERATIONS):
            basis = np.linalg.qr(values.T @ (values @ basis))[0]
        return basis @ _leading(values @ basis, k)
    if n > d:
        return np.linalg.eigh(values.T @ values)[1][:, ::-1][:, :k]
    vectors = values.T @ np.linalg.eigh(values @ values.T)[1][:, ::-1][:, :k]
    return np.linalg.qr(vectors)[0]
