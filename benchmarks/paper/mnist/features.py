"""A small classifier of digits, and the Frechet distance between sets of images on its features.

The distance is the formula of FID (Heusel et al. 2017) on 64 features of *our own classifier*, not those of
Inception: its values can be compared with each other, and not with published ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.paper.mnist import training

FEATURES = 64


@dataclass(frozen=True)
class ClassifierSettings:
    """Size and training of the classifier: pixels on a side, Adam steps, images for each, rate and seed."""

    size: int = 14
    iterations: int = 4000
    batch: int = 128
    rate: float = 2e-3
    seed: int = 1


class Classifier(nn.Module):
    """Three convolutions and two linear layers."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        with torch.no_grad():
            count = self.convolutions(torch.zeros(1, 1, size, size)).numel()
        self.hidden = nn.Linear(count, FEATURES)
        self.last = nn.Linear(FEATURES, 10)

    def features(self, x: Tensor) -> Tensor:
        """Features (n, 64) of flat images (n, d)."""
        h = self.convolutions(x.reshape(-1, 1, self.size, self.size)).flatten(1)
        h = F.dropout(h, 0.3, self.training)
        return F.relu(self.hidden(h))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, 10) of flat images (n, d)."""
        return self.last(self.features(x))


def fit(settings: ClassifierSettings, images: Tensor, labels: Tensor, path: Path) -> Classifier:
    """The trained classifier; the training resumes from the checkpoint ``path``."""
    torch.manual_seed(settings.seed)
    classifier = Classifier(settings.size)

    def loss(iteration: int, generator: torch.Generator) -> Tensor:
        torch.manual_seed(settings.seed * 1_000_003 + iteration)  # dropout takes no generator
        rows = torch.randint(len(images), (settings.batch,), generator=generator)
        return F.cross_entropy(classifier(images[rows]), labels[rows])

    training.run(classifier, loss, path, settings.iterations, settings.rate, seed=settings.seed)
    return classifier.eval().requires_grad_(False)


def features(classifier: Classifier, images: Tensor, block: int = 500) -> Tensor:
    """Features (n, 64), float64, of images (n, d) cut to [0, 1] as a file of pixels would."""
    with torch.no_grad():
        return torch.cat([classifier.features(x.clamp(0, 1)).double() for x in images.split(block)])


def accuracy(classifier: Classifier, images: Tensor, labels: Tensor, block: int = 500) -> float:
    """Share of images (n, d) whose label is right."""
    with torch.no_grad():
        guess = torch.cat([classifier(x).argmax(1) for x in images.split(block)])
    return (guess == labels).double().mean().item()


def root(matrix: Tensor) -> Tensor:
    """Symmetric square root of a positive semi-definite matrix (d, d)."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet(a: Tensor, b: Tensor) -> float:
    """Squared Wasserstein-2 distance between the Gaussians with the moments of two samples (n, d) and (m, d)."""
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum()
    first, second = torch.cov(a.T), torch.cov(b.T)
    half = root(first)
    cross = torch.linalg.eigvalsh(half @ second @ half).clamp(min=0).sqrt().sum()
    return (mean + first.trace() + second.trace() - 2 * cross).item()


class Fid:
    """FID against one set of real images: ``fid(images)``.

    Args:
        classifier: Whose features are taken.
        real: Images (n, d).
    """

    def __init__(self, classifier: Classifier, real: Tensor):
        self.classifier = classifier
        self.real = features(classifier, real)

    def __call__(self, images: Tensor) -> float:
        """The distance for images (n, d)."""
        return frechet(features(self.classifier, images), self.real)
