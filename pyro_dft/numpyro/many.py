"""One NumPyro model over many data sets: see `pyro_dft.many`."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pyro_dft.engine_jax.stacked import MemberTarget, Stack, StackedEngine
from pyro_dft.interface.options import Options
from pyro_dft.interface.training import Training
from pyro_dft.many import group
from pyro_dft.many.data import Arguments, is_array, leaves, mapped
from pyro_dft.many.group import NotStackable
from pyro_dft.many.results import ManyFits
from pyro_dft.many.run import SLICE
from pyro_dft.many.run import fit_many as _fit_many
from pyro_dft.numpyro.backend import NumPyroBackend
from pyro_dft.numpyro.dft import DFT
from pyro_dft.numpyro.model import NumPyroProblem
from pyro_dft.numpyro.padding import freed as freed
from pyro_dft.numpyro.padding import rows as rows
from pyro_dft.numpyro.surroundings import lenient
from pyro_dft.numpyro.traced import Traced, point, trace
from pyro_dft.recipe.fit import Problem
from pyro_dft.settings import Settings


class _WithData(Traced):
    """As `Traced`, whose arrays are those that all data sets share, and the leaves of one."""

    def __call__(self, *arguments: Any) -> Any:
        """The function at its arguments, the last of which is the pair of these."""
        *own, (shared, data) = arguments
        return super().__call__(*own, data, shared)


class _Potential(_WithData):
    """The same under the name "full"."""

    def __call__(self, x: Any, arrays: Any) -> Any:
        """The function at a point."""
        return super().__call__(x, arrays["full"])


class StackedProblem(NumPyroProblem):
    """The posterior of a model whose data are arguments of all that is compiled, so that it serves data sets of one shape."""

    def _bind(self) -> None:
        self.arrays = [leaf for leaf in leaves((self.args, self.kwargs)) if is_array(leaf)]
        self._functions = {}

        def energy(x: Any, data: Any) -> Any:
            return self._at(data, lambda: self._energy(x, None))

        at = point(self.dim, self.dtype)
        self.potential, shared = trace(energy, at, self._shapes(), kind=_Potential)
        self._shared = shared
        self.minibatch_potential = None
        self.data = {"full": (shared, self.arrays)}

    def _shapes(self) -> list[jax.ShapeDtypeStruct]:
        return [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in self.arrays]

    def _at(self, data: list[Any], function: Callable[[], Any]) -> Any:
        """What a function of the model gives with other data in the place of these."""
        before, arrays = (self.args, self.kwargs), iter(data)
        self.args, self.kwargs = mapped(before, lambda leaf: next(arrays) if is_array(leaf) else leaf)
        try:
            return function()
        finally:
            self.args, self.kwargs = before

    def _function(self, name: str, function: Callable[..., Any], *shapes: Any) -> tuple[Traced, Any]:
        if name not in self._functions:

            def at(*arguments: Any) -> Any:
                *own, data = arguments
                return self._at(data, lambda: function(*own))

            self._functions[name] = trace(at, *shapes, self._shapes(), kind=_WithData)
        traced, shared = self._functions[name]
        return traced, (shared, self.arrays)

    def with_data(self, own: Arguments) -> StackedProblem:
        """The same with other data."""
        other = copy.copy(self)
        other.args, other.kwargs = own
        other.arrays = [leaf for leaf in leaves(own) if is_array(leaf)]
        other.data = {"full": (self._shared, other.arrays)}
        return other

    def observed(self) -> dict[str, np.ndarray]:
        """Observed data by site, all rows."""
        names = list(self.structure.observed)

        def values(row: Any) -> dict[str, Any]:
            sites = self.run(self.point_of(row))
            return {name: sites[name]["value"] for name in names}

        function, arrays = self._function("observed", values, self._row())
        found = function(jnp.asarray(self._centre, self.dtype), arrays)
        return {name: np.asarray(value) for name, value in found.items()}


class Member(group.Member, NumPyroBackend):
    """One data set of a group."""

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int | None = None) -> None:
        """See the base class."""
        super().read(args, kwargs, seed)
        templates = zip(self.group.targets, self.group.stacks, self.posteriors, strict=True)
        targets = [MemberTarget.of(target, stack, self.place, own.data) for target, stack, own in templates]
        self.problems = [
            Problem(
                target, np.empty((self.options.num_chains, 0, own.dim), own.dtype), own.compared_coordinates
            )
            for target, own in zip(targets, self.posteriors, strict=True)
        ]

    def posteriors_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """See the base class."""
        return [posterior.with_data((args, kwargs)) for posterior in self.group.posteriors]

    def _problem(self, posterior: Any) -> Any:
        return None  # `read` makes them


class Group(group.Group):
    """Data sets of one shape: see `pyro_dft.many.group.Group`."""

    def compile(self) -> None:
        """See the base class."""
        own = self.template(self._posterior)
        if own.structure.subsampled:
            raise NotStackable("the model subsamples its data")
        self.posteriors = self.in_all_coordinates(own)
        data = self.arrays()
        self.targets = [posterior.target() for posterior in self.posteriors]
        self.stacks = [
            Stack(target.spec, posterior._shared, data)
            for target, posterior in zip(self.targets, self.posteriors, strict=True)
        ]
        self.engine = StackedEngine(self.options["num_chains"])

    def _posterior(self, own: Arguments) -> StackedProblem:
        try:
            return StackedProblem(self.model, *own, transforms=self.options.get("transforms"))
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
            raise NotStackable("the model looks at the numbers of its data") from error

    def member(self, place: int, words: tuple[int, ...]) -> Training:
        """The training of one of the data sets, which is not read yet."""
        backend = Member(Options(model=self.model, disable_progbar=True, **self.options), self, place)
        backend.words = words
        training = Training(backend)
        training.arguments = self.sets[place]
        return training

    def surroundings(self) -> AbstractContextManager[Any]:
        """See the base class."""
        return lenient()


def alone(model: Callable[..., Any], words: tuple[int, ...], options: dict[str, Any]) -> Training:
    """A training that is run by itself."""
    own = DFT(model, disable_progbar=True, **options)
    own.parts.backend.words = words
    return own.parts.training


def native(own: Arguments) -> Arguments:
    """Arguments with arrays in the precision of jax, on the host."""

    def converted(leaf: Any) -> Any:
        if not is_array(leaf) or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            return leaf
        array = np.asarray(leaf)
        return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)

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
        model: A NumPyro model.
        data: A stack: an array, or a tuple (positional arguments) or dict (keyword arguments) of arrays, with one row for each
            data set. Or an iterable with one item for each: an array, a tuple of arguments, a dict of keyword arguments, or
            a pair of both, ``((...), {...})``. Data sets of other shapes are compiled for anew, unless there is a `mask`.
        shared: Keyword arguments of the model that are the same for all.
        mask: Keyword argument of the model that gets a boolean array with True where a row is data, for data sets with
            different numbers of rows: arrays are padded along their first axis, by rows that the model masks.
        num_chains: As for `DFT`.
        transforms: As for `DFT`.
        init_strategy: As for `DFT`.
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
        >>> from pyro_dft.numpyro import fit_many
        >>> stack = jnp.array([[1.0, 2.0, 3.0], [2.0, 2.5, 4.0]])
        >>> fits = fit_many(model, stack, disable_progbar=True)
        >>> fits.status.tolist()
        ['converged', 'converged']
        >>> fits.get_samples(1)["mu"].shape
        (1000,)
    """
    return _fit_many(
        "numpyro", model, data, shared=shared, mask=mask, num_chains=num_chains, folder=folder, executor=executor,
        retries=retries, slice_size=slice_size, part=part, disable_progbar=disable_progbar, settings=settings,
        options={"transforms": transforms, "init_strategy": init_strategy}, **overrides,
    )  # fmt: skip
