"""Errors of a model that is evaluated point by point: is the density zero there, or is the model broken?"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from pyro_dft import messages
from pyro_dft.errors import first_line

# Errors that a model may raise because its density is zero at a point, as checks of values do.
CHECKS = (ValueError, ArithmeticError, AssertionError)
ERRORS = (RuntimeError, *CHECKS)
# Folders whose lines are not shown to the user: he cannot change them.
_NOT_THE_MODEL = tuple(f"{os.sep}{name}{os.sep}" for name in ("torch", "pyro_dft"))


def culprit(error: BaseException) -> str:
    """What cannot be done for a batch, and the line of the model, or of Pyro, that does it, in words."""
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not any(n in f.filename for n in _NOT_THE_MODEL)
    ]
    text = first_line(error)
    text = text if len(text) <= 120 else text[:117] + "..."
    if not frames:
        return text
    where = frames[-1]
    return f"{os.path.basename(where.filename)}, line {where.lineno}: `{where.line}` gives {text}"


class Failures:
    """Tells the two apart: a broken model raises where it has worked before.

    Args:
        potential: Of one point.
        context: Gives a context manager to hold around each evaluation.

    Attributes:
        evaluations: How often the potential was called.
    """

    def __init__(self, potential: Callable[[Tensor], Tensor], context: Callable[[], AbstractContextManager]):
        self.potential, self.context = potential, context
        self.evaluations = 0
        self._known: Tensor | None = None
        self._in_a_row = 0

    def worked(self, point: Tensor) -> None:
        """Takes note of a point at which there was no error."""
        self._in_a_row = 0
        if self._known is None:
            self._known = point.detach().clone()

    def check(self, error: Exception) -> None:
        """Returns where an error may mean zero density.

        Raises:
            ModelError: the model is broken: no numbers are to blame, or it fails now where it worked before.
        """
        if isinstance(error, RuntimeError) and not isinstance(error, torch.linalg.LinAlgError):
            raise messages.model_raised(first_line(error), self.evaluations) from error
        self._in_a_row += 1
        # After 1, 2, 4, 8, ... failures in a row: that costs next to nothing.
        if self._known is None or self._in_a_row & (self._in_a_row - 1):
            return
        try:
            with self.context(), torch.no_grad():
                self.potential(self._known)
        except ERRORS as again:
            raise messages.model_raised(first_line(again), self.evaluations) from again
