"""Separate modes: which optima are modes of their own, where there may be more, and what share of the posterior each holds.

Transitions do not pass between separate modes, and training that starts at one never sees the others. So each gets a
sampler of its own, and a draw first chooses one. The restarts of the Gaussian fit say where modes are; importance
sampling with the mixture of their Gaussians says how much each of them holds (M-PMC: Cappé, Douc, Guillin, Marin and
Robert, "Adaptive importance sampling in general mixture classes", Statistics and Computing 18, 2008).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_dft.modes import Modes
from pyro_dft.optima import distinct_optima, triangular
from pyro_dft.psis import psis
from pyro_dft.student import StudentT

Array = NDArray[np.floating[Any]]
LogDensity = Callable[[Array], Array]  # (K, n, d) -> (K, n)
Move = Callable[[Array, Array], Array]  # draws (K, n, d) and scales (K, d, d) -> draws after some transitions
Fitted = tuple[
    Array, Array, Array
]  # means (R, d), square roots of covariances (R, d, d), evidence bounds (R,)

# Optima whose evidence bound gives them less than this are left out, as are modes that turn out to hold less.
LEAST_WEIGHT = 0.003
# So many samplers for each chain at most, those with the highest bounds.
MOST_MODES = 8
# A mode of its own is left by less than this share of its draws in a short refinement.
LEAVING = 0.12
# A Gaussian that loses more than this share of its draws to others is no mode.
DRAINED = 0.6
# Where more modes are looked for: around the first, in its sds; around several, in the sds of all together; in a box around
# the origin (five times that of the usual starting points). So many points are looked at.
SCOUT_SDS = 6.0
SCOUT_SPREADS = 1.5
SCOUT_RANGE = 10.0
CANDIDATES = 4000
# Rounds of further restarts, at most: one that finds nothing is enough where there is one mode, and this many where there
# are several.
ROUNDS = 6
PATIENCE = 2
# Evaluations times data rows that the points, and the draws for the weights, may use each.
DATA_ROWS = 4e7
# On the line between two modes the log density is lower than at the lower end by at least this (nats).
BARRIER = 2.0
LINE_POINTS = 33
# Draws from each Gaussian, for the test of separation and for the weights.
TEST_DRAWS = 200
WEIGHT_DRAWS = 4000
EXPECTATIONS = 20


def search(
    fitted: Callable[[], Fitted],
    restart: Callable[[Array], None],
    log_density: LogDensity,
    move: Move,
    *,
    chains: int,
    data_size: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.intp], Modes | None]:
    """Separate modes among the restarts; further restarts look for more, from far away, for as long as they find some.

    Args:
        fitted: The Gaussians of all restarts made so far.
        restart: Makes further ones, from starting points (R, d).
        log_density: Of the posterior.
        move: A short refinement, whose kernel has the given scales.
        chains: C.
        data_size: Data rows that one evaluation reads.
        rng: For draws and starting points.

    Returns:
        Indices (K,) of the modes among the restarts, and their weights; None with a single mode.
    """

    def parts(index: NDArray[np.intp]) -> Fitted:
        means, scales, elbos = fitted()
        return means[index], scales[index], elbos[index]

    if not np.isfinite(fitted()[2]).any():
        return np.zeros(1, int), None
    affordable = int(DATA_ROWS / data_size)
    try:
        count, misses = len(fitted()[2]), 0
        found = separate(*fitted(), log_density, move, rng)
        for _ in range(ROUNDS):
            known, (means, scales, _) = len(found), parts(found)
            points = min(CANDIDATES, max(affordable, 10 * count))
            restart(further_starts(means, scales, count, log_density, rng, points))
            found = separate(*fitted(), log_density, move, rng)
            misses = 0 if len(found) > known else misses + 1
            if misses == (1 if len(found) == 1 else PATIENCE):
                break
        while len(found) > 1:
            draws = min(WEIGHT_DRAWS, max(affordable // (len(found) * chains), TEST_DRAWS))
            weighed = weigh(*parts(found), log_density, chains, rng, draws)
            heavy = weighed.weights.mean(0) >= LEAST_WEIGHT
            if heavy.all():
                return found, weighed
            found = found[heavy]
    except np.linalg.LinAlgError:
        # A direction without any scale, as in an improper posterior: there are no modes to tell apart.
        return np.zeros(1, int), None
    return found, None


def separate(
    means: Array, scales: Array, elbos: Array, log_density: LogDensity, move: Move, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Restarts that ended at modes of their own, best first; one index where there is a single mode.

    Two optima belong to one mode where a short refinement carries draws from one to the other, or where no valley lies on
    the line between them (a funnel's neck and its mouth).

    Args:
        means: (R, d).
        scales: Square roots of the covariances, (R, d, d).
        elbos: Evidence bounds (R,).
        log_density: Of the posterior.
        move: A short refinement, whose kernel has the given scales.
        rng: For the draws.
    """
    tril = triangular(scales)
    optima = distinct_optima(means, tril, elbos)
    picked = optima.indices[optima.relevant(LEAST_WEIGHT)][:MOST_MODES]
    if len(picked) < 2:
        return picked
    m, factors = means[picked], tril[picked]
    valleys = {(j, k): _valley(m[j], m[k], log_density) for k in range(len(m)) for j in range(k)}
    if max(valleys.values()) < BARRIER:
        return picked[:1]
    draws = m[:, None] + rng.normal(size=(len(picked), TEST_DRAWS, m.shape[1])) @ factors.swapaxes(1, 2)
    after = move(draws, factors)
    nearest = _log_gaussians(after.reshape(-1, m.shape[1]), m, factors).argmax(1).reshape(after.shape[:2])
    # Some are nearer to another Gaussian from the start: only what the transitions add counts.
    begun = _log_gaussians(draws.reshape(-1, m.shape[1]), m, factors).argmax(1).reshape(after.shape[:2])
    # A Gaussian that spans several modes is none: most of its draws leave it. The best one is kept in any case.
    settled = [k for k in range(len(picked)) if k == 0 or _passing(begun, nearest, k) < DRAINED]
    groups: list[list[int]] = []
    for k in settled:
        near = [
            group
            for group in groups
            if any(
                valleys[j, k] < BARRIER
                or _passing(begun, nearest, j, k) > LEAVING
                or _passing(begun, nearest, k, j) > LEAVING
                for j in group
            )
        ]
        groups = [group for group in groups if group not in near] + [[*sum(near, []), k]]
    return picked[sorted(min(group) for group in groups)]


def _passing(begun: NDArray[np.intp], nearest: NDArray[np.intp], start: int, end: int | None = None) -> float:
    """Share of one optimum's draws that pass to another, or to any other."""
    own = begun[start] == start
    if not own.any():
        return 1.0
    ended = nearest[start][own]
    return float((ended != start).mean() if end is None else (ended == end).mean())


def _valley(a: Array, b: Array, log_density: LogDensity) -> float:
    """How far the log density falls on the line from a to b below that of the lower end, nats."""
    t = np.linspace(0.0, 1.0, LINE_POINTS)[:, None]
    line = log_density((a + t * (b - a))[None])[0]
    lower = min(line[0], line[-1])
    # Where a Gaussian's mean itself has no density, there is no telling.
    return float(lower - line.min()) if np.isfinite(lower) else 0.0


def further_starts(
    means: Array,
    scales: Array,
    count: int,
    log_density: LogDensity,
    rng: np.random.Generator,
    candidates: int = CANDIDATES,
) -> Array:
    """Starting points (count, d) in search of more modes, far from those (K) that are known.

    Every second one is random: in a box around the origin, or around the known modes. The others are those of many such
    points where the posterior is highest above what the known modes explain.

    Args:
        means: (K, d).
        scales: Square roots of the covariances, (K, d, d).
        count: Of the starting points.
        log_density: Of the posterior.
        rng: For the points.
        candidates: Points that are looked at.
    """
    d, half = means.shape[1], candidates // 2
    box = rng.uniform(-SCOUT_RANGE, SCOUT_RANGE, size=(half, d))
    within = np.square(scales).sum(-1).mean(0)
    if len(means) == 1:
        reach = SCOUT_SDS * np.sqrt(within)
    else:
        reach = SCOUT_SPREADS * np.sqrt(np.square(means - means.mean(0)).mean(0) + within)
    around = means.mean(0) + reach * rng.normal(size=(half, d))
    # In turn, so that the first ones hold both kinds.
    points = np.stack([box, around], 1).reshape(-1, d)
    log_p = log_density(points[None])[0]
    wide = [StudentT(m, scale, 5.0) for m, scale in zip(means, scales, strict=True)]
    known = np.logaddexp.reduce(_log_students(points, wide), axis=1)
    promise = np.where(np.isfinite(log_p), log_p - known, -np.inf)
    picked: list[int] = []
    for i in np.argsort(-promise, kind="stable")[: max(candidates // 10, count)]:
        if len(picked) >= count // 2:
            break
        # Not several for one mode: as far from each other as the known modes are wide.
        gaps = np.square((points[picked] - points[i]) / np.sqrt(within)).sum(-1)
        if not picked or gaps.min() > 9.0 + d:
            picked.append(int(i))
    rest = [i for i in range(len(points)) if i not in picked][: count - len(picked)]
    return points[[*picked, *rest]]


def weigh(
    means: Array,
    scales: Array,
    elbos: Array,
    log_density: LogDensity,
    chains: int,
    rng: np.random.Generator,
    draws: int = WEIGHT_DRAWS,
) -> Modes:
    """What share of the posterior each of K modes holds, estimated for each chain on its own.

    Draws come from each Gaussian in equal numbers, with tails a little heavier than a Gaussian's (Student-t), and are
    weighted by p / (mean of the K densities): the balance heuristic of Veach and Guibas (1995). Shares then are those
    under which each mode's responsibilities, averaged over the weighted draws, give the same shares again.

    Args:
        means: (K, d).
        scales: Square roots of the covariances, (K, d, d).
        elbos: Evidence bounds (K,), to start from.
        log_density: Of the posterior.
        chains: C.
        rng: For the draws.
        draws: From each Gaussian.
    """
    k, d = means.shape
    factors = triangular(scales)
    wide = [StudentT(m, f, 5.0 + d / 2.0) for m, f in zip(means, factors, strict=True)]
    found = []
    for _ in range(chains):
        x = np.stack([one.draw(draws, rng) for one in wide])
        log_q = _log_students(x.reshape(-1, d), wide)
        log_p = log_density(x).reshape(-1)
        log_p = np.where(np.isfinite(log_p), log_p, -np.inf)
        log_w = log_p - (np.logaddexp.reduce(log_q, axis=1) - np.log(k))
        found.append(_shares(log_w, _log_gaussians(x.reshape(-1, d), means, factors), elbos))
    weights, errors, k_hat, log_evidence = (np.array(part) for part in zip(*found, strict=True))
    return Modes(weights, errors, k_hat, log_evidence)


def _shares(log_w: Array, log_q: Array, elbos: Array) -> tuple[Array, Array, float, float]:
    """Shares (K,), their standard errors, the tail of the weights (n,), the log evidence; log_q is (n, K)."""
    if not np.isfinite(log_w).any():
        even = np.full(len(elbos), 1.0 / len(elbos))
        return even, even, np.inf, -np.inf
    shares = np.exp(elbos - elbos.max())
    shares /= shares.sum()
    w = np.exp(log_w - log_w.max())
    w /= w.sum()
    for _ in range(EXPECTATIONS):
        log_r = np.log(np.maximum(shares, 1e-300)) + log_q
        r = np.exp(log_r - np.logaddexp.reduce(log_r, axis=1, keepdims=True))
        shares = w @ r
    errors = np.sqrt(np.square(w[:, None] * (r - shares)).sum(0))
    evidence = float(np.logaddexp.reduce(log_w) - np.log(len(log_w)))
    return shares, errors, psis(log_w).k_hat, evidence


def _log_gaussians(x: Array, means: Array, factors: Array) -> Array:
    """Log densities (n, K) of x (n, d), up to a constant that all share."""
    return -0.5 * _squares(x, means, factors) - _log_dets(factors)


def _log_students(x: Array, wide: list[StudentT]) -> Array:
    """Log densities (n, K) of x (n, d)."""
    return np.stack([one.log_density(x) for one in wide], axis=1)


def _squares(x: Array, means: Array, factors: Array) -> Array:
    parts = [(np.linalg.solve(f, (x - m).T) ** 2).sum(0) for m, f in zip(means, factors, strict=True)]
    return np.stack(parts, axis=1)


def _log_dets(factors: Array) -> Array:
    return np.log(np.abs(np.diagonal(factors, axis1=1, axis2=2))).sum(1)
