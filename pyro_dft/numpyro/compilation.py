"""Compiled programs that outlive the process."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def enable_compilation_cache(folder: str | os.PathLike[str] | None = None) -> Path:
    """Keeps compiled programs on disk, for all later fits of this process and of others.

    Most of the time of a small fit is compilation, and its programs are the same in each process. jax by itself keeps no
    program that compiled in under a second, which is all of ours, so its threshold is lowered too. Like
    `numpyro.enable_x64`, this changes jax for the whole process; call it once, before the first fit.

    Args:
        folder: Where programs are kept, made if it is not there. None takes `~/.cache/pyro_dft`.

    Returns:
        The folder.

    Example:
        >>> import tempfile
        >>> from pyro_dft.numpyro import enable_compilation_cache
        >>> enable_compilation_cache(tempfile.mkdtemp()).exists()
        True
    """
    path = Path(folder) if folder is not None else Path.home() / ".cache" / "pyro_dft"
    path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return path
