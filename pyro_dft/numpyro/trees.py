"""Potentials over bare arrays, tuples and any other pytree, as NumPyro's kernels take them: each leaf is a site."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True)
class Tree:
    """How a pytree of arrays corresponds to sites by name.

    Attributes:
        names: Of the leaves, in the order of `jax.tree.leaves`: "z" and the way to the leaf, such as "z[0]".
        structure: The pytree's.

    Example:
        >>> Tree.of((1.0, {"a": 2.0})).names
        ('z[0]', "z[1]['a']")
    """

    names: tuple[str, ...]
    structure: Any

    @classmethod
    def of(cls, values: Any) -> Tree:
        """The correspondence for pytrees like this one."""
        paths, structure = jax.tree_util.tree_flatten_with_path(values)
        return cls(tuple(f"z{jax.tree_util.keystr(path)}" for path, _ in paths), structure)

    def sites(self, values: Any) -> dict[str, Any]:
        """A pytree -> its leaves by name."""
        return dict(zip(self.names, self.structure.flatten_up_to(values), strict=True))

    def whole(self, sites: Mapping[str, Any]) -> Any:
        """Leaves by name -> the pytree."""
        return self.structure.unflatten([sites[name] for name in self.names])

    def potential(self, function: Callable[[Any], Any]) -> Callable[[Mapping[str, Any]], Any]:
        """A potential of the pytree as one of its leaves by name."""
        return lambda sites: function(self.whole(sites))


def needs_tree(values: Any) -> bool:
    """Whether initial values are another pytree than a dict of arrays by site name."""
    return not isinstance(values, Mapping) or not all(
        isinstance(name, str) and jax.tree_util.treedef_is_leaf(jax.tree.structure(value))
        for name, value in values.items()
    )


def is_traced(tree: Any) -> bool:
    """Whether some leaf is no number yet, as within `jax.jit` or `jax.vmap`."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
