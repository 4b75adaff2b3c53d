"""The generators of torch that a model draws from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

State = tuple[Tensor, Tensor | None]


def random_state(device: torch.device) -> State:
    """Of the CPU and, where that is the device, of a GPU."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(state: State) -> None:
    """Puts back what `random_state` gave."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])


@contextmanager
def unmoved(device: torch.device) -> Iterator[None]:
    """Whatever is drawn within leaves no trace."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state)
