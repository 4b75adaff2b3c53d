"""Names and shapes of the networks' arrays, which both engines and their files share."""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]


def mlp_shapes(chains: int, dim: int, width: int, depth: int, more: int = 0) -> Shapes:
    """Names and shapes of the arrays of a residual network with `more` inputs than outputs."""
    sizes = [dim + more] + [width] * depth
    names = [f"mlp.hidden.{i}" for i in range(depth)] + ["mlp.last"]
    shapes: Shapes = {}
    for name, a, b in zip(names, sizes, [*sizes[1:], dim], strict=True):
        shapes |= {f"{name}.weight": (chains, a, b), f"{name}.bias": (chains, 1, b)}
    return shapes


def generator_shapes(chains: int, dim: int, width: int, depth: int) -> Shapes:
    """Names and shapes of the generator's arrays."""
    own = {"matrix": (chains, dim, dim), "shift": (chains, 1, dim), "log_sigma": (chains, 1, dim)}
    return own | mlp_shapes(chains, dim, width, depth)
