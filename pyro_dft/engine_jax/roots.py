"""Square roots of covariances on vectors (C, n, d): the kinds of `pyro_dft.roots`, for C samplers."""

from __future__ import annotations

from jax import Array

from pyro_dft.roots import has_directions, stretched


def coloured(root: Array, z: Array) -> Array:
    """The root times each vector."""
    if has_directions(root, z.ndim):
        return stretched(root, z) * root[:, None, :, 0]
    return z * root[:, None] if root.ndim == 2 else z @ root.mT


def projected(root: Array, s: Array) -> Array:
    """The root's transpose times each vector, such as a score."""
    if has_directions(root, s.ndim):
        return stretched(root, s * root[:, None, :, 0])
    return s * root[:, None] if root.ndim == 2 else s @ root


def spread(root: Array, s: Array) -> Array:
    """The root times its transpose, the covariance, times each vector.

    Matrices are taken one after the other: their product would lose digits in single precision. With directions it is one map.
    """
    if has_directions(root, s.ndim):
        sd = root[:, None, :, 0]
        return stretched(root, s * sd, 2) * sd
    return coloured(root, projected(root, s))
