"""What the state of a `DFTKernel` shows of its transitions: the fields that users of NUTS collect as `extra_fields`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import numpy as np

from pyro_dft.errors import SettingsError
from pyro_dft.interface.mass_matrix import inverse_mass_matrix, roots
from pyro_dft.layout import Layout

# Of every state, of those whose draws are refined, and of those for which gradients were asked for.
ALWAYS = ("i", "z", "potential_energy", "diverging", "rng_key")
REFINED = (
    "accept_prob", "mean_accept_prob", "num_steps", "energy", "trajectory_length", "adapt_state.step_size",
    "adapt_state.inverse_mass_matrix", "adapt_state.mass_matrix_sqrt", "adapt_state.mass_matrix_sqrt_inv",
)  # fmt: skip
GRADIENTS = ("z_grad",)
# Fields of NUTS' state that there are none of here.
_MISSING = {
    "r": "momenta are drawn anew for each transition, and forgotten",
    "adapt_state.ss_state": "nothing is adapted while draws are served",
    "adapt_state.mm_state": "nothing is adapted while draws are served",
    "adapt_state.window_idx": "nothing is adapted while draws are served",
}


class AdaptState(NamedTuple):
    """What the transitions were adapted to.

    Attributes:
        step_size: Leapfrog step of the transitions that made the present draw, in coordinates whitened by their mass matrix.
        inverse_mass_matrix: Covariance of the kept draws, unconstrained: a dict of matrices, or of variances, by tuples of
            site names; the matrix alone where the potential takes no dict.
        mass_matrix_sqrt: Square root of the inverse of each: S with S S^T the mass matrix.
        mass_matrix_sqrt_inv: Its inverse.
    """

    step_size: Any
    inverse_mass_matrix: Any
    mass_matrix_sqrt: Any
    mass_matrix_sqrt_inv: Any


def mass_matrices(
    points: np.ndarray, layout: Layout, dense: Any, bare: bool, dtype: Any
) -> tuple[Any, Any, Any]:
    """The last three of `AdaptState` from the kept draws of each chain, (chains, n, d): a leading axis for the chains."""
    if bare:  # no names that the caller knows
        dense = bool(dense)
    found = [inverse_mass_matrix(own.astype(float), layout, dense) for own in points]
    names = list(found[0])
    whole = {each: [(own[each], *roots(own[each])) for own in found] for each in names}
    three = [
        {each: np.stack([own[k] for own in parts]).astype(dtype) for each, parts in whole.items()}
        for k in range(3)
    ]
    first, second, third = (part[names[0]] if bare else part for part in three)
    return first, second, third


def check_fields(names: Iterable[str], *, refined: bool, known: Collection[str] | None) -> None:
    """Checks, before any training, that a state has the fields that are asked for.

    Args:
        names: `extra_fields` of `MCMC.run`.
        refined: Whether draws are refined: others come from no transition.
        known: Fields among `GRADIENTS` that a state which is gone on from has; None for a new one.

    Raises:
        SettingsError: one of them is not there; the message lists those that are.
    """
    there = (*ALWAYS, *(REFINED if refined else ()), *(GRADIENTS if known is None else known))
    for name in names:
        own = name.removeprefix("~")
        if (
            own in there
            or own == "adapt_state"
            and refined
            or own.split(".")[0] in ("z", "z_grad")
            and own.split(".")[0] in there
        ):
            continue
        reason = _MISSING.get(own, "")
        if own in REFINED:
            reason = "draws are served raw, and come from no transition"
        elif own.split(".")[0] in GRADIENTS:
            reason = "the warm-up was not asked for it: name it in MCMC.warmup(..., extra_fields=...) as well"
        raise SettingsError(
            f"extra_fields: the state of DFTKernel has no {own!r}{': ' * bool(reason)}{reason}; it has {', '.join(there)}"
        )
