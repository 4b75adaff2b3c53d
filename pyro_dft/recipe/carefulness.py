"""How small the steps of chains get where transitions diverge."""

from __future__ import annotations

from pyro_dft.judging.divergences import too_many
from pyro_dft.recipe.constants import TARGET_ACCEPTANCE

# Where a larger share of transitions diverges than the verdict takes, the next window has smaller steps.
CAREFUL_ACCEPTANCES = (0.95, 0.99)
# Smaller steps are in vain where they leave so much of the share: steps of any size meet a density that cannot be computed, or an
# edge of it.
IN_VAIN = 0.9
# A smaller share is no more than chance.
SOME = 0.005


class Carefulness:
    """What windows say of the size of steps.

    With the smallest ones, what still diverges is no hindrance to the chains, which are exact, but the verdict tells of it.

    Attributes:
        acceptance: Acceptance probability that steps are tuned to.
    """

    def __init__(self) -> None:
        self.acceptance = TARGET_ACCEPTANCE
        self._before: float | None = None
        self._now = 0.0
        self._relented = False

    def saw(self, diverged: float) -> None:
        """Takes note of the share of a window's transitions that diverged."""
        self._now = diverged

    @property
    def next(self) -> float | None:
        """The acceptance of smaller steps; None where these are the smallest, or smaller ones would be in vain."""
        smaller = [a for a in CAREFUL_ACCEPTANCES if a > self.acceptance]
        return smaller[0] if smaller and not self.in_vain else None

    @property
    def in_vain(self) -> bool:
        """Whether smaller steps have left the share as it was."""
        return self._before is not None and self._now > max(IN_VAIN * self._before, SOME)

    def due(self, diverged: float, transitions: int) -> bool:
        """Whether a window of so many transitions, of which a share diverged, calls for smaller steps.

        Where steps were smaller before, any that diverged does: it was no matter of scales.
        """
        if self.next is None:
            return False
        again = self._relented and self.acceptance == TARGET_ACCEPTANCE
        return (diverged > 0) if again else too_many(diverged, transitions)

    def go_on(self) -> None:
        """From now on steps are smaller."""
        if (following := self.next) is not None:
            self._before, self._now, self.acceptance = self._now, 0.0, following

    def relent(self) -> bool:
        """Whether steps have their usual size again: once, where none of a window diverged with the first smaller ones.

        What diverged may have done so before scales were adapted to where the particles are.
        """
        smaller = self.acceptance == CAREFUL_ACCEPTANCES[0]
        if self._relented or not smaller or self._now > 0:
            return False
        self._relented, self._before, self.acceptance = True, None, TARGET_ACCEPTANCE
        return True
