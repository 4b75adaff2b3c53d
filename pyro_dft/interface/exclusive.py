"""One thread at a time: neither Pyro nor NumPyro can run two models at once, as the handlers in force are global.

Fits, draws and reports of all samplers of a process take turns, in whatever thread they are asked for; each of them waits
until the one before has ended. Waiting for such a thread inside a callback of a training waits for ever.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

_lock = threading.RLock()


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Waits until no other thread is inside; may be nested."""
    with _lock:
        yield


def _renew() -> None:
    # A process that is forked while another thread is inside would wait for that thread, which it does not have.
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
