"""Training of the generator and the score network in whitened coordinates (Algorithm 1 of arXiv 2411.01453)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pyro_dft import messages
from pyro_dft.engine_torch import objectives
from pyro_dft.engine_torch.custom import NO_NETWORKS, CustomGenerator, CustomScore, Networks, owner
from pyro_dft.engine_torch.networks import Generator, LevelScoreNetwork, ScoreNetwork
from pyro_dft.engine_torch.sampler import Sampler
from pyro_dft.engine_torch.surrogate import Surrogate
from pyro_dft.engine_torch.target import Target
from pyro_dft.recipe.constants import (
    ANCHOR_DRAWS,
    DIFFERENTIATED,
    GENERATOR_BETAS,
    MAX_GRADIENT_NORM,
    MIN_SIGMA,
    SCORE_BETAS,
    SETTLING_RATE,
    SETTLING_SCORE,
)
from pyro_dft.recipe.history import check_like, part
from pyro_dft.roots import coloured, projected
from pyro_dft.settings import Settings


def rates(phase: str, settings: Settings, done: float) -> tuple[float, float]:
    """Learning rates of the generator and the score network; `done` is the fraction of the phase that is done, 0 to 1."""
    s = settings
    if phase != "kl":
        # After KL training both networks are good already, and only have to follow (docs/experiments.md).
        follow = SETTLING_SCORE if phase == "dft" and s.objective == "auto" else 1.0
        cosine = _cosine(done)
        rate = s.experimental.dft_learning_rate * (0.1 + 0.9 * cosine) * follow
        return rate, s.experimental.score_learning_rate * (0.05 + 0.95 * cosine) * follow
    share = s.experimental.settle_fraction
    if done >= 1 - share:
        cosine = _cosine((done - 1 + share) / max(share, 1e-6))
        last = SETTLING_RATE * (0.01 + 0.99 * cosine), SETTLING_SCORE * (0.05 + 0.95 * cosine)
        return s.learning_rate * last[0], s.experimental.score_learning_rate * last[1]
    cosine = _cosine(done / max(1 - share, 1e-6))
    return s.learning_rate * (0.01 + 0.99 * cosine), s.experimental.score_learning_rate * (
        0.05 + 0.95 * cosine
    )


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0)))


class NetworkTrainer:
    """Alternates denoising score matching and generator steps for C chains at once.

    Args:
        target: The posterior.
        sampler: The Gaussian whose coordinates are used, (C, d).
        settings: Hyper-parameters.
        rng: Generator on the target's device.
        networks: Networks that the user brings.

    Attributes:
        surrogate: Gives the scores in place of the posterior, or None.
    """

    def __init__(
        self,
        target: Target,
        sampler: Sampler,
        settings: Settings,
        rng: torch.Generator,
        networks: Networks = NO_NETWORKS,
    ):
        self.target, self.settings, self.rng = target, settings, rng
        self.mean, self.scale = sampler.mean, sampler.scale
        self.levels = settings.experimental.noise_mode == "levels"
        self.generator, self.score_network = self._networks(networks)
        self.generator.train()
        self.score_network.train()
        self.generator.log_sigma.requires_grad_(settings.experimental.noise_mode == "learned")
        self.distance = objectives.Distance(settings.experimental.distance, settings.experimental.huber_scale)
        # Under KL a single particle far out may pull with bounded force only; same fixed point.
        self.kl_distance = objectives.Distance("pseudo-huber", settings.experimental.huber_scale)
        self.surrogate: Surrogate | None = None
        if not self.levels:
            target.anchor(self.mean, self.scale, sampler.draw(ANCHOR_DRAWS, rng))
        chains, device = len(self.mean), target.device
        self._generator_weights = Trained(self.generator, chains, GENERATOR_BETAS, device)
        self._score_weights = Trained(self.score_network, chains, SCORE_BETAS, device)
        self._gap = torch.full((chains,), math.nan, dtype=torch.float64, device=device)
        self.average = (
            copy.deepcopy(self.generator).requires_grad_(False) if settings.experimental.averaging else None
        )

    @property
    def trained(self) -> Generator | CustomGenerator:
        """The generator that draws come from: the one in training, or its moving average."""
        return self.generator if self.average is None else self.average

    def _networks(
        self, own: Networks
    ) -> tuple[Generator | CustomGenerator, ScoreNetwork | LevelScoreNetwork | CustomScore]:
        (c, d), s, dtype, device = self.mean.shape, self.settings, self.target.dtype, self.mean.device
        start = (
            s.experimental.noise_start if s.experimental.noise_mode == "annealed" else s.experimental.noise
        )
        if own.generator is None:
            generator: Generator | CustomGenerator = Generator(
                c, d, s.width, s.depth, start, rng=self.rng, dtype=dtype
            )
        else:
            generator = CustomGenerator(own.generator, c, d, start, dtype=dtype, device=device)
        if own.score_network is not None:
            return generator, CustomScore(own.score_network, c, d, self.levels, dtype=dtype, device=device)
        kept = LevelScoreNetwork if self.levels else ScoreNetwork
        return generator, kept(c, d, s.width, s.depth, rng=self.rng, dtype=dtype)

    def sampler(self) -> Sampler:
        """The sampler as trained so far (a copy)."""
        generator = copy.deepcopy(self.trained).eval()
        return Sampler(self.mean, self.scale, generator)

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the weights that draws come from."""
        return copy.deepcopy(self.trained.state_dict())

    def restore(
        self,
        state: dict[str, Tensor],
        mask: np.ndarray | None = None,
        otherwise: dict[str, Tensor] | None = None,
    ) -> None:
        """Sets the weights that draws come from; with a mask (C,), those of `otherwise` where it is False."""
        if mask is not None and otherwise is not None:
            keep = torch.as_tensor(mask, device=self.mean.device)
            state = {name: _blend(name, keep, value, otherwise[name]) for name, value in state.items()}
        self.trained.load_state_dict(state)

    @property
    def trained_score(self) -> ScoreNetwork | LevelScoreNetwork | CustomScore:
        """The score network."""
        return self.score_network

    def branch(self) -> NetworkTrainer:
        """A copy whose sampler stays as it is while this one is trained."""
        other = copy.copy(self)
        other.generator, other.average = copy.deepcopy(self.generator), copy.deepcopy(self.average)
        return other

    def pack(self, weights: dict[str, Tensor]) -> dict[str, np.ndarray]:
        """A snapshot as arrays, by name."""
        return {name: value.cpu().numpy() for name, value in weights.items()}

    def unpack(self, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
        """The inverse of `pack`."""
        home = self.rng.device
        return {name: torch.as_tensor(np.array(value), device=home) for name, value in arrays.items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """What training can go on from."""
        arrays = {f"generator.{k}": v for k, v in self.generator.state_dict().items()}
        arrays |= {f"score.{k}": v for k, v in self.score_network.state_dict().items()}
        if self.average is not None:
            arrays |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        arrays |= {f"generator_adam.{k}": v for k, v in self._generator_weights.moments().items()}
        arrays |= {f"score_adam.{k}": v for k, v in self._score_weights.moments().items()}
        arrays |= {"mean": self.mean, "scale": self.scale, "gap": self._gap}
        # Models draw from torch's global generator.
        arrays |= {"rng": self.rng.get_state(), "global_rng": torch.get_rng_state()}
        return {name: value.detach().cpu().numpy() for name, value in arrays.items()}

    def set_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `arrays`."""
        # Adam has no moments before its first step.
        adam = ("generator_adam.", "score_adam.")
        now = {name: value for name, value in self.arrays().items() if not name.startswith(adam)}
        check_like({name: v for name, v in arrays.items() if not name.startswith(adam)}, now)
        home = self.mean.device
        own = {name: torch.as_tensor(np.array(value), device=home) for name, value in arrays.items()}
        self.generator.load_state_dict(part(own, "generator."))
        self.score_network.load_state_dict(part(own, "score."))
        if self.average is not None:
            self.average.load_state_dict(part(own, "average."))
        self._generator_weights.set_moments(part(own, "generator_adam."))
        self._score_weights.set_moments(part(own, "score_adam."))
        if own["mean"].shape != self.mean.shape:
            raise ValueError(f"{len(own['mean'])} samplers where there are {len(self.mean)} now")
        self.mean, self.scale, self._gap = own["mean"], own["scale"], own["gap"]
        self.rng.set_state(own["rng"].cpu())
        torch.set_rng_state(own["global_rng"].cpu())

    def smoothed_gap(self) -> np.ndarray:
        """Moving average of the Fisher gap, (C,)."""
        return self._gap.cpu().numpy().copy()

    def advance(self, phase: str, first: int, length: int, count: int) -> list[float]:
        """One step of a phase, the one after `first` of `length`; its Fisher gap."""
        return [self.step(phase, first / length)]

    def step(self, phase: str, done: float) -> float:
        """`score_steps` steps of the score network, then one of the generator.

        Args:
            phase: "kl", "dft", "dft-paper" or "fisher-partial".
            done: Fraction of the phase that is done, 0 to 1 (sets the learning rates).

        Returns:
            The Fisher gap J(s_q) - J(s_phi) on the fresh draws of this step, mean over chains.
        """
        s = self.settings
        rate, score_rate = rates(phase, s, done)
        after_kl = phase == "dft" and s.objective == "auto"
        if s.experimental.noise_mode == "annealed" and not after_kl:
            fraction = min(done / 0.6, 1.0)
            self.generator.log_sigma.fill_(
                math.log(s.experimental.noise_start) * (1 - fraction)
                + math.log(s.experimental.noise) * fraction
            )
        batch = s.batch_size * (s.experimental.final_batch_factor if after_kl else 1)
        for _ in range(s.experimental.score_steps):
            self._score_step(score_rate, batch)
        return self._generator_step(phase, rate, batch)

    def _noise(self, batch: int) -> Tensor:
        """Standard deviation of the noise: one for all points, (C, 1, d), or a level for each, (C, batch, 1)."""
        if not self.levels:
            return self.generator.sigma
        s = self.settings
        dtype, device = self.target.dtype, self.target.device
        share = torch.rand((len(self.mean), batch, 1), generator=self.rng, dtype=dtype, device=device)
        return s.experimental.noise * (s.experimental.noise_start / s.experimental.noise) ** share

    def _fresh(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draws u (C, 2 batch, d), eps and sigma: each eps is used with -eps, which halves the gradient's error."""
        shape = (*self.mean.shape[:1], batch, self.mean.shape[1])
        z = torch.randn(shape, generator=self.rng, dtype=self.target.dtype, device=self.target.device)
        eps = torch.randn(shape, generator=self.rng, dtype=self.target.dtype, device=self.target.device)
        sigma = self._noise(batch)
        clean = self.generator(z)
        noise = sigma * eps
        u, eps = torch.cat([clean + noise, clean - noise], 1), torch.cat([eps, -eps], 1)
        return u, eps, torch.cat([sigma, sigma], 1) if self.levels else sigma

    def _score_step(self, rate: float, batch: int) -> None:
        with torch.no_grad():
            u, eps, sigma = self._fresh(batch)
        loss = objectives.denoising_weighted(self.score_network(u, sigma), eps, sigma).sum()
        self._score_weights.step(loss, rate)

    def _target_score(self, u: Tensor, sigma: Tensor, differentiable: bool) -> Tensor:
        """Target score in whitened coordinates; where it is not finite, that of a unit Gaussian (pulls back)."""
        if self.surrogate is not None:
            return self.surrogate(u)
        x = self.mean[:, None] + coloured(self.scale, u)
        if self.levels:
            log_density, score = self.target.smoothed(x, sigma, differentiable=differentiable)
        else:
            evaluate = self.target.evaluate_differentiable if differentiable else self.target.evaluate
            log_density, score = evaluate(x, minibatch=True)
        return torch.where(torch.isfinite(log_density.detach())[..., None], projected(self.scale, score), -u)

    def _generator_step(self, phase: str, rate: float, batch: int) -> float:
        u, eps, sigma = self._fresh(batch)
        through = DIFFERENTIATED[phase]
        differentiable, full = through > 0, through > 1
        score_q = self._target_score(u if differentiable else u.detach(), sigma, differentiable)
        # Where a product of scores enters, minibatch noise must be independent in the two factors.
        again = self.target.minibatch and not self.levels
        score_q2 = self._target_score(u if full else u.detach(), sigma, full) if again else None
        score_p = self.score_network(u if differentiable else u.detach(), sigma)
        delta = score_p - score_q
        # The square of the difference of two denoised points, of one size at all levels.
        weight = sigma.pow(4).squeeze(-1) if self.levels else 1.0
        if phase == "kl":
            if score_q2 is not None:
                delta = 0.5 * (delta + score_p - score_q2)
            if self.levels:
                loss = objectives.kl_levels(delta, u, sigma, self.kl_distance)
            else:
                loss = objectives.kl(delta, u, self.kl_distance)
        elif phase == "fisher-partial":
            loss = objectives.fisher_partial(delta, self.distance, weight)
        elif score_q2 is not None:
            loss = objectives.fisher_full_two_minibatches(delta, score_p - score_q2, score_p, eps, sigma)
        else:
            loss = objectives.fisher_full(delta, score_p, eps, sigma, self.distance, weight)
        self._generator_weights.step(loss.sum(), rate)
        if self.settings.experimental.noise_mode == "learned":
            with torch.no_grad():
                self.generator.log_sigma.clamp_(min=math.log(MIN_SIGMA))
        self._take_average()
        with torch.no_grad():
            gap = objectives.fisher_gap(score_q, score_p, eps, sigma, score_q2, weight).double()
            self._gap = torch.where(torch.isnan(self._gap), gap, 0.98 * self._gap + 0.02 * gap)
        return float(gap.mean())

    @torch.no_grad()
    def _take_average(self) -> None:
        if self.average is None:
            return
        n = self._generator_weights.steps
        decay = min(self.settings.experimental.averaging, (1 + n) / (10 + n))
        for mean, now in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)
        for kept, last in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            kept.copy_(last)


def _blend(name: str, keep: Tensor, value: Tensor, otherwise: Tensor) -> Tensor:
    """The entries of `value` for the samplers that `keep` (C,) names, and those of `otherwise` for the rest."""
    chain = owner(name)
    if chain is not None:
        return value if bool(keep[chain]) else otherwise
    return torch.where(keep.reshape(-1, *[1] * (value.ndim - 1)), value, otherwise)


class Trained:
    """The weights of a network, with Adam; the gradient of each sampler is clipped on its own, so that they stay independent."""

    def __init__(self, network: nn.Module, chains: int, betas: tuple[float, float], device: torch.device):
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        self.owners = [owner(name) for name, _ in named]
        self.chains = chains
        if not self.parameters:
            raise messages.nothing_to_train(type(network).__name__)
        self.adam = torch.optim.Adam(
            self.parameters, lr=0.0, betas=betas, fused=device.type in ("cpu", "cuda")
        )

    def step(self, loss: Tensor, rate: float) -> None:
        """One step down the gradient of a loss."""
        self.apply(torch.autograd.grad(loss, self.parameters, materialize_grads=True), rate)

    def apply(self, gradients: Sequence[Tensor], rate: float) -> None:
        """One step of Adam."""
        squares: Tensor = sum(map(self._squares, gradients, self.owners))  # type: ignore[assignment]
        factor = (MAX_GRADIENT_NORM / squares.sqrt().clamp(min=1e-12)).clamp(max=1.0)
        # A sampler whose gradient is not finite skips the step.
        factor = torch.where(torch.isfinite(squares), factor, 0.0)
        for parameter, gradient, chain in zip(self.parameters, gradients, self.owners, strict=True):
            own = factor.reshape(-1, *[1] * (gradient.ndim - 1)) if chain is None else factor[chain]
            parameter.grad = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0) * own
        self.adam.param_groups[0]["lr"] = rate
        self.adam.step()

    @property
    def steps(self) -> int:
        """Steps made."""
        own = self.adam.state.get(self.parameters[0])
        return 0 if not own else int(own["step"])

    def moments(self) -> dict[str, Tensor]:
        """Adam's state, by name."""
        state = self.adam.state_dict()["state"]
        return {f"{i}.{name}": torch.as_tensor(v) for i, own in state.items() for name, v in own.items()}

    def set_moments(self, moments: dict[str, Tensor]) -> None:
        """The inverse of `moments`."""
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in moments.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = value
        groups = self.adam.state_dict()["param_groups"]
        for i, weights in enumerate(self.adam.param_groups[0]["params"]):
            for key, value in state.get(i, {}).items():
                if value.shape != (torch.Size([]) if key == "step" else weights.shape):
                    raise ValueError(f"Adam's {key} of weights {i} has shape {tuple(value.shape)}")
        self.adam.load_state_dict({"state": state, "param_groups": groups})

    def _squares(self, gradient: Tensor, chain: int | None) -> Tensor:
        if chain is None:
            return gradient.square().flatten(1).sum(1)
        total = gradient.new_zeros(self.chains)
        total[chain] = gradient.square().sum()
        return total
