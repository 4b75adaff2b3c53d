"""What the sampler needs to know about a posterior: one flat point in, one number out."""

from __future__ import annotations

import contextlib
import itertools
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_dft import messages
from pyro_dft.engine_torch.batched import BatchedPotential
from pyro_dft.engine_torch.branches import Vmapped
from pyro_dft.engine_torch.failures import CHECKS
from pyro_dft.engine_torch.together import Together
from pyro_dft.errors import ModelError
from pyro_dft.models.circular import Evaluate
from pyro_dft.models.posterior import Posterior, checked_samples

from .batching import in_vmap, per_row
from .evaluation import patched

_CHUNK_ELEMENTS = 2**23  # elements of one tensor that a batched evaluation may fill per model run


class Problem(Posterior):
    """A posterior over one flat vector; the common part of models and bare potentials.

    Attributes:
        dtype: Dtype of the flat vector.
        device: Device of the flat vector.
        minibatch: Whether :meth:`minibatch_potential` reads a random part of the data.
        batchable: Whether vmap can evaluate :meth:`potential` for many points at once.
        dynamic_sites: Sites whose transform depends on other sites: :attr:`transforms` does not hold for all points.
    """

    framework = "Pyro"
    dtype: torch.dtype
    device: torch.device
    minibatch: bool = False
    batchable: bool = True
    smoothed_potential: Any = None  # of a point and the noise added to it; bare potentials may have it
    together: Together | None = None  # the processes that share its rows
    summed: frozenset[str] = frozenset()  # sites of which each of them has its own rows
    dynamic_sites: tuple[str, ...] = ()
    _own_tensors: bool = False
    _asks: bool = False  # for values of the point; see `pyro_dft.engine_torch.branches`
    _elements: int = 1
    _centre: Tensor
    _own_start: Tensor | None = None  # a point that the caller wants to start from

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

    @abstractmethod
    def _potential(self, x: Tensor, full: bool) -> Tensor: ...

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
        if self.together is not None:
            return self.together.evaluate(self._own_values_and_gradients, x.detach())
        return self._own_values_and_gradients(x)

    def density(self) -> Evaluate:
        """See the base class."""

        def evaluate(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            points = torch.as_tensor(x, dtype=self.dtype, device=self.device)
            value, gradient = self.values_and_gradients(points)
            return -value.double().cpu().numpy(), -gradient.double().cpu().numpy()

        return evaluate

    def _own_values_and_gradients(self, x: Tensor) -> tuple[Tensor, Tensor]:
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
            x = self._box(n, radius) if init_strategy is None else self._by_strategy(n, init_strategy)
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

    @property
    def centre(self) -> np.ndarray:
        """See the base class."""
        return self._centre.double().cpu().numpy()

    def _box(self, n: int, radius: float, rng: torch.Generator | None = None) -> Tensor:
        """Points (n, d), uniform around the centre."""
        unit = torch.rand(n, self.dim, generator=rng, dtype=self.dtype, device=self.device)
        return self._centre + (unit * (2 * radius) - radius)

    def _by_strategy(self, n: int, init_strategy: Callable[..., Any]) -> Tensor:
        raise ModelError(self._no_strategy())

    def _explain(self, x: Tensor) -> str:
        """Why the potential or its gradient is not finite at ``x``."""
        value, gradient = self._value_and_gradient(x)
        if not value.isfinite():
            return f"At one of them the potential is {value.item()}"
        names = self.layout.coordinate_names()
        bad = [names[i] for i in (~gradient.isfinite()).nonzero().flatten().tolist()]
        return f"At one of them the gradient is not finite with respect to {', '.join(bad[:10])}"

    def _checked_samples(
        self, samples: Mapping[str, Any], dtypes: Mapping[str, torch.dtype]
    ) -> dict[str, Tensor]:
        return checked_samples(
            self.layout,
            samples,
            lambda name, value: torch.as_tensor(value, dtype=dtypes[name], device=self.device),
        )

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
