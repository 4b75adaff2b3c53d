"""How many points are evaluated together: by the sizes of what one of them takes, never by trying, and never by a clock.

A clock would give other batch sizes, and so other last digits and other draws for one seed, on a machine that is busy; and
a trial of a large batch is what a memory is too small for.
"""

from __future__ import annotations

from dataclasses import dataclass

# Points at once, at most: more spread the cost of a call no better.
MOST_POINTS = 2048
# Elements of the largest tensor of a batch: on a CPU larger ones only miss the cache. Eight points at least, as each call
# costs something: two to three times faster than 128 points at once with 20,000 and with 74,000 rows.
CACHED_ELEMENTS, LEAST_POINTS = 2**19, 8
# The same within a compiled loop, whose rounds cost next to nothing, so that all arrays of a round may stay in the cache: half
# the time of the sizes above with 10,000 rows, a tenth less with 100,000.
COMPILED_ELEMENTS, COMPILED_POINTS = 2**16, 4
# Bytes that an evaluation of a batch may fill, if nothing of it were freed before its end.
CPU_BYTES, ACCELERATOR_BYTES = 2**28, 2**31


@dataclass(frozen=True)
class PointSize:
    """What the evaluation of a potential and its gradient takes for each point.

    Attributes:
        elements: Numbers in the largest tensor.
        total_bytes: Of all tensors together, as if none were freed.
        loops: Whether the potential has loops of its own: their rounds are short, and cost for one point as much as for many.
        adaptive: Whether the number of rounds depends on the point, as with solvers of differential equations that choose their
            steps.
    """

    elements: int = 1
    total_bytes: int = 1
    loops: bool = False
    adaptive: bool = False

    def at_once(self, cpu: bool = True, compiled: bool = False) -> int:
        """Points to evaluate together, at least one.

        Args:
            cpu: Whether it runs on a CPU, whose cache is small.
            compiled: Whether a compiled loop goes from batch to batch.
        """
        affordable = self.affordable(cpu)
        if not cpu:
            return min(MOST_POINTS, affordable)
        elements, least = CACHED_ELEMENTS, LEAST_POINTS
        if compiled and not self.loops:
            elements, least = COMPILED_ELEMENTS, COMPILED_POINTS
        cached = max(least, elements // max(1, self.elements))
        return min(MOST_POINTS, cached, affordable)

    def affordable(self, cpu: bool = True) -> int:
        """Points that memory allows for, at least one, whatever is fast."""
        return max(1, self.budget(cpu) // max(1, self.total_bytes))

    def shared(self, devices: int) -> PointSize:
        """What each of some devices takes that share the rows of the data."""
        return PointSize(-(-self.elements // devices), -(-self.total_bytes // devices), self.loops)

    def keeps_too_much(self, points: int, cpu: bool = True) -> bool:
        """Whether what a backward pass needs of so many points should be computed again rather than kept."""
        return points * self.total_bytes > self.budget(cpu)

    @staticmethod
    def budget(cpu: bool) -> int:
        """Bytes for one batch."""
        return CPU_BYTES if cpu else ACCELERATOR_BYTES
