"""Options of the frameworks' own HMC and NUTS that a user may pass to a `DFTKernel` in their place."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from pyro_dft import links
from pyro_dft.errors import SettingsError
from pyro_dft.experimental import Experimental
from pyro_dft.recipe.carefulness import CAREFUL_ACCEPTANCES
from pyro_dft.recipe.constants import FULL_RANK_LIMIT, TARGET_ACCEPTANCE
from pyro_dft.recipe.trajectories import MOST_LEAPFROGS
from pyro_dft.settings import Settings

# Parameters that follow `model` and `potential_fn`, in their order.
NUMPYRO_NUTS = (
    "kinetic_fn", "step_size", "inverse_mass_matrix", "adapt_step_size", "adapt_mass_matrix", "dense_mass",
    "target_accept_prob", "trajectory_length", "max_tree_depth", "init_strategy", "find_heuristic_step_size",
    "forward_mode_differentiation", "regularize_mass_matrix",
)  # fmt: skip
PYRO_NUTS = (
    "step_size", "adapt_step_size", "adapt_mass_matrix", "full_mass", "use_multinomial_sampling", "transforms",
    "max_plate_nesting", "jit_compile", "jit_options", "ignore_jit_warnings", "target_accept_prob",
    "max_tree_depth", "init_strategy",
)  # fmt: skip
PYRO_HMC = (
    "step_size", "trajectory_length", "num_steps", "adapt_step_size", "adapt_mass_matrix", "full_mass", "transforms",
    "max_plate_nesting", "jit_compile", "jit_options", "ignore_jit_warnings", "target_accept_prob", "init_strategy",
)  # fmt: skip

_STEP_SIZE = "the chains find their step size"
_MASS = f"the chains find it, dense up to {FULL_RANK_LIMIT} parameters"
_ADAPTED = "the chains always adapt it, and not while they are kept"
_ACCEPTANCE = f"they aim at {TARGET_ACCEPTANCE}, and {' or '.join(map(str, CAREFUL_ACCEPTANCES))} where transitions diverge"
_LENGTH = "a quarter of a Gaussian's period, longer where chains are slow; Experimental(leapfrog_steps=...) fixes it"
_BY_ITSELF = ""  # done in any case: nothing to warn of
# Name -> the default of NUTS and HMC, and what takes the place of another value.
PLACES: dict[str, tuple[Any, str]] = {
    "adapt_mass_matrix": (True, _ADAPTED),
    "adapt_step_size": (True, _ADAPTED),
    "dense_mass": (False, _MASS),
    "find_heuristic_step_size": (False, _BY_ITSELF),
    "forward_mode_differentiation": (False, _BY_ITSELF),
    "full_mass": (False, _MASS),
    "ignore_jit_warnings": (False, _BY_ITSELF),
    "inverse_mass_matrix": (None, _MASS),
    "jit_compile": (False, _BY_ITSELF),
    "jit_options": (None, _BY_ITSELF),
    "kinetic_fn": (None, "momenta are Gaussian"),
    "max_stepsize": (1e10, _STEP_SIZE),
    "max_tree_depth": (10, "there are no trees; max_gradients limits what a fit may cost"),
    "min_stepsize": (1e-10, _STEP_SIZE),
    "regularize_mass_matrix": (True, _BY_ITSELF),
    "step_size": (1.0, _STEP_SIZE),
    "target_accept_prob": (TARGET_ACCEPTANCE, _ACCEPTANCE),
    "trajectory_length": (None, _LENGTH),
    "use_multinomial_sampling": (True, "transitions are accepted or not"),
}  # fmt: skip
NAMES = frozenset(PLACES)
# HMC has 2 pi as the default of its trajectories.
_ALSO_DEFAULT = {"trajectory_length": (2 * math.pi,)}
# `num_steps` is a setting of `DFT` and another option of HMC. Values below this are taken for HMC's: no network trains so
# briefly.
LEAST_TRAINING = 100
_SETTINGS = frozenset(field.name for field in dataclasses.fields(Settings)) | {"settings"}


def refuse(options: Mapping[str, Any], of_mcmc: Sequence[str], *, fitted: bool, brought: bool) -> None:
    """Refuses options that a `DFTKernel` can do nothing with.

    Args:
        options: Those that were given by name.
        of_mcmc: Those of them that `MCMC` has.
        fitted: Whether the kernel serves a fitted `DFT`.
        brought: Whether something else was given beside the model.

    Raises:
        SettingsError: there is one of them.
    """
    for name in of_mcmc:
        if name in options:
            raise SettingsError(f"{name} belongs to MCMC: MCMC(DFTKernel(model), {name}=...)")
    if "checkpoint" in options:
        raise SettingsError("checkpoint: DFTKernel writes none; use DFT(...).run(...)")
    if fitted and (options or brought):
        raise SettingsError("a fitted DFT brings its own options: DFTKernel(dft) takes no others")


def translated(
    positional: Sequence[Any], keywords: Mapping[str, Any], *, pyro: bool, potential: bool, stacklevel: int
) -> tuple[dict[str, Any], Any]:
    """Options of a `DFTKernel` from those that a user of NUTS or HMC may have written, and one warning for the others.

    Args:
        positional: What follows `model` and `potential_fn`.
        keywords: By name: options of `DFT`, of NUTS and of HMC.
        pyro: Whether the order is that of Pyro, or of NumPyro. Pyro's HMC is told from its NUTS by the second one, which is a
            number or None with HMC, and a truth value with NUTS.
        potential: Whether there is a potential in place of a model.
        stacklevel: Of the warning, from the caller.

    Returns:
        Options of `DFT` alone; and in which form a mass matrix is told: `dense_mass` of NumPyro, `full_mass` of Pyro.

    Raises:
        TypeError: too many positional arguments, or one of them by name as well.

    Warns:
        UserWarning: some options are ignored; it lists them all, with what takes their place.
    """
    order = NUMPYRO_NUTS
    if pyro:
        of_hmc = len(positional) > 1 and not isinstance(positional[1], bool)
        order = PYRO_HMC if of_hmc else PYRO_NUTS
    if len(positional) > len(order):
        raise TypeError(f"DFTKernel takes at most {len(order) + 2} positional arguments")
    placed = dict(zip(order, positional, strict=False))
    twice = sorted(placed.keys() & keywords.keys())
    if twice:
        raise TypeError(f"DFTKernel got multiple values for {', '.join(twice)}")
    given = {**placed, **keywords}
    own = {name: value for name, value in given.items() if name not in PLACES}
    foreign = {name: value for name, value in given.items() if name in PLACES}
    ignored = {
        f"{name}={_short(value)}": PLACES[name][1]
        for name, value in foreign.items()
        if PLACES[name][1] and not _is_default(name, value)
    }
    if potential and own.get("init_strategy") is not None:
        del own["init_strategy"]
        ignored["init_strategy"] = "a potential starts at its initial values"
    if "num_steps" in own and _is_of_hmc(own, foreign, "num_steps" in placed):
        steps = own.pop("num_steps")
        if steps is not None:
            ignored[f"num_steps={_short(steps)}"] = _leapfrogs(own, steps)
    if ignored:
        warnings.warn(_text(ignored), UserWarning, stacklevel=stacklevel + 1)
    return own, foreign.get("full_mass") or foreign.get("dense_mass") or False


def _is_of_hmc(own: Mapping[str, Any], foreign: Mapping[str, Any], placed: bool) -> bool:
    """Whether `num_steps` means leapfrog steps, and not the training of a network."""
    settings = (own.keys() & _SETTINGS) - {"num_steps"}
    if placed or own["num_steps"] is None or bool(foreign) != bool(settings):
        return placed or own["num_steps"] is None or bool(foreign)
    value = own["num_steps"]
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < LEAST_TRAINING


def _leapfrogs(own: dict[str, Any], steps: Any) -> str:
    """Sets the leapfrog steps where transitions may have as many; returns what was done, in words."""
    whole = isinstance(steps, int) and not isinstance(steps, bool) and 1 <= steps <= MOST_LEAPFROGS
    group = own.get("experimental", Experimental())
    if not whole or "settings" in own or group.leapfrog_steps is not None:
        return (
            "the leapfrog steps of HMC, of which a transition has Experimental(leapfrog_steps=...), at most "
            f"{MOST_LEAPFROGS} by itself"
        )
    own["experimental"] = dataclasses.replace(group, leapfrog_steps=steps)
    return (
        f"taken for those of HMC, Experimental(leapfrog_steps={steps}); for the training of a network write "
        f"settings=Settings(num_steps={steps})"
    )


def _is_default(name: str, value: Any) -> bool:
    """Whether a value is that of NUTS, or of HMC; arrays, which may be traced, never are."""
    default = PLACES[name][0]
    if value is None or default is None and value is False:
        return True
    plain = isinstance(value, bool | int | float)
    return plain and any(
        value == each for each in (default, *_ALSO_DEFAULT.get(name, ())) if each is not None
    )


def _short(value: Any) -> str:
    plain = isinstance(value, bool | int | float | str | tuple | list) and len(repr(value)) <= 40
    return repr(value) if plain else "..."


def _text(ignored: Mapping[str, str]) -> str:
    listed = "; ".join(f"{name} ({reason})" for name, reason in ignored.items())
    return f"options of NUTS and HMC that do not act here as they do there: {listed}. See {links.page('migration')}"
