"""Which chains are run: across modes whose weights are doubtful, or in the coordinates that they do best in."""

from __future__ import annotations

from collections.abc import Callable

from pyro_dft.recipe import across
from pyro_dft.recipe.fit import Fit
from pyro_dft.recipe.measure import Measurement
from pyro_dft.recipe.measure_chains import measure_by_chains
from pyro_dft.recipe.particles import Particles
from pyro_dft.recipe.subject import Subject

# How much of the gradients that a limit leaves the others may take.
SHARE = 0.25


def measured_by_chains(
    fit: Fit, rival: Callable[[], Fit | None], subject: Callable[[Fit], Subject]
) -> tuple[Measurement, Fit]:
    """What chains show of a sampler, and the fit that they belong to: see `begun` for the arguments."""
    found = across.measured(fit, subject)
    if found is not None:
        return found
    particles, fit = begun(fit, rival, subject)
    return measure_by_chains(particles), fit


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
