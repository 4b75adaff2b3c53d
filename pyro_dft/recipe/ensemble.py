"""Chains that have run: which states are served, and how far samplers are from them, without evaluating the model again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_dft.judging.drift import Drift, difference
from pyro_dft.judging.joint import Joint
from pyro_dft.judging.mixing import memory_at
from pyro_dft.recipe.chains import Dynamics
from pyro_dft.recipe.constants import BLOCK_STEPS, FIRST_STEPS, FULL_RANK_LIMIT
from pyro_dft.recipe.metric import adapted
from pyro_dft.recipe.particles import Particles
from pyro_dft.recipe.window import LEAST_STATES, Judged, Window, picked, spacing

# A new draw is refined until its memory of where it started is below the first figure, and the error that is expected to be
# left below the second (sds).
FORGOTTEN, LEFT = 0.3, 0.05
# Effects of more standard errors than this count towards that error.
LIKELY = 2.0
# What is wrong jointly, as log densities show, may come to so large an error of a coordinate on the way (sds).
JOINTLY = 0.7
# Draws of a sampler that are moved to compare log densities, in units of the number of particles: the first of them alone, for as
# long as their mean is so many standard errors away, and above `FULL_RANK_LIMIT` dimensions then the others, up to one.
MOVED, SURELY = 4, 2.5
# Of draws of many coordinates so many of each sampler at least are compared with the particles.
LEAST_COMPARED = 1024
# A new draw of the sampler is not worth more transitions, or gradients, than so many: a state that is served, moved until it has
# forgotten most of itself, is as good a draw, and there is nothing to mend in it.
MANY_TRANSITIONS, DEAR_DRAW = 16, 512


@dataclass(frozen=True)
class Ensemble:
    """Chains that have run, against which samplers are judged at no further cost.

    Attributes:
        particles: What ran them.
        window: The states that are kept.
        judged: What these show.
    """

    particles: Particles
    window: Window
    judged: Judged

    def against(self, draws: Any) -> list[Drift]:
        """Drift from a sampler's draws, native (G, n, d), to the particles: of all chains together, then of each."""
        particles, points = self.particles, self.judged.points
        chosen = particles.of_chains()
        served = draws if particles.modes is None else particles.modes.kept(draws)
        served = served[:, :: spacing((served.shape[0], 1, *served.shape[1:]), least=LEAST_COMPARED)]
        c, n, d = served.shape
        own = particles.engine.numpy(particles.original(served.reshape(-1, d))).reshape(c, n, d)
        t = points.shape[2]
        flat = points.reshape(-1, t, d)
        each = [
            difference(own[i], picked(flat, rows).reshape(-1, d), t) for i, (rows, _) in enumerate(chosen)
        ]
        if c == 1:
            return [each[0], each[0]]
        every = np.concatenate([rows for rows, _ in chosen])
        return [difference(own.reshape(-1, d), flat[every].reshape(-1, d), t), *each]

    def jointly(self, draws: Any) -> Joint:
        """How far log densities at some of a sampler's draws, native (G, n, d), are from the particles'."""
        particles = self.particles
        values = particles.target.evaluate(draws[:, : particles.count])[0]
        return self._joint([particles.engine.numpy(values)])

    def transitions(self, raw: Drift, joint: Joint, draws: Any, most: int) -> tuple[int, bool]:
        """How many transitions of the ensemble's kernel a new draw needs: 2, 4, 8, and so on.

        Draws can be right in each coordinate and wrong jointly: a Gaussian's, say, where scales depend on other coordinates. The
        first transitions then make each coordinate worse, before they mend it.

        Args:
            raw: Drift from the sampler's draws to the particles.
            joint: Of these draws, see `jointly`.
            draws: The sampler's draws, native (G, n, d).
            most: The largest number to return.

        Returns:
            The number, and whether it is for draws that start at states which are served, not at a sampler's draws: see
            `DEAR_DRAW`.
        """
        # Transitions are cheap beside a draw that is wrong: what may be more than chance counts in full.
        size = np.where(np.abs(raw.significance) > LIKELY, np.abs(raw.effects), 0.0)
        size = np.nan_to_num(size, posinf=1e9).max(0)
        jointly = joint.agrees(SURELY)
        if not jointly:
            size = np.maximum(size, JOINTLY)
        steps, x = min(FIRST_STEPS, most), self.window.x
        # Successive ones, as many as those that a window is judged by, which may lie apart.
        last = max(LEAST_STATES, self.judged.points.shape[2])
        points = self.particles.states_in_own_coordinates(x[:, :, -last:])
        if self.particles.modes is not None:  # which mode a draw is in does not count as memory of its start
            points = points - points.mean((1, 2), keepdims=True)
        chains = points.reshape(-1, *points.shape[2:])
        # Some of the ensemble's trajectories may be longer than those of new draws; a transition of it is worth more of theirs.
        leapfrogs = self.window.leapfrog_steps
        worth, renewal = max(1.0, self.window.gradients_each / leapfrogs), None
        while 2 * steps <= most:
            lag = int(steps / worth)
            memory = memory_at(chains, lag) if 0 < lag < chains.shape[1] // 2 else np.ones(chains.shape[-1])
            if renewal is None and memory.max() <= FORGOTTEN:
                renewal = steps
            if renewal is not None and (size * memory).max() <= LEFT:
                break
            steps *= 2
        renewed = renewal or steps, True
        worthwhile = min(most, MANY_TRANSITIONS, DEAR_DRAW // leapfrogs)
        if steps > worthwhile:
            return renewed
        if jointly and self.particles.target.dim <= FULL_RANK_LIMIT:
            return steps, False
        settled = self._settled(draws, steps, worthwhile)
        return renewed if settled is None else (settled, False)

    def _settled(self, draws: Any, steps: int, most: int) -> int | None:
        """`steps`, doubled until after so many transitions log densities of a sampler's draws agree with those of the particles.

        Some are moved, as new draws would be, for as long as the budget of the fit allows it. None where they do not agree.
        """
        size, most_parts = self.particles.count, draws.shape[1] // self.particles.count
        each = size * draws.shape[0] * self.window.leapfrog_steps
        large = self.particles.target.dim > FULL_RANK_LIMIT
        parts = [draws[:, k * size : (k + 1) * size] for k in range(min(MOVED if large else 1, most_parts))]
        first, others, made, made_by_others = parts[:1], parts[1:], 0, 0
        while first and steps <= most and self.particles.budget.affords((steps - made) * each):
            first, found = self._all_moved(first, steps - made)
            made = steps
            if self._joint(found).agrees(SURELY):  # as far as a few can tell
                others, more = self._all_moved(others, steps - made_by_others)
                made_by_others = steps
                if self._joint([*found, *more]).agrees(1.0):
                    return steps
            steps *= 2
        return None

    def _all_moved(self, parts: list[Any], steps: int) -> tuple[list[Any], list[np.ndarray]]:
        """Points after so many transitions, and the log densities there."""
        moved = [self._moved(part, steps) for part in parts]
        return [position for position, _ in moved], [log_density for _, log_density in moved]

    def _joint(self, found: list[np.ndarray]) -> Joint:
        """Of log densities (G, n) in parts."""
        particles = self.particles
        weights = np.ones((particles.chains, 1)) if particles.modes is None else particles.modes.weights
        goal = particles.engine.numpy(self.window.log_density)
        return Joint.of(np.concatenate(found, 1), goal, weights, particles.target.dim)

    def _moved(self, position: Any, steps: int) -> tuple[Any, np.ndarray]:
        """One point for each particle after `steps` transitions, and the log densities there (G, P)."""
        particles, window = self.particles, self.window
        dynamics = Dynamics(window.scale, window.step_size, window.leapfrog_steps)
        for first in range(0, steps, BLOCK_STEPS):
            block = particles.engine.run_block(
                particles.target, position, dynamics, steps=min(BLOCK_STEPS, steps - first), rng=particles.rng
            )
            position = block.position
        return position, particles.engine.numpy(block.log_density[:, :, -1])

    def passed(self, shares: Sequence[dict[int, float]]) -> list[int]:
        """Of the restarts whose optima particles started at (see `Fit.shares`), those that they are known to pass between."""
        return [restart for own in shares for restart in own] if self.particles.subject.across else []

    def entry(self) -> dict[str, Any]:
        """Plain numbers for `diagnostics()["ensemble"]`."""
        g, p, t, _ = self.window.x.shape
        return {
            "chains": g * p, "transitions": t, "leapfrog_steps": self.window.leapfrog_steps,
            "gradients_each": self.window.gradients_each, "ess": float(self.judged.effective),
            "nonfinite": self.window.nonfinite if self.particles.carefulness.in_vain else 0.0,
        }  # fmt: skip

    def gaussian(self) -> Any:
        """Gaussian samplers with the means and covariances of the particles."""
        particles, window = self.particles, self.window
        engine, target = particles.engine, particles.target
        means = engine.numpy(window.x).mean((1, 2))
        scale = engine.numpy(adapted(engine, target, window.x, window.score, window.scale, share=1.0))
        return engine.gaussian_sampler(target, means, scale)

    def kept(self, each: int) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """The states that are served, `each` for each sampler, evenly spaced in its chains.

        Returns:
            States, the states half a window earlier, log densities, whether the transition diverged, and statistics of the
            transitions. States in the first half of the window have none half a window earlier and stand for themselves: the mean
            difference is then half of that between the halves. With several modes the order is random: a mode that serves few of
            its states would else serve those of a few chains.
        """
        window = self.window
        g, p, t, d = window.x.shape
        index = np.linspace(0, t - 1, min(t, -(-each // p))).round().astype(int)
        before = np.where(index < t // 2, index, index - t // 2)

        order = np.arange(p * len(index))[:each]
        if self.particles.modes is not None:
            order = np.random.default_rng(0).permutation(p * len(index))[:each]

        def some(values: Any, at: np.ndarray) -> Any:
            picked = values[:, :, at]
            return picked.reshape(g, p * len(at), *values.shape[3:])[:, order]

        return (
            some(window.x, index), some(window.x, before), some(window.log_density, index),
            some(window.divergent, index), {name: some(own, index) for name, own in window.statistics.items()},
        )  # fmt: skip
