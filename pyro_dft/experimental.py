"""Settings that only an experiment needs."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_dft.errors import SettingsError

# Values that are one of a few words.
CHOICES = {
    "distance": ("squared", "pseudo-huber"),
    "noise_mode": ("constant", "annealed", "learned", "levels"),
    "precondition": ("auto", "never"),
    "compile": ("auto", "never"),
}
# Least values of the counts.
LEAST = {
    "score_steps": 1,
    "final_batch_factor": 1,
    "precondition_steps": 1,
    "max_refine_steps": 1,
    "refine_limit": 0,
}
POSITIVE = ("dft_learning_rate", "score_learning_rate", "huber_scale", "noise", "noise_start", "gate")
SHARES = ("dft_fraction", "settle_fraction")


def is_integer(value: Any) -> bool:
    """Whether a value is a whole number, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def unknown_names(names: Iterable[str], known: Iterable[str], others: Iterable[str] = ()) -> str:
    """Names that are none of the known ones, each with the nearest, in words; "" where all are known.

    Args:
        names: The names.
        known: Those that exist.
        others: Further ones to suggest in place of a misspelt one.
    """
    known = sorted(known)
    unknown = sorted(set(names) - set(known))
    nearest = [difflib.get_close_matches(name, [*known, *others], 1) for name in unknown]
    return ", ".join(
        f"{name!r} (did you mean {near[0]!r}?)" if near else repr(name)
        for name, near in zip(unknown, nearest, strict=True)
    )


def check_values(
    values: Any,
    choices: Mapping[str, tuple[str, ...]],
    least: Mapping[str, int],
    positive: tuple[str, ...],
    shares: tuple[str, ...],
) -> None:
    """Checks the values of a frozen dataclass of settings, and stores NumPy's numbers as plain ones.

    Args:
        values: The settings.
        choices: Names of those that are one of a few words, with the words.
        least: Names of counts, with their least values.
        positive: Names of positive finite numbers.
        shares: Names of numbers from 0 to 1.

    Raises:
        SettingsError: a value is out of range; the message names the setting.
    """
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        if isinstance(value, np.generic):
            object.__setattr__(values, field.name, value.item())
    for name, allowed in choices.items():
        value = getattr(values, name)
        if value not in allowed:
            raise SettingsError(f"{name}={value!r}: expected one of {', '.join(map(repr, allowed))}")
    for name, smallest in least.items():
        value = getattr(values, name)
        if not is_integer(value) or value < smallest:
            raise SettingsError(f"{name}={value!r}: expected an integer of at least {smallest}")
    for name in positive:
        value = getattr(values, name)
        if not is_number(value) or not 0 < value < float("inf"):
            raise SettingsError(f"{name}={value!r}: expected a positive finite number")
    for name in shares:
        value = getattr(values, name)
        if not is_number(value) or not 0 <= value <= 1:
            raise SettingsError(f"{name}={value!r}: expected a number from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Experimental:
    """Settings that only an experiment needs: their defaults are what was measured best (docs/experiments.md).

    Attributes:
        dft_fraction: Share of `num_steps` that the DFT phase of objective `"auto"` takes, at the end. None by default: at equal
            cost, no form of it that was tried beat KL training.
        partial_gradient: Whether objective `"dft"` takes the first term of Theorem 1 alone, a biased gradient, for comparison.
        settle_fraction: Share of the KL steps, at their end, with small rates, in which the score network catches up.
        score_steps: Score-network steps for each generator step.
        final_batch_factor: `batch_size` is multiplied by this in the DFT phase, where the gradient noise of order
            1/sigma is what limits it.
        dft_learning_rate: Adam rate of the generator under the DFT gradient, full or partial; three tenths of it where KL
            training came before.
        score_learning_rate: Adam rate of the score network.
        averaging: Decay of a moving average of the generator's weights, which draws then come from, as 0.999; 0 takes the last
            weights. The average is short at first: its decay is (1 + n) / (10 + n) after n steps, if that is less.
        distance: Distance of Theorem 1, `"squared"` (1/2 ||delta||^2) or `"pseudo-huber"` (bounded slope).
        huber_scale: Pseudo-Huber knee, in units of sqrt(d); also bounds single particles under KL.
        noise: Standard deviation sigma of the noise that is part of a draw.
        noise_mode: `"constant"`, `"annealed"` (geometrically from `noise_start` to `noise`), `"learned"` (one
            global sigma for each whitened coordinate, started at `noise`) or `"levels"` (a sigma for each draw in training,
            log-uniform from `noise` to `noise_start`; needs `smoothed_potential_fn` and `precondition="never"`).
        noise_start: First sigma of the annealed mode, largest one of the levels.
        gate: `train="auto"` skips the network when no coordinate of the Gaussian's draws moves by more than this (posterior
            sds, and log sds) under refinement.
        precondition: `"auto"` fits a Gaussian first and trains in its coordinates, `"never"` trains in those of the
            posterior; the objective `"dft-paper"` never has one. Without it there is no search for modes either.
        precondition_steps: Natural-gradient steps of the Gaussian.
        leapfrog_steps: Leapfrog steps for each HMC transition. None takes as many as a quarter of a Gaussian's period needs
            with the step size that was found; 5 where `refine_steps` is given, and where the model subsamples its data.
        max_refine_steps: Most transitions that refine a draw, where `refine_steps` is None.
        refine_limit: `get_samples(n)` with n above this is raw unless `refine_steps` is given.
        compile: `"auto"` traces the batched potential into a flat graph where that works; `"never"` keeps eager mode.
            Pyro only: jax always compiles.

    Example:
        >>> from pyro_dft import Experimental, Settings
        >>> settings = Settings(num_steps=3000, experimental=Experimental(dft_fraction=0.2))
        >>> settings.experimental.dft_fraction
        0.2
    """

    dft_fraction: float = 0.0
    partial_gradient: bool = False
    settle_fraction: float = 0.2
    score_steps: int = 2
    final_batch_factor: int = 1
    dft_learning_rate: float = 3e-4
    score_learning_rate: float = 3e-3
    averaging: float = 0.0
    distance: str = "squared"
    huber_scale: float = 3.0
    noise: float = 0.1
    noise_mode: str = "constant"
    noise_start: float = 0.5
    gate: float = 0.08
    precondition: str = "auto"
    precondition_steps: int = 300
    leapfrog_steps: int | None = None
    max_refine_steps: int = 64
    refine_limit: int = 20_000
    compile: str = "auto"

    def __post_init__(self) -> None:
        """Checks every value; raises SettingsError naming the setting."""
        check_values(self, CHOICES, LEAST, POSITIVE, SHARES)
        if not is_number(self.averaging) or not 0 <= self.averaging < 1:
            raise SettingsError(f"averaging={self.averaging!r}: expected a number from 0 to below 1")
        leapfrogs = self.leapfrog_steps
        if leapfrogs is not None and (not is_integer(leapfrogs) or leapfrogs < 1):
            raise SettingsError(f"leapfrog_steps={leapfrogs!r}: expected an integer of at least 1, or None")
        if not isinstance(self.partial_gradient, bool):
            raise SettingsError(f"partial_gradient={self.partial_gradient!r}: expected True or False")


NAMES = tuple(field.name for field in dataclasses.fields(Experimental))


def _checked(plain: Callable[..., None]) -> Callable[..., None]:
    """A constructor that says which names it does not know."""

    @functools.wraps(plain)
    def init(self: Experimental, **values: Any) -> None:
        unknown = unknown_names(values, NAMES)
        if unknown:
            raise SettingsError(
                f"unknown setting of Experimental {unknown}; they are: {', '.join(sorted(NAMES))}"
            )
        plain(self, **values)

    return init


Experimental.__init__ = _checked(Experimental.__init__)  # type: ignore[method-assign]


def grouped(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name, those of experiments in their group, from a mapping that has all of them side by side.

    This is the form of files of early versions; benchmarks compose their settings in it. The objective "fisher-partial" of
    theirs is "dft" with `partial_gradient`.
    """
    found = {name: value for name, value in values.items() if name not in NAMES}
    given = found.pop("experimental", {})
    own = given if isinstance(given, dict) else dataclasses.asdict(given)
    own = own | {name: value for name, value in values.items() if name in NAMES}
    if found.get("objective") == "fisher-partial":
        found["objective"], own["partial_gradient"] = "dft", True
    return {**found, "experimental": Experimental(**own)} if own else found
