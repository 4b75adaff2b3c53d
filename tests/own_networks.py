"""Networks that a user could bring, and settings that train them briefly."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import torch

from pyro_dft.experimental import grouped
from pyro_dft.numpyro import Network

CENTRE, NOISE = np.array([0.5, -1.0], np.float32), 0.1


PLAIN = grouped({
    "precondition": "never", "train": "always", "refine_steps": 2, "num_draws": 400, "reparam": "never", "seed": 3,
})  # fmt: skip


class Shift(torch.nn.Module):
    """g(z) = z + b."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(2))

    def forward(self, z):
        return z + self.shift


class Linear(torch.nn.Module):
    """x -> A x + b (+ c log sigma), the exact form of the score of any Gaussian at one noise level."""

    def __init__(self, outputs=2):
        super().__init__()
        self.linear = torch.nn.Linear(2, outputs)

    def forward(self, x, *sigma):
        return self.linear(x) / (sigma[0] if sigma else 1.0)


def linear_init(key, x, *sigma):
    return {"a": jax.random.normal(key, (2, 2)) / 2, "b": jnp.zeros(2)}


def linear_apply(weights, x, *sigma):
    return (x @ weights["a"] + weights["b"]) / (sigma[0] if sigma else 1.0)


NETS = {
    "pyro": {"generator": Shift(), "score_network": Linear()},
    "numpyro": {
        "generator": Network(lambda key, z: {"shift": jnp.zeros(2)}, lambda w, z: z + w["shift"]),
        "score_network": Network(linear_init, linear_apply),
    },
}


def gaussian(backend, **options):
    """N(CENTRE, 1 + NOISE^2): what g(z) = z + b and its noise can reproduce."""
    centre = backend.array(CENTRE)
    options = {"initial_params": {"a": backend.array([0.0, 0.0])}, **options}
    return backend.DFT(
        potential_fn=lambda z: 0.5 * ((z["a"] - centre) ** 2).sum() / (1 + NOISE**2),
        disable_progbar=True,
        **options,
    )
