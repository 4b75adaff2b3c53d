"""Training by pure functions, as with `numpyro.infer.SVI`."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from pyro_dft.engine_jax.functional import FitState
from pyro_dft.engine_jax.sampler import Sampler
from pyro_dft.interface.parts import Parts
from pyro_dft.numpyro.surroundings import lenient
from pyro_dft.recipe.fit import Fit
from pyro_dft.recipe.gaussians import Gaussians


class PureFunctions:
    """`init`, `update`, `fit` and `draw` of a `DFT`, and `adopt`, which takes over what they trained."""

    parts: Parts

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
            >>> dft = DFT(model, num_steps=50, width=8, experimental=Experimental(precondition_steps=50))
            >>> state = dft.init(jax.random.key(0), y)
            >>> update = jax.jit(dft.update)
            >>> for _ in range(100):
            ...     state, loss = update(state, y)
            >>> loss.shape
            ()
        """
        return self.parts.backend.programs.init(rng_key, args, kwargs)

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
            >>> dft = DFT(model, num_steps=50, width=8, experimental=Experimental(precondition_steps=50))
            >>> state, loss = dft.update(dft.init(jax.random.key(0), y), y)
            >>> bool(jnp.isfinite(loss))
            True
        """
        return self.parts.backend.programs.update(state, args, kwargs)

    @lenient()
    def fit(self, rng_key: Any, *args: Any, **kwargs: Any) -> tuple[FitState, Any]:
        """`init` and all iterations of `update` as one compiled program.

        Returns:
            The last state, and the loss of each iteration.

        Raises:
            ModelError: as for `init`.

        Example:
            >>> dft = DFT(model, num_steps=50, width=8, experimental=Experimental(precondition_steps=50))
            >>> state, losses = dft.fit(jax.random.key(0), y)
            >>> losses.shape
            (100,)
        """
        return self.parts.backend.programs.fit(rng_key, args, kwargs)

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
            >>> dft = DFT(model, num_steps=50, width=8, experimental=Experimental(precondition_steps=50))
            >>> state, losses = dft.fit(jax.random.key(0), y)
            >>> dft.draw(jax.random.key(1), state, 10, y)["mu"].shape
            (1, 10)
        """
        return self.parts.backend.programs.draw(rng_key, state, num_samples, args, kwargs)

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
            >>> dft = DFT(model, num_steps=50, width=8, experimental=Experimental(precondition_steps=50))
            >>> state, losses = dft.fit(jax.random.key(0), y)
            >>> dft.adopt(state, y)
            >>> dft.get_samples(10)["mu"].shape
            (10,)
        """
        backend = self.parts.backend
        backend.words = tuple(int(word) for word in np.asarray(state.key))
        with backend.as_pure():
            fit = fit_of(state, self.parts.options.settings.phase)
            self.parts.training.take_over(args, kwargs, fit)


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
