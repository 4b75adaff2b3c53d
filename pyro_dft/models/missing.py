"""Latent values of rows that are observed, as `obs_mask` makes them in either framework.

``sample("y", fn, obs=y, obs_mask=mask)`` makes two sites with a value for each row: "y_observed", which counts where the mask
holds, and the latent "y_unobserved", which counts elsewhere; "y" takes the one that counts. The latent values of observed rows
have no density and are not used for anything: their posterior is improper. They get that of their own distribution, as the
missing ones have it. Nothing else changes, in any coordinates, as it integrates to one.
"""

from __future__ import annotations

UNOBSERVED, OBSERVED = "_unobserved", "_observed"


def observed_twin(name: str) -> str:
    """Name of the observed site beside the latent one that `obs_mask` made; "", which no site has, for other names."""
    return name.removesuffix(UNOBSERVED) + OBSERVED if name.endswith(UNOBSERVED) else ""
