"""One Pyro model over many data sets: see `pyro_dft.many`."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_dft import messages
from pyro_dft.engine_torch.stacked import MemberTarget, Stack, StackedEngine
from pyro_dft.engine_torch.target import Target
from pyro_dft.interface.options import Options
from pyro_dft.interface.training import Training
from pyro_dft.many import group
from pyro_dft.many.data import Arguments, is_array, leaves, mapped
from pyro_dft.many.group import NotStackable
from pyro_dft.many.results import ManyFits
from pyro_dft.many.run import SLICE
from pyro_dft.many.run import fit_many as _fit_many
from pyro_dft.models.options import MODEL_ERRORS
from pyro_dft.pyro.backend import CALLBACK, PyroBackend
from pyro_dft.pyro.dft import DFT
from pyro_dft.pyro.evaluation import patched
from pyro_dft.pyro.model import PyroProblem
from pyro_dft.pyro.padding import freed as freed
from pyro_dft.pyro.padding import rows as rows
from pyro_dft.recipe.fit import Problem
from pyro_dft.settings import Settings

# How often starting points are proposed before giving up.
MOST_TRIES = 100


class StackedProblem(PyroProblem):
    """The posterior of a model for one data set of a stack; everything but the data is that of the first one."""

    def with_data(self, own: Arguments) -> StackedProblem:
        """The same with other data."""
        other = copy.copy(self)
        other.args, other.kwargs = own
        return other

    @property
    def arrays(self) -> list[Tensor]:
        """The tensors among the arguments, in order."""
        return [leaf for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    def potential_of(self, x: Tensor, *arrays: Tensor) -> Tensor:
        """The potential of one point with other data in the place of these."""
        before, data = (self.args, self.kwargs), iter(arrays)
        self.args, self.kwargs = mapped(before, lambda leaf: next(data) if isinstance(leaf, Tensor) else leaf)
        try:
            return self.potential(x)
        finally:
            self.args, self.kwargs = before

    def propose(self, n: int, rng: torch.Generator, init_strategy: Callable[..., Any] | None) -> Tensor:
        """Points (n, d) to start from."""
        if init_strategy is None:
            return self._box(n, 2.0, rng)
        with _seeded(rng):
            return self._by_strategy(n, init_strategy)

    def observed(self) -> dict[str, Tensor]:
        """Observed data by site, all rows."""
        with patched(), torch.no_grad():
            trace = self.run(self._place(self._prototype)[0])
        return {name: trace.nodes[name]["value"] for name in self.structure.observed}


@contextmanager
def _seeded(rng: torch.Generator) -> Iterator[None]:
    """Torch's global generator follows from another one, and is put back."""
    seed = int(torch.randint(2**31 - 1, (), generator=rng, device=rng.device))
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        yield


class Member(group.Member, PyroBackend):
    """One data set of a group."""

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int | None = None) -> None:
        """See the base class."""
        own, seed = self.group, int(self.options.settings.seed or 0)
        self._home, self.amounts = own.posteriors[0].device, {}
        self.rng = torch.Generator(self._home).manual_seed(seed)
        self.callback_rng = torch.Generator(self._home).manual_seed(seed + CALLBACK)
        self.posteriors = [posterior.with_data((args, kwargs)) for posterior in own.posteriors]
        self.problems = []
        for stack, template, posterior in zip(own.stacks, own.targets, self.posteriors, strict=True):
            target = MemberTarget.of(template, stack, self.place, posterior.potential)
            starts = torch.empty((self.options.num_chains, 0, posterior.dim), dtype=posterior.dtype)
            self.problems.append(Problem(target, starts, posterior.compared_coordinates))

    def look_at(self, target: Any, points: Tensor) -> None:
        """Does nothing: the group has looked."""

    def initial_points(self, posterior: Any, target: Any, count: int) -> Tensor:
        """See `pyro_dft.pyro.problem.Problem.initial_points`."""
        found, enough, x = [], 0, torch.empty(0)
        for _ in range(MOST_TRIES):
            x = posterior.propose(count, self.rng, self.options.init_strategy)
            finite = torch.isfinite(target.evaluate(x)[0])
            found.append(x[finite])
            enough += int(finite.sum())
            if enough >= count:
                break
        if not enough:
            raise messages.no_valid_start(count * MOST_TRIES, posterior._explain(x[0]))
        points = torch.cat(found)
        return points[torch.arange(count, device=points.device) % len(points)]


class Group(group.Group):
    """Data sets of one shape: see `pyro_dft.many.group.Group`."""

    engine = StackedEngine()

    def compile(self) -> None:
        """See the base class."""
        with torch.enable_grad(), _seeded(torch.Generator("cpu").manual_seed(0)):
            own = self.template(self._posterior)
            if own.noise is not None:
                raise own.noise
            if own.minibatch:
                raise NotStackable("the model subsamples its data")
            if not own.batchable or own._asks:
                raise NotStackable(
                    "the model asks for values of its point, or cannot be evaluated for many points at once"
                )
            self.posteriors = self.in_all_coordinates(own)
            data = self.arrays()
            self.targets = [self._target(posterior) for posterior in self.posteriors]
            self.stacks = [self._stack(posterior, data) for posterior in self.posteriors]

    def _posterior(self, own: Arguments) -> StackedProblem:
        options: dict[str, Any] = {
            name: self.options.get(name) for name in ("transforms", "max_plate_nesting")
        }
        return StackedProblem(self.model, *own, **options)

    def _target(self, posterior: StackedProblem) -> Target:
        target = Target(
            posterior.potential, posterior.dim, dtype=posterior.dtype, device=posterior.device, context=posterior.context,
            trace=False,
        )  # fmt: skip
        target.probe(posterior._prototype[None])
        if not target.vectorised:
            raise NotStackable("the model cannot be evaluated for many points at once")
        return target

    def _stack(self, posterior: StackedProblem, data: list[list[Tensor]]) -> Stack:
        trace = self.options["settings"].experimental.compile == "auto"
        try:
            return Stack(
                posterior.potential_of, posterior.dim, data, posterior.context, trace, posterior._prototype.detach()
            )  # fmt: skip
        except MODEL_ERRORS as error:
            raise NotStackable("the model looks at the numbers of its data") from error

    def member(self, place: int, words: tuple[int, ...]) -> Training:
        """The training of one of the data sets, which is not read yet."""
        options = Options(model=self.model, disable_progbar=True, **_with_seed(self.options, words))
        training = Training(Member(options, self, place))
        training.arguments = self.sets[place]
        return training

    def surroundings(self) -> AbstractContextManager[Any]:
        """See the base class."""
        return torch.inference_mode(False)


def alone(model: Callable[..., Any], words: tuple[int, ...], options: dict[str, Any]) -> Training:
    """A training that is run by itself."""
    return DFT(model, disable_progbar=True, **_with_seed(options, words)).parts.training


def _with_seed(options: dict[str, Any], words: tuple[int, ...]) -> dict[str, Any]:
    seed = words[0] << 30 | words[1] >> 2
    return {**options, "settings": dataclasses.replace(options["settings"], seed=seed)}


def native(own: Arguments) -> Arguments:
    """Arguments with arrays as tensors; numbers of NumPy too."""

    def converted(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.detach()
        return torch.as_tensor(np.asarray(leaf)) if is_array(leaf) else leaf

    return mapped(own, converted)


def fit_many(
    model: Callable[..., Any],
    data: Any,
    *,
    shared: dict[str, Any] | None = None,
    mask: str | None = None,
    num_chains: int = 1,
    transforms: Mapping[str, Any] | None = None,
    init_strategy: Callable[..., Any] | None = None,
    max_plate_nesting: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    executor: Executor | Callable[[], Executor] | None = None,
    retries: int = 3,
    slice_size: int = SLICE,
    part: tuple[int, int] | None = None,
    disable_progbar: bool = False,
    settings: Settings | None = None,
    **overrides: Any,
) -> ManyFits:
    """Fits one model to many data sets: the recipe of `DFT.run`, with a verdict, for each of them.

    Data sets of one shape share one compiled program, which evaluates many posteriors at once. Whatever goes wrong with one of
    them is said of that one alone.

    Args:
        model: A Pyro model.
        data: A stack: an array, or a tuple (positional arguments) or dict (keyword arguments) of arrays, with one row for each
            data set. Or an iterable with one item for each: an array, a tuple of arguments, a dict of keyword arguments, or
            a pair of both, ``((...), {...})``. Data sets of other shapes are compiled for anew, unless there is a `mask`.
        shared: Keyword arguments of the model that are the same for all.
        mask: Keyword argument of the model that gets a boolean array with True where a row is data, for data sets with
            different numbers of rows: arrays are padded along their first axis, by rows that the model masks.
        num_chains: As for `DFT`.
        transforms: As for `DFT`.
        init_strategy: As for `DFT`.
        max_plate_nesting: As for `DFT`.
        folder: Where draws and verdicts go, slice by slice, as they come. A call that was killed goes on from it. None
            keeps all in memory.
        executor: Where slices are fitted: an executor of `concurrent.futures`, or anything with its interface (Dask's
            ``client.get_executor()``, an MPI pool), or a function without arguments that makes one, which is called again where
            an executor breaks. None fits them in this process.
        retries: How often a slice is given out again where its worker was lost.
        slice_size: Data sets of a slice.
        part: (k, n) fits only every n-th slice, beginning with the k-th, for k from 1 to n; see ``python -m pyro_dft.many``.
        disable_progbar: Whether to hide the progress bar.
        settings: As for `DFT`. `seed` is that of the whole call (0 where none is given); each posterior has random numbers of its
            own.
        **overrides: Single settings. By default `num_draws`, those that are kept of each posterior, is 1000, and `train` is
            "never": where chains do not settle the verdict says so, and no network is trained in their place. "auto" is all of
            the recipe.

    Raises:
        ModelError: there are no data sets, or the arrays of a stack do not fit together.
        SettingsError: a setting is unknown or out of range.
        StorageError: the folder holds something else.

    Warns:
        FidelityWarning: some posteriors are not converged.

    Example:
        >>> from pyro_dft import fit_many
        >>> stack = torch.tensor([[1.0, 2.0, 3.0], [2.0, 2.5, 4.0]])
        >>> fits = fit_many(model, stack, disable_progbar=True)
        >>> fits.status.tolist()
        ['converged', 'converged']
        >>> fits.get_samples(1)["mu"].shape
        (1000,)
    """
    return _fit_many(
        "pyro", model, data, shared=shared, mask=mask, num_chains=num_chains, folder=folder, executor=executor,
        retries=retries, slice_size=slice_size, part=part, disable_progbar=disable_progbar, settings=settings,
        options={"transforms": transforms, "init_strategy": init_strategy, "max_plate_nesting": max_plate_nesting},
        **overrides,
    )  # fmt: skip
