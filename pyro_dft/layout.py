"""The flat vector: which coordinates belong to which site, in an order that every part agrees on.

Unconstrained latent sites stand in sorted name order, each raveled in C order, one after the other. A saved
fit stores its layout, so that it can be checked against the model it is loaded for.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class SiteInfo:
    """One latent site of a model.

    Attributes:
        name: Name of the site.
        unconstrained_shape: Shape of the site in unconstrained space.
        constrained_shape: Shape of the site as the model sees it.
        transform: Name of the support that the transform leads to, such as ``"real"``, ``"positive"``,
            ``"simplex"`` or ``"noncentered"``; ``"noncentered 0.25"`` where a site is so only in part.
    """

    name: str
    unconstrained_shape: tuple[int, ...]
    constrained_shape: tuple[int, ...]
    transform: str

    @property
    def size(self) -> int:
        """Number of flat coordinates."""
        return math.prod(self.unconstrained_shape)


@dataclass(frozen=True)
class Layout:
    """Sites of a flat vector, in sorted name order.

    Attributes:
        sites: One entry per latent site.

    Raises:
        ValueError: Sites are not in sorted order, or a name occurs twice.
    """

    sites: tuple[SiteInfo, ...]

    def __post_init__(self) -> None:
        names = [site.name for site in self.sites]
        if names != sorted(set(names)):
            raise ValueError(f"sites must have distinct names in sorted order, got {names}")

    @cached_property
    def dim(self) -> int:
        """Length d of the flat vector."""
        return sum(site.size for site in self.sites)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Name of a site -> its slice of the flat vector."""
        slices, start = {}, 0
        for site in self.sites:
            slices[site.name] = slice(start, start + site.size)
            start += site.size
        return slices

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sites, sorted."""
        return tuple(site.name for site in self.sites)

    def __getitem__(self, name: str) -> SiteInfo:
        """The site called ``name``.

        Raises:
            KeyError: There is no such site.
        """
        for site in self.sites:
            if site.name == name:
                return site
        raise KeyError(name)

    def where(self, names: Collection[str]) -> np.ndarray:
        """Which coordinates (d,) are those of some of the sites."""
        found = np.zeros(self.dim, bool)
        for name in names:
            found[self.slices[name]] = True
        return found

    def coordinate_names(self) -> list[str]:
        """Names of the d coordinates, such as ``"mu"``, ``"theta[0]"`` or ``"b[1,2]"``."""
        names = []
        for site in self.sites:
            if not site.unconstrained_shape:
                names.append(site.name)
                continue
            for flat in range(site.size):
                index = []
                for size in reversed(site.unconstrained_shape):
                    flat, i = divmod(flat, size)
                    index.append(str(i))
                names.append(f"{site.name}[{','.join(reversed(index))}]")
        return names

    def unflatten(self, x: Any) -> dict[str, Any]:
        """Splits flat vectors into sites.

        Args:
            x: NumPy, torch or jax array of shape (..., d).

        Returns:
            Name -> array of shape (..., *unconstrained_shape), of the same kind as ``x``.

        Raises:
            ValueError: The last dimension is not d.
        """
        if x.shape[-1] != self.dim:
            raise ValueError(f"expected {self.dim} coordinates in the last dimension, got {tuple(x.shape)}")
        lead = tuple(x.shape[:-1])
        return {
            site.name: x[..., self.slices[site.name]].reshape(lead + site.unconstrained_shape)
            for site in self.sites
        }

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts, ready for ``json.dumps``."""
        return {
            "sites": [
                {
                    "name": site.name,
                    "unconstrained_shape": list(site.unconstrained_shape),
                    "constrained_shape": list(site.constrained_shape),
                    "transform": site.transform,
                }
                for site in self.sites
            ]
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layout:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: ``data`` is not what :meth:`to_json` writes.
        """
        try:
            sites = tuple(
                SiteInfo(
                    name=str(site["name"]),
                    unconstrained_shape=tuple(int(size) for size in site["unconstrained_shape"]),
                    constrained_shape=tuple(int(size) for size in site["constrained_shape"]),
                    transform=str(site["transform"]),
                )
                for site in data["sites"]
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a layout: {error!r}") from error
        return cls(sites)

    def mismatch(self, other: Layout) -> str | None:
        """What tells two layouts apart, in words.

        Returns:
            None if they are equal, else one sentence that names the first site that differs.
        """
        mine, theirs = set(self.names), set(other.names)
        if mine != theirs:
            return f"sites differ: {sorted(mine - theirs)} only here, {sorted(theirs - mine)} only there"
        for a, b in zip(self.sites, other.sites, strict=True):
            for field in ("unconstrained_shape", "constrained_shape", "transform"):
                if getattr(a, field) != getattr(b, field):
                    return f"site '{a.name}': {field} is {getattr(a, field)} here, {getattr(b, field)} there"
        return None
