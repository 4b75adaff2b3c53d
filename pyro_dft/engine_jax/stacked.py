"""One model over a stack of data sets: evaluations and transitions of many posteriors in one compiled program."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pyro_dft.engine_jax.chains import block as one_block
from pyro_dft.engine_jax.engine import JaxEngine
from pyro_dft.engine_jax.refine import Position
from pyro_dft.engine_jax.target import BRIEFLY, Target, TargetSpec
from pyro_dft.many import pool
from pyro_dft.many.calls import spans
from pyro_dft.recipe.chains import Block, Dynamics

# Points of one posterior in a compiled evaluation; what fills it up costs as much as what was asked for.
ROWS = 32
# Elements of the largest tensor of a call on a CPU, where more only miss the cache, and on an accelerator, where more cost hardly
# more time.
CPU_ELEMENTS, ACCELERATOR_ELEMENTS = 2**17, 2**26
# Posteriors, or pieces of them, in one call at most.
MOST = 256


class MemberTarget(Target):
    """The target of one data set of a stack.

    Attributes:
        stack: The stack.
        row: Its place there.
    """

    stack: Stack
    row: int

    @classmethod
    def of(cls, template: Target, stack: Stack, row: int, data: Any) -> MemberTarget:
        """From the target of another data set of the same shapes."""
        own = cls.__new__(cls)
        own.__dict__.update(vars(template))
        own.data, own.stack, own.row = data, stack, row
        own.gradient_evaluations = own.data_rows = own.nonfinite_evaluations = 0
        return own

    def evaluate(
        self, x: Any, minibatches: np.random.Generator | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Target.evaluate`; together with others of the stack, inside a pool."""
        if not pool.inside():
            return super().evaluate(x, minibatches)
        x = np.asarray(x)
        flat = x.reshape(-1, self.dim)
        log_density, score = pool.ask((self.stack, "scores"), (self.row, flat))
        self.count(len(flat), int((~np.isfinite(log_density)).sum()))
        return log_density.reshape(x.shape[:-1]), score.reshape(x.shape)


@dataclass(frozen=True)
class _Blocks:
    """What a call of `run_block` asks for."""

    row: int
    position: Position
    dynamics: Dynamics
    words: np.ndarray


class StackedEngine(JaxEngine):
    """The engine of a member of a stack: blocks of transitions are run together with those of others."""

    def __init__(self, chains: int):
        self._chains = chains

    def run_block(
        self,
        target: Target,
        start: Any,
        dynamics: Dynamics,
        *,
        steps: int,
        rng: np.random.Generator,
    ) -> Block:
        """See `pyro_dft.recipe.engine.Engine.run_block`."""
        # Of separate modes there are few, and each number of them would be another program.
        together = pool.inside() and len(dynamics.step_size) == self._chains
        if not isinstance(target, MemberTarget) or not together:
            return super().run_block(target, start, dynamics, steps=steps, rng=rng)
        known = isinstance(start, Position)
        if known:
            position = start
        else:
            x = np.asarray(start)
            position = Position(x, np.full(x.shape[:2], -np.inf, x.dtype), np.zeros_like(x))  # type: ignore[arg-type]
        words = rng.integers(2**32, size=2, dtype=np.uint32)
        key = (target.stack, "block", position.x.shape, tuple(dynamics.scale.shape), known, steps)
        block, nonfinite = pool.ask(key, _Blocks(target.row, position, dynamics, words))
        particles = position.x.shape[0] * position.x.shape[1]
        target.count(particles * (steps * dynamics.leapfrog_steps + (not known)), nonfinite)
        return block


@partial(jax.jit, static_argnums=0, compiler_options=BRIEFLY)
def _scores(spec: TargetSpec, shared: Any, own: Any, x: Any) -> Any:
    return jax.vmap(lambda leaves, points: spec.evaluate(points, {"full": (shared, leaves)}))(own, x)


@partial(jax.jit, static_argnums=0, compiler_options=BRIEFLY)
def _blocks(
    spec: TargetSpec, shared: Any, own: Any, position: Any, dynamics: Dynamics, words: Any, passes: Any
) -> Any:
    """`passes` are the first and the number of transitions, as in `pyro_dft.engine_jax.chains.block`."""

    def one(leaves: Any, at: Any, how: Any, word: Any) -> Any:
        whole = {"full": (shared, leaves)}
        return one_block.__wrapped__(spec, whole, at, how, word, *passes)  # type: ignore[attr-defined]

    return jax.vmap(one)(own, position, dynamics, words)


class Stack:
    """Data sets of one shape, and the programs that serve all of them.

    Args:
        spec: Of their targets, whose data are ``{"full": (shared, leaves)}``.
        shared: Arrays that the model reads for each of them.
        data: The leaves of each data set.
    """

    def __init__(self, spec: TargetSpec, shared: Any, data: Sequence[Any]):
        self.spec, self.shared = spec, shared
        self.data = _stacked(data)
        self._count = len(data)

    def with_data(self, data: Sequence[Any]) -> Stack:
        """The same with other data sets; calls stay of the same size, whatever their number."""
        other = copy.copy(self)
        other.data = _stacked(data)
        return other

    def _of(self, index: np.ndarray) -> list[Any]:
        """The data of some posteriors. Outside of the programs, so that these serve stacks of any number of data sets."""
        if isinstance(self.data[0] if self.data else None, np.ndarray):
            return [leaf[index] for leaf in self.data]
        return _taken(self.data, index)

    def at_once(self, points: int) -> int:
        """Posteriors in one compiled call, a power of two, where each is evaluated at so many points."""
        cpu = jax.default_backend() == "cpu"
        budget = CPU_ELEMENTS if cpu else ACCELERATOR_ELEMENTS
        fitting = max(1, budget // (points * max(1, self.spec.size.elements)))
        return 1 << (min(fitting, MOST, max(1, self._count)).bit_length() - 1)

    def full(self, kind: str, key: Any) -> int:
        """Requests of one kind that fill up a call."""
        if kind == "scores":
            return 1
        (chains, count, _), *_ = key
        return self.at_once(chains * count)

    def answer(self, kind: str, key: Any, payloads: list[Any]) -> list[Any]:
        """Answers to requests of one kind: see `MemberTarget.evaluate` and `StackedEngine.run_block`."""
        return self._scored(payloads) if kind == "scores" else self._moved(key, payloads)

    def _scored(self, payloads: list[tuple[int, np.ndarray]]) -> list[Any]:
        pieces = [
            (row, points[start : start + ROWS])
            for row, points in payloads
            for start in range(0, len(points), ROWS)
        ]
        index = np.array([row for row, _ in pieces])
        x = np.stack([_filled(points, ROWS) for _, points in pieces])
        parts = []
        for start, size in spans(len(pieces), self.at_once(ROWS)):
            some = _places(start, size, len(pieces))
            found = _scores(self.spec, self.shared, self._of(index[some]), x[some])
            parts.append([np.asarray(value)[: len(pieces) - start] for value in found])
        values, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        out, at = [], 0
        for _, points in payloads:
            count = -(-len(points) // ROWS)
            own = slice(at, at + count)
            flat = scores[own].reshape(-1, scores.shape[-1])[: len(points)]
            out.append((values[own].reshape(-1)[: len(points)], flat))
            at += count
        return out

    def _moved(self, key: Any, payloads: list[_Blocks]) -> list[Any]:
        shape, _, known, steps = key
        # Those of about as many leapfrogs together: each call makes as many as one of them asks for.
        order = sorted(range(len(payloads)), key=lambda i: payloads[i].dynamics.leapfrog_steps)
        out: list[Any] = [None] * len(payloads)
        for start, size in spans(len(payloads), self.at_once(shape[0] * shape[1])):
            places = [order[i] for i in _places(start, size, len(payloads))]
            some = [payloads[i] for i in places]
            position = jax.tree.map(
                lambda *parts: np.stack([np.asarray(p) for p in parts]), *[b.position for b in some]
            )
            row, words = (np.stack([getattr(b, name) for b in some]) for name in ("row", "words"))
            columns = map(np.stack, zip(*(b.dynamics for b in some), strict=True))
            scale, step_size, leapfrogs, tune, goal = columns
            dtype = position.x.dtype
            dynamics = Dynamics(scale, step_size, leapfrogs, tune.astype(dtype), goal.astype(dtype))
            found = _blocks(
                self.spec, self.shared, self._of(row), position, dynamics, words, (int(known), steps)
            )
            for i, block in zip(places, _unpacked(found, steps, len(payloads) - start), strict=False):
                out[i] = block
        return out


@jax.jit
def _taken(data: list[Any], index: Any) -> list[Any]:
    return [leaf[index] for leaf in data]


def _stacked(data: Sequence[Any]) -> list[Any]:
    """The leaves of all data sets: on the host, where that is where programs run."""
    leaves = [np.stack([np.asarray(own[k]) for own in data]) for k in range(len(data[0]))]
    return leaves if jax.default_backend() == "cpu" else [jnp.asarray(leaf) for leaf in leaves]


def _places(start: int, size: int, count: int) -> np.ndarray:
    """Indices of one call; the last ones are repeated to fill it up."""
    return np.minimum(np.arange(start, start + size), count - 1)


def _filled(points: np.ndarray, rows: int) -> np.ndarray:
    return points[np.minimum(np.arange(rows), len(points) - 1)]


def _unpacked(found: Any, steps: int, count: int) -> list[tuple[Block, int]]:
    """The blocks of the first posteriors of a call, and how many of the evaluations of each were not finite."""
    host = jax.tree.map(np.asarray, found)
    taken = slice(1, steps + 1)
    out = []
    for i in range(min(count, len(host.log_step))):

        def recorded(value: np.ndarray, i: int = i) -> np.ndarray:
            return np.moveaxis(value[i, taken], 0, 2)

        position = jax.tree.map(lambda a, i=i: a[i], host.position)
        block = Block(
            position, recorded(host.x), recorded(host.log_q), recorded(host.score), recorded(host.probability),
            recorded(host.moved), recorded(host.diverged), recorded(host.kinetic), np.exp(host.log_step[i]),
        )  # fmt: skip
        out.append((block, int(host.nonfinite[i])))
    return out
