"""Training of the networks: by KL, and by DFT after it where the settings ask for that."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyro_dft.recipe.bank import Bank, Substitute
from pyro_dft.recipe.engine import Engine, NetworkTrainer
from pyro_dft.recipe.fit import Progress
from pyro_dft.recipe.history import check_like, pack_history, part, unpack_history
from pyro_dft.settings import Settings

# When the surrogate is fitted to further scores: shares of all iterations.
TOP_UPS = (0.15, 0.4, 0.7)


class NetworkPhase:
    """Trains the networks of one fit, from a Gaussian sampler.

    Args:
        engine: Of the target.
        target: The posterior.
        sampler: The Gaussian sampler.
        settings: See `pyro_dft.settings.Settings`.
        rng: The engine's random number generator.
        networks: Networks that the user brings.
        bank: Scores that were evaluated before; the networks are then trained on a surrogate fitted to them. None: on the model.

    Attributes:
        networks: The engine's network trainer.
        steps: Iterations made.
        before_dft: Weights before the DFT phase; None where there was none.
    """

    def __init__(
        self, engine: Engine, target: Any, sampler: Any, settings: Settings, rng: Any, networks: Any,
        bank: Bank | None = None,
    ):  # fmt: skip
        self.engine, self.settings, self.rng = engine, settings, rng
        self.substitute: Substitute | None = None
        self.networks: NetworkTrainer = engine.train_networks(target, sampler, settings, rng, networks)
        self.steps = 0
        self.before_dft: Any = None
        if bank is not None:
            self.substitute = Substitute(engine, target, sampler, bank, settings, rng)
            self.networks.surrogate = self.substitute.surrogate

    @property
    def phase(self) -> str:
        """The phase of the next iteration."""
        s = self.settings
        if s.objective != "auto":
            return s.phase
        return "kl" if self.steps < self._first_part else "dft"

    @property
    def complete(self) -> bool:
        """Whether all iterations are made."""
        return self.steps >= self.settings.num_steps

    @property
    def _first_part(self) -> int:
        """Iterations before the DFT phase: all of them where the objective has no such phase."""
        s = self.settings
        return s.num_steps - (
            round(s.num_steps * s.experimental.dft_fraction) if s.objective == "auto" else 0
        )

    @property
    def _top_ups(self) -> list[int]:
        """Iterations before which the surrogate is fitted to scores at the generator's draws as well."""
        return [round(share * self.settings.num_steps) for share in TOP_UPS]

    def advance(self) -> list[float]:
        """Some iterations of the phase that is due; the Fisher gap of each."""
        phase, first = self.phase, 0
        length = self._first_part
        if self.steps >= length:  # the DFT phase of the recipe
            first, length = length, self.settings.num_steps - length
            if self.before_dft is None:
                self.before_dft = self.networks.snapshot()
        done = self.steps - first
        count = length - done
        if self.substitute is not None:
            ahead = [step for step in self._top_ups if step > self.steps]
            count = min(count, (ahead[0] if ahead else self.settings.num_steps) - self.steps)
            if self.steps in self._top_ups:
                self.substitute.top_up(self.networks.sampler())
        losses = self.networks.advance(phase, done, length, count)
        self.steps += len(losses)
        return losses

    def branch(self) -> NetworkPhase:
        """A copy that can be ended while this one goes on."""
        other = copy.copy(self)
        other.networks = self.networks.branch()
        return other

    def state(self, history: Sequence[Progress]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and header that `resume` goes on from."""
        arrays = {f"network.{name}": value for name, value in self.networks.arrays().items()}
        if self.before_dft is not None:
            kept = self.networks.pack(self.before_dft)
            arrays |= {f"kept.{name}": value for name, value in kept.items()}
        if self.substitute is not None:
            arrays |= {f"substitute.{name}": value for name, value in self.substitute.state().items()}
        own = [entry for entry in history if entry.phase != "gaussian"]
        arrays["losses"], runs = pack_history(own)
        return arrays, {
            "network_steps": self.steps,
            "phases": runs,
            **self.engine.rng_state(self.rng),
        }

    def resume(self, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> list[tuple[str, float]]:
        """Goes on with what `state` gave; returns phase and loss of the iterations made before."""
        self.networks.set_arrays(part(arrays, "network."))
        known = part(arrays, "substitute.")
        if self.substitute is not None and known:
            self.substitute.resume(known)
        kept = part(arrays, "kept.")
        if kept:
            check_like(kept, self.networks.pack(self.networks.snapshot()))
            self.before_dft = self.networks.unpack(kept)
        self.steps = int(header["network_steps"])
        self.engine.set_rng_state(self.rng, header)
        return unpack_history(arrays["losses"], header["phases"])
