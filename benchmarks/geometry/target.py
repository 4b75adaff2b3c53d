"""A posterior with exact draws, as the methods see it: a bare potential or a NumPyro model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.geometry.draws import Array, Draw
from benchmarks.references import QUANTILES, Reference

REFERENCE_DRAWS, KEPT, FLOOR = 100_000, 20_000, 10_000
# The width of a normal distribution between its 5 % and 95 % quantiles, in sds.
NORMAL_WIDTH = 3.2897


@dataclass(frozen=True)
class Target:
    """One posterior; see `benchmarks.models.registry.Case`.

    Attributes:
        name: Key on the command line.
        kind: What is hard about it, for the table.
        dim: Number of unconstrained coordinates.
        draw: (rng, n) -> exact unconstrained draws (n, dim), sites in sorted order.
        potential: U(x, *parameters) of one point (dim,) in jax, minus the log density up to a constant; or None.
        model: A NumPyro model of `parameters`, where there is no potential.
        parameters: Arrays that either of them takes.
        sites: Site and kind ("real" or "positive"), in sorted order.
        features: Exact or other draws (n, dim) -> what is compared (n, k), in place of the coordinates.
        feature_names: Names of these columns.
        components: Draws (n, dim) -> log densities (n, K) of separate modes with their weights: a draw belongs to the largest.
        moments: Whether means and variances exist; else only quantiles are compared.
    """

    name: str
    kind: str
    dim: int
    draw: Draw
    potential: Callable[..., Any] | None = None
    model: Callable[..., None] | None = None
    parameters: tuple[Array, ...] = ()
    sites: tuple[tuple[str, str], ...] = (("x", "real"),)
    features: Callable[[Array], Array] | None = None
    feature_names: tuple[str, ...] = ()
    components: Callable[[Array], Array] | None = None
    moments: bool = True

    def arrays(self) -> tuple[Array, ...]:
        """The model's positional arguments."""
        return self.parameters

    def bare(self) -> dict[str, Any] | None:
        """Arguments of `DFT` for the bare potential; None where there is a model."""
        potential = self.potential
        if potential is None:
            return None
        return {
            "potential_fn": lambda values: potential(values["x"], *self.parameters),
            "initial_params": {"x": np.zeros(self.dim, np.float32)},
        }

    def numpyro(self, reference: bool = False) -> tuple[Callable[..., None], tuple[Array, ...]]:
        """The model, or a flat vector site with the potential as a factor: the same posterior for NUTS."""
        if self.potential is None:
            assert self.model is not None
            return self.model, self.parameters
        return _as_model(self.potential, self.dim), self.parameters

    def flat(self, samples: Mapping[str, Any]) -> Array:
        """Unconstrained coordinates (n, dim) of constrained draws {site: (n, *shape)}."""
        columns = []
        for name, kind in self.sites:
            value = np.asarray(samples[name], np.float64)
            value = value.reshape(len(value), -1)
            columns.append(np.log(value) if kind == "positive" else value)
        return np.concatenate(columns, 1)

    def seen(self, draws: Array) -> Array:
        """What is compared, (n, k), of unconstrained draws (n, dim)."""
        return draws if self.features is None else self.features(draws)

    def shares(self, draws: Array) -> Array:
        """Share of the draws in each mode, (K,)."""
        assert self.components is not None
        found = self.components(draws[np.isfinite(draws).all(1)])
        return np.bincount(found.argmax(1), minlength=found.shape[1]) / max(len(found), 1)

    def exact(self, n: int, seed: int) -> Array:
        """Exact unconstrained draws (n, dim)."""
        return self.draw(np.random.default_rng([20, seed]), n)

    def reference(self) -> Reference:
        """Moments and quantiles of many exact draws; where there are no moments, widths stand in for the sds."""
        x = self.seen(self.exact(REFERENCE_DRAWS, 0))
        quantiles = np.quantile(x, QUANTILES, axis=0)
        if self.moments:
            mean, sd, covariance = x.mean(0), x.std(0), np.atleast_2d(np.cov(x.T))
        else:
            mean, sd = quantiles[1], (quantiles[2] - quantiles[0]) / NORMAL_WIDTH
            covariance = np.diag(sd**2)
        none = np.empty((0, x.shape[1]))
        names = list(self.feature_names) or [f"x[{i}]" for i in range(x.shape[1])]
        return Reference(names, mean, sd, quantiles, covariance, x[:KEPT], none, none, none, {})

    def floor(self) -> Array:
        """Exact draws other than those of the reference, (n, dim)."""
        return self.exact(FLOOR, 1)


def _as_model(potential: Callable[..., Any], dim: int) -> Callable[..., None]:
    import numpyro
    import numpyro.distributions as dist

    @functools.wraps(potential)  # so that the cache sees the source of the potential
    def model(*parameters: Any) -> None:
        x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (dim,)))
        numpyro.factor("log_density", -potential(x, *parameters))

    return model
