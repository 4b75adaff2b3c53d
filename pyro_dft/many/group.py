"""What a front door does for many posteriors: data sets of one shape, whose evaluations are answered together."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from pyro_dft.errors import ModelError
from pyro_dft.interface.backend import Backend
from pyro_dft.interface.exclusive import exclusive
from pyro_dft.interface.options import Options
from pyro_dft.interface.training import Training
from pyro_dft.many.calls import width
from pyro_dft.many.data import Arguments
from pyro_dft.many.gaussians import shared
from pyro_dft.many.padding import Rows
from pyro_dft.models import circular
from pyro_dft.recipe.trainer import Trainer


class NotStackable(Exception):
    """Data sets of one shape cannot be served by one program; the text says why."""


def trained(training: Training) -> Training:
    """Reads the data of a member of a group, trains and measures it, inside a pool."""
    training.backend.read(*training.arguments)
    trainer = training.trainer = training.backend.start()
    trainer.lazy, trainer.kept_alone = not training.options.brings_networks, True
    while not trainer.done:
        trainer.step()
    training.finish()
    return training


class Group(ABC):
    """Data sets of one shape.

    Args:
        model: The model.
        sets: Arguments of each.
        options: Options of the `DFT`.

    Attributes:
        posteriors: The posterior of one data set, in each set of coordinates: `with_data` gives that of another one.
        targets: The target of each.
        stacks: What evaluates each for all data sets.
        width: How many fits should be in progress at once.

    Raises:
        NotStackable: they have to be done one by one.
        ModelError: the model cannot be used.
    """

    posteriors: list[Any]
    targets: list[Any]
    stacks: list[Any]

    def __init__(self, model: Callable[..., Any], sets: list[Arguments], options: dict[str, Any]):
        self.model, self.sets, self.options = model, sets, options
        with exclusive(), self.surroundings():
            self.compile()
        self.width = width(self.posteriors[0].dim, self.stacks[0].at_once(64))

    @abstractmethod
    def compile(self) -> None:
        """Makes posteriors, targets and stacks."""

    def template(self, make: Callable[[Arguments], Any]) -> Any:
        """The posterior of the first data set that can be used; what is wrong with the others is said of them alone."""
        first = None
        for own in self.sets[:3]:
            try:
                return make(own)
            except ModelError as error:
                first = first or error
        assert first is not None
        raise first

    def in_all_coordinates(self, own: Any) -> list[Any]:
        """A posterior in the model's own coordinates and, where there are any, in the wholly non-centred ones."""
        if any(site.transform == circular.NAME for site in own.layout.sites):
            raise NotStackable("coordinates of angles are centred at a mode of each posterior")
        settings, movable = self.options["settings"], own.noncentering_candidates()
        apart = movable and settings.reparam == "auto" and settings.preconditioned
        return [own, own.noncentered(movable)] if apart else [own]

    def arrays(self) -> list[list[Any]]:
        """The arrays of each data set."""
        return [self.posteriors[0].with_data(own).arrays for own in self.sets]

    def with_sets(self, sets: list[Arguments]) -> Group:
        """The same for other data sets of the same shape: what was compiled serves again."""
        other = copy.copy(self)
        other.sets = sets
        data = other.arrays()
        other.stacks = [stack.with_data(data) for stack in self.stacks]
        return other

    @abstractmethod
    def member(self, place: int, words: tuple[int, ...]) -> Training:
        """The training of one of the data sets, which is not read yet.

        Args:
            place: Which one.
            words: What its random numbers follow from.
        """

    @abstractmethod
    def surroundings(self) -> AbstractContextManager[Any]:
        """What must be in force where a member is fitted, or a model evaluated."""

    def answer(self, key: Any, payloads: list[Any]) -> list[Any]:
        """See `pyro_dft.many.pool.Pool`."""
        stack, kind, *rest = key
        with exclusive(), self.surroundings():
            return stack.answer(kind, rest, payloads)

    def full(self, key: Any) -> int:
        """See `pyro_dft.many.pool.Pool`."""
        stack, kind, *rest = key
        return stack.full(kind, rest)


class Member(Backend):
    """One data set of a group; a front door adds its own backend behind it.

    Args:
        options: Of the sampler.
        group: The group.
        place: Which of its data sets.
    """

    def __init__(self, options: Options, group: Any, place: int):
        super().__init__(options)
        self.group, self.place, self.engine = group, place, group.engine

    def start(self) -> Trainer:
        """See the base class."""
        return shared(super().start())


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
