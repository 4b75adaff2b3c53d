"""Errors and warnings that users of pyro_dft can catch by name.

The traceback of an error ends with the address of the page that explains it (a note, PEP 678; not part of its text).
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator

from pyro_dft import links

# What Python, NumPy and the engines raise on content that is not what was written.
UNUSABLE = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


class _Explained(Exception):
    def __init__(self, *args: object):
        super().__init__(*args)
        self.add_note(f"Explained at {links.page('errors', type(self).__name__.lower())}")


class ModelError(_Explained, ValueError):
    """The model or potential cannot be used: the message names the site or argument.

    Example:
        >>> from pyro_dft import ModelError
        >>> try:
        ...     DFT(model, potential_fn=lambda z: 0.0)
        ... except ModelError as error:
        ...     print(error)
        give either a model or potential_fn, and not both
    """

    nothing_to_infer = (
        False  # whether that is all: there is no continuous latent number, as `DFTKernel` allows
    )


class SettingsError(_Explained, ValueError):
    """A setting has an unknown name or a value outside its range.

    Example:
        >>> from pyro_dft import Settings, SettingsError
        >>> try:
        ...     Settings(learning_rate=-0.1)
        ... except SettingsError as error:
        ...     print(error)
        learning_rate=-0.1: expected a positive finite number
    """


class NotFittedError(_Explained, RuntimeError):
    """Draws or diagnostics were asked for before the sampler was trained.

    Example:
        >>> from pyro_dft import NotFittedError
        >>> try:
        ...     DFT(model).get_samples()
        ... except NotFittedError as error:
        ...     print(error)
        the sampler is not trained yet: call run(...) first
    """


class StorageError(_Explained, ValueError):
    """A saved file cannot be trusted: truncated, of another model, or of another version.

    Example:
        >>> import pathlib, tempfile
        >>> from pyro_dft import StorageError
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "sampler.safetensors"
        >>> _ = path.write_bytes(b"not a sampler")
        >>> try:
        ...     DFT.load(path, model)
        ... except StorageError as error:
        ...     print("refused")
        refused
    """


class FidelityWarning(UserWarning):
    """The fit is doubtful: a diagnostic passed its threshold; the message says what to try, and where to read more.

    Example:
        To treat a doubtful fit as an error:

        >>> import warnings
        >>> from pyro_dft import FidelityWarning
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", FidelityWarning)
        ...     report = dft.diagnostics()  # dft.run(...) in your code
        >>> report["status"]
        'converged'
    """


class PerformanceWarning(UserWarning):
    """Something forces a slow path; the message says what it costs.

    Example:
        >>> import warnings
        >>> from pyro_dft import PerformanceWarning
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", PerformanceWarning)
        ...     number = len(dft.get_samples()["mu"])  # dft.run(...) in your code
    """


def warn(text: str, category: type[Warning]) -> None:
    """Warns at the line of the user's own call: the innermost one outside this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)


def _is_ours(module: str) -> bool:
    # A function with a context manager for a decorator is called by that one's module.
    return module == "contextlib" or module.split(".")[0] == "pyro_dft"


def first_line(error: BaseException) -> str:
    """The type of an error and the first line of its text."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], what: str = "its header cannot be used") -> Iterator[None]:
    """Whatever the content of a file makes the code inside raise becomes a `StorageError`.

    Args:
        path: the file, for the message.
        what: what is wrong, for the message.

    Raises:
        StorageError: as above; one that is raised inside passes as it is.
    """
    try:
        yield
    except StorageError:
        raise
    except UNUSABLE as error:
        text = str(error).splitlines()[0] if str(error) else ""
        raise StorageError(f"{path}: {what} ({type(error).__name__}: {text})") from error
