"""Networks that a user brings, with weights for each sampler, behind the interface of `pyro_dft.engine_jax.networks`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pyro_dft import messages


class Network(NamedTuple):
    """A network as two pure functions, for those that are no objects with methods of these names.

    Attributes:
        init: init(key, x) -> parameters, any pytree of arrays, for points x (n, d).
        apply: apply(parameters, x) -> (n, d). A score network at varying noise gets the noise (n, 1) behind x in both.

    Example:
        >>> from pyro_dft.numpyro import Network
        >>> shift = Network(lambda key, z: jnp.zeros(z.shape[1]), lambda weights, z: z + weights)
        >>> shift.apply(shift.init(jax.random.key(0), jnp.ones((5, 2))), jnp.ones((5, 2))).shape
        (5, 2)
    """

    init: Callable[..., Any]
    apply: Callable[..., Array]


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A trained network: called with points, and itself a network whose `init` gives the trained parameters.

    Attributes:
        network: What the user gave.
        params: Its parameters.
    """

    network: Any
    params: Any

    def __call__(self, x: Any, *more: Any) -> Array:
        """(n, d) points -> (n, d)."""
        return self.network.apply(self.params, x, *more)

    def init(self, key: Any, x: Any, *more: Any) -> Any:
        """The trained parameters."""
        return self.params

    def apply(self, params: Any, x: Any, *more: Any) -> Array:
        """As that of the user's network."""
        return self.network.apply(params, x, *more)


class Own:
    """A user's network as a constant of compiled functions: the same object is the same network.

    Args:
        network: Anything with methods init(key, x) and apply(parameters, x): a `flax.linen.Module`, a haiku transform, a
            `Network`.
        option: Its name, for messages.
        dim: d.
        levels: Whether the network is told the noise as well.

    Raises:
        SettingsError: it has no such methods, or does not map (n, d) to (n, d).
    """

    def __init__(self, network: Any, option: str, dim: int, levels: bool = False):
        if not callable(getattr(network, "init", None)) or not callable(getattr(network, "apply", None)):
            raise messages.no_network(
                option, "an object with methods init(key, x) and apply(params, x)", network
            )
        self.network, self.dim, self.levels = network, dim, levels
        points = self._points(np.float32)
        try:
            found = jax.eval_shape(
                lambda key: network.apply(network.init(key, *points), *points), jax.random.key(0)
            )
        except Exception as error:  # whatever a user's network raises
            raise messages.network_fails(option, dim, error) from error
        if getattr(found, "shape", None) != (2, dim):
            raise messages.network_shape(option, dim, getattr(found, "shape", ()))

    def _points(self, dtype: Any) -> list[Array]:
        x = jnp.zeros((2, self.dim), dtype)
        return [x, jnp.ones((2, 1), dtype)] if self.levels else [x]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Own):
            return False
        return self.network is other.network and (self.dim, self.levels) == (other.dim, other.levels)

    def __hash__(self) -> int:
        return hash((id(self.network), self.dim, self.levels))

    def init(self, words: Array, chains: int, dtype: Any) -> Parameters:
        """Parameters of C samplers, each from a random stream of its own."""
        keys = jax.random.split(jax.random.wrap_key_data(words, impl="threefry2x32"), chains)
        each = [self.network.init(key, *self._points(dtype)) for key in keys]

        def stack(*leaves: Any) -> Array:
            value = jnp.stack([jnp.asarray(leaf) for leaf in leaves])
            return value.astype(dtype) if jnp.issubdtype(value.dtype, jnp.floating) else value

        return Parameters(jax.tree.map(stack, *each), self)


@jax.tree_util.register_pytree_with_keys_class
class Parameters:
    """Parameters of a user's network, every array with a leading axis for the samplers; called with points (C, B, d)."""

    def __init__(self, values: Any, own: Own):
        self.values, self.own = values, own

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], Own]:
        """The arrays are what changes; the network is a constant."""
        return ((jax.tree_util.GetAttrKey("values"), self.values),), self.own

    @classmethod
    def tree_unflatten(cls, own: Own, children: tuple[Any, ...]) -> Parameters:
        """The inverse."""
        return cls(children[0], own)

    def each(self) -> list[TrainedNetwork]:
        """One network for each sampler."""
        chains = len(jax.tree.leaves(self.values)[0])

        def one(c: int) -> Any:
            return jax.tree.map(lambda value: value[c], self.values)

        return [TrainedNetwork(self.own.network, one(c)) for c in range(chains)]

    def __call__(self, x: Array, *more: Array) -> Array:
        """(C, B, d) points, and what goes with them -> (C, B, d)."""
        apply = self.own.network.apply
        if len(x) == 1:  # no batched weights: convolutions are much faster without
            one = jax.tree.map(lambda value: value[0], self.values)
            return apply(one, x[0], *(m[0] for m in more))[None]
        return jax.vmap(apply)(self.values, x, *more)


def named(weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """All arrays of a network by name, as a file holds them."""
    return {_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(weights)[0]}


def unnamed(arrays: Mapping[str, Any], like: Any) -> Any:
    """The inverse of `named`, in the structure of `like`.

    Raises:
        KeyError: an array is missing.
        ValueError: an array has another shape.
    """
    paths, tree = jax.tree_util.tree_flatten_with_path(like)
    for path, leaf in paths:
        if arrays[_name(path)].shape != leaf.shape:
            raise ValueError(f"{_name(path)} has shape {arrays[_name(path)].shape}, expected {leaf.shape}")
    return jax.tree.unflatten(tree, [arrays[_name(path)] for path, _ in paths])


def _name(path: Any) -> str:
    parts = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    return ".".join(parts)
