"""Every setting of a fit, in one frozen dataclass."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_dft.errors import SettingsError
from pyro_dft.experimental import (
    NAMES,
    Experimental,
    check_values,
    grouped,
    is_integer,
    is_number,
    unknown_names,
)

OBJECTIVES = ("auto", "kl", "dft", "dft-paper")

# Values of the settings that are one of a few words.
CHOICES = {
    "objective": OBJECTIVES,
    "train": ("auto", "always", "never"),
    "reparam": ("auto", "never"),
    "modes": ("auto", "never"),
}
# Least values of the counts.
LEAST = {
    "num_steps": 1, "batch_size": 2, "width": 1, "depth": 1, "restarts": 1, "num_draws": 10,
}  # fmt: skip
POSITIVE = ("learning_rate", "full_data_budget")
# Counts and numbers that may be left out, with their least values.
OPTIONAL = {"refine_steps": 0, "max_gradients": 1}
# Seeds are integers from -SEEDS to below SEEDS.
SEEDS = 2**63


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a fit. Lengths are in whitened units (posterior sds of the Gaussian preconditioner).

    Attributes:
        objective: What the network is trained with. `"auto"` is the recipe: a Gaussian first, then KL training, kept
            only where a measurement says that it helped. `"kl"` is KL training alone
            (KL-NS, arXiv 2306.04952) in the Gaussian's coordinates, `"dft"` is Theorem 1 of arXiv 2411.01453 (the full
            gradient of the Fisher divergence) there. `"dft-paper"` is Theorem 1 with alternating score matching and nothing
            else: no Gaussian, no refinement.
        num_steps: Generator steps in all phases together.
        batch_size: Latent points z for each step; each is used with +eps and -eps.
        width: Hidden units for each layer of the generator and of the score network.
        depth: Hidden layers of both networks.
        learning_rate: Adam rate of the generator under KL.
        train: `"auto"` skips the network where a Gaussian is measured to be right already; where it is not, but the
            chains gave all that is kept, the network is trained when raw draws, importance sampling, a file or a copy first
            need it. `"always"` trains it in the fit, `"never"` stops at the Gaussian.
        restarts: Starting points of the Gaussian preconditioner for each chain.
        refine_steps: HMC transitions that refine a draw (default of `get_samples`; 0 serves raw draws). None finds
            them by the drift test: 2, doubled until as many transitions again move nothing, up to `max_refine_steps`.
        num_draws: Draws over all chains that are kept after the fit: the default of `get_samples`, `summary` and
            `to_inference_data`, and the fixed number at which the drift test is made.
        full_data_budget: Gradient evaluations times data rows that each of these may use when the model subsamples its
            data: the last steps of the Gaussian, and refinement with the drift test, whose number of draws shrinks to fit; 200
            may cost up to five times as much.
        max_gradients: Gradient evaluations of the model that a fit may take; None for as many as the recipe asks for. A fit that
            meets the limit ends with what it has, and says so; the least it takes is a short run of the chains.
        max_seconds: The same in wall seconds. A seed then gives other draws on a slower machine.
        reparam: `"auto"` also tries the non-centred form of location-scale sites and keeps the form whose Gaussian
            fit has the higher evidence bound; `"never"` takes the model's own coordinates.
        modes: `"auto"` trains a sampler for each of several separate modes that the restarts of the Gaussian ended at, and
            draws from them by weights from importance sampling; `"never"` takes the best one for each chain.
        seed: Seed of everything random in the fit, an integer of at most 63 bits, or None to draw one from the framework's
            generator.
        experimental: Settings that only an experiment needs; see `Experimental`.

    Example:
        >>> from pyro_dft import Settings
        >>> settings = Settings(num_steps=3000, width=192)
        >>> dft = DFT(model, settings=settings)  # the same as DFT(model, num_steps=3000, width=192)
        >>> dft.settings.num_steps
        3000
    """

    objective: str = "auto"
    num_steps: int = 1200
    batch_size: int = 128
    width: int = 96
    depth: int = 2
    learning_rate: float = 3e-3
    train: str = "auto"
    restarts: int = 6
    refine_steps: int | None = None
    num_draws: int = 4000
    full_data_budget: float = 1e9
    max_gradients: int | None = None
    max_seconds: float | None = None
    reparam: str = "auto"
    modes: str = "auto"
    seed: int | None = None
    experimental: Experimental = Experimental()

    def __post_init__(self) -> None:
        """Checks every value, and stores NumPy's numbers as plain ones; raises SettingsError naming the setting."""
        if self.objective == "fisher-partial":
            raise SettingsError(
                'objective="fisher-partial" is now objective="dft" with experimental=Experimental(partial_gradient=True)'
            )
        check_values(self, CHOICES, LEAST, POSITIVE, ())
        for name, least in OPTIONAL.items():
            value = getattr(self, name)
            if value is not None and (not is_integer(value) or value < least):
                raise SettingsError(f"{name}={value!r}: expected an integer of at least {least}, or None")
        seconds = self.max_seconds
        if seconds is not None and (not is_number(seconds) or not 0 < seconds < float("inf")):
            raise SettingsError(f"max_seconds={seconds!r}: expected a positive finite number, or None")
        if self.seed is not None and not (is_integer(self.seed) and -SEEDS <= self.seed < SEEDS):
            raise SettingsError(f"seed={self.seed!r}: expected an integer of at most 63 bits, or None")
        if not isinstance(self.experimental, Experimental):
            raise SettingsError(
                f"experimental={self.experimental!r}: expected Experimental(...) with settings of experiments"
            )
        self._check_together()

    def _check_together(self) -> None:
        """Raises where settings contradict each other."""
        own = self.experimental
        if own.dft_fraction and self.objective != "auto":
            raise SettingsError(
                f'dft_fraction={own.dft_fraction!r} is a part of objective="auto", and objective={self.objective!r} has one '
                'phase only ("auto" is the recipe that was called "dft" before; "dft" is Theorem 1 alone)'
            )
        if own.partial_gradient and self.objective != "dft":
            raise SettingsError(f'partial_gradient needs objective="dft", got objective={self.objective!r}')
        if not self.preconditioned and self.train == "never":
            why = 'precondition="never"' if own.precondition == "never" else f"objective={self.objective!r}"
            raise SettingsError(f'{why} and train="never" leave nothing to draw from')
        if own.noise_mode == "levels" and self.preconditioned:
            raise SettingsError(
                'noise_mode="levels" needs precondition="never": its noise is in units of the target'
            )
        if own.noise_mode == "levels" and own.noise_start < own.noise:
            raise SettingsError(f"noise_start={own.noise_start!r} is below noise={own.noise!r}")

    def check_use(self) -> None:
        """Checks that each choice that was made has something to act on.

        Learning rates, sizes and budgets may be set for phases that this fit turns out not to need.

        Raises:
            SettingsError: a setting that differs from its default would change nothing.

        Example:
            >>> from pyro_dft import Experimental
            >>> Settings(experimental=Experimental(noise_start=1.0, noise_mode="annealed")).check_use()
        """
        for name, needed in self._idle().items():
            value = getattr(self.experimental, name)
            raise SettingsError(f"{name}={value!r} changes nothing here: it needs {needed}")

    def without_idle(self) -> Settings:
        """The same with the defaults of settings that change nothing beside the others, as early files can have them.

        Example:
            >>> from pyro_dft import Experimental
            >>> Settings(train="never", experimental=Experimental(gate=0.5)).without_idle().experimental.gate
            0.08
        """
        defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Experimental)}
        idle = {name: defaults[name] for name in self._idle()}
        return dataclasses.replace(self, experimental=dataclasses.replace(self.experimental, **idle))

    def _idle(self) -> dict[str, str]:
        """Settings of experiments that are given and change nothing, with what they need."""
        own, default = self.experimental, Experimental()
        acts = {
            "distance": (
                self._has_dft_phase or self.objective == "dft-paper",
                'a phase with a Fisher divergence: dft_fraction above 0, objective="dft" or "dft-paper"',
            ),
            "final_batch_factor": (own.dft_fraction > 0, "dft_fraction above 0"),
            "noise_start": (
                own.noise_mode in ("annealed", "levels"), 'noise_mode="annealed" or "levels"',
            ),
            "gate": (self.train == "auto" and self.preconditioned, 'train="auto" and a preconditioner'),
        }  # fmt: skip
        return {
            name: needed
            for name, (does, needed) in acts.items()
            if not does and getattr(own, name) != getattr(default, name)
        }

    @property
    def _has_dft_phase(self) -> bool:
        return self.objective == "dft" or (self.objective == "auto" and self.experimental.dft_fraction > 0)

    @property
    def phase(self) -> str:
        """What the network is trained with; the objective, but for the partial gradient of Theorem 1.

        Example:
            >>> Settings(objective="kl").phase
            'kl'
        """
        return "fisher-partial" if self.experimental.partial_gradient else self.objective

    def check_minibatches(self) -> None:
        """Checks that the training can do with scores of random parts of the data.

        Raises:
            SettingsError: the distance is not the squared one. Two independent minibatches give an unbiased gradient of
                a distance that is quadratic in the score, and of no other: the slope of a pseudo-Huber distance at a noisy
                score is not the slope at its mean.

        Example:
            >>> Settings().check_minibatches()
        """
        full = self.phase != "fisher-partial" and (self._has_dft_phase or self.objective == "dft-paper")
        if self.experimental.distance != "squared" and full:
            raise SettingsError(
                f'distance={self.experimental.distance!r} needs the full data: with minibatches only "squared" has an unbiased '
                "gradient. Drop subsample_size, or the distance"
            )

    @property
    def fixed_leapfrog_steps(self) -> int:
        """Leapfrog steps of transitions whose number does not follow from their step size.

        Example:
            >>> Settings().fixed_leapfrog_steps
            5
        """
        given = self.experimental.leapfrog_steps
        return 5 if given is None else given

    @property
    def preconditioned(self) -> bool:
        """Whether a Gaussian is fitted first.

        Example:
            >>> Settings(objective="dft-paper").preconditioned
            False
        """
        return self.experimental.precondition == "auto" and self.objective != "dft-paper"

    @classmethod
    def from_kwargs(cls, **kwargs: Any) -> Settings:
        """Builds settings from keyword arguments.

        Raises:
            SettingsError: a name is unknown (the message lists the known ones) or a value is out of range.

        Example:
            >>> Settings.from_kwargs(width=64).width
            64
        """
        check_names(kwargs)
        return cls(**kwargs)

    def to_json(self) -> dict[str, Any]:
        """Returns the settings as a plain dictionary.

        Example:
            >>> Settings().to_json()["objective"]
            'auto'
        """
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> Settings:
        """The inverse of `to_json`; also of that of early versions, which had no group for experiments.

        Raises:
            SettingsError: a name is unknown, or a value is out of range.

        Example:
            >>> Settings.from_json(Settings(width=8).to_json()).width
            8
        """
        return cls.from_kwargs(**grouped(entries))


def in_present_form(settings: Any) -> Any:
    """Settings of a file as this version writes them; what are none, as they are."""
    try:
        return Settings.from_json(settings).to_json()
    except (SettingsError, TypeError, ValueError, AttributeError):
        return settings


def check_names(names: Iterable[str], others: Iterable[str] = ()) -> None:
    """Checks that names are those of settings.

    Args:
        names: The names.
        others: Further names that the caller knows, to suggest in place of a misspelt one.

    Raises:
        SettingsError: a name is unknown; the message suggests the nearest and lists all settings.
    """
    known = sorted(field.name for field in dataclasses.fields(Settings))
    moved = [name for name in names if name in NAMES]
    if moved:
        there = ", ".join(f"{name}=..." for name in moved)
        raise SettingsError(
            f"{', '.join(moved)}: a setting for experiments, which is given as experimental=Experimental({there}), with "
            "Experimental from pyro_dft"
        )
    unknown = unknown_names(names, known, [*others, *NAMES])
    if unknown:
        raise SettingsError(f"unknown setting {unknown}; the settings are: {', '.join(known)}")


def check_count(name: str, value: Any, least: int, error: type[ValueError] = ValueError) -> None:
    """Raises `error` where a value is no integer, or below the least."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise error(f"{name}={value!r}: expected an integer of at least {least}")


def _checked(plain: Callable[..., None]) -> Callable[..., None]:
    """A constructor that tells unknown names as `Settings.from_kwargs` does."""

    @functools.wraps(plain)
    def init(self: Settings, **values: Any) -> None:
        check_names(values)
        plain(self, **values)

    return init


Settings.__init__ = _checked(Settings.__init__)  # type: ignore[method-assign]
