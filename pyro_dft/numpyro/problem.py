"""What the sampler needs to know about a posterior: one flat point in, one number out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from pyro_dft import messages
from pyro_dft.engine_jax import random
from pyro_dft.engine_jax.gradients import needs_forward, value_and_gradient
from pyro_dft.engine_jax.target import Target
from pyro_dft.errors import ModelError
from pyro_dft.models.circular import Evaluate
from pyro_dft.models.posterior import Posterior, checked_samples
from pyro_dft.numpyro.traced import Traced
from pyro_dft.recipe.engine import Forms

# Under a trace nothing can be tried again: so many times as many points are proposed at once.
_TRIES = 20


class Problem(Posterior):
    """A posterior over one flat vector; the common part of models and bare potentials.

    Attributes:
        dtype: Dtype of the flat vector.
        potential: Negative log density of one point (d,) on the full data, as a function of (x, data).
        minibatch_potential: An unbiased estimate from a random part of the data, as a function of (x, data, key), or None.
        smoothed_potential: That of the posterior with noise added, as a function of (x, sigma, data), or None.
        data: What these two read.
    """

    framework = "NumPyro"
    dtype: np.dtype
    potential: Traced
    minibatch_potential: Traced | None = None
    smoothed_potential: Traced | None = None
    data: dict[str, Any]
    _centre: np.ndarray
    _own_start: np.ndarray | None = None  # a point that the caller wants to start from

    @property
    def minibatch(self) -> bool:
        """Whether `minibatch_potential` reads a random part of the data."""
        return self.minibatch_potential is not None

    def target(self) -> Target:
        """The posterior as the engine takes it."""
        return Target(
            self.potential,
            self.dim,
            data=self.data,
            dtype=self.dtype,
            forms=Forms(
                self.minibatch_potential, self.smoothed_potential, self.data_size, self.minibatch_size
            ),
        )

    def density(self) -> Evaluate:
        """See the base class."""
        target = self.target()

        def evaluate(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            value, score = target.evaluate(x.astype(self.dtype))
            return np.asarray(value, float), np.asarray(score, float)

        return evaluate

    def initial_points(
        self,
        n: int,
        target: Target,
        rng: np.random.Generator,
        radius: float = 2.0,
        init_strategy: Callable[..., Any] | None = None,
        max_tries: int = 100,
    ) -> np.ndarray:
        """Points with finite potential and gradient to start from.

        Args:
            n: Number of points.
            target: Evaluates them.
            rng: Source of randomness.
            radius: Half-width of the uniform box in unconstrained space, where no strategy is given.
            init_strategy: NumPyro's per-site strategies, such as ``numpyro.infer.init_to_median``.
            max_tries: How often n points are proposed before giving up.

        Returns:
            Array of shape (n, d). Where too few finite points turn up, they are repeated.

        Raises:
            ModelError: No proposed point is finite; the message says which sites are to blame.
        """
        found: list[np.ndarray] = []
        x = np.empty((0, self.dim))
        for attempt in range(max_tries):
            x = (
                self._box(n, rng, radius)
                if init_strategy is None
                else self._by_strategy(n, rng, init_strategy)
            )
            # Once only: where it is not finite, the places that it would take are for others.
            if attempt == 0 and self._own_start is not None:
                x[0] = self._own_start
            log_density, _ = target.evaluate(x)
            found.append(x[np.isfinite(log_density)])
            if sum(map(len, found)) >= n:
                break
        points = np.concatenate(found)
        if not len(points):
            raise messages.no_valid_start(n * max_tries, self._explain(x[0]))
        return points[np.arange(n) % len(points)]

    def initial_points_traced(self, n: int, target: Target, words: Any) -> Any:
        """As `initial_points`, inside compiled functions: the first finite ones of `_TRIES` n uniform points."""
        box = random.uniform(words, (_TRIES * n, self.dim), self.dtype) * 4.0 - 2.0
        x = self._centre + box
        good = jnp.isfinite(target.spec.evaluate(jnp.asarray(x), target.data)[0])
        order = jnp.argsort(~good, stable=True)[:n]
        return x[jnp.where(good[order], order, order[0])]

    @property
    def centre(self) -> np.ndarray:
        """See the base class."""
        return self._centre.astype(float)

    def _box(self, n: int, rng: np.random.Generator, radius: float) -> np.ndarray:
        """Points (n, d), uniform around the centre."""
        return (self._centre + rng.uniform(-radius, radius, (n, self.dim))).astype(self.dtype)

    def _by_strategy(self, n: int, rng: np.random.Generator, init_strategy: Callable[..., Any]) -> np.ndarray:
        raise ModelError(self._no_strategy())

    def _explain(self, x: np.ndarray) -> str:
        """Why the potential or its gradient is not finite at ``x``."""
        at = jnp.asarray(x, self.dtype)
        forward = needs_forward(self.potential, at, self.data)
        value, gradient = value_and_gradient(self.potential, forward)(at, self.data)
        if not np.isfinite(value):
            return f"At one of them the potential is {float(value)}"
        names = self.layout.coordinate_names()
        bad = [names[i] for i in np.flatnonzero(~np.isfinite(np.asarray(gradient)))]
        return f"At one of them the gradient is not finite with respect to {', '.join(bad[:10])}"

    def constrain_one(self, x: Any) -> dict[str, Any]:
        """As `constrain`, for one point (d,), under a trace."""
        rows = self.constrain(x[None])
        return {name: jnp.asarray(value)[0] for name, value in rows.items()}

    def _checked_samples(self, samples: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return checked_samples(self.layout, samples, lambda _, value: np.asarray(value, self.dtype))

    def posterior_predictive(self, samples: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """New data in the shape of the old, one replicate per draw.

        Args:
            samples: Name -> array of shape (n, *site shape), for all latent sites.
            rng: Source of randomness.

        Returns:
            Name of an observed site -> array of shape (n, *shape of the data).

        Raises:
            ModelError: ``samples`` do not fit the model.
        """
        raise ModelError(self._needs_model("the posterior predictive distribution"))

    def prior_predictive(self, n: int, rng: np.random.Generator) -> dict[str, Any]:
        """Draws of latent, discrete, deterministic and observed sites from the prior, n of each.

        Raises:
            ModelError: A prior is improper.
        """
        raise ModelError(self._needs_model("the prior predictive distribution"))
