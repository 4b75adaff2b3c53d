"""Separate modes: which optima are modes of their own, and where there may be more.

Transitions do not pass between separate modes, and training that starts at one never sees the others. So each gets a
sampler of its own, and a draw first chooses one. The restarts of the Gaussian fit say where modes are; how much each of them
holds is in `pyro_dft.recipe.mode_weights`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_dft import roots
from pyro_dft.judging.optima import distinct_optima, triangular
from pyro_dft.recipe.far_starts import FAR, Reach, further_starts, overlooked
from pyro_dft.recipe.mode_weights import (
    GOOD_KHAT,
    WEIGHT_DRAWS,
    LogDensity,
    Proposal,
    Weighted,
    draw,
    log_gaussians,
    mode_shares,
    weigh,
)
from pyro_dft.recipe.modes import Modes

Array = NDArray[np.floating[Any]]
Move = Callable[
    [Array, Array], Array
]  # draws (K, n, d) and scales (K, d, d) or (K, d) -> draws after some transitions
Fitted = tuple[
    Array, Array, Array
]  # means (R, d), square roots of covariances (R, d, d), evidence bounds (R,)
Shares = dict[int, float]  # by restart, the share that an optimum holds of its mode
Tried = dict[int, tuple[Array, Array]]  # by restart, draws (n, d) of its Gaussian before and after

# Optima whose evidence bound gives them less than this are left out, as are modes that turn out to hold less.
LEAST_WEIGHT = 0.003
# Most samplers for each chain; those with the highest evidence bounds are taken.
MOST_MODES = 8
# A candidate counts as a separate mode where less than this share of its draws leave it in a short refinement.
LEAVING = 0.12
# An optimum that belongs to one mode belongs to another too where so many times this share of the draws pass.
BETWEEN = 0.5
# A Gaussian is dropped where more than this share of its draws move to other modes.
DRAINED = 0.6
# Most rounds of further restarts, and after how many rounds in turn that find nothing they end where several modes are known
# (with a single one after the first).
ROUNDS = 6
PATIENCE = 2
# Rounds of restarts from draws with large importance weights, where these have a heavy tail: something was missed there.
REPAIRS = 2
# Scales alone stop where their bound hardly rises: one has to be higher by so many nats for each dimension to say that the
# best optimum was not known.
SCALES_SLACK = 0.05
# Evaluations times data rows that the points, and the draws for the weights, may use each.
DATA_ROWS = 4e7
# On the line between two modes the log density is lower than at the lower end by at least this (nats).
BARRIER = 2.0
LINE_POINTS = 33
# Draws from each Gaussian: for the test of separation, and for the shares of several optima in one mode.
TEST_DRAWS, SHARE_DRAWS = 100, 500


@dataclass
class _Search:
    """State of a `search`; see there."""

    fitted: Callable[[], Fitted]
    restart: Callable[[Array], None]
    log_density: LogDensity
    move: Move
    chains: int
    affordable: int
    reach: Reach
    rng: np.random.Generator
    tried: Tried = field(default_factory=dict)

    @property
    def slack(self) -> float:
        """By how much the bound of an optimum has to be higher for it to be better, nats."""
        means, scales, _ = self.fitted()
        return 0.0 if scales.ndim > means.ndim else SCALES_SLACK * means.shape[1]

    def groups(self) -> list[list[int]]:
        """Optima, as indices of restarts, by the mode they belong to."""
        return _grouped(*self.fitted(), self.log_density, self.move, self.rng, self.tried)

    def parts(self, index: list[int]) -> Fitted:
        """The Gaussians of some restarts."""
        means, scales, elbos = self.fitted()
        return means[index], scales[index], elbos[index]

    def look_further(self) -> list[list[int]]:
        """Further restarts from far away, until they find nothing new; the modes known then."""
        count, misses = len(self.fitted()[2]), 0
        groups = self.groups()
        for _ in range(ROUNDS):
            known, best = len(groups), groups[0][0]
            means, scales, elbos = self.parts(_firsts(groups))
            points = min(self.reach.candidates, max(self.affordable, 10 * count))
            reach = replace(self.reach, candidates=points)
            self.restart(further_starts(means, scales, count, self.log_density, self.rng, reach))
            groups = self.groups()
            ahead = self.parts([groups[0][0]])[2][0] - elbos[0]
            news = len(groups) > known or (ahead > self.slack and not self.same_optimum(best, groups[0][0]))
            misses = 0 if news else misses + 1
            if misses >= (1 if len(groups) == 1 else PATIENCE):
                break
        return groups

    def same_optimum(self, *index: int) -> bool:
        """Whether restarts ended at one optimum."""
        means, scales, elbos = self.parts(list(index))
        return len(distinct_optima(means, triangular(scales), elbos)) == 1

    def weighed(self, groups: list[list[int]], adapt: bool) -> tuple[Modes, Weighted]:
        """Weights of the modes, with all their optima as the proposal."""
        members = sum(groups, [])
        owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        draws = min(WEIGHT_DRAWS, max(self.affordable // (len(members) * self.chains), TEST_DRAWS))
        proposal = Proposal.of(*self.parts(members), owner)
        return weigh(proposal, self.log_density, self.chains, self.rng, draws, adapt=adapt)

    def with_weights(self, groups: list[list[int]]) -> tuple[list[list[int]], Modes | None, list[int]]:
        """The modes that hold something, their weights (None for a single one), and the optima that hold nothing."""
        repairs, count = REPAIRS, len(self.fitted()[2])
        light: list[int] = []
        while len(groups) > 1:
            found, drawn = self.weighed(groups, adapt=repairs == 0)
            if drawn.suspicious and repairs:
                known = sorted(sum(groups, []))
                self.restart(overlooked(drawn, self.parts(known)[1], count))
                again = self.groups()
                news = len(sum(again, [])) != len(known)
                repairs = repairs - 1 if news else 0
                if news or drawn.k_hat > GOOD_KHAT:
                    groups = again
                    continue
                # Else the weights are those of the groups before: the same optima may be parted in another way, by chance.
            heavy = found.weights.mean(0) >= LEAST_WEIGHT
            if heavy.all():
                return groups, found, light
            light += [i for group, keep in zip(groups, heavy, strict=True) if not keep for i in group]
            groups = [group for group, keep in zip(groups, heavy, strict=True) if keep]
        return groups, None, light

    def shares(self, groups: list[list[int]]) -> list[Shares]:
        """What share of its mode each optimum holds; none where no mode has several, or that is not known well."""
        members = sum(groups, [])
        draws = min(SHARE_DRAWS, self.affordable // len(members))
        if len(members) == len(groups) or draws < TEST_DRAWS:
            return []
        proposal = Proposal.of(*self.parts(members))
        drawn = draw(proposal, self.log_density, draws, self.rng)
        if not drawn.k_hat < GOOD_KHAT:
            return []
        found = dict(zip(members, mode_shares(drawn, proposal)[0], strict=True))
        total = [sum(found[i] for i in group) for group in groups]
        return [{i: found[i] / whole for i in group} for group, whole in zip(groups, total, strict=True)]

    def starts(self, own: NDArray[np.intp], best: int, light: list[int]) -> NDArray[np.intp]:
        """Where each chain starts when one mode holds all: at its own best restart, or at the best one of all.

        Chains must be able to disagree. So each keeps its own restart where that ended at the best optimum, or at one that may
        hold as much by its bound; a chain whose restarts have all missed the mode does not stay where there is nothing. One
        whose restarts all failed stays as it is, so that the diagnostics show it.

        Args:
            own: Best restart of each chain, (C,).
            best: The restart that ended at the best mode.
            light: Optima that are known to hold next to nothing.
        """
        means, scales, elbos = self.fitted()
        optima = distinct_optima(means, triangular(scales), elbos)
        place = {r: i for i, members in enumerate(optima.members) for r in members}
        empty = {place[r] for r in light} - {place[best]}
        near = optima.elbo - optima.elbo[0] >= np.log(LEAST_WEIGHT)
        near[place[best]] = True
        elsewhere = [r in place and (not near[place[r]] or place[r] in empty) for r in own]
        return np.where(elsewhere, best, own)


def search(
    fitted: Callable[[], Fitted],
    restart: Callable[[Array], None],
    log_density: LogDensity,
    move: Move,
    *,
    chains: int,
    data_size: int,
    rng: np.random.Generator,
    reach: Reach = FAR,
) -> tuple[NDArray[np.intp], Modes | None, list[Shares]]:
    """Finds separate modes among the restarts, and by further restarts from far away, until these find nothing new.

    Args:
        fitted: The Gaussians of all restarts made so far; at first as many for each chain, one chain behind the other.
        restart: Makes further ones, from starting points (R, d).
        log_density: Of the posterior.
        move: A short refinement, whose kernel has the given scales.
        chains: C.
        data_size: Data rows that one evaluation reads.
        rng: For draws and starting points.
        reach: How far out further ones are looked for.

    Returns:
        Indices among the restarts of those that the samplers start from, and the weights of the modes: K for each chain, (C K,),
        one chain behind the other; with a single mode one for each, (C,), and None. Then the optima of each mode, where their
        shares of it are known.
    """
    per_chain = fitted()[2].reshape(chains, -1)
    own = per_chain.argmax(1) + np.arange(chains) * per_chain.shape[1]
    if not np.isfinite(per_chain).any():
        return own, None, []
    job = _Search(fitted, restart, log_density, move, chains, int(DATA_ROWS / data_size), reach, rng)
    try:
        groups, found, light = job.with_weights(job.look_further())
        if found is not None:
            return np.tile(_firsts(groups), chains), found, job.shares(groups)
        return job.starts(own, groups[0][0], light), None, job.shares(groups)
    except np.linalg.LinAlgError:
        # A direction without any scale, as in an improper posterior: there are no modes to tell apart.
        return own, None, []


def _firsts(groups: list[list[int]]) -> list[int]:
    return [group[0] for group in groups]


def separate(
    means: Array, scales: Array, elbos: Array, log_density: LogDensity, move: Move, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Restarts that ended at modes of their own, best first; one index where there is a single mode.

    Two optima belong to one mode where a short refinement carries draws from one to the other, or where no valley lies on the
    line between them (a funnel's neck and its mouth).

    Args:
        means: (R, d).
        scales: Square roots of the covariances, (R, d, d).
        elbos: Evidence bounds (R,).
        log_density: Of the posterior.
        move: A short refinement, whose kernel has the given scales.
        rng: For the draws.
    """
    return np.array(_firsts(_grouped(means, scales, elbos, log_density, move, rng, {})))


def _grouped(
    means: Array, scales: Array, elbos: Array, log_density: LogDensity, move: Move, rng: np.random.Generator,
    tried: Tried,
) -> list[list[int]]:  # fmt: skip
    """The optima of each mode, as indices of restarts: modes and, in each, optima best first.

    Draws of an optimum that have been moved, in an earlier look, are not moved again: `tried` holds them, and gets new ones.
    """
    tril = triangular(scales)
    optima = distinct_optima(means, tril, elbos)
    picked = optima.indices[optima.relevant(LEAST_WEIGHT)][:MOST_MODES]
    if len(picked) < 2:
        return [picked.tolist()]
    m, factors = means[picked], tril[picked]
    valleys = {(j, k): _valley(m[j], m[k], log_density) for k in range(len(m)) for j in range(k)}
    if max(valleys.values()) < BARRIER:
        return [picked.tolist()]
    moved = [
        _moved(optima.members[i], m[k], factors[k], move, rng, tried)
        for k, i in enumerate(optima.relevant(LEAST_WEIGHT)[:MOST_MODES])
    ]
    # Some are nearer to another Gaussian from the start: only what the transitions add counts.
    begun, nearest = (
        np.stack([log_gaussians(own[when], m, factors).argmax(1) for own in moved]) for when in (0, 1)
    )
    # A Gaussian that spans several modes is not a mode: most of its draws leave it. The best one is kept in any case.
    settled = [k for k in range(len(picked)) if k == 0 or _passing(begun, nearest, k) < DRAINED]
    groups: list[list[int]] = []
    for k in settled:
        close = [max(_closeness(valleys, begun, nearest, j, k) for j in group) for group in groups]
        # One that lies between two modes joins both, where it joins one: it holds part of each.
        least = BETWEEN if max(close, default=0.0) > 1.0 else 1.0
        near = [group for group, value in zip(groups, close, strict=True) if value > least]
        groups = [group for group in groups if group not in near] + [[*sum(near, []), k]]
    return [picked[sorted(group)].tolist() for group in sorted(groups, key=min)]


def _moved(
    members: tuple[int, ...], mean: Array, factor: Array, move: Move, rng: np.random.Generator, tried: Tried
) -> tuple[Array, Array]:
    """Draws (n, d) of an optimum's Gaussian before and after transitions: known ones of any restart that ended there."""
    for r in members:
        if r in tried:
            return tried[r]
    draws = mean + roots.coloured(factor, rng.normal(size=(TEST_DRAWS, len(mean))))
    # One optimum after the other: as many are new as it happens, and each number would be compiled.
    tried[members[0]] = draws, move(draws[None], factor[None])[0]
    return tried[members[0]]


def _closeness(
    valleys: dict[tuple[int, int], float], begun: NDArray[np.intp], nearest: NDArray[np.intp], j: int, k: int
) -> float:
    """Above one where two optima, j before k, belong to one mode."""
    if valleys[j, k] < BARRIER:
        return np.inf
    return max(_passing(begun, nearest, j, k), _passing(begun, nearest, k, j)) / LEAVING


def _passing(begun: NDArray[np.intp], nearest: NDArray[np.intp], start: int, end: int | None = None) -> float:
    """Share of one optimum's draws that pass to another, or to any other."""
    own = begun[start] == start
    if not own.any():
        return 1.0
    ended = nearest[start][own]
    return float((ended != start).mean() if end is None else (ended == end).mean())


def _valley(a: Array, b: Array, log_density: LogDensity) -> float:
    """By how much the log density on the line from a to b falls below that at the lower end (nats)."""
    t = np.linspace(0.0, 1.0, LINE_POINTS)[:, None]
    line = log_density((a + t * (b - a))[None])[0]
    lower = min(line[0], line[-1])
    # The density may be zero at a Gaussian's mean itself: then the line shows nothing.
    return float(lower - line.min()) if np.isfinite(lower) else 0.0
