"""Training of the generator and the score network in whitened coordinates (Algorithm 1 of arXiv 2411.01453)."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn

from pyro_dft.engine_torch import objectives
from pyro_dft.engine_torch.networks import Generator, ScoreNetwork
from pyro_dft.engine_torch.sampler import Sampler
from pyro_dft.engine_torch.target import Target
from pyro_dft.settings import Settings

# b1 = 0.5 for the score network lets it follow the moving sampler; the largest single gain of the prototypes.
SCORE_BETAS = (0.5, 0.99)
GENERATOR_BETAS = (0.9, 0.99)
MAX_GRADIENT_NORM = 10.0
# In the last share of the KL phase the generator moves slowly (its rate times the first number at most) and the score network
# catches up with it (its rate times the second): better in few dimensions, where it costs nothing (docs/experiments.md).
SETTLING_RATE = 1 / 30
SETTLING_SCORE = 0.3
# A learned sigma is kept above this: the eps / sigma term has variance of order 1 / sigma^2.
MIN_SIGMA = 0.02


def rates(phase: str, settings: Settings, done: float) -> tuple[float, float]:
    """Learning rates of the generator and the score network; `done` is the share of the phase that is behind."""
    s = settings
    if phase not in ("kl", "fisher-partial"):
        # After a warm start both networks are good already, and only have to follow (docs/experiments.md).
        follow = SETTLING_SCORE if phase == "dft" else 1.0
        cosine = _cosine(done)
        rate = s.dft_learning_rate * (0.1 + 0.9 * cosine) * follow
        return rate, s.score_learning_rate * (0.05 + 0.95 * cosine) * follow
    share = s.settle_fraction
    if done >= 1 - share:
        cosine = _cosine((done - 1 + share) / max(share, 1e-6))
        last = SETTLING_RATE * (0.01 + 0.99 * cosine), SETTLING_SCORE * (0.05 + 0.95 * cosine)
        return s.learning_rate * last[0], s.score_learning_rate * last[1]
    cosine = _cosine(done / max(1 - share, 1e-6))
    return s.learning_rate * (0.01 + 0.99 * cosine), s.score_learning_rate * (0.05 + 0.95 * cosine)


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0)))


class NetworkTrainer:
    """Alternates denoising score matching and generator steps for C chains at once.

    Args:
        target: The posterior.
        sampler: The Gaussian whose coordinates are used, (C, d).
        settings: Hyper-parameters.
        rng: Generator on the target's device.
    """

    def __init__(self, target: Target, sampler: Sampler, settings: Settings, rng: torch.Generator):
        self.target, self.settings, self.rng = target, settings, rng
        self.mean, self.scale = sampler.mean, sampler.scale
        c, d = self.mean.shape
        start = settings.noise_start if settings.noise_mode == "annealed" else settings.noise
        self.generator = Generator(c, d, settings.width, settings.depth, start, rng=rng, dtype=target.dtype)
        self.score_network = ScoreNetwork(c, d, settings.width, settings.depth, rng=rng, dtype=target.dtype)
        self.generator.log_sigma.requires_grad_(settings.noise_mode == "learned")
        self.distance = objectives.Distance(settings.distance, settings.huber_scale)
        # Under KL a single particle far out may pull with bounded force only; same fixed point.
        self.kl_distance = objectives.Distance("pseudo-huber", settings.huber_scale)
        self._generator_parameters = [p for p in self.generator.parameters() if p.requires_grad]
        self._score_parameters = list(self.score_network.parameters())
        fused = {"fused": target.device.type in ("cpu", "cuda")}
        self._generator_adam = torch.optim.Adam(
            self._generator_parameters, lr=0.0, betas=GENERATOR_BETAS, **fused
        )
        self._score_adam = torch.optim.Adam(self._score_parameters, lr=0.0, betas=SCORE_BETAS, **fused)
        self._gap = torch.full((c,), math.nan, dtype=torch.float64, device=target.device)

    def sampler(self) -> Sampler:
        """The sampler as trained so far (a copy)."""
        generator = copy.deepcopy(self.generator).requires_grad_(False)
        return Sampler(self.mean, self.scale, generator)

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the generator's weights."""
        return copy.deepcopy(self.generator.state_dict())

    def restore(
        self,
        state: dict[str, Tensor],
        mask: np.ndarray | None = None,
        otherwise: dict[str, Tensor] | None = None,
    ) -> None:
        """Sets the generator's weights; with a mask (C,), those of `otherwise` where it is False."""
        if mask is not None and otherwise is not None:
            keep = torch.as_tensor(mask, device=self.mean.device)
            state = {
                k: torch.where(keep.reshape(-1, *[1] * (v.ndim - 1)), v, otherwise[k])
                for k, v in state.items()
            }
        self.generator.load_state_dict(state)

    def smoothed_gap(self) -> np.ndarray:
        """Moving average of the Fisher gap, (C,)."""
        return self._gap.cpu().numpy().copy()

    def step(self, phase: str, done: float) -> float:
        """One generator step behind `score_steps` score steps.

        Args:
            phase: "kl", "dft", "dft-paper" or "fisher-partial".
            done: Share of the phase that is behind, 0 to 1 (sets the learning rates).

        Returns:
            The Fisher gap J(s_q) - J(s_phi) on the fresh draws of this step, mean over chains.
        """
        s = self.settings
        rate, score_rate = rates(phase, s, done)
        if s.noise_mode == "annealed" and phase != "dft":
            fraction = min(done / 0.6, 1.0)
            self.generator.log_sigma.fill_(
                math.log(s.noise_start) * (1 - fraction) + math.log(s.noise) * fraction
            )
        batch = s.batch_size * (s.final_batch_factor if phase == "dft" else 1)
        for _ in range(s.score_steps):
            self._score_step(score_rate, batch)
        return self._generator_step(phase, rate, batch)

    def _fresh(self, batch: int) -> tuple[Tensor, Tensor]:
        """Draws u (C, 2 batch, d) and their noise: each eps is used with -eps, which halves the gradient's error."""
        shape = (*self.mean.shape[:1], batch, self.mean.shape[1])
        z = torch.randn(shape, generator=self.rng, dtype=self.target.dtype, device=self.target.device)
        eps = torch.randn(shape, generator=self.rng, dtype=self.target.dtype, device=self.target.device)
        clean = self.generator(z)
        noise = self.generator.sigma * eps
        return torch.cat([clean + noise, clean - noise], 1), torch.cat([eps, -eps], 1)

    def _score_step(self, rate: float, batch: int) -> None:
        with torch.no_grad():
            u, eps = self._fresh(batch)
            sigma = self.generator.sigma
        loss = objectives.denoising_weighted(self.score_network(u, sigma), eps, sigma).sum()
        gradients = torch.autograd.grad(loss, self._score_parameters)
        self._apply(self._score_adam, self._score_parameters, gradients, rate)

    def _target_score(self, u: Tensor, differentiable: bool) -> Tensor:
        """Target score in whitened coordinates; where it is not finite, that of a unit Gaussian (pulls back)."""
        x = torch.baddbmm(self.mean[:, None], u, self.scale.mT)
        evaluate = self.target.evaluate_differentiable if differentiable else self.target.evaluate
        log_density, score = evaluate(x, minibatch=True)
        return torch.where(torch.isfinite(log_density.detach())[..., None], score @ self.scale, -u)

    def _generator_step(self, phase: str, rate: float, batch: int) -> float:
        u, eps = self._fresh(batch)
        sigma = self.generator.sigma
        full = phase in ("dft", "dft-paper")
        differentiable = full or phase == "fisher-partial"
        score_q = self._target_score(u if differentiable else u.detach(), differentiable)
        # Where a product of scores enters, minibatch noise must be independent in the two factors.
        score_q2 = self._target_score(u if full else u.detach(), full) if self.target.minibatch else None
        score_p = self.score_network(u if differentiable else u.detach(), sigma)
        delta = score_p - score_q
        if phase == "kl":
            if score_q2 is not None:
                delta = 0.5 * (delta + score_p - score_q2)
            loss = objectives.kl(delta, u, self.kl_distance)
        elif phase == "fisher-partial":
            loss = objectives.fisher_partial(delta, self.distance)
        elif score_q2 is not None:
            loss = objectives.fisher_full_two_minibatches(delta, score_p - score_q2, score_p, eps, sigma)
        else:
            loss = objectives.fisher_full(delta, score_p, eps, sigma, self.distance)
        gradients = torch.autograd.grad(loss.sum(), self._generator_parameters)
        self._apply(self._generator_adam, self._generator_parameters, gradients, rate)
        if self.settings.noise_mode == "learned":
            with torch.no_grad():
                self.generator.log_sigma.clamp_(min=math.log(MIN_SIGMA))
        with torch.no_grad():
            gap = objectives.fisher_gap(score_q, score_p, eps, sigma, score_q2).double()
            self._gap = torch.where(torch.isnan(self._gap), gap, 0.98 * self._gap + 0.02 * gap)
        return float(gap.mean())

    def _apply(
        self,
        adam: torch.optim.Adam,
        parameters: list[nn.Parameter],
        gradients: tuple[Tensor, ...],
        rate: float,
    ) -> None:
        """Adam with the gradient norm of each chain clipped on its own, so that chains stay independent."""
        squares = sum(g.square().flatten(1).sum(1) for g in gradients)
        assert isinstance(squares, Tensor)
        factor = (MAX_GRADIENT_NORM / squares.sqrt().clamp(min=1e-12)).clamp(max=1.0)
        # A chain whose gradient is not finite skips the step.
        factor = torch.where(torch.isfinite(squares), factor, 0.0)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            scaled = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
            parameter.grad = scaled * factor.reshape(-1, *[1] * (gradient.ndim - 1))
        adam.param_groups[0]["lr"] = rate
        adam.step()
