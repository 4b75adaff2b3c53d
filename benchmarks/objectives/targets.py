"""The posteriors on which objectives are compared: a `DFT` to be trained, and the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array

from benchmarks import references
from benchmarks.geometry.target import Draw, Target
from benchmarks.geometry.targets import TARGETS as GEOMETRY
from benchmarks.models.case import Case
from benchmarks.models.registry import BENCHMARKS
from benchmarks.references import Reference

ROWS, COEFFICIENTS, MINIBATCH = 1000, 10, 100


@dataclass(frozen=True)
class Subject:
    """One posterior.

    Attributes:
        name: Key on the command line.
        family: For the report.
        case: The posterior.
        reference: What the draws are held against.
    """

    name: str
    family: str
    case: Case
    reference: Callable[[], Reference]

    def dft(self, **options: Any) -> tuple[Any, tuple[Any, ...]]:
        """An untrained sampler and the arguments of its model."""
        from pyro_dft.numpyro import DFT

        if isinstance(self.case, Target) and (bare := self.case.bare()) is not None:
            return DFT(**bare, disable_progbar=True, **options), ()
        model, args = self.case.numpyro()
        return DFT(model, disable_progbar=True, **options), args

    def seen(self, samples: dict[str, Any]) -> np.ndarray:
        """What is compared, (n, k), of constrained draws."""
        flat = self.case.flat(samples)
        return self.case.seen(flat) if isinstance(self.case, Target) else flat


def logistic_rows(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Simulated data of a logistic regression."""
    rng = np.random.default_rng(8)
    x = rng.normal(size=(n, d))
    x[:, 0] = 1.0
    rate = 1 / (1 + np.exp(-x @ rng.normal(size=d)))
    return x, (rng.uniform(size=n) < rate).astype(np.float64)


def minibatched(x: Array, y: Array) -> None:
    """Logistic regression that reads 100 of its rows at a time."""
    w = numpyro.sample("w", dist.Normal(jnp.zeros(COEFFICIENTS), 2.0).to_event(1))
    with numpyro.plate("rows", ROWS, subsample_size=MINIBATCH) as i:
        numpyro.sample("y", dist.Bernoulli(logits=x[i] @ w), obs=y[i])


def logistic(x: Array, y: Array) -> None:
    """The same on all rows."""
    w = numpyro.sample("w", dist.Normal(jnp.zeros(x.shape[1]), 2.0).to_event(1))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def logistic_draws(x: np.ndarray, y: np.ndarray) -> Draw:
    """Student-t(8) proposals around the mode, weighted and resampled: the posterior is near to Gaussian."""
    d = x.shape[1]

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        mode = np.zeros(d)
        for _ in range(30):
            rate = 1 / (1 + np.exp(-x @ mode))
            precision = (x * (rate * (1 - rate))[:, None]).T @ x + np.eye(d) / 4
            mode = mode + np.linalg.solve(precision, x.T @ (y - rate) - mode / 4)
        factor = np.linalg.cholesky(np.linalg.inv(precision))
        z = rng.normal(size=(4 * n, d)) / np.sqrt(rng.chisquare(8, size=(4 * n, 1)) / 8)
        w = mode + z @ factor.T
        log_weight = 0.5 * (8 + d) * np.log1p((z**2).sum(1) / 8) - (w**2).sum(1) / 8
        for rows in np.array_split(np.arange(len(w)), max(1, len(w) // 4000)):
            log_weight[rows] -= np.logaddexp(0.0, -(2 * y - 1) * (w[rows] @ x.T)).sum(1)
        weight = np.exp(log_weight - log_weight.max())
        weight /= weight.sum()
        if 1 / (weight**2).sum() < 0.2 * len(w):
            raise ValueError("the proposals do not fit this density")
        return w[rng.choice(len(w), n, p=weight)]

    return draw


def _logistic(name: str, kind: str, model: Callable[..., None], n: int, d: int) -> Target:
    rows = logistic_rows(n, d)
    return Target(name, kind, d, logistic_draws(*rows), model=model, parameters=rows, sites=(("w", "real"),))


MINIBATCHED = _logistic("logistic_minibatched", "minibatches", minibatched, ROWS, COEFFICIENTS)
FEW_ROWS = _logistic("logistic_few_rows", "regression, skewed", logistic, 60, 8)


def _geometry(name: str, family: str) -> Subject:
    return Subject(name, family, GEOMETRY[name], GEOMETRY[name].reference)


def _benchmark(name: str, family: str) -> Subject:
    return Subject(name, family, BENCHMARKS[name], lambda: references.load(name))


def _posteriordb(name: str, family: str) -> Subject:
    from benchmarks.posteriordb import case, posteriors

    posterior = posteriors.POSTERIORS[name]
    return Subject(name, family, case.PosteriorCase(posterior), lambda: case.reference(posterior))


SUBJECTS: dict[str, Subject] = {
    s.name: s
    for s in (
        _geometry("banana", "curved"),
        _benchmark("eight_schools_noncentered", "hierarchy"),
        _benchmark("german_credit", "regression"),
        _geometry("donut", "thin ring"),
        _posteriordb("nes1980-nes", "regression"),
        _geometry("squiggle", "curved"),
        _geometry("skewed10", "skewed"),
        _geometry("student5", "heavy tails"),
        _geometry("gaussian100", "Gaussian"),
        _geometry("mild50", "skewed, nearly Gaussian"),
        _geometry("skewed50", "skewed"),
        _geometry("hierarchy102", "hierarchy"),
        Subject("logistic_minibatched", "minibatches", MINIBATCHED, MINIBATCHED.reference),
        Subject("logistic_few_rows", "regression, skewed", FEW_ROWS, FEW_ROWS.reference),
        _benchmark("breast_cancer", "regression"),
    )
}
