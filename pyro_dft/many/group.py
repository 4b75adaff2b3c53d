"""What a front door does for many posteriors: data sets of one shape, whose evaluations are answered together."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from pyro_dft.interface.training import Training
from pyro_dft.many.data import Arguments
from pyro_dft.many.padding import Rows


class NotStackable(Exception):
    """Data sets of one shape cannot be served by one program; the text says why."""


def trained(training: Training) -> Training:
    """Reads the data of a member of a group, trains and measures it, inside a pool."""
    training.backend.read(*training.arguments)
    trainer = training.trainer = training.backend.start()
    trainer.lazy = not training.options.brings_networks
    while not trainer.done:
        trainer.step()
    training.finish()
    return training


class Group(Protocol):
    """Data sets of one shape.

    Attributes:
        width: How many fits should be in progress at once.
    """

    width: int

    def with_sets(self, sets: list[Arguments]) -> Group:
        """The same for other data sets of the same shape: what was compiled serves again."""

    def member(self, place: int, words: tuple[int, ...]) -> Training:
        """The training of one of the data sets, which is not read yet.

        Args:
            place: Which one.
            words: What its random numbers follow from.
        """

    def surroundings(self) -> AbstractContextManager[Any]:
        """What must be in force in the thread of each fit."""

    def answer(self, key: Any, payloads: list[Any]) -> list[Any]:
        """See `pyro_dft.many.pool.Pool`."""

    def full(self, key: Any) -> int:
        """See `pyro_dft.many.pool.Pool`."""


class FrontDoor(Protocol):
    """The module ``many`` of a front door."""

    def Group(self, model: Any, sets: list[Arguments], options: dict[str, Any]) -> Group:  # noqa: N802
        """A group.

        Raises:
            NotStackable: it has to be done one by one.
            ModelError: the model cannot be used.
        """

    def alone(self, model: Any, words: tuple[int, ...], options: dict[str, Any]) -> Training:
        """A training that is run by itself."""

    def native(self, own: Arguments) -> Arguments:
        """Arguments with arrays of the framework."""

    def rows(self, model: Any, own: Arguments, longer: Arguments, mask: str) -> Rows:
        """What of a model follows the rows of its data, from data of two lengths; `mask` is the argument that tells padding."""

    def freed(self, model: Any, found: Rows, mask: str) -> Any:
        """The model whose latent variables of rows that are padding have priors that nothing moves."""
