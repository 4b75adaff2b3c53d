"""Is there enough memory for what was asked for? Asked before anything is allocated."""

from __future__ import annotations

import os
from pathlib import Path

from pyro_dft.errors import SettingsError
from pyro_dft.settings import Settings

# Needs below this (bytes) are not checked.
SMALL = 1e8
# Where a container may set limits of its own: (limit, usage).
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available() -> float:
    """Bytes of the host's memory that this process may still take; infinite where the system does not say."""
    free = _number("/proc/meminfo", "MemAvailable:", 1024)
    if free is None:
        try:
            free = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        except (AttributeError, ValueError, OSError):
            free = float("inf")
    for limit, usage in _LIMITS:
        most, used = _number(limit), _number(usage)
        if most is not None and used is not None:
            free = min(free, max(0.0, most - used))
    return free


def _number(path: str, label: str = "", unit: int = 1) -> float | None:
    """The number behind a label in a small file of the system; None where there is none."""
    try:
        words = Path(path).read_text().split()
        return float(words[words.index(label) + 1 if label else 0]) * unit
    except (OSError, ValueError, IndexError):
        return None


def check_draws(count: int, numbers: int, itemsize: int) -> None:
    """Checks that draws fit into the memory.

    Args:
        count: Draws over all chains.
        numbers: Numbers that one draw holds.
        itemsize: Bytes of one of them.

    Raises:
        MemoryError: they do not; the message advises to take fewer at a time.
    """
    # The blocks that draws are made in, and the array that these are joined to.
    needed = 2.0 * count * numbers * itemsize
    if needed > SMALL and needed > (free := available()):
        raise MemoryError(
            f"{count} draws need about {_size(needed)} of memory, and {_size(free)} are free: take fewer at a time"
        )


def check_fit(settings: Settings, chains: int, dim: int, itemsize: int) -> None:
    """Checks that a fit with these sizes fits into the memory.

    Args:
        settings: Of the fit.
        chains: Number of samplers.
        dim: Coordinates of the posterior.
        itemsize: Bytes of a number of the posterior's dtype.

    Raises:
        SettingsError: the largest part does not; the message names its setting.
    """
    s = settings
    batch = 2 * s.batch_size * max(1, s.experimental.final_batch_factor if s.experimental.dft_fraction else 1)
    needed = {
        # Raw draws, those half-way and refined ones.
        "num_draws": 3.0 * s.num_draws * dim * itemsize,
        # Means and square roots in double precision.
        "restarts": 2.0 * chains * s.restarts * dim * (dim + 1) * 8,
    }
    if s.train != "never":
        # The batch in and out of two networks, with what the backward pass keeps.
        needed["batch_size"] = 2.0 * chains * batch * (2 * dim + s.width * s.depth) * itemsize
        # Weights of two networks, their gradients and the two moments of Adam.
        needed["width"] = 8.0 * chains * s.width * (2 * dim + s.width * (s.depth - 1)) * itemsize
    name, most = max(needed.items(), key=lambda item: item[1])
    if most > SMALL and most > (free := available()):
        raise SettingsError(
            f"{name}={getattr(s, name)!r}: with {dim} coordinates and {chains} chains that needs about {_size(most)} of "
            f"memory, and {_size(free)} are free"
        )


def _size(number: float) -> str:
    for unit in ("kB", "MB", "GB"):
        number /= 1000
        if number < 1000:
            return f"{number:.0f} {unit}"
    return f"{number / 1000:.3g} TB"
