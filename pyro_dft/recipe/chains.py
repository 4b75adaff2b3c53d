"""States of many chains, as an engine's blocks of transitions leave them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Block:
    """Some transitions of P particles for each of G samplers; native arrays.

    Attributes:
        position: Where it ended, in the engine's own form, to go on from.
        x: States after each transition, (G, P, T, d).
        log_density: Their log densities, (G, P, T).
        score: Their scores, (G, P, T, d).
        acceptance: Acceptance probabilities, (G, P, T).
        moved: Whether a transition was accepted, (G, P, T).
        diverged: Whether its energy error was beyond `MAX_ENERGY_ERROR`, (G, P, T).
        step_size: Leapfrog steps, (G,), tuned where that was asked for.
    """

    position: Any
    x: Any
    log_density: Any
    score: Any
    acceptance: Any
    moved: Any
    diverged: Any
    step_size: Any
