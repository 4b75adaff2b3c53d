"""How many CPU threads a training gets: all that torch has, or one where the tensors are too small to share out.

Threads that wait for each other at every small operation are slower than one of them alone, and many times slower on a
machine that has other work to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Elements of the largest tensor, from which all threads are used: torch splits no operation on fewer than an eighth of this,
# and what is smaller than this takes about as long as the threads take to meet. Not found by a clock: the number of threads
# decides the order of sums, and with it last digits.
WORTH = 2**18


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


def worthwhile(elements: int) -> int:
    """Number of threads, one or all, for work whose largest tensor has so many elements."""
    return torch.get_num_threads() if elements >= WORTH else 1
