"""A batched target: log density, score and Hessian-vector products of a potential written for one point."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from pyro_dft.engine_torch.batched import BatchedPotential, Potential
from pyro_dft.engine_torch.random_state import random_state, set_random_state
from pyro_dft.engine_torch.together import Together
from pyro_dft.recipe.engine import FULL_DATA, Forms
from pyro_dft.roots import projected

SmoothedPotential = Callable[[Tensor, Tensor], Tensor]


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
        forms: Its other forms, U(x) from a minibatch and V(x, sigma) with noise, and their rows of data.
        dtype: In which it is evaluated.
        device: On which.
        context: Gives a context manager to hold around each evaluation.
        trace: Whether batch sizes that occur again may be traced.
        together: Processes over which values and scores are summed.
    """

    def __init__(
        self,
        potential: Potential,
        dim: int,
        *,
        forms: Forms = FULL_DATA,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        context: Callable[[], AbstractContextManager] = nullcontext,
        trace: bool = True,
        together: Together | None = None,
    ):
        self.together = together
        self.dim = dim
        self.dtype = dtype
        self.device = torch.device(device)
        self.data_size, self.minibatch_size = forms.rows, forms.minibatch_rows
        self.gradient_evaluations = self.data_rows = 0
        self.nonfinite_evaluations = 0
        self._context = context
        self._anchor: tuple[Tensor, Tensor] | None = None
        self._smoothed = None
        smoothed = forms.smoothed
        if smoothed is not None:
            # The noise is passed as one more coordinate of a point; its derivative is dropped.
            self._smoothed = BatchedPotential(lambda x: smoothed(x[:-1], x[-1]), context, trace, "same")
        self._bind(potential, forms.minibatch, trace)

    def _bind(self, potential: Potential, minibatch_potential: Potential | None, trace: bool) -> None:
        self._full = BatchedPotential(potential, self._context, trace, "same")
        self._minibatch = None
        if minibatch_potential is not None:
            # Each point gets a minibatch of its own: at the same cost, the noise averages out over the batch.
            self._minibatch = BatchedPotential(minibatch_potential, self._context, trace, "different")

    def rebind(self, potential: Potential, minibatch_potential: Potential | None) -> None:
        """Takes another potential of the same dimension, as when a user's loop brings a new minibatch each time."""
        before = self._full
        self._anchor = None
        # A traced graph holds on to the data it was traced with.
        self._bind(potential, minibatch_potential, trace=False)
        self._full.like(before)
        if self._minibatch is not None:
            self._minibatch.like(before)

    def anchor(self, mean: Tensor, scale: Tensor, draws: Tensor) -> bool:
        """Lets minibatch scores of (C, B, d) points be corrected by those at the mean of each chain, if that pays.

        s(x) - s(m) from one minibatch has little noise where the data are many and the posterior is narrow, and the full
        score at m is known: s_minibatch(x) - s_minibatch(m) + s(m), a control variate (Baker et al., Control variates for
        stochastic gradient MCMC, 2019). It costs a second evaluation.

        Args:
            mean: (C, d) points m near the middle of the posterior.
            scale: (C, d, d) or (C, d), in whose units noise is compared.
            draws: (C, n, d) draws to compare it at.

        Returns:
            Whether it is done from now on: where noise has less than half of its variance.
        """
        self._anchor = None
        if not self.minibatch:
            return False
        anchor = mean, self.evaluate(mean)[1]

        def noise() -> float:
            first, second = (projected(scale, self.evaluate(draws, minibatch=True)[1]) for _ in range(2))
            return float((first - second).square().mean())

        plain = noise()
        self._anchor = anchor
        if not noise() < 0.5 * plain:
            self._anchor = None
        return self._anchor is not None

    @property
    def adaptive(self) -> bool:
        """Whether the potential has loops that end by what they compute: none that a batch of points goes through."""
        return False

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
                self._minibatch.like(self._full)
                if self._minibatch.vectorised:
                    self._minibatch.measure(x)
                self._minibatch.trace = self._minibatch.trace and self._full.trace

    def largest_tensor(self, x: Tensor, *, minibatch: bool = False) -> int:
        """Elements of the largest tensor that an evaluation at x (..., d) makes."""
        batched = self._minibatch if minibatch and self._minibatch is not None else self._full
        flat = x.reshape(-1, self.dim).to(self.dtype)
        if batched.vectorised and batched.cost is None:
            batched.measure(flat)
        own = self.dim if batched.cost is None else batched.cost.size.elements * min(len(flat), batched.chunk)
        return own if self.together is None else max(self.together.gather(own))

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
        self.count(2 * (x.numel() // self.dim), minibatch)
        return self._call(_FiniteGradient.apply(x), minibatch)

    def smoothed(self, x: Tensor, sigma: Tensor, *, differentiable: bool) -> tuple[Tensor, Tensor]:
        """As `evaluate`, or `evaluate_differentiable`, of the smoothed potential at x (..., d) with noise sigma (..., 1)."""
        assert self._smoothed is not None
        rows = x.numel() // self.dim
        self.count(3 * rows if differentiable else rows, minibatch=False)
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
        self.count(len(flat), minibatch)
        anchored = minibatch and self._anchor is not None and x.ndim == 3
        state = random_state(self.device) if anchored else None
        log_density, score = self._finite(
            *(batched(flat) if self.together is None else self.together.evaluate(batched, flat))
        )
        if self._anchor is not None and state is not None:
            mean, full = self._anchor
            with torch.no_grad():
                set_random_state(state)  # the same rows of the data for the same point
                at_mean = batched(mean[:, None].expand(x.shape).reshape(-1, self.dim).to(self.dtype))[1]
                self.count(len(flat), minibatch)
                correction = full[:, None].to(score.dtype) - at_mean.reshape(x.shape)
            score = score + torch.nan_to_num(correction).reshape(score.shape)
        return log_density.reshape(x.shape[:-1]).to(x.dtype), score.reshape(x.shape).to(x.dtype)

    def count(self, evaluations: int, minibatch: bool = False) -> None:
        """Adds to the cost, of minibatches or of the full data."""
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
