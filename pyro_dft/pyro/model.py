"""A Pyro model and its data as a function of one flat point."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyro.poutine as poutine
import torch
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions.transforms import Transform

from pyro_dft import messages
from pyro_dft.engine_torch.together import Together
from pyro_dft.errors import FidelityWarning, ModelError, warn
from pyro_dft.layout import Layout, SiteInfo
from pyro_dft.models import amounts, circular
from pyro_dft.models.options import MODEL_ERRORS, check_known, check_transforms
from pyro_dft.models.supports import support_name

from . import missing, predictive, sharing, terms, validity
from .batching import map_rows
from .enumeration import minibatch_log_density
from .evaluation import checked_samples, full_index, patched, with_gradients
from .noncentering import NonCentered, movable_sites
from .placement import DynamicSupport, Place, SiteMap
from .problem import Problem
from .structure import Structure, data_sizes, describe_non_finite, failure, inspect_model, uniform_value
from .transforms import Wrapped, angle_of, bijection, is_identity


class PyroProblem(Problem):
    """The posterior of a Pyro model.

    Discrete sites are summed out, as Pyro's NUTS does. Unlike there, ``pyro.plate(..., subsample_size=n)``
    may be used: :meth:`minibatch_potential` draws a fresh subsample per call, :meth:`potential` reads all
    rows. ``pyro.param`` statements keep their present value.

    Args:
        model: Callable with Pyro primitives.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        transforms: Name -> transform from constrained to unconstrained space, to override the automatic one.
        max_plate_nesting: Number of batch dimensions reserved for plates, where the guess is wrong.
        together: Processes that share the rows of the observed sites.

    Attributes:
        structure: The sites of the model by role.
        transforms: Name -> transform from constrained to unconstrained space; for sites whose support depends
            on other sites, the one at the first run.
        noise: The error to raise where a fit needs the same density in each evaluation, if it is not; else None.

    Raises:
        ModelError: The model cannot be run or used; the message names the site or argument.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        transforms: Mapping[str, Transform] | None = None,
        max_plate_nesting: int | None = None,
        together: Together | None = None,
    ) -> None:
        self.model = model
        self.args, self.kwargs = with_gradients((tuple(args), dict(kwargs or {})))
        self.structure: Structure = inspect_model(model, self.args, self.kwargs, max_plate_nesting)
        self._given = frozenset(transforms or {})
        self._read_latents(dict(transforms or {}))
        self.minibatch = bool(self.structure.subsampled)
        self.data_size, self.minibatch_size, self._elements = data_sizes(self.structure)
        self.enumerated = bool(self.structure.discrete)
        if together is not None:
            self.together, self.summed = together, sharing.summed_sites(self)
        with patched():
            nesting = self.structure.max_plate_nesting
            self._evaluator = TraceEinsumEvaluator(self.structure.trace, self.enumerated, nesting)
        if not self.enumerated:
            self._find_dynamic_supports()
        self.noise: ModelError | None = None
        self._check_potential()
        self.find_batching(self._prototype)
        self._centre = torch.zeros_like(self._prototype)
        self._wrap_angles()

    # What the model is

    def _read_latents(self, transforms: dict[str, Transform]) -> None:
        nodes, names = self.structure.trace.nodes, self.structure.latent
        check_known(transforms, names)
        check_transforms(transforms)
        self.transforms: dict[str, Transform] = {}
        self._maps: dict[str, SiteMap] = {}
        infos, coordinates = [], []
        for name in names:
            support, value = nodes[name]["fn"].support, nodes[name]["value"].detach()
            transform = transforms[name] if name in transforms else bijection(support).inv
            x = transform(value)
            self.transforms[name] = transform
            infos.append(SiteInfo(name, tuple(x.shape), tuple(value.shape), support_name(support)))
            coordinates.append(x)
        self.layout = Layout(tuple(infos))
        self._dtypes = {name: x.dtype for name, x in zip(names, coordinates, strict=True)}
        self.dtype = functools.reduce(torch.promote_types, self._dtypes.values())
        if torch.finfo(self.dtype).bits < 32:
            raise messages.too_coarse(self.dtype)
        self.device = coordinates[0].device
        if not self.dim:
            raise messages.no_coordinates(names)
        self._prototype = torch.cat([x.reshape(-1).to(self.dtype) for x in coordinates])
        self._curved = [name for name in names if not is_identity(self.transforms[name])]

    def _find_dynamic_supports(self) -> None:
        """Supports that depend on other sites, as in Uniform(0, other), need their transform at the site."""
        other = self._run_anywhere()
        for name in set(self._curved).intersection(other.nodes) - self._given:
            shape = self.layout[name].unconstrained_shape
            # Not zeros: the middle of Uniform(-other, other) does not move with its ends.
            x = torch.rand(shape, dtype=self._dtypes[name], device=self.device) + 0.5
            before, after = self.transforms[name].inv(x), bijection(other.nodes[name]["fn"].support)(x)
            if not torch.equal(before, after):
                self._maps[name] = DynamicSupport()
        self.dynamic_sites = tuple(self._maps)

    def _wrap_angles(self) -> None:
        """Sites on which the density repeats itself every 2 pi get one copy; see `pyro_dft.models.circular`."""
        found, density = [], self.density()
        for name in sorted(set(self.layout.names) - set(self._curved) - self._given):
            kind = angle_of(self.structure.trace.nodes[name]["fn"])
            if kind and circular.repeats(density, self.layout.where([name]), may_be_flat=kind == "angle"):
                found.append(name)
        if not found:
            return
        middle = circular.centres(density, self.layout.where(found))
        self._centre = centre = torch.as_tensor(middle, dtype=self.dtype, device=self.device)
        for name in found:
            shape = self.layout[name].unconstrained_shape
            own = centre[self.layout.slices[name]].reshape(shape).to(self._dtypes[name])
            self.transforms[name] = Wrapped(own).inv
            self._curved.append(name)
        sites = (replace(s, transform=circular.NAME) if s.name in found else s for s in self.layout.sites)
        self.layout = Layout(tuple(sites))

    def compared_coordinates(self, x: Tensor) -> Tensor:
        """See the base class."""
        found = self.original_coordinates(x)
        return (
            torch.as_tensor(self.folded(found.detach().double().cpu().numpy()))
            if self.angles.any()
            else found
        )

    def _check_potential(self) -> None:
        try:
            with torch.no_grad():
                first, second = self.potential(self._prototype), self.potential(self._prototype)
                if self.minibatch:
                    self.minibatch_potential(self._prototype)
        except ModelError:
            raise
        except MODEL_ERRORS as error:
            trace = self.structure.trace
            reason = failure(error, self.model, self.args, self.kwargs, trace)
            raise ModelError(f"the model cannot be evaluated: {reason}") from error
        # Threads may add up in another order, which moves the last digits only.
        rounding = 1e4 * torch.finfo(first.dtype).eps * (1 + float(first.abs()))
        if first.isfinite() and second.isfinite() and float((first - second).abs()) > rounding:
            self.noise = messages.noisy(float(first), float(second))
            warn(str(self.noise), FidelityWarning)

    @property
    def enum_dims(self) -> set[str]:
        """Symbols of the enumerated dimensions in packed tensors."""
        return self._evaluator._enum_dims

    @property
    def ordering(self) -> dict[str, frozenset[str]]:
        """Symbols of the plates of every site in packed tensors; for enumerated models."""
        return self._evaluator.ordering

    # Running the model

    def run(
        self,
        place: Place,
        *,
        full: bool = True,
        enumerate_sites: bool = True,
        replicate: Messenger | None = None,
    ) -> Any:
        """Trace of one run.

        Args:
            place: Handler that holds the latent values.
            full: Read all rows of subsampled plates.
            enumerate_sites: Enumerate discrete sites; otherwise they are drawn from their prior.
            replicate: Handler for the observed sites.
        """
        model = self.structure.model if enumerate_sites else self.model
        place.indices, place.fixed_shapes = self.structure.indices, not self.enumerated
        with contextlib.ExitStack() as stack:
            if full and self.minibatch:
                stack.enter_context(full_index())
            if replicate is not None:
                stack.enter_context(replicate)
            stack.enter_context(place)
            return poutine.trace(model).get_trace(*self.args, **self.kwargs)

    def run_at(self, values: Mapping[str, Tensor]) -> Any:
        """Trace of one run at constrained values of all latent sites."""
        return self.run(Place(values))

    def _run_anywhere(self, strategy: Callable[..., Any] = uniform_value) -> Any:
        """Trace of one run at values that an initialisation strategy chooses."""
        with patched(), checked_samples(), full_index(), torch.no_grad():
            model = InitMessenger(strategy)(self.structure.model)
            return poutine.trace(model).get_trace(*self.args, **self.kwargs)

    def _place(self, x: Tensor) -> tuple[Place, Tensor | float]:
        """Handler that puts one flat point into the model, and the log Jacobian of its fixed transforms."""
        coordinates = {name: part.to(self._dtypes[name]) for name, part in self.layout.unflatten(x).items()}
        values: dict[str, Tensor] = {}
        log_jacobian: Tensor | float = 0.0
        for name, part in coordinates.items():
            if name in self._maps:
                continue
            values[name] = self.transforms[name].inv(part)
            if name in self._curved:
                log_jacobian = (
                    log_jacobian - self.transforms[name].log_abs_det_jacobian(values[name], part).sum()
                )
        return Place(values, self._maps, coordinates), log_jacobian

    def _potential(self, x: Tensor, full: bool) -> Tensor:
        place, log_jacobian = self._place(x)
        trace = self.run(place, full=full)
        place.check(trace)
        if self.together is not None and self.together.rank:  # what all rows share is the first one's
            return -torch.as_tensor(trace.log_prob_sum(lambda name, _: name in self.summed)).to(self.dtype)
        if self.enumerated and not full:
            log_density = minibatch_log_density(trace, self.enum_dims, self.ordering)
        else:
            log_density = self._evaluator.log_prob(trace)
        for term in (*place.log_jacobians, missing.log_density(trace.nodes, place.coordinates)):
            log_jacobian = log_jacobian + term
        return -(log_density + log_jacobian).to(self.dtype)

    def chunk_size(self, rows: Mapping[str, Tensor]) -> int:
        """How many rows to batch at a time, so that memory stays bounded."""
        return self._chunk(len(next(iter(rows.values()))))

    # Starting points

    def _by_strategy(self, n: int, init_strategy: Callable[..., Any]) -> Tensor:
        return torch.stack([self._coordinates(self._run_anywhere(init_strategy)) for _ in range(n)])

    def _coordinates(self, trace: Any) -> Tensor:
        """Flat coordinates (d,) of the values in a run of the model."""
        parts = []
        for name in self.layout.names:
            site = trace.nodes[name]
            if name in self._maps:
                x = self._maps[name].inverse(site["fn"], site["value"])
            else:
                x = self.transforms[name](site["value"])
            parts.append(x.reshape(-1).to(self.dtype))
        return torch.cat(parts)

    def _explain(self, x: Tensor) -> str:
        with patched(), torch.no_grad():
            try:
                trace = self.run(self._place(x)[0])
                trace.compute_log_prob()
            except torch.linalg.LinAlgError as error:
                return f"Linear algebra fails: {error}"
        return describe_non_finite(trace, self.structure.observed) or super()._explain(x)

    # Coordinates and values

    def constrain(self, x: Tensor, include_deterministic: bool = True) -> dict[str, Tensor]:
        """See the base class."""
        x = x.detach().to(self.dtype)
        wanted = self.structure.deterministic if include_deterministic else []
        if not self._maps and not wanted:
            return self._constrain_fixed(x)

        def one(row: dict[str, Tensor]) -> dict[str, Tensor]:
            trace = self.run(self._place(row["x"])[0])
            return {name: trace.nodes[name]["value"] for name in [*self.layout.names, *wanted]}

        return map_rows(one, {"x": x}, chunk=self._chunk(len(x)))

    def _constrain_fixed(self, x: Tensor) -> dict[str, Tensor]:
        coordinates = self.layout.unflatten(x)
        return {n: self.transforms[n].inv(part.to(self._dtypes[n])) for n, part in coordinates.items()}

    def unconstrain(self, samples: Mapping[str, Any]) -> Tensor:
        """See the base class."""
        values = self._checked_samples(samples, self._dtypes)
        if not self._maps:
            parts = [self.transforms[name](value) for name, value in values.items()]
            return torch.cat([part.reshape(len(part), -1).to(self.dtype) for part in parts], -1)

        def one(row: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"x": self._coordinates(self.run_at(row))}

        return map_rows(one, values, chunk=self.chunk_size(values))["x"]

    # Non-centring

    def noncentering_candidates(self) -> tuple[str, ...]:
        """See the base class."""
        if self.enumerated:
            return ()
        names = tuple(name for name in self.layout.names if name not in self._given)
        return movable_sites(self._run_anywhere(), self._run_anywhere(), names)

    def noncentered(self, sites: Collection[str] | Mapping[str, float]) -> PyroProblem:
        """See the base class."""
        given = amounts.given(sites, self.noncentering_candidates())
        problem = copy.copy(self)
        problem._maps = self._maps | {name: NonCentered(amount) for name, amount in given.items()}
        problem.layout = amounts.moved(self.layout, given)
        return problem

    def original_coordinates(self, x: Tensor) -> Tensor:
        """See the base class."""
        if not any(isinstance(site_map, NonCentered) for site_map in self._maps.values()):
            return x

        def one(row: dict[str, Tensor]) -> dict[str, Tensor]:
            place = self._place(row["x"])[0]
            self.run(place)
            parts = place.coordinates | place.original
            return {"x": torch.cat([parts[name].reshape(-1).to(self.dtype) for name in self.layout.names])}

        return map_rows(one, {"x": x.detach()}, chunk=self._chunk(len(x)))["x"]

    # Data

    def invalid(self, x: Any) -> dict[str, dict[str, float]]:
        """See the base class."""
        found = validity.invalid(self, x)
        return found if self.together is None else sharing.worst(self.together, found)

    def observed(self) -> dict[str, Tensor]:
        """Observed data by site, all rows."""
        return {name: self.structure.trace.nodes[name]["value"] for name in self.structure.observed}

    def site_terms(self, x: Any) -> dict[str, tuple[np.ndarray, np.ndarray] | None]:
        """See the base class."""
        return terms.site_terms(self, torch.as_tensor(x, dtype=self.dtype, device=self.device))

    def log_likelihood(self, samples: Mapping[str, Any]) -> dict[str, Tensor]:
        """See the base class."""
        return predictive.log_likelihood(self, self._checked_samples(samples, self._dtypes))

    def without_likelihood(self) -> dict[str, str]:
        """Observed sites that :meth:`log_likelihood` cannot compute -> the reason."""
        return predictive.without_likelihood(self)

    def posterior_predictive(self, samples: Mapping[str, Any]) -> dict[str, Tensor]:
        """See the base class."""
        return predictive.posterior_predictive(self, self._checked_samples(samples, self._dtypes))

    def prior_predictive(self, n: int) -> dict[str, Tensor]:
        """See the base class."""
        return predictive.prior_predictive(self, n)

    def plate_dims(self) -> dict[str, list[str]]:
        """See the base class."""
        return predictive.plate_dims(self)
