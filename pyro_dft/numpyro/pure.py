"""Training by pure functions, as with `numpyro.infer.SVI`, and the compiled programs that it is made of."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import jax
import numpy as np

from pyro_dft.engine_jax import functional, random
from pyro_dft.engine_jax.custom import Own
from pyro_dft.engine_jax.engine import ENGINE
from pyro_dft.engine_jax.functional import FitState, Schedule
from pyro_dft.engine_jax.sampler import Sampler, draw
from pyro_dft.engine_jax.target import Target
from pyro_dft.engine_jax.train import Hyper, OwnNetworks
from pyro_dft.interface.arguments import unchanged
from pyro_dft.interface.dft import Inference
from pyro_dft.interface.exclusive import exclusive
from pyro_dft.numpyro.problem import Problem as Posterior
from pyro_dft.numpyro.surroundings import lenient
from pyro_dft.recipe.fit import Fit
from pyro_dft.recipe.gaussians import Gaussians
from pyro_dft.recipe.trainer import Trainer


class PureTraining(Inference):
    """`init`, `update`, `fit` and `draw`, and `adopt`, which takes over what they trained."""

    _last: tuple[Any, Posterior, Target] | None = None
    _words: tuple[int, ...] = ()
    _pure_state = False  # whether the posteriors are read for what `init`, `update` and `fit` trained
    _checked_networks: tuple[int, OwnNetworks] | None = None
    _problems: list[Any]
    _rng: np.random.Generator

    @abstractmethod
    def _own_posterior(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], centred: bool = True
    ) -> Posterior:
        """The posterior in the model's own coordinates, with those of angles centred at a mode or at zero."""

    @property
    def step(self) -> Any:
        """There is none here: training by steps is `init` and `update`."""
        raise AttributeError("with NumPyro, training by steps is init(rng_key, ...) and update(state, ...)")

    @lenient()
    def init(self, rng_key: Any, *args: Any, **kwargs: Any) -> FitState:
        """The first state of a training by steps, for users who write their own loop, as `SVI.init`.

        `init`, `update`, `fit` and `draw` are pure: they work under `jax.jit`, `jax.vmap` (over keys, or over data sets of
        one shape) and `jax.lax.scan`. They follow the plan of the settings: `precondition_steps` of the Gaussian, then
        `num_steps` of the network, always in the model's own coordinates. `run` decides more by itself: which coordinates
        to train in, whether the network is needed, and which phase helped.

        Args:
            rng_key: Random key of the whole training.
            *args: Arguments of the model.
            **kwargs: Keyword arguments of the model.

        Raises:
            ModelError: the model or its data cannot be used; the message names the site or argument.

        Example:
            >>> dft = DFT(model, precondition_steps=50, num_steps=50, width=8)
            >>> state = dft.init(jax.random.key(0), y)
            >>> update = jax.jit(dft.update)
            >>> for _ in range(100):
            ...     state, loss = update(state, y)
            >>> loss.shape
            ()
        """
        posterior, target = self._pure(args, kwargs)
        words = random.words(rng_key)
        count = self.num_chains * self.settings.restarts
        starts = posterior.initial_points_traced(count, target, random.fold(words, 0))
        starts = starts.reshape(self.num_chains, self.settings.restarts, posterior.dim)
        schedule, hyper = self._schedule(target), Hyper.of(self.settings)
        return functional.compiled_start(schedule, hyper, starts, random.fold(words, 1))

    @lenient()
    def update(self, state: FitState, *args: Any, **kwargs: Any) -> tuple[FitState, Any]:
        """One training iteration on the given arguments, as `SVI.update`.

        Args:
            state: From `init` or an earlier `update`.
            *args: Arguments of the model, such as a minibatch scaled by the model.
            **kwargs: Keyword arguments of the model.

        Returns:
            The next state; the Fisher gap J(s_q) - J(s_phi) on fresh draws, or minus the evidence bound while the
            Gaussian is fitted.

        Raises:
            ModelError: as for `init`.

        Example:
            >>> dft = DFT(model, precondition_steps=50, num_steps=50, width=8)
            >>> state, loss = dft.update(dft.init(jax.random.key(0), y), y)
            >>> bool(jnp.isfinite(loss))
            True
        """
        target = self._pure(args, kwargs)[1]
        schedule = self._schedule(target)
        return functional.compiled_update(schedule, Hyper.of(self.settings), state, target.data)

    @lenient()
    def fit(self, rng_key: Any, *args: Any, **kwargs: Any) -> tuple[FitState, Any]:
        """`init` and all iterations of `update` as one compiled program.

        Returns:
            The last state, and the loss of each iteration.

        Raises:
            ModelError: as for `init`.

        Example:
            >>> dft = DFT(model, precondition_steps=50, num_steps=50, width=8)
            >>> state, losses = dft.fit(jax.random.key(0), y)
            >>> losses.shape
            (100,)
        """
        state = self.init(rng_key, *args, **kwargs)
        target = self._pure(args, kwargs)[1]
        schedule = self._schedule(target)
        return functional.compiled_rest(schedule, Hyper.of(self.settings), state, target.data)

    @lenient()
    def draw(
        self, rng_key: Any, state: FitState, num_samples: int, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Draws of a trained state, one forward pass each, without refinement.

        Args:
            rng_key: Random key of the draws.
            state: From `update` or `fit`.
            num_samples: Draws for each chain.
            *args: Arguments of the model.
            **kwargs: Keyword arguments of the model.

        Returns:
            Site name -> array of shape (num_chains, num_samples, *site).

        Example:
            >>> dft = DFT(model, precondition_steps=50, num_steps=50, width=8)
            >>> state, losses = dft.fit(jax.random.key(0), y)
            >>> dft.draw(jax.random.key(1), state, 10, y)["mu"].shape
            (1, 10)
        """
        posterior = self._pure(args, kwargs)[0]
        words = random.words(rng_key)
        flat = draw(state.mean, state.scale, state.network.trained, words, num_samples)
        values = posterior.constrain(flat.reshape(-1, posterior.dim))
        return {name: v.reshape(*flat.shape[:2], *v.shape[1:]) for name, v in values.items()}

    @lenient()
    def adopt(self, state: FitState, *args: Any, **kwargs: Any) -> None:
        """Takes over a trained state, measures it, and serves its draws as after `run`.

        Args:
            state: From `update` or `fit`, not under a trace.
            *args: Arguments of the model.
            **kwargs: Keyword arguments of the model.

        Raises:
            ModelError: as for `init`.

        Warns:
            FidelityWarning: a diagnostic says that the fit is doubtful.

        Example:
            >>> dft = DFT(model, precondition_steps=50, num_steps=50, width=8)
            >>> state, losses = dft.fit(jax.random.key(0), y)
            >>> dft.adopt(state, y)
            >>> dft.get_samples(10)["mu"].shape
            (10,)
        """
        self._words = tuple(int(word) for word in np.asarray(state.key))
        with exclusive(), self._all_or_nothing(), self._timed():
            self._pure_state = True
            try:
                self._prepare(args, kwargs)
            finally:
                self._pure_state = False
            self._trainer = Trainer(
                ENGINE,
                self._problems,
                self.settings,
                self._rng,
                fit=fit_of(state, self.settings.objective),
            )
            self._whole = True
            self._measure(self._trainer)
        self._warn(stacklevel=3)

    def _pure(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Posterior, Target]:
        """The posterior in the model's own coordinates; remembered for as long as the arguments are the same."""
        if self._last is None or not unchanged(self._last[0], (args, kwargs), self._same_array):
            arguments = self._snapshot((args, kwargs))
            with exclusive():
                posterior = self._own_posterior(*arguments, centred=False)
                found = (arguments, posterior, posterior.target())
            traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(found[2].data))
            if traced:  # what a trace made must not outlive it
                return found[1], found[2]
            self._last = found
        return self._last[1], self._last[2]

    def _networks(self, dim: int) -> OwnNetworks:
        """The user's networks for d coordinates, checked once."""
        if self._checked_networks is None or self._checked_networks[0] != dim:
            generator, score_network = self._own_generator, self._own_score_network
            levels = self.settings.noise_mode == "levels"
            own = OwnNetworks(
                None if generator is None else Own(generator, "generator", dim),
                None if score_network is None else Own(score_network, "score_network", dim, levels),
            )
            self._checked_networks = dim, own
        return self._checked_networks[1]

    def _schedule(self, target: Target) -> Schedule:
        return Schedule.of(target.spec, self.settings, self._networks(target.dim))


def fit_of(state: FitState, objective: str) -> Fit:
    """What pure functions trained, as a fit that has nothing left but to be measured.

    Args:
        state: From `update` or `fit`; it was trained in the model's own coordinates.
        objective: Of the settings.
    """
    chains = len(state.mean)
    generator = jax.tree.map(np.asarray, state.network.trained)
    trained = bool(np.isfinite(np.asarray(state.network.gap)).any())
    sampler = Sampler(np.asarray(state.mean), np.asarray(state.scale), generator if trained else None)
    own, elbo = state.gaussian, np.asarray(state.gaussian.best, float)
    # The highest bounds seen on the way, on minibatches perhaps, bound nothing surely.
    optima = Gaussians(np.asarray(own.mean), np.asarray(own.scale), elbo, np.full(len(elbo), np.inf))
    return Fit(
        sampler, 0, [objective if trained else "gaussian"] * chains, optima, optima.best_of_chains(chains),
        [float(elbo.max())], fisher_gap=np.asarray(state.network.gap, float),
    )  # fmt: skip
