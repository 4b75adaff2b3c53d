"""The kinds of posteriors by name, and the order in which they are fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.hostile import conjugate, curves, funnels, hierarchies, maps, mixtures, tails
from benchmarks.hostile.posterior import Posterior


@dataclass(frozen=True)
class Kind:
    """A family of posteriors.

    Attributes:
        make: (random numbers, dimension, style) -> posterior.
        dims: Dimensions; few, so that fits share compiled programs.
        styles: Sub-families; each comes in each dimension.
        title: In words, for the table.
    """

    make: Callable[[np.random.Generator, int, str], Posterior]
    dims: tuple[int, ...]
    styles: tuple[str, ...]
    title: str


KINDS: dict[str, Kind] = {
    "maps": Kind(maps.make, maps.DIMS, maps.STYLES, "triangular maps of Gaussians"),
    "mixtures": Kind(mixtures.make, mixtures.DIMS, mixtures.STYLES, "mixtures of 2 to 5 components"),
    "tails": Kind(tails.make, tails.DIMS, tails.STYLES, "heavy, skewed and flat tails"),
    "rings": Kind(curves.make_ring, curves.RING_DIMS, curves.RING_STYLES, "rings and shells"),
    "bananas": Kind(curves.make_bananas, curves.BANANA_DIMS, curves.BANANA_STYLES, "bananas and waves"),
    "funnels": Kind(funnels.make, funnels.DIMS, funnels.STYLES, "funnels, bare hierarchies"),
    "conjugate": Kind(conjugate.make, conjugate.DIMS, conjugate.STYLES, "conjugate models"),
    "hierarchies": Kind(
        hierarchies.make, hierarchies.DIMS, hierarchies.STYLES, "centred hierarchies as models"
    ),
}


def generate(kind: str, seed: int) -> Posterior:
    """The posterior of a kind with this seed: styles and dimensions take turns, the rest is random."""
    family = KINDS[kind]
    # Each style meets all dimensions, and neighbouring seeds have different ones.
    turn, style = divmod(seed, len(family.styles))
    d = family.dims[(turn + style) % len(family.dims)]
    return family.make(np.random.default_rng([list(KINDS).index(kind), seed]), d, family.styles[style])


def order(fits: int, kinds: Sequence[str] = tuple(KINDS)) -> Iterator[tuple[str, int]]:
    """The first fits as (kind, seed): any number of them is balanced over the kinds."""
    for i in range(fits):
        yield kinds[i % len(kinds)], i // len(kinds)
