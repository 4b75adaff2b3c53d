"""A batched target: log density, score and Hessian-vector products of a potential written for one point.

The potential is vectorised with `torch.func.vmap`; where that fails it is evaluated row by row, with one warning that says
what it costs. Batch sizes that come back are traced once into a flat graph of tensor operations (`make_fx`), which takes the
modelling language out of the loop. Scores stay differentiable, so a Hessian-vector product is a backward pass.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_dft.engine_torch.cost import Cost, cost_of
from pyro_dft.engine_torch.failures import ERRORS, Failures
from pyro_dft.engine_torch.random_state import random_state, set_random_state, unmoved
from pyro_dft.engine_torch.recompute import recomputed
from pyro_dft.errors import ModelError, PerformanceWarning
from pyro_dft.recipe.memory import CPU_BYTES, LEAST_POINTS, MOST_POINTS

Potential = Callable[[Tensor], Tensor]
SmoothedPotential = Callable[[Tensor, Tensor], Tensor]
# Tracing a potential of more tensor operations than this costs more than it saves.
TRACE_LIMIT = 2000


class BatchedPotential:
    """Evaluates (log density, score) of one potential on (n, d) points."""

    def __init__(
        self,
        potential: Potential,
        context: Callable[[], AbstractContextManager],
        trace: bool,
        randomness: str,
    ):
        self.potential = potential
        self.context = context
        self.trace = trace
        self.vectorised = True
        self.cost: Cost | None = None
        self.chunk = MOST_POINTS
        self.failures = Failures(potential, context)
        self._graphs: dict[int, Callable[[Tensor], tuple[Tensor, Tensor]] | None] = {}
        self._seen: dict[int, int] = {}
        self._left = 0
        self._vmapped = torch.func.vmap(torch.func.grad_and_value(potential), randomness=randomness)

    def probe(self, x: Tensor) -> None:
        """Finds out, on a few points (n, d), whether the potential can be batched and is worth tracing.

        Raises:
            ModelError: the potential fails at single points too, or does not return one number.
        """
        expected_g, expected_u = self._rows(x, errors=True)
        try:
            with warnings.catch_warnings():
                # vmap's own advice on slow batching rules is not for our users.
                warnings.filterwarnings("ignore", category=UserWarning, message=".*performance drop.*")
                self.measure(x)
                parts = [self._eager(chunk) for chunk in x.split(self.chunk)]
                g, u = (torch.cat(part) for part in zip(*parts, strict=True))
        except Exception as error:  # whatever the model does that vmap does not support
            self._fall_back(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            return
        same = torch.allclose(u, expected_u, rtol=1e-3, atol=1e-3, equal_nan=True)
        if not same or not torch.allclose(g, expected_g, rtol=1e-2, atol=1e-2, equal_nan=True):
            self._fall_back("batched values differ from single ones")

    def measure(self, x: Tensor) -> None:
        """Finds out, at one point or two of (n, d), how many are evaluated at once, and whether to trace that."""
        points = x.detach()
        try:
            self.cost = cost_of(
                lambda n: self._eager(points[torch.arange(n, device=points.device) % len(points)]), x.device
            )
        except Exception:  # the evaluation itself says why, if it was that
            self.cost, self.chunk = Cost(), LEAST_POINTS
            return
        self.chunk = self.cost.size.at_once(x.device.type == "cpu")
        self.trace = self.trace and self.cost.operations < TRACE_LIMIT

    def _fall_back(self, reason: str) -> None:
        self.vectorised = False
        warnings.warn(
            f"the potential cannot be evaluated for a batch of points at once ({reason}), so it runs point by point: "
            "expect training to take some hundred times longer. Models without Python branches on latent values, "
            ".item() or in-place writes can be batched.",
            PerformanceWarning,
            stacklevel=2,
        )

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, d) points -> log density (n,), score (n, d); differentiable where gradients are enabled."""
        if self.cost is None and self.vectorised:
            self.measure(x)
        again = self._keeps_too_much(x)
        parts = []
        for chunk in x.split(self.chunk):
            gradient, value = recomputed(self._one_chunk, chunk) if again else self._one_chunk(chunk)
            parts.append((-value, -gradient))
        if len(parts) == 1:
            return parts[0]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def _keeps_too_much(self, x: Tensor) -> bool:
        # On a GPU the backward pass has a thread of its own, from which models cannot be run.
        kept = torch.is_grad_enabled() and x.requires_grad and x.device.type == "cpu" and len(x) > self.chunk
        return kept and self.cost is not None and self.cost.size.keeps_too_much(len(x))

    def _one_chunk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.vectorised:
            return self._rows(x)
        try:
            return self._batched(x)
        except torch.linalg.LinAlgError:
            return self._halves(x)

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Linear algebra gives up on a whole batch for one singular matrix: halves find the point, which gets NaN."""
        if len(x) == 1:
            return torch.full_like(x, torch.nan), x.new_full((1,), torch.nan)
        parts = []
        for half in x.split((len(x) + 1) // 2):
            try:
                parts.append(self._eager(half))
            except torch.linalg.LinAlgError:
                parts.append(self._halves(half))
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def _batched(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.trace:
            return self._eager(x)
        n = len(x)
        if n not in self._graphs:
            self._seen[n] = self._seen.get(n, 0) + 1
            # Sizes that come once or twice are not worth a trace; and a handful of sizes is all that a fit needs.
            if self._seen[n] < 4 or len(self._graphs) >= 8:
                return self._eager(x)
            self._graphs[n] = self._traced(x)
        graph = self._graphs[n]
        return self._eager(x) if graph is None else graph(x)

    def _eager(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with self.context():
            result = self._vmapped(x)
        # A run of a model leaves its tensors in circles of references, and Python counts objects, not bytes.
        self._left += 0 if self.cost is None else len(x) * self.cost.size.total_bytes
        if self._left > CPU_BYTES:
            self._left = 0
            gc.collect()
        return result

    def _traced(self, x: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
        x = x.detach()
        # A trace must not use up random numbers: a training that was interrupted makes it at another step.
        try:
            with self.context(), torch.no_grad():
                with unmoved(x.device):
                    graph = make_fx(lambda batch: self._vmapped(batch))(x)
                with unmoved(x.device):
                    expected = self._vmapped(x)
                with unmoved(x.device):
                    found = graph(x)
            same = all(
                torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)
                for a, b in zip(expected, found, strict=True)
            )
        except Exception:  # tracing is an optimisation: any failure leaves eager mode in place
            same = False
        if not same:
            self.trace = False
            return None
        return graph

    def _rows(self, x: Tensor, errors: bool = False) -> tuple[Tensor, Tensor]:
        """Row by row, with plain autograd (Python branches on latent values work)."""
        higher = torch.is_grad_enabled() and x.requires_grad
        gradients, values = [], []
        with self.context(), torch.enable_grad():
            for row in x:
                point = row if higher else row.detach().requires_grad_()
                self.failures.evaluations += 1
                try:
                    value = self.potential(point)
                    if not isinstance(value, Tensor) or value.numel() != 1:
                        raise ModelError(
                            f"the potential must return one number, not {getattr(value, 'shape', type(value))}"
                        )
                    (gradient,) = torch.autograd.grad(
                        value.reshape(()), point, create_graph=higher, allow_unused=True
                    )
                    gradient = torch.zeros_like(point) if gradient is None else gradient
                    self.failures.worked(point)
                except ModelError:
                    raise
                except ERRORS as error:
                    if errors:
                        raise
                    self.failures.check(error)
                    value, gradient = point.new_tensor(float("nan")), torch.full_like(point, float("nan"))
                values.append(value.reshape(()) if higher else value.detach().reshape(()))
                gradients.append(gradient)
        return torch.stack(gradients), torch.stack(values)


class _FiniteGradient(torch.autograd.Function):
    """Identity whose backward pass drops non-finite gradients: one bad particle must not spoil the batch."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)


class Target:
    """The posterior that a sampler is trained for, on points x of unconstrained R^d.

    Args:
        potential: U(x) of one point (d,), minus the log density up to a constant, on the full data.
        dim: d.
        minibatch_potential: The same from a fresh random subsample of the data in each call, unbiased; or None.
        smoothed_potential: V(x, sigma), minus the log density of the posterior with noise N(0, sigma^2 I) added; or None.
        context: Gives a context manager to hold around each evaluation.
        data_size: Data rows that one evaluation of `potential` reads (for budgets).
        minibatch_size: The same of `minibatch_potential`.
        trace: Whether batch sizes that come back may be traced.
    """

    def __init__(
        self,
        potential: Potential,
        dim: int,
        *,
        smoothed_potential: SmoothedPotential | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        minibatch_potential: Potential | None = None,
        context: Callable[[], AbstractContextManager] = nullcontext,
        data_size: int = 1,
        minibatch_size: int = 1,
        trace: bool = True,
    ):
        self.dim = dim
        self.dtype = dtype
        self.device = torch.device(device)
        self.data_size, self.minibatch_size = data_size, minibatch_size
        self.gradient_evaluations = self.data_rows = 0
        self.nonfinite_evaluations = 0
        self._context = context
        self._anchor: tuple[Tensor, Tensor] | None = None
        self._smoothed = None
        if smoothed_potential is not None:
            smoothed = smoothed_potential
            # The noise is one more coordinate of a point, by which nothing is differentiated in the end.
            self._smoothed = BatchedPotential(lambda x: smoothed(x[:-1], x[-1]), context, trace, "same")
        self._bind(potential, minibatch_potential, trace)

    def _bind(self, potential: Potential, minibatch_potential: Potential | None, trace: bool) -> None:
        self._full = BatchedPotential(potential, self._context, trace, "same")
        self._minibatch = None
        if minibatch_potential is not None:
            # Each point gets a minibatch of its own: at the same cost, the noise averages out over the batch.
            self._minibatch = BatchedPotential(minibatch_potential, self._context, trace, "different")

    def rebind(self, potential: Potential, minibatch_potential: Potential | None) -> None:
        """Takes another potential of the same dimension, as when a user's loop brings a new minibatch each time."""
        vectorised = self._full.vectorised
        self._anchor = None
        # A traced graph holds on to the data it was traced with.
        self._bind(potential, minibatch_potential, trace=False)
        self._full.vectorised = vectorised
        if self._minibatch is not None:
            self._minibatch.vectorised = vectorised

    def anchor(self, mean: Tensor, scale: Tensor, draws: Tensor) -> bool:
        """Lets minibatch scores of (C, B, d) points be corrected by those at the mean of each chain, if that pays.

        s(x) - s(m) from one minibatch has little noise where the data are many and the posterior is narrow, and the full
        score at m is known: s_minibatch(x) - s_minibatch(m) + s(m), a control variate (Baker et al., Control variates for
        stochastic gradient MCMC, 2019). It costs a second evaluation.

        Args:
            mean: (C, d) points m near the middle of the posterior.
            scale: (C, d, d), in whose units noise is compared.
            draws: (C, n, d) draws to compare it at.

        Returns:
            Whether it is done from now on: where noise has less than half of its variance.
        """
        self._anchor = None
        if not self.minibatch:
            return False
        anchor = mean, self.evaluate(mean)[1]

        def noise() -> float:
            first, second = (self.evaluate(draws, minibatch=True)[1] @ scale for _ in range(2))
            return float((first - second).square().mean())

        plain = noise()
        self._anchor = anchor
        if not noise() < 0.5 * plain:
            self._anchor = None
        return self._anchor is not None

    @property
    def minibatch(self) -> bool:
        """Whether scores can come from random subsamples of the data."""
        return self._minibatch is not None

    @property
    def vectorised(self) -> bool:
        """Whether a batch of points is evaluated at once."""
        return self._full.vectorised

    def probe(self, x: Tensor) -> None:
        """Checks on (n, d) points that the potential works, and how it can be batched.

        Raises:
            ModelError: it does not return one number.
        """
        with torch.no_grad():
            self._full.probe(x)
            if self._smoothed is not None:
                self._smoothed.probe(torch.cat([x, torch.ones_like(x[:, :1])], -1))
            if self._minibatch is not None:
                # Fresh subsamples make single and batched values differ, so only the full potential is compared.
                self._minibatch.vectorised = self._full.vectorised
                if self._minibatch.vectorised:
                    self._minibatch.measure(x)
                self._minibatch.trace = self._minibatch.trace and self._full.trace

    def largest_tensor(self, x: Tensor, *, minibatch: bool = False) -> int:
        """Elements of the largest tensor that an evaluation at x (..., d) makes."""
        batched = self._minibatch if minibatch and self._minibatch is not None else self._full
        flat = x.reshape(-1, self.dim).to(self.dtype)
        if batched.vectorised and batched.cost is None:
            batched.measure(flat)
        return (
            self.dim if batched.cost is None else batched.cost.size.elements * min(len(flat), batched.chunk)
        )

    def evaluate(self, x: Tensor, *, minibatch: bool = False) -> tuple[Tensor, Tensor]:
        """Log density (...,) and score (..., d) at x (..., d), without gradients.

        Where either is not finite the log density is -inf and the score zero; such points are counted.
        """
        with torch.no_grad():
            log_density, score = self._call(x, minibatch)
        return log_density, score

    def evaluate_differentiable(self, x: Tensor, *, minibatch: bool = False) -> tuple[Tensor, Tensor]:
        """As `evaluate`, but the score is differentiable in x: the backward pass is a Hessian-vector product."""
        # The backward pass through the score costs about two more gradient evaluations.
        self._count(2 * (x.numel() // self.dim), minibatch)
        return self._call(_FiniteGradient.apply(x), minibatch)

    def smoothed(self, x: Tensor, sigma: Tensor, *, differentiable: bool) -> tuple[Tensor, Tensor]:
        """As `evaluate`, or `evaluate_differentiable`, of the smoothed potential at x (..., d) with noise sigma (..., 1)."""
        assert self._smoothed is not None
        rows = x.numel() // self.dim
        self._count(3 * rows if differentiable else rows, minibatch=False)
        points = torch.cat([_FiniteGradient.apply(x), sigma.expand(*x.shape[:-1], 1)], -1)
        with torch.set_grad_enabled(differentiable):
            value, score = self._smoothed(points.reshape(rows, -1))
        log_density, score = self._finite(value, score[:, :-1])
        return log_density.reshape(x.shape[:-1]), score.reshape(x.shape)

    def _call(self, x: Tensor, minibatch: bool) -> tuple[Tensor, Tensor]:
        batched = self._minibatch if minibatch and self._minibatch is not None else self._full
        flat = x.reshape(-1, self.dim)
        if flat.dtype != self.dtype:
            flat = flat.to(self.dtype)
        self._count(len(flat), minibatch)
        anchored = minibatch and self._anchor is not None and x.ndim == 3
        state = random_state(self.device) if anchored else None
        log_density, score = self._finite(*batched(flat))
        if self._anchor is not None and state is not None:
            mean, full = self._anchor
            with torch.no_grad():
                set_random_state(state)  # the same rows of the data for the same point
                at_mean = batched(mean[:, None].expand(x.shape).reshape(-1, self.dim).to(self.dtype))[1]
                self._count(len(flat), minibatch)
                correction = full[:, None].to(score.dtype) - at_mean.reshape(x.shape)
            score = score + torch.nan_to_num(correction).reshape(score.shape)
        return log_density.reshape(x.shape[:-1]).to(x.dtype), score.reshape(x.shape).to(x.dtype)

    def _count(self, evaluations: int, minibatch: bool) -> None:
        rows = self.minibatch_size if minibatch and self.minibatch else self.data_size
        self.gradient_evaluations += evaluations
        self.data_rows += evaluations * rows

    def _finite(self, log_density: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        """Points where either is not finite get the density zero and no score, and are counted."""
        good = torch.isfinite(log_density) & torch.isfinite(score).all(-1)
        if bool(good.all()):
            return log_density, score
        self.nonfinite_evaluations += int((~good).sum())
        return torch.where(good, log_density, -torch.inf), torch.where(good[:, None], score, 0.0)
