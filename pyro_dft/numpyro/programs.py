"""The compiled programs that pure functions are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro_dft.engine_jax import functional, random
from pyro_dft.engine_jax.functional import FitState, Schedule
from pyro_dft.engine_jax.sampler import draw
from pyro_dft.engine_jax.step import Hyper
from pyro_dft.engine_jax.target import Target
from pyro_dft.interface.arguments import unchanged
from pyro_dft.interface.exclusive import exclusive
from pyro_dft.numpyro.problem import Problem as Posterior
from pyro_dft.numpyro.trees import is_traced

if TYPE_CHECKING:
    from pyro_dft.numpyro.backend import NumPyroBackend


class Programs:
    """What the pure functions run: a model in its own coordinates, and a plan that follows from the settings alone.

    Args:
        backend: The model and its framework.
    """

    def __init__(self, backend: NumPyroBackend):
        self._backend, self._options = backend, backend.options
        self._last: tuple[Any, Posterior, Target] | None = None

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Posterior, Target]:
        """The posterior in the model's own coordinates; remembered for as long as the arguments are the same."""
        backend = self._backend
        if self._last is None or not unchanged(self._last[0], (args, kwargs), backend.arrays.same):
            arguments = backend.snapshot((args, kwargs))
            with exclusive():
                posterior = backend.own_posterior(*arguments, centred=False)
                found = (arguments, posterior, posterior.target())
            if is_traced(found[2].data):  # what a trace made must not outlive it
                return found[1], found[2]
            self._last = found
        return self._last[1], self._last[2]

    def schedule(self, target: Target) -> Schedule:
        """The plan of a training."""
        return Schedule.of(target.spec, self._options.settings, self._backend.networks(target.dim))

    def init(self, rng_key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> FitState:
        """All of `DFT.init`."""
        posterior, target = self.read(args, kwargs)
        words, chains, restarts = (
            random.words(rng_key),
            self._options.num_chains,
            self._options.settings.restarts,
        )
        starts = posterior.initial_points_traced(chains * restarts, target, random.fold(words, 0))
        starts = starts.reshape(chains, restarts, posterior.dim)
        hyper = Hyper.of(self._options.settings)
        return functional.compiled_start(self.schedule(target), hyper, starts, random.fold(words, 1))

    def update(self, state: FitState, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[FitState, Any]:
        """All of `DFT.update`."""
        target = self.read(args, kwargs)[1]
        hyper = Hyper.of(self._options.settings)
        return functional.compiled_update(self.schedule(target), hyper, state, target.data)

    def fit(self, rng_key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[FitState, Any]:
        """All of `DFT.fit`."""
        state = self.init(rng_key, args, kwargs)
        target = self.read(args, kwargs)[1]
        hyper = Hyper.of(self._options.settings)
        return functional.compiled_rest(self.schedule(target), hyper, state, target.data)

    def draw(
        self, rng_key: Any, state: FitState, num_samples: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """All of `DFT.draw`."""
        posterior = self.read(args, kwargs)[0]
        words = random.words(rng_key)
        flat = draw(state.mean, state.scale, state.network.trained, words, num_samples)
        values = posterior.constrain(flat.reshape(-1, posterior.dim))
        return {name: v.reshape(*flat.shape[:2], *v.shape[1:]) for name, v in values.items()}
