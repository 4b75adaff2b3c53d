"""The generator and the score network, for several independent chains at once.

Weights are plain dictionaries with the names and shapes of the torch engine's, every one with a leading axis for the chains:
k samplers train in the time of little more than one, and files of one engine load in the other.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pyro_dft.engine_jax import random
from pyro_dft.engine_jax.custom import Own
from pyro_dft.recipe.shapes import generator_shapes as generator_shapes
from pyro_dft.recipe.shapes import mlp_shapes

# Arrays of jax or NumPy by name; of a user's network those below "own".
Weights = dict[str, Any]


def _linear(weights: Weights, name: str, x: Array) -> Array:
    """A linear layer for each chain: (C, B, inputs) -> (C, B, outputs)."""
    return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]


def residual_mlp(weights: Weights, x: Array) -> Array:
    """SiLU network with a skip around each hidden layer but the first; its output starts near zero."""
    h = jax.nn.silu(_linear(weights, "mlp.hidden.0", x))
    for layer in range(1, depth_of(weights)):
        h = h + jax.nn.silu(_linear(weights, f"mlp.hidden.{layer}", h))
    return _linear(weights, "mlp.last", h)


def depth_of(weights: Weights) -> int:
    """Hidden layers of a network."""
    return sum(name.startswith("mlp.hidden.") and name.endswith(".weight") for name in weights)


def init_mlp(key: Array, chains: int, dim: int, width: int, depth: int, dtype: Any, more: int = 0) -> Weights:
    """Random weights of scale 1 / sqrt(inputs), a hundredth of that in the last layer; biases zero."""
    weights: Weights = {}
    shapes, used = mlp_shapes(chains, dim, width, depth, more), 0
    count = sum(math.prod(shape) for name, shape in shapes.items() if name.endswith(".weight"))
    noise = random.normal(key, (count,), dtype)
    for name, shape in shapes.items():
        if name.endswith(".bias"):
            weights[name] = jnp.zeros(shape, dtype)
            continue
        gain = 0.01 if name == "mlp.last.weight" else 1.0
        size = math.prod(shape)
        weights[name] = noise[used : used + size].reshape(shape) * (gain / shape[1] ** 0.5)
        used += size
    return weights


def init_generator(
    key: Array, chains: int, dim: int, width: int, depth: int, noise: Any, dtype: Any, own: Own | None = None
) -> Weights:
    """g(z) = z A + m + MLP(z) at A = identity, m = 0: the draws start as those of the preconditioner. Or a user's network.

    `log_sigma` holds the noise for each whitened coordinate, (C, 1, d); it is trained only where the settings say so.
    """
    log_sigma = jnp.log(jnp.full((chains, 1, dim), noise, dtype))
    if own is not None:
        return {"log_sigma": log_sigma, "own": own.init(key, chains, dtype)}
    return {
        "matrix": jnp.broadcast_to(jnp.eye(dim, dtype=dtype), (chains, dim, dim)),
        "shift": jnp.zeros((chains, 1, dim), dtype),
        "log_sigma": log_sigma,
    } | init_mlp(key, chains, dim, width, depth, dtype)


def generate(weights: Weights, z: Array) -> Array:
    """(C, B, d) latent points -> (C, B, d) whitened points before the noise."""
    if "own" in weights:
        return weights["own"](z)
    return z @ weights["matrix"] + weights["shift"] + residual_mlp(weights, z)


def sigma(weights: Weights) -> Array:
    """Noise standard deviation, (C, 1, d), whitened units."""
    return jnp.exp(weights["log_sigma"])


def score(weights: Weights, x: Array, noise: Array, levels: bool = False) -> Array:
    """s_phi(x) = -x / (1 + sigma^2) + MLP(x): exact for the generator's starting point. Or a user's network.

    (C, B, d) whitened points and the noise (C, 1, d) -> scores (C, B, d). With `levels` the noise is (C, B, 1), and s_phi(x,
    sigma) = -x / (1 + sigma^2) + MLP(x / sqrt(1 + sigma^2), log sigma) / sigma.
    """
    if "own" in weights:
        return weights["own"](x, noise) if levels else weights["own"](x)
    if levels:
        variance = 1 + jnp.square(noise)
        inputs = jnp.concatenate([x / jnp.sqrt(variance), jnp.log(noise)], -1)
        return residual_mlp(weights, inputs) / noise - x / variance
    return residual_mlp(weights, x) - x / (1 + jnp.square(jax.lax.stop_gradient(noise)))
