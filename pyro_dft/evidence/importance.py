"""Importance weights for the draws of a sampler: evidence, k-hat, and draws that the weights correct.

Draws x come from a mixture of the C chains and, for a tenth of them, of wide Student-t densities; their weights are

    w = exp(-U(x)) / sum_j a_j p_j(x)

with shares a_j and densities p_j of all components, whichever of them made the draw (Owen and Zhou, "Safe and
effective importance sampling", JASA 95, 2000). E w is the evidence, the integral of exp(-U). A Gaussian sampler has a
density; that of a network is estimated, in a way that leaves E w as it is (`pyro_dft.evidence.reverse`). The wide components
(Hesterberg, Technometrics 37, 1995) bound the weights by exp(-U) / (a_t t(x)) wherever the sampler is too narrow, and
they sit on every optimum that a restart found, also on one that the sampler misses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyro_dft import messages, roots
from pyro_dft.evidence.psis import khat_threshold, psis
from pyro_dft.evidence.reverse import ImplicitSampler, Marginal, standard_normal
from pyro_dft.evidence.student import StudentT
from pyro_dft.judging.optima import distinct_optima
from pyro_dft.settings import check_count

Array = NDArray[np.floating[Any]]

# Share of the draws that come from the wide components, and the degrees of freedom of these.
DEFENCE = 0.1
FREEDOM = 5.0


@dataclass(frozen=True)
class ImportanceResult:
    """Weighted draws of a posterior, and what their weights say. n of them.

    Attributes:
        log_evidence: Log of the mean weight, an estimate of log integral exp(-U), in nats: the log marginal likelihood
            where all priors are proper. Its exponential is unbiased.
        log_evidence_error: Standard error of `log_evidence` by the delta method, in nats. Too small where the weights
            are not `reliable`.
        k_hat: Shape of the tail of the weights (see `pyro_dft.evidence.psis.PSIS`).
        ess: Effective sample size of the smoothed weights, in draws.
        log_weights: Pareto-smoothed log weights (n,), whose exponentials sum to one.
        samples: Site name -> draws (n, *site), constrained, deterministic sites too, as arrays of the framework. They
            follow the posterior only together with their weights.

    Example:
        >>> result = dft.importance_sampling(1000)
        >>> weights = np.exp(result.log_weights)
        >>> mean = np.sum(weights * np.asarray(result.samples["mu"]))
        >>> bool(abs(mean - 2.0) < 0.1)
        True
    """

    log_evidence: float
    log_evidence_error: float
    k_hat: float
    ess: float
    log_weights: Array = field(repr=False)
    samples: dict[str, Any] = field(repr=False)

    @property
    def reliable(self) -> bool:
        """Whether k-hat is below `pyro_dft.evidence.psis.khat_threshold`, 0.7 or less for few draws.

        Example:
            >>> dft.importance_sampling(1000).reliable
            True
        """
        return self.k_hat < khat_threshold(len(self.log_weights))

    def resample(self, num_samples: int | None = None, *, seed: int = 0) -> dict[str, Any]:
        """Equally weighted draws: some of `samples` several times, others not at all (systematic resampling).

        Args:
            num_samples: Draws; None takes half of `ess`, so that few are repeated.
            seed: Of the choice.

        Returns:
            Site name -> array of shape (num_samples, *site), in random order.

        Raises:
            ValueError: `num_samples` is not a positive integer.

        Example:
            >>> result = dft.importance_sampling(1000)
            >>> tuple(result.resample(100)["mu"].shape)
            (100,)
        """
        count = max(1, int(self.ess / 2)) if num_samples is None else num_samples
        check_count("num_samples", count, 1)
        rng = np.random.default_rng(seed)
        times = systematic_counts(np.exp(self.log_weights), int(count), rng)
        index = rng.permutation(np.repeat(np.arange(len(times)), times))
        return {name: value[index] for name, value in self.samples.items()}


class Sampler(ImplicitSampler, Protocol):
    """A sampler of either engine: x = mean + scale u for each of C chains, u of `ImplicitSampler` or N(0, I)."""

    @property
    def generator(self) -> Any:
        """None where u is N(0, I)."""

    def to_arrays(self) -> dict[str, np.ndarray]:
        """`mean` (C, d) and `scale` (C, d, d) or (C, d), and the network's."""


class Mixture:
    """The chains of a sampler, and the wide components.

    Args:
        sampler: The sampler.
        weights: How often each of its chains serves, (C,); above zero, any sum.
        refined: Draws after refinement, (C, n, d): where the posterior is thought to be.
        optima: Means (R, d), scales (R, d, d) or (R, d), and evidence bounds (R,) of all restarts.
        rng: Source of everything random.
    """

    def __init__(
        self,
        sampler: Sampler,
        weights: Array,
        refined: Array,
        optima: tuple[Array, Array, Array],
        rng: np.random.Generator,
    ):
        arrays = sampler.to_arrays()
        self._mean, self._scale = (arrays[name].astype(np.float64) for name in ("mean", "scale"))
        self._sampler, self._rng = sampler, rng
        self._marginal = None if sampler.generator is None else Marginal(sampler, rng)
        self._wide = wide_components(self._mean, self._scale, refined, optima)
        even = np.full(len(self._wide), DEFENCE / len(self._wide))
        self._shares = np.concatenate([(1 - DEFENCE) * weights / weights.sum(), even])

    def draw(self, n: int) -> tuple[Array, Array]:
        """Draws (n, d) in random order, and their log densities (n,) under the mixture."""
        chains, dim = self._mean.shape
        counts = systematic_counts(self._shares, n, self._rng)
        z = self._rng.standard_normal((chains, counts[:chains].max(), dim))
        u = z
        if self._marginal is not None:
            noise = self._sampler.noise * self._rng.standard_normal(z.shape)
            u = self._sampler.generate(z) + noise
        own = [
            self._mean[c] + roots.coloured(self._scale[c], u[c, :count])
            for c, count in enumerate(counts[:chains])
        ]
        others = [t.draw(k, self._rng) for t, k in zip(self._wide, counts[chains:], strict=True)]
        x = np.concatenate(own + others)
        latents = np.zeros_like(x)
        latents[: counts[:chains].sum()] = np.concatenate([z[c, :k] for c, k in enumerate(counts[:chains])])
        chain = np.repeat([*range(chains), *[-1] * len(self._wide)], counts)
        order = self._rng.permutation(n)
        return x[order], self._log_density(x, latents, chain)[order]

    def _log_density(self, x: Array, z: Array, chain: NDArray[np.intp]) -> Array:
        pairs = list(zip(self._mean, self._scale, strict=True))
        u = np.stack([roots.whitened(scale, x - mean) for mean, scale in pairs])
        whitened = standard_normal(u) if self._marginal is None else self._marginal.log_density(u, z, chain)
        chains = whitened - roots.log_det(self._scale, self._mean)[:, None]
        wide = [t.log_density(x) for t in self._wide]
        return np.logaddexp.reduce(np.log(self._shares)[:, None] + np.concatenate([chains, wide]), 0)


def wide_components(
    mean: Array, scale: Array, refined: Array, optima: tuple[Array, Array, Array]
) -> list[StudentT]:
    """A Student-t for the refined draws of each chain, and one for each separate optimum that has weight."""
    chains = zip(refined.astype(np.float64), mean, scale, strict=True)
    wide = [StudentT.of_draws(*each, FREEDOM) for each in chains]
    means, scales, elbos = (np.asarray(value, np.float64) for value in optima)
    if not np.isfinite(elbos).any():  # no restarts: trained without the Gaussian, or read from a file
        return wide
    found = distinct_optima(means, scales, elbos)
    return wide + [StudentT(means[i], scales[i], FREEDOM) for i in found.indices[found.relevant()]]


def importance_sample(
    mixture: Mixture,
    potential: Callable[[Array], Array],
    constrain: Callable[[Array], dict[str, Any]],
    n: int,
) -> ImportanceResult:
    """Draws n points of a mixture and weighs them.

    Args:
        mixture: Where they come from.
        potential: U (n,) at points (n, d); `inf` where there is no density.
        constrain: Points (n, d) -> site name -> arrays (n, *site).
        n: Draws.

    Raises:
        ModelError: all weights are zero.
    """
    x, log_density = mixture.draw(n)
    log_weights = -potential(x).astype(np.float64) - log_density
    best = log_weights.argmax()
    if np.isneginf(log_weights[best]):
        raise messages.no_weight(n)
    smoothed, weights = psis(log_weights), np.exp(log_weights - log_weights[best])
    # The model need not run where it has no density: such draws do not count, and repeat another one.
    x[np.isneginf(log_weights)] = x[best]
    return ImportanceResult(
        log_evidence=float(np.logaddexp.reduce(log_weights) - math.log(n)),
        log_evidence_error=float(weights.std(ddof=1) / weights.mean() / math.sqrt(n)),
        k_hat=smoothed.k_hat,
        ess=smoothed.ess,
        log_weights=smoothed.log_weights,
        samples=constrain(x),
    )


def systematic_counts(shares: Sequence[float] | Array, n: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """How many of n draws each share gets: n times the share, rounded at random so that the mean is exact."""
    edges = np.cumsum(np.asarray(shares, np.float64))
    edges = np.floor(n * edges / edges[-1] + rng.uniform())
    edges[-1] = n
    return np.diff(edges, prepend=0).astype(np.intp)
