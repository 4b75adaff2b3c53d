"""What is compared: the stages of a training and the settings that differ from the default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyro_dft.recipe.constants import SETTLING_SCORE

STEPS, SHARE = 1200, 0.2


@dataclass(frozen=True)
class Stage:
    """A run of steps of one phase.

    Attributes:
        phase: "kl", "dft" (after a warm start) or "dft-paper" (the same loss from the start).
        count: Steps that are made.
        first: Steps of the phase that its learning rates take to be behind.
        length: Steps of the phase in all, which sets the learning rates.
        settings: Settings of this stage alone.
    """

    phase: str
    count: int
    first: int
    length: int
    settings: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: Key on the command line.
        what: A sentence for the report.
        stages: In order; none leaves the Gaussian as it is.
        settings: Settings that differ from the default.
    """

    name: str
    what: str
    stages: tuple[Stage, ...]
    settings: dict[str, Any] = field(default_factory=dict)


# What every variant starts from: no settling at the end of KL, which these experiments led to, and a DFT phase at 3e-4.
BASE = {"settle_fraction": 0.0, "dft_learning_rate": 3e-4 / SETTLING_SCORE}


def rate(value: float) -> float:
    """The setting for which the DFT phase after KL has this rate."""
    return value / SETTLING_SCORE


def only(phase: str, steps: int = STEPS) -> tuple[Stage, ...]:
    """One phase from start to end."""
    return (Stage(phase, steps, 0, steps),)


def then_dft(share: float = SHARE, **settings: Any) -> tuple[Stage, ...]:
    """KL, then a DFT phase of this share of the steps: what `objective="auto"` does before it measures."""
    end = round(STEPS * share)
    return (Stage("kl", STEPS - end, 0, STEPS - end), Stage("dft", end, 0, end, tuple(settings.items())))


def slow_kl_end(**settings: Any) -> tuple[Stage, ...]:
    """The control of "dft-slow": the same stages and rates, with the KL gradient in place of that of DFT."""
    end, rates = round(STEPS * SHARE), {"learning_rate": 1e-4, "score_learning_rate": 9e-4}
    own = tuple((rates | settings).items())
    return (Stage("kl", STEPS - end, 0, STEPS - end), Stage("kl", end, 0, end, own))


def kl_end(**settings: Any) -> tuple[Stage, ...]:
    """KL with other settings in the steps in which the DFT phase would be made."""
    end = round(STEPS * SHARE)
    return (
        Stage("kl", STEPS - end, 0, STEPS),
        Stage("kl", end, STEPS - end, STEPS, tuple(settings.items())),
    )


# The same stages, rates and batches, with the gradient of DFT in the one and that of KL in the other.
PAIRS = (
    ("dft-slow", "kl-slow"),
    ("dft-score4", "kl-score4"),
    ("dft-slow-score4", "kl-slow-score4"),
    ("dft-batch4", "kl-batch4"),
    ("dft-slow", "kl-1.3x"),
    ("dft-learned", "kl-learned"),
    ("dft-thin", "kl-thin"),
    ("dft-annealed", "kl-annealed"),
)

VARIANTS: dict[str, Variant] = {
    v.name: v
    for v in (
        Variant("gaussian", "the Gaussian alone", ()),
        Variant("kl", "KL throughout", only("kl")),
        Variant("kl-1.3x", "KL, 1.3 times the steps", only("kl", round(1.3 * STEPS))),
        Variant("kl-2x", "KL, twice the steps", only("kl", 2 * STEPS)),
        Variant("dft", "80 % KL, 20 % DFT, never rolled back", then_dft()),
        Variant("dft-40", "60 % KL, 40 % DFT", then_dft(0.4)),
        Variant("dft-fast", "dft with its rate 1e-3", then_dft(), {"dft_learning_rate": rate(1e-3)}),
        Variant("dft-slow", "dft with its rate 1e-4", then_dft(), {"dft_learning_rate": rate(1e-4)}),
        Variant("kl-slow", "KL, its last 20 % with the rates of dft-slow", slow_kl_end()),
        Variant("dft-slow-40", "60 % KL, 40 % DFT, rate 1e-4", then_dft(0.4), {"dft_learning_rate": rate(1e-4)}),
        Variant(
            "dft-slow-batch4", "dft-slow with 4 times the batch", then_dft(),
            {"dft_learning_rate": rate(1e-4), "final_batch_factor": 4},
        ),
        Variant("dft-huber", "dft with the pseudo-Huber distance", then_dft(), {"distance": "pseudo-huber"}),
        Variant("dft-batch4", "dft with 4 times the batch", then_dft(), {"final_batch_factor": 4}),
        Variant("kl-batch4", "KL, 4 times the batch in the last 20 %", kl_end(batch_size=512)),
        Variant("dft-score4", "dft with 4 times the score steps", then_dft(score_steps=8)),
        Variant("kl-score4", "KL, 4 times the score steps in the last 20 %", kl_end(score_steps=8)),
        Variant(
            "dft-slow-score4", "dft-slow with 4 times the score steps", then_dft(score_steps=8),
            {"dft_learning_rate": rate(1e-4)},
        ),
        Variant("kl-slow-score4", "kl-slow with 4 times the score steps", slow_kl_end(score_steps=8)),
        Variant(
            "dft-start", "DFT from the start, rate 3e-4, whitened", only("dft-paper"), {"dft_learning_rate": 3e-4},
        ),
        Variant("kl-learned", "KL, learned noise", only("kl"), {"noise_mode": "learned"}),
        Variant("dft-learned", "dft, learned noise", then_dft(), {"noise_mode": "learned"}),
        Variant("kl-thin", "KL, noise .05", only("kl"), {"noise": 0.05}),
        Variant("dft-thin", "dft, noise .05", then_dft(), {"noise": 0.05}),
        Variant("kl-annealed", "KL, noise annealed from .5 to .1", only("kl"), {"noise_mode": "annealed"}),
        Variant("dft-annealed", "dft, noise annealed from .5 to .1", then_dft(), {"noise_mode": "annealed"}),
    )
}  # fmt: skip
