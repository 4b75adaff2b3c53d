"""What is run, in one place: sizes, counts and grids of the full experiment and of ``--quick``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.paper.mnist.correction import CorrectionSettings
from benchmarks.paper.mnist.energy import EnergySettings
from benchmarks.paper.mnist.features import ClassifierSettings


@dataclass(frozen=True)
class Plan:
    """The experiment at one size.

    Attributes:
        size: Pixels on a side.
        quick: Whether this is the small version.
        energy: Of the energy-based model, by score matching.
        correction: Of what is added to it at the lowest noise levels.
        classifier: Of the network whose features FID is taken on.
        train: Training images used.
        test: Test images that FID is taken against.
        count: Images for each FID of the results.
        sets: Sets of so many images of annealed Langevin, over which its FID is averaged.
        tune: Images for each FID of the search for Langevin's step size and start temperature.
        gate_count: Images of the gate.
        gate_steps: Steps of Langevin at a fixed temperature, at which FID is taken; the gate compares the last with the first.
        gate_seeds: Of the images that the chains start at and of their noise; the gate is the first, the others say how sure.
        gate_share: Step size a there; 0.02 is that of Li, Chen and Sommer.
        steps: Of annealed Langevin.
        shares: Step sizes tried.
        starts: Start temperatures tried.
        curve: Images for each point of the curve of FID.
        every: Generator steps between two points of it.
        width: Channels of generator and score network.
        start_steps: Generator steps of KL training that all one-step samplers have in common: the first half of a plan of
            twice as many, so that the rates are still high at their end.
        end_steps: Generator steps of each one's own objective behind it.
        latents: Latent points for each step, each with two noises.
        rate: Adam rate of generator and score network under KL.
        end_rate: Of the generator in the last phase.
        averaging: Decay of the moving average of the generator's weights.
        trainings: Of DFT-NS and KL-NS, from seeds of their own.
    """

    size: int = 14
    quick: bool = False
    energy: EnergySettings = field(default_factory=EnergySettings)
    correction: CorrectionSettings = field(default_factory=CorrectionSettings)
    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)
    train: int = 60_000
    test: int = 10_000
    count: int = 2000
    sets: int = 3
    tune: int = 200
    gate_count: int = 200
    gate_steps: tuple[int, ...] = (200, 1000, 2500, 5000)
    gate_seeds: tuple[int, ...] = (4, 14)
    gate_share: float = 0.02
    steps: tuple[int, ...] = (50, 100, 150, 200)
    shares: tuple[float, ...] = (0.1, 0.2, 0.4)
    starts: tuple[float, ...] = (25.0, 100.0)
    curve: int = 1000
    every: int = 100
    width: int = 32
    start_steps: int = 8000
    end_steps: int = 800
    latents: int = 32
    rate: float = 1e-3
    end_rate: float = 3e-4
    averaging: float = 0.999
    trainings: int = 2

    def to_json(self, *names: str) -> dict[str, Any]:
        """Those fields as plain values, with size and counts of data, which everything depends on."""
        whole = asdict(self)
        return {name: whole[name] for name in ("size", "train", "test", *names)}


def plan(size: int, quick: bool) -> Plan:
    """The full experiment at 14 or 28 pixels, or the small version of it."""
    if not quick:
        return Plan(size, energy=EnergySettings(size=size), classifier=ClassifierSettings(size=size))
    return Plan(
        size,
        quick=True,
        energy=EnergySettings(size=size, widths=(8, 16), strides=(1, 2), iterations=60, batch=32),
        correction=CorrectionSettings(width=8, iterations=20, batch=16, chains=32),
        classifier=ClassifierSettings(size=size, iterations=80, batch=64),
        train=2000,
        test=1000,
        count=200,
        sets=2,
        tune=50,
        gate_count=50,
        gate_steps=(10, 50),
        steps=(10, 20),
        shares=(0.2, 0.4),
        starts=(25.0,),
        curve=100,
        every=10,
        width=8,
        start_steps=20,
        end_steps=10,
        latents=8,
    )
