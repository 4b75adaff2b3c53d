"""The covariance of draws in the form in which NUTS tells the inverse of its mass matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pyro_dft.layout import Layout

Array = NDArray[np.floating]


def inverse_mass_matrix(
    points: Array, layout: Layout, dense: bool | Sequence[Sequence[str]]
) -> dict[tuple[str, ...], Array]:
    """Blocks by the names of their sites: matrices for those that are wanted dense, variances for all others together.

    Args:
        points: Draws (n, d) in the model's own unconstrained coordinates.
        layout: Their sites.
        dense: Whether all is one matrix; or tuples of names, one for each matrix.

    Example:
        >>> layout = Layout((SiteInfo("a", (), (), "real"), SiteInfo("b", (2,), (2,), "real")))
        >>> points = np.random.default_rng(0).normal(size=(100, 3))
        >>> {names: block.shape for names, block in inverse_mass_matrix(points, layout, [("b",)]).items()}
        {('b',): (2, 2), ('a',): (1,)}
    """
    whole = [layout.names] if dense is True else []
    blocks = whole if isinstance(dense, bool) else [tuple(names) for names in dense]
    covariance = np.atleast_2d(np.cov(points, rowvar=False)) if blocks else None
    found = {}
    for names in blocks:
        columns = _columns(layout, names)
        assert covariance is not None
        found[names] = covariance[np.ix_(columns, columns)]
    others = tuple(name for name in layout.names if not any(name in names for names in blocks))
    if others:
        found[others] = points[:, _columns(layout, others)].var(0, ddof=1)
    return found


def _columns(layout: Layout, names: Sequence[str]) -> list[int]:
    return [i for name in names for i in range(layout.dim)[layout.slices[name]]]


def roots(block: Array) -> tuple[Array, Array]:
    """Square root S of the inverse of a matrix, or of variances: S S^T is the inverse; and the inverse of S.

    A matrix that has none gives NaN.

    Example:
        >>> roots(np.array([4.0]))
        (array([0.5]), array([2.]))
    """
    if block.ndim == 1:
        return 1 / np.sqrt(block), np.sqrt(block)
    try:
        factor = np.linalg.cholesky(block)
    except np.linalg.LinAlgError:
        return np.full_like(block, np.nan), np.full_like(block, np.nan)
    return np.linalg.inv(factor).T, factor.T
