"""Square roots of covariances, matrices (C, d, d) or standard deviations (C, d), on vectors (C, n, d)."""

from __future__ import annotations

from jax import Array


def coloured(root: Array, z: Array) -> Array:
    """The root times each vector."""
    return z * root[:, None] if root.ndim == 2 else z @ root.mT


def projected(root: Array, s: Array) -> Array:
    """The root's transpose times each vector, such as a score."""
    return s * root[:, None] if root.ndim == 2 else s @ root
