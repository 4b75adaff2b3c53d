"""New draws of a trained sampler, refined, a block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pyro_dft.interface.backend import Backend
from pyro_dft.interface.result import with_kernel
from pyro_dft.recipe.fit import Fit
from pyro_dft.recipe.stragglers import highest_potential

# A block of flat draws (chains, n, dim), and what is known of the transitions that each comes from: `Result.statistics`.
Block = tuple[Any, dict[str, Any]]


def new_blocks(
    backend: Backend, fit: Fit, each: int, refine_steps: int, *, rng: Any, chains: slice = slice(None)
) -> Iterator[Block]:
    """New draws in blocks that together have `each` for each chain.

    Blocks are small, so that the flat coordinates of a million draws are never in memory at once.

    Args:
        backend: The framework, with the model read.
        fit: The trained sampler; measured, where draws are refined.
        each: Draws for each chain.
        refine_steps: HMC transitions for each draw.
        rng: The framework's random number generator.
        chains: Which chains draw.
    """
    modes, samplers = fit.modes, range(fit.sampler.chains)[chains]
    if modes is not None:
        # A chain has as many samplers as there are modes, one after the other.
        own = range(modes.chains)[chains]
        modes, samplers = modes[own], range(own.start * modes.count, own.stop * modes.count)
    some = slice(samplers.start, samplers.stop)
    if modes is None:
        for block in backend.engine.blocks(fit.sampler, each, rng):
            yield _refined(backend, fit, block[some], refine_steps, some, rng)
        return
    size = max(1, backend.engine.BLOCK_ROWS // fit.sampler.chains)
    for start in range(0, each, size):
        needed, rows = modes.rows(min(size, each - start), backend.host_rng(rng))
        block, statistics = _refined(
            backend, fit, fit.sampler.draw(needed, rng)[some], refine_steps, some, rng
        )
        yield (
            modes.combine(block, rows),
            {name: modes.combine(value, rows) for name, value in statistics.items()},
        )


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
