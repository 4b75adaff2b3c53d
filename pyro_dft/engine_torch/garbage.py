"""Memory that only Python's collector of circles gives back."""

from __future__ import annotations

import gc
import os

from pyro_dft.recipe.memory import CPU_BYTES


def resident() -> int | None:
    """Bytes of memory that this process has in use; None where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def collected(before: int) -> int:
    """Collects garbage where memory has grown since the last time: that takes as long as there are objects, dead or alive.

    Args:
        before: What was in use after the last collection.

    Returns:
        What is in use after this one, or `before` where there was nothing to do.
    """
    now = resident()
    if now is not None and now < before + CPU_BYTES:
        return before
    gc.collect()
    return resident() or 0
