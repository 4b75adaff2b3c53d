"""The energy's second training: chains at temperature 1 must stay where the data are.

Score matching looks at places that noise takes data to. A long Langevin run at temperature 1 adds up small errors of the
score there and leaves for places that no loss has seen. So persistent chains are run along with the training, and the energy
is raised where they are and lowered at data with noise s0, which is what they should look like (persistent contrastive
divergence, Tieleman 2008): the gradient of the likelihood at temperature 1, beside that of the matching loss at all levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.paper.mnist import langevin, training
from benchmarks.paper.mnist.energy import Energy, levels, matching_loss

EVERY = 200  # iterations between checkpoints


@dataclass(frozen=True)
class ContrastSettings:
    """The second training.

    Attributes:
        rounds: Times that the training is made; each goes on from the average of the one before, and its chains, with
            half the rate.
        iterations: Adam steps of a round.
        batch: Images, and chains, for each step.
        chains: Persistent chains.
        moves: Langevin steps of the chains in a batch.
        share: Their step size a (see `benchmarks.paper.mnist.langevin`).
        restart: Probability that a chain begins anew at data, at each visit.
        weight: Of the difference of energies; about one nat of likelihood for one nat of the matching loss integrated
            over log sigma.
        low: Half of the noise levels of the matching loss are below this many s0.
        rate: Largest learning rate of the first round.
        decay: Of the moving average of the weights.
        seed: Of batches, chains and noise.
    """

    rounds: int = 2
    iterations: int = 2000
    batch: int = 64
    chains: int = 192
    moves: int = 2
    share: float = 0.1
    restart: float = 0.002
    weight: float = 0.003
    low: float = 3.0
    rate: float = 3e-4
    decay: float = 0.998
    seed: int = 11


class Contrast(nn.Module):
    """The energy and its chains, in one checkpoint.

    Args:
        energy: Trained by score matching.
        settings: Of this training.
        images: Training images (n, d).
    """

    def __init__(self, energy: Energy, settings: ContrastSettings, images: Tensor):
        super().__init__()
        self.energy = energy.requires_grad_(True)
        generator = torch.Generator().manual_seed(settings.seed)
        rows = torch.randint(len(images), (settings.chains,), generator=generator)
        noise = torch.randn(settings.chains, images.shape[1], generator=generator)
        self.register_buffer("chains", images[rows] + energy.reference * noise)

    def advance(self, settings: ContrastSettings, images: Tensor, generator: torch.Generator) -> Tensor:
        """Moves some chains and gives where they are, (batch, d); a few begin anew first."""
        rows = torch.randperm(len(self.chains), generator=generator)[: settings.batch]
        fresh = self.near(settings.batch, images, generator)
        again = torch.rand(settings.batch, 1, generator=generator) < settings.restart
        x = torch.where(again, fresh, self.chains[rows])
        for _ in range(settings.moves):
            x = langevin.step(self.energy, x, settings.share, 1.0, generator)
        self.chains[rows] = x
        return x

    def near(self, count: int, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images (count, d) with noise s0."""
        rows = torch.randint(len(images), (count,), generator=generator)
        return images[rows] + self.energy.reference * torch.randn(count, images.shape[1], generator=generator)


def fit(settings: ContrastSettings, energy: Energy, largest: float, images: Tensor, path: Path) -> Energy:
    """The energy after the second training, which resumes from the checkpoint ``path``.

    Args:
        settings: Of this training.
        energy: Trained by score matching; changed in place.
        largest: Largest noise level of the matching loss.
        images: Training images (n, d).
        path: Checkpoints; the number of the round is put behind the stem.
    """
    module = Contrast(energy, settings, images)
    low = energy.reference

    def loss(iteration: int, generator: torch.Generator) -> Tensor:
        half = settings.batch // 2
        rows = torch.randint(len(images), (2 * half,), generator=generator)
        parts = levels(half, low, settings.low * low, generator), levels(half, low, largest, generator)
        noise = torch.randn(2 * half, images.shape[1], generator=generator)
        matching = matching_loss(energy, images[rows], torch.cat(parts), noise)
        chains = module.advance(settings, images, generator)
        data = module.near(settings.batch, images, generator)
        gap = energy(data).mean() - energy(chains).mean()
        if (iteration + 1) % 100 == 0:
            print(
                f"contrast: {iteration + 1}, matching {matching.item():.4f}, gap {gap.item():.2f}", flush=True
            )
        return matching + settings.weight * gap

    for number in range(settings.rounds):
        training.run(
            module, loss, path.with_stem(f"{path.stem}-{number + 1}"), settings.iterations,
            settings.rate / 2**number, seed=settings.seed + number, decay=settings.decay, every=EVERY,
        )  # fmt: skip
    return energy.eval().requires_grad_(False)
