"""Every hyper-parameter of both engines, in one frozen dataclass."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_dft.errors import SettingsError

OBJECTIVES = ("auto", "kl", "dft", "dft-paper", "fisher-partial")
DISTANCES = ("squared", "pseudo-huber")
NOISE_MODES = ("constant", "annealed", "learned", "levels")
TRAIN_MODES = ("auto", "always", "never")
COMPILE_MODES = ("auto", "never")
REPARAM_MODES = ("auto", "never")
MODES_MODES = ("auto", "never")
PRECONDITION_MODES = ("auto", "never")

# Values of the settings that are one of a few words.
CHOICES = {
    "objective": OBJECTIVES,
    "distance": DISTANCES,
    "noise_mode": NOISE_MODES,
    "train": TRAIN_MODES,
    "compile": COMPILE_MODES,
    "reparam": REPARAM_MODES,
    "modes": MODES_MODES,
    "precondition": PRECONDITION_MODES,
}
# Least values of the counts.
LEAST = {
    "num_steps": 1, "score_steps": 1, "batch_size": 2, "final_batch_factor": 1, "width": 1, "depth": 1, "restarts": 1,
    "precondition_steps": 1, "max_refine_steps": 1, "refine_limit": 0, "num_draws": 10,
}  # fmt: skip
POSITIVE = (
    "learning_rate", "dft_learning_rate", "score_learning_rate", "huber_scale", "noise", "noise_start", "gate",
    "full_data_budget",
)  # fmt: skip
# Seeds are integers from -SEEDS to below SEEDS.
SEEDS = 2**63


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a fit. Lengths are in whitened units (posterior sds of the Gaussian preconditioner).

    Attributes:
        objective: What the network is trained with. `"auto"` is the recipe: a Gaussian first, then KL training, and a DFT phase
            where `dft_fraction` asks for one, kept only where a measurement says that it helped. `"kl"` is KL training alone
            (KL-NS, arXiv 2306.04952) in the Gaussian's coordinates, `"dft"` is Theorem 1 of arXiv 2411.01453 (the full
            gradient of the Fisher divergence) there. `"dft-paper"` is Theorem 1 with alternating score matching and nothing
            else: no Gaussian, no refinement. `"fisher-partial"` is the first term of Theorem 1, a biased gradient, for
            comparison.
        num_steps: Generator steps in all phases together.
        dft_fraction: Share of `num_steps` that the DFT phase of objective `"auto"` takes, at the end. None by default: at equal
            cost, no form of it that was tried beat KL training (docs/experiments.md).
        settle_fraction: Share of the KL steps, at their end, with small rates, in which the score network catches up.
        score_steps: Score-network steps for each generator step.
        batch_size: Latent points z for each step; each is used with +eps and -eps.
        final_batch_factor: `batch_size` is multiplied by this in the DFT phase, where the gradient noise of order
            1/sigma is what limits it.
        width: Hidden units for each layer of the generator and of the score network.
        depth: Hidden layers of both networks.
        learning_rate: Adam rate of the generator under KL.
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
        train: `"auto"` skips the network where a Gaussian is measured to be right already; where it is not, but the
            chains gave all that is kept, the network is trained when raw draws, importance sampling, a file or a copy first
            need it. `"always"` trains it in the fit, `"never"` stops at the Gaussian.
        gate: `"auto"` skips the network when no coordinate of the Gaussian's draws moves by more than this (posterior
            sds, and log sds) under refinement.
        precondition: `"auto"` fits a Gaussian first and trains in its coordinates, `"never"` trains in those of the
            posterior; `"dft-paper"` never has one. Without it there is no search for modes either.
        restarts: Starting points of the Gaussian preconditioner for each chain.
        precondition_steps: Natural-gradient steps of the preconditioner.
        refine_steps: HMC transitions that refine a draw (default of `get_samples`; 0 serves raw draws). None finds
            them by the drift test: 2, doubled until as many transitions again move nothing.
        max_refine_steps: Limit of that search.
        leapfrog_steps: Leapfrog steps for each HMC transition. None takes as many as a quarter of a Gaussian's period needs
            with the step size that was found; 5 where `refine_steps` is given, and where the model subsamples its data.
        refine_limit: `get_samples(n)` with n above this is raw unless `refine_steps` is given.
        num_draws: Draws over all chains that are kept after the fit: the default of `get_samples`, `summary` and
            `to_inference_data`, and the fixed number at which the drift test is made.
        full_data_budget: Gradient evaluations times data rows that each of these may use when the model subsamples its
            data: the last steps of the Gaussian, and refinement with the drift test, whose number of draws shrinks to fit; 200
            may cost up to five times as much.
        max_gradients: Gradient evaluations of the model that a fit may take; None for as many as the recipe asks for. A fit that
            meets the limit ends with what it has, and says so; the least it takes is a short run of the chains.
        max_seconds: The same in wall seconds. A seed then gives other draws on a slower machine.
        compile: `"auto"` traces the batched potential into a flat graph where that works; `"never"` keeps eager mode.
            Pyro only: jax always compiles.
        reparam: `"auto"` also tries the non-centred form of location-scale sites and keeps the form whose Gaussian
            fit has the higher evidence bound; `"never"` takes the model's own coordinates.
        modes: `"auto"` trains a sampler for each of several separate modes that the restarts of the Gaussian ended at, and
            draws from them by weights from importance sampling; `"never"` takes the best one for each chain.
        seed: Seed of everything random in the fit, an integer of at most 63 bits, or None to draw one from the framework's
            generator.

    Example:
        >>> from pyro_dft import Settings
        >>> settings = Settings(num_steps=3000, width=192)
        >>> dft = DFT(model, settings=settings)  # the same as DFT(model, num_steps=3000, width=192)
        >>> dft.settings.num_steps
        3000
    """

    objective: str = "auto"
    num_steps: int = 1200
    dft_fraction: float = 0.0
    settle_fraction: float = 0.2
    score_steps: int = 2
    batch_size: int = 128
    final_batch_factor: int = 1
    width: int = 96
    depth: int = 2
    learning_rate: float = 3e-3
    dft_learning_rate: float = 3e-4
    score_learning_rate: float = 3e-3
    averaging: float = 0.0
    distance: str = "squared"
    huber_scale: float = 3.0
    noise: float = 0.1
    noise_mode: str = "constant"
    noise_start: float = 0.5
    train: str = "auto"
    gate: float = 0.08
    precondition: str = "auto"
    restarts: int = 6
    precondition_steps: int = 300
    refine_steps: int | None = None
    max_refine_steps: int = 64
    leapfrog_steps: int | None = None
    refine_limit: int = 20_000
    num_draws: int = 4000
    full_data_budget: float = 1e9
    max_gradients: int | None = None
    max_seconds: float | None = None
    compile: str = "auto"
    reparam: str = "auto"
    modes: str = "auto"
    seed: int | None = None

    def __post_init__(self) -> None:
        """Checks every value, and stores NumPy's numbers as plain ones; raises SettingsError naming the setting."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.generic):
                object.__setattr__(self, field.name, value.item())
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise SettingsError(
                    f"{name}={getattr(self, name)!r}: expected one of {', '.join(map(repr, allowed))}"
                )
        self._check_numbers()
        self._check_together()

    def _check_numbers(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not _is_integer(value) or value < least:
                raise SettingsError(f"{name}={value!r}: expected an integer of at least {least}")
        if self.refine_steps is not None and (not _is_integer(self.refine_steps) or self.refine_steps < 0):
            raise SettingsError(
                f"refine_steps={self.refine_steps!r}: expected an integer of at least 0, or None"
            )
        steps = self.leapfrog_steps
        if steps is not None and (not _is_integer(steps) or steps < 1):
            raise SettingsError(f"leapfrog_steps={steps!r}: expected an integer of at least 1, or None")
        for name in POSITIVE:
            value = getattr(self, name)
            if not _is_number(value) or not 0 < value < float("inf"):
                raise SettingsError(f"{name}={value!r}: expected a positive finite number")
        most = self.max_gradients
        if most is not None and (not _is_integer(most) or most < 1):
            raise SettingsError(f"max_gradients={most!r}: expected an integer of at least 1, or None")
        seconds = self.max_seconds
        if seconds is not None and (not _is_number(seconds) or not 0 < seconds < float("inf")):
            raise SettingsError(f"max_seconds={seconds!r}: expected a positive finite number, or None")
        for name in ("dft_fraction", "settle_fraction"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= 1:
                raise SettingsError(f"{name}={value!r}: expected a number from 0 to 1")
        if self.dft_fraction and self.objective != "auto":
            raise SettingsError(
                f'dft_fraction={self.dft_fraction!r} is a part of objective="auto", and objective={self.objective!r} has one '
                'phase only ("auto" is the recipe that was called "dft" before; "dft" is Theorem 1 alone)'
            )
        if not _is_number(self.averaging) or not 0 <= self.averaging < 1:
            raise SettingsError(f"averaging={self.averaging!r}: expected a number from 0 to below 1")
        if self.seed is not None and not (_is_integer(self.seed) and -SEEDS <= self.seed < SEEDS):
            raise SettingsError(f"seed={self.seed!r}: expected an integer of at most 63 bits, or None")

    def _check_together(self) -> None:
        """Raises where settings contradict each other."""
        if not self.preconditioned and self.train == "never":
            why = 'precondition="never"' if self.precondition == "never" else f"objective={self.objective!r}"
            raise SettingsError(f'{why} and train="never" leave nothing to draw from')
        if self.noise_mode == "levels" and self.preconditioned:
            raise SettingsError(
                'noise_mode="levels" needs precondition="never": its noise is in units of the target'
            )
        if self.noise_mode == "levels" and self.noise_start < self.noise:
            raise SettingsError(f"noise_start={self.noise_start!r} is below noise={self.noise!r}")

    def check_use(self) -> None:
        """Checks that each choice that was made has something to act on.

        Learning rates, sizes and budgets may be set for phases that this fit turns out not to need.

        Raises:
            SettingsError: a setting that differs from its default would change nothing.

        Example:
            >>> Settings(noise_start=1.0, noise_mode="annealed").check_use()
        """
        for name, needed in self._idle().items():
            raise SettingsError(f"{name}={getattr(self, name)!r} changes nothing here: it needs {needed}")

    def without_idle(self) -> Settings:
        """The same with the defaults of settings that change nothing beside the others, as early files can have them.

        Example:
            >>> Settings(train="never", gate=0.5).without_idle().gate
            0.08
        """
        defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: defaults[name] for name in self._idle()})

    def _idle(self) -> dict[str, str]:
        """Settings that are given and change nothing, with what they need."""
        acts = {
            "distance": (
                self._fisher,
                'a phase with a Fisher divergence: dft_fraction above 0, objective="dft", "dft-paper" or "fisher-partial"',
            ),
            "final_batch_factor": (self.dft_fraction > 0, "dft_fraction above 0"),
            "noise_start": (
                self.noise_mode in ("annealed", "levels"), 'noise_mode="annealed" or "levels"',
            ),
            "gate": (self.train == "auto" and self.preconditioned, 'train="auto" and a preconditioner'),
        }  # fmt: skip
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {
            name: needed
            for name, (does, needed) in acts.items()
            if not does and getattr(self, name) != defaults[name]
        }

    @property
    def _has_dft_phase(self) -> bool:
        return self.objective == "dft" or (self.objective == "auto" and self.dft_fraction > 0)

    @property
    def _fisher(self) -> bool:
        return self._has_dft_phase or self.objective in ("dft-paper", "fisher-partial")

    def check_minibatches(self) -> None:
        """Checks that the training can do with scores of random parts of the data.

        Raises:
            SettingsError: the distance is not the squared one. Two independent minibatches give an unbiased gradient of
                a distance that is quadratic in the score, and of no other: the slope of a pseudo-Huber distance at a noisy
                score is not the slope at its mean.

        Example:
            >>> Settings().check_minibatches()
        """
        if self.distance != "squared" and (self._has_dft_phase or self.objective == "dft-paper"):
            raise SettingsError(
                f'distance={self.distance!r} needs the full data: with minibatches only "squared" has an unbiased '
                "gradient. Drop subsample_size, or the distance"
            )

    @property
    def fixed_leapfrog_steps(self) -> int:
        """Leapfrog steps of transitions whose number does not follow from their step size.

        Example:
            >>> Settings().fixed_leapfrog_steps
            5
        """
        return 5 if self.leapfrog_steps is None else self.leapfrog_steps

    @property
    def preconditioned(self) -> bool:
        """Whether a Gaussian is fitted first.

        Example:
            >>> Settings(precondition="never").preconditioned
            False
        """
        return self.precondition == "auto" and self.objective != "dft-paper"

    @classmethod
    def from_kwargs(cls, **kwargs: Any) -> Settings:
        """Builds settings from keyword arguments.

        Raises:
            SettingsError: a name is unknown (the message lists the known ones) or a value is out of range.

        Example:
            >>> Settings.from_kwargs(noise=0.05).noise
            0.05
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


def check_names(names: Iterable[str], others: Iterable[str] = ()) -> None:
    """Checks that names are those of settings.

    Args:
        names: The names.
        others: Further names that the caller knows, to suggest in place of a misspelt one.

    Raises:
        SettingsError: a name is unknown; the message suggests the nearest and lists all settings.
    """
    known = sorted(field.name for field in dataclasses.fields(Settings))
    unknown = sorted(set(names) - set(known))
    if not unknown:
        return
    nearest = [difflib.get_close_matches(name, [*known, *others], 1) for name in unknown]
    described = [
        f"{name!r} (did you mean {near[0]!r}?)" if near else repr(name)
        for name, near in zip(unknown, nearest, strict=True)
    ]
    raise SettingsError(f"unknown setting {', '.join(described)}; the settings are: {', '.join(known)}")


def check_count(name: str, value: Any, least: int, error: type[ValueError] = ValueError) -> None:
    """Raises `error` where a value is no integer, or below the least."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise error(f"{name}={value!r}: expected an integer of at least {least}")
