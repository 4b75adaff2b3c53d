"""Restarts that end in different places: the free alarm for several modes.

Each restart of the Gaussian fit ends with a mean, a scale and an ELBO, its lower bound of the log evidence.
Where a posterior has well separated modes that are near to Gaussian, ``exp(ELBO)`` over the *distinct* optima
is proportional to the modes' masses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_dft import roots

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Optima:
    """Distinct optima among restarts, best first. K of them.

    Attributes:
        indices: restart with the best ELBO of each optimum, shape (K,), integers.
        elbo: its ELBO in nats, shape (K,), descending.
        weight: softmax of `elbo`, shape (K,): the mass of each mode where modes are separate and near to
            Gaussian. A bad local optimum far below the best has weight 0 to rounding.
        members: for each optimum the restarts that ended there, its representative first.
        failed: restarts whose ELBO, mean or scale is not finite; they belong to no optimum.
    """

    indices: NDArray[np.intp]
    elbo: Array
    weight: Array
    members: tuple[tuple[int, ...], ...]
    failed: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def relevant(self, floor: float = 0.01) -> NDArray[np.intp]:
        """Positions (0 = best) of the optima with weight `floor` or more: two mean several modes."""
        return np.flatnonzero(self.weight >= floor)


def distinct_optima(
    means: ArrayLike,
    scale_trils: ArrayLike,
    elbos: ArrayLike,
    *,
    separation: float = 3.0,
    noise: float = 0.3,
    scale_divergence: float = 0.2,
) -> Optima:
    """Group restarts of a Gaussian fit by the optimum they ended at.

    Going down from the best ELBO, a restart joins the first optimum whose Gaussian it overlaps and is a new
    one otherwise. With ``S`` the mean of the two covariances, two Gaussians overlap when both hold:

    * their means are near, ``(m1 - m2)' S^-1 (m1 - m2) <= separation^2 + noise^2 d``: closer than
      `separation` standard deviations after allowing for restarts that stopped `noise` standard deviations
      away from their optimum in each of d coordinates (in high dimension that alone is a large distance);
    * their shapes are alike, ``log det S - (log det S1 + log det S2) / 2 <= 2 scale_divergence d``. Both
      terms are those of the Bhattacharyya distance. The default tolerates a factor of 2.6 between the scales
      of all coordinates.

    Args:
        means: shape (R, d).
        scale_trils: factors of the covariances, ``covariance = factor factor'``, shape (R, d, d): Cholesky
            factors or any other square roots.
        elbos: shape (R,), in nats.
        separation: distance between means, in standard deviations, from which two optima are distinct.
        noise: standard error per coordinate, in standard deviations, of where a restart stops.
        scale_divergence: largest difference of shape per coordinate within one optimum, in nats.

    Raises:
        ValueError: shapes do not fit together, or every restart failed.
    """
    m, chol, elbo = (np.asarray(v, dtype=np.float64) for v in (means, scale_trils, elbos))
    if m.ndim != 2 or chol.shape not in (m.shape, (*m.shape, m.shape[1])) or elbo.shape != m.shape[:1]:
        raise ValueError(
            "means, scale_trils and elbos must have shapes (R, d), (R, d, d) or (R, d), and (R,), "
            f"got {m.shape}, {chol.shape} and {elbo.shape}"
        )
    fine = np.isfinite(elbo) & np.isfinite(m).all(axis=1) & np.isfinite(chol.reshape(len(m), -1)).all(axis=1)
    fine[fine] = np.isfinite(roots.log_det(chol[fine], m[fine]))
    if not fine.any():
        raise ValueError("no restart has a finite ELBO, mean and scale")
    d = m.shape[1]
    groups: list[list[int]] = []
    for r in sorted(np.flatnonzero(fine).tolist(), key=lambda i: -elbo[i]):
        for group in groups:
            distance, shape = _bhattacharyya_terms(m[r], chol[r], m[group[0]], chol[group[0]])
            if distance <= separation**2 + noise**2 * d and shape <= 2.0 * scale_divergence * d:
                group.append(r)
                break
        else:
            groups.append([r])
    indices = np.array([group[0] for group in groups], dtype=np.intp)
    weight = np.exp(elbo[indices] - elbo[indices[0]])
    return Optima(
        indices=indices,
        elbo=elbo[indices],
        weight=weight / weight.sum(),
        members=tuple(tuple(group) for group in groups),
        failed=tuple(np.flatnonzero(~fine).tolist()),
    )


def triangular(scales: ArrayLike) -> Array:
    """Lower triangular factors, positive on the diagonal, of scale scale^T for square roots (K, d, d).

    Standard deviations (K, d) stay as they are.
    """
    found = np.nan_to_num(np.asarray(scales, dtype=np.float64))
    if found.ndim == 2:
        return found
    factors = np.linalg.qr(found.swapaxes(-1, -2))[1].swapaxes(-1, -2)
    signs = np.where(np.diagonal(factors, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    return factors * signs[..., None, :]


def _bhattacharyya_terms(m1: Array, chol1: Array, m2: Array, chol2: Array) -> tuple[float, float]:
    """Squared distance of the means in the mean covariance, and the log-determinant excess of the latter."""
    mean_cov = (roots.covariance(chol1, m1) + roots.covariance(chol2, m2)) / 2.0
    try:
        chol = roots.root_of(mean_cov)
    except np.linalg.LinAlgError:  # beyond 1e16 in condition: not alike by any measure
        return np.inf, np.inf
    z = roots.whitened(chol, (m1 - m2)[None])[0]
    excess = 2.0 * roots.log_det(chol, m1) - roots.log_det(chol1, m1) - roots.log_det(chol2, m2)
    return float(z @ z), float(excess)


@dataclass(frozen=True)
class ModeCoverage:
    """Where draws lie among K optima.

    Attributes:
        fraction: share of the draws at each optimum, shape (K,), adding up to one.
        expected: the weight it was given, shape (K,).
        outside: share of the draws in no optimum's 99.9 % region: large where modes are far from Gaussian, or
            where draws sit between modes.
    """

    fraction: Array
    expected: Array
    outside: float

    @property
    def worst(self) -> float:
        """Largest absolute difference between a fraction and the expected weight."""
        return float(np.abs(self.fraction - self.expected).max())

    def missing(self, floor: float = 0.01) -> NDArray[np.intp]:
        """Optima with an expected weight of at least `floor` that got less than a tenth of it."""
        return np.flatnonzero((self.expected >= floor) & (self.fraction < 0.1 * self.expected))


def mode_coverage(
    draws: ArrayLike, means: ArrayLike, scale_trils: ArrayLike, weights: ArrayLike
) -> ModeCoverage:
    """Share of the draws at each optimum against its expected weight.

    A draw counts for an optimum with its posterior probability of having come from that component of the
    mixture ``sum_k weights[k] N(means[k], scale_trils[k] scale_trils[k]')``, so that draws of the mixture
    itself give fractions that are unbiased for the weights even where components overlap.

    Args:
        draws: shape (n, d), in the coordinates of the optima.
        means: shape (K, d), for example ``means[optima.indices]``.
        scale_trils: factors of the covariances, Cholesky or other, shape (K, d, d).
        weights: shape (K,), not negative, for example ``optima.weight``.

    Raises:
        ValueError: shapes do not fit together, no draws, draws that are not finite, or weights that are
            negative or all zero.
    """
    x, m, chol, w = (np.asarray(v, dtype=np.float64) for v in (draws, means, scale_trils, weights))
    if (
        x.ndim != 2
        or m.shape[1:] != x.shape[1:]
        or chol.shape not in (m.shape, (*m.shape, x.shape[1]))
        or w.shape != m.shape[:1]
    ):
        raise ValueError(
            "draws, means, scale_trils and weights must have shapes (n, d), (K, d), (K, d, d) or (K, d), and (K,), "
            f"got {x.shape}, {m.shape}, {chol.shape} and {w.shape}"
        )
    if (w < 0).any() or not w.sum() > 0:
        raise ValueError(f"weights must be non-negative and not all zero, got {w}")
    if len(x) == 0 or not np.isfinite(x).all():
        raise ValueError("draws must be finite and at least one")
    squared = np.stack([_squared_mahalanobis(x, mk, lk) for mk, lk in zip(m, chol, strict=True)], axis=1)
    with np.errstate(divide="ignore"):  # a weight of zero is a log weight of -inf, and no draw's choice
        log_joint = np.log(w) - roots.log_det(chol, m) - squared / 2.0
    share = np.exp(log_joint - log_joint.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    # P(chi2_d > d + 2 sqrt(d t) + 2 t) <= exp(-t) (Laurent and Massart 2000, lemma 1), here 0.001.
    t, d = np.log(1000.0), x.shape[1]
    radius = d + 2.0 * np.sqrt(d * t) + 2.0 * t
    return ModeCoverage(
        fraction=share.mean(axis=0),
        expected=w / w.sum(),
        outside=float((squared.min(axis=1) > radius).mean()),
    )


def _squared_mahalanobis(x: Array, mean: Array, chol: Array) -> Array:
    return np.square(roots.whitened(chol, x - mean)).sum(axis=1)


def shortfall(draws: ArrayLike, log_density: ArrayLike, bound: float) -> tuple[float, float]:
    """By how much draws miss what is known of the evidence: where it is positive, they are no draws of the posterior.

    For draws of a density r, E log p - E log r is at most the log evidence, short of it by KL(r || p), and a Gaussian of
    their covariance has at least their entropy. So KL(r || p) is at least `bound` - E log p - H(Gaussian): whatever the
    shape of the posterior, draws that have lost the mode that holds most of it are off by what they have lost.

    Args:
        draws: (n, d).
        log_density: Of the posterior at the draws, (n,), up to a constant.
        bound: A lower bound of the log evidence, up to the same constant.

    Returns:
        That bound of KL(r || p) in nats, and its standard error; not a number and infinite with fewer than 4 d draws that
        are finite.
    """
    x, log_p = np.asarray(draws, np.float64), np.asarray(log_density, np.float64)
    good = np.isfinite(log_p) & np.isfinite(x).all(axis=1)
    x, log_p = x[good], log_p[good]
    n, d = x.shape
    if n < max(4 * d, 10) or not np.isfinite(bound):
        return np.nan, np.inf
    sd = x.std(axis=0)
    if not (sd > 0).all():
        return np.nan, np.inf
    z = (x - x.mean(axis=0)) / sd
    correlation = z.T @ z / n
    half_log_det = 0.5 * float(np.linalg.slogdet(correlation)[1]) + float(np.log(sd).sum())
    # The determinant of a sample covariance is too small on average (Wishart; digamma by its series).
    half = (n - np.arange(1, d + 1)) / 2.0
    digamma = np.log(half) - 1 / (2 * half) - 1 / (12 * half**2)
    entropy = (
        half_log_det - 0.5 * float((digamma - np.log(n / 2.0)).sum()) + 0.5 * d * (1.0 + np.log(2 * np.pi))
    )
    try:
        squares = (z * np.linalg.solve(correlation, z.T).T).sum(axis=1)
    except np.linalg.LinAlgError:
        return np.nan, np.inf
    error = float((log_p + 0.5 * squares).std(ddof=1) / np.sqrt(n))
    return bound - float(log_p.mean()) - entropy, error
