"""How far each site is non-centred: from 0, the model's own coordinates, to 1.

An amount is part of the layout of the coordinates, so that a saved sampler finds its own ones again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from pyro_dft.errors import ModelError
from pyro_dft.layout import Layout, SiteInfo

NAME = "noncentered"
# The fit of amounts: steps of Adam, points in each, the first rate (it falls to 0), and the Gaussian's first sd.
STEPS, DRAWS, RATE, SCALE = 400, 8, 0.1, 0.1
GRADIENTS = STEPS * DRAWS


def rounded(names: Sequence[str], found: np.ndarray) -> dict[str, float]:
    """Fitted amounts in quarters: finer differences do not matter, and rounding errors do not move these."""
    return {name: round(4 * float(amount)) / 4 for name, amount in zip(names, found, strict=True)}


def worth_a_try(amounts: Mapping[str, float], candidates: Sequence[str]) -> bool:
    """Whether amounts are for these sites, and give coordinates other than the model's own and the wholly non-centred ones."""
    if not set(amounts) <= set(candidates) or not all(0 <= amount <= 1 for amount in amounts.values()):
        return False
    return any(amounts.values()) and any(amounts.get(name, 0.0) != 1 for name in candidates)


def given(sites: Iterable[str] | Mapping[str, float], candidates: Collection[str]) -> dict[str, float]:
    """Amounts by site; 1 for those that are only named.

    Raises:
        ModelError: one of the sites is no candidate.
    """
    found = dict(sites) if isinstance(sites, Mapping) else dict.fromkeys(sites, 1.0)
    found = {name: float(amount) for name, amount in found.items() if amount}
    if wrong := sorted(set(found) - set(candidates)):
        raise ModelError(f"sites {wrong} cannot be non-centred; those that can are {list(candidates)}")
    return found


def moved(layout: Layout, amounts: Mapping[str, float]) -> Layout:
    """A layout in which sites are non-centred."""
    infos = []
    for site in layout.sites:
        kind = _kind(amounts[site.name]) if site.name in amounts else site.transform
        infos.append(SiteInfo(site.name, site.unconstrained_shape, site.constrained_shape, kind))
    return Layout(tuple(infos))


def read(layout: Layout) -> dict[str, float]:
    """The amounts of the sites that a layout says are non-centred."""
    words = {site.name: site.transform.split(" ") for site in layout.sites}
    return {name: float((*found, "1")[1]) for name, found in words.items() if found[0] == NAME}


def _kind(amount: float) -> str:
    return NAME if amount == 1 else f"{NAME} {amount:.2f}"
