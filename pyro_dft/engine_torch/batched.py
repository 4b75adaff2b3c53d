"""One potential on many points: by `torch.func.vmap` where that works, else row by row, with a warning of what that costs.

Batch sizes that occur again are traced once into flat graphs. Scores stay differentiable, so a Hessian-vector product is a
backward pass.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from pyro_dft import messages
from pyro_dft.engine_torch.agreement import ALIKE, FEW, Found, agree, differing
from pyro_dft.engine_torch.branches import Disagreement, Vmapped, joined
from pyro_dft.engine_torch.cost import Cost, cost_of
from pyro_dft.engine_torch.failures import CHECKS, ERRORS, Failures, culprit
from pyro_dft.engine_torch.garbage import collected
from pyro_dft.engine_torch.graphs import Graphs, Way
from pyro_dft.engine_torch.random_state import unmoved
from pyro_dft.engine_torch.recompute import recomputed
from pyro_dft.errors import ModelError, PerformanceWarning
from pyro_dft.recipe.memory import CPU_BYTES, LEAST_POINTS, MOST_POINTS

Potential = Callable[[Tensor], Tensor]
# A batch size is traced when it comes up for the first figure's time; for the second's where a potential has more tensor
# operations than `TRACE_LIMIT`, as a trace takes seconds then, and never where it has more than the last figure.
SOON, LATE = 4, 48
TRACE_LIMIT, MOST_OPERATIONS = 2000, 40_000
# Number of points, between those of a probe, that a potential which asks for values is tried at: most must agree with others.
_CROWD = 32
# A batch size is traced again, twice at most, once this many times its number of points took a way that has no graph.
_MISSES, _TRACES = 16, 3
# What vmap says where a draw that is to be the same for all points has parameters that are not.
_OWN_DRAWS = "same randomness with a batched tensor"


class BatchedPotential:
    """Evaluates (log density, score) of one potential on (n, d) points.

    Args:
        potential: Of one point (d,).
        context: Gives a context manager to hold around each evaluation.
        trace: Whether batch sizes that occur again may be traced.
        randomness: "same" for all points of a batch or "different", as for `torch.func.vmap`.
        asks: Whether it is known to ask for values of its point (see `branches`); `probe` finds out.
    """

    def __init__(
        self,
        potential: Potential,
        context: Callable[[], AbstractContextManager],
        trace: bool,
        randomness: str,
        asks: bool = False,
    ):
        self.potential = potential
        self.context = context
        self.trace = trace
        self.vectorised = True
        self.cost: Cost | None = None
        self.chunk = MOST_POINTS
        self.failures = Failures(potential, context)
        self._vmapped = Vmapped(potential, randomness)
        self._vmapped.asks = asks
        self._graphs: dict[int, Graphs | None] = {}
        self._seen: dict[int, int] = {}
        self._patience = SOON
        self._traces: dict[int, int] = {}
        self._second_by_rows = False
        self._left, self._freed = 0, 0
        self._ways: list[Way] = []  # of the last batch that was not traced

    @property
    def asks(self) -> bool:
        """Whether the potential asks for values of its point, as in ``if x > 0``; see `pyro_dft.engine_torch.branches`."""
        return self._vmapped.asks

    def like(self, other: BatchedPotential) -> None:
        """Is batched from now on as another one, of the same model."""
        self.vectorised, self._vmapped.asks = other.vectorised, other.asks
        if other._vmapped.randomness == "different":
            self._vmapped.randomness = "different"
        self._second_by_rows, self._vmapped.in_place = other._second_by_rows, other._vmapped.in_place

    def probe(self, x: Tensor) -> None:
        """Finds out, on a few points (n, d), whether the potential can be batched and is worth tracing.

        Raises:
            ModelError: the potential fails at single points too, or does not return one number.
        """
        start = time.perf_counter()
        expected = self._rows(x, errors=True)
        seconds = (time.perf_counter() - start) / len(x)
        reason, given = "", self._vmapped.randomness
        own_draws = False  # as of a latent site that Pyro integrates out, and that is drawn all the same
        for asks, randomness in ((False, given), (True, given), (False, "different"), (True, "different")):
            if randomness != given and not own_draws:
                break
            self._vmapped.asks, self._vmapped.randomness = asks, randomness
            try:
                with warnings.catch_warnings():
                    # vmap's own advice on slow batching rules is not for our users.
                    warnings.filterwarnings("ignore", category=UserWarning, message=".*performance drop.*")
                    self.measure(x)
                    if self.asks and self._is_alone(x):
                        break
                    same = agree(x, self._in_chunks(x), expected, self._in_chunks, self._rows)
            except Exception as error:  # whatever the model does that vmap does not support
                reason, own_draws = culprit(error), own_draws or _OWN_DRAWS in str(error)
                continue
            if same:
                self._find_second(x)
                return
            reason = "batched values differ from single ones"
            break
        self._vmapped.randomness = given
        self._vmapped.asks = self.vectorised = False
        warnings.warn(messages.point_by_point(reason, seconds), PerformanceWarning, stacklevel=2)

    def _in_chunks(self, x: Tensor) -> Found:
        g, u = zip(*(self._eager(chunk) for chunk in x.split(self.chunk)), strict=True)
        return torch.cat(g), torch.cat(u)

    def _find_second(self, x: Tensor) -> None:
        """Finds out how batched scores can be differentiated: as they are, without writing in place, or row by row."""
        for self._vmapped.in_place in (True, False):
            moving = x[:1].detach().requires_grad_()
            try:
                with unmoved(x.device), torch.enable_grad():
                    score = self._eager(moving)[0]
                    if score.requires_grad:
                        torch.autograd.grad(score.sum(), moving, allow_unused=True)
                return
            except Exception:  # "modified by an inplace operation", for one
                continue
        self._vmapped.in_place = self._second_by_rows = True

    def _is_alone(self, x: Tensor) -> bool:
        """Whether points differ in their answers so much that hardly two can be evaluated together, as with ``float(x)``."""
        if len(x) == 1:
            x = torch.cat([x, x + torch.cos(torch.arange(x.shape[1], dtype=x.dtype, device=x.device))])
        step = torch.linspace(0.0, 1.0, -(-_CROWD // (len(x) - 1)), dtype=x.dtype, device=x.device)[
            :, None, None
        ]
        crowd = (x[:-1] + step * (x[1:] - x[:-1])).reshape(-1, x.shape[1])[:_CROWD]
        try:
            with self.context():
                self._vmapped(crowd)
            return False
        except Disagreement as parted:
            if int(parted.group.max()) + 1 > len(crowd) / 2:
                return True
        except CHECKS:
            pass
        self._eager(crowd)
        return sum(count for count, _ in self._ways if count > 1) < len(crowd) / 2

    def measure(self, x: Tensor) -> None:
        """Finds out, at one point or two of (n, d), how many are evaluated at once, and whether to trace that."""
        points = x.detach()[: 1 if self.asks else None]

        def evaluate(n: int) -> None:
            with self.context():
                self._vmapped(points[torch.arange(n, device=points.device) % len(points)])

        try:
            self.cost = cost_of(evaluate, x.device)
        except (Exception, Disagreement):  # the evaluation itself says why, if it was that
            self.cost, self.chunk = Cost(), LEAST_POINTS
            return
        self.chunk = self.cost.size.at_once(x.device.type == "cpu")
        self.trace = self.trace and self.cost.operations < MOST_OPERATIONS
        self._patience = SOON if self.cost.operations < TRACE_LIMIT else LATE

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, d) points -> log density (n,), score (n, d); differentiable where gradients are enabled."""
        if self.cost is None and self.vectorised:
            self.measure(x)
        again = self._keeps_too_much(x)
        parts = []
        for chunk in x.split(self.chunk):
            gradient, value = recomputed(self._one_chunk, chunk) if again else self._one_chunk(chunk)
            parts.append((-value, -gradient))
        if len(parts) == 1:
            return parts[0]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def _keeps_too_much(self, x: Tensor) -> bool:
        # On a GPU the backward pass has a thread of its own, from which models cannot be run.
        kept = torch.is_grad_enabled() and x.requires_grad and x.device.type == "cpu" and len(x) > self.chunk
        return kept and self.cost is not None and self.cost.size.keeps_too_much(len(x))

    def _one_chunk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.vectorised or (self._second_by_rows and x.requires_grad and torch.is_grad_enabled()):
            return self._rows(x)
        try:
            return self._batched(x)
        except torch.linalg.LinAlgError:
            return self._halves(x)

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One singular matrix makes linear algebra fail for a whole batch: halving finds its point, which gets NaN."""
        if len(x) == 1:
            return torch.full_like(x, torch.nan), x.new_full((1,), torch.nan)
        parts = []
        for half in x.split((len(x) + 1) // 2):
            try:
                parts.append(self._eager(half))
            except torch.linalg.LinAlgError:
                parts.append(self._halves(half))
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def _batched(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.trace:
            return self._eager(x)
        n = len(x)
        if n not in self._graphs:
            self._seen[n] = self._seen.get(n, 0) + 1
            # A fit needs few sizes.
            if self._seen[n] < self._patience or len(self._graphs) >= 8:
                return self._eager(x)
            self._graphs[n] = self._traced(x)
            self._traces[n] = self._traces.get(n, 0) + 1
        graphs = self._graphs[n]
        if graphs is None or (
            torch.is_grad_enabled() and x.requires_grad and not self._goes_twice(graphs, x)
        ):
            return self._eager(x)
        results = graphs(x)
        if graphs.missed > _MISSES * n and self._traces[n] < _TRACES:
            del self._graphs[n]
        return results

    def _goes_twice(self, graphs: Graphs, x: Tensor) -> bool:
        """Whether the scores of graphs have the right derivative, which tracing can lose for some operations."""
        if graphs.twice is None:
            products: list[Tensor] = []
            for function in (self._eager, graphs):
                moving = x.detach().requires_grad_()
                with unmoved(x.device):
                    score = function(moving)[0]
                    product = None
                    if score.requires_grad:
                        (product,) = torch.autograd.grad(score.sum(), moving, allow_unused=True)
                products.append(torch.zeros_like(x) if product is None else product)
            rounding = 1e-2 * (1 + float(torch.nan_to_num(products[0]).abs().max()))
            graphs.twice = torch.allclose(products[0], products[1], rtol=1e-2, atol=rounding, equal_nan=True)
        return graphs.twice

    def _eager(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._ways = []
        return self._grouped(x)

    def _grouped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All points at once or, where they answer differently, those that agree."""
        try:
            with self.context():
                result = self._vmapped(x)
        except Disagreement as parted:
            return self._parted(x, parted.group)
        except CHECKS:
            # The points gave the same answers, so that each raises this error by itself.
            if not self.asks:
                raise
            return self._rows(x)
        if self._vmapped.last is not None:
            self._ways.append((len(x), self._vmapped.last.given))
        # A run of a model leaves its tensors in circles of references, and Python counts objects, not bytes.
        self._left += 0 if self.cost is None else len(x) * self.cost.size.total_bytes
        if self._left > CPU_BYTES:
            self._left = 0
            self._freed = collected(self._freed)
        return result

    def _parted(self, x: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        if self._vmapped.randomness == "different":
            # Answers may depend on the minibatch: to draw again until points agree would prefer some minibatches.
            return self._rows(x)
        parts = []
        for number in range(int(group.max()) + 1):
            index = (group == number).nonzero()[:, 0]
            parts.append((index, self._grouped(x[index]) if len(index) > 1 else self._rows(x[index])))
        return joined(parts)

    def _traced(self, x: Tensor) -> Graphs | None:
        x = x.detach()
        # All questions must be noted, whether their answers differ between points or not.
        asks, self._vmapped.asks = self.asks, True
        # A trace must not use up random numbers: a resumed training makes it at another step.
        try:
            with self.context(), torch.no_grad():
                with unmoved(x.device):
                    expected = self._eager(x)
                graphs = Graphs(self._vmapped, x, self._ways, self._eager)
                # Random points must keep their places. Others are tried in another order, which shows what a graph took for
                # constant.
                turned = self._vmapped.randomness == "same"
                with unmoved(x.device):
                    found = graphs(x.flip(0) if turned else x)
                found = (found[0].flip(0), found[1].flip(0)) if turned else found
            graphs.missed = 0
            same = differing(found, expected, ALIKE) <= FEW
        except Exception:  # tracing is an optimisation: after a failure, evaluation goes on without
            same = False
        finally:
            self._vmapped.asks = asks
        if not same:
            self.trace = False
            return None
        return graphs

    def _rows(self, x: Tensor, errors: bool = False) -> tuple[Tensor, Tensor]:
        """Row by row, with plain autograd (Python branches on latent values work)."""
        higher = torch.is_grad_enabled() and x.requires_grad
        gradients, values = [], []
        with self.context(), torch.enable_grad():
            for row in x:
                point = row if higher else row.detach().requires_grad_()
                self.failures.evaluations += 1
                try:
                    value, gradient = self._row(point, higher)
                    self.failures.worked(point)
                except ModelError:
                    raise
                except ERRORS as error:
                    if errors:
                        raise
                    self.failures.check(error)
                    value, gradient = point.new_tensor(float("nan")), torch.full_like(point, float("nan"))
                values.append(value.reshape(()) if higher else value.detach().reshape(()))
                gradients.append(gradient)
        return torch.stack(gradients), torch.stack(values)

    def _row(self, point: Tensor, higher: bool) -> tuple[Tensor, Tensor]:
        value = self.potential(point)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ModelError(
                f"the potential must return one number, not {getattr(value, 'shape', type(value))}"
            )
        (gradient,) = torch.autograd.grad(value.reshape(()), point, create_graph=higher, allow_unused=True)
        return value, torch.zeros_like(point) if gradient is None else gradient
