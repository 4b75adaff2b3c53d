"""What share of the posterior each of several separate modes holds, and how well that is known.

Importance sampling with a mixture of Student-t densities (balance heuristic of Veach and Guibas, 1995). Where the weights
have a heavy tail, the mixture is adapted first: M-PMC of Cappé, Douc, Guillin, Marin and Robert, "Adaptive importance
sampling in general mixture classes", Statistics and Computing 18, 2008.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_dft import roots
from pyro_dft.evidence.psis import psis
from pyro_dft.evidence.student import StudentT
from pyro_dft.judging.optima import triangular
from pyro_dft.recipe.modes import Modes

Array = NDArray[np.floating[Any]]
LogDensity = Callable[[Array], Array]  # (K, n, d) -> (K, n)

# Draws from each density, for one estimate.
WEIGHT_DRAWS = 4000
# Importance weights with a lighter tail than this are used as they are (Vehtari et al. 2024: beyond 0.7 they are not reliable).
GOOD_KHAT = 0.7
# A weight of more than so many times the mean stands out: where a mode is Gaussian, weights under Student-t densities stay below.
OUTSTANDING = 6.0
# Adaptation goes on until it is below this, so that it is not good by chance alone.
SETTLED_KHAT = 0.5
# Most rounds of adaptation, and the least number of draws that each density gets, as a share of an equal split.
ADAPTATIONS, LEAST_DRAWS = 10, 0.5
# It ends after so many rounds in turn that bring nothing where the tail is still so heavy that the weights have no mean.
IN_VAIN, HOPELESS_KHAT = 4, 1.0
# Most steps of the fixed-point iteration for the shares; it ends when no share changes by more than the second figure.
EXPECTATIONS, SHARE_TOLERANCE = 500, 1e-6


@dataclass(frozen=True)
class Proposal:
    """A mixture of J densities, each of which belongs to one of K modes.

    Attributes:
        means: (J, d).
        factors: Triangular factors of the covariances, (J, d, d).
        shares: Weights of the densities, (J,): a first estimate.
        modes: The mode of each, (J,), integers 0 to K - 1.
    """

    means: Array
    factors: Array
    shares: Array
    modes: NDArray[np.intp]

    @classmethod
    def of(cls, means: Array, scales: Array, elbos: Array, modes: NDArray[np.intp] | None = None) -> Proposal:
        """The mixture of given Gaussians, with shares proportional to exp(evidence bound).

        Args:
            means: (J, d).
            scales: Square roots of the covariances, (J, d, d) or (J, d).
            elbos: Evidence bounds, (J,).
            modes: As above; None where each Gaussian is a mode.
        """
        shares = np.exp(elbos - elbos.max())
        index = np.arange(len(means)) if modes is None else modes
        return cls(means, triangular(scales), shares / shares.sum(), index)

    def students(self) -> list[StudentT]:
        """The densities that are drawn from, with tails a little heavier than a Gaussian's."""
        freedom = 5.0 + self.means.shape[1] / 2.0
        return [StudentT(m, f, freedom) for m, f in zip(self.means, self.factors, strict=True)]

    def counts(self, draws: int, even: bool) -> NDArray[np.intp]:
        """Draws of each density, J x `draws` in all: the same for each, or half of that and the rest by their shares."""
        j = len(self.means)
        if even:
            return np.full(j, draws)
        wanted = j * draws * (LEAST_DRAWS / j + (1 - LEAST_DRAWS) * self.shares)
        counts = wanted.astype(int)
        counts[wanted.argmax()] += j * draws - counts.sum()
        return counts


@dataclass(frozen=True)
class Weighted:
    """Weighted draws of a proposal, N in all, in the order of its densities (chain by chain where several are pooled).

    Attributes:
        points: (N, d).
        log_w: Log importance weights (N,), -inf where there is no density.
        counts: Draws of each density, (J,).
        k_hat: Tail index of the weights (`pyro_dft.evidence.psis`); inf where all are zero.
    """

    points: Array
    log_w: Array
    counts: NDArray[np.intp]
    k_hat: float

    @property
    def suspicious(self) -> bool:
        """Whether the weights say that something was missed: a heavy tail, or single weights that stand out."""
        if not self.k_hat < np.inf:
            return False
        w = np.exp(self.log_w - self.log_w.max())
        return bool(self.k_hat > GOOD_KHAT or w.mean() < 1 / OUTSTANDING)


def weigh(
    proposal: Proposal,
    log_density: LogDensity,
    chains: int,
    rng: np.random.Generator,
    draws: int = WEIGHT_DRAWS,
    *,
    adapt: bool = True,
) -> tuple[Modes, Weighted]:
    """What share of the posterior each of K modes holds, estimated for each chain on its own.

    Draws come from Student-t densities at J Gaussians and are weighted by p / (their mixture). Shares then are those under
    which each Gaussian's responsibilities, averaged over the weighted draws, give the same shares again; a mode has those of
    its Gaussians. Where the weights have a heavy tail, the mixture is adapted, and the estimates made anew.

    Args:
        proposal: The mixture to start from.
        log_density: Of the posterior.
        chains: C.
        rng: For the draws.
        draws: From each Gaussian.
        adapt: Whether a mixture whose weights have a heavy tail is adapted.

    Returns:
        The shares, and the weighted draws of all chains from before any adaptation.
    """
    found = [draw(proposal, log_density, draws, rng, even=True) for _ in range(chains)]
    pooled = _pooled(found)
    if adapt and GOOD_KHAT < pooled.k_hat < np.inf:
        better = adapted(proposal, pooled, log_density, draws, rng)
        again = [draw(better, log_density, draws, rng, even=False) for _ in range(chains)]
        if max(one.k_hat for one in again) < pooled.k_hat:
            proposal, found = better, again
    parts = [mode_shares(one, proposal) for one in found]
    weights, errors, evidence = (np.array(part) for part in zip(*parts, strict=True))
    return Modes(weights, errors, np.array([one.k_hat for one in found]), evidence), pooled


def _pooled(parts: list[Weighted]) -> Weighted:
    """The draws of several chains together."""
    points, log_w = (np.concatenate([getattr(one, name) for one in parts]) for name in ("points", "log_w"))
    return Weighted(
        points, log_w, np.sum([one.counts for one in parts], axis=0), max(one.k_hat for one in parts)
    )


def adapted(
    proposal: Proposal, first: Weighted, log_density: LogDensity, draws: int, rng: np.random.Generator
) -> Proposal:
    """The proposal with means, covariances and shares that fit the posterior better, the best of some rounds by k-hat.

    Args:
        proposal: To start from.
        first: Its weighted draws.
        log_density: Of the posterior.
        draws: From each density, in each round.
        rng: For the draws.
    """
    best, least, found_at, current = proposal, np.inf, 0, first
    for turn in range(ADAPTATIONS):
        try:
            proposal = _updated(proposal, current)
        except np.linalg.LinAlgError:
            break
        current = draw(proposal, log_density, draws, rng, even=False)
        if current.k_hat < least:
            best, least, found_at = proposal, current.k_hat, turn
        if not SETTLED_KHAT < current.k_hat < np.inf:
            break
        if least > HOPELESS_KHAT and turn - found_at >= IN_VAIN:
            break
    return best


def _updated(proposal: Proposal, drawn: Weighted) -> Proposal:
    """One round of M-PMC for Student-t densities (section 4 of Cappé et al. 2008), with shrunken covariances."""
    d, students = proposal.means.shape[1], proposal.students()
    w = np.exp(psis(drawn.log_w).log_weights)
    log_r = _log_students(drawn.points, students) + np.log(np.maximum(proposal.shares, 1e-12))
    r = w[:, None] * np.exp(log_r - np.logaddexp.reduce(log_r, axis=1, keepdims=True))
    means, factors = proposal.means.copy(), proposal.factors.copy()
    freedom = students[0].freedom
    for j, own in enumerate(r.T):
        total = own.sum()
        effective = total**2 / max(float(np.square(own).sum()), 1e-300)
        if not effective > 2.0:  # its own draws say nothing about where it should be
            continue
        squared = _squares(drawn.points, means[j : j + 1], factors[j : j + 1])[:, 0]
        inner = own * (freedom + d) / (freedom + squared)
        old = means[j]
        means[j] = (effective * (inner @ drawn.points) / inner.sum() + 2 * old) / (effective + 2)
        centred = drawn.points - means[j]
        weighted = centred * (inner / total)[:, None]
        spread = weighted.T @ centred if factors.ndim == 3 else (weighted * centred).sum(0)
        before = roots.covariance(factors[j], old)
        # As if d + 2 draws more had had the covariance before.
        shrunk = (effective * spread + (d + 2) * before) / (effective + d + 2)
        factors[j] = roots.root_of(shrunk)
    shares = r.sum(0) + 1e-3
    return Proposal(means, factors, shares / shares.sum(), proposal.modes)


def draw(
    proposal: Proposal, log_density: LogDensity, draws: int, rng: np.random.Generator, *, even: bool = True
) -> Weighted:
    """Weighted draws of a proposal: as many from each density, or half of them by their shares."""
    counts = proposal.counts(draws, even)
    students, (j, d) = proposal.students(), proposal.means.shape
    x = np.concatenate([one.draw(int(n), rng) for one, n in zip(students, counts, strict=True)])
    log_q = _log_students(x, students)
    log_p = log_density(x.reshape(j, draws, d)).reshape(-1)
    log_p = np.where(np.isfinite(log_p), log_p, -np.inf)
    log_w = log_p - np.logaddexp.reduce(log_q + np.log(np.maximum(counts, 1e-12) / len(x)), axis=1)
    k_hat = psis(log_w).k_hat if np.isfinite(log_w).any() else np.inf
    return Weighted(x, log_w, counts, k_hat)


def mode_shares(drawn: Weighted, proposal: Proposal) -> tuple[Array, Array, float]:
    """Shares of the modes (K,), their standard errors, and the log evidence."""
    count = int(proposal.modes.max()) + 1
    if not np.isfinite(drawn.log_w).any():
        even = np.full(count, 1.0 / count)
        return even, even, -np.inf
    log_g = log_gaussians(drawn.points, proposal.means, proposal.factors)
    w = np.exp(drawn.log_w - drawn.log_w.max())
    w /= w.sum()
    shares = np.maximum(proposal.shares, 1e-12)
    for _ in range(EXPECTATIONS):
        log_r = np.log(np.maximum(shares, 1e-300)) + log_g
        r = np.exp(log_r - np.logaddexp.reduce(log_r, axis=1, keepdims=True))
        before, shares = shares, w @ r
        if np.abs(shares - before).max() < SHARE_TOLERANCE:
            break
    owner = np.eye(count)[proposal.modes]  # (J, K)
    errors = _errors(w, r, shares, drawn.counts, owner)
    # Beyond 0.7 the variance of the weights is not finite in practice, and their spread does not show it: errors are widened.
    errors = errors * len(w) ** max(0.0, min(drawn.k_hat, 2.0) - GOOD_KHAT)
    evidence = float(np.logaddexp.reduce(drawn.log_w) - np.log(len(drawn.log_w)))
    return shares @ owner, np.minimum(errors, 0.5), evidence


def _errors(w: Array, r: Array, shares: Array, counts: NDArray[np.intp], owner: Array) -> Array:
    """Standard errors of the modes' shares, those of a fixed point of the mean responsibilities (delta method).

    Args:
        w: Normalised weights (N,), in the order of the densities that the draws come from.
        r: Responsibilities (N, J) at the fixed point.
        shares: The fixed point (J,).
        counts: Draws of each density, (J,).
        owner: Which mode (K) each density belongs to, (J, K), zeros and ones.
    """
    # A change of the mean responsibilities moves the fixed point by (I - J)^-1 of it, with J their derivative.
    ratio = (w[:, None] * r).T @ r / np.maximum(shares, 1e-300)
    slope = np.diag((w @ r) / np.maximum(shares, 1e-300)) - ratio
    spread = np.linalg.pinv(np.eye(len(shares)) - slope)
    influence = (w[:, None] * (r - shares)) @ spread.T @ owner
    variance = np.zeros(owner.shape[1])
    for part in np.split(influence, np.cumsum(counts)[:-1]):  # each density had a fixed number of draws
        if len(part) > 1:
            variance += len(part) * part.var(0, ddof=1)
    return np.sqrt(variance)


def log_gaussians(x: Array, means: Array, factors: Array) -> Array:
    """Log densities (n, K) of x (n, d), up to a constant that all share."""
    return -0.5 * _squares(x, means, factors) - roots.log_det(factors, means)


def _log_students(x: Array, students: list[StudentT]) -> Array:
    """Log densities (n, K) of x (n, d)."""
    return np.stack([one.log_density(x) for one in students], axis=1)


def _squares(x: Array, means: Array, factors: Array) -> Array:
    parts = [np.square(roots.whitened(f, x - m)).sum(1) for m, f in zip(means, factors, strict=True)]
    return np.stack(parts, axis=1)
