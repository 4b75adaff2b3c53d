"""Which coordinates the chains run in, where the bounds of the Gaussians do not tell."""

from __future__ import annotations

from collections.abc import Callable

from pyro_dft.recipe.fit import Fit
from pyro_dft.recipe.particles import Particles
from pyro_dft.recipe.subject import Subject

# How much of the gradients that a limit leaves the others may take.
SHARE = 0.25


def begun(
    fit: Fit, rival: Callable[[], Fit | None], subject: Callable[[Fit], Subject]
) -> tuple[Particles, Fit]:
    """Particles that have run their first window: others are tried, in other coordinates, where these do badly there.

    A Gaussian that misses a narrow neck loses next to nothing by it, and is as wide as one in coordinates without a neck: but in
    those chains take steps that are several times as long.

    Args:
        fit: In the coordinates with the highest bound.
        rival: Gives one in others; None where there are none.
        subject: What is to be measured of a fit.

    Returns:
        The particles that are expected to cost less, and the fit that they belong to.
    """
    particles = Particles(subject(fit))
    particles.begin()
    affordable = particles.spent <= SHARE * particles.budget.left
    other = rival() if particles.struggling and affordable else None
    if other is None:
        return particles, fit
    others = Particles(subject(other))
    others.begin()
    return (others, other) if others.efficiency > particles.efficiency else (particles, fit)
