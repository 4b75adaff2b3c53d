"""Keeps jax and BLAS to one thread, for whoever imports this before they are imported.

jaxlib can deadlock in batched Cholesky factors on machines with few cores, CPU seconds are then those of one core, and sums are
taken in one order whatever the number of cores.
"""

from __future__ import annotations

import os

for _name in ("NPROC", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
