"""New draws of a trained sampler, refined, a block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pyro_dft.interface.backend import Backend
from pyro_dft.interface.result import Making, with_kernel
from pyro_dft.recipe.fit import Fit
from pyro_dft.recipe.stragglers import highest_potential

# A block of flat draws (chains, n, dim), and what is known of the transitions that each comes from: `Result.statistics`.
Block = tuple[Any, dict[str, Any]]


def new_blocks(
    backend: Backend, fit: Fit, each: int, making: Making, *, rng: Any, chains: slice = slice(None)
) -> Iterator[Block]:
    """New draws in blocks that together have `each` for each chain.

    Blocks are small, so that the flat coordinates of a million draws are never in memory at once.

    Args:
        backend: The framework, with the model read.
        fit: The trained sampler; measured, where draws are refined.
        each: Draws for each chain.
        making: How each of them is made.
        rng: The framework's random number generator.
        chains: Which chains draw.
    """
    modes, samplers = fit.modes, range(fit.sampler.chains)[chains]
    if modes is not None:
        # A chain has as many samplers as there are modes, one after the other.
        own = range(modes.chains)[chains]
        modes, samplers = modes[own], range(own.start * modes.count, own.stop * modes.count)
    some = slice(samplers.start, samplers.stop)
    size = max(1, backend.engine.BLOCK_ROWS // fit.sampler.chains)
    sizes = [min(size, each - start) for start in range(0, each, size)]
    kept = None
    if making.renewed:
        assert fit.measurement is not None
        kept = _Kept(fit.measurement.refined, backend.host_rng(rng))
    if modes is None:
        raw = backend.engine.blocks(fit.sampler, each, rng)
        for block in raw if kept is None else map(kept.draw, sizes):
            yield _refined(backend, fit, block[some], making.transitions, some, rng)
        return
    for count in sizes:
        needed, rows = modes.rows(count, backend.host_rng(rng))
        begun = fit.sampler.draw(needed, rng) if kept is None else kept.draw(needed)
        block, statistics = _refined(backend, fit, begun[some], making.transitions, some, rng)
        yield (
            modes.combine(block, rows),
            {name: modes.combine(value, rows) for name, value in statistics.items()},
        )


class _Kept:
    """Kept draws of all samplers in random order, over and over: each comes once before any comes again.

    Args:
        draws: Native (G, n, d).
        rng: For the order.
    """

    def __init__(self, draws: Any, rng: np.random.Generator):
        self._draws, self._rng, self._order = draws, rng, np.zeros(0, int)

    def draw(self, count: int) -> Any:
        """The next ones, (G, count, d)."""
        while len(self._order) < count:
            self._order = np.append(self._order, self._rng.permutation(self._draws.shape[1]))
        now, self._order = self._order[:count], self._order[count:]
        return self._draws[:, now]


def _refined(
    backend: Backend, fit: Fit, block: Any, refine_steps: int, samplers: slice, rng: Any
) -> Block:  # fmt: skip
    if not refine_steps:
        return block, {"diverging": np.zeros(tuple(block.shape[:2]), bool)}
    measured = fit.measurement
    assert measured is not None
    moved = backend.engine.refine(
        backend.problems[fit.problem].target,
        block,
        measured.scale[samplers],
        measured.step_size[samplers],
        steps=refine_steps,
        leapfrog_steps=measured.leapfrog_steps,
        rng=rng,
    )
    gradients = refine_steps * measured.leapfrog_steps
    own = with_kernel(backend.arrays, measured, moved.statistics, gradients, samplers)
    statistics = {"diverging": backend.arrays.numpy(moved.diverged), **own}
    kept = backend.arrays.numpy(measured.log_density)[samplers]
    index = _arrived(backend.arrays.numpy(moved.log_density), kept, backend, rng)
    if index is None:
        return moved.draws, statistics
    return moved.draws[index], {name: value[index] for name, value in statistics.items()}


def _arrived(log_density: Any, kept: Any, backend: Backend, rng: Any) -> tuple[Any, Any] | None:
    """Index of draws (G, n) in which those that are still far out stand for others of the same sampler; None where none are.

    See `pyro_dft.recipe.stragglers.highest_potential`.

    Args:
        log_density: Of the draws, (G, n).
        kept: Of the kept draws, (G, m).
        backend: The framework.
        rng: The framework's random number generator.
    """
    kept = kept.astype(float)  # twice a log density may be more than single precision holds
    with np.errstate(invalid="ignore"):
        stranded = -log_density > highest_potential(-kept.min(1), -np.median(kept, 1))[:, None]
    if not stranded.any() or stranded.all(1).any():
        return None
    rows = np.tile(np.arange(stranded.shape[1]), (len(stranded), 1))
    host = backend.host_rng(rng)
    for own, out in zip(rows, stranded, strict=True):
        own[out] = host.choice(np.flatnonzero(~out), int(out.sum()))
    return np.arange(len(rows))[:, None], rows


def together(backend: Backend, blocks: Iterator[Block]) -> Block:
    """All blocks joined into one."""
    draws, statistics = zip(*blocks, strict=True)
    joined = {name: np.concatenate([part[name] for part in statistics], 1) for name in statistics[0]}
    return backend.arrays.concatenate(draws, axis=1), joined
