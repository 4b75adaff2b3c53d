"""An ensemble of exact chains: particles that start as the sampler's draws, are adapted together, and forget their start.

Plain Hamiltonian Monte Carlo, all particles at once, with one kernel for all of a sampler's. Windows of transitions are
judged by their two halves; the last one is kept. What is learnt from the particles of one window (scales, step size)
serves the next, never its own, so that each window is a proper Markov chain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from pyro_dft.judging.drift import drift
from pyro_dft.judging.mixing import effective_draws
from pyro_dft.recipe import metric
from pyro_dft.recipe.bank import Bank
from pyro_dft.recipe.carefulness import Carefulness
from pyro_dft.recipe.chains import Block, Dynamics
from pyro_dft.recipe.constants import BLOCK_STEPS, FULL_RANK_LIMIT
from pyro_dft.recipe.enough import at_last, enough, missing, mixes
from pyro_dft.recipe.pace import Pace
from pyro_dft.recipe.starts import starting_points, staying
from pyro_dft.recipe.stragglers import left_behind, replaced, stranded
from pyro_dft.recipe.subject import Subject
from pyro_dft.recipe.trajectories import Trajectories, calls
from pyro_dft.recipe.window import COMPARED_STATES, Judged, Window, climb, joined, picked, spacing

# Particles of all chains together, and of each sampler at least.
PARTICLES, LEAST_PARTICLES = 64, 16
# Transitions of each of the two parts of the warm-up, and those before each window in which the step size is tuned anew.
WARM_UP, TUNING = 16, 8
# Where fewer effective draws than so many for each particle are in a window, some may be stranded.
APART = 1.5
# The warm-up ends when the acceptance is as near to its goal, and fewer transitions diverge, or after so many rounds.
TUNED, LOST, MOST_WARM_UPS = 0.15, 0.05, 10
# Chains that agree are served, where going on is not worth its cost, from so many effective draws on: the slowest of all features
# has an error of .07 sds by chance then, which its own standard error shows. A network would only be trained on the same states.
LEAST_SERVED = 200
# Steps are not made smaller where a window could be served, of whose transitions no larger share diverges, and so many gradients
# for each draw are spent: all of it would begin anew.
DEAR, RARE_DIVERGENCES = 100, 0.005
# They cost about so many times as much.
SMALL_STEPS = 2.0
# Steps are made smaller by about as much before they are tuned: acceptance is so near to one there that a few transitions of
# tuning hardly move them.
SMALLER = 0.6
# Gradients for each draw that is asked for, at most: a window that would pass it, or that would have to go on for so long before
# it has enough draws, is not begun. A network, and the refinement of its draws, would cost as much; above `FULL_RANK_LIMIT`
# dimensions, where none would help, chains have both.
BUDGET, LARGE_BUDGET = 300, 600
# The same with separate modes, for each of which as many draws are asked for.
MODES_BUDGET = 100
# Where no window could be served yet, but particles mix, and where they have to pass between modes: nothing else is of use there.
LAST_BUDGET = 1200


class Particles:
    """Runs the ensemble of one sampler.

    Args:
        subject: The sampler that they start from, the posterior, how many draws are asked for, and what they may cost.

    Attributes:
        subject: As given.
        bank: The states of all blocks with their scores.
        spent: Gradients so far.
    """

    def __init__(self, subject: Subject):
        assert subject.budget is not None
        self.subject = subject
        self.engine, self.target, self.sampler = subject.engine, subject.target, subject.sampler
        self.settings, self.rng, self.budget = subject.settings, subject.rng, subject.budget
        self.original, self.modes = subject.original, subject.modes
        sampler, modes = subject.sampler, subject.modes
        self.chains = sampler.chains if modes is None else modes.chains
        self.count = max(LEAST_PARTICLES, PARTICLES // self.chains)  # P
        self.each = -(-subject.draws // sampler.chains)
        self.carefulness = Carefulness()
        self.trajectories = Trajectories(self.settings.experimental.leapfrog_steps)
        self.bank = Bank()
        self._agreed: tuple[Window, Judged] | None = None
        self._shorter, self._mixes = (0, 0.0), True
        self.spent = 0
        self._pace = Pace()
        self._going = self._windows()
        self._first: tuple[Window, Judged] | None = None

    def begin(self) -> None:
        """Warms up, and runs the first window."""
        self._first = next(self._going)

    @property
    def struggling(self) -> bool:
        """Whether the first window says that these are no good coordinates: transitions diverge, or hardly get anywhere."""
        assert self._first is not None
        window, judged = self._first
        return self._careless(window) or judged.effective < LEAST_SERVED

    @property
    def efficiency(self) -> float:
        """Effective draws that the first window came to for each gradient, with as small steps as it calls for."""
        assert self._first is not None
        window, judged = self._first
        smaller = SMALL_STEPS if self._careless(window) else 1.0
        # Particles that stay where they are count as one each.
        made = max(judged.effective - self.count * self.sampler.chains, 1.0)
        return made / (smaller * self._cost(window, window.x.shape[2]))

    def run(self) -> tuple[Window, Judged]:
        """Goes on window by window until one is good, or more of them are not worth it."""
        for window, judged in self._going:
            last = window, judged
        window, judged = last
        # What is kept does not hold the states of every window, and can be copied.
        self._going, self._first = iter(()), None
        if judged.complete or self._agreed is None:
            return window, judged
        window, judged = self._agreed
        return window, replace(judged, complete=True)

    def _windows(self) -> Iterator[tuple[Window, Judged]]:
        """The windows, each whenever it has gone on, and last the one that says how it ended."""
        start, scale, step_size = self._warmed_up()
        length = max(TUNING, BLOCK_STEPS * math.ceil(self.each / self.count / BLOCK_STEPS))
        while True:
            part = self._blocks(start, scale, step_size, TUNING, tune=0.7)
            start = self._revived(part[-1], warming=False)
            sizes = self.trajectories.whole(self.engine.numpy(part[-1].step_size))
            step_size = self.engine.native(self.target, sizes)
            length = self._within_budget(length, step_size)
            window, start = self._window(start, scale, step_size, length)
            judged = self._judged(window)
            self._note(window, judged)
            yield window, judged
            if self._given_up:
                return
            while not self._careless(window) and not judged.restless and self._short(judged):
                more = self._further(window, judged)
                if not more:
                    yield window, judged
                    return
                following, start = self._window(start, scale, step_size, more)
                window = joined(self.engine, window, following)
                judged = self._judged(window)
                self._note(window, judged)
            if judged.climbing:
                pass  # what diverges on the way says nothing of the steps that are needed there
            elif self._careless(window) and self._too_dear:
                yield window, judged  # the verdict says what diverged
                return
            elif self._careless(window):
                self.carefulness.go_on()
                step_size = SMALLER * step_size
            elif judged.restless:
                self._stretched(window, judged)
                length *= 2
                if self.carefulness.relent():
                    step_size = step_size / SMALLER
            else:
                yield window, replace(judged, complete=True)
                return
            if not self._affords(window, length + TUNING):
                yield window, judged
                return
            scale = self.metric(window.x, window.score, scale)
            start = self._without_stranded(window, start, judged)

    def _note(self, window: Window, judged: Judged) -> None:
        """Keeps the last window that could be served; none where particles move again, with smaller steps."""
        self.carefulness.saw(window.diverged)
        self._compare(window, judged)
        short = self._enough / max(judged.effective, 1.0) - 1
        given_up = judged.restless or self._careless(window)
        ahead = math.inf if given_up else max(short, 0.0) * self._cost(window, window.x.shape[2])
        self._pace.found(judged.effective, self._enough, ahead, self.spent)
        self.subject.note(self._pace.words(self.spent))
        if judged.restless:
            self._agreed = None
        elif judged.effective >= LEAST_SERVED:
            self._agreed = window, judged

    def _compare(self, window: Window, judged: Judged) -> None:
        """Whether particles mix, which one window does not tell: a longer one has more effective draws then."""
        particles = self.count * self.sampler.chains
        before, now = self._shorter, (window.x.shape[2], judged.of_means / particles)
        self._shorter = now
        if before[0]:
            self._mixes = mixes(before, now, judged.effective / particles)

    @property
    def _given_up(self) -> bool:
        """Whether particles that have to pass between optima are seen not to."""
        return self.subject.across and not self._mixes

    def _stretched(self, window: Window, judged: Judged) -> None:
        """Trajectories get longer where states of the window are far from independent."""
        self.trajectories.stretch(judged.of_means, window.x.shape[2] * self.count * self.sampler.chains)

    def _further(self, window: Window, judged: Judged) -> int:
        """Transitions by which a window goes on: as many as seem to be missing, and at most as many again; zero to end here."""
        worthwhile = self._worthwhile(window, judged) and not self._given_up
        self._stretched(window, judged)  # longer trajectories are expected to pay for themselves
        length = window.x.shape[2]
        each = window.gradients_each, self.trajectories.mean(self.engine.numpy(window.step_size), length)
        more = missing(length, self._enough / max(judged.effective, 1.0), *each) if worthwhile else 0
        while more and not self._affords(window, more):
            more -= min(more, BLOCK_STEPS)
        return more

    def _cost(self, window: Window, length: int) -> int:
        """Gradients of so many transitions of a window's kernel."""
        each = self.trajectories.mean(self.engine.numpy(window.step_size), length)
        return math.ceil(self.count * self.sampler.chains * length * each)

    def _worthwhile(self, window: Window, judged: Judged) -> bool:
        """Whether the chains would come to enough draws within the budget."""
        least = min(LEAST_SERVED, at_last(self.settings.num_draws))
        ahead = (least / max(judged.effective, 1.0) - 1) * self._cost(window, window.x.shape[2])
        return self.spent + ahead <= self._budget

    @property
    def _budget(self) -> float:
        alone = LARGE_BUDGET if self.target.dim > FULL_RANK_LIMIT else BUDGET
        if self.subject.across or (self._agreed is None and self._mixes):
            alone = max(alone, LAST_BUDGET)
        return self._asked * (alone if self.modes is None else MODES_BUDGET)

    def _within_budget(self, length: int, step_size: Any) -> int:
        """As many transitions as may still be made, at least a block of them."""
        each = self.count * self.sampler.chains * max(self.trajectories.lengths(self.engine.numpy(step_size)))
        within = self.budget.most(length, each, BLOCK_STEPS)
        return within if within == length else BLOCK_STEPS * (within // BLOCK_STEPS)

    def _warmed_up(self) -> tuple[Any, Any, Any]:
        """Position, scale and step size of particles that move as they should."""
        scale = self.sampler.scale
        start = starting_points(self.subject, self.count)
        step_size = self.engine.native(self.target, np.full(self.sampler.chains, self.target.dim**-0.25))
        for turn in range(MOST_WARM_UPS):
            if turn > 1 and not self.budget.affords(self.count * self.sampler.chains * WARM_UP):
                break
            part = self._blocks(start, scale, step_size, WARM_UP, tune=1.5 if turn < 2 else 1.0)
            start, step_size = self._revived(part[-1]), part[-1].step_size
            scale = self.metric(self._joined(part, "x"), self._joined(part, "score"), scale)
            last = self.engine.numpy(part[-1].acceptance)[:, :, -TUNING:].mean((1, 2))
            lost = self.engine.numpy(part[-1].diverged)[:, :, -TUNING:].mean()
            if turn > 0 and lost < LOST and np.abs(last - self.carefulness.acceptance).max() < TUNED:
                break
        return start, scale, step_size

    def _revived(self, block: Block, *, warming: bool = True) -> Any:
        """Where the particles are; those that never moved go where others are, that did: behind the warm-up only from far out."""
        engine = self.engine
        # Not those either that hardly find a point where the density is finite: they sit where it cannot be computed.
        moved = engine.numpy(block.moved).max(2) > 0
        moved &= engine.numpy(block.diverged).mean(2) <= 0.5
        if not warming:
            far, straggling = left_behind(engine.numpy(block.log_density), block.x.shape[-1])
            moved = (moved | ~far) & ~straggling
        if moved.all() or not moved.any(1).all():
            return block.position
        return replaced(block.x[:, :, -1], ~moved, engine.host_rng(self.rng))

    def _without_stranded(self, window: Window, start: Any, judged: Judged) -> Any:
        """Where the next window starts; what is stranded starts where others are."""
        if not judged.stranded.any():
            return start
        return replaced(window.x[:, :, -1], judged.stranded, self.engine.host_rng(self.rng))

    def _careless(self, window: Window) -> bool:
        """Whether smaller steps are due."""
        return self.carefulness.due(window.diverged, math.prod(window.x.shape[:3]))

    @property
    def _too_dear(self) -> bool:
        """Whether smaller steps are not worth what they cost."""
        good = self._agreed is not None and self._agreed[0].diverged <= RARE_DIVERGENCES
        return good and self.spent >= DEAR * self._asked

    def _short(self, judged: Judged) -> bool:
        return judged.effective < self._enough

    @property
    def _enough(self) -> float:
        """Effective draws that are enough, at this cost."""
        large = self.target.dim > FULL_RANK_LIMIT
        return enough(
            self.settings.num_draws, self.spent / self._asked, large=large, apart=self.modes is not None
        )

    def _affords(self, window: Window, length: int) -> bool:
        """Whether so many more transitions are within the budget."""
        ahead = self._cost(window, length)
        return self.spent + ahead <= self._budget and self.budget.affords(ahead)

    @property
    def _asked(self) -> float:
        """Draws that are asked for, of every mode."""
        return self.settings.num_draws * (self.sampler.chains / self.chains)

    # Transitions

    def _blocks(self, start: Any, scale: Any, step_size: Any, steps: int, tune: float = 0.0) -> list[Block]:
        blocks: list[Block] = []
        sizes = self.engine.numpy(step_size)
        for first in range(0, steps, BLOCK_STEPS):
            leapfrogs = self.trajectories.next(sizes, tune)
            dynamics = Dynamics(scale, step_size, leapfrogs, tune, self.carefulness.acceptance)
            whole = min(BLOCK_STEPS, steps - first)
            each = self.count * self.sampler.chains * leapfrogs
            for length in [whole] if tune else calls(whole, each):  # it is tuned as a whole
                block = self.engine.run_block(self.target, start, dynamics, steps=length, rng=self.rng)
                start, step_size = block.position, block.step_size
                blocks.append(block)
                self._remember(block)
                self.spent += length * each
                self.subject.note(self._pace.words(self.spent))
            if not tune and self.budget.late:
                break
        return blocks

    def _remember(self, block: Block) -> None:
        g, _, _, d = block.x.shape
        self.bank.add(*(self.engine.numpy(v).reshape(g, -1, d) for v in (block.x, block.score)))

    def _joined(self, blocks: list[Block], name: str) -> Any:
        return self.engine.concatenate([getattr(block, name) for block in blocks], 2)

    def _window(self, start: Any, scale: Any, step_size: Any, length: int) -> tuple[Window, Any]:
        engine, sizes = self.engine, self.engine.numpy(step_size)
        before, spent = self.target.nonfinite_evaluations, self.spent
        blocks = self._blocks(start, scale, step_size, length)
        lost = self.target.nonfinite_evaluations - before
        moved = engine.numpy(self._joined(blocks, "moved"))
        each = (self.spent - spent) / moved.size
        divergent, probability = self._joined(blocks, "diverged"), self._joined(blocks, "acceptance")
        statistics = {"acceptance_rate": probability, "kinetic": self._joined(blocks, "kinetic")}
        window = Window(
            self._joined(blocks, "x"), self._joined(blocks, "log_density"), self._joined(blocks, "score"),
            engine.numpy(probability).mean((1, 2)),
            self._share(engine.numpy(divergent)), self._share(moved.max(2) == 0), scale, step_size,
            self.trajectories.lengths(sizes)[-1], divergent, statistics, each, min(lost / moved.size, 1.0),
        )  # fmt: skip
        return window, blocks[-1].position

    def _share(self, happened: np.ndarray) -> float:
        """How often something happened (G, P, ...), in states as they are served: those of a light mode hardly count."""
        weights = None if self.modes is None else self.modes.weights.reshape(-1)
        return float(np.average(happened.reshape(len(happened), -1).mean(1), weights=weights))

    def metric(self, x: Any, score: Any, scale: Any) -> Any:
        """See `pyro_dft.recipe.metric.adapted`."""
        return metric.adapted(self.engine, self.target, x, score, scale)

    # The verdict

    def _judged(self, window: Window) -> Judged:
        log_density = self.engine.numpy(window.log_density)
        states = self.states_in_own_coordinates(window.x[:, :, :: spacing(window.x.shape, self.each)])
        points = states[:, :, :: spacing(states.shape, least=COMPARED_STATES)]
        g, p, t, d = points.shape
        half = t // 2
        chosen = self.of_chains()
        drifts, groups = [], list(chosen)
        if self.chains > 1:  # else all of them are those of the one chain
            rows, modes = (np.concatenate(part) for part in zip(*chosen, strict=True))
            groups.insert(0, (rows, modes))
        flat = points.reshape(-1, t, d)
        for rows, modes in groups:
            some = picked(flat, rows)
            first, second = some[:, :half].reshape(-1, d), some[:, half : 2 * half].reshape(-1, d)
            drifts.append(drift(first, second, np.repeat(modes, half), half))
        drifts = drifts if self.chains > 1 else 2 * drifts
        every = states.reshape(g * p, -1, d)
        least = np.min([effective_draws(picked(every, rows), mode) for rows, mode in chosen], 0) * self.chains
        effective = float(least.min())
        if self.subject.across and staying(
            self.engine.numpy(window.x).reshape(g * p, -1, d), self.subject.origins
        ):
            effective = min(effective, float(p * g))  # each particle is worth one draw
        alone = np.zeros((g, p), bool)
        if least.min() < APART * p * g:
            alone = stranded(self.engine.numpy(window.x), log_density)
        return Judged(points, drifts, effective, float(least[0]), climb(log_density), alone)

    def states_in_own_coordinates(self, x: Any) -> np.ndarray:
        """States (G, P, T, d), native, in the model's own unconstrained coordinates."""
        return self.engine.numpy(self.original(x.reshape(-1, x.shape[3]))).reshape(x.shape)

    def of_chains(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each chain, which of the G P particles it is judged by, and the modes that these are in."""
        if self.modes is not None:
            return self.modes.particles(self.count)
        rows = np.arange(self.chains * self.count).reshape(self.chains, -1)
        return [(own, np.zeros(self.count, int)) for own in rows]
