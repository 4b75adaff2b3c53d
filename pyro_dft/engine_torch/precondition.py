"""A Gaussian fitted to the target from scores alone: the coordinates in which the sampler is trained.

Natural-gradient variational inference with antithetic draws, from several starting points at once. For x = mu + L e and
s = L^T grad log q(x), the matrix -E[s e^T] estimates L^T (-Hessian) L, which is the identity at the optimum (Stein's
lemma; Opper and Archambeau 2009, Lin, Khan and Schmidt 2019). All of it is invariant to affine maps of x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_dft.engine_torch.target import Target
from pyro_dft.recipe.constants import (
    AVERAGING_SHARE,
    CALM_STEPS,
    EVIDENCE_ROWS,
    FULL_RANK_LIMIT,
    LEAST_POLISH,
    MAX_SD,
    POLISH_CALM,
    POLISH_STEPS,
    pairs,
)
from pyro_dft.recipe.gaussians import Gaussians


class GaussianFitter:
    """Fits one full-rank Gaussian from each starting point (diagonal above 300 dimensions), step by step.

    Args:
        target: The target; minibatch scores are used where it has them.
        starts: (K, d) starting means.
        start_scales: (K,) standard deviations to start from.
        steps: Natural-gradient steps at most; fitting ends early when all restarts have settled.
        rng: Generator on the target's device.
    """

    def __init__(
        self, target: Target, starts: Tensor, start_scales: Tensor, *, steps: int, rng: torch.Generator
    ):
        self.target, self.steps, self.rng = target, steps, rng
        self.taken = 0
        self.settled = False
        self._minibatch, self._calm = target.minibatch, CALM_STEPS
        self._state = _State.start(starts.double(), start_scales.double(), target.dim <= FULL_RANK_LIMIT)
        self._averaging_from = int(steps * (1 - AVERAGING_SHARE))

    @property
    def done(self) -> bool:
        """Whether all steps are taken or the restarts have settled and been averaged."""
        return self.taken >= min(self.steps, self._averaging_from + AVERAGING_SHARE * self.steps)

    @property
    def best_elbo(self) -> float:
        """The highest evidence bound seen, up to the target's constant."""
        return float(self._state.best.max())

    def advance(self) -> list[float]:
        """One natural-gradient step of every restart; the highest bound after it."""
        self.step()
        return [self.best_elbo]

    def step(self) -> None:
        """One natural-gradient step of every restart."""
        averaging = self.taken - self._averaging_from
        # The first steps only have to find the way; they do with half the draws.
        early = self._state.full and self.taken < self.steps // 3
        count = max(16, self.target.dim) if early else pairs(self.target.dim)
        own = averaging if averaging >= 0 else None
        self._state.advance(self.target, count, self.rng, own, minibatch=self._minibatch)
        self.taken += 1
        if averaging < 0 and self._state.settled(self._calm):
            self.settled, self._averaging_from = True, self.taken

    def go_on_from(self, gaussians: Gaussians) -> None:
        """Starts from Gaussians that are nearly right, with scores of the full data."""
        full, home = self._state.full, self._state.mean.device
        mean, roots = (torch.as_tensor(v, device=home) for v in (gaussians.mean, gaussians.scale))
        scale = roots if full else roots.diagonal(dim1=-2, dim2=-1)
        self._state = _State(mean, scale, torch.linalg.slogdet(roots)[1], full)
        self._minibatch, self._calm = False, POLISH_CALM

    def current(self) -> Gaussians:
        """The K Gaussians as they stand, with the highest bounds seen, which cost nothing."""
        now = self._state
        return _on_host(now.mean, now.full_scale, now.best, torch.zeros_like(now.best))

    def result(self) -> Gaussians:
        """The K Gaussians; those whose evidence bound is not finite have `elbo` -inf."""
        rows = len(self._state.mean) * self.target.data_size
        count = int(min(256, max(8, EVIDENCE_ROWS / (2 * rows))))
        elbo, error = self._state.evidence_bound(self.target, count, self.rng)
        return _on_host(self._state.mean, self._state.full_scale, elbo, error)


def _on_host(*parts: Tensor) -> Gaussians:
    return Gaussians(*(part.cpu().numpy() for part in parts))


def polish(target: Target, gaussians: Gaussians, rng: torch.Generator, budget: float) -> Gaussians:
    """Goes on with fits to minibatches on the full data, where their noise would need thousands of steps to average out.

    Args:
        target: The target.
        gaussians: Where to go on.
        rng: Generator on the target's device.
        budget: Gradient evaluations times data rows that may be used; where they allow few steps, none are made.
    """
    each = 2 * pairs(target.dim) * len(gaussians.mean) * target.data_size
    steps = int(min(POLISH_STEPS, budget / each))
    if steps < LEAST_POLISH:
        return gaussians
    starts = torch.as_tensor(gaussians.mean, device=target.device)
    fitter = GaussianFitter(target, starts, torch.ones_like(starts[:, 0]), steps=steps, rng=rng)
    fitter.go_on_from(gaussians)
    while not fitter.done:
        fitter.step()
    return fitter.result()


class _State:
    """Means (K, d), scales (K, d, d) or (K, d), and what is needed to step back from a bad move."""

    def __init__(self, mean: Tensor, scale: Tensor, log_det: Tensor, full: bool):
        self.mean, self.scale, self.log_det, self.full = mean, scale, log_det, full
        self.rate = torch.ones(len(mean), dtype=torch.float64, device=mean.device)
        self.best = torch.full_like(self.rate, -torch.inf)
        self.kept = (mean, scale, log_det)
        self.returned = torch.zeros(len(mean), dtype=torch.bool, device=mean.device)
        # The longest step, in units of 2 sqrt(d): it doubles while a far optimum lies ahead.
        self.reach = torch.ones_like(self.rate)
        self.limited = torch.zeros_like(self.returned)
        self.last = torch.zeros_like(mean)
        self.stopped = torch.zeros_like(self.returned)
        self.calm = 0
        self.calm_sd = self.sd

    @classmethod
    def start(cls, mean: Tensor, sd: Tensor, full: bool) -> _State:
        d = mean.shape[-1]
        scale = sd[:, None] * torch.ones_like(mean)
        return cls(mean, torch.diag_embed(scale) if full else scale, d * sd.log(), full)

    @property
    def sd(self) -> Tensor:
        """Standard deviations, (K, d)."""
        return self.scale.square().sum(-1).sqrt() if self.full else self.scale

    @property
    def full_scale(self) -> Tensor:
        """Square roots of the covariances, (K, d, d)."""
        return self.scale if self.full else torch.diag_embed(self.scale)

    def _draw(self, noise: Tensor) -> Tensor:
        moved = noise @ self.scale.mT if self.full else noise * self.scale[:, None]
        return self.mean[:, None] + moved

    def _whitened_score(self, score: Tensor) -> Tensor:
        return score @ self.scale if self.full else score * self.scale[:, None]

    def _noise(self, pairs: int, rng: torch.Generator) -> Tensor:
        shape = (len(self.mean), pairs, self.mean.shape[-1])
        noise = torch.randn(shape, generator=rng, dtype=torch.float64, device=self.mean.device)
        return torch.cat([noise, -noise], 1)

    def evidence_bound(self, target: Target, pairs: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Evidence lower bounds (K,), up to the target's constant, and their standard errors."""
        log_q, _ = target.evaluate(self._draw(self._noise(pairs, rng)))
        return self._bound(log_q, torch.isfinite(log_q))

    def _bound(self, log_q: Tensor, good: Tensor) -> tuple[Tensor, Tensor]:
        """The bound over the finite points, -inf where more than a tenth are not."""
        count = good.sum(1)
        mean = torch.where(good, log_q, 0.0).sum(1) / count.clamp(min=1)
        # The two points of an antithetic pair are not independent: pairs are the units of the standard error.
        pairs = torch.where(good, log_q - mean[:, None], 0.0).unflatten(1, (2, -1)).sum(1)
        bound = torch.where(count >= 0.9 * good.shape[1], mean + self.log_det, -torch.inf)
        return bound, pairs.square().sum(1).sqrt() / count.clamp(min=1)

    def advance(
        self, target: Target, pairs: int, rng: torch.Generator, averaging: int | None, *, minibatch: bool
    ) -> None:
        """One natural-gradient step; `averaging` counts the steps of the last, noise-averaging part."""
        noise = self._noise(pairs, rng)
        log_q, score = target.evaluate(self._draw(noise), minibatch=minibatch)
        good = torch.isfinite(log_q)
        # Points where the target is not finite act as under a unit Gaussian: they pull back.
        s = torch.where(good[..., None], self._whitened_score(score), -noise)
        n, d = noise.shape[1:]
        centre = s.mean(1)
        elbo, error = self._bound(log_q, good)
        rate = self.rate
        if minibatch:
            # Minibatch noise swamps the bound, so the step follows from the size of that noise instead.
            spread, size = self._minibatch_noise(s - centre[:, None], noise)
            ridge = (spread / size**2).clamp(min=1.0)[:, None, None]
            rate = (0.5 * size * (n / spread).sqrt()).clamp(max=1.0)
            pull = 1 - 4 * spread * d / (n * centre.square().sum(-1).clamp(min=1e-300))
            mean_rate = torch.maximum(rate, pull)
            self.best = torch.fmax(self.best, elbo)
            dropped = torch.zeros_like(self.returned)
        else:
            ridge = torch.ones(1, 1, 1, dtype=s.dtype, device=s.device)
            dropped = self._accept_or_return(elbo, error)
            # The scores of a point that was just left are of no use at the one returned to.
            rate = mean_rate = torch.where(dropped, 0.0, self.rate)
        if averaging is not None:
            rate, mean_rate = rate / (1 + averaging) ** 0.7, mean_rate / (1 + averaging) ** 0.7
        if self.full:
            eye = torch.eye(d, dtype=s.dtype, device=s.device)
            gram = noise.mT @ noise + ridge * eye
            product = -(s - centre[:, None]).mT @ noise + ridge * eye
            curvature = torch.linalg.solve(gram, product, left=False)
            curvature = torch.nan_to_num(0.5 * (curvature + curvature.mT), nan=0.0, posinf=9.0, neginf=-9.0)
            w, v = torch.linalg.eigh(curvature)
            w = w.clamp(0.25, 9.0)
            step = (v @ ((v.mT @ centre[..., None]).squeeze(-1) / w)[..., None]).squeeze(-1)
        else:
            weight = ridge.squeeze(-1)
            w = ((-(s - centre[:, None]) * noise).sum(1) + weight) / (noise.square().sum(1) + weight)
            w = torch.nan_to_num(w, nan=1.0).clamp(0.25, 9.0)
            step = centre / w
        length = step.norm(dim=-1, keepdim=True).clamp(min=1e-300)
        # Narrow posteriors can be thousands of their own sds away. While the score still points the way of the last
        # step, and that was cut short, the next may be twice as long.
        ahead = self.limited & ~dropped & ((centre * self.last).sum(-1) > 0)
        self.reach = torch.where(ahead, 2 * self.reach, 1.0)
        limit = 2 * d**0.5 * self.reach[:, None]
        self.limited = (length > limit).squeeze(-1)
        step = torch.nan_to_num(step * (limit / length).clamp(max=1.0))
        rate, mean_rate = torch.where(self.stopped, 0.0, rate), torch.where(self.stopped, 0.0, mean_rate)
        move = mean_rate[:, None] * step
        before = (self.mean, self.scale, self.log_det)
        if self.full:
            self.mean = self.mean + (self.scale @ move[..., None]).squeeze(-1)
            self.scale = self.scale @ (v * w.pow(-0.5 * rate[:, None])[:, None, :]) @ v.mT
            turned = (v.mT @ move[..., None]).squeeze(-1) * w.pow(0.5 * rate[:, None])
            self.last = (v @ turned[..., None]).squeeze(-1)
        else:
            self.mean = self.mean + self.scale * move
            self.scale = self.scale * w.pow(-0.5 * rate[:, None])
            self.last = move * w.pow(0.5 * rate[:, None])
        self.log_det = self.log_det - 0.5 * rate * w.log().sum(-1)
        self._stop_runaways(before)
        # Restarts that have settled move by no more than the noise of their own estimate.
        small = (length.squeeze(-1) < 4 * (d / n) ** 0.5) & (
            w.log().abs().amax(-1) < 6 * (d / n) ** 0.5 + 0.3
        )
        self.calm = self.calm + 1 if bool((small | self.stopped | ~torch.isfinite(elbo)).all()) else 0

    def _stop_runaways(self, before: tuple[Tensor, Tensor, Tensor]) -> None:
        """Takes back the step that made a restart wider than `MAX_SD`, and lets it rest there."""
        wide = self.sd.amax(-1) > MAX_SD
        self.mean, self.scale, self.log_det = (
            _choose(wide, a, b) for a, b in zip(before, (self.mean, self.scale, self.log_det), strict=True)
        )
        self.stopped = self.stopped | wide

    def _minibatch_noise(self, s: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Variance of whitened scores (K, n, d) that no curvature explains, and the size of that curvature, (K,) each.

        Where the posterior is still much narrower than the Gaussian, the curvature is large, and none of it is noise.
        """
        n, d = s.shape[1:]
        if self.full:
            residual = s - noise @ torch.linalg.solve(noise.mT @ noise, noise.mT @ s)
        else:
            residual = s - noise * (s * noise).sum(1, keepdim=True) / noise.square().sum(1, keepdim=True)
        spread = residual.square().sum((1, 2)) / (max(n - (d if self.full else 1), 1) * d)
        # One number for all directions, less twice its standard error.
        squares = noise.square().sum((1, 2))
        size = -(s * noise).sum((1, 2)) / squares
        rest = (s + size[:, None, None] * noise).square().mean((1, 2))
        size = size - 2 * (rest / squares).sqrt()
        return spread.clamp(min=1e-12), torch.nan_to_num(size, nan=1.0).clamp(min=1.0)

    def settled(self, steps: int) -> bool:
        """Whether all restarts have been still for so many steps, and none has grown all the time in a flat direction."""
        if self.calm == 1:
            self.calm_sd = self.sd
        if self.calm < steps:
            return False
        still = bool((self.sd < 10 * self.calm_sd).all())
        if not still:
            self.calm = 0
        return still

    def _accept_or_return(self, elbo: Tensor, error: Tensor) -> Tensor:
        """Goes back to the best point where the bound dropped, and halves the step; else speeds up. Says where (K,)."""
        finite = torch.isfinite(elbo)
        # A lucky estimate of the bound must not hold a restart in its place for ever: after a return, this is a
        # second estimate for the same point.
        again = self.returned & finite
        dropped = torch.isfinite(self.best) & (~finite | (elbo < self.best - 2 - 3 * error)) & ~again
        better = finite & (elbo > self.best) & ~again
        self.best = torch.where(better, elbo, torch.where(again, 0.5 * (self.best + elbo), self.best))
        self.returned = dropped

        now = (self.mean, self.scale, self.log_det)
        self.kept = tuple(_choose(better, a, b) for a, b in zip(now, self.kept, strict=True))  # type: ignore[assignment]
        self.mean, self.scale, self.log_det = (
            _choose(dropped, a, b) for a, b in zip(self.kept, now, strict=True)
        )
        self.rate = torch.where(dropped, self.rate / 2, (1.2 * self.rate).clamp(max=1.0))
        return dropped


def _choose(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Rows of `a` where the mask (K,) says so, else of `b`."""
    return torch.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)
