"""A correction of the energy at its lowest noise levels, learnt from long Langevin chains.

Score matching sees the slope of the energy where noise takes data to, and nothing of the height of two modes that no
noisy image lies between: at the lowest levels the digits' relative weights are left to chance, and chains that run
for thousands of steps drift to those that are too deep. At higher levels the modes overlap, and matching has it right.
So the energy stays as it is, and E(x) + (sigma / s0)^2 w(sigma) C(x, sigma) is used, with w = 1 at the lowest levels and 0
above a cut-off: at the temperature of its level, (sigma / s0)^2, C counts in nats.
C is trained by persistent contrastive divergence (Tieleman 2008): up where the chains are, down where the data are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.paper.mnist import training
from benchmarks.paper.mnist.energy import Energy

EVERY = 100  # iterations between checkpoints
Level = float | Tensor  # one for all images, or (n, 1)


@dataclass(frozen=True)
class CorrectionSettings:
    """Size and training of the correction.

    Attributes:
        width: Hidden units.
        full: Noise level up to which the correction acts in full, in units of s0.
        cut: Noise level from which it does not act at all, in units of s0.
        iterations: Adam steps.
        batch: Images, and chains, for each step.
        chains: Persistent chains.
        lowest: Share of the chains that stay at s0.
        walking: Share of the chains that walk from the cut-off to s0, as annealed Langevin does, and stay there then; the
            others stay at levels between (log-uniform).
        walk: Visits that the walk takes.
        moves: Steps of a chain at each visit.
        share: Their step size a (see `benchmarks.paper.mnist.langevin`).
        restart: Probability at each visit that a chain begins anew at data.
        matching: Weight of the matching loss at the chains' levels, which keeps the slopes right.
        matched: Images for it, at each step.
        shrink: Weight of the mean square of C.
        rate: Largest learning rate.
        decay: Of the moving average of the weights.
        seed: Of weights, batches, chains and noise.
    """

    width: int = 128
    full: float = 1.5
    cut: float = 4.0
    iterations: int = 2000
    batch: int = 256
    chains: int = 256
    lowest: float = 0.25
    walking: float = 0.5
    walk: int = 100
    moves: int = 2
    share: float = 0.1
    restart: float = 0.0015
    matching: float = 1.0
    matched: int = 48
    shrink: float = 1e-3
    rate: float = 2e-4
    decay: float = 0.997
    seed: int = 11


class Correction(nn.Module):
    """A hidden layer on the features that the energy has computed anyway: C grows linearly, so the well still confines.

    Args:
        settings: Sizes.
        energy: What is corrected.
        images: Flat images (n, d) on which features are brought to mean 0 and standard deviation 1; none leaves them.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, settings: CorrectionSettings, energy: Energy, images: Tensor | None = None):
        super().__init__()
        self.reference = energy.reference
        self.full, self.cut = settings.full, settings.cut
        with torch.no_grad():
            h = energy.features(energy.mean[None] if images is None else images)
        count = h.shape[1]
        self.register_buffer("centre", torch.zeros(count) if images is None else h.mean(0))
        self.register_buffer("scale", torch.ones(count) if images is None else h.std(0).clamp(min=1e-3))
        self.hidden = nn.Linear(count, settings.width)
        self.level = nn.Linear(2, settings.width)
        self.head = nn.Linear(settings.width, 1, bias=False)  # a constant changes nothing
        self.other = nn.Linear(settings.width, 1, bias=False)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.other.weight)

    def forward(self, features: Tensor, sigma: Level) -> Tensor:
        """C (n,) at images of a noise level whose features (n, k) these are."""
        sigma = torch.as_tensor(sigma, dtype=features.dtype).reshape(-1, 1)
        t = (sigma / self.reference).log() / math.log(self.cut)  # 0 at s0, 1 at the cut-off
        h = self.hidden((features - self.centre) / self.scale)
        # The level shifts hidden units and scales them: what two levels need can differ in size.
        h = F.silu(h + self.level(torch.cat([t, t * t], 1)))
        return (self.head(h) + t * self.other(h)).squeeze(1)

    def share(self, sigma: Level) -> Tensor:
        """Factor of C in the energy, (sigma / s0)^2 w."""
        sigma = torch.as_tensor(sigma, dtype=self.head.weight.dtype)
        return (sigma / self.reference) ** 2 * self.weight(sigma)

    def weight(self, sigma: Level) -> Tensor:
        """w: 1 up to the level ``full``, 0 from ``cut`` on, a cubic of log sigma between."""
        sigma = torch.as_tensor(sigma, dtype=self.head.weight.dtype)
        low, high = math.log(self.full * self.reference), math.log(self.cut * self.reference)
        t = ((high - sigma.log()) / (high - low)).clamp(0, 1)
        return t * t * (3 - 2 * t)


class Corrected(nn.Module):
    """The energy with its correction: E(x) + (sigma / s0)^2 w(sigma) C(x, sigma), at temperature (sigma / s0)^2 as before.

    Args:
        energy: Trained by score matching.
        correction: Trained by `fit`, or to be; None for the energy as it is.
    """

    def __init__(self, energy: Energy, correction: Correction | None):
        super().__init__()
        self.energy, self.correction = energy, correction
        self.reference = energy.reference

    @property
    def mean(self) -> Tensor:
        """Mean image (d,)."""
        return self.energy.mean

    def forward(self, x: Tensor, sigma: Level) -> Tensor:
        """Energies (n,) of flat images (n, d) at a noise level."""
        h = self.energy.features(x)
        value = self.energy.value(x, h)
        if self.correction is None or (
            isinstance(sigma, float) and sigma >= self.correction.cut * self.reference
        ):
            return value  # above the cut-off the same, at less cost
        share = self.correction.share(sigma)
        return value + (share.squeeze(-1) if share.ndim else share) * self.correction(h, sigma)

    def gradient(self, x: Tensor, sigma: Level) -> Tensor:
        """Gradients (n, d) at flat images (n, d)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            return torch.autograd.grad(self(x, sigma).sum(), x)[0]

    def denoise(self, x: Tensor, sigma: Level) -> Tensor:
        """The mean clean image (n, d) given noisy ones (n, d) of a noise level."""
        return x.detach() - self.reference**2 * self.gradient(x, sigma)


class Contrast(nn.Module):
    """The correction and its chains, in one checkpoint.

    Args:
        model: Energy and correction.
        settings: Of the training.
        images: Training images (n, d).
    """

    age: Tensor
    chains: Tensor

    def __init__(self, model: Corrected, settings: CorrectionSettings, images: Tensor):
        super().__init__()
        assert model.correction is not None
        self.correction = model.correction
        self.settings, self.images = settings, images
        self._model = [model]  # in a list: the energy is no part of this module
        generator = torch.Generator().manual_seed(settings.seed)
        walkers = round(settings.walking * settings.chains)
        low = round(settings.lowest * settings.chains)
        between = torch.linspace(0, 1, settings.chains - walkers - low)
        self.still = torch.cat([torch.zeros(low), between])[:, None]
        # As if they had been under way for some time.
        age = torch.randint(4 * settings.walk, (settings.chains, 1), generator=generator)
        self.register_buffer("age", age)
        self.register_buffer("chains", self.near(self.levels(), generator))

    def levels(self) -> Tensor:
        """Noise level of each chain, (chains, 1): those that stay first, then those that walk."""
        settings = self.settings
        walked = (1 - self.age[len(self.still) :] / settings.walk).clamp(min=0)
        return self._model[0].reference * settings.cut ** torch.cat([self.still, walked])

    def near(self, sigma: Tensor, generator: torch.Generator) -> Tensor:
        """An image (n, d) with noise for each level (n, 1)."""
        rows = torch.randint(len(self.images), (len(sigma),), generator=generator)
        return self.images[rows] + sigma * torch.randn(len(sigma), self.images.shape[1], generator=generator)

    def advance(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Moves the chains of these numbers (n,) and gives where they are, (n, d), and their levels; a few begin anew first.

        The noise of a step is sqrt(2 a - a^2), not sqrt(2 a): right to all orders in a across the data, where the curvature
        is 1 / s0^2, so that large steps leave no excess of noise for the correction to learn.
        """
        model, a = self._model[0], self.settings.share
        again = torch.rand(len(rows), 1, generator=generator) < self.settings.restart
        self.age[rows] = torch.where(again, 0, self.age[rows] + 1)
        sigma = self.levels()[rows]
        x = torch.where(again, self.near(sigma, generator), self.chains[rows])
        for _ in range(self.settings.moves):
            noise = torch.randn(x.shape, generator=generator)
            x = x + a * (model.denoise(x, sigma) - x) + math.sqrt(a * (2 - a)) * sigma * noise
        self.chains[rows] = x
        return x, sigma

    def loss(self, generator: torch.Generator) -> Tensor:
        """Of one batch: the chains are advanced first.

        The part of a chain is that of the likelihood at its temperature, w C. Beside it, the matching loss of
        `energy.matching_loss` in nats (its sum over pixels, halved), with the energy's part of the slopes as it is.
        """
        settings, model = self.settings, self._model[0]
        rows = torch.randperm(len(self.chains), generator=generator)[: settings.batch]
        chains, sigma = self.advance(rows, generator)
        data = self.near(sigma, generator)
        with torch.no_grad():
            features = model.energy.features(torch.cat([data, chains]))
        there, here = self.correction(features, torch.cat([sigma, sigma])).chunk(2)
        weight = self.correction.weight(sigma).squeeze(1)
        gap = (weight * (there - here)).mean()
        size = (there**2 + here**2).mean()
        few = sigma[: settings.matched]
        picked = torch.randint(len(self.images), (len(few),), generator=generator)
        noise = torch.randn(len(few), chains.shape[1], generator=generator)
        noisy = (self.images[picked] + few * noise).requires_grad_(True)
        slope = torch.autograd.grad(model(noisy, few).sum(), noisy, create_graph=True)[0]
        error = ((model.reference**2 / few * slope - noise) ** 2).sum(1).mean()
        return gap + 0.5 * settings.matching * error + settings.shrink * size


def fit(settings: CorrectionSettings, energy: Energy, images: Tensor, path: Path) -> Corrected:
    """The energy with its correction; the training resumes from the checkpoint ``path``.

    Args:
        settings: Size and training.
        energy: Trained by score matching; left as it is.
        images: Clean images (n, d) in [0, 1].
        path: Checkpoint, a safetensors file.
    """
    torch.manual_seed(settings.seed)
    noisy = images[:1000] + energy.reference * torch.randn(len(images[:1000]), images.shape[1])
    model = Corrected(energy.requires_grad_(False), Correction(settings, energy, noisy))
    module = Contrast(model, settings, images)
    training.run(
        module, lambda iteration, generator: module.loss(generator), path, settings.iterations, settings.rate,
        seed=settings.seed, decay=settings.decay, every=EVERY, betas=(0.5, 0.95),
    )  # fmt: skip
    return model.eval().requires_grad_(False)
