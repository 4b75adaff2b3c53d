"""Is this fit good? NumPy in, NumPy out: the tests of :mod:`pyro_dft.verdict`, under one roof.

The drift test (draws before against draws after MCMC steps that leave the target as it is) lives in
:mod:`pyro_dft.drift`, the kernel Stein discrepancy (draws against the target's score) in :mod:`pyro_dft.stein`,
what concerns several restarts or modes in :mod:`pyro_dft.optima`, importance weights in :mod:`pyro_dft.psis`,
chains in :mod:`pyro_dft.convergence`; their names can be imported from here.

All of them are blind to a mode that no draw has visited. Only disagreement between restarts or chains shows
that.
"""

from __future__ import annotations

from pyro_dft.convergence import ess, rhat
from pyro_dft.drift import Drift, drift
from pyro_dft.optima import ModeCoverage, Optima, distinct_optima, mode_coverage
from pyro_dft.psis import PSIS, khat_threshold, psis
from pyro_dft.stein import KSD, ksd

__all__ = [
    "KSD",
    "PSIS",
    "Drift",
    "ModeCoverage",
    "Optima",
    "distinct_optima",
    "drift",
    "ess",
    "khat_threshold",
    "ksd",
    "mode_coverage",
    "psis",
    "rhat",
]
