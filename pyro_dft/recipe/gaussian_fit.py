"""A Gaussian fitted to the target from scores alone: the coordinates in which particles move and networks are trained.

Natural-gradient variational inference with antithetic draws, from several starting points at once. For x = mu + L e and
s = L^T grad log q(x), the matrix -E[s e^T] estimates L^T (-Hessian) L, which is the identity at the optimum (Stein's
lemma; Opper and Archambeau 2009, Lin, Khan and Schmidt 2019). All of it is invariant to affine maps of x. The matrix
comes from a regression of s on e, which knows that of a Gaussian target without noise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_dft import roots
from pyro_dft.recipe.constants import (
    CALM_STEPS,
    EVIDENCE_ROWS,
    FULL_RANK_LIMIT,
    LEAST_POLISH,
    LONG_CALM,
    POLISH_CALM,
    POLISH_STEPS,
    SCALES_FIRST,
    averaging_steps,
    fitting_pairs,
    pairs,
)
from pyro_dft.recipe.engine import Engine
from pyro_dft.recipe.gaussians import Gaussians
from pyro_dft.recipe.known_optima import MET_DISTANCE, MET_RATIO, KnownOptima
from pyro_dft.recipe.lost_bounds import NEARBY, jumps, lost, sound
from pyro_dft.recipe.natural_gradient import State, antithetic, bound

# Once a restart has settled, another that is so many nats below it is given up after so many times its
# steps, and some more; or where it would not catch up in so many times `STALL_STEPS`, by what it gained in the last ones.
HOPELESS, TIMES, MORE_STEPS, CATCH_UP = 10.0, 1.5, 10, 2.0
# With an adaptive target, whose batches take as long as their slowest point, restarts so many nats below the two best ones of
# their chain, or below a known optimum, are given up after so many steps, before anything has settled.
ADAPTIVE_LEAD, ADAPTIVE_STEPS = 100.0, 10
# A restart has stalled when its bound has risen in so many steps by fewer nats for each dimension: where only scales are fitted,
# as correlations, which these cannot see, let it go on for hundreds of steps, and where whole matrices are, as noise may. Whole
# matrices, or particles, go on from there sooner.
STALL_STEPS, STALL_GAIN, WHOLE_GAIN = 20, 0.05, 0.01


class GaussianFitter:
    """Fits one full-rank Gaussian from each starting point (diagonal above 300 dimensions), step by step.

    Restarts that have met go on as one, those that stay far below one that has settled are given up, and those that have come to
    an optimum which is known end there. In many dimensions, where a step for whole matrices takes hundreds of gradients, the best
    restart of a chain goes on with them by itself; the others follow where they are not on their way to the same optimum.

    Args:
        engine: Of the target.
        target: The target; minibatch scores are used where it has them.
        starts: (C, R, d) starting means of each chain.
        start_scales: (R,) standard deviations to start from.
        steps: Natural-gradient steps at most; fitting ends early when all restarts have settled.
        rng: The engine's random number generator.
        known: Gaussians at optima of the same target.

    Attributes:
        taken: Steps taken.
        settled: Whether all restarts were still before the averaging began.
    """

    def __init__(
        self,
        engine: Engine,
        target: Any,
        starts: np.ndarray,
        start_scales: np.ndarray,
        *,
        steps: int,
        rng: Any,
        known: Gaussians | None = None,
    ):
        chains, restarts, dim = starts.shape
        self.engine, self.target, self.steps, self.rng = engine, target, steps, rng
        self.taken, self.settled = 0, False
        scales = np.tile(np.asarray(start_scales, float), chains)
        full = dim <= FULL_RANK_LIMIT
        self._scales_first = full and dim > SCALES_FIRST and not target.minibatch
        self._state = State.start(starts.reshape(-1, dim), scales, full=full and not self._scales_first)
        self._chain = np.repeat(np.arange(chains), restarts)  # of each restart that goes on
        # Restart that each starting point goes on in; below zero for those that have ended.
        self._member = np.arange(len(self._chain))
        self._ended: list[Gaussians] = []  # restarts that do not go on
        self._waiting: list[tuple[int, int, State]] = []  # number among these, chain, where it is
        self._known = None if known is None else KnownOptima(known)
        self._calm = np.zeros(len(self._chain))
        self._settled_at = np.full(len(self._chain), -1)
        self._marked, self._marked_at = np.full(len(self._chain), -np.inf), np.zeros(len(self._chain), int)
        self._minibatch, self._calm_steps = bool(target.minibatch), CALM_STEPS
        if self._minibatch:
            self._calm_steps = LONG_CALM
        self._gained = np.full(len(self._chain), np.inf)  # between the last two of those
        self._averaging_from: int | None = None
        self._noise = engine.host_rng(rng)

    @property
    def done(self) -> bool:
        """Whether all steps are taken or the restarts have settled and been averaged."""
        if not len(self._chain):
            return True
        if self._averaging_from is None:
            return False
        return self.taken >= self._averaging_from + averaging_steps(self.steps, self._minibatch)

    def advance(self) -> list[float]:
        """One natural-gradient step of every restart; the highest bound seen, in a list."""
        averaging = None if self._averaging_from is None else self.taken - self._averaging_from
        state, dim = self._state, self.target.dim
        known = (averaging is not None and dim <= SCALES_FIRST) or self._minibatch
        count = pairs(dim) if known else fitting_pairs(dim, state.full)
        noise = antithetic(self._noise, len(state.mean), count, dim)
        log_q, score = self._evaluate(state.points(noise))
        still = state.advance(noise, log_q, score, averaging, minibatch=self._minibatch)
        if self._minibatch:
            still = (still > 0).astype(float)
        self.taken += 1
        if averaging is None:
            self._look(still)
        return [state.highest]

    def _evaluate(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.engine.scores(self.target, points, self.rng, minibatch=self._minibatch)

    def _look(self, still: np.ndarray) -> None:
        """Which restarts have settled, met, or are given up; whether the averaging begins."""
        state = self._state
        begins = (self._calm == 0) & (still > 0)
        # Noise makes a restart that has arrived seem to move at times; one that moves does so at every step.
        self._calm = np.where(still > 0, self._calm + still, 0.5 * self._calm - 0.5).clip(0.0)
        ready = self._calm >= self._calm_steps
        if begins.any() or ready.any():
            sd = state.sd
            state.calm_sd = np.where(begins[:, None], sd, state.calm_sd)
            # None that has grown all the time in a flat direction.
            grown = (sd >= 10 * state.calm_sd).any(1)
            self._calm = np.where(ready & grown, 0.0, self._calm)
        new = ((self._calm >= self._calm_steps) | self._stalled()) & (self._settled_at < 0)
        self._settled_at = np.where(new, self.taken, self._settled_at)
        if not self._minibatch:
            self._recognise()
            self._merge()
            self._give_up()
        if not len(self._chain):
            return
        # Minibatches settle together: each is noisy, and calm only for a while.
        settled = self._calm >= self._calm_steps if self._minibatch else self._settled_at >= 0
        if settled.all() and self._scales_first:
            self._best_go_first()
        elif settled.all() and self._waiting:
            self._others_follow()
        elif settled.all():
            self.settled, self._averaging_from = True, self.taken
        elif self.taken + averaging_steps(self.steps, self._minibatch) >= self.steps:
            self._averaging_from = self.taken

    def _stalled(self) -> np.ndarray:
        """Restarts whose bound hardly rises any more."""
        if self._minibatch:
            return np.zeros(len(self._chain), bool)
        best, due = self._state.best, self.taken - self._marked_at >= STALL_STEPS
        gain = (WHOLE_GAIN if self._state.full else STALL_GAIN) * self.target.dim
        known = np.isfinite(self._marked)
        gained = np.subtract(best, self._marked, out=np.full_like(best, np.inf), where=known)
        stalled = due & (gained < gain)
        self._gained = np.where(due, gained, self._gained)
        self._marked, self._marked_at = (
            np.where(due, now, then) for now, then in ((best, self._marked), (self.taken, self._marked_at))
        )
        return stalled

    def _hopeless(self) -> np.ndarray:
        """Restarts that go on far below one that has settled, or below a known optimum."""
        state, out = self._state, np.zeros(len(self._chain), bool)
        due = (self._settled_at >= 0).any() or (self.target.adaptive and self.taken >= ADAPTIVE_STEPS)
        measure = self._sound
        for chain in np.unique(self._chain) if due else ():
            own = self._chain == chain
            if self.target.adaptive and self.taken >= ADAPTIVE_STEPS:
                bounds = np.where(measure, state.best, -np.inf)[own]
                ahead = np.sort(bounds)[-2:].min() if self._known is None else self._known.best
                out |= own & (state.best < ahead - ADAPTIVE_LEAD)
            settled = own & measure & (self._settled_at >= 0)
            first = np.where(settled, self._settled_at, np.iinfo(int).max).min()
            if first <= self.taken:
                best = state.best[settled].max()
                out |= own & self._far_below(best, late=self.taken > TIMES * first + MORE_STEPS)
        # A bound of scales alone is lower by itself.
        if self._known is not None and state.full == self._known.full:
            out |= self._far_below(self._known.best, late=False)
        return out

    @property
    def _sound(self) -> np.ndarray:
        """Restarts whose bounds are known well enough for others to be held against."""
        return sound(self._state.best, self._state.best_error, self.target.dtype)

    def _far_below(self, best: float, *, late: bool) -> np.ndarray:
        """Restarts far below a bound that would not catch up, or should have by now."""
        bounds = self._state.best
        return (late | (bounds < best - CATCH_UP * self._gained)) & ~(bounds >= best - HOPELESS)

    def _give_up(self) -> None:
        """Leaves those without hope where they are."""
        gone = self._hopeless()
        if not gone.any() or (gone.all() and self._known is None):
            return
        for i in map(int, np.flatnonzero(gone)):
            own = self._state[[i]]
            self._end(i, Gaussians(own.mean, self._roots(own), np.full(1, -np.inf), np.zeros(1)))
        self._keep(np.flatnonzero(~gone), {})

    def _recognise(self) -> None:
        """Ends restarts that have come to a known optimum."""
        if self._known is None:
            return
        found = [self._known.met(self._state, i) for i in range(len(self._chain))]
        for i, k in enumerate(found):
            if k is not None:
                self._end(i, self._known.gaussians[np.array([k])])
        if any(k is not None for k in found):
            self._keep(np.array([i for i, k in enumerate(found) if k is None], int), {})

    def _best_go_first(self) -> None:
        """From scales to whole matrices, with the best restart of each chain; the others wait."""
        state = self._state
        order = np.argsort(-np.where(self._sound, state.best, -np.inf), kind="stable")
        first = np.sort([order[self._chain[order] == chain][0] for chain in np.unique(self._chain)])
        bounds = self._bounds(state)
        for i in np.setdiff1d(order, first):
            own = state[[i]]
            number = self._end(i, Gaussians(own.mean, self._roots(own), bounds[[i]], np.zeros(1)))
            self._waiting.append((number, int(self._chain[i]), own))
        self._keep(first, {})
        self._scales_first, self._state = False, self._state.whole()
        self._calm, self._settled_at = np.zeros_like(self._calm), np.full_like(self._settled_at, -1)
        self._marked_at, self._gained = (
            np.full_like(self._marked_at, self.taken),
            np.full_like(self._gained, np.inf),
        )

    def _others_follow(self) -> None:
        """Those that have waited go on with whole matrices, but for those on their way to an optimum that was found."""
        found = self._state
        settled = Gaussians(found.mean, self._roots(found), self._bounds(found), np.zeros(len(found.best)))
        following: list[tuple[int, State]] = []
        for number, chain, own in self._waiting:
            rows = np.flatnonzero(self._chain == chain)
            k = KnownOptima(settled[rows]).met(own, 0)
            self._member[self._member == number] = len(found.best) + len(following) if k is None else rows[k]
            if k is None:
                following.append((chain, own.whole()))
        self._waiting = []
        if following:
            more = len(following)
            self._state = State.joined([found, *(own for _, own in following)])
            self._chain = np.append(self._chain, [chain for chain, _ in following])
            self._calm, self._settled_at = (
                np.append(self._calm, np.zeros(more)),
                np.append(self._settled_at, np.full(more, -1)),
            )
            self._marked, self._gained = (
                np.append(self._marked, np.full(more, -np.inf)), np.append(self._gained, np.full(more, np.inf)),
            )  # fmt: skip
            self._marked_at = np.append(self._marked_at, np.full(more, self.taken))

    def _end(self, i: int, gaussian: Gaussians) -> int:
        """Notes where a restart ended, and the number by which `_member` knows it from now on."""
        self._ended.append(gaussian)
        self._member[self._member == i] = -len(self._ended)
        return -len(self._ended)

    def _keep(self, order: np.ndarray, into: dict[int, int]) -> None:
        """Goes on with some restarts, others having gone into these."""
        place = {int(old): new for new, old in enumerate(order)}
        into = {int(i): int(j) for i, j in into.items()}
        self._member = np.array([m if m < 0 else place[into.get(int(m), int(m))] for m in self._member])
        self._state = self._state[order]
        for name in ("_chain", "_calm", "_settled_at", "_marked", "_marked_at", "_gained"):
            setattr(self, name, getattr(self, name)[order])

    def _all(self, found: Gaussians) -> Gaussians:
        """One for each starting point, from those of the restarts that went on."""
        for own in self._ended[::-1]:  # the last of them is number -1
            found = found.joined(own)
        return found[self._member]

    def _merge(self) -> None:
        """Lets restarts of a chain that have met go on as the one with the higher bound."""
        if len(self._chain) == 1:
            return
        near = self._state.may_meet(MET_DISTANCE, MET_RATIO) & (self._chain[:, None] == self._chain)
        if np.count_nonzero(near) == len(near):  # each with itself
            return
        keep = list(np.argsort(-self._state.best, kind="stable"))
        into = {}
        for i in list(keep):
            for j in keep:
                if j == i:
                    break
                if near[i, j] and self._state.met(i, j, MET_DISTANCE, MET_RATIO):
                    into[i] = j
                    keep.remove(i)
                    break
        if not into:
            return
        for i, j in into.items():
            self._settled_at[j] = max(self._settled_at[i], self._settled_at[j])
        self._keep(np.array(sorted(keep)), into)

    def settle(self) -> None:
        """Begins the averaging where the bound was highest.

        Noise may keep a restart from settling for long after it has arrived, and its bound at any one step from being told from
        another's.
        """
        if self._averaging_from is None:
            self._averaging_from = self.taken
            self._state.go_back()

    def go_on_from(self, gaussians: Gaussians) -> None:
        """Starts from Gaussians that are nearly right, with scores of the full data."""
        self._state.put(np.asarray(gaussians.mean, float), np.asarray(gaussians.scale, float))
        self._minibatch, self._calm_steps = False, POLISH_CALM

    def _roots(self, state: State) -> np.ndarray:
        """Square roots of the covariances, full ones even where no more than scales are fitted so far."""
        return roots.matrices(state.scale) if self.target.dim <= FULL_RANK_LIMIT else state.scale.copy()

    def current(self) -> Gaussians:
        """One Gaussian for each starting point, as they stand, with the highest bounds seen, which cost nothing."""
        now = self._state
        found = Gaussians(now.mean.copy(), self._roots(now), self._bounds(now), np.zeros(len(now.best)))
        return self._all(found)

    def _bounds(self, state: State) -> np.ndarray:
        """Highest bounds seen; -inf where they cannot be those of an optimum."""
        known = -math.inf if self._known is None else self._known.best
        return np.where(lost(state.best, state.best_error, known, self.target.dtype), -np.inf, state.best)

    @property
    def settled_bound(self) -> float:
        """The highest bound, among those that others can be held against; -inf where none is."""
        return float(np.where(self._sound, self._state.best, -np.inf).max(initial=-np.inf))

    def result(self) -> Gaussians:
        """One Gaussian for each starting point; those whose evidence bound is not finite have `elbo` -inf."""
        state = self._state
        if not len(self._chain):
            return self._all(Gaussians(state.mean, self._roots(state), state.best, state.best))
        rows = len(state.mean) * self.target.data_size
        count = int(min(128, max(8, EVIDENCE_ROWS / (2 * rows))))
        noise = antithetic(self._noise, len(state.mean), count, self.target.dim)
        log_q, _ = self.engine.scores(self.target, state.points(noise), self.rng, minibatch=False)
        elbo, error = bound(log_q, noise, state.log_det)
        best = -math.inf if self._known is None else self._known.best
        gone = lost(elbo, error, best, self.target.dtype)
        # Not those that were stopped, which are so wide that no points are near to each other.
        known = sound(elbo, error, self.target.dtype) | ~np.isfinite(elbo) | state.stopped
        doubtful = np.flatnonzero(~(known | gone))
        if len(doubtful):
            near = NEARBY * antithetic(self._noise, len(doubtful), 4, self.target.dim)
            points = state[doubtful].points(near)
            values, _ = self.engine.scores(self.target, points, self.rng, minibatch=False)
            gone[doubtful] = jumps(values)
        elbo = np.where(gone, -np.inf, elbo)
        return self._all(Gaussians(state.mean.copy(), self._roots(state), elbo, error))


def polish(engine: Engine, target: Any, gaussians: Gaussians, rng: Any, budget: float) -> Gaussians:
    """Goes on with fits to minibatches on the full data, where their noise would need thousands of steps to average out.

    Args:
        engine: Of the target.
        target: The target.
        gaussians: Where to go on.
        rng: The engine's random number generator.
        budget: Gradient evaluations times data rows that may be used; where they allow few steps, none are made.
    """
    each = 2 * pairs(target.dim) * len(gaussians.mean) * target.data_size
    steps = int(min(POLISH_STEPS, budget / each))
    if steps < LEAST_POLISH:
        return gaussians
    starts = np.asarray(gaussians.mean, float)[:, None]  # no two of them meet
    fitter = GaussianFitter(engine, target, starts, np.ones(1), steps=steps, rng=rng)
    fitter.go_on_from(gaussians)
    while not fitter.done:
        fitter.advance()
    return fitter.result()
