"""How many CPU threads a training gets: all that torch has, or one where the tensors are too small to share out.

Threads that wait for each other at every small operation are slower than one of them alone, and many times slower on a
machine that has other work to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# All threads are used where they take less than this share of the time of one.
WORTH = 0.8
REPEATS = 3


@contextmanager
def threads(count: int) -> Iterator[None]:
    """That many threads for what runs inside; torch's own number is put back."""
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def worthwhile(task: Callable[[], Any]) -> int:
    """Number of threads, one or all, that a task should run with; found by trying it with both."""
    most = torch.get_num_threads()
    if most == 1:
        return 1
    cost = {}
    for count in (1, most):
        with threads(count):
            task()
            cost[count] = min(_seconds(task) for _ in range(REPEATS))
    return most if cost[most] < WORTH * cost[1] else 1


def _seconds(task: Callable[[], Any]) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start
