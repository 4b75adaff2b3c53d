"""What the recipe asks of an engine: a few coarse primitives on arrays.

"Native" arrays are those of the engine (NumPy arrays for jax, tensors on the target's device for torch). They can be sliced,
reshaped and compared alike; whatever is chosen or judged is NumPy. `pyro_dft.engine_jax.engine` and
`pyro_dft.engine_torch.engine` are the two engines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pyro_dft.recipe.chains import Block, Dynamics
from pyro_dft.settings import Settings


@dataclass(frozen=True)
class Forms:
    """What a target evaluates beside its potential on the full data, and how many rows of data each evaluation reads.

    The functions are those of an engine; see its `Target` for their arguments.

    Attributes:
        minibatch: The potential from a fresh random subsample of the data in each call, unbiased; or None.
        smoothed: Minus the log density of the posterior with noise N(0, sigma^2 I) added; or None.
        rows: Rows that one evaluation on the full data reads (for budgets).
        minibatch_rows: The same of `minibatch`.
    """

    minibatch: Any = None
    smoothed: Any = None
    rows: int = 1
    minibatch_rows: int = 1


FULL_DATA = Forms()


class Target(Protocol):
    """A posterior in one set of unconstrained coordinates.

    Attributes:
        dim: Dimension d.
        dtype: The engine's type of its numbers.
        minibatch: Whether the model subsamples its data.
        data_size: Rows of data that one evaluation on the full data reads.
        adaptive: Whether an evaluation takes longer at some points than at others, and all of a batch as long as the slowest.
    """

    dim: int
    dtype: Any
    minibatch: Any
    data_size: int
    adaptive: bool

    def evaluate(self, x: Any) -> tuple[Any, Any]:
        """Log density (...) and score (..., d) on the full data at native points (..., d)."""


class Sampler(Protocol):
    """Maps noise to draws, for each of C chains (C K samplers where each chain has one for each of K modes)."""

    mean: Any
    scale: Any
    generator: Any

    @property
    def chains(self) -> int:
        """Number of samplers, C or C K."""

    def draw(self, n: int, rng: Any) -> Any:
        """Independent draws, native (C, n, d)."""


class Refined(Protocol):
    """What a run of HMC transitions left: see `refine` of either engine."""

    draws: Any
    log_density: Any
    log_density_before: Any
    acceptance: Any
    divergence_rate: float
    stuck: float
    diverged: Any
    statistics: dict[str, Any]

    def first(self, count: int) -> Refined:
        """The same for the first `count` draws of each chain only."""


class NetworkTrainer(Protocol):
    """Training of generator and score network, in progress."""

    mean: Any
    scale: Any
    surrogate: Any

    @property
    def trained(self) -> Any:
        """The generator that draws come from."""

    @property
    def trained_score(self) -> Any:
        """The score network."""

    def advance(self, phase: str, first: int, length: int, count: int) -> list[float]:
        """From 1 to `count` steps of a phase, from step `first` of `length` on; the Fisher gap of each."""

    def sampler(self) -> Sampler:
        """The sampler as trained so far."""

    def smoothed_gap(self) -> np.ndarray:
        """Moving average of the Fisher gap, (C,)."""

    def snapshot(self) -> Any:
        """The weights that draws come from, to be given to `restore`."""

    def restore(self, weights: Any, mask: np.ndarray | None = None, otherwise: Any = None) -> None:
        """Sets these weights; with a mask (C,), those of `otherwise` where it is False."""

    def branch(self) -> NetworkTrainer:
        """A copy that can be finished while this one goes on."""

    def arrays(self) -> dict[str, np.ndarray]:
        """What training can go on from, by name."""

    def set_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `arrays`."""

    def pack(self, weights: Any) -> dict[str, np.ndarray]:
        """A snapshot as arrays, by name."""

    def unpack(self, arrays: dict[str, np.ndarray]) -> Any:
        """The inverse of `pack`."""


class Surrogate(Protocol):
    """A network that stands in for the model's scores in whitened coordinates, for each of G samplers."""

    def fit(self, u: np.ndarray, s: np.ndarray, steps: int) -> None:
        """Goes on with the fit to scores s at points u, (G, N, d) each."""

    def scores(self, u: np.ndarray) -> np.ndarray:
        """Scores (G, n, d) at points (G, n, d)."""

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights, by name."""

    def set_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `arrays`."""


class Engine(Protocol):
    """The primitives.

    Attributes:
        BLOCK_ROWS: Most draws, over all samplers, that are made at once.
        FREEZES_NOISE: Whether random numbers that a model draws by itself are fixed for good when it is traced.
    """

    BLOCK_ROWS: int
    FREEZES_NOISE: bool

    # Arrays and random numbers

    def numpy(self, x: Any) -> np.ndarray:
        """A native array in double precision on the host."""

    def native(self, target: Any, x: np.ndarray) -> Any:
        """Points for the target, in its precision and on its device."""

    def concatenate(self, arrays: Sequence[Any], axis: int) -> Any:
        """Native arrays joined along an axis."""

    def host_rng(self, rng: Any) -> np.random.Generator:
        """A NumPy generator whose numbers follow from those of the engine's own."""

    def selection_seed(self, rng: Any) -> int:
        """Seed of the random numbers with which samplers are compared."""

    def seeded(self, target: Any, seed: int) -> Any:
        """A new random number generator."""

    def rng_state(self, rng: Any) -> dict[str, Any]:
        """Header entries of a checkpoint from which `set_rng_state` goes on; empty where arrays hold the state."""

    def set_rng_state(self, rng: Any, header: dict[str, Any]) -> None:
        """The inverse of `rng_state`."""

    # Draws

    def blocks(self, sampler: Any, n: int, rng: Any) -> Iterator[Any]:
        """N independent draws from each chain, in native blocks (C, at most `BLOCK_ROWS` / C, d)."""

    # Processor threads

    def thread_count(self, problem: Any, batch_size: int) -> int:
        """How many processor threads are worth using for a training."""

    def threads(self, count: int) -> AbstractContextManager[None]:
        """Limits processor threads to `count` inside of a `with` block."""

    # The phases

    def scores(
        self, target: Any, x: np.ndarray, rng: Any, *, minibatch: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log densities (...) and scores (..., d) at points (..., d), in double precision.

        Args:
            target: The target.
            x: Points.
            rng: The engine's random number generator, where minibatches are drawn.
            minibatch: Whether to evaluate on minibatches of the data, where the model has them.
        """

    def gaussian_sampler(self, target: Any, mean: np.ndarray, scale: np.ndarray) -> Any:
        """The sampler x = mean + scale z."""

    def train_networks(
        self, target: Any, sampler: Any, settings: Settings, rng: Any, networks: Any
    ) -> NetworkTrainer:
        """A training of networks that start as the Gaussian `sampler`."""

    def surrogate(self, target: Any, samplers: int, settings: Settings, rng: Any) -> Surrogate:
        """A surrogate of the scores in whitened coordinates, which starts as the score of a unit Gaussian for each sampler."""

    # Transitions

    def whitening(self, draws: Any, fallback: Any) -> Any:
        """Square roots (C, d, d) of the covariances of draws (C, n, d)."""

    def tune_step_size(self, target: Any, draws: Any, scale: Any, *, leapfrog_steps: int, rng: Any) -> Any:
        """Leapfrog step sizes (C,) for HMC transitions of such draws."""

    def refine(
        self, target: Any, draws: Any, scale: Any, step_size: Any, *, steps: int, leapfrog_steps: int, rng: Any
    ) -> Refined:  # fmt: skip
        """Moves every draw by `steps` HMC transitions."""

    def run_block(self, target: Any, start: Any, dynamics: Dynamics, *, steps: int, rng: Any) -> Block:
        """HMC transitions of P particles for each of G samplers, with every state recorded.

        Args:
            target: The posterior, on its full data.
            start: Points (G, P, d), or the `position` of an earlier block, which costs no evaluation.
            dynamics: How they move; native arrays.
            steps: Transitions, at most `BLOCK_STEPS`.
            rng: The engine's random number generator.
        """
