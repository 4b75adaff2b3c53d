"""Fits of a second for the tests of DFT."""

from __future__ import annotations

import torch

Y = torch.tensor([1.0, 2.0, 3.0, 2.5, 1.5])


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
