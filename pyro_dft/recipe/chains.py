"""States of many chains, as an engine's blocks of transitions leave them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from pyro_dft.recipe.constants import TARGET_ACCEPTANCE

# What is recorded of the transitions behind each draw, (C, n) each: the acceptance probability, averaged over the last run of
# them, and the kinetic energy at the end, in whitened coordinates.
STATISTICS = ("acceptance_rate", "kinetic")


class Dynamics(NamedTuple):
    """How Hamiltonian Monte Carlo moves the particles of G samplers.

    Attributes:
        scale: (G, d, d), or (G, d), maps whitened to unconstrained coordinates; masses are one in whitened ones.
        step_size: Leapfrog step size of each sampler in whitened units, (G,).
        leapfrog_steps: Leapfrog steps in each transition.
        tune: First rate of the adaptation of the step size; 0 leaves it as it is.
        acceptance: Acceptance probability that the adaptation aims at.
    """

    scale: Any
    step_size: Any
    leapfrog_steps: Any
    tune: Any = 0.0
    acceptance: Any = TARGET_ACCEPTANCE


@dataclass(frozen=True)
class Block:
    """Some transitions of P particles for each of G samplers; native arrays.

    Attributes:
        position: Where it ended, in the engine's own form, to go on from.
        x: States after each of the T transitions, (G, P, T, d).
        log_density: Their log densities, (G, P, T).
        score: Their scores, (G, P, T, d).
        acceptance: Acceptance probabilities, (G, P, T).
        moved: Whether a transition was accepted, (G, P, T).
        diverged: Whether its energy error was beyond `MAX_ENERGY_ERROR`, (G, P, T).
        kinetic: Kinetic energies that the states end with, (G, P, T).
        step_size: Leapfrog step sizes, (G,), adapted where that was asked for.
    """

    position: Any
    x: Any
    log_density: Any
    score: Any
    acceptance: Any
    moved: Any
    diverged: Any
    kinetic: Any
    step_size: Any
