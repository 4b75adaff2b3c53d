"""What a task costs: CPU seconds of this process, and the share of its time that jax spends tracing and compiling."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Tracing to a jaxpr, lowering and XLA's own compilation. Tracing of an inner function is inside that of the outer one
# and counted with it, so that a share can come out a little too large.
_COMPILE_EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
_compiled = {"seconds": 0.0, "listening": 0.0}


@dataclass(frozen=True)
class Cost:
    """Costs of a task, in seconds.

    Attributes:
        cpu: Of this process, all threads.
        wall: On the clock.
        compiling: Of `wall`, what jax spent tracing and compiling.
    """

    cpu: float
    wall: float
    compiling: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.cpu + other.cpu, self.wall + other.wall, self.compiling + other.compiling)

    def to_json(self, framework: str) -> dict[str, float | None]:
        """The part that a row keeps; torch does not compile here."""
        share = min(1.0, self.compiling / self.wall) if framework == "numpyro" else None
        return {"seconds": self.cpu, "compile_share": share}


def timed(task: Callable[[], Any]) -> tuple[Any, Cost]:
    """What a task returns, and its cost."""
    _listen()
    cpu, wall, compiling = time.process_time(), time.perf_counter(), _compiled["seconds"]
    result = task()
    return result, Cost(
        time.process_time() - cpu, time.perf_counter() - wall, _compiled["seconds"] - compiling
    )


def _listen() -> None:
    """Adds up jax's own events from now on, once jax is loaded."""
    if "jax" not in sys.modules or _compiled["listening"]:
        return
    import jax.monitoring

    def note(event: str, duration: float, **_: Any) -> None:
        if event in _COMPILE_EVENTS:
            _compiled["seconds"] += duration

    jax.monitoring.register_event_duration_secs_listener(note)
    _compiled["listening"] = 1.0
