"""Several samplers for each chain, one for each separate mode; each draw chooses one at random."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_dft.errors import StorageError

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Modes:
    """K samplers for each of C chains, and how often each serves: sampler c K + k is that of mode k for chain c.

    Attributes:
        weights: (C, K), each row adds up to one.
        errors: Their standard errors, (C, K).
        k_hat: Tail of the importance weights that they were estimated with, (C,); see `pyro_dft.evidence.psis`.
        log_evidence: Estimates of the log normalising constant from the same weights, (C,).
    """

    weights: Array
    errors: Array
    k_hat: Array
    log_evidence: Array

    @property
    def chains(self) -> int:
        """Number of chains C."""
        return self.weights.shape[0]

    @property
    def count(self) -> int:
        """Number of modes K."""
        return self.weights.shape[1]

    def __getitem__(self, chains: Any) -> Modes:
        """The modes of some of the chains."""
        index = np.asarray(chains)
        return Modes(self.weights[index], self.errors[index], self.k_hat[index], self.log_evidence[index])

    def rows(
        self, n: int, rng: np.random.Generator, available: int | None = None
    ) -> tuple[int, NDArray[np.intp]]:
        """Which draws of the samplers make n draws of each chain.

        Args:
            n: Draws of each chain.
            rng: Chooses the modes.
            available: How many draws each sampler has; None for as many as are needed.

        Returns:
            Draws m that each sampler has to give, and rows (C, n) into the K m draws of each chain.
        """
        counts = np.stack([rng.multinomial(n, w / w.sum()) for w in self.weights])
        each = int(counts.max()) if available is None else available
        rows = [
            np.concatenate([k * each + np.arange(count) for k, count in enumerate(row)]) for row in counts
        ]
        return each, np.stack([rng.permutation(row) for row in rows])

    def kept(self, draws: Any) -> Any:
        """The draws that chains keep, (C, n, ...), of measured ones (C K, n, ...): always the same rows."""
        return self.combine(draws, self._kept_rows(draws.shape[1]))

    def kept_modes(self, n: int) -> NDArray[np.intp]:
        """The mode that each of the kept draws comes from, (C, n)."""
        return self._kept_rows(n) // n

    def _kept_rows(self, n: int) -> NDArray[np.intp]:
        # The choice knows nothing of the draws, so a fixed seed does no harm, and a file need not hold it.
        return self.rows(n, np.random.default_rng(0), available=n)[1]

    def particles(self, count: int) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """For each chain, which particles stand for it, as many of each mode as it weighs, and the modes that these are in.

        Args:
            count: Particles of each sampler.
        """
        found = []
        for c, weights in enumerate(self.weights):
            counts = np.round(count * weights / weights.max()).astype(int)
            rows = [(c * len(weights) + k) * count + np.arange(n) for k, n in enumerate(counts)]
            found.append((np.concatenate(rows), np.repeat(np.arange(len(weights)), counts)))
        return found

    def combine(self, draws: Any, rows: NDArray[np.intp]) -> Any:
        """Draws (C, n, ...) of the chains from those of the samplers, (C K, m, ...): NumPy, torch or jax."""
        together = draws.reshape(self.chains, self.count * draws.shape[1], *draws.shape[2:])
        return together[np.arange(self.chains)[:, None], rows]

    def entry(self) -> dict[str, Any]:
        """Plain numbers over all chains, for `diagnostics()["modes"]`."""
        return {
            "weights": self.weights.mean(0).tolist(),
            "errors": (np.sqrt(np.square(self.errors).sum(0)) / self.chains).tolist(),
            "k_hat": float(self.k_hat.max()),
        }

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything, by name."""
        return {f"modes.{name}": np.asarray(value, np.float64) for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, path: Any, arrays: dict[str, np.ndarray], chains: int) -> Modes | None:
        """The inverse of `to_arrays`; None where there are none.

        Raises:
            StorageError: they do not fit the file's number of chains, or are no weights.
        """
        own = {k.removeprefix("modes."): v for k, v in arrays.items() if k.startswith("modes.")}
        if not own:
            return None
        weights = own.get("weights", np.empty(0))
        fine = weights.ndim == 2 and weights.shape[0] == chains and (weights >= 0).all()
        if not fine or own.keys() != {f.name for f in fields(cls)} or not np.allclose(weights.sum(1), 1.0):
            raise StorageError(f"{path}: the weights of its modes cannot be used")
        return cls(**own)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of `to_arrays`."""
        wide, narrow = (self.chains, self.count), (self.chains,)
        own = {"weights": wide, "errors": wide, "k_hat": narrow, "log_evidence": narrow}
        return {f"modes.{name}": shape for name, shape in own.items()}
