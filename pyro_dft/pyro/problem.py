"""What the sampler needs to know about a posterior: one flat point in, one number out."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_dft import messages
from pyro_dft.engine_torch.batched import BatchedPotential
from pyro_dft.engine_torch.branches import Vmapped
from pyro_dft.engine_torch.failures import CHECKS
from pyro_dft.errors import ModelError
from pyro_dft.layout import Layout

from .batching import in_vmap, per_row
from .evaluation import patched

_CHUNK_ELEMENTS = 2**23  # elements of one tensor that a batched evaluation may fill per model run


class Problem:
    """A posterior over one flat vector; the common part of models and bare potentials.

    Attributes:
        layout: Sites of the flat vector.
        transforms: Name -> transform from constrained to unconstrained values.
        dtype: Dtype of the flat vector.
        device: Device of the flat vector.
        minibatch: Whether :meth:`minibatch_potential` reads a random part of the data.
        data_size: Rows of data that one call of :meth:`potential` reads (1 without subsampled plates).
        minibatch_size: Rows of data that one call of :meth:`minibatch_potential` reads.
        enumerated: Whether discrete sites are summed out.
        batchable: Whether vmap can evaluate :meth:`potential` for many points at once.
        dynamic_sites: Sites whose transform depends on other sites: :attr:`transforms` does not hold for all points.
    """

    layout: Layout
    transforms: dict[str, Any]
    dtype: torch.dtype
    device: torch.device
    minibatch: bool = False
    data_size: int = 1
    minibatch_size: int = 1
    enumerated: bool = False
    batchable: bool = True
    dynamic_sites: tuple[str, ...] = ()
    _own_tensors: bool = False
    _asks: bool = False  # for values of the point; see `pyro_dft.engine_torch.branches`
    _elements: int = 1
    _own_start: Tensor | None = None  # a point that the caller wants to start from

    @property
    def dim(self) -> int:
        """Length d of the flat vector."""
        return self.layout.dim

    def context(self) -> contextlib.AbstractContextManager[None]:
        """Patches around evaluations; enter it once around many calls. Everything is restored afterwards."""
        return patched()

    def potential(self, x: Tensor) -> Tensor:
        """Negative log density of one point on the full data, up to a constant.

        Args:
            x: Flat point of shape (d,).

        Returns:
            Scalar; NaN where linear algebra fails. Inside vmap such a failure raises, since it cannot be told
            which point of the batch it belongs to: evaluate the points one by one then.
        """
        return self._safely(x, full=True)

    def minibatch_potential(self, x: Tensor) -> Tensor:
        """Unbiased estimate of :meth:`potential` from a fresh minibatch per call.

        Without subsampled plates it is the same.

        Under ``vmap(..., randomness="same")`` one minibatch is shared by the batch.
        """
        return self._safely(x, full=not self.minibatch)

    def _safely(self, x: Tensor, full: bool) -> Tensor:
        try:
            with patched(), per_row(x, True) if self._own_tensors else contextlib.nullcontext():
                return self._potential(x, full)
        except ModelError as error:  # without the shapes of the whole trace that Pyro appends
            raise ModelError(str(error).split("\nTrace Shapes:")[0]) from error
        except torch.linalg.LinAlgError:
            if in_vmap(x):
                raise
            return x.sum() * float("nan")

    def _potential(self, x: Tensor, full: bool) -> Tensor:
        raise NotImplementedError

    def smoothed_potential(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Negative log density of one point with noise of that standard deviation added."""
        raise ModelError(self._needs_potential("the density with noise added"))

    def find_batching(self, x: Tensor) -> None:
        """Finds out, at one point (d,), how :meth:`potential` can be batched; sets :attr:`batchable`.

        A model that writes into tensors it has made itself needs one copy of them per point, which is slower.
        """
        function = Vmapped(self.minibatch_potential, "same")
        for function.asks, self._own_tensors in itertools.product((False, True), repeat=2):
            with patched():
                try:
                    function(torch.stack([x, x]))
                    self._asks = function.asks
                    return
                except Exception:  # vmap has many ways to say no
                    continue
        self._own_tensors = self.batchable = False

    def values_and_gradients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Full-data potential and gradient of many points, by vmap or, where that fails, one by one.

        Args:
            x: Points of shape (n, d).

        Returns:
            Potentials (n,) and gradients (n, d), detached; NaN where the model raises as for a density of zero.
        """
        with patched():
            if self.batchable:
                batched = BatchedPotential(self.potential, patched, False, "same", self._asks)
                try:
                    parts = [batched(rows) for rows in x.detach().split(self._chunk(len(x)))]
                    log_densities, scores = (torch.cat(part).detach() for part in zip(*parts, strict=True))
                    return -log_densities, -scores
                except Exception:  # a point of this batch, say: the loop finds out
                    pass
            pairs = [self._value_and_gradient(row) for row in x]
        return torch.stack([value for value, _ in pairs]), torch.stack([gradient for _, gradient in pairs])

    def _value_and_gradient(self, row: Tensor) -> tuple[Tensor, Tensor]:
        point = row.detach().clone().requires_grad_()
        with torch.enable_grad():
            try:
                value = self.potential(point)
            except ModelError:
                raise
            except CHECKS:
                return row.new_tensor(float("nan")), torch.full_like(row, float("nan"))
            if not value.requires_grad:
                return value.detach(), torch.zeros_like(row)
            (gradient,) = torch.autograd.grad(value, point, allow_unused=True)
        return value.detach(), torch.zeros_like(row) if gradient is None else gradient

    def _chunk(self, n: int) -> int:
        """How many points to evaluate at a time."""
        return max(1, min(n, _CHUNK_ELEMENTS // max(1, self._elements)))

    def initial_points(
        self,
        n: int,
        radius: float = 2.0,
        init_strategy: Callable[..., Any] | None = None,
        max_tries: int = 100,
    ) -> Tensor:
        """Points with finite potential and gradient to start from.

        Args:
            n: Number of points.
            radius: Half-width of the uniform box in unconstrained space, where no strategy is given.
            init_strategy: Pyro's per-site strategies, such as ``pyro.infer.autoguide.init_to_median``.
            max_tries: How often n points are proposed before giving up.

        Returns:
            Tensor of shape (n, d). Where too few finite points turn up, they are repeated.

        Raises:
            ModelError: No proposed point is finite; the message says which sites are to blame.
        """
        found: list[Tensor] = []
        count = 0
        x = torch.empty(0)
        for attempt in range(max_tries):
            x = self._propose(n, radius, init_strategy)
            # Once only: where it is not finite, the places that it would take are for others.
            if attempt == 0 and self._own_start is not None:
                x[0] = self._own_start
            values, gradients = self.values_and_gradients(x)
            finite = values.isfinite() & gradients.isfinite().all(-1)
            found.append(x[finite])
            count += int(finite.sum())
            if count >= n:
                break
        if not count:
            raise messages.no_valid_start(n * max_tries, self._explain(x[0]))
        points = torch.cat(found)
        return points[torch.arange(n, device=points.device) % len(points)]

    def _propose(self, n: int, radius: float, init_strategy: Callable[..., Any] | None) -> Tensor:
        raise NotImplementedError

    def _explain(self, x: Tensor) -> str:
        """Why the potential or its gradient is not finite at ``x``."""
        value, gradient = self._value_and_gradient(x)
        if not value.isfinite():
            return f"At one of them the potential is {value.item()}"
        names = self.layout.coordinate_names()
        bad = [names[i] for i in (~gradient.isfinite()).nonzero().flatten().tolist()]
        return f"At one of them the gradient is not finite with respect to {', '.join(bad[:10])}"

    def constrain(self, x: Tensor, include_deterministic: bool = True) -> dict[str, Tensor]:
        """Flat points -> values of latent sites and, if asked for, deterministic ones.

        Args:
            x: Points of shape (n, d).
            include_deterministic: Also return ``pyro.deterministic`` sites and sites that a reparametrisation
                made deterministic. Those that depend on enumerated sites have no single value: left out.

        Returns:
            Name -> tensor of shape (n, *site shape).
        """
        raise NotImplementedError

    def unconstrain(self, samples: Mapping[str, Any]) -> Tensor:
        """Values of the latent sites -> flat points; entries that are no latent sites are ignored.

        Args:
            samples: Name -> array of shape (n, *site shape).

        Returns:
            Points of shape (n, d).

        Raises:
            ModelError: A latent site is missing or has the wrong shape.
        """
        raise NotImplementedError

    def _checked_samples(
        self, samples: Mapping[str, Any], dtypes: Mapping[str, torch.dtype]
    ) -> dict[str, Tensor]:
        missing = [name for name in self.layout.names if name not in samples]
        if missing:
            raise ModelError(f"samples lack the latent sites {missing}")
        checked = {}
        for site in self.layout.sites:
            value = torch.as_tensor(samples[site.name], dtype=dtypes[site.name], device=self.device)
            if value.dim() == 0 or value.shape[1:] != site.constrained_shape:
                shape = ", ".join(["n", *map(str, site.constrained_shape)])
                raise ModelError(
                    f"samples of site '{site.name}' must have shape ({shape}), got {tuple(value.shape)}"
                )
            checked[site.name] = value
        counts = {name: len(value) for name, value in checked.items()}
        if len(set(counts.values())) > 1:
            raise ModelError(f"samples have different numbers of draws: {counts}")
        return checked

    def original_coordinates(self, x: Tensor) -> Tensor:
        """Flat points (n, d) -> the unconstrained coordinates (n, d) of the problem before non-centring."""
        return x

    def folded(self, x: np.ndarray) -> np.ndarray:
        """Flat points (..., d) without the full turns of angles; themselves where there are none."""
        return x

    def noncentering_candidates(self) -> tuple[str, ...]:
        """Sites whose prior is moved or stretched by other latent sites (`families.py`); none if enumerated."""
        return ()

    def noncentered(self, sites: Collection[str] | Mapping[str, float]) -> Problem:
        """The same posterior with standardised coordinates for ``sites``.

        The flat coordinates of such a site hold y, its unconstrained coordinates are loc + scale * y, with loc and scale from
        the model's own run; see `noncentering.py`. :meth:`constrain` returns the original sites.

        Args:
            sites: Names out of :meth:`noncentering_candidates`, or name -> amount, from 0 for the model's own coordinates to 1.

        Raises:
            ModelError: One of the sites is not a candidate.
        """
        raise ModelError(f"sites {list(sites)} cannot be non-centred: that needs a Pyro model")

    def invalid(self, x: Any) -> dict[str, dict[str, float]]:
        """Parameters and data that their distributions do not allow, at points (n, d); see `pyro_dft.models.validity`."""
        return {"parameters": {}, "data": {}}

    def observed(self) -> dict[str, Tensor]:
        """Observed data by site."""
        raise ModelError(self._needs_model("observed data"))

    def site_terms(self, x: Tensor) -> dict[str, tuple[np.ndarray, np.ndarray] | None]:
        """Log density of each site on the full data at points (n, d), in double precision; {} for a bare potential.

        Returns:
            Name of a latent or observed site, and "log Jacobian" for the transforms -> the sum (n,) and the sum of the absolute
            terms (n,), or None where discrete sites leave it no density by itself.
        """
        return {}

    def log_likelihood(self, samples: Mapping[str, Any]) -> dict[str, Tensor]:
        """Pointwise log-likelihood of all data, log p(datum | draw); entries under a mask are 0.

        Terms of ``pyro.factor`` belong to no datum and are not included. Discrete sites are summed out where
        each datum has its own; :meth:`without_likelihood` names the sites where that is impossible, which are
        left out here.

        Args:
            samples: Name -> array of shape (n, *site shape), for all latent sites.

        Returns:
            Name of an observed site -> tensor of shape (n, *batch shape of the site).

        Raises:
            ModelError: No observed site has a pointwise log-likelihood, or ``samples`` do not fit the model.
        """
        raise ModelError(self._needs_model("the log-likelihood"))

    def posterior_predictive(self, samples: Mapping[str, Any]) -> dict[str, Tensor]:
        """New data in the shape of the old, one replicate per draw.

        Discrete sites are drawn from their posterior given the draw and the data.

        Args:
            samples: Name -> array of shape (n, *site shape), for all latent sites.

        Returns:
            Name of an observed site -> tensor of shape (n, *shape of the data).

        Raises:
            ModelError: ``samples`` do not fit the model.
        """
        raise ModelError(self._needs_model("the posterior predictive distribution"))

    def prior_predictive(self, n: int) -> dict[str, Tensor]:
        """Draws n values of latent, discrete, deterministic and observed sites from the prior.

        Raises:
            ModelError: A prior is improper.
        """
        raise ModelError(self._needs_model("the prior predictive distribution"))

    def plate_dims(self) -> dict[str, list[str]]:
        """Names of the dimensions of latent, deterministic and observed sites, for ArviZ.

        Dimensions of a plate carry its name, others are called ``"<site>_dim_<i>"``.
        """
        return {}

    @staticmethod
    def _needs_potential(what: str) -> str:
        return f"{what} needs smoothed_potential_fn: a model does not give it"

    @staticmethod
    def _needs_model(what: str) -> str:
        return f"{what} needs a Pyro model: a bare potential_fn knows neither data nor likelihood"
