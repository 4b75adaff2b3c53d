"""One model over a stack of data sets: evaluations and transitions of many posteriors together."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_dft.engine_torch.batched import TRACE_LIMIT, BatchedPotential
from pyro_dft.engine_torch.chains import felt_acceptance
from pyro_dft.engine_torch.cost import Cost, cost_of
from pyro_dft.engine_torch.engine import TorchEngine
from pyro_dft.engine_torch.graphs import traced
from pyro_dft.engine_torch.target import Target
from pyro_dft.many import pool
from pyro_dft.many.calls import spans
from pyro_dft.recipe.chains import Block, Dynamics
from pyro_dft.recipe.constants import MAX_ENERGY_ERROR
from pyro_dft.roots import coloured, projected, spread

# U(x, leaves of the data) of one point (d,).
Potential = Callable[..., Tensor]
# Points of one posterior in an evaluation.
ROWS = 32
# Elements of the largest tensor of a call on a CPU, and on an accelerator.
CPU_ELEMENTS, ACCELERATOR_ELEMENTS = 2**19, 2**26
# Posteriors, or pieces of them, in one call at most.
MOST = 128


class MemberTarget(Target):
    """The target of one data set of a stack.

    Attributes:
        stack: The stack.
        row: Its place there.
    """

    stack: Stack
    row: int

    @classmethod
    def of(
        cls, template: Target, stack: Stack, row: int, potential: Callable[[Tensor], Tensor]
    ) -> MemberTarget:
        """From the target of another data set of the same shapes."""
        own = cls.__new__(cls)
        own.__dict__.update(vars(template))
        own.stack, own.row = stack, row
        own._full = BatchedPotential(potential, template._context, False, "same")
        own._full.like(template._full)
        own.gradient_evaluations = own.data_rows = own.nonfinite_evaluations = 0
        return own

    def evaluate(self, x: Tensor, *, minibatch: bool = False) -> tuple[Tensor, Tensor]:
        """See `Target.evaluate`; together with others of the stack, inside a pool."""
        if not pool.inside():
            return super().evaluate(x, minibatch=minibatch)
        flat = x.detach().reshape(-1, self.dim).to(self.dtype)
        self.count(len(flat))
        log_density, score = self._finite(*pool.ask((self.stack, "scores"), (self.row, flat)))
        return log_density.reshape(x.shape[:-1]).to(x.dtype), score.reshape(x.shape).to(x.dtype)

    @property
    def vectorised(self) -> bool:
        """Always: other models are no stacks."""
        return True


@dataclass(frozen=True)
class _Blocks:
    """What a call of `run_block` asks for."""

    target: MemberTarget
    position: tuple[Tensor, Tensor, Tensor]
    dynamics: Dynamics
    rng: torch.Generator


class StackedEngine(TorchEngine):
    """The engine of a member of a stack: blocks of transitions are run together with those of others."""

    def run_block(
        self,
        target: Target,
        start: Any,
        dynamics: Dynamics,
        *,
        steps: int,
        rng: torch.Generator,
    ) -> Block:
        """See `pyro_dft.recipe.engine.Engine.run_block`."""
        if not isinstance(target, MemberTarget) or not pool.inside():
            return super().run_block(target, start, dynamics, steps=steps, rng=rng)
        position = start if isinstance(start, tuple) else (start, *target.evaluate(start))
        key = (target.stack, "block", tuple(position[0].shape), tuple(dynamics.scale.shape), steps)
        return pool.ask(key, _Blocks(target, position, dynamics, rng))

    def thread_count(self, problem: Any, batch_size: int) -> int:
        """Nothing is evaluated by a member itself."""
        return 1

    def threads(self, count: int) -> AbstractContextManager[None]:
        """Does nothing: members take turns."""
        return contextlib.nullcontext()


class Stack:
    """Data sets of one shape, and one potential that serves all of them.

    Args:
        potential: Of one point and the leaves of one data set.
        dim: d.
        data: The leaves of each data set.
        context: Gives a context manager to hold around each evaluation.
        trace: Whether batches are traced into a graph.
        point: A point (d,) to look at.

    Raises:
        Exception: whatever vmap says of the potential.
    """

    def __init__(
        self,
        potential: Potential,
        dim: int,
        data: Sequence[Sequence[Tensor]],
        context: Callable[[], AbstractContextManager[None]],
        trace: bool,
        point: Tensor,
    ):
        self.dim, self.context, self.device = dim, context, point.device
        self.data = [torch.stack([own[k] for own in data]) for k in range(len(data[0]))]
        self._count, self._graphs = len(data), dict[tuple[int, ...], Any]()
        none = [None] * len(self.data)
        both = torch.func.grad_and_value(potential)
        points = torch.func.vmap(both, in_dims=(0, *none), randomness="same")
        self._batched = torch.func.vmap(points, randomness="same")
        x = point.expand(1, 2, dim)
        first = [leaf[:1] for leaf in self.data]
        with self.context():
            found = self._batched(x, *first)  # whether it can be done

            def evaluate(n: int) -> None:
                self._batched(point.expand(1, n, dim), *first)

            try:
                self.cost = cost_of(evaluate, point.device)
            except Exception:  # the evaluation itself works
                self.cost = Cost()
        self._trace = trace and self.cost.operations < TRACE_LIMIT
        if found[1].shape != (1, 2):
            raise ValueError("the potential must return one number")

    def with_data(self, data: Sequence[Sequence[Tensor]]) -> Stack:
        """The same with other data sets; graphs and the size of calls stay."""
        other = copy.copy(self)
        other.data = [torch.stack([own[k] for own in data]) for k in range(len(data[0]))]
        return other

    def at_once(self, points: int) -> int:
        """Posteriors in one call, a power of two, where each is evaluated at so many points."""
        budget = CPU_ELEMENTS if self.device.type == "cpu" else ACCELERATOR_ELEMENTS
        fitting = max(1, budget // (points * max(1, self.cost.size.elements)))
        return 1 << (min(fitting, MOST, max(1, self._count)).bit_length() - 1)

    def full(self, kind: str, key: Any) -> int:
        """Requests of one kind that fill up a call."""
        if kind == "scores":
            return 1
        (chains, count, _), *_ = key
        return self.at_once(chains * count)

    def answer(self, kind: str, key: Any, payloads: list[Any]) -> list[Any]:
        """Answers to requests of one kind: see `MemberTarget.evaluate` and `StackedEngine.run_block`."""
        with self.context(), torch.no_grad():
            return self._scored(payloads) if kind == "scores" else self._moved(key, payloads)

    def _evaluate(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Log densities (S, n) and scores (S, n, d) at points (S, n, d) of some of the posteriors, (S,)."""
        leaves = [leaf[rows] for leaf in self.data]
        shape = tuple(x.shape)
        if self._trace and shape not in self._graphs:
            self._graphs[shape] = self._graph(x, leaves)
        function = self._graphs.get(shape) or self._batched
        gradient, value = function(x, *leaves)
        return -value.detach(), -gradient.detach()

    def _graph(self, x: Tensor, leaves: list[Tensor]) -> Any:
        """The same as a flat graph, where that gives the same; else None."""
        try:
            graph = traced(self._batched, x, *leaves)
            for found, expected in zip(graph(x, *leaves), self._batched(x, *leaves), strict=True):
                if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True):
                    return None
        except Exception:  # tracing is an optimisation
            return None
        return graph

    def _scored(self, payloads: list[tuple[int, Tensor]]) -> list[Any]:
        pieces = [
            (row, points[start : start + ROWS])
            for row, points in payloads
            for start in range(0, len(points), ROWS)
        ]
        rows = torch.tensor([row for row, _ in pieces], device=self.device)
        x = torch.stack([points[_places(0, ROWS, len(points))] for _, points in pieces])
        parts = []
        for start, size in spans(len(pieces), self.at_once(ROWS)):
            some = _places(start, size, len(pieces))
            found = self._evaluate(x[some], rows[some])
            parts.append([value[: len(pieces) - start] for value in found])
        values, scores = (torch.cat(part) for part in zip(*parts, strict=True))
        out, at = [], 0
        for _, points in payloads:
            own = slice(at, at + -(-len(points) // ROWS))
            at = own.stop
            flat = scores[own].reshape(-1, self.dim)[: len(points)]
            out.append((values[own].reshape(-1)[: len(points)], flat))
        return out

    def _moved(self, key: Any, payloads: list[_Blocks]) -> list[Block]:
        shape, _, steps = key
        # Those of about as many leapfrogs together: each call makes as many as one of them asks for.
        order = sorted(range(len(payloads)), key=lambda i: payloads[i].dynamics.leapfrog_steps)
        out: list[Any] = [None] * len(payloads)
        for start, size in spans(len(payloads), self.at_once(shape[0] * shape[1])):
            places = [order[int(i)] for i in _places(start, size, len(payloads))]
            mine = min(len(payloads) - start, size)
            for i, block in zip(places, self._run([payloads[i] for i in places], mine, steps), strict=False):
                out[i] = block
        return out

    def _run(self, asked: list[_Blocks], count: int, steps: int) -> list[Block]:
        """Some transitions of the first so many; the others fill up the call, and draw no random numbers of their own."""
        rows = torch.tensor([own.target.row for own in asked], device=self.device)
        x, log_q, score = (torch.stack([own.position[k] for own in asked]) for k in range(3))
        how = [own.dynamics for own in asked]
        scale = torch.stack([own.scale for own in how])
        log_step = torch.stack([own.step_size for own in how]).log()
        goal = x.new_tensor([own.acceptance for own in how])[:, None]
        rate = x.new_tensor([own.tune for own in how])[:, None]
        leapfrogs = [own.leapfrog_steps for own in how]
        recorded: list[list[Tensor]] = [[] for _ in range(7)]
        nonfinite = torch.zeros(len(asked), dtype=torch.long, device=self.device)
        for k in range(steps):
            noise = self._noise(asked, count, x)
            moved = self._transition(x, log_q, score, scale, log_step.exp(), noise, rows, leapfrogs)
            x, log_q, score, take, probability, error, kinetic, bad = moved
            nonfinite += bad
            felt = torch.stack(
                [
                    felt_acceptance(p, e, own.acceptance)
                    for p, e, own in zip(probability, error, how, strict=True)
                ]
            )
            log_step = log_step + rate / (1.3 + 0.3 * k) * (felt - goal)
            new = (x, log_q, score, probability, take, error > MAX_ENERGY_ERROR, kinetic)
            for values, value in zip(recorded, new, strict=True):
                values.append(value)
        whole = [torch.stack(values, 3) for values in recorded]
        for i, own in enumerate(asked[:count]):
            own.target.count(x.shape[1] * x.shape[2] * steps * own.dynamics.leapfrog_steps)
            own.target.nonfinite_evaluations += int(nonfinite[i])
        names = ("x", "log_density", "score", "acceptance", "moved", "diverged", "kinetic")
        return [
            Block(
                position=(x[i], log_q[i], score[i]),
                step_size=log_step[i].exp(),
                **{name: value[i] for name, value in zip(names, whole, strict=True)},
            )
            for i in range(count)
        ]

    @staticmethod
    def _noise(asked: list[_Blocks], count: int, x: Tensor) -> list[Tensor]:
        """As one posterior by itself draws it, from its own generator: the same whoever else is there."""
        shape, parts = x.shape[1:], []
        for own in asked[:count]:
            like: dict[str, Any] = {"generator": own.rng, "dtype": x.dtype, "device": x.device}
            parts.append(
                [torch.rand(shape[:2], **like), torch.randn(shape, **like), torch.rand(shape[:2], **like)]
            )
        parts += parts[:1] * (len(asked) - count)
        return [torch.stack([part[k] for part in parts]) for k in range(3)]

    def _transition(
        self, x: Tensor, log_q: Tensor, score: Tensor, scale: Tensor, step_size: Tensor, noise: list[Tensor],
        rows: Tensor, leapfrogs: list[int],
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """As `pyro_dft.engine_torch.refine.Kernel.transition`, of points (S, C, n, d)."""
        stretch, p, accept = noise
        s, c, n, d = x.shape
        root = scale.reshape(s * c, *scale.shape[2:])

        def turned(by: Callable[[Tensor, Tensor], Tensor], vectors: Tensor) -> Tensor:
            return by(root, vectors.reshape(s * c, n, d)).reshape(vectors.shape)

        eps = (step_size[..., None] * (0.7 + 0.5 * stretch))[..., None]
        y, log_y, slope, total = x, log_q, score, torch.zeros_like(p)
        velocity = turned(coloured, p) + 0.5 * eps * turned(spread, score)
        bad = torch.zeros(s, dtype=torch.long, device=x.device)
        most, counts = max(leapfrogs), torch.tensor(leapfrogs, device=x.device)[:, None, None, None]
        for k in range(most):
            before = (total, y, log_y, slope)
            y = y + eps * velocity
            value, slope = self._evaluate(y.reshape(s, c * n, d), rows)
            good = torch.isfinite(value) & torch.isfinite(slope).all(-1)
            log_y = torch.where(good, value, -torch.inf).reshape(s, c, n)
            slope = torch.where(good[..., None], slope, 0.0).reshape(x.shape)
            velocity, total = velocity + eps * turned(spread, slope), total + slope
            on = k < counts
            bad = bad + (~good & on[:, 0, :, 0]).sum(1)
            if min(leapfrogs) <= k:  # some have arrived
                total, y, slope = (
                    torch.where(on, a, b)
                    for a, b in zip((total, y, slope), (before[0], before[1], before[3]), strict=True)
                )
                log_y = torch.where(on[..., 0], log_y, before[2])
        momentum = p + eps * turned(projected, total + 0.5 * (score - slope))
        at_first, at_last = 0.5 * p.square().sum(-1), 0.5 * momentum.square().sum(-1)
        error = (log_q - at_first) - (log_y - at_last)
        error = torch.where(torch.isfinite(log_y) & ~torch.isnan(error), error, torch.inf)
        error = torch.where(torch.isinf(log_q) & torch.isfinite(log_y), -torch.inf, error)
        probability = (-error).clamp(max=0.0).exp()
        take = accept < probability
        return (
            torch.where(take[..., None], y, x), torch.where(take, log_y, log_q), torch.where(take[..., None], slope, score),
            take, probability, error, torch.where(take, at_last, at_first), bad,
        )  # fmt: skip


def _places(start: int, size: int, count: int) -> Tensor:
    """Indices of one call; the last ones are repeated to fill it up."""
    return torch.arange(start, start + size).clamp(max=count - 1)
