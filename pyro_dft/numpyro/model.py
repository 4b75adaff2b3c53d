"""A NumPyro model and its data as a function of one flat point."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.handlers import seed, substitute
from numpyro.handlers import trace as record_trace
from numpyro.infer.util import log_density

from pyro_dft import messages
from pyro_dft.engine_jax.sharding import automatic, host
from pyro_dft.errors import ModelError, PerformanceWarning, warn
from pyro_dft.interface.arguments import copied
from pyro_dft.layout import Layout, SiteInfo
from pyro_dft.models import amounts, circular
from pyro_dft.models.options import check_known
from pyro_dft.numpyro import missing, noncentering, predictive, terms, validity
from pyro_dft.numpyro.explain import not_finite
from pyro_dft.numpyro.placement import Default, Plates, Point, placed
from pyro_dft.numpyro.problem import Problem
from pyro_dft.numpyro.structure import Structure, enumerated, inspect_model, param_values
from pyro_dft.numpyro.traced import (
    Batched,
    Full,
    Traced,
    as_key,
    depends,
    key_words,
    map_rows,
    point,
    trace,
)
from pyro_dft.numpyro.transforms import Wrapped, biject_to


class NumPyroProblem(Problem):
    """The posterior of a NumPyro model.

    Discrete sites are summed out, as NumPyro's NUTS does (that needs funsor). Unlike there,
    ``numpyro.plate(..., subsample_size=n)`` may be used: `minibatch_potential` draws a fresh subsample per call,
    `potential` reads all rows. ``numpyro.param`` statements keep their initial value.

    Args:
        model: Callable with NumPyro primitives.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        transforms: Name -> transform from constrained to unconstrained space, to override the automatic one.
        centred: Whether the coordinates of angles are centred at a mode, which needs data that are known: under a trace
            they are not.

    Attributes:
        structure: The sites of the model by role.
        transforms: Name -> transform from constrained to unconstrained space; for sites whose support depends
            on other sites, the one at the first run.

    Raises:
        ModelError: The model cannot be run or used; the message names the site or argument.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        transforms: Mapping[str, Any] | None = None,
        centred: bool = True,
    ) -> None:
        # Of a mesh whose axes are explicit, the types of what a model computes would speak.
        self.args, self.kwargs = copied((tuple(args), dict(kwargs or {})), automatic)
        self._given = dict(transforms or {})
        self.structure = self._inspect(model)
        self.model = model
        self._read_latents()
        if self.structure.params:
            own = param_values(model, self.args, self.kwargs, self.structure.params)
            self.model = substitute(model, data=own)
        self.data_size, self.minibatch_size = self.structure.data_size, self.structure.minibatch_size
        self.enumerated = bool(self.structure.discrete)
        self._noncentered: dict[str, float] = {}
        self._centre = np.zeros(self.dim, self.dtype)
        self._bind()
        self._wrap_angles(model, centred)

    # What the model is

    def _inspect(self, model: Callable[..., Any]) -> Structure:
        try:
            return inspect_model(model, self.args, self.kwargs, self._given)
        except ModelError as error:
            if not isinstance(error.__cause__, jax.errors.TracerArrayConversionError):
                raise
        # NumPy arrays cannot be indexed by the rows of a minibatch, which are unknown until it is drawn.
        self.args, self.kwargs = jax.tree.map(
            lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, (self.args, self.kwargs)
        )
        return inspect_model(model, self.args, self.kwargs, self._given)

    def _read_latents(self) -> None:
        latent = self.structure.latent
        check_known(self._given, latent)
        self.layout = Layout(
            tuple(
                SiteInfo(name, site.unconstrained_shape, site.shape, site.support)
                for name, site in latent.items()
            )
        )
        self.transforms = {name: site.transform.inv for name, site in latent.items()}
        self.dtype = np.dtype(jnp.result_type(*(site.dtype for site in latent.values())))
        if self.dtype.itemsize < 4:
            raise messages.too_coarse(self.dtype)

    def _wrap_angles(self, model: Callable[..., Any], centred: bool) -> None:
        """Sites on which the density repeats itself every 2 pi get one copy; see `pyro_dft.models.circular`."""
        kinds = {name: site.angle for name, site in self.structure.latent.items() if site.angle}
        found = [name for name, kind in kinds.items() if kind == "angle"]
        flat = [name for name, kind in kinds.items() if kind != "angle"]
        if flat and centred:
            density = self.density()
            found += [n for n in flat if circular.repeats(density, self.layout.where([n]), may_be_flat=False)]
        if not found:
            return
        own = dict(self._given)

        def wrap(names: list[str], centre: np.ndarray) -> None:
            parts = {name: centre[self.layout.slices[name]] for name in names}
            shapes = {name: self.structure.latent[name].shape for name in names}
            self._given = own | {n: Wrapped(part.reshape(shapes[n])).inv for n, part in parts.items()}
            self.structure = self._inspect(model)
            self._read_latents()
            self._centre = centre.astype(self.dtype)
            self._bind()

        wrap(found, np.zeros(self.dim))
        if centred:
            density = self.density()
            # A model that tells pi from -pi keeps the cut, and NumPyro's own coordinates.
            found = [name for name in found if circular.joins(density, self.layout.where([name]))]
            wrap(found, circular.centres(density, self.layout.where(found)))

    def compared_coordinates(self, x: Any) -> Any:
        """See the base class."""
        found = self.original_coordinates(x)
        return self.folded(np.asarray(found, float)) if self.angles.any() else found

    def _bind(self) -> None:
        """Traces the potentials in the present coordinates."""
        at = point(self.dim, self.dtype)
        self.potential, full = trace(lambda x: self._energy(x, None), at, kind=Full)
        self.data = {"full": full}
        self.minibatch_potential = None
        if self.structure.subsampled and self.enumerated:
            warn(messages.enumerated_minibatches(), PerformanceWarning)
        elif self.structure.subsampled:
            self.minibatch_potential, part = trace(
                lambda x, words: self._energy(x, words), at, key_words(), kind=Batched
            )
            self.data["minibatch"] = part
        self._functions: dict[str, tuple[Traced, list[Any]]] = {}

    # Running the model

    def _energy(self, x: Any, words: Any) -> Any:
        """Potential of one point; on a random part of the data where there are words of a key."""
        place = self.point_of(x)
        model: Any = Plates(self.model, key=None if words is None else as_key(words))
        density = log_density
        if self.enumerated:
            model, density = enumerated(model, self.structure)
        with Default():
            # The point goes in outside of the enumeration, as in numpyro.infer.util.potential_energy.
            value, sites = density(placed(model, place), self.args, self.kwargs, {})
        place.check()
        value = value + missing.log_density(sites, place.coordinates)
        return -jnp.asarray(value).astype(self.dtype)

    def run(self, place: Any, words: Any = None, wrap: Callable[[Any], Any] | None = None) -> dict[str, Any]:
        """Sites of one run over all rows, with discrete sites drawn from their prior.

        Args:
            place: A `Point`, or constrained values by name.
            words: Words of a key for whatever the model draws; None uses a fixed one.
            wrap: Puts a handler around the model.
        """
        key = jax.random.key(0) if words is None else as_key(words)
        model: Any = Plates(self.model)
        model = placed(model, place) if wrap is None else wrap(placed(model, place))
        with Default():
            return record_trace(seed(model, key)).get_trace(*self.args, **self.kwargs)

    def point_of(self, x: Any) -> Point:
        """One flat point, as `run` takes it."""
        latent = {} if self.enumerated else self.structure.latent
        drawn = {name: site.drawn for name, site in latent.items() if site.drawn is not None}
        return Point(self.layout.unflatten(x), self._noncentered, self._given, drawn)

    def _function(self, name: str, function: Callable[..., Any], *shapes: Any) -> tuple[Traced, list[Any]]:
        if name not in self._functions:
            self._functions[name] = trace(function, *shapes)
        return self._functions[name]

    def _row(self) -> jax.ShapeDtypeStruct:
        return point(self.dim, self.dtype)

    # Starting points

    def _by_strategy(self, n: int, rng: np.random.Generator, init_strategy: Callable[..., Any]) -> np.ndarray:
        def one(words: Any) -> Any:
            strategy = init_strategy if callable(getattr(init_strategy, "func", None)) else init_strategy()

            def value(site: Any) -> Any:
                return strategy(site) if site["value"] is None else None

            with Default():
                model = substitute(seed(Plates(self.model), as_key(words)), substitute_fn=value)
                sites = record_trace(model).get_trace(*self.args, **self.kwargs)
            return self._coordinates(sites)

        function, arrays = trace(one, key_words())
        return map_rows(function, arrays, rng.integers(2**32, size=(n, 2), dtype=np.uint32))

    def _coordinates(self, sites: Mapping[str, Any]) -> Any:
        """Flat coordinates (d,) of the values in a run of the model."""
        parts = []
        for name in self.layout.names:
            site = sites[name]
            if name in self._noncentered:
                x = noncentering.inverse(site["fn"], site["value"], self._noncentered[name])
            elif name in self._given:
                x = self._given[name](site["value"])
            else:
                x = biject_to(site["fn"].support).inv(site["value"])
            parts.append(jnp.asarray(x, self.dtype).reshape(-1))
        return jnp.concatenate(parts)

    def _explain(self, x: np.ndarray) -> str:
        return not_finite(self, x) or super()._explain(x)

    # Coordinates and values

    def constrain(self, x: Any, include_deterministic: bool = True) -> dict[str, Any]:
        """See the base class."""
        wanted = self.deterministic_sites() if include_deterministic else []
        names = [*self.layout.names, *wanted]

        def one(row: Any) -> dict[str, Any]:
            sites = self.run(self.point_of(row))
            return {name: sites[name]["value"] for name in names}

        function, arrays = self._function(f"constrain {include_deterministic}", one, self._row())
        elements = sum(int(np.prod(s.shape)) for s in self._sites(names))
        return map_rows(function, arrays, x, elements=elements)

    def _sites(self, names: list[str]) -> list[Any]:
        known = self.structure.latent | self.structure.deterministic
        return [known[name] for name in names if name in known]

    def deterministic_sites(self) -> list[str]:
        """Names of the deterministic sites that have one value per draw."""
        names = list(self.structure.deterministic)
        if not self.enumerated or not names:
            return names

        def values(x: Any, words: Any) -> dict[str, Any]:
            sites = self.run(self.point_of(x), words)
            return {name: sites[name]["value"] for name in names}

        # Discrete sites are drawn with the key: what depends on them depends on it.
        touched = depends(values, [self._row(), key_words()], 1)
        return [name for name in names if not touched[name]]

    def unconstrain(self, samples: Mapping[str, Any]) -> np.ndarray:
        """See the base class."""
        values = self._checked_samples(samples)
        shapes = {name: jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for name, v in values.items()}
        function, arrays = self._function("unconstrain", lambda row: self._coordinates(self.run(row)), shapes)
        return map_rows(function, arrays, values, elements=self.dim)

    # Non-centring

    def noncentering_candidates(self) -> tuple[str, ...]:
        """See the base class."""
        movable = [name for name, site in self.structure.latent.items() if site.movable]
        if self.enumerated or not movable:
            return ()

        def parameters(x: Any) -> dict[str, Any]:
            sites = self.run(self.point_of(x))
            return {name: noncentering.parameters(sites[name]["fn"]) for name in movable}

        moves = depends(parameters, [self._row()], 0)
        return tuple(name for name in movable if moves[name])

    def noncentered(self, sites: Collection[str] | Mapping[str, float]) -> NumPyroProblem:
        """See the base class."""
        given = amounts.given(sites, self.noncentering_candidates())
        problem = copy.copy(self)
        problem._noncentered = given
        problem.layout = amounts.moved(self.layout, given)
        problem._bind()
        return problem

    def original_coordinates(self, x: Any) -> Any:
        """See the base class."""
        if not self._noncentered:
            return x

        def one(row: Any) -> Any:
            place = self.point_of(row)
            sites = self.run(place)
            parts = place.coordinates | place.original  # type: ignore[operator]
            for name in self._noncentered.keys() - place.original.keys():
                parts[name] = biject_to(sites[name]["fn"].support).inv(sites[name]["value"])
            return jnp.concatenate([parts[name].reshape(-1) for name in self.layout.names])

        function, arrays = self._function("original", one, self._row())
        return map_rows(function, arrays, x, elements=self.dim)

    # Data

    def invalid(self, x: Any) -> dict[str, dict[str, float]]:
        """See the base class."""
        return validity.invalid(self, x)

    def observed(self) -> dict[str, np.ndarray]:
        """Observed data by site, all rows."""
        sites = self.structure.observed
        if any(site.value is None for site in sites.values()):
            computed = jax.jit(lambda: {n: self.run(self.point_of(self._centre))[n]["value"] for n in sites})
            return {name: host(value) for name, value in computed().items()}
        return {name: host(site.value) for name, site in sites.items()}

    def site_terms(self, x: Any) -> dict[str, tuple[np.ndarray, np.ndarray] | None]:
        """See the base class."""
        return terms.site_terms(self, x)

    def log_likelihood(self, samples: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """See the base class."""
        return predictive.log_likelihood(self, self._checked_samples(samples))

    def without_likelihood(self) -> dict[str, str]:
        """Observed sites that :meth:`log_likelihood` cannot compute -> the reason."""
        return predictive.without_likelihood(self)

    def posterior_predictive(self, samples: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """See the base class."""
        return predictive.posterior_predictive(self, self._checked_samples(samples), rng)

    def prior_predictive(self, n: int, rng: np.random.Generator) -> dict[str, Any]:
        """See the base class."""
        return predictive.prior_predictive(self, n, rng)

    def plate_dims(self) -> dict[str, list[str]]:
        """See the base class."""
        return predictive.plate_dims(self)
