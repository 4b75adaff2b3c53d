"""Errors and warnings that users of pyro_dft can catch by name."""

from __future__ import annotations


class ModelError(ValueError):
    """The model or potential cannot be used: the message names the site or argument."""


class SettingsError(ValueError):
    """A setting has an unknown name or a value outside its range."""


class NotFittedError(RuntimeError):
    """Draws or diagnostics were asked for before the sampler was trained."""


class StorageError(ValueError):
    """A saved file cannot be trusted: truncated, of another model, or of another version."""


class FidelityWarning(UserWarning):
    """The fit is doubtful: a diagnostic passed its threshold; the message says what to try."""


class PerformanceWarning(UserWarning):
    """Something forces a slow path; the message says what it costs."""
